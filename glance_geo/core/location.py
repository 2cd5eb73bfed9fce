# SPDX-License-Identifier: Apache-2.0
"""``geo://`` locations: what an image's metadata says of its bits.

``geo://<store>/<image>/<manifest>/<nonce>/<key id>.<signature>`` means the
same at every site. It carries the image's id because a store's ``delete`` is
told nothing else, a nonce because a second upload of the same bits must not
share a reference with a deleted first one, and a keyed signature because
users may be allowed to set locations: knowing a hash must grant nothing.
"""

import dataclasses
import hashlib
import hmac
import re
from collections.abc import Mapping

from glance_geo.core import errors

SCHEME = 'geo'
_STORE = re.compile(r'[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}')
_IMAGE = re.compile(r'[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}')
_HEX64 = re.compile(r'[0-9a-f]{64}')
_NONCE = re.compile(r'[0-9a-f]{16}')
_KEY_ID = re.compile(r'[A-Za-z0-9_-]{1,32}')
_SIGNATURE_BYTES = 20


def _full(pattern: re.Pattern[str], text: str, what: str) -> str:
    if not pattern.fullmatch(text):
        raise errors.LocationInvalid(f'not a geo location: bad {what}')
    return text


@dataclasses.dataclass(frozen=True)
class GeoLocation:
    """A location whose parts are well-formed; its signature may be wrong.

    :ivar manifest: the manifest's name, 32 bytes
    """

    store: str
    image: str
    manifest: bytes
    nonce: str
    key_id: str
    signature: str

    @property
    def signed_part(self) -> str:
        return (f'{SCHEME}://{self.store}/{self.image}/{self.manifest.hex()}/'
                f'{self.nonce}')

    @property
    def uri(self) -> str:
        return f'{self.signed_part}/{self.key_id}.{self.signature}'


def _sign(key: bytes, text: str) -> str:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()[
        :_SIGNATURE_BYTES].hex()


def issue(store: str, image: str, manifest: bytes, nonce: str, key_id: str,
          key: bytes) -> GeoLocation:
    """Return a signed location.

    :raises LocationInvalid: a part is malformed (an image id that is no UUID)
    """
    unsigned = GeoLocation(
        _full(_STORE, store, 'store name'), _full(_IMAGE, image, 'image id'),
        manifest, _full(_NONCE, nonce, 'nonce'),
        _full(_KEY_ID, key_id, 'key id'), '')
    return dataclasses.replace(unsigned,
                               signature=_sign(key, unsigned.signed_part))


def parse(uri: str) -> GeoLocation:
    """Return a location's parts, without checking its signature.

    :raises LocationInvalid: not of this form
    """
    prefix = f'{SCHEME}://'
    if not uri.startswith(prefix) or len(uri) > 512:
        raise errors.LocationInvalid('not a geo location')
    parts = uri[len(prefix):].split('/')
    if len(parts) != 5:
        raise errors.LocationInvalid('not a geo location: wrong parts')
    store, image, manifest, nonce, proof = parts
    key_id, dot, signature = proof.partition('.')
    if not dot:
        raise errors.LocationInvalid('not a geo location: no signature')
    return GeoLocation(
        _full(_STORE, store, 'store name'), _full(_IMAGE, image, 'image id'),
        bytes.fromhex(_full(_HEX64, manifest, 'manifest')),
        _full(_NONCE, nonce, 'nonce'), _full(_KEY_ID, key_id, 'key id'),
        signature)


def verify(location: GeoLocation, keys: Mapping[str, bytes]) -> None:
    """Check a location's signature against the accepted keys.

    :raises LocationInvalid: unknown key, or the signature is wrong
    """
    key = keys.get(location.key_id)
    if key is None:
        raise errors.LocationInvalid(
            f'location is signed with unknown key {location.key_id!r}')
    if not hmac.compare_digest(_sign(key, location.signed_part),
                               location.signature):
        raise errors.LocationInvalid('location signature is wrong')
