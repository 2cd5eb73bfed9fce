# SPDX-License-Identifier: Apache-2.0
"""The chunk store of a node that has none: only an ``ipfs`` store."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NoReturn

from glance_geo.core import errors
from glance_geo.core.interfaces import ChunkView, KeptCopy
from glance_geo.core.manifest import Extent, Manifest, SegmentRef
from glance_geo.store.collect import Collected
from glance_geo.store.compact import Compacted


def _none() -> NoReturn:
    raise errors.StoreUnusable(
        'this node has no geo store (enabled_backends names none)')


class _NoView:
    """Nothing of an image."""

    def missing(self, names: Iterable[bytes]) -> list[bytes]:
        return list(dict.fromkeys(names))

    def load(self, names: Sequence[bytes],
             ) -> tuple[dict[bytes, bytes], list[bytes]]:
        return {}, self.missing(names)

    def read(self, name: bytes) -> bytes:
        raise errors.ChunkMissing(f'chunk {name.hex()} is not here')

    def manifest(self) -> Manifest:
        raise errors.ChunkMissing('no manifest is here')

    def segment(self, ref: SegmentRef) -> list[Extent]:
        raise errors.ChunkMissing('no segment is here')

    def held(self) -> tuple[int, int, int]:
        return 0, 0, 0


class NoChunks:
    """Holds nothing, and takes nothing (a ``LocalChunks``)."""

    limit = 0

    def view(self, images: Collection[str], manifest: bytes) -> ChunkView:
        return _NoView()

    def session(self, project: str) -> NoReturn:
        _none()

    def compress(self, data: bytes) -> NoReturn:
        _none()

    def keep_copy(self, image: str, manifest: bytes,
                  project: str) -> NoReturn:
        _none()

    def drop_copy(self, image: str, manifest: bytes) -> None:
        """There is none."""

    def copies(self) -> set[tuple[str, bytes]]:
        return set()

    def kept_copies(self) -> Sequence[KeptCopy]:
        return ()

    def holder(self, images: Collection[str], manifest: bytes) -> None:
        return None

    def lease(self, image: str, manifest: bytes, node: str) -> NoReturn:
        _none()

    def share(self, image: str, project: str) -> None:
        """There is nothing to share."""

    def settle(self, image: str, listed: Collection[tuple[bytes, str]],
               deleted: bool) -> int:
        return 0

    def used_bytes(self) -> int:
        return 0

    live_bytes = used_bytes

    def is_tight(self) -> bool:
        return False

    def statistics(self) -> dict[str, Any]:
        return {}

    def collect(self, evictable: Collection[tuple[str, bytes]],
                always: bool) -> Collected:
        return Collected(ran=True)

    def compact(self, rate: float, stopped: Callable[[], bool]) -> Compacted:
        return Compacted()
