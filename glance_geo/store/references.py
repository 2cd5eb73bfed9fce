# SPDX-License-Identifier: Apache-2.0
"""What keeps chunks: references, the deletions asked for, and leases.

A reference is written into a pack as well, so that it survives the index.
"""

from __future__ import annotations

import dataclasses
import struct
import time
from collections.abc import Collection

from glance_geo.core import errors
from glance_geo.core.settling import COPY, given_up
from glance_geo.store.index import ChunkIndex

# How old the time of last use may be before it is written again: seconds.
_USED_GRAIN = 60
_BLOB = struct.Struct('<4s36s32s16s')
_BLOB_MAGIC = b'GGR1'


@dataclasses.dataclass(frozen=True)
class Reference:
    """What keeps one manifest's chunks for one image.

    :ivar scope: number of the scope that its chunks are entered under
    :ivar used: when it was read last, seconds since 1970
    """

    image: str
    manifest: bytes
    nonce: str
    scope: int = 0
    used: int = 0


def blob(image: str, manifest: bytes, nonce: str, project: str) -> bytes:
    """Return an upload's reference as it is stored in a pack."""
    return _BLOB.pack(_BLOB_MAGIC, image.encode(), manifest,
                      nonce.encode()) + project.encode()


def parse_blob(data: bytes) -> tuple[str, bytes, str, str]:
    """Return (image, manifest, nonce, project).

    :raises ManifestInvalid: no reference
    """
    try:
        magic, image, manifest, nonce = _BLOB.unpack_from(data)
        if magic != _BLOB_MAGIC:
            raise ValueError
        return (image.rstrip(b'\0').decode(), manifest,
                nonce.rstrip(b'\0').decode(), data[_BLOB.size:].decode())
    except (struct.error, ValueError) as error:
        raise errors.ManifestInvalid('not a reference') from error


class References:
    """The references of a chunk store."""

    def __init__(self, index: ChunkIndex):
        self._index = index

    def all(self, image: str | None = None) -> list[Reference]:
        """Return the references, of one image or of all."""
        return [Reference(*row) for row in self._index.query(
            'SELECT image, manifest, nonce, scope, used FROM refs '
            'WHERE ?1 IS NULL OR image = ?1', (image,))]

    def scopes(self, images: Collection[str], manifest: bytes) -> list[int]:
        """Return the scopes under which images keep a manifest here."""
        marks = ','.join('?' * len(images))
        return [row[0] for row in self._index.query(
            'SELECT DISTINCT scope FROM refs WHERE image IN '
            f'({marks}) AND manifest = ?', [*images, manifest])]

    def finish(self, session: str, image: str, manifest: bytes, nonce: str,
               scope: int, stored_as: bytes | None) -> None:
        """Enter a writer's reference and end the writer, in one step."""
        with self._index.transaction() as connection:
            if connection.execute(
                    'SELECT 1 FROM refs WHERE image = ? AND manifest = ? AND '
                    'nonce = ?', (image, manifest, nonce)).fetchone():
                # Its rows of another scope are not needed any more.
                self._index.more_garbage(connection)
            connection.execute(
                'INSERT OR REPLACE INTO refs VALUES (?, ?, ?, ?, ?, ?)',
                (image, manifest, nonce, scope, stored_as,
                 int(time.time())))
            connection.execute('DELETE FROM sessions WHERE id = ?',
                               (session,))

    def enter(self, image: str, manifest: bytes, nonce: str,
              scope: int) -> None:
        """Enter a reference whose chunks are in a scope."""
        with self._index.transaction() as connection:
            connection.execute(
                'INSERT OR IGNORE INTO refs VALUES (?, ?, ?, ?, NULL, ?)',
                (image, manifest, nonce, scope, int(time.time())))

    def keep_copy(self, image: str, manifest: bytes, scope: int) -> None:
        """Enter the reference of a copy, unless there is any reference."""
        if self.scopes([image], manifest):
            return
        self.enter(image, manifest, COPY, scope)

    def used(self, image: str, manifest: bytes) -> None:
        """Note that an image is read now, if that is news."""
        now = int(time.time())
        stale = self._index.query(
            'SELECT 1 FROM refs WHERE image = ? AND manifest = ? AND '
            'used < ? LIMIT 1', (image, manifest, now - _USED_GRAIN))
        if stale:
            with self._index.transaction(durable=False) as connection:
                connection.execute(
                    'UPDATE refs SET used = ? WHERE image = ? AND '
                    'manifest = ?', (now, image, manifest))

    def drop(self, image: str, manifest: bytes, nonce: str) -> None:
        with self._index.transaction() as connection:
            for table in ('refs', 'checks'):
                connection.execute(
                    f'DELETE FROM {table} WHERE image = ? '  # noqa: S608
                    'AND manifest = ? AND nonce = ?',
                    (image, manifest, nonce))
            if not connection.execute(
                    'SELECT 1 FROM refs WHERE image = ? AND manifest = ?',
                    (image, manifest)).fetchone():
                connection.execute('DELETE FROM leases WHERE image = ? AND '
                                   'manifest = ?', (image, manifest))
            self._index.more_garbage(connection)

    # -- deletions --------------------------------------------------------
    def queue_check(self, image: str, manifest: bytes, nonce: str) -> None:
        """Ask for the removal of a reference, if metadata agrees."""
        with self._index.transaction() as connection:
            connection.execute('INSERT OR IGNORE INTO checks VALUES '
                               '(?, ?, ?)', (image, manifest, nonce))

    def settle(self, image: str, listed: Collection[tuple[bytes, str]],
               deleted: bool) -> int:
        """Drop an image's references that metadata has given up.

        :param listed: (manifest, nonce) of the locations in the image's
            record
        :param deleted: every image that the id stands for is deleted for
            good
        :returns: how many references went
        """
        asked = self._index.query(
            'SELECT manifest, nonce FROM checks WHERE image = ?', (image,))
        gone = given_up([(ref.manifest, ref.nonce)
                         for ref in self.all(image)], listed,
                        {tuple(row) for row in asked}, deleted)
        for pair in gone:
            self.drop(image, *pair)
        return len(gone)

    # -- leases -----------------------------------------------------------
    def lease(self, image: str, manifest: bytes, node: str) -> None:
        """Promise another node, durably, to keep an image's copy."""
        with self._index.transaction() as connection:
            connection.execute(
                'INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?)',
                (image, manifest, node, int(time.time())))

    def leases(self) -> list[tuple[str, bytes, str, int]]:
        """Return (image, manifest, node, when granted)."""
        return self._index.query(
            'SELECT image, manifest, node, granted FROM leases')
