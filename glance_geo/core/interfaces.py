# SPDX-License-Identifier: Apache-2.0
"""The interfaces through which the layers meet. Nothing else lives here.

``db``, ``store`` and ``replication`` import these, never each other;
``glance_geo.assembly`` puts the concrete parts together.
"""

from __future__ import annotations

import abc
import dataclasses
import enum
from collections.abc import (
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from typing import Any, Protocol

from glance_geo.core.manifest import Extent, Manifest, SegmentRef
from glance_geo.core.records import Context, Record


class Trait(enum.Enum):
    """What a metadata engine can promise."""

    COMPARE_AND_SET = 'compare-and-set'
    SIBLINGS = 'siblings'
    DURABLE = 'durable'
    REPLICATES = 'replicates'


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
    """

    index: str
    value: bytes
    stamped: bool = False


class MetadataEngine(abc.ABC):
    """A key-value store with secondary indexes.

    Values and index terms are opaque bytes; terms order bytewise. Every
    method may be repeated; all but ``put`` are idempotent. Any method raises
    ``EngineUnavailable`` when the product behind it does not answer.
    """

    traits: frozenset[Trait] = frozenset()

    @abc.abstractmethod
    def get(self, key: str) -> Entry | None:
        """Return what is stored at the key."""

    @abc.abstractmethod
    def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        """Return what is stored at those of the keys that exist."""

    @abc.abstractmethod
    def put(self, key: str, value: bytes, token: Any,
            terms: Iterable[Term], numbered: bool = False) -> int:
        """Store a value and its index terms in one atomic step.

        :param token: of the entry that was read; None: the key must be new
        :param numbered: give this put the next number of the engine; puts
            become visible in the order of their numbers
        :returns: the number, 0 if not numbered
        :raises StaleToken: the key changed since it was read
        """

    @abc.abstractmethod
    def delete(self, key: str) -> None:
        """Remove the key and its terms; a missing key is no error."""

    @abc.abstractmethod
    def scan(self, index: str, start: bytes | None = None,
             stop: bytes | None = None, reverse: bool = False,
             limit: int | None = None) -> list[tuple[bytes, str]]:
        """Return (term, key) of an index, ordered by term.

        :param start: the least term, inclusive; None: from the first
        :param stop: the first term past the range; None: to the last
        """

    @abc.abstractmethod
    def indexes(self, prefix: str) -> list[str]:
        """Return the names of the indexes in use that begin with a prefix."""

    @abc.abstractmethod
    def last_number(self) -> int:
        """Return the number of the latest numbered put that is visible."""

    @abc.abstractmethod
    def reset(self) -> None:
        """Remove everything (for tests)."""

    @abc.abstractmethod
    def close(self) -> None:
        """Release what the engine holds open; it can't be used again."""


class RecordLog(Protocol):
    """The records of a site, as replication sees them."""

    @property
    def incarnation(self) -> str: ...

    def get(self, kind: str, id: str) -> Record | None: ...

    def images_of(self, id: str) -> Sequence[Record]: ...

    def list(self, kind: str) -> Iterator[Record]: ...

    def update(self, kind: str, id: str,
               change: Callable[[Any], Mapping[str, Any] | None],
               ) -> Any: ...

    def absorb(self, incoming: Record) -> bool: ...

    def vector(self) -> Context: ...

    def advance(self, seen: Mapping[str, int]) -> None: ...

    def newer(self, than: Mapping[str, int]) -> Iterator[Record]: ...

    def renew_incarnation(self) -> str: ...


class ChunkSession(Protocol):
    """A writer of the local chunk store."""

    def unknown(self, names: Sequence[bytes]) -> list[bytes]: ...

    def put(self, name: bytes, codec: int, stored: bytes,
            raw: int) -> None: ...

    def flush(self) -> None: ...

    def commit(self) -> None: ...

    def abort(self) -> None: ...


class LocalChunks(Protocol):
    """The node's chunk store, as replication sees it."""

    def missing(self, names: Iterable[bytes]) -> list[bytes]: ...

    def read(self, name: bytes) -> bytes: ...

    def manifest(self, name: bytes) -> Manifest: ...

    def segment(self, ref: SegmentRef) -> list[Extent]: ...

    def held(self, name: bytes) -> tuple[int, int, int]: ...

    def session(self) -> ChunkSession: ...

    def compress(self, data: bytes) -> tuple[int, bytes]: ...

    def keep_copy(self, image: str, manifest: bytes) -> None: ...

    def copies(self) -> set[tuple[str, bytes]]: ...

    def settle(self, image: str, listed: Collection[tuple[bytes, str]],
               deleted: bool) -> int: ...

    def collect(self) -> Any: ...


class ChunkSource(Protocol):
    """Something that can bring missing chunks into the local chunk store."""

    def ensure(self, image_id: str, manifest: bytes,
               names: Sequence[bytes]) -> None:
        """Return when every named chunk is in the local chunk store.

        May be repeated; concurrent calls for one chunk cause one transfer.

        :raises BitsElsewhere: placement refuses these bits to this site
        :raises BitsUnavailable: no reachable node has them
        """


class Neighbour(Protocol):
    """What the data API asks of the node's agent."""

    def changed(self) -> None:
        """Hint that records changed; never blocks, never fails."""

    def claim_home(self, image_id: str) -> None:
        """Make this site the home of a queued image.

        :raises HomeUnreachable: the present home is cut off
        """
