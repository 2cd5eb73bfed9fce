# SPDX-License-Identifier: Apache-2.0
"""Metadata in an SQLite file: the embedded default, one file per node.

WAL mode with ``synchronous=FULL``: what was answered is on stable storage.
Several processes and threads of the node share the file; a second node is
refused, since SQLite's locks mean nothing across hosts.
"""

import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

import msgpack

from glance_geo import sqlitewal
from glance_geo.core import errors
from glance_geo.core.engine import (
    Entry,
    MetadataEngine,
    Position,
    Range,
    Stored,
    Term,
    Trait,
)

_SCHEMA_VERSION = 2
# An entry lists its own terms, so that no second index over the terms must be
# kept to find them again.
_SCHEMA = """
CREATE TABLE entries (
    key TEXT PRIMARY KEY, value BLOB NOT NULL, stamp INTEGER NOT NULL,
    revision INTEGER NOT NULL, terms BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE terms (
    idx TEXT NOT NULL, term BLOB NOT NULL, key TEXT NOT NULL,
    PRIMARY KEY (idx, term, key)) WITHOUT ROWID;
CREATE TABLE numbers (revision INTEGER NOT NULL, put INTEGER NOT NULL,
    node TEXT, life TEXT NOT NULL);
INSERT INTO numbers VALUES (0, 0, NULL, '');
"""
_BUSY_SECONDS = 60.0
_MAPPED_BYTES = 4 << 30
_CACHE_KIB = 32 << 10
_KEYS_PER_QUERY = 500
_PUTS_PER_NOTE = 32
_POLL_SECONDS = 0.05


def _terms(packed: bytes) -> set[tuple[str, bytes]]:
    return {(index, term) for index, term in msgpack.unpackb(packed)}


class SQLiteEngine(MetadataEngine):
    """One connection per thread and process; writers queue on the file."""

    traits = frozenset((Trait.COMPARE_AND_SET, Trait.DURABLE,
                        Trait.CHANGE_FEED))

    def __init__(self, path: str, node: str | None = None):
        self._path = path
        self._local = threading.local()
        self._closed = False
        try:
            os.makedirs(os.path.dirname(path) or '.', mode=0o750,
                        exist_ok=True)
            self._create(node)
        except (sqlite3.Error, OSError) as error:
            raise errors.ConfigurationInvalid(
                f'metadata_backend: cannot open {path}: {error}') from error

    def _connect(self) -> sqlite3.Connection:
        # A connection must not cross a fork: uWSGI may fork after import.
        if self._closed:
            raise errors.EngineUnavailable(f'{self._path} was closed')
        if getattr(self._local, 'owner', None) != os.getpid():
            connection = sqlite3.connect(
                self._path, timeout=_BUSY_SECONDS, isolation_level=None)
            sqlitewal.use(connection, _BUSY_SECONDS)
            connection.execute('PRAGMA synchronous=FULL')
            # Pages that were read once are read from memory; without these
            # a get among 100,000 images costs three times one among 1,000.
            connection.execute(f'PRAGMA mmap_size={_MAPPED_BYTES}')
            connection.execute(f'PRAGMA cache_size=-{_CACHE_KIB}')
            self._local.connection = connection
            self._local.owner = os.getpid()
        return self._local.connection

    @contextmanager
    def _transaction(self, kind: str) -> Iterator[sqlite3.Connection]:
        connection = self._connection()
        try:
            connection.execute(f'BEGIN {kind}')
        except sqlite3.Error as error:
            raise errors.EngineUnavailable(f'{self._path}: {error}') from error
        try:
            yield connection
            connection.execute('COMMIT')
        except BaseException as error:
            if connection.in_transaction:
                connection.execute('ROLLBACK')
            if isinstance(error, sqlite3.Error):
                raise errors.EngineUnavailable(
                    f'{self._path}: {error}') from error
            raise

    def _connection(self) -> sqlite3.Connection:
        try:
            return self._connect()
        except sqlite3.Error as error:
            raise errors.EngineUnavailable(f'{self._path}: {error}') from error

    def _query(self, sql: str, arguments: Sequence[Any] = ()) -> list[tuple]:
        try:
            return self._connection().execute(sql, arguments).fetchall()
        except sqlite3.Error as error:
            raise errors.EngineUnavailable(f'{self._path}: {error}') from error

    def _create(self, node: str | None) -> None:
        connection = self._connect()
        connection.execute('BEGIN IMMEDIATE')
        try:
            (version,) = connection.execute('PRAGMA user_version').fetchone()
            if version == 0:
                for statement in _SCHEMA.split(';'):
                    connection.execute(statement)
                connection.execute(f'PRAGMA user_version={_SCHEMA_VERSION}')
            elif version != _SCHEMA_VERSION:
                raise errors.ConfigurationInvalid(
                    f'metadata_backend: {self._path} has schema version '
                    f'{version}; this release reads {_SCHEMA_VERSION}')
            self._bind(connection, node)
            self._recognise(connection)
            connection.execute('COMMIT')
        except BaseException:
            connection.execute('ROLLBACK')
            raise
        self._note(self.last_number(), self.life())

    def _bind(self, connection: sqlite3.Connection, node: str | None) -> None:
        if node is None:
            return
        (present,) = connection.execute(
            'SELECT node FROM numbers').fetchone()
        if present is None:
            connection.execute('UPDATE numbers SET node = ?', (node,))
        elif present != node:
            raise errors.ConfigurationInvalid(
                f'metadata_backend: {self._path} belongs to node {present!r}, '
                f'this is {node!r}; SQLite serves one node: give each its own '
                f'file, or use a redis:// backend for several')

    # -- the data's life --------------------------------------------------
    def _recognise(self, connection: sqlite3.Connection) -> None:
        """Begin a new life if this file is an older copy of itself.

        Two signs: it is another file than the one in which its life began,
        or its last number is below the one noted beside it. A copy put back
        into the very same file within fewer puts than lie between two notes
        shows neither; other sites find it at the next sync.
        """
        number, life = connection.execute(
            'SELECT put, life FROM numbers').fetchone()
        inode = str(os.stat(self._path).st_ino)
        noted_life, _, noted = self._noted().partition(' ')
        older = noted_life == life and noted.isdigit() and int(noted) > number
        if life.partition('.')[0] != inode or older:
            connection.execute('UPDATE numbers SET life = ?',
                               (self._new_life(),))

    @property
    def _note_path(self) -> str:
        return f'{self._path}-number'

    def _noted(self) -> str:
        try:
            with open(self._note_path) as file:
                return file.read()
        except FileNotFoundError:
            return ''

    def _note(self, number: int, life: str) -> None:
        part = f'{self._note_path}.{os.getpid()}.{threading.get_ident()}'
        with open(part, 'w') as file:
            file.write(f'{life} {number}')
        os.replace(part, self._note_path)

    def life(self) -> str:
        return self._query('SELECT life FROM numbers')[0][0]

    def renew_life(self) -> None:
        with self._transaction('IMMEDIATE') as connection:
            connection.execute('UPDATE numbers SET life = ?',
                               (self._new_life(),))

    def _new_life(self) -> str:
        return f'{os.stat(self._path).st_ino}.{uuid.uuid4().hex[:12]}'

    def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        found = {}
        for start in range(0, len(keys), _KEYS_PER_QUERY):
            part = keys[start:start + _KEYS_PER_QUERY]
            marks = ','.join('?' * len(part))
            for key, value, stamp, revision in self._query(
                    f'SELECT key, value, stamp, revision FROM entries '
                    f'WHERE key IN ({marks})', part):
                found[key] = Entry((value,), stamp, revision)
        return found

    def put(self, key: str, value: bytes, token: Any,
            terms: Iterable[Term], numbered: bool = False,
            life: str | None = None) -> Stored:
        with self._transaction('IMMEDIATE') as connection:
            row = connection.execute(
                'SELECT revision, terms FROM entries WHERE key = ?',
                (key,)).fetchone()
            if (row[0] if row else None) != token:
                raise errors.StaleToken(key)
            revision, number, present_life = connection.execute(
                'UPDATE numbers SET revision = revision + 1, put = put + ? '
                'RETURNING revision, put, life', (int(numbered),)).fetchone()
            if life not in (None, present_life):
                raise errors.StaleToken(key)
            if not numbered:
                number = 0
            wanted = {(t.index, t.value + (b'%016x' % number if t.stamped
                                           else b'')) for t in terms}
            connection.execute(
                'REPLACE INTO entries VALUES (?, ?, ?, ?, ?)',
                (key, value, number, revision, msgpack.packb(sorted(wanted))))
            present = _terms(row[1]) if row else set()
            connection.executemany(
                'DELETE FROM terms WHERE idx = ? AND term = ? AND key = ?',
                [(i, t, key) for i, t in present - wanted])
            connection.executemany(
                'INSERT INTO terms VALUES (?, ?, ?)',
                [(i, t, key) for i, t in wanted - present])
        if number % _PUTS_PER_NOTE == 1:
            self._note(number, present_life)
        return Stored(number)

    def delete(self, key: str, token: Any = None) -> None:
        with self._transaction('IMMEDIATE') as connection:
            row = connection.execute(
                'SELECT revision, terms FROM entries WHERE key = ?',
                (key,)).fetchone()
            if token is not None and (row is None or row[0] != token):
                raise errors.StaleToken(key)
            if row is None:
                return
            connection.execute('DELETE FROM entries WHERE key = ?', (key,))
            connection.executemany(
                'DELETE FROM terms WHERE idx = ? AND term = ? AND key = ?',
                [(i, t, key) for i, t in _terms(row[1])])

    @staticmethod
    def _select(range: Range) -> tuple[str, list[Any]]:
        where = ['idx = ?']
        arguments: list[Any] = [range.index]
        if range.start is not None:
            where.append('term >= ?')
            arguments.append(range.start)
        if range.stop is not None:
            where.append('term < ?')
            arguments.append(range.stop)
        way = 'DESC' if range.reverse else 'ASC'
        return (f'SELECT term, key FROM terms WHERE {" AND ".join(where)} '
                f'ORDER BY term {way}, key {way} LIMIT ?',
                [*arguments, -1 if range.limit is None else range.limit])

    def look(self, ranges: Sequence[Range], keys: Sequence[str] = (),
             ) -> tuple[list[list[Position]], dict[str, Entry]]:
        return ([self._query(*self._select(range)) for range in ranges],
                self.get_many(keys))

    def fetch_many(self, ranges: Sequence[Range],
                   ) -> list[list[tuple[bytes, str, Entry]]]:
        found = []
        for range in ranges:
            sql, arguments = self._select(range)
            # SQLite keeps the order of the inner query: it is the outer loop.
            found.append([
                (term, key, Entry((value,), stamp, revision))
                for term, key, value, stamp, revision in self._query(
                    f'SELECT t.term, t.key, value, stamp, revision FROM '
                    f'({sql}) AS t CROSS JOIN entries AS e ON e.key = t.key',
                    arguments)])
        return found

    def indexes(self, prefix: str) -> list[str]:
        # A loose scan: one seek per index instead of one row per term.
        names: list[str] = []
        last = prefix
        comparison = '>='
        while True:
            rows = self._query(
                f'SELECT idx FROM terms WHERE idx {comparison} ? '
                f'ORDER BY idx LIMIT 1', (last,))
            if not rows or not rows[0][0].startswith(prefix):
                return names
            last, comparison = rows[0][0], '>'
            names.append(last)

    def last_number(self) -> int:
        return self._query('SELECT put FROM numbers')[0][0]

    def wait(self, number: int, timeout: float) -> int:
        # SQLite tells nobody; looking at one row costs microseconds.
        deadline = time.monotonic() + timeout
        while True:
            last = self.last_number()
            if last > number or time.monotonic() >= deadline:
                return last
            time.sleep(_POLL_SECONDS)

    def reset(self) -> None:
        with self._transaction('IMMEDIATE') as connection:
            connection.execute('DELETE FROM entries')
            connection.execute('DELETE FROM terms')

    def close(self) -> None:
        # Other threads may be inside SQLite: theirs close as they end.
        self._closed = True
        connection = getattr(self._local, 'connection', None)
        if connection is not None:
            connection.close()


def open_engine(url: str, **requirements: Any) -> SQLiteEngine:
    """Open ``sqlite:////absolute/path``.

    :param requirements: ``node``: refuse a file that another node opened
    """
    parts = urlsplit(url)
    path = unquote(parts.path)
    if parts.netloc or not path.startswith('//'):
        if parts.netloc or len(path) < 2:
            raise errors.ConfigurationInvalid(
                f'metadata_backend: {url}: use sqlite:////absolute/path')
        path = path[1:]     # sqlite:///relative, as SQLAlchemy has it
    else:
        path = path[1:]
    return SQLiteEngine(path, requirements.get('node'))
