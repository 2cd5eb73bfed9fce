# SPDX-License-Identifier: Apache-2.0
"""Reading a file of IPFS: every byte is checked against a CID (P2).

The nodes of the file are fetched and checked one by one; they say which leaf
each byte is in. What is at the node comes as one stream, which is the fastest
that a node offers, and is checked leaf by leaf as it passes. Where the stream
ends early, or brings other bytes, the leaf is asked for by its name: what is
then still missing is an error that says so, never a short image.

Of what is at other nodes, a stream looks too little ahead (``tools/bench
ipfs-node`` compares them). So leaves that are slow to come are asked for by
their names, many at once, until they come fast again.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from glance_geo.core import cids, errors, unixfs
from glance_geo.core.cids import CID
from glance_geo.core.unixfs import Node
from glance_geo.store.ipfs.node import IPFSNode

LOG = logging.getLogger(__name__)

# Where leaves end, in the files that this package writes. In others the last
# leaf of a range may be asked for by itself.
_LEAF = 1024 * 1024
# A leaf that takes longer is not at the node.
_FAR_SECONDS = 0.04
AHEAD = 16
"""Leaves of a file that are fetched at once when they are slow to come."""
# How many must then come fast in a row.
_NEAR_LEAVES = 16


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
        for leaf, data in self._whole(start, stop):
            low = max(start - leaf.offset, 0)
            high = min(stop - leaf.offset, leaf.length)
            yield data if (low, high) == (0, leaf.length) else data[low:high]

    def _whole(self, start: int, stop: int) -> Iterator[tuple[Leaf, bytes]]:
        """Yield the leaves of a range, each whole and checked."""
        leaves = self.leaves(start, stop)
        source: _Stream | None = None
        try:
            for leaf in leaves:
                if leaf.cid is None:
                    yield leaf, leaf.data
                    continue
                if source is None or source.at != leaf.offset:
                    source = self._from(leaf.offset, stop, source)
                began = time.monotonic()
                data = source.take(leaf)
                far = time.monotonic() - began > _FAR_SECONDS
                if data is None:
                    data = self._by_name(leaf)
                yield leaf, data
                if far:
                    source.close()
                    yield from self._from_far(leaves)
        finally:
            if source is not None:
                source.close()

    def _from_far(self, leaves: Iterator[Leaf],
                  ) -> Iterator[tuple[Leaf, bytes]]:
        """Yield leaves that are fetched several at once, while that takes
        long."""
        coming: deque[tuple[Leaf, Future[tuple[bytes, bool]]]] = deque()
        near = 0

        def fetch(leaf: Leaf, beside: int) -> tuple[bytes, bool]:
            began = time.monotonic()
            data = leaf.data if leaf.cid is None else self._by_name(leaf)
            # Those that are fetched at once share the node and processors.
            return data, (time.monotonic() - began
                          < _FAR_SECONDS * (1 + beside))
        pool = ThreadPoolExecutor(AHEAD, thread_name_prefix='ipfs-read')
        try:
            while True:
                while len(coming) < AHEAD and near < _NEAR_LEAVES:
                    leaf = next(leaves, None)
                    if leaf is None:
                        break
                    beside = sum(not future.done() for _, future in coming)
                    coming.append((leaf, pool.submit(fetch, leaf, beside)))
                if not coming:
                    return
                leaf, future = coming.popleft()
                data, fast = future.result()
                near = near + 1 if fast else 0
                yield leaf, data
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _from(self, offset: int, stop: int, old: _Stream | None) -> _Stream:
        if old is not None:
            old.close()
        # To the end of the last leaf, which is checked whole.
        end = min(self.size(), -(-stop // _LEAF) * _LEAF)
        return _Stream(self._node.stream(self._cid, offset, end - offset),
                       offset)

    def _by_name(self, leaf: Leaf) -> bytes:
        """Return a leaf, asked for by its CID."""
        assert leaf.cid is not None
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
