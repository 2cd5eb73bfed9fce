# SPDX-License-Identifier: Apache-2.0
"""CAR: many blocks of IPFS in one stream (Content Archive, version 1).

A stream is a header and then, for each block, a varint with the length of
what follows, the block's CID and its bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from glance_geo.core import cids, errors
from glance_geo.core.cids import CID
from glance_geo.core.unixfs import varint

# {"roots": [], "version": 1} in CBOR: what the blocks are for is not said.
_HEADER = b'\xa2\x65roots\x80\x67version\x01'
_CID_BYTES = 36
_HEADER_MAXIMUM = 4096


def write(blocks: Iterable[tuple[CID, bytes]]) -> Iterator[bytes]:
    """Yield the stream that carries some blocks."""
    yield varint(len(_HEADER)) + _HEADER
    for cid, block in blocks:
        yield varint(_CID_BYTES + len(block)) + cid.binary
        yield block


class _Stream:
    """Exact reads from an iterator of byte pieces."""

    def __init__(self, pieces: Iterable[bytes]):
        self._pieces = iter(pieces)
        self._buffer = bytearray()

    def take(self, length: int) -> bytes:
        """Return so many bytes; fewer only at the end of the stream."""
        while len(self._buffer) < length:
            piece = next(self._pieces, None)
            if piece is None:
                break
            self._buffer += piece
        taken = bytes(self._buffer[:length])
        del self._buffer[:length]
        return taken

    def varint(self) -> int | None:
        """Return the next number; None at the end of the stream."""
        value = shift = 0
        while True:
            byte = self.take(1)
            if not byte:
                if shift:
                    raise errors.PeerMisbehaved('CAR: cut short')
                return None
            value |= (byte[0] & 0x7F) << shift
            if not byte[0] & 0x80:
                return value
            shift += 7
            if shift > 35:
                raise errors.PeerMisbehaved('CAR: a length is too long')


def read(pieces: Iterable[bytes]) -> Iterator[tuple[CID, bytes]]:
    """Yield the blocks of a stream, not checked against their CIDs.

    :raises PeerMisbehaved: cut short within a block, or no CAR
    :raises CIDInvalid: a block of another kind than this package writes
    """
    stream = _Stream(pieces)
    header = stream.varint()
    if header is None or header > _HEADER_MAXIMUM or len(
            stream.take(header)) != header:
        raise errors.PeerMisbehaved('CAR: no header')
    while (length := stream.varint()) is not None:
        if not _CID_BYTES <= length <= _CID_BYTES + cids.BLOCK_MAXIMUM:
            raise errors.PeerMisbehaved(f'CAR: a block of {length} bytes')
        data = stream.take(length)
        if len(data) != length:
            raise errors.PeerMisbehaved('CAR: cut short')
        yield cids.from_binary(data[:_CID_BYTES]), data[_CID_BYTES:]
