# SPDX-License-Identifier: Apache-2.0
"""Compaction: packs that are partly dead, or small, are written anew.

A chunk is copied, verified on the way, made durable in its new pack, and only
then does its row point there; the old pack goes last. A kill at any instant
leaves a pack that nothing points to, which the next collection removes.
Readers that had looked a place up find the old pack still open, or look again.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from glance_geo.core import errors
from glance_geo.store import packs
from glance_geo.store.collect import alone, forget_packs, unlocked_packs
from glance_geo.store.folder import RESERVE
from glance_geo.store.packs import Entry, PackWriter, Place

if TYPE_CHECKING:
    from glance_geo.store.chunkstore import ChunkStore

LOG = logging.getLogger(__name__)

_DEAD_SHARE = 0.25
# Near the store's limit.
_TIGHT_SHARE = 0.02
_SMALL = packs.PACK_MAXIMUM // 8
_SMALL_PACKS = 8
_BATCH = 128
_ROWS = 2000
# Compaction frees space, so it may take from the reserve, but for this.
_ROOM = 8 * 1024 * 1024


@dataclasses.dataclass
class Compacted:
    """What a compaction rewrote."""

    packs: int = 0
    copied_bytes: int = 0
    freed_bytes: int = 0


def _candidates(store: ChunkStore) -> list[tuple[int, int, Path]]:
    """Return (number, live bytes, path) of the packs that are worth it."""
    known = {file: (pack, live) for pack, file, live in store.index.query(
        'SELECT id, file, live FROM packs WHERE live IS NOT NULL')}
    worth: list[tuple[float, int, int, Path]] = []
    small: list[tuple[float, int, int, Path]] = []
    least = _TIGHT_SHARE if store.is_tight() else _DEAD_SHARE
    for path in unlocked_packs(store):
        if path.stem not in known:
            continue
        pack, live = known[path.stem]
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            continue
        share = 1 - live / size
        if share >= least:
            worth.append((share, pack, live, path))
        elif size < _SMALL:
            small.append((share, pack, live, path))
    if len(small) >= _SMALL_PACKS:
        worth += small
    return [found[1:] for found in sorted(worth, reverse=True)]


class _Pace:
    """Holds work to a number of bytes a second; 0: as fast as it goes."""

    def __init__(self, rate: float):
        self._rate = rate
        self._began = time.monotonic()
        self._done = 0

    def wait(self, done: int) -> None:
        self._done += done
        if self._rate:
            ahead = (self._done / self._rate
                     - (time.monotonic() - self._began))
            if ahead > 0:
                time.sleep(ahead)


class _Rewriter:
    """Copies live chunks into new packs."""

    def __init__(self, store: ChunkStore, pace: _Pace, result: Compacted):
        self._store = store
        self._pace = pace
        self._result = result
        self._writer: PackWriter | None = None

    def pack(self, pack: int, path: Path, expected: int,
             stopped: Callable[[], bool]) -> bool:
        """Copy a pack's live chunks; say whether all of it was looked at."""
        moved = self._walk(pack, path, packs.entries(path), stopped)
        if moved is None:
            return False
        self._point(pack, moved)
        copied = sum(to.stored + packs.HEADER_BYTES for _, to in moved)
        if copied < expected:
            # Headers are damaged, but the index knows what they led to. Or
            # something was deleted since: then nothing is found here.
            again = self._walk(pack, path, self._of_index(pack), stopped)
            if again is None:
                return False
            self._point(pack, again)
        return True

    def _of_index(self, pack: int) -> list[Entry]:
        return [Entry(name, packs.DATA, codec, offset, stored, raw)
                for name, codec, offset, stored, raw in
                self._store.index.query(
                    'SELECT DISTINCT name, codec, offset, stored, raw FROM '
                    'chunks WHERE pack = ? ORDER BY offset', (pack,))]

    def _walk(self, pack: int, path: Path, entries: Iterable[Entry],
              stopped: Callable[[], bool],
              ) -> list[tuple[Entry, Entry]] | None:
        moved: list[tuple[Entry, Entry]] = []
        entries = iter(entries)
        with open(path, 'rb') as file:
            while batch := list(itertools.islice(entries, _BATCH)):
                if stopped():
                    return None
                moved += self._copy(pack, file.fileno(), batch)
        return moved

    def _live(self, pack: int, batch: list[Entry]) -> set[tuple[bytes, int]]:
        marks = ','.join('?' * len(batch))
        return set(self._store.index.query(
            f'SELECT name, offset FROM chunks WHERE name IN ({marks}) AND '
            'pack = ?', [*(entry.name for entry in batch), pack]))

    def _copy(self, pack: int, descriptor: int,
              batch: list[Entry]) -> list[tuple[Entry, Entry]]:
        moved = []
        live = self._live(pack, batch)
        for entry in batch:
            if (entry.name, entry.offset) not in live:
                continue
            stored = os.pread(descriptor, entry.stored, entry.offset)
            try:
                packs.unpack(entry.name, entry.codec, stored, entry.raw)
            except errors.ChunkCorrupt as error:
                LOG.error('Chunk store %s: %s; set aside', self._store.path,
                          error)
                self._store.index.forget(entry.name, Place(
                    pack, entry.offset, entry.stored, entry.raw,
                    entry.codec), str(error))
                continue
            if self._writer is None:
                self._writer = PackWriter(self._store.folder.packs)
            moved.append((entry, self._writer.append(
                entry.name, entry.kind, entry.codec, stored, entry.raw)))
            self._result.copied_bytes += entry.stored
            self._pace.wait(entry.stored)
        return moved

    def _point(self, pack: int, moved: list[tuple[Entry, Entry]]) -> None:
        """Make the copies durable, then the rows point to them."""
        if not moved:
            return
        assert self._writer is not None
        self._writer.sync()
        index = self._store.index
        for start in range(0, len(moved), _ROWS):
            # Short steps, that uploads do not wait for; the last one makes
            # all of them durable, before the old pack goes.
            last = start + _ROWS >= len(moved)
            with index.transaction(durable=last) as connection:
                new = index.enter_pack(connection, self._writer.file)
                connection.executemany(
                    'UPDATE chunks SET pack = ?, offset = ? WHERE name = ? '
                    'AND pack = ? AND offset = ?',
                    [(new, to.offset, to.name, pack, was.offset)
                     for was, to in moved[start:start + _ROWS]])
        if self._writer.size >= packs.PACK_MAXIMUM:
            self.close()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def compact(store: ChunkStore, rate: float,
            stopped: Callable[[], bool]) -> Compacted:
    """Rewrite the packs that the last collection found partly dead.

    May run beside uploads, reads and fetches.

    :param rate: bytes to copy in a second; 0: as fast as it goes
    :param stopped: asked now and then; work is left for the next time
    """
    result = Compacted()
    with alone(store) as free:
        if not free:
            return result
        rewriter = _Rewriter(store, _Pace(rate), result)
        try:
            for pack, live, path in _candidates(store):
                size = path.stat().st_size
                if live + _ROOM > store.folder.free() + RESERVE:
                    LOG.warning('Chunk store %s: no room to rewrite a pack '
                                'of which %d bytes are alive', store.path,
                                live)
                    continue
                if stopped() or not rewriter.pack(pack, path, live,
                                                      stopped):
                    continue
                store.remove_pack(path.stem)
                forget_packs(store, [pack])
                result.packs += 1
                result.freed_bytes += size
        finally:
            rewriter.close()
    if result.packs:
        LOG.info('Chunk store %s: %d packs of %d bytes rewritten; %d bytes '
                 'were alive', store.path, result.packs, result.freed_bytes,
                 result.copied_bytes)
    result.freed_bytes -= result.copied_bytes
    return result
