# SPDX-License-Identifier: Apache-2.0
"""Packs: files of many chunks, only ever appended to by one writer.

The format, byte by byte, is in ``doc/source/formats.rst``. An entry's header
carries a checksum and its data has its name, so that the index can be rebuilt
from packs alone, also from damaged ones.
"""

import dataclasses
import fcntl
import os
import struct
import threading
import uuid
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import zstandard

from glance_geo.core import errors
from glance_geo.core.chunker import Data
from glance_geo.core.manifest import name_of
from glance_geo.store.folder import sync_folder

MAGIC = b'GGPACK2\n'
MAGIC_1 = b'GGPACK1\n'
_ENTRY = b'GGCE'
_ENTRY_1 = b'GGCH'
_FIELDS = struct.Struct('<4s32sBBII')
_CRC = struct.Struct('<I')
_FIELDS_1 = struct.Struct('<4s32sBII')
HEADER_BYTES = _FIELDS.size + _CRC.size

RAW, ZSTD = 0, 1
DATA, PART, REFERENCE = 0, 1, 2
"""What an entry holds: image bytes, a manifest's part, or a reference."""

PACK_MAXIMUM = 256 * 1024 * 1024
ENTRY_MAXIMUM = 8 * 1024 * 1024
# A chunk that compression shrinks by less than this is stored as it is.
_WORTHWHILE = 0.94
_OPEN_PACKS = 64
_BUFFER = 1024 * 1024

_local = threading.local()


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where a chunk's stored bytes are: in which pack of the index."""

    pack: int
    offset: int
    stored: int
    raw: int
    codec: int


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a pack, as its header tells."""

    name: bytes
    kind: int
    codec: int
    offset: int
    stored: int
    raw: int


def _compressor() -> zstandard.ZstdCompressor:
    compressor = getattr(_local, 'compressor', None)
    if compressor is None:
        compressor = _local.compressor = zstandard.ZstdCompressor(
            level=1, write_content_size=True)
    return compressor


def compress(data: Data) -> tuple[int, Data]:
    """Return (codec, stored bytes) of a chunk."""
    small = _compressor().compress(data)
    if len(small) < len(data) * _WORTHWHILE:
        return ZSTD, small
    return RAW, data


def compress_all(chunks: Sequence[Data]) -> list[tuple[int, Data]]:
    """Return (codec, stored bytes) of chunks.

    In one call without Python's lock: 1.2 to 1.5 times as fast as one by
    one.
    """
    if not chunks:
        return []
    small: Any = _compressor().multi_compress_to_buffer(list(chunks),
                                                        threads=0)
    return [(ZSTD, memoryview(small[place]))
            if len(small[place]) < len(data) * _WORTHWHILE else (RAW, data)
            for place, data in enumerate(chunks)]


def unpack(name: bytes, codec: int, stored: bytes, raw: int) -> bytes:
    """Return a chunk's bytes, verified against its name.

    :raises ChunkCorrupt: wrong bytes, or they would inflate beyond ``raw``
    """
    data = stored
    try:
        if codec == ZSTD:
            decompressor = getattr(_local, 'decompressor', None)
            if decompressor is None:
                decompressor = _local.decompressor = (
                    zstandard.ZstdDecompressor())
            # The frame names its own size: never inflate beyond ours.
            if zstandard.frame_content_size(stored) != raw:
                raise errors.ChunkCorrupt(f'chunk {name.hex()}: bad length')
            data = decompressor.decompress(stored, max_output_size=raw)
        elif codec != RAW:
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
    """Appends chunks to a new pack file.

    :ivar file: its name among the packs
    """

    def __init__(self, folder: Path):
        self.file = uuid.uuid4().hex
        self._path = folder / f'{self.file}.pack'
        # Locked while this writer lives, which tells a collector to keep
        # off, and locked before a collector can see it.
        self._stream = locked_file(self._path, _BUFFER)
        self._stream.write(MAGIC)
        self._named = False
        self.size = len(MAGIC)

    def append(self, name: bytes, kind: int, codec: int, stored: Data,
               raw: int) -> Entry:
        fields = _FIELDS.pack(_ENTRY, name, kind, codec, len(stored), raw)
        self._stream.write(fields + _CRC.pack(zlib.crc32(fields)))
        self._stream.write(stored)
        entry = Entry(name, kind, codec, self.size + HEADER_BYTES,
                      len(stored), raw)
        self.size += HEADER_BYTES + len(stored)
        return entry

    def sync(self) -> None:
        """Return when all that was appended is on stable storage."""
        self._stream.flush()
        os.fdatasync(self._stream.fileno())
        if not self._named:
            sync_folder(self._path.parent)
            self._named = True

    def close(self) -> None:
        """Let go of the file; what was not synced may be lost."""
        try:
            self._stream.close()
        except OSError:
            pass    # a full disk can't take what is being thrown away


class _Open:
    """An open pack; closed when nobody uses it any more."""

    def __init__(self, path: Path):
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, 'descriptor'):
            os.close(self.descriptor)


class PackReader:
    """Reads stored bytes from packs; keeps the latest ones open.

    Meant to live as long as one read: a removed pack's space is free only
    when everyone has closed it.

    :param file_of: returns the file name of a pack's number, None if unknown
    """

    def __init__(self, folder: Path, file_of: Callable[[int], str | None]):
        self._folder = folder
        self._file_of = file_of
        self._lock = threading.Lock()
        self._open: OrderedDict[int, _Open] = OrderedDict()

    def _pack(self, pack: int) -> _Open:
        with self._lock:
            found = self._open.get(pack)
            if found is None:
                file = self._file_of(pack)
                try:
                    if file is None:
                        raise FileNotFoundError
                    found = _Open(self._folder / f'{file}.pack')
                except FileNotFoundError as error:
                    raise errors.ChunkMissing(
                        f'pack {file or pack} is gone') from error
                self._open[pack] = found
                if len(self._open) > _OPEN_PACKS:
                    self._open.popitem(last=False)
            self._open.move_to_end(pack)
            return found

    def read(self, pack: int, offset: int, length: int) -> bytes:
        """Return so many bytes of a pack, or fewer if it ends before them.

        :raises ChunkMissing: the pack is gone, or the disk fails there
        """
        try:
            return os.pread(self._pack(pack).descriptor, length, offset)
        except OSError as error:    # a bad block reads as a missing chunk
            raise errors.ChunkMissing(
                f'pack {self._file_of(pack)}: {error.strerror}') from error


def _header(data: bytes, version: int) -> tuple[bytes, int, int, int, int,
                                                int] | None:
    """Return (name, kind, codec, stored, raw, header bytes), None if bad."""
    if version == 1:
        if len(data) < _FIELDS_1.size:
            return None
        magic, name, codec, stored, raw = _FIELDS_1.unpack_from(data)
        good, kind, size = magic == _ENTRY_1, DATA, _FIELDS_1.size
    else:
        if len(data) < HEADER_BYTES:
            return None
        magic, name, kind, codec, stored, raw = _FIELDS.unpack_from(data)
        (crc,) = _CRC.unpack_from(data, _FIELDS.size)
        good = (magic == _ENTRY
                and crc == zlib.crc32(data[:_FIELDS.size]))
        size = HEADER_BYTES
    if not good or stored > ENTRY_MAXIMUM or raw > ENTRY_MAXIMUM:
        return None
    return name, kind, codec, stored, raw, size


def entries(path: Path, damage: Callable[[int, str], None] = lambda *_: None,
            ) -> Iterator[Entry]:
    """Yield the entries of a pack in order, past damaged headers.

    :param damage: told the offset and what is wrong there
    """
    with open(path, 'rb') as file:
        size = os.fstat(file.fileno()).st_size
        magic = file.read(len(MAGIC))
        version = {MAGIC: 2, MAGIC_1: 1}.get(magic)
        if version is None:
            damage(0, 'no pack of a known version')
            version = 2
        position = len(MAGIC)
        while position < size:
            found = _header(os.pread(file.fileno(), HEADER_BYTES, position),
                            version)
            if found is None:
                damage(position, 'damaged entry header')
                following = _resync(file.fileno(), position + 1, version)
                if following is None:
                    return
                position = following
                continue
            name, kind, codec, stored, raw, length = found
            offset = position + length
            if offset + stored > size:
                damage(position, 'the pack ends within an entry')
                return
            yield Entry(name, kind, codec, offset, stored, raw)
            position = offset + stored


def _resync(descriptor: int, start: int, version: int) -> int | None:
    """Return where the next good entry header begins."""
    magic = _ENTRY if version == 2 else _ENTRY_1
    while True:
        data = os.pread(descriptor, _BUFFER, start)
        at = data.find(magic)
        while at >= 0:
            header = os.pread(descriptor, HEADER_BYTES, start + at)
            if _header(header, version) is not None:
                return start + at
            at = data.find(magic, at + 1)
        if len(data) < _BUFFER:
            return None
        start += len(data) - len(magic) + 1
