# SPDX-License-Identifier: Apache-2.0
"""A node of IPFS (Kubo): what this package asks of it.

Nothing that ``stream`` or ``export`` yields is whole until the caller has
checked it: a node ends a stream early, without an error, where a block is
missing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from typing import Any

from glance_geo.core import cids, errors
from glance_geo.core.cids import CID
from glance_geo.store.ipfs.rpc import NOT_FOUND, NodeRPC

PIN = 'glance-geo'
"""How the names of our pins begin."""
_ADD = {'raw-leaves': 'true', 'cid-version': '1', 'hash': 'sha2-256',
        'chunker': 'size-1048576'}
# Nodes do not give each other the block without bytes (Kubo 0.43).
_EMPTY = cids.of_leaf(b'')
# A node says itself that it did not find a block, if it is given the time.
_MARGIN = 5.0
_ASK_AGAIN = 4.0
# A node that collects, or writes slowly, answers an upload late.
_PATIENCE = 10


class IPFSNode(NodeRPC):
    """A node, by its RPC; see there for what every call raises."""

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
        found = self._upload(
            '/add', pieces, timeout=_PATIENCE * self.timeout, pin=True,
            pin_name=name, quieter=True, progress=False, **_ADD)
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
            if NOT_FOUND not in str(error):
                raise
            raise errors.ChunkMissing(str(error)) from error
        cids.verify(cid, data)
        return bytes(data)

    def put_node(self, block: bytes) -> CID:
        """Store a dag-pb node; it is not pinned."""
        return cids.parse(self._upload(
            '/block/put', [block], cid_codec='dag-pb',
            mhtype='sha2-256')[0]['Key'])

    def import_car(self, pieces: Iterable[bytes]) -> None:
        """Store the blocks of a CAR stream; they are not pinned."""
        self._upload('/dag/import', pieces, pin_roots=False, stats=True,
                     timeout=_PATIENCE * self.timeout)

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
        with closing(self._documents('/pin/add', str(cid), name=name,
                                     progress=True)) as documents:
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
