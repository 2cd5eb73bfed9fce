# SPDX-License-Identifier: Apache-2.0
"""Checking a chunk store: the index, the packs, the data, the images.

What is found damaged is set aside, so that a read, or a repair, fetches it
from another site.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from glance_geo.core import errors
from glance_geo.store import packs
from glance_geo.store.packs import PackReader, Place
from glance_geo.store.references import COPY

if TYPE_CHECKING:
    from glance_geo.store.chunkstore import ChunkStore

Progress = Callable[[str, int, int], None]
"""Told what is checked, how many units are done, and of how many."""

_ROWS = 5000


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something that is not as it must be.

    :ivar kind: ``index``, ``pack``, ``chunk`` or ``image``
    :ivar what: the pack's file, the chunk's name or the image's id
    :ivar manifest: of an image
    """

    kind: str
    what: str
    text: str
    manifest: bytes | None = None


def _quiet(what: str, done: int, total: int) -> None:
    pass


def check(store: ChunkStore, share: float = 0.0, seed: int | None = None,
          progress: Progress = _quiet) -> Iterator[Problem]:
    """Yield what is wrong with a store. May run beside everything else.

    :param share: of the chunks whose bytes are read and verified, 0 to 1
    """
    for (line,) in store.index.query('PRAGMA quick_check'):
        if line != 'ok':
            yield Problem('index', 'index.db', f'{line}; "glance-geo store '
                          f'rebuild-index" makes it anew')
    yield from _packs(store, progress)
    if share:
        yield from _data(store, share, random.Random(seed), progress)
    yield from _images(store, progress)


def _packs(store: ChunkStore, progress: Progress) -> Iterator[Problem]:
    known = store.index.packs()
    needed: dict[int, int] = dict(store.index.query(
        'SELECT pack, max(offset + stored) FROM chunks GROUP BY pack'))
    for done, (pack, end) in enumerate(sorted(needed.items())):
        progress('packs', done, len(needed))
        file = known.get(pack, str(pack))
        path = store.folder.packs / f'{file}.pack'
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            size = -1
        if size < end and not _moved(store, pack):
            lost = _set_aside(store, pack, size)
            yield Problem('pack', file, (
                'the file is missing' if size < 0 else
                f'cut short: {size} of {end} bytes') +
                f'; {lost} chunks set aside')
        if size >= 0:
            yield from _headers(file, path, end)
    progress('packs', len(needed), len(needed))


def _headers(file: str, path: Path, end: int) -> Iterator[Problem]:
    """Yield the damage before the end of the last chunk that is needed.

    What follows may be torn: it is being written, or was when the power went.
    """
    found: list[tuple[int, str]] = []
    try:
        for _ in packs.entries(path, lambda at, text: found.append(
                (at, text))):
            pass
    except FileNotFoundError:
        return      # compacted meanwhile
    for at, text in found:
        if at < end:
            yield Problem('pack', file, f'{text} at byte {at}')


def _moved(store: ChunkStore, pack: int) -> bool:
    """Say whether a compaction emptied a pack meanwhile."""
    return not store.index.query(
        'SELECT 1 FROM chunks WHERE pack = ? LIMIT 1', (pack,))


def _set_aside(store: ChunkStore, pack: int, size: int) -> int:
    rows = store.index.query(
        'SELECT DISTINCT name, pack, offset, stored, raw, codec FROM chunks '
        'WHERE pack = ? AND offset + stored > ?', (pack, size))
    return sum(store.index.forget(row[0], Place(*row[1:]),
                                  'its pack is missing or cut short')
               for row in rows)


def _data(store: ChunkStore, share: float, rng: random.Random,
          progress: Progress) -> Iterator[Problem]:
    (total,), = store.index.query('SELECT count(*) FROM chunks')
    reader = PackReader(store.folder.packs, store.index.pack_file)
    after, scope, done = b'', -1, 0
    while True:
        rows = store.index.query(
            'SELECT name, scope, pack, offset, stored, raw, codec FROM '
            'chunks WHERE (name, scope) > (?, ?) ORDER BY name, scope '
            'LIMIT ?', (after, scope, _ROWS))
        chosen = {(row[0], row[2:]) for row in rows
                  if share >= 1 or rng.random() < share}
        # In the order of the disk.
        for name, place in sorted(chosen, key=lambda c: c[1]):
            bad = _verify(store, reader, name, Place(*place))
            if bad:
                yield Problem('chunk', name.hex(), bad)
        done += len(rows)
        progress('chunks', done, max(done, total))
        if len(rows) < _ROWS:
            return
        after, scope = rows[-1][:2]


def _verify(store: ChunkStore, reader: PackReader, name: bytes,
            place: Place) -> str | None:
    try:
        stored = reader.read(place.pack, place.offset, place.stored)
        packs.unpack(name, place.codec, stored, place.raw)
    except (errors.ChunkCorrupt, errors.ChunkMissing) as error:
        if store.index.forget(name, place, str(error)):
            return (f'{error} in pack {store.index.pack_file(place.pack)}; '
                    f'set aside')
    return None


def _images(store: ChunkStore, progress: Progress) -> Iterator[Problem]:
    refs = store.refs.all()
    damaged = {name for (name,) in store.index.query(
        'SELECT name FROM damaged')}
    seen = set()
    for done, ref in enumerate(refs):
        progress('images', done, len(refs))
        key = (ref.image, ref.manifest)
        if key in seen:
            continue
        seen.add(key)
        view = store.view([ref.image], ref.manifest)
        missing: list[bytes] = []
        total, everything = 0, True
        for names, whole in view.walk():
            total += len(names)
            missing += view.missing(names)
            everything &= whole
        # A copy may be in part here: that is no damage.
        if ref.nonce == COPY and not damaged & set(missing):
            continue
        if missing or not everything:
            yield Problem(
                'image', ref.image,
                f'{len(missing)} of {total} chunks are missing'
                if everything else 'its manifest is damaged', ref.manifest)
    progress('images', len(refs), len(refs))
