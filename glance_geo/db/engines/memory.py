# SPDX-License-Identifier: Apache-2.0
"""Metadata in this process's memory: for tests, and to read how little an
engine must do."""

import bisect
import itertools
import threading
import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from glance_geo.core import errors
from glance_geo.core.engine import (
    Entry,
    MetadataEngine,
    Position,
    Range,
    Stored,
    Term,
    Trait,
)


class MemoryEngine(MetadataEngine):
    """A dictionary and sorted lists under one lock."""

    traits = frozenset((Trait.COMPARE_AND_SET, Trait.CHANGE_FEED))

    def __init__(self) -> None:
        self._lock = threading.Condition(threading.RLock())
        self._life = uuid.uuid4().hex
        self.reset()

    def life(self) -> str:
        return self._life

    def renew_life(self) -> None:
        with self._lock:
            self._life = uuid.uuid4().hex

    def reset(self) -> None:
        with self._lock:
            self._entries: dict[str, Entry] = {}
            self._terms: dict[str, list[tuple[str, bytes]]] = {}
            self._indexes: dict[str, list[tuple[bytes, str]]] = {}
            self._number = 0
            self._tokens = itertools.count(1)

    def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        with self._lock:
            return {key: self._entries[key] for key in keys
                    if key in self._entries}

    def put(self, key: str, value: bytes, token: Any,
            terms: Iterable[Term], numbered: bool = False,
            life: str | None = None) -> Stored:
        with self._lock:
            self._check(key, token)
            if life not in (None, self._life):
                raise errors.StaleToken(key)
            number = 0
            if numbered:
                self._number += 1
                number = self._number
            self._unindex(key)
            self._entries[key] = Entry((value,), number, next(self._tokens))
            self._terms[key] = []
            for term in terms:
                suffix = b'%016x' % number if term.stamped else b''
                position = (term.value + suffix, key)
                bisect.insort(self._indexes.setdefault(term.index, []),
                              position)
                self._terms[key].append((term.index, position[0]))
            self._lock.notify_all()
            return Stored(number)

    def _check(self, key: str, token: Any) -> None:
        present = self._entries.get(key)
        if (present.token if present else None) != token:
            raise errors.StaleToken(key)

    def _unindex(self, key: str) -> None:
        for index, term in self._terms.pop(key, ()):
            positions = self._indexes[index]
            del positions[bisect.bisect_left(positions, (term, key))]

    def delete(self, key: str, token: Any = None) -> None:
        with self._lock:
            if token is not None:
                self._check(key, token)
            self._unindex(key)
            self._entries.pop(key, None)

    def look(self, ranges: Sequence[Range], keys: Sequence[str] = (),
             ) -> tuple[list[list[Position]], dict[str, Entry]]:
        with self._lock:
            return ([self._positions(range) for range in ranges],
                    self.get_many(keys))

    def _positions(self, range: Range) -> list[Position]:
        positions = self._indexes.get(range.index, [])
        low = (0 if range.start is None
               else bisect.bisect_left(positions, (range.start, '')))
        high = (len(positions) if range.stop is None
                else bisect.bisect_left(positions, (range.stop, '')))
        if range.limit is not None and range.reverse:
            low = max(low, high - range.limit)
        elif range.limit is not None:
            high = min(high, low + range.limit)
        found = positions[low:high]
        return found[::-1] if range.reverse else found

    def indexes(self, prefix: str) -> list[str]:
        with self._lock:
            return sorted(name for name, positions in self._indexes.items()
                          if name.startswith(prefix) and positions)

    def last_number(self) -> int:
        with self._lock:
            return self._number

    def wait(self, number: int, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        with self._lock:
            while self._number <= number:
                left = deadline - time.monotonic()
                if left <= 0 or not self._lock.wait(left):
                    break
            return self._number

    def close(self) -> None:
        pass


def open_engine(url: str, **requirements: Any) -> MemoryEngine:
    """Open a new, empty engine; every call gives another one."""
    return MemoryEngine()
