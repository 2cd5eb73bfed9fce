# SPDX-License-Identifier: Apache-2.0
"""Metadata in tables of a CockroachDB, over SQLAlchemy Core.

Three tables beside Glance's own. A put is one serializable transaction, made
again when it lost against another, and certain of its commit
(``glance_geo.db.cockroachdb``); reads are one statement each.
"""

import functools
import random
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import msgpack
import sqlalchemy as sa
from oslo_db.exception import DBError
from sqlalchemy.dialects.postgresql import insert

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
from glance_geo.db.cockroachdb import filters, plugin, scope

_tables = sa.MetaData()
_entries = sa.Table(
    'geo_entries', _tables,
    sa.Column('key', sa.Text, primary_key=True),
    sa.Column('value', sa.LargeBinary, nullable=False),
    sa.Column('stamp', sa.BigInteger, nullable=False),
    sa.Column('revision', sa.Uuid, nullable=False),
    sa.Column('terms', sa.LargeBinary, nullable=False))
_terms = sa.Table(
    'geo_terms', _tables,
    sa.Column('idx', sa.Text, primary_key=True),
    sa.Column('term', sa.LargeBinary, primary_key=True),
    sa.Column('key', sa.Text, primary_key=True))
_numbers = sa.Table(
    'geo_numbers', _tables,
    sa.Column('only', sa.Integer, primary_key=True, autoincrement=False),
    sa.Column('put', sa.BigInteger, nullable=False),
    sa.Column('life', sa.Text, nullable=False))

_LOST = ('40001', '40P01', '25006')
_SECONDS = 15.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.004, 1.0
_BEGINNERS = 10
_KEYS_PER_QUERY = 500
_POLL_SECONDS = 0.5
# A loose scan: one seek per index instead of one row per term.
_INDEXES = sa.text("""
SELECT idx FROM (WITH RECURSIVE found(idx) AS (
    (SELECT idx FROM geo_terms WHERE idx >= :start ORDER BY idx LIMIT 1)
    UNION ALL
    SELECT (SELECT its.idx FROM geo_terms AS its WHERE its.idx > found.idx
            ORDER BY its.idx LIMIT 1)
    FROM found WHERE found.idx IS NOT NULL AND found.idx < :stop)
    SELECT idx FROM found WHERE idx < :stop) AS its""")
_T = TypeVar('_T')


def _unpacked(terms: bytes) -> set[tuple[str, bytes]]:
    return {(index, term) for index, term in msgpack.unpackb(terms)}


class CockroachDBEngine(MetadataEngine):
    """One pool of connections per process.

    :param url: SQLAlchemy's, of the ``cockroachdb`` dialect
    """

    traits = frozenset((Trait.COMPARE_AND_SET, Trait.DURABLE, Trait.SHARED,
                        Trait.REPLICATES, Trait.CHANGE_FEED))

    def __init__(self, url: sa.URL):
        self._engine = sa.create_engine(plugin.named(url))
        try:
            self._create()
        except (sa.exc.SQLAlchemyError, DBError) as error:
            raise errors.ConfigurationInvalid(
                f'metadata_backend: {filters.explain(error)}') from error

    def _create(self) -> None:
        for attempt in range(_BEGINNERS):
            if sa.inspect(self._engine).has_table(_numbers.name):
                break
            try:    # others may be at it too
                with scope.within(scope.Scope(resuming=True)), \
                        self._engine.begin() as connection:
                    for table in (_entries, _terms, _numbers):
                        table.create(connection, checkfirst=False)
            except sa.exc.DBAPIError:
                if attempt == _BEGINNERS - 1:
                    raise
                time.sleep(random.random() * _LONGEST_PAUSE)
        self._run(lambda connection: connection.execute(
            insert(_numbers).values(only=1, put=0, life=uuid.uuid4().hex[:12])
            .on_conflict_do_nothing()))

    # -- running ----------------------------------------------------------
    def _run(self, work: Callable[[sa.Connection], _T]) -> _T:
        """Run a transaction, again if it lost against another."""
        deadline = time.monotonic() + _SECONDS
        pause = _FIRST_PAUSE
        while True:
            try:
                with self._engine.begin() as connection:
                    return work(connection)
            except sa.exc.DBAPIError as error:
                again = (filters.sqlstate(error) in _LOST
                         or error.connection_invalidated)
                if not again or time.monotonic() > deadline:
                    raise errors.EngineUnavailable(
                        filters.explain(error)) from error
            except (sa.exc.SQLAlchemyError, DBError) as error:
                raise errors.EngineUnavailable(
                    filters.explain(error)) from error
            time.sleep(random.random() * pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _query(self, query: Any, arguments: Any = None) -> Sequence[Any]:
        """Run one statement that reads; it needs no transaction."""
        with scope.within(scope.Scope(single=True)) as allowed:
            def read(connection: sa.Connection) -> Sequence[Any]:
                allowed.statements = 0
                return connection.execute(query, arguments or {}).all()
            return self._run(read)

    # -- lives ------------------------------------------------------------
    def life(self) -> str:
        return self._query(sa.select(_numbers.c.life))[0][0]

    def renew_life(self) -> None:
        self._run(lambda connection: connection.execute(
            _numbers.update().values(life=uuid.uuid4().hex[:12])))

    # -- reading ----------------------------------------------------------
    def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        found: dict[str, Entry] = {}
        for start in range(0, len(keys), _KEYS_PER_QUERY):
            rows = self._query(sa.select(
                _entries.c.key, _entries.c.value, _entries.c.stamp,
                _entries.c.revision).where(_entries.c.key.in_(
                    keys[start:start + _KEYS_PER_QUERY])))
            found |= {row.key: Entry((row.value,), row.stamp, row.revision)
                      for row in rows}
        return found

    @staticmethod
    def _range(number: int, wanted: Range) -> Any:
        query = sa.select(sa.literal(number).label('place'), _terms.c.term,
                          _terms.c.key).where(_terms.c.idx == wanted.index)
        if wanted.start is not None:
            query = query.where(_terms.c.term >= wanted.start)
        if wanted.stop is not None:
            query = query.where(_terms.c.term < wanted.stop)
        order = sa.desc if wanted.reverse else sa.asc
        query = query.order_by(order(_terms.c.term), order(_terms.c.key))
        return query if wanted.limit is None else query.limit(wanted.limit)

    def _positions(self, ranges: Sequence[Range]) -> Any:
        """Return one query for all the ranges."""
        return sa.union_all(*(
            self._range(number, wanted).subquery().select()
            for number, wanted in enumerate(ranges))).subquery()

    @staticmethod
    def _sorted(ranges: Sequence[Range], rows: Iterable[Any],
                ) -> list[list[Any]]:
        """Return the rows of each range, in its order."""
        found: list[list[Any]] = [[] for _ in ranges]
        for row in rows:
            found[row.place].append(row)
        for wanted, its in zip(ranges, found, strict=True):
            its.sort(key=lambda row: (row.term, row.key),
                     reverse=wanted.reverse)
        return found

    def look(self, ranges: Sequence[Range], keys: Sequence[str] = (),
             ) -> tuple[list[list[Position]], dict[str, Entry]]:
        rows = (self._query(self._positions(ranges).select()) if ranges
                else ())
        return ([[(row.term, row.key) for row in its]
                 for its in self._sorted(ranges, rows)],
                self.get_many(keys) if keys else {})

    def fetch_many(self, ranges: Sequence[Range],
                   ) -> list[list[tuple[bytes, str, Entry]]]:
        if not ranges:
            return []
        positions = self._positions(ranges)
        rows = self._query(sa.select(
            positions, _entries.c.value, _entries.c.stamp,
            _entries.c.revision).join(
                _entries, _entries.c.key == positions.c.key))
        return [[(row.term, row.key, Entry((row.value,), row.stamp,
                                           row.revision)) for row in its]
                for its in self._sorted(ranges, rows)]

    def indexes(self, prefix: str) -> list[str]:
        return [row.idx for row in self._query(
            _INDEXES, {'start': prefix, 'stop': prefix + chr(0x10ffff)})]

    def last_number(self) -> int:
        return self._query(sa.select(_numbers.c.put))[0][0]

    def wait(self, number: int, timeout: float) -> int:
        # Changefeeds need a licence; one row of the nearest node does not.
        deadline = time.monotonic() + timeout
        while True:
            last = self.last_number()
            if last > number or time.monotonic() >= deadline:
                return last
            time.sleep(min(_POLL_SECONDS,
                           max(0.0, deadline - time.monotonic())))

    # -- writing ----------------------------------------------------------
    def put(self, key: str, value: bytes, token: Any,
            terms: Iterable[Term], numbered: bool = False,
            life: str | None = None) -> Stored:
        return self._run(functools.partial(
            self._put, key, value, token, list(terms), numbered, life))

    def _put(self, key: str, value: bytes, token: Any, terms: list[Term],
             numbered: bool, life: str | None,
             connection: sa.Connection) -> Stored:
        row = self._locked(connection, key)
        if (row.revision if row else None) != token:
            raise errors.StaleToken(key)
        number = 0
        if numbered or life is not None:
            number, present = self._number(connection, numbered)
            if life not in (None, present):
                raise errors.StaleToken(key)
        wanted = {(t.index, t.value + (b'%016x' % number if t.stamped
                                       else b'')) for t in terms}
        written = {'value': value, 'stamp': number, 'revision': uuid.uuid4(),
                   'terms': msgpack.packb(sorted(wanted))}
        connection.execute(insert(_entries).values(key=key, **written)
                           .on_conflict_do_update(index_elements=['key'],
                                                  set_=written))
        present_terms = _unpacked(row.terms) if row else set()
        self._remove(connection, key, present_terms - wanted)
        added = wanted - present_terms
        if added:
            connection.execute(_terms.insert().values([
                {'idx': index, 'term': term, 'key': key}
                for index, term in sorted(added)]))
        return Stored(number)

    @staticmethod
    def _locked(connection: sa.Connection, key: str) -> Any:
        return connection.execute(sa.select(
            _entries.c.revision, _entries.c.terms).where(
                _entries.c.key == key).with_for_update()).one_or_none()

    @staticmethod
    def _number(connection: sa.Connection, numbered: bool) -> Any:
        number, life = connection.execute(_numbers.update().values(
            put=_numbers.c.put + int(numbered)).returning(
                _numbers.c.put, _numbers.c.life)).one()
        return (number if numbered else 0), life

    @staticmethod
    def _remove(connection: sa.Connection, key: str,
                terms: set[tuple[str, bytes]]) -> None:
        if terms:
            connection.execute(_terms.delete().where(
                _terms.c.key == key, sa.tuple_(
                    _terms.c.idx, _terms.c.term).in_(sorted(terms))))

    def delete(self, key: str, token: Any = None) -> None:
        def work(connection: sa.Connection) -> None:
            row = self._locked(connection, key)
            if token is not None and (row is None or row.revision != token):
                raise errors.StaleToken(key)
            if row is not None:
                connection.execute(_entries.delete().where(
                    _entries.c.key == key))
                self._remove(connection, key, _unpacked(row.terms))
        self._run(work)

    def reset(self) -> None:
        def work(connection: sa.Connection) -> None:
            connection.execute(_entries.delete())
            connection.execute(_terms.delete())
        self._run(work)

    def close(self) -> None:
        self._engine.dispose()


def open_engine(url: str, **requirements: Any) -> CockroachDBEngine:
    """Open ``cockroachdb://user@host:26257/database?sslrootcert=…``.

    Several nodes: ``cockroachdb://user@/database?host=one:26257&host=two:…``.
    """
    try:
        return CockroachDBEngine(sa.make_url(url))
    except sa.exc.ArgumentError as error:
        raise errors.ConfigurationInvalid(
            f'metadata_backend: {error}') from error
