# SPDX-License-Identifier: Apache-2.0
"""The server's errors as oslo.db's, by SQLSTATE.

oslo.db goes by texts, and by the dialect's name: without these, a
serialization failure is an unknown error that nothing retries.
"""

import re
from typing import Any, NoReturn

from oslo_db import exception
from oslo_db.sqlalchemy import exc_filters
from sqlalchemy import exc as sa_exc

from glance_geo.db.cockroachdb import faults

DIALECT = 'cockroachdb'

_RETRY = ('40001', '40P01')
# CockroachDB's own: range unavailable, connection between nodes lost,
# and the time limit of a statement or a transaction.
_UNANSWERED = ('58C00', '58C01', '57014', '25P03', '25P04')
_LOST = ('08', '57P')
_KEY = re.compile(r'Key \((?P<columns>.*?)\)=\((?P<values>.*)\)', re.DOTALL)
_ADVICE = (
    ('does not exist', 'create it, and let the user in, as the operator '
     'guide says'),
    ('certificate', 'check sslrootcert, sslcert and sslkey in the URL'),
    ('not support SSL', 'the nodes must serve TLS, or the URL say '
     'sslmode=disable'),
    ('SSL error', 'check sslrootcert, sslcert and sslkey in the URL'),
    ('authentication failed', 'check user, password and certificate'),
    ('license', 'leave the feature out, or enter a licence'),
    ('refused', 'is the node up, and the port right?'))
# How libpq begins when it finds no server, which has no SQLSTATE.
_NO_CONNECTION = ('connection to server', 'could not translate host',
                  'could not connect')
_registered = False


def sqlstate(error: BaseException) -> str:
    """Return an error's SQLSTATE, '' if it has none."""
    return getattr(getattr(error, 'orig', error), 'pgcode', None) or ''


def _first_line(error: BaseException) -> str:
    return str(getattr(error, 'orig', error)).strip().partition('\n')[0]


def explain(error: BaseException) -> str:
    """Return one line for people: what failed, and what to do."""
    cause = getattr(error, 'inner_exception', None) or error
    line = _first_line(cause).strip()
    for text, advice in _ADVICE:
        if text in line:
            return f'{line}: {advice}'
    return line


def _columns(text: str) -> list[str]:
    return [name.strip().strip('"') for name in text.split(',')]


def _duplicate(error: Any, diagnosis: Any) -> NoReturn:
    found = _KEY.search(diagnosis.message_detail or '')
    raise exception.DBDuplicateEntry(
        _columns(found['columns']) if found
        else [diagnosis.constraint_name], error,
        found['values'] if found else None)


def _reference(error: Any, diagnosis: Any) -> NoReturn:
    detail = diagnosis.message_detail or ''
    found = _KEY.search(detail)
    table = re.search(r'table "([^"]+)"', detail)
    raise exception.DBReferenceError(
        diagnosis.table_name, diagnosis.constraint_name,
        found['columns'] if found else None, table[1] if table else None,
        error)


def translate(error: Any, match: Any, engine_name: str,
              is_disconnect: bool) -> None:
    """Raise oslo.db's error for a server's; return if there is none.

    The signature is that of oslo.db's filters.
    """
    state = sqlstate(error)
    diagnosis: Any = getattr(getattr(error, 'orig', None), 'diag', None)
    if state in _RETRY or 'restart transaction' in _first_line(error):
        raise exception.DBDeadlock(error)
    if state == '40003':
        raise faults.AmbiguousCommit(error)
    if state in _UNANSWERED:
        raise faults.Unanswered(error)
    if state == '23505':
        _duplicate(error, diagnosis)
    if state == '23503':
        _reference(error, diagnosis)
    if state == '23514':
        raise exception.DBConstraintError(
            diagnosis.table_name, diagnosis.constraint_name, error)
    if state.startswith(_LOST) or (
            not state and _first_line(error).startswith(_NO_CONNECTION)):
        raise exception.DBConnectionError(error)


def register() -> None:
    """Register with oslo.db; may be repeated."""
    global _registered
    if not _registered:
        exc_filters.filters(DIALECT, sa_exc.DBAPIError, r'.*')(translate)
        _registered = True
