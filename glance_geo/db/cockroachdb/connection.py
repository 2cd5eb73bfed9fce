# SPDX-License-Identifier: Apache-2.0
"""psycopg2's connection with fewer round trips and certain commits.

psycopg2 sends BEGIN, each statement and COMMIT by themselves; over a WAN each
is a wait. Here BEGIN travels with the first statement, a read that is one
statement needs neither BEGIN nor COMMIT, and what makes a commit certain
(``commits``) travels with COMMIT. The DBAPI's semantics stay: nothing outside
a transaction is written, and ``commit`` raises unless all is committed.
"""

import logging
import os
import select
import time
from typing import Any

import psycopg2
from psycopg2 import errorcodes, extensions, sql

from glance_geo.db.cockroachdb import commits, faults, scope
from glance_geo.db.cockroachdb.watchdog import Watchdog

LOG = logging.getLogger(__name__)

_READS = ('SELECT', 'SHOW', 'SET', 'EXPLAIN', 'SAVEPOINT', 'RELEASE',
          'ROLLBACK', 'VALUES')
_SCHEMA = ('CREATE', 'ALTER', 'DROP')
_THERE = (errorcodes.DUPLICATE_TABLE, errorcodes.DUPLICATE_COLUMN,
          errorcodes.DUPLICATE_OBJECT)
_GONE = (errorcodes.UNDEFINED_TABLE, errorcodes.UNDEFINED_COLUMN,
         errorcodes.UNDEFINED_OBJECT)
# What a change of the schema says when it was made already.
_DONE = {'CREATE': _THERE, 'ALTER': _THERE + _GONE[1:], 'DROP': _GONE}
_STALE = ' AS OF SYSTEM TIME follower_read_timestamp()'
_LEVELS = {
    extensions.ISOLATION_LEVEL_READ_UNCOMMITTED: 'READ UNCOMMITTED',
    extensions.ISOLATION_LEVEL_READ_COMMITTED: 'READ COMMITTED',
    extensions.ISOLATION_LEVEL_REPEATABLE_READ: 'REPEATABLE READ',
    extensions.ISOLATION_LEVEL_SERIALIZABLE: 'SERIALIZABLE'}
_MARKERS_KEPT = 64
# An unanswered commit is asked about for so long.
_CERTAINTY_SECONDS = 20.0
_LOST_STATES = ('', errorcodes.STATEMENT_COMPLETION_UNKNOWN,
                errorcodes.QUERY_CANCELED)
_watchdog = Watchdog()
_committing = extensions.connection.autocommit


def _text(query: Any, connection: Any) -> str:
    if isinstance(query, sql.Composable):
        return query.as_string(connection)
    if isinstance(query, bytes):
        return query.decode()
    return query


def verb(query: str) -> str:
    """Return the word that a statement begins with, in upper case."""
    word = query.lstrip(' \t\r\n(').split(None, 1)
    return word[0].rstrip(';').upper() if word else ''


class Cursor(extensions.cursor):
    """Begins transactions when the first statement comes."""

    connection: 'Connection'

    def execute(self, query: Any, vars: Any = None) -> None:
        text = _text(query, self.connection)
        word = verb(text)
        sent = self.connection.before(word) + text
        try:
            with self.connection.watched():
                super().execute(sent, vars)
        except psycopg2.Error as error:
            if not (scope.current().resuming
                    and error.pgcode in _DONE.get(word, ())):
                raise
            LOG.info('Done before: %s', str(error).strip())

    def executemany(self, query: Any, vars_list: Any) -> None:
        text = _text(query, self.connection)
        begin = self.connection.before(verb(text))
        with self.connection.watched():
            if begin:
                super().execute(begin)
            super().executemany(text, vars_list)


class Connection(extensions.connection):
    """A connection that psycopg2 believes to be committing each statement.

    :cvar seconds: limit of one call; 0: none
    :cvar certain: whether commits carry markers
    """

    seconds = 0.0
    certain = False

    def __init__(self, dsn: str, *arguments: Any, **options: Any):
        super().__init__(dsn, *arguments, **options)
        _committing.__set__(self, True)
        self._dsn = dsn
        self._level: str | None = None
        self._autocommit = False
        self._wrote = False
        self._changed_schema = False
        self._markers: list[str] = []
        self._process = os.getpid()
        self.used = time.monotonic()

    def cursor(self, *arguments: Any, **options: Any) -> Any:
        # A cursor that the server keeps needs a transaction that psycopg2
        # began; callers that ask for one get all rows at once.
        options.pop('name', None)
        options.setdefault('cursor_factory', Cursor)
        return super().cursor(None, **options)

    @property
    def autocommit(self) -> bool:
        return self._autocommit

    @autocommit.setter
    def autocommit(self, value: bool) -> None:
        self._autocommit = bool(value)

    @property
    def isolation_level(self) -> Any:
        return extensions.ISOLATION_LEVEL_SERIALIZABLE

    def set_isolation_level(self, level: Any) -> None:
        self._autocommit = level == extensions.ISOLATION_LEVEL_AUTOCOMMIT
        self._level = _LEVELS.get(level)

    def watched(self) -> Any:
        self.used = time.monotonic()
        return _watchdog.over(self.fileno(), 0.0 if self._changed_schema
                              else self.seconds)

    def ask(self, text: str) -> Any:
        """Run a statement outside of any transaction.

        :returns: the first row, None if there is none
        """
        with super().cursor() as cursor, self.watched():
            cursor.execute(text)
            return cursor.fetchone() if cursor.description else None

    def is_lost(self) -> bool:
        """Say whether an idle connection can't be used any more."""
        if self.closed:
            return True
        if self._process != os.getpid():
            self._leave_to_parent()
            return True
        # An idle server says nothing: what can be read is its farewell.
        return bool(select.select([self.fileno()], [], [], 0)[0])

    def _leave_to_parent(self) -> None:
        """Let go of the socket of the process that forked this one: closing
        would say goodbye to the server in its name."""
        with open(os.devnull, 'r+b') as nothing:
            os.dup2(nothing.fileno(), self.fileno())

    # -- transactions -----------------------------------------------------
    def _idle(self) -> bool:
        return (self.get_transaction_status()
                == extensions.TRANSACTION_STATUS_IDLE)

    def before(self, word: str) -> str:
        """Return what must be sent before a statement.

        :raises NeedsTransaction: the call began to read without one
        :raises Committed: the call has what it is for
        """
        if word in _SCHEMA:
            # Each by itself: CockroachDB is limited in what it changes
            # together, and slow.
            self.commit()
            self._unlimited()
            return ''
        if not self._idle():
            self._wrote |= word not in _READS
            return ''
        if self._autocommit:
            return ''
        self._wrote = word not in _READS
        call = scope.current()
        call.statements += 1
        if call.committed and call.reads_back:
            raise faults.Committed('it is read back by itself')
        if call.single and not call.stale:
            if call.statements > 1 or word != 'SELECT':
                raise faults.NeedsTransaction('a second statement')
            return ''
        return (f'BEGIN{f" ISOLATION LEVEL {self._level}" * bool(self._level)}'
                f'{_STALE * (call.stale and word == "SELECT")}; ')

    def _unlimited(self) -> None:
        """Let changes of the schema take the time that they need."""
        if self._changed_schema:
            return
        self._changed_schema = True
        with super().cursor() as cursor:
            cursor.execute('SET statement_timeout = 0')

    def _end(self, text: str) -> str:
        with super().cursor() as cursor, self.watched():
            cursor.execute(text)
            return cursor.statusmessage or ''

    def rollback(self) -> None:
        if not self.closed and not self._idle():
            self._end('ROLLBACK')
        self._wrote = False

    def commit(self) -> None:
        """Commit; when this returns, all is.

        :raises psycopg2.Error: nothing is committed, and never will be
        :raises AmbiguousCommit: no node could be asked whether it is, or
            there are no markers to ask for
        """
        if self._idle():
            return
        wrote, self._wrote = self._wrote, False
        marker = commits.new_marker() if wrote and self.certain else None
        try:
            self._checked(self._end(
                f'{commits.enter(marker)}; COMMIT' if marker else 'COMMIT'))
        except psycopg2.Error as error:
            if not (wrote and self._is_ambiguous(error)):
                raise
            self._resolve(marker, error)
        if marker:
            self._forget_later(marker)
        scope.current().committed |= wrote

    @staticmethod
    def _checked(status: str) -> None:
        if status == 'ROLLBACK':
            raise psycopg2.errors.InFailedSqlTransaction(
                'the transaction had failed; nothing is committed')

    def _is_ambiguous(self, error: psycopg2.Error) -> bool:
        state = error.pgcode or ''
        return (bool(self.closed) or state in _LOST_STATES
                or state.startswith(('08', '57P', '58C')))

    def _resolve(self, marker: str | None, error: psycopg2.Error) -> None:
        """Return if the commit happened; raise if not, or nobody knows."""
        LOG.warning('A commit got no clear answer (%s)%s',
                    str(error).strip(), '; asking for it' * bool(marker))
        happened = None if marker is None else commits.happened(
            self._dsn, marker, time.monotonic() + _CERTAINTY_SECONDS)
        if happened is None:
            raise faults.AmbiguousCommit(error) from error
        LOG.warning('The commit %s', 'had happened' if happened else
                    'had not happened, and never will')
        if not happened:
            self.close()    # whatever it was doing is over
            raise psycopg2.OperationalError(
                'the connection was lost before the commit') from error

    def _forget_later(self, marker: str) -> None:
        """Remove markers in batches: each by itself would be a conflict."""
        self._markers.append(marker)
        if len(self._markers) < _MARKERS_KEPT or self.closed:
            return
        markers, self._markers = self._markers, []
        try:
            self._end(commits.forget(markers))
        except psycopg2.Error as error:
            LOG.info('Commit markers stay for a day: %s', str(error).strip())


def kind(seconds: float, certain: bool) -> type[Connection]:
    """Return the class of an engine's connections."""
    return type('Connection', (Connection,),
                {'seconds': seconds, 'certain': certain})
