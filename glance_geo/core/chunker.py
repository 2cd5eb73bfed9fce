# SPDX-License-Identifier: Apache-2.0
"""Content-defined splitting of an image into holes and chunks.

Zero blocks of 64 KiB (aligned to the image's start) become holes; what is
between them is cut by FastCDC (Xia et al., 2020) into chunks of 32 KiB on
average. Boundaries depend on the bytes alone, never on how they were fed.
"""

from collections.abc import Iterator

import pyfastcdc

from glance_geo.core import errors

ZERO_BLOCK = 64 * 1024
AVERAGE = 32 * 1024
MAXIMUM = 128 * 1024
_ZEROS = bytes(ZERO_BLOCK)


def check_library() -> None:
    """Refuse the pure-Python fallback, which is 400 times slower.

    :raises StoreUnusable: the compiled chunker is not there
    """
    if '.cy' not in pyfastcdc.FastCDC.__module__:
        raise errors.StoreUnusable(
            'pyfastcdc runs on its pure-Python fallback, which is too slow; '
            'install a binary wheel of pyfastcdc for this platform')


class Hole(int):
    """A run of so many zero bytes."""


class Chunker:
    """Splits a stream fed in pieces of any size.

    ``feed`` and ``finish`` yield, in order, ``Hole`` or ``bytes``.
    """

    def __init__(self) -> None:
        self._cdc = pyfastcdc.FastCDC(AVERAGE, max_size=MAXIMUM)
        self._tail = b''
        self._run = bytearray()
        self._hole = 0

    def feed(self, data: bytes) -> Iterator[Hole | bytes]:
        """Take the next bytes; yield what is certain by now."""
        if self._tail:
            data = self._tail + data
        whole = len(data) - len(data) % ZERO_BLOCK
        self._tail = data[whole:]
        for start in range(0, whole, ZERO_BLOCK):
            yield from self._block(data[start:start + ZERO_BLOCK])
        yield from self._cut(final=False)

    def finish(self) -> Iterator[Hole | bytes]:
        """Yield what is left; the chunker is then used up."""
        if self._tail:
            yield from self._block(self._tail)
        yield from self._cut(final=True)
        if self._hole:
            yield Hole(self._hole)

    def _block(self, block: bytes) -> Iterator[Hole | bytes]:
        zero = (block == _ZEROS if len(block) == ZERO_BLOCK
                else not block.strip(b'\0'))
        if zero:
            yield from self._cut(final=True)
            self._hole += len(block)
            return
        if self._hole:
            yield Hole(self._hole)
            self._hole = 0
        self._run += block

    def _cut(self, final: bool) -> Iterator[bytes]:
        if not self._run or not (final or len(self._run) >= MAXIMUM):
            return
        run = bytes(self._run)
        done = 0
        for chunk in self._cdc.cut_buf(run):
            # A cut looks ahead by at most MAXIMUM: with less than that in
            # hand, later bytes could still move it.
            if not final and len(run) - chunk.offset < MAXIMUM:
                break
            done = chunk.offset + chunk.length
            yield run[chunk.offset:done]
        del self._run[:done]
