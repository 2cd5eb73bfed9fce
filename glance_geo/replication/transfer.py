# SPDX-License-Identifier: Apache-2.0
"""Fetching missing chunks from other nodes into the local chunk store.

Each chunk is verified before it is stored, and durable before anyone is told
that it is here: a transfer cut off goes on from the last verified chunk.
Calls that want the same chunk share one transfer.
"""

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from glance_geo.core import errors
from glance_geo.core.interfaces import (
    ChunkProvider,
    ChunkSession,
    ChunkView,
    LocalChunks,
)
from glance_geo.core.manifest import name_of

LOG = logging.getLogger(__name__)

BATCH = 128
"""Chunks stored at a time, and per request of a reader: about 4 MiB."""
_TRANSFER = 1024
"""Chunks per request when an image is pulled: one stream compresses better
the longer it is."""
_PULLERS = 3
_IDLE_SECONDS = 5.0
_SESSION_SECONDS = 60.0
_ATTEMPTS = 3

Order = Callable[[str, bytes], Sequence[ChunkProvider]]
Arrived = Callable[[Sequence[bytes]], None]


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Whose chunks are fetched, and for which project."""

    image: str
    manifest: bytes
    project: str


@dataclasses.dataclass
class _Open:
    """A writer that several transfers of one project share."""

    session: ChunkSession
    began: float
    used: float = 0.0


class Fetcher:
    """Brings chunks from other nodes.

    :param permit: returns the project among whose chunks an image's are
        stored; raises BitsElsewhere if placement refuses the image here
    :param order: returns whom to ask for an image's chunks, best first
    """

    def __init__(self, store: LocalChunks,
                 permit: Callable[[str, bytes], str],
                 order: Order):
        self._store = store
        self._permit = permit
        self._order = order
        self._lock = threading.Lock()
        self._flying: dict[tuple[str, bytes], Future] = {}
        self._writing = threading.Lock()
        self._sessions: dict[str, _Open] = {}
        self.chunks_received = 0

    # -- one batch --------------------------------------------------------
    def ensure(self, image_id: str, manifest: bytes,
               names: Sequence[bytes], batch: int = BATCH) -> None:
        """Return when every named chunk is in the local chunk store.

        :param batch: chunks that one request asks for
        :raises BitsElsewhere, BitsUnavailable: see ``ChunkSource``
        """
        view = self._store.view([image_id], manifest)
        for attempt in range(_ATTEMPTS):
            missing = view.missing(names)
            if not missing:
                return
            want = Wanted(image_id, manifest, self._store.keep_copy(
                image_id, manifest, self._permit(image_id, manifest)))
            mine, others = self._divide(
                want, self._not_shared(want.project, missing))
            # Another transfer may have brought some, and ended, before these
            # were registered.
            absent = view.missing(mine)
            self._tell(want, [name for name in mine if name not in absent],
                       None)
            self._fetch(want, absent, batch)
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

    def _not_shared(self, project: str, names: list[bytes]) -> list[bytes]:
        """Take what the project has here already; return the others."""
        with self._writing:
            return self._session(project).unknown(names)

    def _divide(self, want: Wanted, names: Sequence[bytes],
                ) -> tuple[list[bytes], list[Future]]:
        """Return the chunks to fetch, and the transfers to wait for."""
        mine: list[bytes] = []
        others: list[Future] = []
        with self._lock:
            for name in names:
                key = (want.project, name)
                if key in self._flying:
                    others.append(self._flying[key])
                else:
                    self._flying[key] = Future()
                    mine.append(name)
        return mine, others

    def _fetch(self, want: Wanted, names: list[bytes], batch: int) -> None:
        """Fetch chunks, and tell those who wait how it went."""
        left = dict.fromkeys(names)

        def arrived(kept: Sequence[bytes]) -> None:
            for name in kept:
                del left[name]
            self._tell(want, kept, None)
        try:
            for start in range(0, len(names), batch):
                self._from_all(want, names[start:start + batch], arrived)
        except BaseException as error:
            self._tell(want, list(left), error)
            raise

    def _tell(self, want: Wanted, names: Sequence[bytes],
              failure: BaseException | None) -> None:
        with self._lock:
            futures = [self._flying.pop((want.project, name))
                       for name in names]
        for future in futures:
            if failure is None:
                future.set_result(None)
            else:
                future.set_exception(failure)

    def _from_all(self, want: Wanted, names: list[bytes],
                    arrived: Arrived) -> None:
        """Ask one provider after the other until every chunk is here.

        :raises BitsUnavailable: something is left; the text has each cause
        """
        left = dict.fromkeys(names)

        def kept(some: Sequence[bytes]) -> None:
            for name in some:
                del left[name]
            arrived(some)
        causes = []
        for provider in self._order(want.image, want.manifest):
            cause = f'{provider.label} does not have them'
            try:
                self._from_one(provider, want, list(left), kept)
            except (errors.Unreachable, errors.PeerRefused,
                    errors.PeerMisbehaved) as error:
                cause = str(error)
            # What arrived before a failure is here.
            if not left:
                return
            causes.append(cause)
        raise errors.BitsUnavailable(
            f'image {want.image}: {len(left)} chunks are not at this site '
            f'and could not be fetched: '
            + ('; '.join(causes) or 'no other site is configured'))

    def _from_one(self, provider: ChunkProvider, want: Wanted,
                  names: list[bytes], kept: Arrived) -> None:
        got: dict[bytes, tuple[int, Any, int]] = {}

        def keep() -> None:
            done = list(got)
            if done:
                self._keep(want.project, got)
                got.clear()
                kept(done)
        try:
            with provider.chunks(want.image, want.manifest, names) as frames:
                for place, data in enumerate(frames):
                    if place >= len(names):
                        raise errors.PeerMisbehaved(
                            f'{provider.label} sent more than was asked for')
                    if not data:
                        continue
                    name = names[place]
                    if name_of(data) != name:
                        raise errors.PeerMisbehaved(
                            f'{provider.label} sent wrong bytes for chunk '
                            f'{name.hex()}')
                    got[name] = (*self._store.compress(data), len(data))
                    if len(got) >= BATCH:
                        keep()
        finally:
            keep()

    def _session(self, project: str) -> ChunkSession:
        found = self._sessions.get(project)
        if found is None:
            found = self._sessions[project] = _Open(
                self._store.session(project), time.monotonic())
        found.used = time.monotonic()
        return found.session

    def _keep(self, project: str,
              got: dict[bytes, tuple[int, Any, int]]) -> None:
        """Store verified chunks durably."""
        with self._writing:
            session = self._session(project)
            try:
                for name in session.unknown(list(got)):
                    session.put(name, *got[name])
                session.flush()
            except BaseException:
                # What earlier batches stored was promised to be here, and
                # their references keep it: only this batch is given up.
                del self._sessions[project]
                session.abort()
                raise
            self.chunks_received += len(got)

    def settle(self, force: bool = False) -> None:
        """Close the packs in use once nothing came for a while.

        Or once they are old: what was written since a session began is
        collected only after it.
        """
        now = time.monotonic()
        with self._writing:
            for project, found in list(self._sessions.items()):
                if (force or now - found.used > _IDLE_SECONDS
                        or now - found.began > _SESSION_SECONDS):
                    del self._sessions[project]
                    found.session.commit()

    # -- whole images -----------------------------------------------------
    def pull(self, image: str, name: bytes,
             stopped: Callable[[], bool] = lambda: False) -> None:
        """Bring a whole image; may be repeated, goes on where it stopped.

        :raises BitsElsewhere, BitsUnavailable, ManifestInvalid: see there
        """
        view = self._store.view([image], name)
        self.ensure(image, name, [name])
        root = view.manifest()
        self.ensure(image, name, [ref.name for ref in root.segments])
        with ThreadPoolExecutor(_PULLERS, thread_name_prefix='pull') as pool:
            batches = []
            for ref in root.segments:
                wanted = [extent.name for extent in view.segment(ref)
                          if extent.name]
                for start in range(0, len(wanted), _TRANSFER):
                    batches.append(wanted[start:start + _TRANSFER])
            failed = threading.Event()

            def bring(batch: list[bytes]) -> None:
                if failed.is_set() or stopped():
                    return
                try:
                    self.ensure(image, name, batch, _TRANSFER)
                except BaseException:
                    failed.set()
                    raise
            for future in [pool.submit(bring, batch) for batch in batches]:
                future.result()


class Membership:
    """Which chunks belong to a manifest, for a sender to check (P7).

    Keeps the sets of the manifests asked for last.
    """

    def __init__(self, keep: int = 4):
        self._keep = keep
        self._lock = threading.Lock()
        self._sets: dict[bytes, frozenset[bytes]] = {}

    def strangers(self, view: ChunkView, name: bytes,
                  names: Sequence[bytes]) -> list[bytes]:
        """Return those of the names that are not part of a manifest."""
        known = self._sets.get(name)
        outside = [n for n in names if known is None or n not in known]
        if outside:
            # Perhaps more of the manifest has arrived since.
            known = self._read(view, name)
            with self._lock:
                self._sets.pop(name, None)
                self._sets[name] = known
                while len(self._sets) > self._keep:
                    self._sets.pop(next(iter(self._sets)))
            outside = [n for n in names if n not in known]
        return outside

    @staticmethod
    def _read(view: ChunkView, name: bytes) -> frozenset[bytes]:
        members = {name}
        try:
            root = view.manifest()
        except errors.ChunkMissing:
            return frozenset(members)
        for ref in root.segments:
            members.add(ref.name)
            try:
                members.update(extent.name for extent in view.segment(ref)
                               if extent.name)
            except errors.ChunkMissing:
                continue
        return frozenset(members)
