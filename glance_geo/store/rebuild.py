# SPDX-License-Identifier: Apache-2.0
"""Making the index anew from the packs.

Uploads wrote their references into the packs; copies are known from metadata
alone. Everything is entered under a scope of its own first, and each image
then takes what it refers to; the next collection removes the rest.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from glance_geo.core import errors
from glance_geo.store import packs, references
from glance_geo.store.check import Progress, _quiet
from glance_geo.store.chunkstore import ChunkStore
from glance_geo.store.collect import alone
from glance_geo.store.folder import sync_folder
from glance_geo.store.packs import Entry
from glance_geo.store.references import COPY

LOG = logging.getLogger(__name__)

_NEW = 'index.db.new'
# No project can be called so.
_FOUND = '\n(found in packs)'
_ENTRIES = 20_000


@dataclasses.dataclass(frozen=True)
class Listed:
    """What metadata says of one location: whose it is, whether uploaded here.
    """

    image: str
    manifest: bytes
    nonce: str
    project: str


@dataclasses.dataclass
class Rebuilt:
    """What a rebuild found.

    :ivar unknown: images among them that metadata does not know: deleted
        before, or more recent than the metadata
    """

    packs: int = 0
    chunks: int = 0
    images: int = 0
    unknown: int = 0
    damaged: int = 0


def rebuild(path: str | os.PathLike[str], owner: str,
            listed: Iterable[Listed], progress: Progress = _quiet) -> Rebuilt:
    """Replace a store's index by one made from its packs.

    Nothing else may use the store meanwhile. The old index is kept beside.

    :param listed: the images whose bits may be here, as metadata knows them
    :raises StoreUnusable: something uses the store
    """
    folder = Path(path)
    _remove(folder / _NEW)
    result = Rebuilt()
    store = ChunkStore(path, owner, index=_NEW)
    with _unused(store):
        found = _scan(store, result, progress)
        refs = {(image, manifest, nonce): (project, False)
                for image, manifest, nonce, project in found}
        # Metadata knows better whose an image is now.
        for item in listed:
            refs[item.image, item.manifest, item.nonce] = (item.project,
                                                           True)
        _enter(store, refs, result, progress)
        store.index.query('PRAGMA wal_checkpoint(TRUNCATE)')
        store.close()
        _swap(folder)
    LOG.info('Chunk store %s: index made anew: %s', path, result)
    return result


@contextmanager
def _unused(store: ChunkStore) -> Iterator[None]:
    with alone(store) as free:
        used = [path for path in store.folder.sessions.iterdir()
                if path.suffix != packs.UNNAMED and store.alive(path.name)]
        if not free or used:
            raise errors.StoreUnusable(
                f'{store.path} is in use: stop glance-api and '
                f'glance-geo-agent of this node first')
        yield


def _remove(path: Path) -> None:
    for suffix in ('', '-wal', '-shm'):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _swap(folder: Path) -> None:
    index = folder / 'index.db'
    kept = f'index.db.{time.strftime("%Y%m%dT%H%M%S")}'
    for suffix in ('-wal', '-shm', ''):
        old = folder / f'index.db{suffix}'
        if old.exists():
            old.rename(folder / f'{kept}{suffix}')
    (folder / _NEW).rename(index)
    _remove(folder / _NEW)
    sync_folder(folder)


def _scan(store: ChunkStore, result: Rebuilt, progress: Progress,
          ) -> list[tuple[str, bytes, str, str]]:
    """Enter every entry of every pack; return the references among them."""
    scope = store.index.scope(_FOUND)
    refs: list[tuple[str, bytes, str, str]] = []
    files = store.pack_files()

    def damage(offset: int, text: str) -> None:
        result.damaged += 1
        LOG.error('Pack %s, byte %d: %s', path.name, offset, text)
    for done, path in enumerate(files):
        progress('packs', done, len(files))
        result.packs += 1
        entries = packs.entries(path, damage)
        while batch := list(itertools.islice(entries, _ENTRIES)):
            store.index.add(0, scope, path.stem, batch)
            result.chunks += len(batch)
            refs += _references(path, batch)
    progress('packs', len(files), len(files))
    return refs


def _references(path: Path, batch: list[Entry],
                ) -> Iterator[tuple[str, bytes, str, str]]:
    with open(path, 'rb') as file:
        for entry in batch:
            if entry.kind == packs.REFERENCE:
                stored = os.pread(file.fileno(), entry.stored, entry.offset)
                try:
                    yield references.parse_blob(packs.unpack(
                        entry.name, entry.codec, stored, entry.raw))
                except (errors.ChunkCorrupt, errors.ManifestInvalid) as error:
                    LOG.error('Pack %s: a reference is lost: %s', path.name,
                              error)


def _enter(store: ChunkStore,
           refs: dict[tuple[str, bytes, str], tuple[str, bool]],
           result: Rebuilt, progress: Progress) -> None:
    """Give each image what it refers to."""
    scope = store.index.scope(_FOUND)
    images: set[str] = set()
    unknown: set[str] = set()
    for done, ((image, manifest, nonce), (project, listed)) in enumerate(
            refs.items()):
        progress('images', done, len(refs))
        if nonce == COPY and not store.index.places([manifest], [scope]):
            continue    # no part of it is here
        store.refs.enter(image, manifest, nonce, scope)
        here, total, _ = store.view([image], manifest).held()
        if not listed and here != total:
            # Of a deleted image whose chunks have gone in part.
            store.refs.drop(image, manifest, nonce)
            continue
        store.share(image, project)
        (images if listed else unknown).add(image)
    result.images = len(images | unknown)
    result.unknown = len(unknown - images)
    progress('images', len(refs), len(refs))
