# SPDX-License-Identifier: Apache-2.0
"""Collection: chunks that nothing refers to are removed (P8).

Mark and sweep over the index. What a running session uses is pinned before
it relies on it; what commits while marking keeps its pins until the next
collection. So nothing depends on clocks or on how long anything takes.
"""

from __future__ import annotations

import dataclasses
import fcntl
import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from glance_geo.core import errors
from glance_geo.store.index import COPY

if TYPE_CHECKING:
    from glance_geo.store.chunkstore import ChunkStore

LOG = logging.getLogger(__name__)


@dataclasses.dataclass
class Collected:
    """What a collection removed."""

    chunks: int = 0
    stored_bytes: int = 0
    packs: int = 0
    references: int = 0


@contextmanager
def _alone(store: ChunkStore) -> Iterator[bool]:
    with open(store.folder / 'collect.lock', 'w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def settle(store: ChunkStore, image: str,
           listed: Collection[tuple[bytes, str]], deleted: bool) -> int:
    """Drop an image's references that metadata has given up.

    That a record does not list a location is not enough: it may be about to,
    or may have been restored from before it did. A reference goes when the
    image is deleted, or when its own deletion was asked for and the record
    does not list it.

    :param listed: (manifest, nonce) of the locations in the image's record;
        a copy stays while any location has its manifest
    :param deleted: every image that the id stands for is deleted for good
    :returns: how many references went
    """
    dropped = 0
    manifests = {name for name, _ in listed}
    asked = {(name, nonce) for i, name, nonce in store.index.checks()
             if i == image}
    for _, name, nonce in store.index.refs(image):
        if (name, nonce) in listed or (nonce == COPY and name in manifests):
            continue
        if deleted or (name, nonce) in asked or (
                nonce == COPY and name in {n for n, _ in asked}):
            store.index.drop_ref(image, name, nonce)
            dropped += 1
    return dropped


def _mark(store: ChunkStore, names: Iterator[bytes]) -> set[bytes]:
    live: set[bytes] = set()
    for name in names:
        live.add(name)
        try:
            root = store.manifest(name)
        except (errors.ChunkMissing, errors.ManifestInvalid):
            continue    # a copy whose fetch has not begun
        for ref in root.segments:
            live.add(ref.name)
            try:
                live.update(extent.name for extent in store.segment(ref)
                            if extent.name)
            except (errors.ChunkMissing, errors.ManifestInvalid):
                continue
    return live


def collect(store: ChunkStore) -> Collected:
    """Remove what no reference and no session needs.

    May run beside uploads, reads and fetches; a second collection beside
    this one returns at once.
    """
    result = Collected()
    with _alone(store) as alone:
        if not alone:
            return result
        dead = store.dead_sessions()
        with store.index.transaction() as connection:
            # In one step with reading the references: a session done by now
            # has its reference in the list.
            for session in dead:
                connection.execute('DELETE FROM sessions WHERE id = ?',
                                   (session,))
            connection.execute('DELETE FROM sessions WHERE done = 1')
            connection.execute('DELETE FROM pins WHERE session NOT IN '
                               '(SELECT id FROM sessions)')
            roots = [row[0] for row in connection.execute(
                'SELECT DISTINCT manifest FROM refs')]
            # Packs that exist now and get rows later belong to sessions
            # that live; all others without rows are leftovers.
            leftovers = _packs_without_owner(store)
        live = _mark(store, iter(roots))
        _sweep(store, live, result)
        for pack in leftovers:
            if not store.index.connection().execute(
                    'SELECT 1 FROM chunks WHERE pack = ? LIMIT 1',
                    (pack,)).fetchone():
                store.remove_pack(pack)
                result.packs += 1
        for session in dead:
            store.remove_session_file(session)
        store.remove_unnamed()
    if result.chunks or result.packs:
        LOG.info('Chunk store %s: collected %d chunks, %d bytes, %d packs',
                 store.folder, result.chunks, result.stored_bytes,
                 result.packs)
    return result


def _packs_without_owner(store: ChunkStore) -> list[str]:
    """Return the packs that no live session can be writing.

    A writer holds a lock on its pack's file while it lives.
    """
    free = []
    for path in store.pack_files():
        try:
            with open(path, 'rb') as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                free.append(path.stem)
        except (BlockingIOError, FileNotFoundError):
            continue
    return free


def _sweep(store: ChunkStore, live: set[bytes], result: Collected) -> None:
    for path in store.pack_files():
        pack = path.stem
        rows = store.index.connection().execute(
            'SELECT name, stored FROM chunks WHERE pack = ?',
            (pack,)).fetchall()
        dead = [(name, stored) for name, stored in rows if name not in live]
        if not dead:
            continue
        with store.index.transaction() as connection:
            before = connection.total_changes
            connection.executemany(
                'DELETE FROM chunks WHERE name = ? AND NOT EXISTS '
                '(SELECT 1 FROM pins WHERE pins.name = chunks.name)',
                [(name,) for name, _ in dead])
            removed = connection.total_changes - before
        result.chunks += removed
        if removed == len(dead):
            result.stored_bytes += sum(stored for _, stored in dead)
