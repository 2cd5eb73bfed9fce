# SPDX-License-Identifier: Apache-2.0
"""Content-defined splitting of an image into holes and chunks.

Zero blocks of 64 KiB (aligned to the image's start) become holes; what is
between them is cut by FastCDC (Xia et al., 2020) into chunks of 32 KiB on
average. Boundaries depend on the bytes alone, never on how they were fed.
"""

from collections.abc import Generator, Iterator

import pyfastcdc

from glance_geo.core import errors

ZERO_BLOCK = 64 * 1024
AVERAGE = 32 * 1024
MAXIMUM = 128 * 1024
_ZEROS = bytes(ZERO_BLOCK)

Data = bytes | memoryview


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

    ``feed`` and ``finish`` yield, in order, ``Hole`` or data, which mostly is
    a view of what was fed: nothing is copied that need not be.
    """

    def __init__(self) -> None:
        self._cdc = pyfastcdc.FastCDC(AVERAGE, max_size=MAXIMUM)
        self._tail = b''    # less than a zero block
        self._rest = b''    # data that is not cut yet
        self._hole = 0

    def feed(self, data: bytes) -> Iterator[Hole | Data]:
        """Take the next bytes; yield what is certain by now."""
        if self._tail:
            data = self._tail + data
        whole = len(data) - len(data) % ZERO_BLOCK
        self._tail = data[whole:]
        begin = 0
        for start in range(0, whole, ZERO_BLOCK):
            # Compares in place, and ends at the first byte that differs.
            if data.startswith(_ZEROS, start):
                yield from self._data(data, begin, start, final=True)
                begin = start + ZERO_BLOCK
                self._hole += ZERO_BLOCK
        yield from self._data(data, begin, whole, final=False)

    def finish(self) -> Iterator[Hole | Data]:
        """Yield what is left; the chunker is then used up."""
        tail, self._tail = self._tail, b''
        if tail and not tail.strip(b'\0'):
            yield from self._data(b'', 0, 0, final=True)
            self._hole += len(tail)
        else:
            yield from self._data(tail, 0, len(tail), final=True)
        if self._hole:
            yield Hole(self._hole)

    def _data(self, data: Data, start: int, stop: int,
              final: bool) -> Iterator[Hole | Data]:
        """Take data[start:stop], which no hole interrupts.

        :param final: a hole, or the end, follows
        """
        if start == stop and not (final and self._rest):
            return
        if self._hole:
            yield Hole(self._hole)
            self._hole = 0
        view = memoryview(data)[start:stop]
        if self._rest:
            # Join as little as decides where the rest's chunks end.
            rest, size = self._rest, len(self._rest)
            joined = rest + view[:MAXIMUM]
            done = yield from self._cut(joined, final
                                        and len(view) <= MAXIMUM, size)
            if done < size:
                self._rest = joined[done:]
                return
            view = view[done - size:]
        done = yield from self._cut(view, final, len(view))
        self._rest = bytes(view[done:])

    def _cut(self, run: Data, final: bool,
             enough: int) -> Generator[Data, None, int]:
        """Yield chunks until ``enough`` bytes are cut; return how many are.

        A cut looks ahead by at most MAXIMUM: with less than that in hand,
        later bytes could still move it.
        """
        done = 0
        if final or len(run) >= MAXIMUM:
            for chunk in self._cdc.cut_buf(run):
                if done >= enough or (
                        not final and len(run) - chunk.offset < MAXIMUM):
                    break
                done = chunk.offset + chunk.length
                yield run[chunk.offset:done]
        return done
