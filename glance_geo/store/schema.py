# SPDX-License-Identifier: Apache-2.0
"""The index's tables, and how an older index becomes this version's.

``chunks``   (name, scope) -> place in a pack, and the epoch of its last use
``packs``    number -> file, and how much of it was alive when last counted
``scopes``   number -> project; 0 is what all projects share
``refs``     what keeps a manifest's chunks: an upload's location or a copy
``sessions`` live writers, with the epoch in which each began
``checks``   deletions that metadata has yet to confirm
``leases``   copies that this node keeps because another gave up its own
``damaged``  chunks set aside, with where they were
``meta``     the epoch, what the last collection counted, and how often
             something became garbage: now, and when that one began
"""

import sqlite3
from pathlib import Path

from glance_geo.core import errors

VERSION = 2
SHARED = 0

_TABLES = """
CREATE TABLE scopes (id INTEGER PRIMARY KEY, project TEXT NOT NULL UNIQUE);
INSERT INTO scopes VALUES (0, '');
CREATE TABLE packs (id INTEGER PRIMARY KEY AUTOINCREMENT,
    file TEXT NOT NULL UNIQUE, live INTEGER);
CREATE TABLE chunks (
    name BLOB NOT NULL, scope INTEGER NOT NULL, pack INTEGER NOT NULL,
    offset INTEGER NOT NULL, stored INTEGER NOT NULL, raw INTEGER NOT NULL,
    codec INTEGER NOT NULL, epoch INTEGER NOT NULL,
    PRIMARY KEY (name, scope)) WITHOUT ROWID;
CREATE TABLE refs (
    image TEXT NOT NULL, manifest BLOB NOT NULL, nonce TEXT NOT NULL,
    scope INTEGER NOT NULL, blob BLOB, used INTEGER NOT NULL,
    PRIMARY KEY (image, manifest, nonce)) WITHOUT ROWID;
CREATE TABLE sessions (id TEXT PRIMARY KEY, epoch INTEGER NOT NULL)
    WITHOUT ROWID;
CREATE TABLE checks (image TEXT NOT NULL, manifest BLOB NOT NULL,
    nonce TEXT NOT NULL, PRIMARY KEY (image, manifest, nonce))
    WITHOUT ROWID;
CREATE TABLE leases (image TEXT NOT NULL, manifest BLOB NOT NULL,
    node TEXT NOT NULL, granted INTEGER NOT NULL,
    PRIMARY KEY (image, manifest, node)) WITHOUT ROWID;
CREATE TABLE damaged (name BLOB NOT NULL, pack INTEGER NOT NULL,
    offset INTEGER NOT NULL, why TEXT NOT NULL, noticed INTEGER NOT NULL,
    PRIMARY KEY (pack, offset)) WITHOUT ROWID;
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
INSERT INTO meta VALUES ('epoch', 1), ('garbage', 1), ('collected', 0);
"""

# Version 1 had one scope, pack files named in each row, and pins.
_FROM_1 = """
DROP INDEX pins_by_name;
DROP TABLE pins;
DROP TABLE sessions;
DROP INDEX chunks_by_pack;
ALTER TABLE chunks RENAME TO chunks_1;
ALTER TABLE refs RENAME TO refs_1;
ALTER TABLE checks RENAME TO checks_1;
{tables}
INSERT INTO packs (file) SELECT DISTINCT pack FROM chunks_1;
INSERT INTO chunks SELECT name, 0, packs.id, offset, stored, raw, codec, 0
    FROM chunks_1 JOIN packs ON packs.file = chunks_1.pack ORDER BY name;
INSERT INTO refs SELECT image, manifest, nonce, 0, NULL, 0 FROM refs_1;
INSERT INTO checks SELECT image, manifest, nonce FROM checks_1;
DROP TABLE chunks_1;
DROP TABLE refs_1;
DROP TABLE checks_1;
"""


def prepare(connection: sqlite3.Connection, path: Path) -> bool:
    """Make or upgrade the tables, within the caller's transaction.

    :returns: whether an older index was upgraded
    :raises StoreUnusable: an index that this release does not read
    """
    (version,) = connection.execute('PRAGMA user_version').fetchone()
    if version == VERSION:
        return False
    script = {0: _TABLES, 1: _FROM_1.format(tables=_TABLES)}.get(version)
    if script is None:
        raise errors.StoreUnusable(
            f'{path} has index version {version}; this release reads '
            f'{VERSION} and upgrades 1')
    for statement in script.split(';'):
        connection.execute(statement)
    connection.execute(f'PRAGMA user_version={VERSION}')
    return version == 1
