# SPDX-License-Identifier: Apache-2.0
"""A node of IPFS (Kubo), over its RPC.

What is known of the RPC and its client (ipfshttpclient 0.7): a stream whose
block is missing ends early without an error, so nothing that ``stream`` or
``export`` yields is whole until the caller has checked it; ``connect()``
refuses every current Kubo, ``Client()`` does not; a miss waits for ever, so
every call has a time limit.
"""

from __future__ import annotations

import math
import os
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import ipfshttpclient
import requests
from ipfshttpclient import exceptions, multipart

from glance_geo.core import cids, errors
from glance_geo.core.cids import CID

PIN = 'glance-geo'
"""How the names of our pins begin."""
_PIECE = 1024 * 1024
_ADD = {'raw-leaves': 'true', 'cid-version': '1', 'hash': 'sha2-256',
        'chunker': 'size-1048576'}
# Nodes do not give each other the block without bytes (Kubo 0.43).
_EMPTY = cids.of_leaf(b'')
# A node says itself that it did not find a block, if it is given the time.
_MARGIN = 5.0
_NOT_FOUND = 'not found in time'
_ASK_AGAIN = 4.0
# A node that collects, or writes slowly, answers an upload late.
_PATIENCE = 10

warnings.filterwarnings('ignore', message=r".*'strict' parameter",
                        category=FutureWarning)


class IPFSNode:
    """A node's RPC. Safe for several threads, and for forks.

    Every call raises ``Unreachable`` when the node does not answer in time,
    ``PeerRefused`` when it refuses the credentials, ``StoreFull`` when its
    disk is full and ``IPFSFailed`` for anything else that it says. Every call
    may be repeated.

    :param address: multiaddr, such as ``/ip4/127.0.0.1/tcp/5001/http``,
        ``/dns/ipfs.example/tcp/443/https`` or ``/unix/run/ipfs/api.sock``
    :param secret: ``basic:user:password``, ``bearer:token`` or ''
    :param ca_file: authority of an https node; '' for the system's
    :param timeout: seconds without an answer, or without another byte
    :raises ConfigurationInvalid: the address or the secret is malformed
    """

    def __init__(self, address: str, secret: str = '', ca_file: str = '',
                 timeout: float = 30.0):
        self.address = address
        self.timeout = timeout
        self._secret = secret
        self._ca_file = ca_file
        self._local = threading.local()
        self._client()

    def _client(self) -> Any:
        if getattr(self._local, 'pid', None) != os.getpid():
            self._local.client = self._connect()
            self._local.pid = os.getpid()
        return self._local.client

    def _connect(self) -> Any:
        kind, _, secret = self._secret.partition(':')
        auth = headers = None
        if kind == 'basic' and ':' in secret:
            user, _, password = secret.partition(':')
            auth = (user, password)
        elif kind == 'bearer' and secret:
            headers = {'Authorization': f'Bearer {secret}'}
        elif self._secret:
            raise errors.ConfigurationInvalid(
                'ipfs_auth_file must hold "basic:<user>:<password>" or '
                '"bearer:<token>"')
        try:
            client = ipfshttpclient.Client(
                self.address, auth=auth, headers=headers,
                timeout=(self.timeout, self.timeout), chunk_size=_PIECE)
        except (exceptions.AddressError, ValueError) as error:
            raise errors.ConfigurationInvalid(
                f'ipfs_api {self.address!r} is no address of a node: use '
                f'/ip4/127.0.0.1/tcp/5001/http, /dns/host/tcp/443/https or '
                f'/unix/run/ipfs/api.sock') from error
        # The client has no argument for these. The environment's proxies and
        # authorities are not for a node's RPC.
        properties = client._client._session_props
        properties['trust_env'] = False
        if self._ca_file:
            properties['verify'] = self._ca_file
        if headers:
            # Set whole, it would take the place of the session's own.
            properties['headers'] = requests.structures.CaseInsensitiveDict(
                headers)
        client._client.open_session()
        return client

    # -- calls ------------------------------------------------------------
    @contextmanager
    def _translated(self) -> Iterator[None]:
        name = f'IPFS node {self.address}'
        try:
            yield
        except (exceptions.TimeoutError, requests.Timeout) as error:
            raise errors.Unreachable(
                f'{name} did not answer within {self.timeout:g} s') from error
        except exceptions.ErrorResponse as error:
            text = str(error)
            if 'deadline exceeded' in text:
                raise errors.Unreachable(f'{name}: {_NOT_FOUND}') from error
            if 'no space left' in text or 'storage limit' in text:
                raise errors.StoreFull(f'{name}: {text}') from error
            raise errors.IPFSFailed(f'{name}: {text}') from error
        except exceptions.StatusError as error:
            response = getattr(error.original, 'response', None)
            status = getattr(response, 'status_code', None)
            if status in (401, 403):
                raise errors.PeerRefused(
                    f'{name} refuses with {status}: look at ipfs_auth_file, '
                    f'and at API.Authorizations in the node\'s '
                    f'configuration') from error
            raise errors.IPFSFailed(f'{name} answers {status}') from error
        except exceptions.ConnectionError as error:
            raise errors.Unreachable(
                f'{name} can not be reached: {_cause(error)}') from error
        except (exceptions.Error, requests.RequestException) as error:
            raise errors.Unreachable(
                f'{name} broke off: {_cause(error)}') from error

    def _call(self, path: str, *args: str, data: Any = None,
              headers: Any = None, timeout: float | None = None,
              **options: Any) -> list[dict[str, Any]]:
        """Call the RPC; return the documents that it answers."""
        with self._translated():
            return self._client()._client.request(
                path, args, opts=_texts(options), decoder='json', data=data,
                headers=headers, timeout=timeout)

    def _pieces(self, path: str, *args: str, patience: float = 0.0,
                **options: Any) -> Generator[bytes, None, None]:
        """Yield what the RPC answers; it may end early.

        :param patience: seconds for which to wait beyond the time limit
        """
        with self._translated(), self._client()._client.request(
                path, args, opts=_texts(options), stream=True,
                timeout=self.timeout + patience) as pieces:
            yield from pieces

    # -- the node ---------------------------------------------------------
    def identity(self) -> dict[str, Any]:
        """Return ``ID``, ``AgentVersion`` and more."""
        return self._call('/id')[0]

    def state(self) -> dict[str, Any]:
        """Return what an operator watches."""
        used, most = self.space()
        return {'address': self.address, 'repository_bytes': used,
                'repository_limit': most, 'peers': len(self.peers())}

    def space(self) -> tuple[int, int]:
        """Return (bytes that the repository takes, bytes that it may)."""
        found = self._call('/repo/stat', size_only=True)[0]
        return found['RepoSize'], found['StorageMax']

    def collect(self) -> int:
        """Let the node remove what is not pinned; return how many blocks."""
        # It takes as long as it takes.
        return sum('Key' in each for each in self._call(
            '/repo/gc', timeout=math.inf))

    def peers(self) -> list[str]:
        """Return the ids of the nodes that it is connected to."""
        return sorted({peer['Peer'] for each in self._call('/swarm/peers')
                       for peer in each['Peers'] or ()})

    def reconnect(self) -> int:
        """Dial the nodes that it should be connected to and is not.

        It does so itself, but after an outage only every ten minutes.

        :returns: how many answered
        """
        came = 0
        connected = set(self.peers())
        for each in self._call('/swarm/peering/ls'):
            for peer in each['Peers'] or ():
                if peer['ID'] in connected:
                    continue
                for address in peer['Addrs'] or ():
                    try:
                        self._call('/swarm/connect',
                                   f'{address}/p2p/{peer["ID"]}',
                                   timeout=_MARGIN)
                        came += 1
                        break
                    except errors.GeoError:
                        continue    # it is away: that is for the caller to see
        return came

    # -- files ------------------------------------------------------------
    def add(self, pieces: Iterable[bytes], name: str) -> CID:
        """Store a file in raw leaves of 1 MiB, and pin it.

        :param name: of the pin
        :raises CIDInvalid: the node answered with something else than asked
        """
        body, headers = multipart.stream_bytes(iter(pieces),
                                               chunk_size=_PIECE)
        found = self._call(
            '/add', data=body, headers=headers,
            timeout=_PATIENCE * self.timeout, pin=True, pin_name=name,
            quieter=True, progress=False, **_ADD)
        return cids.parse(found[-1]['Hash'])

    def stream(self, cid: CID, offset: int, length: int,
               ) -> Generator[bytes, None, None]:
        """Yield a part of a file, unchecked; it may end early."""
        # Not the client's ``cat``: there, options replace the range.
        return self._pieces('/cat', str(cid), offset=offset, length=length)

    # -- blocks -----------------------------------------------------------
    def block(self, cid: CID, offline: bool = False) -> bytes:
        """Return a block, checked against its name.

        :param offline: only if the node has it
        :raises ChunkMissing: nobody gave it in time
        :raises ChunkCorrupt: the node gave other bytes
        """
        if cid == _EMPTY:
            return b''
        missing: Exception | None = None
        for patience in _patience(0.0 if offline else self.timeout):
            try:
                return self._get(cid, offline, patience or self.timeout)
            except errors.ChunkMissing as error:
                missing = error
        raise errors.ChunkMissing(
            str(missing) if offline else f'IPFS node {self.address}: {cid} '
            f'was not found within {self.timeout:g} s') from missing

    def _get(self, cid: CID, offline: bool, patience: float) -> bytes:
        """Ask for a block once."""
        data = bytearray()
        try:
            for piece in self._pieces(
                    '/block/get', str(cid), offline=offline, patience=_MARGIN,
                    timeout=f'{patience:g}s'):
                data += piece
                if len(data) > cids.BLOCK_MAXIMUM:
                    raise errors.ChunkCorrupt(
                        f'IPFS node {self.address} sent too much for block '
                        f'{cid}')
        except errors.IPFSFailed as error:
            raise errors.ChunkMissing(str(error)) from error
        except errors.Unreachable as error:
            if _NOT_FOUND not in str(error):
                raise
            raise errors.ChunkMissing(str(error)) from error
        cids.verify(cid, data)
        return bytes(data)

    def put_node(self, block: bytes) -> CID:
        """Store a dag-pb node; it is not pinned."""
        body, headers = multipart.stream_bytes(iter([block]),
                                               chunk_size=_PIECE)
        return cids.parse(self._call(
            '/block/put', data=body, headers=headers, cid_codec='dag-pb',
            mhtype='sha2-256')[0]['Key'])

    def import_car(self, pieces: Iterable[bytes]) -> None:
        """Store the blocks of a CAR stream; they are not pinned."""
        body, headers = multipart.stream_bytes(iter(pieces),
                                               chunk_size=_PIECE)
        self._call('/dag/import', data=body, headers=headers,
                   timeout=_PATIENCE * self.timeout, pin_roots=False,
                   stats=True)

    def export(self, root: CID) -> Generator[bytes, None, None]:
        """Yield the CAR stream of what a node links; it may end early."""
        return self._pieces('/dag/export', str(root), progress=False)

    # -- pins -------------------------------------------------------------
    def pin(self, cid: CID, name: str,
            stopped: Callable[[], bool] = lambda: False) -> None:
        """Fetch what a file or node links, and keep it.

        :param stopped: gives up when it returns true
        :raises ChunkMissing: nothing more came for the time limit
        """
        if cid == _EMPTY:
            self.add(iter(()), name)
            return
        came = -1
        asking = _patience(self.timeout)
        while (patience := next(asking, None)) is not None:
            more = self._pin_once(cid, name, came, patience, stopped)
            if more is None:
                return
            if stopped():
                break
            if more > came:     # something came: all the time again
                came, asking = more, _patience(self.timeout)
        raise errors.ChunkMissing(
            f'IPFS node {self.address}: not all of {cid} could be found; '
            f'{max(came, 0)} bytes are here, and nothing came for '
            f'{self.timeout:g} s')

    def _pin_once(self, cid: CID, name: str, came: int, patience: float,
                  stopped: Callable[[], bool]) -> int | None:
        """Ask for a pin until it is made (None), or nothing comes for some
        seconds (bytes that are here)."""
        since = time.monotonic()
        with self._translated(), self._client()._client.request(
                '/pin/add', (str(cid),), opts={
                    'name': name, 'progress': 'true'},
                decoder='json', stream=True) as documents:
            for document in documents:
                if 'Pins' in document:
                    return None
                now = time.monotonic()
                if document.get('Bytes', 0) > came:
                    came, since = document.get('Bytes', 0), now
                if stopped() or now - since > patience:
                    break
        return came

    def unpin(self, cid: CID) -> None:
        """Keep a file no longer; one that is not pinned is no error."""
        try:
            self._call('/pin/rm', str(cid))
        except errors.IPFSFailed as error:
            if 'not pinned' not in str(error):
                raise

    def pins(self) -> dict[str, str]:
        """Return CID -> name of the recursive pins."""
        found: dict[str, str] = {}
        for each in self._call('/pin/ls', type='recursive', names=True,
                               stream=True):
            found[each['Cid']] = each.get('Name', '')
        return found

    def is_pinned(self, cid: CID) -> bool:
        try:
            self._call('/pin/ls', str(cid), type='recursive')
        except errors.IPFSFailed as error:
            if 'not pinned' in str(error):
                return False
            raise
        return True

    # -- the node's own files ---------------------------------------------
    def entries(self, folder: str) -> list[str]:
        """Return the names in a folder of the node's own files."""
        try:
            found = self._call('/files/ls', folder, U=True)
        except errors.IPFSFailed as error:
            if 'does not exist' in str(error):
                return []
            raise
        return [entry['Name'] for each in found
                for entry in each['Entries'] or ()]

    def link(self, cid: CID, path: str) -> None:
        """Enter a file under a path; a path that is taken stays so.

        What is entered there is not collected.
        """
        try:
            self._call('/files/cp', f'/ipfs/{cid}', path, parents=True)
        except errors.IPFSFailed as error:
            if 'already has entry' not in str(error):
                raise

    def mark(self, path: str) -> None:
        """Make an empty folder."""
        self._call('/files/mkdir', path, parents=True)

    def unlink(self, path: str) -> None:
        """Remove a path; one that is not there is no error."""
        try:
            self._call('/files/rm', path, recursive=True)
        except errors.IPFSFailed as error:
            if 'does not exist' not in str(error):
                raise


def _patience(limit: float) -> Iterator[float]:
    """Yield for how many seconds to wait, each time, before asking anew.

    Bitswap sometimes forgets what it was asked for, and remembers it a minute
    later; asked anew, it answers at once.
    """
    yield (first := min(_ASK_AGAIN, limit))
    while (limit := limit - first) > 0:
        first = min(2 * first, limit)
        yield first


def _texts(options: dict[str, Any]) -> dict[str, str]:
    return {name.replace('_', '-'): (
        str(value).lower() if isinstance(value, bool) else str(value))
        for name, value in options.items()}


def _cause(error: BaseException) -> str:
    """Return the last cause of a client library's nest of errors."""
    text = str(error)
    while True:
        inner = error.__cause__ or error.__context__ or next(
            (a for a in error.args if isinstance(a, BaseException)), None) \
            or getattr(error, 'reason', None)
        if not isinstance(inner, BaseException):
            return text.rpartition(': ')[2] or text or type(error).__name__
        error, text = inner, str(inner) or text
