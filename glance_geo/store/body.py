# SPDX-License-Identifier: Apache-2.0
"""The body of an upload: blocks, and the hashes that Glance wants of them.

md5, the multihash and whoever takes the blocks run beside each other (the
libraries release the GIL), a few blocks apart.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from glance_geo.core import errors

BLOCK = 2 * 1024 * 1024
_BLOCKS_IN_FLIGHT = 5


class Readable(Protocol):
    def read(self, size: int) -> bytes: ...


class SizeMismatch(errors.GeoError):
    """The body is shorter or longer than announced."""


class ImageBody:
    """Iterates over a body's blocks, once; a context manager.

    :param announced: bytes; 0: unknown
    :param hashing_algo: of the multihash, as ``hashlib`` names it
    :param verifier: gets every block (Glance's signature check)
    :ivar size: bytes that came

    Iterating raises SizeMismatch, the latest at the end.
    """

    def __init__(self, image: str, source: Readable, announced: int,
                 hashing_algo: str, verifier: Any = None):
        self._image = image
        self._source = source
        self._announced = announced
        self._verifier = verifier
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._multihash = hashlib.new(hashing_algo)
        self._threads = (ThreadPoolExecutor(1), ThreadPoolExecutor(1))
        self.size = 0

    def __enter__(self) -> ImageBody:
        return self

    def __exit__(self, *_: Any) -> None:
        for thread in self._threads:
            thread.shutdown()

    def _blocks(self) -> Iterator[bytes]:
        """Yield blocks of full size; sources give as little as they like."""
        parts: list[bytes] = []
        length = 0
        while True:
            data = self._source.read(BLOCK - length)
            if data:
                parts.append(data)
                length += len(data)
            if parts and (length >= BLOCK or not data):
                yield parts[0] if len(parts) == 1 else b''.join(parts)
                parts, length = [], 0
            if not data:
                return

    def __iter__(self) -> Iterator[bytes]:
        hashing: deque[list[Future]] = deque()
        one, two = self._threads
        for block in self._blocks():
            self.size += len(block)
            if self._announced and self.size > self._announced:
                raise SizeMismatch(
                    f'image {self._image}: body is longer than the '
                    f'{self._announced} bytes announced')
            hashing.append([one.submit(self._md5.update, block),
                            two.submit(self._multihash.update, block)])
            if self._verifier is not None:
                self._verifier.update(block)
            yield block
            if len(hashing) >= _BLOCKS_IN_FLIGHT:
                for future in hashing.popleft():
                    future.result()
        for futures in hashing:
            for future in futures:
                future.result()
        if self._announced and self.size != self._announced:
            raise SizeMismatch(
                f'image {self._image}: body has {self.size} bytes, '
                f'{self._announced} were announced')

    @property
    def checksum(self) -> str:
        """The md5, once all was iterated over."""
        return self._md5.hexdigest()

    @property
    def multihash(self) -> str:
        """The multihash, once all was iterated over."""
        return self._multihash.hexdigest()
