# SPDX-License-Identifier: Apache-2.0
"""The interfaces through which the layers meet. Nothing else lives here.

``db``, ``store`` and ``replication`` import these, never each other;
``glance_geo.assembly`` puts the concrete parts together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import (
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AbstractContextManager
from typing import Any, Protocol

from glance_geo.core.digests import Digests
from glance_geo.core.manifest import Extent, Manifest, SegmentRef
from glance_geo.core.records import Context, Record


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

    @property
    def replicates(self) -> bool: ...

    @property
    def feeds(self) -> bool: ...

    def known(self) -> dict[str, Context]: ...

    def learn(self, known: Mapping[str, Mapping[str, int]]) -> None: ...

    def digests(self) -> Digests: ...

    def bucket(self, number: int) -> dict[str, bytes]: ...

    def states(self, keys: Sequence[str]) -> Iterator[Record]: ...

    def is_gone(self, record: Record) -> bool: ...

    def drop(self, key: str, seen: Mapping[str, int]) -> bool: ...

    def tombstones(self, before_us: int,
                   ) -> Iterator[tuple[Record, Any]]: ...

    def forget(self, key: str, token: Any) -> bool: ...

    def wait(self, number: int, timeout: float) -> int: ...


class ChunkSession(Protocol):
    """A writer of the local chunk store."""

    def unknown(self, names: Sequence[bytes]) -> list[bytes]: ...

    def put(self, name: bytes, codec: int, stored: Any,
            raw: int) -> None: ...

    def flush(self) -> None: ...

    def commit(self) -> None: ...

    def abort(self) -> None: ...


class ChunkView(Protocol):
    """What the local chunk store holds of one image."""

    def missing(self, names: Iterable[bytes]) -> list[bytes]: ...

    def load(self, names: Sequence[bytes],
             ) -> tuple[dict[bytes, bytes], list[bytes]]: ...

    def read(self, name: bytes) -> bytes: ...

    def manifest(self) -> Manifest: ...

    def segment(self, ref: SegmentRef) -> list[Extent]: ...

    def held(self) -> tuple[int, int, int]: ...


class KeptCopy(Protocol):
    """A copy that was fetched from elsewhere.

    :ivar used: when it was read last, seconds since 1970
    """

    @property
    def image(self) -> str: ...

    @property
    def manifest(self) -> bytes: ...

    @property
    def used(self) -> int: ...


class LocalChunks(Protocol):
    """The node's chunk store, as replication sees it."""

    limit: int

    def view(self, images: Collection[str],
             manifest: bytes) -> ChunkView: ...

    def session(self, project: str) -> ChunkSession: ...

    def compress(self, data: bytes) -> tuple[int, Any]: ...

    def keep_copy(self, image: str, manifest: bytes,
                  project: str) -> str: ...

    def drop_copy(self, image: str, manifest: bytes) -> None: ...

    def copies(self) -> set[tuple[str, bytes]]: ...

    def kept_copies(self) -> Sequence[KeptCopy]: ...

    def holder(self, images: Collection[str],
               manifest: bytes) -> str | None: ...

    def lease(self, image: str, manifest: bytes, node: str) -> None: ...

    def share(self, image: str, project: str) -> None: ...

    def settle(self, image: str, listed: Collection[tuple[bytes, str]],
               deleted: bool) -> int: ...

    def used_bytes(self) -> int: ...

    def live_bytes(self) -> int: ...

    def is_tight(self) -> bool: ...

    def statistics(self) -> dict[str, Any]: ...

    def collect(self, evictable: Collection[tuple[str, bytes]],
                always: bool) -> Any: ...

    def compact(self, rate: float, stopped: Callable[[], bool]) -> Any: ...


@dataclasses.dataclass(frozen=True, order=True)
class PinReference:
    """On whose behalf a node of IPFS keeps a file.

    :ivar nonce: of the location that lists it, or ``copy``
    """

    image: str
    cid: str
    nonce: str


class FilePins(Protocol):
    """What the node's IPFS keeps for one store, as replication sees it."""

    def all(self) -> list[PinReference]: ...

    def asked(self) -> list[PinReference]: ...

    def keep(self, ref: PinReference,
             stopped: Callable[[], bool] = ...) -> None: ...

    def leave(self, ref: PinReference) -> None: ...

    def answered(self, ref: PinReference) -> None: ...

    def repair(self) -> Sequence[str]: ...


class ChunkProvider(Protocol):
    """Somebody who may have the chunks that are missing here."""

    @property
    def label(self) -> str:
        """Who it is, for errors: ``site paris``, ``the swarm``."""

    def chunks(self, image: str, manifest: bytes, names: Sequence[bytes],
               ) -> AbstractContextManager[Iterable[bytes]]:
        """Return, in order, each chunk's bytes; b'' for one it has not.

        :raises Unreachable, PeerRefused, PeerMisbehaved: it gives none
        """


class ChunkPublisher(Protocol):
    """Offers the chunks of whole images to others."""

    def published(self) -> set[tuple[str, bytes]]:
        """Return (image, manifest) of what is offered."""

    def publish(self, image: str, manifest: bytes, view: ChunkView,
                stopped: Callable[[], bool]) -> None:
        """Offer an image; may be repeated."""

    def withdraw(self, image: str, manifest: bytes) -> None:
        """Offer an image no longer; may be repeated."""


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
