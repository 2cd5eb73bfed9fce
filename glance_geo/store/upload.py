# SPDX-License-Identifier: Apache-2.0
"""Writing an image: a stream becomes chunks, a manifest and a reference.

Four things run beside each other (the libraries release the GIL): md5, the
multihash, chunking with its hashes, and compression. Memory is bounded by the
blocks in flight.
"""

import dataclasses
import hashlib
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from glance_geo.core import errors
from glance_geo.core.chunker import Chunker, Hole
from glance_geo.core.manifest import Extent, ManifestBuilder, extent_of
from glance_geo.store import packs
from glance_geo.store.chunkstore import ChunkStore, WriteSession

BLOCK = 2 * 1024 * 1024
_BLOCKS_IN_FLIGHT = 3


class Readable(Protocol):
    def read(self, size: int) -> bytes: ...


@dataclasses.dataclass(frozen=True)
class Uploaded:
    """What an upload stored.

    :ivar new_bytes: stored bytes that were not here before
    """

    manifest: bytes
    size: int
    checksum: str
    multihash: str
    new_bytes: int


class SizeMismatch(errors.GeoError):
    """The body is shorter or longer than announced."""


def _blocks(source: Readable) -> Iterable[bytes]:
    """Yield blocks of full size; sources give as little as they like."""
    parts: list[bytes] = []
    length = 0
    while True:
        data = source.read(min(BLOCK - length, 256 * 1024))
        if data:
            parts.append(data)
            length += len(data)
        if parts and (length >= BLOCK or not data):
            yield parts[0] if len(parts) == 1 else b''.join(parts)
            parts, length = [], 0
        if not data:
            return


class _Splitter:
    """Chunks blocks, stores what is new, builds the manifest."""

    def __init__(self, session: WriteSession, compressors: ThreadPoolExecutor):
        self._session = session
        self._compressors = compressors
        self._chunker = Chunker()
        self._builder = ManifestBuilder()

    def block(self, data: bytes) -> None:
        self._take(list(self._chunker.feed(data)))

    def finish(self) -> bytes:
        self._take(list(self._chunker.finish()))
        for segment in self._builder.finish():
            self._session.put_blob(segment)
        return self._session.put_blob(self._builder.root())

    def _take(self, pieces: list[Hole | bytes]) -> None:
        extents = [extent_of(piece) for piece in pieces]
        wanted = set(self._session.unknown(
            [extent.name for extent in extents if extent.name]))
        new: list[tuple[Extent, Future]] = []
        for extent, piece in zip(extents, pieces, strict=True):
            if extent.name in wanted:
                assert not isinstance(piece, Hole)
                wanted.discard(extent.name)
                new.append((extent, self._compressors.submit(
                    packs.compress, piece)))
        for extent, future in new:
            codec, stored = future.result()
            assert extent.name is not None
            self._session.put(extent.name, codec, stored, extent.length)
        for extent in extents:
            for segment in self._builder.add(extent):
                self._session.put_blob(segment)


def upload(store: ChunkStore, image: str, nonce: str, source: Readable,
           size: int, hashing_algo: str, verifier: Any = None) -> Uploaded:
    """Store an image's bytes; durable when this returns.

    :param size: bytes announced; 0: unknown
    :param verifier: gets every block (Glance's signature check)
    :raises SizeMismatch: nothing is kept
    :raises StoreFull: nothing is kept
    """
    md5 = hashlib.md5(usedforsecurity=False)
    multihash = hashlib.new(hashing_algo)
    session = store.session()
    total = 0
    in_flight: deque[list[Future]] = deque()
    try:
        with (ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as two,
              ThreadPoolExecutor(1) as three,
              ThreadPoolExecutor(2) as compressors):
            splitter = _Splitter(session, compressors)
            for block in _blocks(source):
                total += len(block)
                if size and total > size:
                    raise SizeMismatch(
                        f'image {image}: body is longer than the '
                        f'{size} bytes announced')
                in_flight.append([
                    one.submit(md5.update, block),
                    two.submit(multihash.update, block),
                    three.submit(splitter.block, block)])
                if verifier is not None:
                    verifier.update(block)
                while len(in_flight) >= _BLOCKS_IN_FLIGHT:
                    for future in in_flight.popleft():
                        future.result()
            for futures in in_flight:
                for future in futures:
                    future.result()
            if size and total != size:
                raise SizeMismatch(
                    f'image {image}: body has {total} bytes, {size} were '
                    f'announced')
            root = three.submit(splitter.finish).result()
        session.commit((image, root, nonce))
    except BaseException:
        session.abort()
        if session.flushed:
            # A large part of a failed upload may be what filled the disk.
            store.collect()
        raise
    return Uploaded(root, total, md5.hexdigest(), multihash.hexdigest(),
                    session.stored_bytes)
