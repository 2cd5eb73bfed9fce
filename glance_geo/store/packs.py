# SPDX-License-Identifier: Apache-2.0
"""Packs: files of many chunks.

A pack begins with ``GGPACK1\\n``. Each chunk in it is a header of 45 bytes
(``GGCH``, its 32-byte name, one byte of codec, u32 stored length, u32 raw
length, little-endian) and the stored bytes. Packs are only ever appended to,
by the one session that created them, so the index can be rebuilt from them.
"""

import dataclasses
import fcntl
import os
import struct
import threading
import uuid
from collections import OrderedDict
from pathlib import Path
from typing import IO

import zstandard

from glance_geo.core import errors
from glance_geo.core.manifest import name_of

MAGIC = b'GGPACK1\n'
HEADER = struct.Struct('<4s32sBII')
_HEADER_MAGIC = b'GGCH'
RAW, ZSTD = 0, 1
PACK_MAXIMUM = 256 * 1024 * 1024
# A chunk that compression shrinks by less than this is stored as it is.
_WORTHWHILE = 0.94
_OPEN_PACKS = 64
_BUFFER = 1024 * 1024

_local = threading.local()


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where a chunk's stored bytes are."""

    pack: str
    offset: int
    stored: int
    raw: int
    codec: int


def compress(data: bytes) -> tuple[int, bytes]:
    """Return (codec, stored bytes) of a chunk."""
    compressor = getattr(_local, 'compressor', None)
    if compressor is None:
        compressor = _local.compressor = zstandard.ZstdCompressor(
            level=1, write_content_size=True)
    small = compressor.compress(data)
    if len(small) < len(data) * _WORTHWHILE:
        return ZSTD, small
    return RAW, data


def unpack(name: bytes, codec: int, stored: bytes, raw: int) -> bytes:
    """Return a chunk's bytes, verified against its name.

    Decompression is bounded by the length that was declared.

    :raises ChunkCorrupt: not the bytes of that name
    """
    try:
        if codec == RAW:
            data = stored
        elif codec == ZSTD:
            decompressor = getattr(_local, 'decompressor', None)
            if decompressor is None:
                decompressor = _local.decompressor = (
                    zstandard.ZstdDecompressor())
            declared = zstandard.frame_content_size(stored)
            if declared != raw:
                raise errors.ChunkCorrupt(f'chunk {name.hex()}: bad length')
            data = decompressor.decompress(stored, max_output_size=raw)
        else:
            raise errors.ChunkCorrupt(f'chunk {name.hex()}: codec {codec}')
    except zstandard.ZstdError as error:
        raise errors.ChunkCorrupt(f'chunk {name.hex()}: {error}') from error
    if len(data) != raw or name_of(data) != name:
        raise errors.ChunkCorrupt(f'chunk {name.hex()}: wrong bytes')
    return data


UNNAMED = '.new'
"""Suffix of a file whose writer has not locked and named it yet."""


def remove_unnamed(folder: Path) -> None:
    """Remove the files of writers that died before they had named them."""
    for path in folder.glob(f'*{UNNAMED}'):
        try:
            with open(path, 'rb') as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
        except (BlockingIOError, FileNotFoundError):
            continue


def locked_file(path: Path, buffering: int = -1) -> IO[bytes]:
    """Create a file that is locked from the moment it has its name.

    The lock goes when its process does: that is how others know.
    """
    temporary = path.with_name(f'{path.name}{UNNAMED}')
    while True:
        file = open(temporary, 'xb', buffering=buffering)
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            temporary.rename(path)
            return file
        except FileNotFoundError:
            # A collector took it for a dead writer's before it was locked.
            file.close()


class PackWriter:
    """Appends chunks to a new pack file."""

    def __init__(self, folder: Path):
        self.name = uuid.uuid4().hex
        self._path = folder / f'{self.name}.pack'
        # Locked while this writer lives, which tells a collector to keep
        # off, and locked before a collector can see it.
        self._file = locked_file(self._path, _BUFFER)
        self._file.write(MAGIC)
        self.size = len(MAGIC)

    def append(self, name: bytes, codec: int, stored: bytes,
               raw: int) -> Place:
        self._file.write(HEADER.pack(_HEADER_MAGIC, name, codec, len(stored),
                                     raw))
        self._file.write(stored)
        place = Place(self.name, self.size + HEADER.size, len(stored), raw,
                      codec)
        self.size += HEADER.size + len(stored)
        return place

    def sync(self) -> None:
        """Return when all that was appended is on stable storage."""
        self._file.flush()
        os.fsync(self._file.fileno())
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def close(self) -> None:
        """Let go of the file; what was not synced may be lost."""
        try:
            self._file.close()
        except OSError:
            pass    # a full disk can't take what is being thrown away


class PackReader:
    """Reads stored bytes from packs; keeps the latest ones open."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._lock = threading.Lock()
        self._open: OrderedDict[str, int] = OrderedDict()

    def read(self, place: Place) -> bytes:
        """Return stored bytes.

        :raises ChunkMissing: the pack is gone or ends before them
        """
        with self._lock:
            descriptor = self._open.get(place.pack)
            if descriptor is None:
                try:
                    descriptor = os.open(
                        self._folder / f'{place.pack}.pack', os.O_RDONLY)
                except FileNotFoundError as error:
                    raise errors.ChunkMissing(
                        f'pack {place.pack} is gone') from error
                self._open[place.pack] = descriptor
            self._open.move_to_end(place.pack)
            # Duplicated, so that closing an idle pack can't hit this read.
            mine = os.dup(descriptor)
            while len(self._open) > _OPEN_PACKS:
                os.close(self._open.popitem(last=False)[1])
        try:
            data = os.pread(mine, place.stored, place.offset)
        finally:
            os.close(mine)
        if len(data) != place.stored:
            raise errors.ChunkMissing(f'pack {place.pack} is cut short')
        return data

    def close(self) -> None:
        with self._lock:
            while self._open:
                os.close(self._open.popitem()[1])
