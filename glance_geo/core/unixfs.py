# SPDX-License-Identifier: Apache-2.0
"""UnixFS: how IPFS keeps files, as nodes that link blocks.

A node is a dag-pb block: Protocol Buffers of ``PBNode {Data=1, Links=2}``,
links first, with ``PBLink {Hash=1, Name=2, Tsize=3}``; its data is a UnixFS
message ``{Type=1, Data=2, filesize=3, blocksizes=4}`` (the UnixFS
specification). A raw block is a file of its own bytes.

What is parsed comes from elsewhere: nothing in it is believed before its
block was checked against its CID, and sizes must add up.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from glance_geo.core import cids, errors
from glance_geo.core.cids import CID

_DIRECTORY, _FILE = 1, 2
_RAW_TYPE = 0
DEPTH_MAXIMUM = 32
"""Levels of nodes below a file; real ones have less than ten."""


@dataclasses.dataclass(frozen=True, slots=True)
class Link:
    """A part of a file, in order.

    :ivar size: bytes of the file that it holds
    """

    cid: CID
    size: int


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """A file, or a part of one.

    :ivar size: bytes of the file in it and below
    :ivar data: the first of them, where the node holds some itself
    :ivar links: where the others are
    """

    size: int
    data: bytes = b''
    links: tuple[Link, ...] = ()


def varint(value: int) -> bytes:
    """Return a number as Protocol Buffers and CAR write it."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 63:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, at
        shift += 7
    raise errors.CIDInvalid('a number has too many digits')


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (field number, value) of a Protocol Buffers message."""
    at = 0
    try:
        while at < len(data):
            key, at = _read_varint(data, at)
            if key & 7 == 0:
                value, at = _read_varint(data, at)
                yield key >> 3, value
            elif key & 7 == 2:
                length, at = _read_varint(data, at)
                if at + length > len(data):
                    raise IndexError
                yield key >> 3, data[at:at + length]
                at += length
            else:
                raise errors.CIDInvalid('the block is no dag-pb node')
    except IndexError:
        raise errors.CIDInvalid('the block is no dag-pb node: cut short'
                                ) from None


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise errors.CIDInvalid('the block is no dag-pb node')
    return value


def _number(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise errors.CIDInvalid('the block is no dag-pb node')
    return value


def _numbers(value: int | bytes) -> Iterator[int]:
    """Yield a repeated field's numbers, packed or not."""
    if isinstance(value, int):
        yield value
        return
    at = 0
    while at < len(value):
        number, at = _read_varint(value, at)
        yield number


def _link(data: bytes) -> CID:
    for number, value in _fields(data):
        if number == 1:
            return cids.from_binary(_bytes(value))
    raise errors.CIDInvalid('the block is no dag-pb node: a link has no CID')


def parse_file(block: bytes) -> Node:
    """Return a file's node; the block was checked against its CID.

    :raises CIDInvalid: no file, or its sizes do not add up
    """
    links: list[CID] = []
    message: bytes | None = None
    for number, value in _fields(block):
        if number == 1:
            message = _bytes(value)
        elif number == 2:
            links.append(_link(_bytes(value)))
    if message is None:
        raise errors.CIDInvalid('the block is a node of IPFS, but no file')
    kind, size, data, sizes = None, None, b'', []
    for number, value in _fields(message):
        if number == 1:
            kind = _number(value)
        elif number == 2:
            data = _bytes(value)
        elif number == 3:
            size = _number(value)
        elif number == 4:
            sizes += list(_numbers(value))
    if kind == _DIRECTORY:
        raise errors.CIDInvalid('the block is a directory, no file')
    if kind not in (_FILE, _RAW_TYPE):
        raise errors.CIDInvalid('the block is a node of IPFS, but no file')
    if len(sizes) != len(links) or (
            size is not None and size != sum(sizes) + len(data)):
        raise errors.CIDInvalid('the sizes of a file of IPFS do not add up')
    return Node(sum(sizes) + len(data), data, tuple(
        Link(*pair) for pair in zip(links, sizes, strict=True)))


def _field(number: int, value: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(value)) + value


def _pb_link(cid: CID, name: bytes, total: int) -> bytes:
    return _field(2, _field(1, cid.binary) + _field(2, name)
                  + b'\x18' + varint(total))


def file_node(links: Iterable[Link]) -> bytes:
    """Return the block of a file that is made of others, in order.

    :raises CIDInvalid: more links than a block may have
    """
    links = list(links)
    message = (b'\x08' + bytes((_FILE,)) + b'\x18' + varint(sum(
        link.size for link in links)) + b''.join(
            b'\x20' + varint(link.size) for link in links))
    return _bounded(b''.join(_pb_link(link.cid, b'', link.size)
                             for link in links) + _field(1, message))


def directory(entries: Iterable[tuple[str, CID]]) -> bytes:
    """Return the block of a directory.

    :raises CIDInvalid: more entries than a block may have
    """
    return _bounded(b''.join(
        _pb_link(cid, name, 0) for name, cid in sorted(
            (name.encode(), cid) for name, cid in entries))
        + _field(1, b'\x08' + bytes((_DIRECTORY,))))


def _bounded(block: bytes) -> bytes:
    if len(block) > cids.BLOCK_MAXIMUM:
        raise errors.CIDInvalid('too many links for one block')
    return block
