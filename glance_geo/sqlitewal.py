# SPDX-License-Identifier: Apache-2.0
"""Switching a SQLite database to write-ahead logging.

What the metadata engine and the chunk store's index share: both are opened by
several processes of a node, which may all start for the first time at once.
"""

import sqlite3
import time


def use(connection: sqlite3.Connection, seconds: float) -> None:
    """Switch a database to WAL, if it is not; may be repeated.

    SQLite does not wait for others who do the same at the same time, as it
    does for other locks.

    :param seconds: to wait for others
    :raises sqlite3.Error: it can't be switched
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            connection.execute('PRAGMA journal_mode=WAL')
            return
        except sqlite3.OperationalError as error:
            if (not error.sqlite_errorname.startswith('SQLITE_BUSY')
                    or time.monotonic() > deadline):
                raise
            time.sleep(0.02)
