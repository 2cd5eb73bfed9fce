# SPDX-License-Identifier: Apache-2.0
"""Reading an image: a manifest's byte range becomes verified bytes.

The range is read in windows, a few ahead of the reader. What a window lacks
is asked of a ``ChunkSource`` (the agent, which fetches it from other nodes);
the first window is complete before reading begins, so that an error there
can still become an HTTP status.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from glance_geo.core import errors, manifest
from glance_geo.core.interfaces import ChunkSource
from glance_geo.core.manifest import Extent, Manifest
from glance_geo.store.chunkstore import ChunkStore

_WINDOW = 4 * 1024 * 1024
_AHEAD = 3
_ZEROS = bytes(1024 * 1024)
_PIECE = 1024 * 1024


class NoSource:
    """The source of a node without an agent: what is missing stays so."""

    def ensure(self, image_id: str, manifest: bytes,
               names: Sequence[bytes]) -> None:
        raise errors.BitsUnavailable(
            f'image {image_id}: {len(names)} chunks are not at this node '
            f'and no agent is configured to fetch them')


class ImageReader:
    """Reads one image through the chunk store."""

    def __init__(self, store: ChunkStore, image: str, name: bytes,
                 source: ChunkSource):
        self._view = store.view([image], name)
        self._refs = store.refs
        self._image = image
        self._name = name
        self._source = source

    def _chunks(self, names: list[bytes]) -> dict[bytes, bytes]:
        """Return verified chunks, fetching what is missing or corrupt."""
        found: dict[bytes, bytes] = {}
        missing = names
        for _ in range(3):
            here, missing = self._view.load(missing)
            found.update(here)
            if not missing:
                return found
            self._source.ensure(self._image, self._name, missing)
        raise errors.BitsUnavailable(
            f'image {self._image}: chunk {missing[0].hex()} keeps failing '
            f'verification on this node')

    def manifest(self) -> Manifest:
        """Return the image's manifest, fetched if need be.

        :raises BitsElsewhere, BitsUnavailable, ManifestInvalid: see there
        """
        return manifest.parse_root(self._chunks([self._name])[self._name])

    def _windows(self, root: Manifest, start: int, stop: int,
                 ) -> Iterator[list[tuple[Extent, int, int]]]:
        """Yield lists of (extent, from, to) that cover the range in order."""
        window: list[tuple[Extent, int, int]] = []
        length = 0
        for offset, ref in manifest.within(root.segments, start, stop):
            data = self._chunks([ref.name])[ref.name]
            for extent in manifest.parse_segment(ref, data):
                low = max(start - offset, 0)
                high = min(stop - offset, extent.length)
                offset += extent.length
                while low < high:
                    # A hole can be larger than memory: take it in parts.
                    part = min(high, low + _WINDOW)
                    window.append((extent, low, part))
                    length += part - low
                    low = part
                    if length >= _WINDOW:
                        yield window
                        window, length = [], 0
        if window:
            yield window

    def _load(self, window: list[tuple[Extent, int, int]]) -> list[bytes]:
        chunks = self._chunks([extent.name for extent, _, _ in window
                               if extent.name])
        pieces: list[bytes] = []
        batch: list[bytes] = []
        size = 0

        def close() -> None:
            nonlocal size
            if batch:
                pieces.append(batch[0] if len(batch) == 1
                              else b''.join(batch))
                batch.clear()
                size = 0
        for extent, low, high in window:
            if extent.name is None:
                # The same zeros again and again: nothing is copied.
                close()
                pieces += [_ZEROS] * ((high - low) // len(_ZEROS))
                rest = (high - low) % len(_ZEROS)
                if rest:
                    pieces.append(_ZEROS[:rest])
                continue
            data = chunks[extent.name]
            if len(data) != extent.length:
                raise errors.ManifestInvalid(
                    f'image {self._image}: its manifest says '
                    f'{extent.length} bytes of chunk {extent.name.hex()}, '
                    f'which has {len(data)}')
            if (low, high) != (0, len(data)):
                data = data[low:high]
            batch.append(data)
            size += len(data)
            if size >= _PIECE:
                close()
        close()
        return pieces

    def read(self, start: int = 0, length: int | None = None,
             ) -> tuple[Iterator[bytes], int]:
        """Return (iterator over the range's bytes, image size).

        :raises BitsElsewhere, BitsUnavailable, ManifestInvalid: at once, or
            from the iterator, which never ends early as if whole
        """
        root = self.manifest()
        self._refs.used(self._image, self._name)
        stop = root.size if length is None else min(root.size, start + length)
        windows = self._windows(root, start, max(start, stop))
        pool = ThreadPoolExecutor(2, thread_name_prefix='geo-read')
        try:
            ahead: deque[Future] = deque()
            first = next(windows, None)
            head = [] if first is None else self._load(first)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise

        def stream() -> Iterator[bytes]:
            try:
                for window in windows:
                    ahead.append(pool.submit(self._load, window))
                    if len(ahead) == 1 and head:
                        yield from head
                        head.clear()
                    if len(ahead) >= _AHEAD:
                        yield from ahead.popleft().result()
                yield from head
                while ahead:
                    yield from ahead.popleft().result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
        return stream(), root.size
