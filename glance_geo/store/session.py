# SPDX-License-Identifier: Apache-2.0
"""Writing into the chunk store: one upload, or fetches from other nodes.

Chunks become findable after ``flush``, and are kept for good by the reference
that ``commit`` enters. A session whose process died is recognised by its lock.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from glance_geo.core import manifest
from glance_geo.core.chunker import Data
from glance_geo.store import packs, references
from glance_geo.store.folder import disk_errors
from glance_geo.store.packs import Entry, PackWriter

if TYPE_CHECKING:
    from glance_geo.store.chunkstore import ChunkStore

_LOOK_AGAIN = 8 * 1024 * 1024
_FLUSH_CHUNKS = 16384


class WriteSession:
    """One writer, for one project.

    :param project: whose chunks it may share; '' for what all share
    :ivar stored_bytes: stored bytes that were not here before
    """

    def __init__(self, store: ChunkStore, project: str = ''):
        self._store = store
        self.project = project
        self.id = uuid.uuid4().hex
        self._lock = packs.locked_file(store.folder.sessions / self.id)
        self.scope = store.index.scope(project)
        self.epoch = store.index.begin(self.id)
        self._pack: PackWriter | None = None
        self._never_flushed: list[str] = []
        self._fresh: dict[bytes, Entry] = {}
        self.stored_bytes = 0
        self._look_at = _LOOK_AGAIN

    def unknown(self, names: Sequence[bytes]) -> list[bytes]:
        """Return those of the chunks that must be put; keep the others."""
        asked = [name for name in dict.fromkeys(names)
                 if name not in self._fresh]
        present = self._store.index.rely_on(self.epoch, self.scope, asked)
        return [name for name in asked if name not in present]

    def put(self, name: bytes, codec: int, stored: Data, raw: int,
            kind: int = packs.DATA) -> None:
        """Append a chunk whose bytes were verified against its name.

        :raises StoreFull: no room; the session must be aborted
        """
        if name in self._fresh:
            return
        with disk_errors(str(self._store.path)):
            if self._pack is None:
                self._pack = PackWriter(self._store.folder.packs)
                self._never_flushed.append(self._pack.file)
            self._fresh[name] = self._pack.append(name, kind, codec, stored,
                                                  raw)
        self.stored_bytes += len(stored)
        if self.stored_bytes >= self._look_at:
            self._look_at = self.stored_bytes + _LOOK_AGAIN
            self._store.check_room()
        if (self._pack.size >= packs.PACK_MAXIMUM
                or len(self._fresh) >= _FLUSH_CHUNKS):
            self.flush()

    def put_blob(self, data: bytes, kind: int = packs.PART) -> bytes:
        """Store a manifest's part like a chunk; return its name."""
        name = manifest.name_of(data)
        if self.unknown([name]):
            self.put(name, *packs.compress(data), len(data), kind)
        return name

    def flush(self) -> None:
        """Make what was put durable, and findable by everyone."""
        if not self._fresh or self._pack is None:
            return
        with disk_errors(str(self._store.path)):
            self._pack.sync()
        self._never_flushed = []
        self._store.index.add(self.epoch, self.scope, self._pack.file,
                              self._fresh.values())
        self._fresh = {}
        if self._pack.size >= packs.PACK_MAXIMUM:
            self._pack.close()
            self._pack = None

    def commit(self, ref: tuple[str, bytes, str] | None = None) -> None:
        """Keep what was put: durable when this returns.

        :param ref: (image, manifest, nonce) that keeps it from collection
        """
        blob = None
        if ref is not None:
            blob = self.put_blob(references.blob(*ref, self.project),
                                 packs.REFERENCE)
        self.flush()
        if ref is None:
            self._store.index.end(self.id)
        else:
            self._store.refs.finish(self.id, *ref, self.scope, blob)
        self._end()

    def abort(self) -> None:
        """Give up what was not flushed; a collection removes the rest.

        Also on a disk that fails: the error that led here is what counts.
        """
        self._fresh = {}
        if self._pack is not None:
            self._pack.close()
        try:
            for file in self._never_flushed:
                with suppress(OSError):
                    self._store.remove_pack(file)
            self._store.index.end(self.id, aborted=True)
        finally:
            self._end()

    def _end(self) -> None:
        if self._pack is not None:
            self._pack.close()
            self._pack = None
        with suppress(OSError):     # without its lock it is garbage
            self._store.remove_session_file(self.id)
        self._lock.close()
