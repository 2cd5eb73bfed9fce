# SPDX-License-Identifier: Apache-2.0
"""Locations: what an image's metadata says of its bits.

- ``geo://<store>/<image>/<manifest>/<nonce>/<key id>.<signature>``
- ``ipfs://<CID>?store=…&image=…&nonce=…&proof=<key id>.<signature>``

They mean the same at every site. Each carries the image's id because a
store's ``delete`` is told nothing else, a nonce because a second upload of the
same bits must not share a reference with a deleted first one, and a keyed
signature because users may be allowed to set locations: knowing a hash must
grant nothing. What IPFS itself makes of an ``ipfs://`` location is the CID.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import re
import urllib.parse
from collections.abc import Mapping

from glance_geo.core import cids, errors

SCHEME = 'geo'
IPFS_SCHEME = 'ipfs'
SCHEMES = (SCHEME, IPFS_SCHEME)
_STORE = re.compile(r'[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}')
_IMAGE = re.compile(r'[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}')
_HEX64 = re.compile(r'[0-9a-f]{64}')
_NONCE = re.compile(r'[0-9a-f]{16}')
_KEY_ID = re.compile(r'[A-Za-z0-9_-]{1,32}')
_SIGNATURE_BYTES = 20


def _full(pattern: re.Pattern[str], text: str, what: str) -> str:
    if not pattern.fullmatch(text):
        raise errors.LocationInvalid(f'not a location of ours: bad {what}')
    return text


@dataclasses.dataclass(frozen=True)
class Location:
    """A location whose parts are well-formed; its signature may be wrong."""

    store: str
    image: str
    nonce: str
    key_id: str
    signature: str

    @property
    def signed_part(self) -> str:
        raise NotImplementedError

    @property
    def uri(self) -> str:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class GeoLocation(Location):
    """Of a ``geo`` store.

    :ivar manifest: the manifest's name, 32 bytes
    """

    manifest: bytes

    @property
    def signed_part(self) -> str:
        return (f'{SCHEME}://{self.store}/{self.image}/{self.manifest.hex()}/'
                f'{self.nonce}')

    @property
    def uri(self) -> str:
        return f'{self.signed_part}/{self.key_id}.{self.signature}'


@dataclasses.dataclass(frozen=True)
class IPFSLocation(Location):
    """Of an ``ipfs`` store.

    :ivar cid: of the file, as text
    """

    cid: str

    @property
    def signed_part(self) -> str:
        return (f'{IPFS_SCHEME}://{self.cid}?store={self.store}&image='
                f'{self.image}&nonce={self.nonce}')

    @property
    def uri(self) -> str:
        return f'{self.signed_part}&proof={self.key_id}.{self.signature}'


def _sign(key: bytes, text: str) -> str:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()[
        :_SIGNATURE_BYTES].hex()


def _checked(store: str, image: str, nonce: str, key_id: str,
             ) -> tuple[str, str, str, str]:
    return (_full(_STORE, store, 'store name'),
            _full(_IMAGE, image, 'image id'), _full(_NONCE, nonce, 'nonce'),
            _full(_KEY_ID, key_id, 'key id'))


def issue(store: str, image: str, manifest: bytes, nonce: str, key_id: str,
          key: bytes) -> GeoLocation:
    """Return a signed location of a ``geo`` store.

    :raises LocationInvalid: a part is malformed (an image id that is no UUID)
    """
    unsigned = GeoLocation(*_checked(store, image, nonce, key_id), '',
                           manifest)
    return dataclasses.replace(unsigned,
                               signature=_sign(key, unsigned.signed_part))


def issue_ipfs(store: str, image: str, cid: str, nonce: str, key_id: str,
               key: bytes) -> IPFSLocation:
    """Return a signed location of an ``ipfs`` store; raises as ``issue``."""
    unsigned = IPFSLocation(*_checked(store, image, nonce, key_id), '', cid)
    return dataclasses.replace(unsigned,
                               signature=_sign(key, unsigned.signed_part))


def parse(uri: str) -> Location:
    """Return a location's parts, without checking its signature.

    :raises LocationInvalid: of no store of ours, or malformed
    """
    scheme, sign, rest = uri.partition('://')
    if not sign or scheme not in SCHEMES or len(uri) > 512:
        raise errors.LocationInvalid('not a location of ours')
    return (_parse_geo if scheme == SCHEME else _parse_ipfs)(rest)


def _proof(text: str) -> tuple[str, str]:
    key_id, dot, signature = text.partition('.')
    if not dot:
        raise errors.LocationInvalid('not a location of ours: no signature')
    return key_id, signature


def _parse_geo(rest: str) -> GeoLocation:
    parts = rest.split('/')
    if len(parts) != 5:
        raise errors.LocationInvalid('not a geo location: wrong parts')
    store, image, manifest, nonce, proof = parts
    key_id, signature = _proof(proof)
    return GeoLocation(
        *_checked(store, image, nonce, key_id), signature,
        bytes.fromhex(_full(_HEX64, manifest, 'manifest')))


def _parse_ipfs(rest: str) -> IPFSLocation:
    cid, _, query = rest.partition('?')
    parts = urllib.parse.parse_qsl(query, keep_blank_values=True)
    values = dict(parts)
    if [name for name, _ in parts] != ['store', 'image', 'nonce', 'proof']:
        raise errors.LocationInvalid(
            'not an ipfs location that a store of ours issued')
    try:
        cids.parse(cid)
    except errors.CIDInvalid as error:
        raise errors.LocationInvalid(str(error)) from error
    key_id, signature = _proof(values['proof'])
    return IPFSLocation(
        *_checked(values['store'], values['image'], values['nonce'], key_id),
        signature, cid)


def verify(location: Location, keys: Mapping[str, bytes]) -> None:
    """Check a location's signature against the accepted keys.

    :raises LocationInvalid: unknown key, or the signature is wrong
    """
    key = keys.get(location.key_id)
    if key is None:
        raise errors.LocationInvalid(
            f'location is signed with unknown key {location.key_id!r}')
    if not hmac.compare_digest(_sign(key, location.signed_part).encode(),
                               location.signature.encode()):
        raise errors.LocationInvalid('location signature is wrong')
