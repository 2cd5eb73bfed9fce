# SPDX-License-Identifier: Apache-2.0
"""Collection: chunks that nothing refers to are removed (P8).

Mark and sweep over the index, a range of names at a time, so that its memory
does not grow with the store. What a live writer relies on has an epoch that
is as young as the writer (see ``index``), so nothing depends on clocks or on
how long anything takes.
"""

from __future__ import annotations

import dataclasses
import fcntl
import logging
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glance_geo.core import errors
from glance_geo.store import packs
from glance_geo.store.references import COPY, Reference

if TYPE_CHECKING:
    from glance_geo.store.chunkstore import ChunkStore

LOG = logging.getLogger(__name__)

_NAMES_PER_PASS = 8_000_000
"""Names marked at a time: about 100 MB while they are."""
_MARK_BYTES = 6
_ROWS = 20_000
_DELETES = 2_000


@dataclasses.dataclass
class Collected:
    """What a collection removed, and whether it ran."""

    ran: bool = False
    chunks: int = 0
    stored_bytes: int = 0
    packs: int = 0


@dataclasses.dataclass
class _Start:
    """What a collection read in the one step that begins it."""

    refs: list[tuple[Reference, bytes | None]]
    before: int
    garbage: int
    unlocked: list[Path]
    dead: list[str]


@contextmanager
def alone(store: ChunkStore) -> Iterator[bool]:
    """Say whether no other collection or compaction runs; keep it so."""
    with open(store.path / 'collect.lock', 'w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def collect(store: ChunkStore, evictable: Collection[tuple[str, bytes]] = (),
            always: bool = True) -> Collected:
    """Remove what no reference and no writer needs.

    May run beside uploads, reads and fetches; a second collection beside
    this one returns at once.

    :param evictable: (image, manifest) of copies that could go, for the
        statistics
    :param always: also if nothing became garbage since the last time
    """
    result = Collected()
    if not (always or store.index.has_garbage() or store.dead_sessions()):
        return result
    with alone(store) as free:
        if not free:
            return result
        result.ran = True
        start = _begin(store)
        counted = _Counted(store, start)
        if not counted.unreadable:
            _sweep(store, start, counted, frozenset(evictable), result)
            # Durable, and with it all that went before: rows must not come
            # back when their packs are gone.
            counted.note(store, start.garbage)
            _remove_packs(store, start, counted, result)
        for session in start.dead:
            store.remove_session_file(session)
        for folder in (store.folder.packs, store.folder.sessions):
            packs.remove_unnamed(folder)
    if result.chunks or result.packs:
        LOG.info('Chunk store %s: collected %d chunks, %d bytes, %d packs',
                 store.path, result.chunks, result.stored_bytes,
                 result.packs)
    return result


def unlocked_packs(store: ChunkStore) -> list[Path]:
    """Return the packs that no live writer can be writing.

    A writer holds a lock on its pack's file while it lives.
    """
    free = []
    for path in store.pack_files():
        try:
            with open(path, 'rb') as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                free.append(path)
        except (BlockingIOError, FileNotFoundError):
            continue
    return free


def _begin(store: ChunkStore) -> _Start:
    dead = store.dead_sessions()
    with store.index.transaction() as connection:
        connection.execute("UPDATE meta SET value = value + 1 WHERE "
                           "key = 'epoch'")
        for (session,) in connection.execute(
                'SELECT id FROM sessions').fetchall():
            if not store.alive(session):
                connection.execute('DELETE FROM sessions WHERE id = ?',
                                   (session,))
        # A writer that ended by now has its reference in the list; all that
        # one who is alive relies on is as young as it.
        (before,) = connection.execute(
            "SELECT min(value) FROM (SELECT epoch AS value FROM sessions "
            "UNION ALL SELECT value FROM meta WHERE key = 'epoch')"
        ).fetchone()
        refs = [(Reference(*row[:5]), row[5]) for row in connection.execute(
            'SELECT image, manifest, nonce, scope, used, blob FROM refs')]
        # Packs without rows that nobody writes now are leftovers; of the
        # others, rows may still come.
        (garbage,) = connection.execute(
            "SELECT value FROM meta WHERE key = 'garbage'").fetchone()
        return _Start(refs, before, garbage, unlocked_packs(store), dead)


class _Counted:
    """What marking and sweeping count.

    :ivar unreadable: whether an image that was uploaded here has a manifest
        that can't be read: what it needs is not known, so nothing may go
    """

    def __init__(self, store: ChunkStore, start: _Start):
        self.live: dict[int, int] = defaultdict(int)
        self.totals: dict[str, Any] = dict.fromkeys(
            ('chunks', 'unique_bytes', 'stored_bytes', 'evictable_bytes',
             'logical_bytes'), 0)
        self.unreadable = False
        seen = set()
        for ref, _ in start.refs:
            if (ref.image, ref.manifest) in seen:
                continue
            seen.add((ref.image, ref.manifest))
            view = store.view([ref.image], ref.manifest)
            try:
                root = view.manifest()
                self.totals['logical_bytes'] += root.size
                whole = not view.missing(s.name for s in root.segments)
            except (errors.ChunkMissing, errors.ManifestInvalid):
                whole = False
            if not whole and ref.nonce != COPY and ref in store.refs.all(
                    ref.image):     # and not deleted meanwhile
                LOG.error('Chunk store %s: the manifest of image %s is '
                          'damaged; nothing is collected until "glance-geo '
                          'store check --repair" has fetched it, or the '
                          'image is deleted', store.path, ref.image)
                self.unreadable = True
        self.totals['images'] = len({image for image, _ in seen})

    def place(self, rows: list[tuple], evictable: bool) -> None:
        """Count the rows of one name."""
        for pack, _, stored, raw in {row[2:6] for row in rows}:
            self.live[pack] += stored + packs.HEADER_BYTES
            self.totals['chunks'] += 1
            self.totals['unique_bytes'] += raw
            self.totals['stored_bytes'] += stored
            if evictable:
                self.totals['evictable_bytes'] += stored

    def note(self, store: ChunkStore, garbage: int) -> None:
        known = store.index.packs()
        with store.index.transaction() as connection:
            connection.executemany(
                'UPDATE packs SET live = ? WHERE id = ?',
                [(self.live.get(pack, 0), pack) for pack in known])
            connection.execute("UPDATE meta SET value = ? WHERE key = "
                               "'collected'", (garbage,))
        store.index.note('statistics', {**self.totals,
                                        'at': int(time.time())})


class _Marks:
    """Names that must stay, by scope; a few bytes of memory for each.

    Of a name it keeps the first seven bytes: that two names begin alike is as
    likely as losing a disk (2 to the power of -56 for each pair), and keeps
    garbage then, never the other way round.
    """

    def __init__(self, low: bytes, high: bytes):
        self._low, self._high = low, high
        self._packed: dict[int, list[bytearray]] = {}
        self._sets: tuple[int, dict[int, set[bytes]]] = (-1, {})

    def add(self, scope: int, names: Iterable[bytes]) -> None:
        buckets = self._packed.get(scope)
        if buckets is None:
            buckets = self._packed[scope] = [bytearray() for _ in range(256)]
        low, high, end = self._low, self._high, _MARK_BYTES + 1
        for name in names:
            if low <= name < high:
                buckets[name[0]] += name[1:end]

    def has(self, scope: int, name: bytes) -> bool:
        """Say whether a name is marked; asked in the order of the names."""
        if self._sets[0] != name[0]:
            self._sets = (name[0], {})
        sets = self._sets[1]
        if scope not in sets:
            packed = bytes(self._packed[scope][name[0]]
                           if scope in self._packed else b'')
            sets[scope] = {packed[at:at + _MARK_BYTES] for at in range(
                0, len(packed), _MARK_BYTES)}
        return name[1:_MARK_BYTES + 1] in sets[scope]


def _ranges(rows: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield [from, to) over all names, so many at a time as memory allows.
    """
    parts = max(1, -(-rows // _NAMES_PER_PASS))
    edges = [(place * 65536 // parts).to_bytes(3, 'big')[1:]
             for place in range(parts)]
    yield from zip([b'', *edges[1:]], [*edges[1:], b'\xff' * 33],
                   strict=True)


def _mark(store: ChunkStore, start: _Start, low: bytes, high: bytes,
          evictable: frozenset[tuple[str, bytes]],
          ) -> tuple[_Marks, _Marks]:
    """Return the names in a range that must stay, and those that only
    evictable copies need."""
    kept, spare = _Marks(low, high), _Marks(low, high)
    done = set()
    for ref, blob in start.refs:
        into = (spare if (ref.image, ref.manifest) in evictable else kept)
        if blob:
            into.add(ref.scope, [blob])
        key = (ref.manifest, ref.scope, into is kept)
        if key not in done:
            done.add(key)
            for names, _ in store.view([ref.image], ref.manifest).walk():
                into.add(ref.scope, names)
    return kept, spare


def _rows(store: ChunkStore, low: bytes, high: bytes,
          ) -> Iterator[list[tuple]]:
    """Yield the rows of each name in a range."""
    after, scope = low, -1
    pending: list[tuple] = []
    while True:
        # Page by page: one long read would keep the log from shrinking.
        rows = store.index.query(
            'SELECT name, scope, pack, offset, stored, raw, epoch FROM '
            'chunks WHERE (name, scope) > (?, ?) AND name < ? '
            'ORDER BY name, scope LIMIT ?', (after, scope, high, _ROWS))
        for row in rows:
            if pending and pending[0][0] != row[0]:
                yield pending
                pending = []
            pending.append(row)
        if len(rows) < _ROWS:
            break
        after, scope = rows[-1][:2]
    if pending:
        yield pending


def _sweep(store: ChunkStore, start: _Start, counted: _Counted,
           evictable: frozenset[tuple[str, bytes]],
           result: Collected) -> None:
    (total,), = store.index.query('SELECT count(*) FROM chunks')
    for low, high in _ranges(total):
        kept, spare = _mark(store, start, low, high, evictable)
        dead: list[tuple] = []
        for rows in _rows(store, low, high):
            live, only_spare = [], True
            for row in rows:
                name, scope, epoch = row[0], row[1], row[6]
                if epoch >= start.before or kept.has(scope, name):
                    live.append(row)
                    only_spare = False
                elif spare.has(scope, name):
                    live.append(row)
                else:
                    dead.append(row)
            counted.place(live, only_spare)
            if len(dead) >= _DELETES:
                _delete(store, start.before, dead, counted, result)
                dead = []
        _delete(store, start.before, dead, counted, result)


def _delete(store: ChunkStore, before: int, dead: list[tuple],
            counted: _Counted, result: Collected) -> None:
    if not dead:
        return
    with store.index.transaction(durable=False) as connection:
        connection.executemany(
            'DELETE FROM chunks WHERE name = ? AND scope = ? AND epoch < ?',
            [(name, scope, before) for name, scope, *_ in dead])
        for name, pack, offset, stored in {
                (row[0], *row[2:5]) for row in dead}:
            # A writer may have come to rely on it since it was read.
            rest = connection.execute(
                'SELECT 1 FROM chunks WHERE name = ? AND pack = ? AND '
                'offset = ?', (name, pack, offset)).fetchone()
            if rest is None:
                result.chunks += 1
                result.stored_bytes += stored
            else:
                counted.live[pack] += stored + packs.HEADER_BYTES


def _remove_packs(store: ChunkStore, start: _Start, counted: _Counted,
                  result: Collected) -> None:
    numbers = {file: pack for pack, file in store.index.packs().items()}
    for path in start.unlocked:
        pack = numbers.get(path.stem)
        if pack is None or not counted.live.get(pack):
            store.remove_pack(path.stem)
            result.packs += 1
    # Those too whose file an earlier collection had removed when it died.
    gone = [pack for file, pack in numbers.items()
            if not counted.live.get(pack)
            and not (store.folder.packs / f'{file}.pack').exists()]
    forget_packs(store, gone)


def forget_packs(store: ChunkStore, gone: list[int]) -> None:
    """Forget packs whose files were removed."""
    if gone:
        with store.index.transaction(durable=False) as connection:
            for table, column in (('packs', 'id'), ('damaged', 'pack')):
                connection.executemany(
                    f'DELETE FROM {table} WHERE {column} = ?',  # noqa: S608
                    [(pack,) for pack in gone])
