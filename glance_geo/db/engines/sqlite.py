# SPDX-License-Identifier: Apache-2.0
"""Metadata in an SQLite file: the embedded default, one file per node.

WAL mode with ``synchronous=FULL``: what was answered is on stable storage.
Several processes and threads of the node share the file; a second node is
refused, since SQLite's locks mean nothing across hosts.
"""

import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

from glance_geo.core import errors
from glance_geo.core.interfaces import Entry, MetadataEngine, Term, Trait

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE entries (
    key TEXT PRIMARY KEY, value BLOB NOT NULL, stamp INTEGER NOT NULL,
    revision INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE terms (
    idx TEXT NOT NULL, term BLOB NOT NULL, key TEXT NOT NULL,
    PRIMARY KEY (idx, term, key)) WITHOUT ROWID;
CREATE INDEX terms_by_key ON terms (key);
CREATE TABLE numbers (name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
INSERT INTO numbers VALUES ('put', 0), ('revision', 0);
"""
_BUSY_SECONDS = 60.0
_KEYS_PER_QUERY = 500


class SQLiteEngine(MetadataEngine):
    """One connection per thread and process; writers queue on the file."""

    traits = frozenset((Trait.COMPARE_AND_SET, Trait.DURABLE))

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
            connection.execute('PRAGMA journal_mode=WAL')
            connection.execute('PRAGMA synchronous=FULL')
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
            connection.execute('COMMIT')
        except BaseException:
            connection.execute('ROLLBACK')
            raise

    def _bind(self, connection: sqlite3.Connection, node: str | None) -> None:
        if node is None:
            return
        row = connection.execute(
            "SELECT value FROM numbers WHERE name = 'node'").fetchone()
        if row is None:
            connection.execute("INSERT INTO numbers VALUES ('node', ?)",
                               (node,))
        elif row[0] != node:
            raise errors.ConfigurationInvalid(
                f'metadata_backend: {self._path} belongs to node {row[0]!r}, '
                f'this is {node!r}; SQLite serves one node: give each its own '
                f'file, or use a redis:// backend for several')

    def get(self, key: str) -> Entry | None:
        return self.get_many([key]).get(key)

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
            terms: Iterable[Term], numbered: bool = False) -> int:
        with self._transaction('IMMEDIATE') as connection:
            row = connection.execute(
                'SELECT revision FROM entries WHERE key = ?',
                (key,)).fetchone()
            if (row[0] if row else None) != token:
                raise errors.StaleToken(key)
            (revision,) = connection.execute(
                "UPDATE numbers SET value = value + 1 WHERE name = 'revision'"
                ' RETURNING value').fetchone()
            number = 0
            if numbered:
                (number,) = connection.execute(
                    "UPDATE numbers SET value = value + 1 WHERE name = 'put'"
                    ' RETURNING value').fetchone()
            connection.execute('REPLACE INTO entries VALUES (?, ?, ?, ?)',
                               (key, value, number, revision))
            wanted = {(t.index, t.value + (b'%016x' % number if t.stamped
                                           else b'')) for t in terms}
            present = set(connection.execute(
                'SELECT idx, term FROM terms WHERE key = ?', (key,)))
            connection.executemany(
                'DELETE FROM terms WHERE idx = ? AND term = ? AND key = ?',
                [(i, t, key) for i, t in present - wanted])
            connection.executemany(
                'INSERT INTO terms VALUES (?, ?, ?)',
                [(i, t, key) for i, t in wanted - present])
        return number

    def delete(self, key: str) -> None:
        with self._transaction('IMMEDIATE') as connection:
            connection.execute('DELETE FROM terms WHERE key = ?', (key,))
            connection.execute('DELETE FROM entries WHERE key = ?', (key,))

    def scan(self, index: str, start: bytes | None = None,
             stop: bytes | None = None, reverse: bool = False,
             limit: int | None = None) -> list[tuple[bytes, str]]:
        where = ['idx = ?']
        arguments: list[Any] = [index]
        if start is not None:
            where.append('term >= ?')
            arguments.append(start)
        if stop is not None:
            where.append('term < ?')
            arguments.append(stop)
        way = 'DESC' if reverse else 'ASC'
        sql = (f'SELECT term, key FROM terms WHERE {" AND ".join(where)} '
               f'ORDER BY term {way}, key {way} LIMIT ?')
        return self._query(sql, [*arguments, -1 if limit is None else limit])

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
        return self._query(
            "SELECT value FROM numbers WHERE name = 'put'")[0][0]

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
