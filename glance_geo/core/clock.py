# SPDX-License-Identifier: Apache-2.0
"""Hybrid logical clock (Kulkarni et al., 2014), packed into one integer.

48 bits of milliseconds since 1970 and 16 bits of logical counter. Readings
only break ties and order what people see; merging never depends on them.
"""

import threading
from collections.abc import Callable

_LOGICAL_BITS = 16


def pack(milliseconds: int, logical: int = 0) -> int:
    """Return the reading for a wall-clock time and a logical counter."""
    return (milliseconds << _LOGICAL_BITS) | logical


def milliseconds(reading: int) -> int:
    """Return the wall-clock part of a reading, in ms since 1970."""
    return reading >> _LOGICAL_BITS


class HybridClock:
    """Issues readings that never repeat and never run backwards.

    :param wall: returns ms since 1970; injected so that tests can scramble it
    :param max_ahead_ms: a remote reading moves this clock at most so far past
        the wall clock; beyond that it is ignored, so that one site with a
        wrong clock can't drag all others with it
    """

    def __init__(self, wall: Callable[[], int], max_ahead_ms: int = 60_000):
        self._wall = wall
        self._max_ahead_ms = max_ahead_ms
        self._last = 0
        self._lock = threading.Lock()

    def next(self) -> int:
        """Return a reading greater than all that were issued or observed."""
        with self._lock:
            self._last = max(self._last + 1, pack(self._wall()))
            return self._last

    def observe(self, reading: int) -> int:
        """Take a remote reading into account.

        :returns: by how many ms the remote clock is ahead of the wall clock
            (negative when behind); the caller decides whether to alarm
        """
        with self._lock:
            wall = self._wall()
            ahead = milliseconds(reading) - wall
            if ahead <= self._max_ahead_ms:
                self._last = max(self._last, reading)
            return ahead
