# SPDX-License-Identifier: Apache-2.0
"""What an upload could have saved: for the log, so that somebody can act.

Compressed qcow2 hides what images have in common; converted to raw on import
they share it again. A raw image carries what its file system has freed unless
it was trimmed. Both are estimated from a sample, and never fail an upload.
"""

from __future__ import annotations

import dataclasses
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence

import zstandard

from glance_geo.core.chunker import Chunker, Hole
from glance_geo.core.manifest import name_of
from glance_geo.store import packs

_QCOW2 = b'QFI\xfb'
_COMPRESSED = 1 << 62
_OFFSET = (1 << 56) - (1 << 9)
_L1_MAXIMUM = 65536
_SAMPLES = 16
_RUN = 16
_ZSTD_TYPE = 1
_EXT_MAGIC = 0xEF53
_EXT_64BIT = 0x80
_WORTH = 16 * 1024 * 1024

Read = Callable[[int, int], bytes]
"""Reads so many bytes of the image from an offset; fewer at its end."""
Known = Callable[[Sequence[bytes]], 'set[bytes]']
"""Returns which chunks the image's project has here already."""


@dataclasses.dataclass(frozen=True)
class Facts:
    """What an upload was.

    :ivar data: bytes without holes
    :ivar new: stored bytes that were new
    """

    size: int
    data: int
    new: int


def advise(facts: Facts, read: Read, known: Known) -> str | None:
    """Return a sentence about what could have been saved, if much."""
    if read(0, 4) == _QCOW2:
        return _of_qcow2(facts, read, known)
    return _of_file_systems(facts, read)


def _mib(size: float) -> str:
    return f'{size / 1048576:.0f} MiB'


# -- compressed qcow2 --------------------------------------------------------
def _of_qcow2(facts: Facts, read: Read, known: Known) -> str | None:
    head = read(0, 112)
    if len(head) < 104:
        return None
    version, = struct.unpack_from('>I', head, 4)
    bits, = struct.unpack_from('>I', head, 20)
    entries, l1 = struct.unpack_from('>IQ', head, 36)
    zstd = (version >= 3 and len(head) > 104
            and struct.unpack_from('>Q', head, 72)[0] & 8
            and head[104] == _ZSTD_TYPE)
    if not 9 <= bits <= 21 or entries > _L1_MAXIMUM:
        return None
    clusters = _compressed_clusters(read, l1, entries, bits)
    if not clusters:
        return None
    inflate = _inflate_zstd if zstd else _inflate
    before = after = 0
    for run in _sample(clusters):
        guest = b''
        for offset, length in run:
            before += length
            guest += inflate(read(offset, length), 1 << bits)
        after += _stored(guest, known)
    if not before:
        return None
    total = sum(length for _, length in clusters)
    return (f'compressed qcow2, stored as it came: {_mib(facts.new)} were '
            f'new. Converted to raw on import (image_conversion) it would '
            f'have added about {_mib(total * after / before)}, and shared '
            f'more with images to come')


def _compressed_clusters(read: Read, l1: int, entries: int,
                         bits: int) -> list[tuple[int, int]]:
    """Return (offset, bytes) of each compressed cluster, in guest order."""
    found = []
    shift = 62 - (bits - 8)
    table = read(l1, entries * 8)
    for (l2,) in struct.iter_unpack('>Q', table[:len(table) // 8 * 8]):
        if not l2 & _OFFSET:
            continue
        cluster = read(l2 & _OFFSET, 1 << bits)
        for (entry,) in struct.iter_unpack('>Q',
                                           cluster[:len(cluster) // 8 * 8]):
            if entry & _COMPRESSED:
                offset = entry & ((1 << shift) - 1)
                sectors = (entry & (_COMPRESSED - 1)) >> shift
                # To the end of the last sector; what follows is ignored.
                found.append((offset, (sectors + 1) * 512 - offset % 512))
    return found


def _sample(clusters: list[tuple[int, int]],
            ) -> Iterator[list[tuple[int, int]]]:
    step = max(_RUN, len(clusters) // _SAMPLES)
    for start in range(0, len(clusters), step):
        yield clusters[start:start + _RUN]


def _inflate(data: bytes, size: int) -> bytes:
    try:
        return zlib.decompressobj(-15).decompress(data, size)
    except zlib.error:
        return b''


def _inflate_zstd(data: bytes, size: int) -> bytes:
    try:
        return zstandard.ZstdDecompressor().decompressobj().decompress(
            data)[:size]
    except zstandard.ZstdError:
        return b''


def _stored(guest: bytes, known: Known) -> int:
    chunker = Chunker()
    pieces = {name_of(piece): piece
              for piece in [*chunker.feed(guest), *chunker.finish()]
              if not isinstance(piece, Hole)}
    here = known(list(pieces))
    return sum(len(packs.compress(piece)[1])
               for name, piece in pieces.items() if name not in here)


# -- file systems that were not trimmed --------------------------------------
def _of_file_systems(facts: Facts, read: Read) -> str | None:
    found = [used for start in _partitions(read)
             if (used := _ext_used(read, start)) is not None]
    freed = facts.data - sum(found)
    if not found or freed < max(_WORTH, facts.data // 10):
        return None
    return (f'about {_mib(freed)} of {_mib(facts.data)} of data are in '
            f'blocks that its file system has freed: "fstrim" in the guest '
            f'before the upload would have left them out')


def _partitions(read: Read) -> list[int]:
    """Return where file systems may begin."""
    starts = [0]
    sector = read(0, 512)
    if sector[510:512] != b'\x55\xaa':
        return starts
    header = read(512, 92)
    if header.startswith(b'EFI PART'):
        table, = struct.unpack_from('<Q', header, 72)
        count, size = struct.unpack_from('<II', header, 80)
        if count <= 256 and 128 <= size <= 512:
            entries = read(table * 512, count * size)
            starts += [struct.unpack_from('<Q', entries, at + 32)[0] * 512
                       for at in range(0, len(entries) - size + 1, size)
                       if entries[at:at + 16].strip(b'\0')]
        return starts
    return starts + [struct.unpack_from('<I', sector, at + 8)[0] * 512
                     for at in range(446, 510, 16) if sector[at + 4]]


def _ext_used(read: Read, start: int) -> int | None:
    """Return the bytes in use in an ext2, 3 or 4 file system."""
    block = read(start + 1024, 1024)
    if len(block) < 1024 or struct.unpack_from('<H', block, 56)[
            0] != _EXT_MAGIC:
        return None
    total, = struct.unpack_from('<I', block, 4)
    free, = struct.unpack_from('<I', block, 12)
    log, = struct.unpack_from('<I', block, 24)
    if struct.unpack_from('<I', block, 96)[0] & _EXT_64BIT:
        total |= struct.unpack_from('<I', block, 336)[0] << 32
        free |= struct.unpack_from('<I', block, 344)[0] << 32
    if log > 6 or free > total:
        return None
    return (total - free) * (1024 << log)
