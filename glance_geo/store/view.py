# SPDX-License-Identifier: Apache-2.0
"""What the chunk store holds of one image: its chunks, verified.

An image sees the chunks that are entered for it, under its project's scope;
that another project has the same bytes makes no difference to it (P7).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from glance_geo.core import errors, manifest
from glance_geo.core.manifest import Extent, Manifest, SegmentRef
from glance_geo.store import packs
from glance_geo.store.packs import PackReader, Place

if TYPE_CHECKING:
    from glance_geo.store.chunkstore import ChunkStore

LOG = logging.getLogger(__name__)

# Chunks of one upload lie behind each other: read them in one piece, over
# the headers between them.
_GAP = 1024
_READ_MAXIMUM = 4 * 1024 * 1024


def _runs(wanted: Iterable[tuple[bytes, Place]],
          ) -> Iterable[list[tuple[bytes, Place]]]:
    """Group chunks that lie behind each other in one pack."""
    run: list[tuple[bytes, Place]] = []
    for name, place in sorted(wanted, key=lambda w: (w[1].pack, w[1].offset)):
        if run:
            first, last = run[0][1], run[-1][1]
            end = last.offset + last.stored
            if (place.pack != first.pack or place.offset - end > _GAP
                    or place.offset + place.stored - first.offset
                    > _READ_MAXIMUM):
                yield run
                run = []
        run.append((name, place))
    if run:
        yield run


class ChunkView:
    """The chunks of one manifest, as some image ids keep it.

    :param images: the ids that its references may be under
    """

    def __init__(self, store: ChunkStore, images: Collection[str],
                 name: bytes):
        self._store = store
        self._images = images
        self._name = name
        self._reader = PackReader(store.folder.packs, store.index.pack_file)

    def places(self, names: Iterable[bytes]) -> dict[bytes, Place]:
        """Return where those of the chunks are that are here."""
        # Asked each time: a fetch may enter the reference meanwhile.
        scopes = self._store.refs.scopes(self._images, self._name)
        return self._store.index.places(names, scopes)

    def missing(self, names: Iterable[bytes]) -> list[bytes]:
        """Return those of the chunks that are not here, each once."""
        names = list(dict.fromkeys(names))
        present = self.places(names)
        return [name for name in names if name not in present]

    def load(self, names: Sequence[bytes],
             ) -> tuple[dict[bytes, bytes], list[bytes]]:
        """Return (verified chunks, those that are missing or corrupt)."""
        wanted = list(dict.fromkeys(names))
        places = self.places(wanted)
        found: dict[bytes, bytes] = {}
        for run in _runs(places.items()):
            self._load_run(run, found)
        lost = [name for name in places if name not in found]
        if lost:
            # Moved by a compaction meanwhile, or damaged.
            for name, place in self.places(lost).items():
                try:
                    found[name] = self._one(name, place)
                except errors.ChunkMissing:
                    continue
        return found, [name for name in wanted if name not in found]

    def _load_run(self, run: list[tuple[bytes, Place]],
                  found: dict[bytes, bytes]) -> None:
        start = run[0][1].offset
        end = run[-1][1].offset + run[-1][1].stored
        try:
            data = self._reader.read(run[0][1].pack, start, end - start)
        except errors.ChunkMissing:
            return
        for name, place in run:
            at = place.offset - start
            stored = data[at:at + place.stored]
            try:
                found[name] = packs.unpack(name, place.codec, stored,
                                           place.raw)
            except errors.ChunkCorrupt:
                continue

    def _one(self, name: bytes, place: Place) -> bytes:
        try:
            stored = self._reader.read(place.pack, place.offset,
                                             place.stored)
            if len(stored) != place.stored:
                raise errors.ChunkCorrupt(
                    f'chunk {name.hex()}: its pack is cut short')
            return packs.unpack(name, place.codec, stored, place.raw)
        except (errors.ChunkCorrupt, errors.ChunkMissing) as error:
            # Set aside, so that it can be fetched again.
            if self._store.index.forget(name, place, str(error)):
                LOG.error('Chunk store %s, image %s: %s; set aside',
                          self._store.path, min(self._images), error)
            raise errors.ChunkMissing(str(error)) from error

    def read(self, name: bytes) -> bytes:
        """Return a chunk's bytes, verified.

        :raises ChunkMissing: not here, or set aside just now as corrupt
        """
        found, _ = self.load([name])
        if name not in found:
            raise errors.ChunkMissing(f'chunk {name.hex()} is not here')
        return found[name]

    def manifest(self) -> Manifest:
        """Return the parsed root.

        :raises ChunkMissing: the root is not here
        :raises ManifestInvalid: it does not add up
        """
        return manifest.parse_root(self.read(self._name))

    def segment(self, ref: SegmentRef) -> list[Extent]:
        """Return a segment's extents; raises as ``manifest`` does."""
        return manifest.parse_segment(ref, self.read(ref.name))

    def walk(self) -> Iterator[tuple[list[bytes], bool]]:
        """Yield the names of the manifest's own parts and chunks, segment by
        segment, and whether they are all that the segment has.

        So that an image of any size needs the memory of a segment.
        """
        try:
            root = self.manifest()
        except (errors.ChunkMissing, errors.ManifestInvalid):
            yield [self._name], False
            return
        yield [self._name], True
        for ref in root.segments:
            try:
                names = manifest.parse_names(ref, self.read(ref.name))
            except (errors.ChunkMissing, errors.ManifestInvalid):
                yield [ref.name], False
            else:
                yield [ref.name, *dict.fromkeys(names)], True

    def held(self) -> tuple[int, int, int]:
        """Return how much of the manifest is here.

        Its own parts count as chunks, so that an image of zeros can be
        whole too. A chunk counts once for each segment that has it.

        :returns: (chunks here, chunks in all, stored bytes here); chunks in
            all is 0 while the manifest itself is not whole
        """
        here = total = stored = 0
        everything = True
        for names, whole in self.walk():
            places = self.places(names)
            here += len(places)
            total += len(names)
            stored += sum(place.stored for place in places.values())
            everything &= whole
        return here, total if everything else 0, stored
