# SPDX-License-Identifier: Apache-2.0
"""Content identifiers of IPFS: what names a block, and what a chunk is there.

A CID of version 1 is the byte 1, a codec (what the block is), a hash function
and a digest; as text it is ``b`` and lower-case base32 (multiformats
specification). Only what this package writes is read: raw blocks and dag-pb
nodes, under SHA-256 or BLAKE3 of 32 bytes.

A chunk's name is the BLAKE3 of its bytes, so its CID follows from the name
alone: see ``of_chunk``.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib

import blake3

from glance_geo.core import errors

RAW = 0x55
DAG_PB = 0x70
SHA2_256 = 0x12
BLAKE3 = 0x1E
BLOCK_MAXIMUM = 2 * 1024 * 1024
"""Bytes of the largest block that nodes of IPFS give each other."""
_VERSION = 1
_DIGEST_BYTES = 32
_BINARY_BYTES = 4 + _DIGEST_BYTES


@dataclasses.dataclass(frozen=True, slots=True)
class CID:
    """The name of a block."""

    codec: int
    hash: int
    digest: bytes

    @property
    def binary(self) -> bytes:
        return bytes((_VERSION, self.codec, self.hash,
                      _DIGEST_BYTES)) + self.digest

    def __str__(self) -> str:
        return 'b' + base64.b32encode(self.binary).decode().lower().rstrip(
            '=')


def from_binary(data: bytes) -> CID:
    """Return the CID that some bytes are.

    :raises CIDInvalid: of another form than this package writes
    """
    if (len(data) != _BINARY_BYTES or data[0] != _VERSION
            or data[1] not in (RAW, DAG_PB)
            or data[2] not in (SHA2_256, BLAKE3)
            or data[3] != _DIGEST_BYTES):
        raise errors.CIDInvalid(
            'not a CID of version 1 of a raw or dag-pb block under SHA-256 '
            'or BLAKE3')
    return CID(data[1], data[2], data[4:])


def parse(text: str) -> CID:
    """Return the CID that a text is.

    :raises CIDInvalid: of another form than this package writes
    """
    if not text.startswith('b') or len(text) > 100:
        raise errors.CIDInvalid(f'{text[:100]!r} is no CID of version 1 in '
                                f'base32')
    try:
        data = base64.b32decode(
            text[1:].upper() + '=' * (-(len(text) - 1) % 8))
    except ValueError as error:
        raise errors.CIDInvalid(f'{text!r} is no CID: {error}') from error
    found = from_binary(data)
    if str(found) != text:      # one block, one text
        raise errors.CIDInvalid(f'{text!r} is no CID in lower-case base32')
    return found


def of_chunk(name: bytes) -> CID:
    """Return the CID of a chunk, or of a manifest's part.

    :param name: 32 bytes, the BLAKE3 of the chunk's bytes
    """
    return CID(RAW, BLAKE3, name)


def of_node(block: bytes) -> CID:
    """Return the CID of a dag-pb node."""
    return CID(DAG_PB, SHA2_256, hashlib.sha256(block).digest())


def of_leaf(block: bytes) -> CID:
    """Return the CID of a raw block as Kubo's ``add`` names it."""
    return CID(RAW, SHA2_256, hashlib.sha256(block).digest())


def verify(cid: CID, block: bytes | bytearray | memoryview) -> None:
    """Check a block's bytes against its name (P2).

    :raises ChunkCorrupt: they are others
    """
    digest = (blake3.blake3(block).digest() if cid.hash == BLAKE3
              else hashlib.sha256(block).digest())
    if digest != cid.digest:
        raise errors.ChunkCorrupt(f'the bytes of block {cid} are others than '
                                  f'its name says')
