# SPDX-License-Identifier: Apache-2.0
"""The chunk store of a node: chunks under their names, in a folder.

Several processes may use one folder. Reading goes through a ``ChunkView``,
writing through a ``WriteSession``.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Generic, TypeVar

from glance_geo.core import chunker, errors
from glance_geo.core.chunker import Data
from glance_geo.core.manifest import Extent, name_of
from glance_geo.core.settling import COPY
from glance_geo.store import collect, compact, packs
from glance_geo.store.folder import RESERVE, StoreFolder, disk_errors
from glance_geo.store.index import ChunkIndex
from glance_geo.store.references import Reference, References, blob
from glance_geo.store.schema import SHARED
from glance_geo.store.session import WriteSession
from glance_geo.store.view import ChunkView

# Segments kept parsed for readers of ranges: 10 MB at most.
_PARSED_SEGMENTS = 16
# Share of the limit from which on space is made.
_TIGHT = 0.9

Value = TypeVar('Value')


class Recent(Generic[Value]):
    """Keeps what was used last. Safe for several threads."""

    def __init__(self, keep: int):
        self._keep = keep
        self._lock = threading.Lock()
        self._values: OrderedDict[bytes, Value] = OrderedDict()

    def get(self, name: bytes) -> Value | None:
        with self._lock:
            if name in self._values:
                self._values.move_to_end(name)
            return self._values.get(name)

    def put(self, name: bytes, value: Value) -> None:
        with self._lock:
            self._values[name] = value
            if len(self._values) > self._keep:
                self._values.popitem(last=False)


class ChunkStore:
    """Chunks in a folder.

    :param owner: the one store that may use the folder; '' does not say
    :param limit: bytes that the packs may take; 0: as many as there are
    :param index: file of the index; another one while it is made anew
    :raises StoreUnusable: the folder is not writable, lies on a network file
        system, belongs to another store, or holds something else
    """

    def __init__(self, path: str | os.PathLike[str], owner: str = '',
                 limit: int = 0, index: str = 'index.db'):
        chunker.check_library()
        self.folder = StoreFolder(path, owner)
        self.path = self.folder.path
        if index == self.folder.index.name:
            self.folder.check_index()
        self.limit = limit
        self.index = ChunkIndex(self.path / index)
        self.folder.upgraded()
        self.refs = References(self.index)
        self.parsed: Recent[tuple[list[Extent], list[int]]] = Recent(
            _PARSED_SEGMENTS)

    def close(self) -> None:
        self.index.close()

    # -- reading ----------------------------------------------------------
    def view(self, images: Collection[str], manifest: bytes) -> ChunkView:
        """Return what is here of a manifest, as some image ids keep it."""
        return ChunkView(self, images, manifest)

    # -- references -------------------------------------------------------
    def keep_copy(self, image: str, manifest: bytes, project: str) -> str:
        """Keep the chunks of a manifest for an image whose bits come here.

        :param project: whose chunks it may share; '' for what all share
        :returns: the project under which it is kept, perhaps since long
        """
        self.refs.keep_copy(image, manifest, self.index.scope(project))
        scopes = self.refs.scopes([image], manifest)
        return self.index.project(scopes[0]) if scopes else project

    def keep_beside(self, image: str, others: Collection[str],
                    manifest: bytes) -> None:
        """Keep a manifest for one more image, as others keep it here."""
        scopes = self.refs.scopes(others, manifest)
        self.refs.keep_copy(image, manifest, scopes[0] if scopes else SHARED)

    def drop_copy(self, image: str, manifest: bytes) -> None:
        """Give up a copy that was fetched from elsewhere."""
        self.refs.drop(image, manifest, COPY)

    def kept_copies(self) -> list[Reference]:
        """Return what is kept here only because it was fetched."""
        refs = self.refs.all()
        own = {(r.image, r.manifest) for r in refs if r.nonce != COPY}
        return [r for r in refs if r.nonce == COPY
                and (r.image, r.manifest) not in own]

    def holder(self, images: Collection[str], manifest: bytes) -> str | None:
        """Return the id, among some, under which a manifest is kept."""
        return next((image for image in sorted(images)
                     if self.refs.scopes([image], manifest)), None)

    def lease(self, image: str, manifest: bytes, node: str) -> None:
        """Promise another node, durably, to keep an image's copy."""
        self.refs.lease(image, manifest, node)

    def copies(self) -> set[tuple[str, bytes]]:
        """Return (image, manifest) of everything that is kept."""
        return {(ref.image, ref.manifest) for ref in self.refs.all()}

    def settle(self, image: str, listed: Collection[tuple[bytes, str]],
               deleted: bool) -> int:
        return self.refs.settle(image, listed, deleted)

    def share(self, image: str, project: str) -> None:
        """Let an image's chunks be shared with a project ('': with all).

        An image that was made public, or is so no more, changes its scope.
        """
        scope = self.index.scope(project)
        for ref in self.refs.all(image):
            if ref.scope != scope:
                self._move(ref, project)

    def _move(self, ref: Reference, project: str) -> None:
        session = WriteSession(self, project)
        try:
            own = name_of(blob(ref.image, ref.manifest, ref.nonce, project))
            for names in ([own], *(names for names, _ in self.view(
                    [ref.image], ref.manifest).walk())):
                self.index.enter(session.epoch, session.scope, ref.scope,
                                 names)
            session.commit((ref.image, ref.manifest, ref.nonce))
        except BaseException:
            session.abort()
            raise

    # -- space ------------------------------------------------------------
    def collect(self, evictable: Collection[tuple[str, bytes]] = (),
                always: bool = True) -> collect.Collected:
        """Remove what no reference and no writer needs.

        :param evictable: (image, manifest) of copies that could go, for the
            statistics
        :param always: also if nothing became garbage since the last time
        """
        return collect.collect(self, evictable, always)

    def compact(self, rate: float = 0,
                stopped: Callable[[], bool] = lambda: False,
                ) -> compact.Compacted:
        """Rewrite packs that are partly dead; see ``compact.compact``."""
        return compact.compact(self, rate, stopped)

    def used_bytes(self) -> int:
        """Return what the packs take on the disk."""
        return self.folder.pack_bytes()

    def live_bytes(self) -> int:
        """Return what the packs would take without what is dead in them.

        As far as the last collection knew; what came since counts whole.
        """
        live = dict(self.index.query(
            'SELECT file, live FROM packs WHERE live IS NOT NULL'))
        total = 0
        for path in self.folder.pack_paths():
            try:
                size = path.stat().st_size
            except FileNotFoundError:
                continue
            total += min(size, live.get(path.stem, size))
        return total

    def is_tight(self) -> bool:
        """Say whether the packs take nearly what they may."""
        return bool(self.limit) and (self.used_bytes()
                                     > _TIGHT * self.limit)

    def statistics(self) -> dict[str, Any]:
        """Return what the last collection counted."""
        return self.index.noted('statistics') or {}

    def check_reserve(self) -> None:
        """Refuse early what the disk would refuse late.

        :raises StoreFull: only the reserve is left
        """
        if self.folder.free() < 0:
            raise errors.StoreFull(
                f'{self.path}: less than {RESERVE >> 20} MiB free, which '
                f'are kept for deletions')

    def check_room(self) -> None:
        """Say whether more images may come.

        :raises StoreFull: only the reserve is left, or the store's limit is
            reached
        """
        self.check_reserve()
        if self.limit and self.used_bytes() > self.limit:
            raise errors.StoreFull(
                f'{self.path}: geo_store_size_limit of {self.limit >> 20} '
                f'MiB is reached and the images here are all wanted here; '
                f'delete some, or raise the limit')

    # -- writing ----------------------------------------------------------
    @staticmethod
    def compress(data: Data) -> tuple[int, Data]:
        """Return (codec, stored bytes) for ``WriteSession.put``."""
        return packs.compress(data)

    def session(self, project: str = '') -> WriteSession:
        """Begin writing; ``commit`` or ``abort`` the session.

        :param project: whose chunks it may share; '' for what all share
        :raises StoreFull: only the reserve is left
        """
        self.check_room()
        with disk_errors(str(self.path)):
            return WriteSession(self, project)

    def dead_sessions(self) -> list[str]:
        """Return the sessions whose process is gone."""
        return [path.name for path in self.folder.sessions.iterdir()
                if path.suffix != packs.UNNAMED and not self.alive(path.name)]

    def alive(self, session: str) -> bool:
        """Say whether the process that began a session still runs."""
        try:
            with open(self.folder.sessions / session, 'rb') as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            return False
        return False

    def remove_session_file(self, session: str) -> None:
        (self.folder.sessions / session).unlink(missing_ok=True)

    def pack_files(self) -> list[Path]:
        return sorted(self.folder.pack_paths())

    def remove_pack(self, file: str) -> None:
        (self.folder.packs / f'{file}.pack').unlink(missing_ok=True)
