# SPDX-License-Identifier: Apache-2.0
"""The chunk store's index, in SQLite, shared by the processes of a node.

``chunks``   name -> place in a pack
``refs``     what keeps a manifest's chunks: an upload's location or a copy
``pins``     chunks in use by a session that has not committed yet
``sessions`` live writers; ``done`` ones keep their pins until a collection
             that starts later has seen their references
``checks``   deletions that metadata has yet to confirm
"""

import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from glance_geo.core import errors
from glance_geo.store.packs import Place

_VERSION = 1
_SCHEMA = """
CREATE TABLE chunks (
    name BLOB PRIMARY KEY, pack TEXT NOT NULL, offset INTEGER NOT NULL,
    stored INTEGER NOT NULL, raw INTEGER NOT NULL, codec INTEGER NOT NULL
    ) WITHOUT ROWID;
CREATE INDEX chunks_by_pack ON chunks (pack);
CREATE TABLE refs (
    image TEXT NOT NULL, manifest BLOB NOT NULL, nonce TEXT NOT NULL,
    PRIMARY KEY (image, manifest, nonce)) WITHOUT ROWID;
CREATE TABLE sessions (id TEXT PRIMARY KEY, done INTEGER NOT NULL)
    WITHOUT ROWID;
CREATE TABLE pins (session TEXT NOT NULL, name BLOB NOT NULL,
    PRIMARY KEY (session, name)) WITHOUT ROWID;
CREATE INDEX pins_by_name ON pins (name);
CREATE TABLE checks (image TEXT NOT NULL, manifest BLOB NOT NULL,
    nonce TEXT NOT NULL, PRIMARY KEY (image, manifest, nonce))
    WITHOUT ROWID;
"""
_NAMES_PER_QUERY = 500
_FULL = ('SQLITE_FULL',)

COPY = 'copy'
"""The nonce of a reference that keeps a copy fetched from elsewhere."""


class ChunkIndex:
    """One connection per thread and process."""

    def __init__(self, path: Path):
        self._path = path
        self._local = threading.local()
        with self.transaction() as connection:
            (version,) = connection.execute('PRAGMA user_version').fetchone()
            if version == 0:
                for statement in _SCHEMA.split(';'):
                    connection.execute(statement)
                connection.execute(f'PRAGMA user_version={_VERSION}')
            elif version != _VERSION:
                raise errors.StoreUnusable(
                    f'{path} has index version {version}; this release '
                    f'reads {_VERSION}')

    def connection(self) -> sqlite3.Connection:
        if getattr(self._local, 'pid', None) != os.getpid():
            try:
                made = sqlite3.connect(self._path, timeout=60.0,
                                       isolation_level=None)
                made.execute('PRAGMA journal_mode=WAL')
                made.execute('PRAGMA synchronous=FULL')
            except sqlite3.Error as error:
                raise errors.StoreUnusable(f'{self._path}: {error}') from error
            self._local.connection = made
            self._local.pid = os.getpid()
        return self._local.connection

    @contextmanager
    def transaction(self, durable: bool = True,
                    ) -> Iterator[sqlite3.Connection]:
        """Run a write transaction.

        :param durable: wait for stable storage; what only a live process
            needs (pins) does not
        :raises StoreFull, StoreUnusable: nothing was changed
        """
        connection = self.connection()
        try:
            connection.execute(
                f'PRAGMA synchronous={"FULL" if durable else "NORMAL"}')
            connection.execute('BEGIN IMMEDIATE')
            yield connection
            connection.execute('COMMIT')
        except BaseException as error:
            if connection.in_transaction:
                connection.execute('ROLLBACK')
            if isinstance(error, sqlite3.Error):
                if getattr(error, 'sqlite_errorname', '') in _FULL:
                    raise errors.StoreFull(
                        f'{self._path}: disk full') from error
                raise errors.StoreUnusable(f'{self._path}: {error}') from error
            raise

    def _query(self, sql: str, arguments: Sequence = ()) -> list[tuple]:
        try:
            return self.connection().execute(sql, arguments).fetchall()
        except sqlite3.Error as error:
            raise errors.StoreUnusable(f'{self._path}: {error}') from error

    # -- chunks -----------------------------------------------------------
    def places(self, names: Iterable[bytes]) -> dict[bytes, Place]:
        """Return the places of those of the chunks that are here."""
        names = list(names)
        found = {}
        for start in range(0, len(names), _NAMES_PER_QUERY):
            part = names[start:start + _NAMES_PER_QUERY]
            for name, *place in self._query(
                    'SELECT name, pack, offset, stored, raw, codec FROM '
                    f'chunks WHERE name IN ({",".join("?" * len(part))})',
                    part):
                found[name] = Place(*place)
        return found

    def pin_present(self, session: str,
                    names: Sequence[bytes]) -> set[bytes]:
        """Pin those of the chunks that are here; return them.

        Look-up and pin are one transaction: a collector can't get between.
        """
        present: set[bytes] = set()
        with self.transaction(durable=False) as connection:
            for start in range(0, len(names), _NAMES_PER_QUERY):
                part = names[start:start + _NAMES_PER_QUERY]
                present.update(name for (name,) in connection.execute(
                    'SELECT name FROM chunks WHERE name IN '
                    f'({",".join("?" * len(part))})', part))
            connection.executemany(
                'INSERT OR IGNORE INTO pins VALUES (?, ?)',
                [(session, name) for name in present])
        return present

    def add(self, session: str, places: dict[bytes, Place]) -> None:
        """Enter chunks whose bytes are on stable storage, pinned."""
        with self.transaction() as connection:
            # Two sessions may store one chunk: the first keeps its row, the
            # other's bytes are dead weight until its pack is rewritten.
            connection.executemany(
                'INSERT OR IGNORE INTO chunks VALUES (?, ?, ?, ?, ?, ?)',
                [(name, p.pack, p.offset, p.stored, p.raw, p.codec)
                 for name, p in places.items()])
            connection.executemany(
                'INSERT OR IGNORE INTO pins VALUES (?, ?)',
                [(session, name) for name in places])

    def forget(self, name: bytes, place: Place) -> None:
        """Drop a corrupt chunk's row, unless it was replaced meanwhile."""
        with self.transaction() as connection:
            connection.execute(
                'DELETE FROM chunks WHERE name = ? AND pack = ? AND '
                'offset = ?', (name, place.pack, place.offset))

    # -- sessions ---------------------------------------------------------
    def begin(self, session: str) -> None:
        with self.transaction(durable=False) as connection:
            connection.execute('INSERT INTO sessions VALUES (?, 0)',
                               (session,))

    def finish(self, session: str,
               ref: tuple[str, bytes, str] | None) -> None:
        """Mark a session done and enter its reference, in one step."""
        with self.transaction() as connection:
            connection.execute('UPDATE sessions SET done = 1 WHERE id = ?',
                               (session,))
            if ref is not None:
                connection.execute('INSERT OR IGNORE INTO refs VALUES '
                                   '(?, ?, ?)', ref)

    def abandon(self, session: str, packs: Iterable[str]) -> list[str]:
        """Drop a session's pins; return its packs that no row points into.

        Rows that it entered stay: someone may refer to them by now. The next
        collection knows.
        """
        with self.transaction() as connection:
            connection.execute('DELETE FROM pins WHERE session = ?',
                               (session,))
            connection.execute('DELETE FROM sessions WHERE id = ?',
                               (session,))
            return [pack for pack in packs if connection.execute(
                'SELECT 1 FROM chunks WHERE pack = ? LIMIT 1',
                (pack,)).fetchone() is None]

    # -- references -------------------------------------------------------
    def keep_copy(self, image: str, manifest: bytes) -> None:
        """Enter the reference of a copy, unless there is any reference."""
        if self.has_ref(image, manifest):
            return
        with self.transaction() as connection:
            connection.execute(
                'INSERT OR IGNORE INTO refs VALUES (?, ?, ?)',
                (image, manifest, COPY))

    def drop_ref(self, image: str, manifest: bytes, nonce: str) -> None:
        with self.transaction() as connection:
            for table in ('refs', 'checks'):
                connection.execute(
                    f'DELETE FROM {table} WHERE image = ? '  # noqa: S608
                    'AND manifest = ? AND nonce = ?',
                    (image, manifest, nonce))

    def refs(self, image: str | None = None,
             ) -> list[tuple[str, bytes, str]]:
        """Return (image, manifest, nonce), of one image or of all."""
        return self._query(
            'SELECT image, manifest, nonce FROM refs '
            'WHERE ?1 IS NULL OR image = ?1', (image,))

    def has_ref(self, image: str, manifest: bytes) -> bool:
        return bool(self._query(
            'SELECT 1 FROM refs WHERE image = ? AND manifest = ? LIMIT 1',
            (image, manifest)))

    def queue_check(self, image: str, manifest: bytes, nonce: str) -> None:
        with self.transaction() as connection:
            connection.execute(
                'INSERT OR IGNORE INTO checks VALUES (?, ?, ?)',
                (image, manifest, nonce))

    def checks(self) -> list[tuple[str, bytes, str]]:
        return self._query('SELECT image, manifest, nonce FROM checks')

    # -- statistics -------------------------------------------------------
    def totals(self) -> tuple[int, int, int]:
        """Return (chunks, raw bytes, stored bytes)."""
        return self._query('SELECT count(*), coalesce(sum(raw), 0), '
                           'coalesce(sum(stored), 0) FROM chunks')[0]
