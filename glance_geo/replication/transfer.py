# SPDX-License-Identifier: Apache-2.0
"""Fetching missing chunks from other nodes into the local chunk store.

Each chunk is verified before it is stored, and durable before anyone is told
that it is here: a transfer cut off goes on from the last verified chunk.
Calls that want the same chunk share one transfer.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from glance_geo.core import errors
from glance_geo.core.interfaces import ChunkSession, LocalChunks
from glance_geo.core.manifest import name_of
from glance_geo.replication.client import PeerClient

LOG = logging.getLogger(__name__)

BATCH = 128
"""Chunks per request: about 4 MiB of image."""
_PULLERS = 3
_IDLE_SECONDS = 5.0
_ATTEMPTS = 3

Order = Callable[[str, bytes], list[PeerClient]]


class Fetcher:
    """Brings chunks from other nodes.

    :param allowed: raises BitsElsewhere if placement refuses an image here
    :param order: returns the peers to ask for an image, best first
    """

    def __init__(self, store: LocalChunks,
                 allowed: Callable[[str, bytes], None],
                 order: Order):
        self._store = store
        self._allowed = allowed
        self._order = order
        self._lock = threading.Lock()
        self._flying: dict[bytes, Future] = {}
        self._writing = threading.Lock()
        self._session: ChunkSession | None = None
        self._used = 0.0
        self.chunks_received = 0

    # -- one batch --------------------------------------------------------
    def ensure(self, image_id: str, manifest: bytes,
               names: Sequence[bytes]) -> None:
        """Return when every named chunk is in the local chunk store.

        :raises BitsElsewhere, BitsUnavailable: see ``ChunkSource``
        """
        for attempt in range(_ATTEMPTS):
            missing = self._store.missing(names)
            if not missing:
                return
            self._allowed(image_id, manifest)
            self._store.keep_copy(image_id, manifest)
            mine, others = self._divide(missing)
            # Another transfer may have brought some, and ended, before these
            # were registered.
            absent = self._store.missing(mine)
            self._tell([name for name in mine if name not in absent], None)
            self._fetch(image_id, manifest, absent)
            for future in others:
                try:
                    future.result()
                except errors.GeoError:
                    # Another image's transfer failed, perhaps for a reason
                    # that is not ours: the next round asks for ourselves.
                    if attempt == _ATTEMPTS - 1:
                        raise
        raise errors.BitsUnavailable(
            f'image {image_id}: chunks vanish as they arrive')

    def _divide(self, names: Sequence[bytes],
                ) -> tuple[list[bytes], list[Future]]:
        """Return the chunks to fetch, and the transfers to wait for."""
        mine: list[bytes] = []
        others: list[Future] = []
        with self._lock:
            for name in names:
                if name in self._flying:
                    others.append(self._flying[name])
                else:
                    self._flying[name] = Future()
                    mine.append(name)
        return mine, others

    def _fetch(self, image: str, manifest: bytes,
               names: list[bytes]) -> None:
        """Fetch chunks, and tell those who wait how it went."""
        left = names
        try:
            while left:
                batch, rest = left[:BATCH], left[BATCH:]
                self._from_peers(image, manifest, batch)
                self._tell(batch, None)
                left = rest
        except BaseException as error:
            self._tell(left, error)
            raise

    def _tell(self, names: list[bytes],
              failure: BaseException | None) -> None:
        with self._lock:
            futures = [self._flying.pop(name) for name in names]
        for future in futures:
            if failure is None:
                future.set_result(None)
            else:
                future.set_exception(failure)

    def _from_peers(self, image: str, manifest: bytes,
                    names: list[bytes]) -> None:
        """Ask peer after peer until every chunk is here.

        :raises BitsUnavailable: something is left; the text has each cause
        """
        left = list(names)
        causes = []
        for peer in self._order(image, manifest):
            cause = f'site {peer.site} does not have them'
            try:
                self._from_peer(peer, image, manifest, left)
            except (errors.Unreachable, errors.PeerRefused,
                    errors.PeerMisbehaved) as error:
                cause = str(error)
            # What arrived before a failure is here.
            left = self._store.missing(left)
            if not left:
                return
            causes.append(cause)
        raise errors.BitsUnavailable(
            f'image {image}: {len(left)} chunks are not at this site and '
            f'could not be fetched: '
            + ('; '.join(causes) or 'no other site is configured'))

    def _from_peer(self, peer: PeerClient, image: str, manifest: bytes,
                   names: list[bytes]) -> None:
        got: dict[bytes, tuple[int, bytes, int]] = {}
        try:
            with peer.chunks(image, manifest, names) as frames:
                for place, data in enumerate(frames):
                    if place >= len(names):
                        raise errors.PeerMisbehaved(
                            f'site {peer.site} sent more than was asked for')
                    if not data:
                        continue
                    name = names[place]
                    if name_of(data) != name:
                        raise errors.PeerMisbehaved(
                            f'site {peer.site} sent wrong bytes for chunk '
                            f'{name.hex()}')
                    got[name] = (*self._store.compress(data), len(data))
        finally:
            if got:
                self._keep(got)

    def _keep(self, got: dict[bytes, tuple[int, bytes, int]]) -> None:
        """Store verified chunks durably."""
        with self._writing:
            if self._session is None:
                self._session = self._store.session()
            session = self._session
            try:
                for name in session.unknown(list(got)):
                    session.put(name, *got[name])
                session.flush()
            except BaseException:
                # What earlier batches stored was promised to be here, and
                # their references keep it: only this batch is given up.
                self._session = None
                session.abort()
                raise
            self._used = time.monotonic()
            self.chunks_received += len(got)

    def settle(self, force: bool = False) -> None:
        """Close the pack in use once nothing came for a while."""
        with self._writing:
            idle = time.monotonic() - self._used
            if self._session is not None and (force or idle > _IDLE_SECONDS):
                session, self._session = self._session, None
                session.commit()

    # -- whole images -----------------------------------------------------
    def pull(self, image: str, name: bytes,
             stopped: Callable[[], bool] = lambda: False) -> None:
        """Bring a whole image; may be repeated, goes on where it stopped.

        :raises BitsElsewhere, BitsUnavailable, ManifestInvalid: see there
        """
        self.ensure(image, name, [name])
        root = self._store.manifest(name)
        self.ensure(image, name, [ref.name for ref in root.segments])
        with ThreadPoolExecutor(_PULLERS, thread_name_prefix='pull') as pool:
            batches = []
            for ref in root.segments:
                wanted = [extent.name for extent in self._store.segment(ref)
                          if extent.name]
                for start in range(0, len(wanted), BATCH):
                    batches.append(wanted[start:start + BATCH])
            failed = threading.Event()

            def bring(batch: list[bytes]) -> None:
                if failed.is_set() or stopped():
                    return
                try:
                    self.ensure(image, name, batch)
                except BaseException:
                    failed.set()
                    raise
            for future in [pool.submit(bring, batch) for batch in batches]:
                future.result()


class Membership:
    """Which chunks belong to a manifest, for a sender to check (P7).

    Keeps the sets of the manifests asked for last.
    """

    def __init__(self, store: LocalChunks, keep: int = 4):
        self._store = store
        self._keep = keep
        self._lock = threading.Lock()
        self._sets: dict[bytes, frozenset[bytes]] = {}

    def strangers(self, name: bytes, names: Sequence[bytes]) -> list[bytes]:
        """Return those of the names that are not part of a manifest."""
        known = self._sets.get(name)
        outside = [n for n in names if known is None or n not in known]
        if outside:
            # Perhaps more of the manifest has arrived since.
            known = self._read(name)
            with self._lock:
                self._sets.pop(name, None)
                self._sets[name] = known
                while len(self._sets) > self._keep:
                    self._sets.pop(next(iter(self._sets)))
            outside = [n for n in names if n not in known]
        return outside

    def _read(self, name: bytes) -> frozenset[bytes]:
        members = {name}
        try:
            root = self._store.manifest(name)
        except errors.ChunkMissing:
            return frozenset(members)
        for ref in root.segments:
            members.add(ref.name)
            try:
                members.update(extent.name for extent
                               in self._store.segment(ref) if extent.name)
            except errors.ChunkMissing:
                continue
        return frozenset(members)

