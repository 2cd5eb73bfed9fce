# SPDX-License-Identifier: Apache-2.0
"""Finding out whether a commit whose answer was lost has happened.

Every transaction that writes also enters a marker of its own, in the same
message as its COMMIT. When the answer is lost, or says that the result is
ambiguous, another connection enters the same marker as a *fence*: if the
marker was there, the transaction was committed; if the fence went in, it was
not, and never will be, since its own marker is refused from then on.
"""

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import psycopg2
from psycopg2 import errorcodes

LOG = logging.getLogger(__name__)

TABLE = 'geo_commits'
CREATE = (f'CREATE TABLE IF NOT EXISTS {TABLE} (id UUID PRIMARY KEY, '
          'fence BOOLEAN NOT NULL DEFAULT false, '
          'at TIMESTAMPTZ NOT NULL DEFAULT now())')
_EXISTS = ("SELECT 1 FROM information_schema.tables WHERE table_name = "
           f"'{TABLE}' AND table_schema = current_schema()")
_KEPT = '1 day'
_RETRY_SECONDS = 0.2


def new_marker() -> str:
    return str(uuid.uuid4())


def enter(marker: str) -> str:
    """Return the statement by which a transaction enters its marker."""
    return f"INSERT INTO {TABLE} (id) VALUES ('{marker}')"


def forget(markers: Sequence[str]) -> str:
    """Return the statement that removes markers nobody will ask for."""
    listed = ', '.join(f"'{marker}'" for marker in markers)
    return f'DELETE FROM {TABLE} WHERE id IN ({listed})'


def prepare(ask: Callable[[str], Any]) -> bool:
    """Make the markers' table; say whether there is one.

    :param ask: runs one statement by itself
    :raises psycopg2.Error: it could not be made, for a reason that may pass
    """
    if ask(_EXISTS):
        try:
            ask(f'DELETE FROM {TABLE} WHERE at < now() - '
                f"INTERVAL '{_KEPT}'")
        except psycopg2.Error as error:
            LOG.info('Old commit markers stay for now: %s',
                     str(error).strip())
        return True
    try:
        ask(CREATE)
        return True
    except psycopg2.Error as error:
        if ask(_EXISTS):    # another process was faster
            return True
        if error.pgcode != errorcodes.INSUFFICIENT_PRIVILEGE:
            raise
        LOG.warning(
            'Commits whose answer is lost stay ambiguous: table %s is '
            'missing and can not be made (%s). Run "glance-geo db sync" as '
            'the owner of the database', TABLE, str(error).strip())
        return False


def happened(dsn: str, marker: str, deadline: float,
             connect: Any = psycopg2.connect) -> bool | None:
    """Say whether the transaction with a marker was committed.

    What is answered stays true. May be repeated.

    :param deadline: by the monotonic clock
    :returns: None if no node answered until then
    """
    while True:
        try:
            connection = connect(dsn)
            try:
                connection.autocommit = True
                with connection.cursor() as cursor:
                    cursor.execute(
                        f'INSERT INTO {TABLE} (id, fence) VALUES (%s, true) '
                        'ON CONFLICT (id) DO NOTHING', (marker,))
                    cursor.execute(f'SELECT fence FROM {TABLE} WHERE id = %s',
                                   (marker,))
                    (fence,) = cursor.fetchone()
                    return not fence
            finally:
                connection.close()
        except psycopg2.Error as error:
            LOG.info('Asking for commit %s: %s', marker, str(error).strip())
        if time.monotonic() > deadline:
            return None
        time.sleep(_RETRY_SECONDS)
