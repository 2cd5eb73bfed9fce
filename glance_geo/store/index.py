# SPDX-License-Identifier: Apache-2.0
"""The chunk store's index, in SQLite, shared by the processes of a node.

What a writer relies on is protected by *epochs*: a collection begins by
counting the epoch up and removes only rows whose epoch is older than that of
every writer alive then. A writer begins in the epoch of its time and lifts
the rows that it adds or relies on to that.
"""

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from glance_geo import sqlitewal
from glance_geo.core import errors
from glance_geo.store import schema
from glance_geo.store.packs import Entry, Place
from glance_geo.store.schema import SHARED

_NAMES_PER_QUERY = 500
_FULL = ('SQLITE_FULL',)
_BUSY_SECONDS = 60.0
_WAL_KEPT = 4 * 1024 * 1024


def _marks(values: Sequence[Any]) -> str:
    return ','.join('?' * len(values))


def _parts(names: Iterable[bytes]) -> Iterator[list[bytes]]:
    names = list(names)
    for start in range(0, len(names), _NAMES_PER_QUERY):
        yield names[start:start + _NAMES_PER_QUERY]


class ChunkIndex:
    """Keeps idle connections: reading an image takes several threads."""

    def __init__(self, path: Path):
        self._path = path
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._idle: list[sqlite3.Connection] = []
        self._inherited: list[sqlite3.Connection] = []
        self._files: dict[int, str] = {}
        with self.transaction() as connection:
            self.upgraded = schema.prepare(connection, path)

    def _connect(self) -> sqlite3.Connection:
        made = sqlite3.connect(self._path, timeout=_BUSY_SECONDS,
                               isolation_level=None, check_same_thread=False)
        sqlitewal.use(made, _BUSY_SECONDS)
        made.execute(f'PRAGMA journal_size_limit={_WAL_KEPT}')
        made.execute('PRAGMA synchronous=FULL')
        return made

    @contextmanager
    def _borrowed(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection, to one thread at a time.

        :raises StoreFull, StoreUnusable: for what SQLite raises
        """
        with self._lock:
            if self._pid != os.getpid():
                # Of the process that forked this one: not to be used, nor
                # closed, here.
                self._inherited += self._idle
                self._idle, self._pid = [], os.getpid()
            connection = self._idle.pop() if self._idle else None
        try:
            if connection is None:
                connection = self._connect()
            yield connection
        except sqlite3.Error as error:
            raise self._failure(error) from error
        finally:
            if connection is not None:
                with self._lock:
                    self._idle.append(connection)

    def close(self) -> None:
        with self._lock:
            while self._idle:
                self._idle.pop().close()

    def _failure(self, error: sqlite3.Error) -> errors.GeoError:
        name = getattr(error, 'sqlite_errorname', '')
        if name in _FULL:
            return errors.StoreFull(f'{self._path}: disk full')
        hint = ''
        if name.startswith(('SQLITE_CORRUPT', 'SQLITE_NOTADB')):
            hint = ('; "glance-geo store rebuild-index" makes it anew from '
                    'the packs')
        return errors.StoreUnusable(f'{self._path}: {error}{hint}')

    @contextmanager
    def transaction(self, durable: bool = True,
                    ) -> Iterator[sqlite3.Connection]:
        """Run a write transaction.

        :param durable: wait for stable storage; what only a live process
            needs does not
        :raises StoreFull, StoreUnusable: nothing was changed
        """
        with self._borrowed() as connection:
            try:
                connection.execute(
                    f'PRAGMA synchronous={"FULL" if durable else "NORMAL"}')
                connection.execute('BEGIN IMMEDIATE')
                yield connection
                connection.execute('COMMIT')
            except BaseException:
                if connection.in_transaction:
                    connection.execute('ROLLBACK')
                raise

    def query(self, sql: str, arguments: Sequence = ()) -> list[tuple]:
        """Return the rows of a statement that changes nothing."""
        with self._borrowed() as connection:
            return connection.execute(sql, arguments).fetchall()

    # -- scopes and packs -------------------------------------------------
    def scope(self, project: str) -> int:
        """Return the number of a project's scope, made if need be."""
        known = self.query('SELECT id FROM scopes WHERE project = ?',
                           (project,))
        if not known:
            with self.transaction() as connection:
                connection.execute(
                    'INSERT OR IGNORE INTO scopes (project) VALUES (?)',
                    (project,))
            return self.scope(project)
        return known[0][0]

    def project(self, scope: int) -> str:
        found = self.query('SELECT project FROM scopes WHERE id = ?',
                           (scope,))
        return found[0][0] if found else ''

    def pack_file(self, pack: int) -> str | None:
        """Return the file name of a pack; numbers are never used twice."""
        if pack not in self._files:
            found = self.query('SELECT file FROM packs WHERE id = ?', (pack,))
            if not found:
                return None
            self._files[pack] = found[0][0]
        return self._files[pack]

    def packs(self) -> dict[int, str]:
        return dict(self.query('SELECT id, file FROM packs'))

    @staticmethod
    def enter_pack(connection: sqlite3.Connection, file: str) -> int:
        """Return a pack's number, given within the transaction if new."""
        connection.execute('INSERT OR IGNORE INTO packs (file) VALUES (?)',
                           (file,))
        return connection.execute('SELECT id FROM packs WHERE file = ?',
                                  (file,)).fetchone()[0]

    # -- chunks -----------------------------------------------------------
    def places(self, names: Iterable[bytes],
               scopes: Sequence[int]) -> dict[bytes, Place]:
        """Return the places of those of the chunks that some scopes have."""
        found: dict[bytes, Place] = {}
        if not scopes:
            return found
        for part in _parts(names):
            for name, *place in self.query(
                    'SELECT name, pack, offset, stored, raw, codec FROM '
                    f'chunks WHERE name IN ({_marks(part)}) AND scope IN '
                    f'({_marks(scopes)})', [*part, *scopes]):
                found[name] = Place(*place)
        return found

    def rely_on(self, epoch: int, scope: int,
                names: Sequence[bytes]) -> set[bytes]:
        """Return the chunks that are here for a scope, kept for a writer.

        What all projects share is entered for the scope too.

        :param epoch: in which the writer began
        """
        present: set[bytes] = set()
        for part in _parts(names):
            rows = self._rows(self.query, part, scope)
            # No collection takes a row that is as young as a live writer.
            safe = {name for name, s, e in rows if s == scope and e >= epoch}
            old = list({name for name, _, _ in rows} - safe)
            present |= safe
            if old:
                present |= self._lift(epoch, scope, old)
        return present

    @staticmethod
    def _rows(query: Any, names: list[bytes],
              scope: int) -> list[tuple[bytes, int, int]]:
        return list(query(
            'SELECT name, scope, epoch FROM chunks WHERE name IN '
            f'({_marks(names)}) AND scope IN (?, {SHARED})',
            [*names, scope]))

    def _lift(self, epoch: int, scope: int, names: list[bytes]) -> set[bytes]:
        # Looked up anew: a collection may have come between.
        with self.transaction(durable=False) as connection:
            rows = self._rows(connection.execute, names, scope)
            own = {name for name, s, _ in rows if s == scope}
            connection.executemany(
                'UPDATE chunks SET epoch = ?1 WHERE name = ?2 AND scope = ?3 '
                'AND epoch < ?1', [(epoch, name, scope) for name in own])
            shared = {name for name, _, _ in rows} - own
            connection.executemany(
                'INSERT INTO chunks SELECT name, ?, pack, offset, stored, '
                f'raw, codec, ? FROM chunks WHERE name = ? AND scope = '
                f'{SHARED}', [(scope, epoch, name) for name in shared])
            return own | shared

    def enter(self, epoch: int, scope: int, source: int,
              names: Sequence[bytes]) -> None:
        """Enter what one scope has for another one too, for a writer."""
        for part in _parts(names):
            with self.transaction(durable=False) as connection:
                connection.executemany(
                    'INSERT INTO chunks SELECT name, ?1, pack, offset, '
                    'stored, raw, codec, ?2 FROM chunks WHERE name = ?3 AND '
                    'scope = ?4 ON CONFLICT (name, scope) DO UPDATE SET '
                    'epoch = max(epoch, excluded.epoch)',
                    [(scope, epoch, name, source) for name in part])

    def add(self, epoch: int, scope: int, file: str,
            entries: Iterable[Entry]) -> None:
        """Enter chunks whose bytes are on stable storage in a pack."""
        with self.transaction() as connection:
            pack = self.enter_pack(connection, file)
            # Two writers may store one chunk: the first keeps its row, the
            # other's bytes are dead weight until its pack is rewritten. In
            # the order of the names, which the tree's pages like.
            connection.executemany(
                'INSERT INTO chunks VALUES (?, ?, ?, ?, ?, ?, ?, ?) '
                'ON CONFLICT (name, scope) DO UPDATE SET '
                'epoch = max(epoch, excluded.epoch)',
                sorted((e.name, scope, pack, e.offset, e.stored, e.raw,
                        e.codec, epoch) for e in entries))

    def forget(self, name: bytes, place: Place, why: str) -> bool:
        """Set a corrupt chunk aside, unless it was replaced meanwhile."""
        with self.transaction() as connection:
            gone = connection.execute(
                'DELETE FROM chunks WHERE name = ? AND pack = ? AND '
                'offset = ?', (name, place.pack, place.offset)).rowcount
            if gone:
                connection.execute(
                    'INSERT OR IGNORE INTO damaged VALUES (?, ?, ?, ?, ?)',
                    (name, place.pack, place.offset, why, int(time.time())))
            return bool(gone)

    # -- sessions ---------------------------------------------------------
    def begin(self, session: str) -> int:
        """Enter a writer; return the epoch in which it begins."""
        with self.transaction(durable=False) as connection:
            epoch = self.epoch(connection)
            connection.execute('INSERT INTO sessions VALUES (?, ?)',
                               (session, epoch))
            return epoch

    def end(self, session: str, aborted: bool = False) -> None:
        with self.transaction(durable=False) as connection:
            connection.execute('DELETE FROM sessions WHERE id = ?',
                               (session,))
            if aborted:
                self.more_garbage(connection)

    @staticmethod
    def more_garbage(connection: sqlite3.Connection) -> None:
        """Note that there may be something for a collection."""
        connection.execute(
            "UPDATE meta SET value = value + 1 WHERE key = 'garbage'")

    def has_garbage(self) -> bool:
        found = dict(self.query("SELECT key, value FROM meta WHERE key IN "
                                "('garbage', 'collected')"))
        return found['garbage'] != found['collected']

    @staticmethod
    def epoch(connection: sqlite3.Connection) -> int:
        return connection.execute(
            "SELECT value FROM meta WHERE key = 'epoch'").fetchone()[0]

    # -- statistics -------------------------------------------------------
    def totals(self) -> tuple[int, int, int]:
        """Return (chunks, raw bytes, stored bytes); reads the whole table.

        What several scopes share is counted once.
        """
        return self.query(
            'SELECT count(*), coalesce(sum(raw), 0), coalesce(sum(stored), '
            '0) FROM (SELECT DISTINCT name, pack, offset, raw, stored '
            'FROM chunks)')[0]

    def note(self, key: str, value: Any) -> None:
        """Keep something small, durably."""
        with self.transaction() as connection:
            connection.execute('INSERT OR REPLACE INTO meta VALUES (?, ?)',
                               (key, json.dumps(value)))

    def noted(self, key: str) -> Any:
        found = self.query('SELECT value FROM meta WHERE key = ?', (key,))
        return json.loads(found[0][0]) if found else None
