# SPDX-License-Identifier: Apache-2.0
"""What crosses the link: the frames of the peers' protocol, both ends.

Bodies of requests are MessagePack maps. Answers that carry records or chunks
are one zstd stream of frames: u32 length, then that many bytes; a length of
0xFFFFFFFF is followed by a last frame, whose presence tells that the stream
is whole. Receivers bound every length before they take it.
"""

import struct
from collections.abc import Iterable, Iterator
from typing import Any

import msgpack
import zstandard

from glance_geo.core import errors

REQUEST_MAXIMUM = 4 * 1024 * 1024
RECORD_MAXIMUM = 16 * 1024 * 1024
BLOB_MAXIMUM = 8 * 1024 * 1024
_LENGTH = struct.Struct('<I')
_LAST = 0xFFFFFFFF
_READ = 256 * 1024
LEVEL = 3
LEVEL_MAXIMUM = 12
_LEVELS = ((30e6, 1), (8e6, 3), (2.5e6, 6), (1e6, 9))


def pack(document: Any) -> bytes:
    return msgpack.packb(document, use_bin_type=True)


def unpack(data: bytes, maximum: int = REQUEST_MAXIMUM) -> Any:
    """Return a MessagePack document.

    :raises PeerMisbehaved: too long, or no MessagePack
    """
    if len(data) > maximum:
        raise errors.PeerMisbehaved(f'message of {len(data)} bytes')
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=False)
    except Exception as error:  # whatever the bytes make it raise
        raise errors.PeerMisbehaved(f'message does not parse: {error}'
                                    ) from error


def level_for(rate: float | None) -> int:
    """Return the zstd level that fits a link.

    Each level compresses faster, on one core, than the links it is for
    carry, so that a slow level is never what makes a link look slow.

    :param rate: bytes per second that came over it last; None: not known
    """
    for least, level in _LEVELS:
        if rate is not None and rate >= least:
            return level
    return LEVEL if rate is None else LEVEL_MAXIMUM


def frames(items: Iterable[bytes], last: bytes, level: int = LEVEL,
           ) -> Iterator[bytes]:
    """Yield the compressed stream of some frames and the last one."""
    compressor = zstandard.ZstdCompressor(level=level).compressobj()
    for item in items:
        data = compressor.compress(_LENGTH.pack(len(item)) + item)
        if data:
            yield data
    yield compressor.compress(
        _LENGTH.pack(_LAST) + _LENGTH.pack(len(last)) + last)
    yield compressor.flush()


class _Inflated:
    """Reads exact lengths from a compressed stream of byte pieces."""

    def __init__(self, pieces: Iterable[bytes]):
        source: Any = _Pieces(pieces)
        self._reader = zstandard.ZstdDecompressor(
            max_window_size=8 * 1024 * 1024).stream_reader(
                source, read_size=_READ)

    def exactly(self, length: int) -> bytes:
        parts = []
        while length:
            try:
                data = self._reader.read(min(length, _READ))
            except zstandard.ZstdError as error:
                raise errors.PeerMisbehaved(f'stream: {error}') from error
            if not data:
                raise errors.Unreachable('the stream ended early')
            parts.append(data)
            length -= len(data)
        return b''.join(parts)


class _Pieces:
    """A file-like view of an iterator of byte pieces."""

    def __init__(self, pieces: Iterable[bytes]):
        self._pieces = iter(pieces)
        self._left = b''

    def read(self, size: int) -> bytes:
        if not self._left:
            self._left = next(self._pieces, b'')
        data, self._left = self._left[:size], self._left[size:]
        return data


class FrameReader:
    """Iterates over the frames of an answer; ``last`` is set at the end.

    :raises PeerMisbehaved: a frame is longer than allowed
    :raises Unreachable: the stream ended before its last frame
    """

    def __init__(self, pieces: Iterable[bytes], maximum: int):
        self._inflated = _Inflated(pieces)
        self._maximum = maximum
        self.last: bytes | None = None

    def __iter__(self) -> Iterator[bytes]:
        while True:
            (length,) = _LENGTH.unpack(self._inflated.exactly(4))
            final = length == _LAST
            if final:
                (length,) = _LENGTH.unpack(self._inflated.exactly(4))
            if length > self._maximum:
                raise errors.PeerMisbehaved(f'a frame of {length} bytes')
            data = self._inflated.exactly(length)
            if final:
                self.last = data
                return
            yield data
