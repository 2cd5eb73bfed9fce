# SPDX-License-Identifier: Apache-2.0
"""Reading an image: a manifest's byte range becomes verified bytes.

The range is read in windows, a few ahead of the reader. What a window lacks
is asked of a ``ChunkSource`` (the agent, which fetches it from other nodes),
together with what the next windows lack; the first window is complete before
reading begins, so that an error there can still become an HTTP status.
"""

from __future__ import annotations

import bisect
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from glance_geo.core import errors, manifest
from glance_geo.core.interfaces import ChunkSource
from glance_geo.core.manifest import Extent, Manifest, SegmentRef
from glance_geo.store.chunkstore import ChunkStore

_WINDOW = 1024 * 1024
# Windows that are decoded ahead of the reader, and windows after the one that
# lacks something whose chunks are fetched with it.
_AHEAD = 4
_FETCH_AHEAD = 4
_FETCH_MAXIMUM = 128
_ZEROS = bytes(1024 * 1024)
_PIECE = 256 * 1024

Window = list[tuple[Extent, int, int]]
"""(extent, from, to) of what a part of the image is made of, in order."""


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
        self._parsed = store.parsed
        self._image = image
        self._name = name
        self._source = source

    def _chunks(self, names: Sequence[bytes],
                following: Sequence[bytes] = ()) -> dict[bytes, bytes]:
        """Return verified chunks, fetching what is missing or corrupt.

        :param following: what will be wanted next, to be fetched along
        """
        found: dict[bytes, bytes] = {}
        missing: Sequence[bytes] = names
        for _ in range(3):
            here, missing = self._view.load(missing)
            found.update(here)
            if not missing:
                return found
            more = self._view.missing(n for n in following
                                      if n not in missing)
            self._source.ensure(self._image, self._name, [
                *missing, *more[:max(0, _FETCH_MAXIMUM - len(missing))]])
        raise errors.BitsUnavailable(
            f'image {self._image}: chunk {missing[0].hex()} keeps failing '
            f'verification on this node')

    def manifest(self) -> Manifest:
        """Return the image's manifest, fetched if need be.

        :raises BitsElsewhere, BitsUnavailable, ManifestInvalid: see there
        """
        return manifest.parse_root(self._chunks([self._name])[self._name])

    def _extents(self, root: Manifest, start: int, stop: int) -> Iterator[
            tuple[int, Extent]]:
        """Yield (image offset, extent) of those that overlap a range."""
        for offset, ref in manifest.within(root.segments, start, stop):
            extents, ends = self._segment(ref)
            first = bisect.bisect_right(ends, start - offset)
            offset += ends[first - 1] if first else 0
            for extent in itertools.islice(extents, first, None):
                if offset >= stop:
                    return
                yield offset, extent
                offset += extent.length

    def _segment(self, ref: SegmentRef) -> tuple[list[Extent], list[int]]:
        """Return a segment's extents, and where each ends in it."""
        # Named by its bytes: what was parsed once stays true.
        found = self._parsed.get(ref.name)
        if found is None:
            extents = manifest.parse_segment(
                ref, self._chunks([ref.name])[ref.name])
            found = (extents, list(itertools.accumulate(
                extent.length for extent in extents)))
            self._parsed.put(ref.name, found)
        return found

    def _windows(self, root: Manifest, start: int, stop: int,
                 ) -> Iterator[Window]:
        """Yield windows that cover the range in order."""
        window: Window = []
        length = 0
        for offset, extent in self._extents(root, start, stop):
            low = max(start - offset, 0)
            high = min(stop - offset, extent.length)
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

    @staticmethod
    def _names(window: Window) -> list[bytes]:
        return [extent.name for extent, _, _ in window if extent.name]

    def _load(self, window: Window, following: Sequence[bytes],
              ) -> list[bytes]:
        chunks = self._chunks(self._names(window), following)
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
        ahead = _Ahead(self._windows(root, start, max(start, stop)),
                       self._load, self._names)
        first = ahead.take()

        def stream() -> Iterator[bytes]:
            pieces = first
            try:
                while pieces is not None:
                    yield from pieces
                    pieces = ahead.take()
            finally:
                ahead.close()
        return stream(), root.size


class _Ahead:
    """Loads windows ahead of the reader, in two threads."""

    def __init__(self, windows: Iterator[Window],
                 load: Callable[[Window, Sequence[bytes]], list[bytes]],
                 names: Callable[[Window], list[bytes]]):
        self._windows = windows
        self._load = load
        self._names = names
        self._planned: deque[Window] = deque()
        self._loading: deque[Future[list[bytes]]] = deque()
        self._pool = ThreadPoolExecutor(2, thread_name_prefix='geo-read')

    def take(self) -> list[bytes] | None:
        """Return the next window's pieces; None at the end.

        :raises GeoError: as ``ImageReader.read``; nothing more comes then
        """
        try:
            while len(self._loading) < _AHEAD and self._plan():
                window = self._planned.popleft()
                following = [name for each in self._planned
                             for name in self._names(each)]
                self._loading.append(self._pool.submit(
                    self._load, window, following))
            if not self._loading:
                self.close()
                return None
            return self._loading.popleft().result()
        except BaseException:
            self.close()
            raise

    def _plan(self) -> bool:
        """Look at the next windows; say whether there is one."""
        while len(self._planned) <= _FETCH_AHEAD:
            window = next(self._windows, None)
            if window is None:
                break
            self._planned.append(window)
        return bool(self._planned)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
