# SPDX-License-Identifier: Apache-2.0
"""Reading a file of IPFS: every byte is checked against a CID (P2).

The nodes of the file are fetched and checked one by one; they say which leaf
each byte is in. The leaves come as one stream, which is the fastest that a
node offers, and are checked as they pass. Where the stream ends early, or
brings other bytes, the leaf is asked for by its name once more: what is then
still missing is an error that says so, never a short image.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Generator, Iterator

from glance_geo.core import cids, errors, unixfs
from glance_geo.core.cids import CID
from glance_geo.core.unixfs import Node
from glance_geo.store.ipfs.node import IPFSNode

LOG = logging.getLogger(__name__)

# Where leaves end, in the files that this package writes. In others the last
# leaf of a range may be asked for by itself.
_LEAF = 1024 * 1024


@dataclasses.dataclass(frozen=True, slots=True)
class Leaf:
    """A run of a file's bytes.

    :ivar cid: of the raw block that it is; None: ``data`` is it, checked
    """

    offset: int
    length: int
    cid: CID | None
    data: bytes = b''


class FileReader:
    """Reads one file through a node.

    :param image: for errors and logs
    """

    def __init__(self, node: IPFSNode, image: str, cid: CID):
        self._node = node
        self._image = image
        self._cid = cid
        self._root: Node | None = None

    def _block(self, cid: CID, offset: int) -> bytes:
        try:
            return self._node.block(cid)
        except (errors.ChunkMissing, errors.ChunkCorrupt) as error:
            failure: Exception = error
        # After an outage the node may not know yet that others are back.
        if self._node.reconnect():
            try:
                return self._node.block(cid)
            except (errors.ChunkMissing, errors.ChunkCorrupt) as error:
                failure = error
        raise errors.BitsUnavailable(
            f'image {self._image}: block {cid} at byte {offset} can not be '
            f'had: {failure}') from failure

    def root(self) -> Node:
        """Return the file's first node.

        :raises BitsUnavailable: nobody gives it
        :raises CIDInvalid: it is no file
        """
        if self._root is None:
            block = self._block(self._cid, 0)
            self._root = (Node(len(block), block)
                          if self._cid.codec == cids.RAW
                          else unixfs.parse_file(block))
        return self._root

    def size(self) -> int:
        """Return the file's bytes; raises as ``root``."""
        return self.root().size

    def leaves(self, start: int = 0, stop: int | None = None,
               ) -> Iterator[Leaf]:
        """Yield the leaves that overlap a range of the file, in order.

        :raises BitsUnavailable: nobody gives a node on the way
        :raises CIDInvalid: it is no file, or does not add up
        """
        root = self.root()
        return self._below(root, 0, start,
                           root.size if stop is None else stop, 0)

    def _below(self, node: Node, offset: int, start: int, stop: int,
               depth: int) -> Iterator[Leaf]:
        if depth > unixfs.DEPTH_MAXIMUM:
            raise errors.CIDInvalid(
                f'image {self._image}: its file is nested too deep')
        if node.data and offset < stop and offset + len(node.data) > start:
            yield Leaf(offset, len(node.data), None, node.data)
        offset += len(node.data)
        for link in node.links:
            if offset >= stop:
                return
            if offset + link.size > start:
                if link.cid.codec == cids.RAW:
                    if link.size > cids.BLOCK_MAXIMUM:
                        raise errors.CIDInvalid(
                            f'image {self._image}: a leaf is too large')
                    yield Leaf(offset, link.size, link.cid)
                else:
                    inner = unixfs.parse_file(self._block(link.cid, offset))
                    if inner.size != link.size:
                        raise errors.CIDInvalid(
                            f'image {self._image}: the sizes in its file do '
                            f'not add up')
                    yield from self._below(inner, offset, start, stop,
                                           depth + 1)
            offset += link.size

    def read(self, start: int = 0, length: int | None = None,
             ) -> tuple[Iterator[bytes], int]:
        """Return (iterator over the range's bytes, size of the file).

        :raises BitsUnavailable, CIDInvalid, Unreachable: at once, or from
            the iterator, which never ends early as if whole
        """
        size = self.size()
        stop = size if length is None else min(size, start + length)
        pieces = self._verified(start, max(start, stop))
        # So that an error here can still become an HTTP status.
        first = next(pieces, b'')

        def stream() -> Iterator[bytes]:
            if first:
                yield first
            yield from pieces
        return stream(), size

    def _verified(self, start: int, stop: int) -> Iterator[bytes]:
        source: _Stream | None = None
        try:
            for leaf in self.leaves(start, stop):
                data = leaf.data
                if leaf.cid is not None:
                    if source is None or source.at != leaf.offset:
                        source = self._from(leaf.offset, stop, source)
                    found = source.take(leaf)
                    if found is None:
                        source = None
                        found = self._again(leaf)
                    data = found
                low = max(start - leaf.offset, 0)
                high = min(stop - leaf.offset, leaf.length)
                yield data if (low, high) == (0, leaf.length) else data[
                    low:high]
        finally:
            if source is not None:
                source.close()

    def _from(self, offset: int, stop: int, old: _Stream | None) -> _Stream:
        if old is not None:
            old.close()
        # To the end of the last leaf, which is checked whole.
        end = min(self.size(), -(-stop // _LEAF) * _LEAF)
        return _Stream(self._node.stream(self._cid, offset, end - offset),
                       offset)

    def _again(self, leaf: Leaf) -> bytes:
        """Ask for a leaf that the stream did not bring."""
        assert leaf.cid is not None
        LOG.warning('Image %s: the stream of IPFS node %s broke off at byte '
                    '%d; asking for block %s', self._image,
                    self._node.address, leaf.offset, leaf.cid)
        data = self._block(leaf.cid, leaf.offset)
        if len(data) != leaf.length:
            raise errors.CIDInvalid(
                f'image {self._image}: block {leaf.cid} has {len(data)} '
                f'bytes, its file says {leaf.length}')
        return data


class _Stream:
    """A stream of leaves from a node.

    :ivar at: the file's byte that comes next
    """

    def __init__(self, pieces: Generator[bytes, None, None], at: int):
        self._pieces = pieces
        self.at = at
        self._buffer = bytearray()

    def take(self, leaf: Leaf) -> bytes | None:
        """Return a leaf; None if the stream does not bring it."""
        assert leaf.cid is not None
        try:
            while len(self._buffer) < leaf.length:
                piece = next(self._pieces, None)
                if piece is None:
                    return None
                self._buffer += piece
            data = bytes(memoryview(self._buffer)[:leaf.length])
            del self._buffer[:leaf.length]
            cids.verify(leaf.cid, data)
        except (errors.Unreachable, errors.IPFSFailed,
                errors.ChunkCorrupt) as error:
            LOG.warning('%s', error)
            return None
        self.at += leaf.length
        return data

    def close(self) -> None:
        self._pieces.close()
