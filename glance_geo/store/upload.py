# SPDX-License-Identifier: Apache-2.0
"""Writing an image: a stream becomes chunks, a manifest and a reference.

These run beside each other (the libraries release the GIL), a few blocks
apart: md5, the multihash, splitting with the chunks' hashes and look-ups,
compression, and writing. Memory is bounded by the blocks in flight.
"""

import dataclasses
from collections import deque
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

from glance_geo.core import errors
from glance_geo.core.chunker import Chunker, Data, Hole
from glance_geo.core.manifest import Extent, ManifestBuilder, extent_of
from glance_geo.store import packs
from glance_geo.store.body import ImageBody, Readable
from glance_geo.store.chunkstore import ChunkStore, WriteSession

_BLOCKS_IN_FLIGHT = 5
_COMPRESS = 32
_CLAIMS = 200_000


@dataclasses.dataclass(frozen=True)
class Uploaded:
    """What an upload stored.

    :ivar data_bytes: bytes of the image without holes
    :ivar new_bytes: stored bytes that were not here before
    """

    manifest: bytes
    size: int
    checksum: str
    multihash: str
    new_bytes: int
    data_bytes: int = 0


@dataclasses.dataclass
class _Split:
    """A block's extents, and its new chunks on their way."""

    extents: list[Extent]
    names: list[bytes]
    raw: list[int]
    compressed: list[Future]


class _Splitter:
    """Chunks blocks, stores what is new, builds the manifest."""

    def __init__(self, session: WriteSession, compressors: Executor):
        self._session = session
        self._compressors = compressors
        self._chunker = Chunker()
        self._builder = ManifestBuilder()
        self._claimed: set[bytes] = set()
        self.data_bytes = 0

    def split(self, data: bytes | None) -> _Split:
        """Split a block, or what is left at the end; compress what is new.
        """
        pieces = list(self._chunker.finish() if data is None
                      else self._chunker.feed(data))
        extents = [extent_of(piece) for piece in pieces]
        self.data_bytes += sum(e.length for e in extents if e.name)
        # What an earlier block of this image brings is on its way already.
        wanted = set(self._session.unknown(
            [e.name for e in extents if e.name
             and e.name not in self._claimed]))
        if len(self._claimed) > _CLAIMS:
            self._claimed.clear()
        self._claimed |= wanted
        names: list[bytes] = []
        new: list[Data] = []
        for extent, piece in zip(extents, pieces, strict=True):
            if extent.name in wanted:
                assert extent.name is not None and not isinstance(piece, Hole)
                wanted.discard(extent.name)
                names.append(extent.name)
                new.append(piece)
        return _Split(extents, names, [len(piece) for piece in new], [
            self._compressors.submit(packs.compress_all,
                                     new[start:start + _COMPRESS])
            for start in range(0, len(new), _COMPRESS)])

    def store(self, split: Future) -> None:
        """Write a block's new chunks in order; go on with the manifest."""
        found: _Split = split.result()
        done = (item for future in found.compressed
                for item in future.result())
        for name, raw, (codec, stored) in zip(found.names, found.raw, done,
                                              strict=True):
            self._session.put(name, codec, stored, raw)
        for extent in found.extents:
            for segment in self._builder.add(extent):
                self._session.put_blob(segment)

    def finish(self) -> bytes:
        for segment in self._builder.finish():
            self._session.put_blob(segment)
        return self._session.put_blob(self._builder.root())


def upload(store: ChunkStore, image: str, nonce: str, source: Readable,
           size: int, hashing_algo: str, verifier: Any = None,
           project: str = '') -> Uploaded:
    """Store an image's bytes; durable when this returns.

    :param size: bytes announced; 0: unknown
    :param verifier: gets every block (Glance's signature check)
    :param project: whose chunks it may share; '' for what all share
    :raises SizeMismatch: nothing is kept
    :raises StoreFull: nothing is kept
    """
    session = store.session(project)
    in_flight: deque[list[Future]] = deque()
    try:
        with (ImageBody(image, source, size, hashing_algo, verifier) as body,
              ThreadPoolExecutor(1) as splits, ThreadPoolExecutor(1) as writes,
              ThreadPoolExecutor(2) as compressors):
            splitter = _Splitter(session, compressors)

            def take(block: bytes | None) -> list[Future]:
                split = splits.submit(splitter.split, block)
                return [split, writes.submit(splitter.store, split)]
            for block in body:
                in_flight.append(take(block))
                while len(in_flight) >= _BLOCKS_IN_FLIGHT:
                    for future in in_flight.popleft():
                        future.result()
            in_flight.append(take(None))
            for futures in in_flight:
                for future in futures:
                    future.result()
            root = splitter.finish()
        session.commit((image, root, nonce))
    except errors.StoreFull:
        session.abort()
        # What was written is what filled the disk.
        store.collect()
        raise
    except BaseException:
        session.abort()     # a collection takes what it leaves
        raise
    return Uploaded(root, body.size, body.checksum, body.multihash,
                    session.stored_bytes, splitter.data_bytes)
