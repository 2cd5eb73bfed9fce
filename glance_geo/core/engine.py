# SPDX-License-Identifier: Apache-2.0
"""The interface of metadata engines."""

from __future__ import annotations

import abc
import dataclasses
import enum
from collections.abc import Iterable, Sequence
from typing import Any


class Trait(enum.Enum):
    """What a metadata engine can promise."""

    COMPARE_AND_SET = 'compare-and-set'
    SIBLINGS = 'siblings'
    DURABLE = 'durable'
    REPLICATES = 'replicates'
    CHANGE_FEED = 'change feed'
    SHARED = 'shared by nodes'


@dataclasses.dataclass(frozen=True)
class Entry:
    """What an engine holds at a key.

    :ivar values: one value, or several siblings to be merged
    :ivar stamp: the number given to the last numbered put of the key
    :ivar token: opaque; proves to ``put`` what was read
    """

    values: tuple[bytes, ...]
    stamp: int
    token: Any


@dataclasses.dataclass(frozen=True)
class Term:
    """One position of a key in one index.

    :ivar stamped: the engine appends the put's number, as 16 hex digits
    :ivar descends: the index is scanned in reverse too; only engines whose
        product walks one way look at it
    """

    index: str
    value: bytes
    stamped: bool = False
    descends: bool = False


Position = tuple[bytes, str]
"""(term, key) in an index."""


@dataclasses.dataclass(frozen=True)
class Range:
    """A part of an index, ordered by term.

    :ivar start: the least term, inclusive; None: from the first
    :ivar stop: the first term past the range; None: to the last
    :ivar limit: at most so many positions; None: all
    """

    index: str
    start: bytes | None = None
    stop: bytes | None = None
    reverse: bool = False
    limit: int | None = None


@dataclasses.dataclass(frozen=True)
class Stored:
    """What a put did.

    :ivar number: the put's number, 0 if not numbered
    :ivar entry: what is at the key now, where that is not just the value
        that was put: siblings that another writer stored meanwhile
    """

    number: int = 0
    entry: Entry | None = None


class MetadataEngine(abc.ABC):
    """A key-value store with secondary indexes.

    Values and index terms are opaque bytes; terms order bytewise. Every
    method may be repeated; all but ``put`` are idempotent. Any method raises
    ``EngineUnavailable`` when the product behind it does not answer: of a put
    it is then unknown whether it was stored.

    Engines with ``COMPARE_AND_SET`` refuse a put whose token is stale, and
    number puts. Those with ``SIBLINGS`` take every put and keep what was
    written concurrently side by side; they number nothing, and their indexes
    may name a key under terms of any of its siblings: readers check.
    """

    traits: frozenset[Trait] = frozenset()

    def life(self) -> str:
        """Return the name of the data's present life.

        It differs after any event that may have taken back numbered puts: a
        restored backup, a failover.
        """
        return ''

    def renew_life(self) -> None:  # noqa: B027, engines without lives
        """Begin another life of the data: somebody found it restored."""

    @abc.abstractmethod
    def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        """Return what is stored at those of the keys that exist."""

    def get(self, key: str) -> Entry | None:
        """Return what is stored at the key."""
        return self.get_many([key]).get(key)

    @abc.abstractmethod
    def put(self, key: str, value: bytes, token: Any,
            terms: Iterable[Term], numbered: bool = False,
            life: str | None = None) -> Stored:
        """Store a value and its index terms in one atomic step.

        :param token: of the entry that was read; None: the key must be new
        :param numbered: give this put the next number of the engine; puts
            become visible in the order of their numbers
        :param life: refuse the put in another life of the data than this
        :raises StaleToken: the key changed since it was read, or it is
            another life
        """

    @abc.abstractmethod
    def delete(self, key: str, token: Any = None) -> None:
        """Remove the key and its terms; a missing key is no error.

        :param token: remove only what was read with this token
        :raises StaleToken: the key changed since it was read
        """

    @abc.abstractmethod
    def look(self, ranges: Sequence[Range], keys: Sequence[str] = (),
             ) -> tuple[list[list[Position]], dict[str, Entry]]:
        """Return the positions in each range, and what is at the keys.

        One round trip, or calls that run beside each other.
        """

    def fetch_many(self, ranges: Sequence[Range],
                   ) -> list[list[tuple[bytes, str, Entry]]]:
        """Return the positions in each range with what is at their keys.

        One round trip, where the product can.
        """
        found, _ = self.look(ranges)
        entries = self.get_many(list(dict.fromkeys(
            key for positions in found for _, key in positions)))
        return [[(term, key, entries[key]) for term, key in positions
                 if key in entries] for positions in found]

    def scan(self, index: str, start: bytes | None = None,
             stop: bytes | None = None, reverse: bool = False,
             limit: int | None = None) -> list[Position]:
        """Return the positions in one range."""
        return self.look([Range(index, start, stop, reverse, limit)])[0][0]

    def fetch(self, index: str, start: bytes | None = None,
              stop: bytes | None = None, reverse: bool = False,
              limit: int | None = None) -> list[tuple[bytes, str, Entry]]:
        """Return the positions in one range with what is at their keys."""
        return self.fetch_many([Range(index, start, stop, reverse,
                                      limit)])[0]

    @abc.abstractmethod
    def indexes(self, prefix: str) -> list[str]:
        """Return the names of the indexes in use that begin with a prefix.

        Engines with ``SIBLINGS`` do not know them, and return none.
        """

    @abc.abstractmethod
    def last_number(self) -> int:
        """Return the number of the latest numbered put that is visible."""

    def wait(self, number: int, timeout: float) -> int:
        """Wait until a put after this one is visible (``CHANGE_FEED``).

        :param timeout: in seconds
        :returns: the number of the latest numbered put, which may be the
            same when the time is over
        """
        raise NotImplementedError

    @abc.abstractmethod
    def reset(self) -> None:
        """Remove everything (for tests and for a bootstrap)."""

    @abc.abstractmethod
    def close(self) -> None:
        """Release what the engine holds open; it can't be used again."""
