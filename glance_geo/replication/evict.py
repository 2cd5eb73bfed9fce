# SPDX-License-Identifier: Apache-2.0
"""Eviction: copies that placement does not want here make room (P8).

A copy goes only under a *keep-lease*: another node that holds the image whole
promises, durably, to keep its own until yet another one promises the same. A
node that is giving a copy up makes no such promise for it, so two nodes that
try at once both keep theirs. Cut off, nothing is evicted.
"""

import dataclasses
import logging
import threading
from collections.abc import Callable, Sequence

from glance_geo.core import errors
from glance_geo.core.interfaces import KeptCopy, LocalChunks, RecordLog
from glance_geo.replication.client import PeerClient
from glance_geo.replication.sources import with_manifest

LOG = logging.getLogger(__name__)

# Evict down to this share of the limit, so that uploads find room.
_LOW_WATER = 0.9


@dataclasses.dataclass
class Evicted:
    """What evictions did so far.

    :ivar blocked: why the last copy that should have gone did not
    """

    copies: int = 0
    bytes: int = 0
    blocked: str | None = None


class Evictor:
    """Evicts one node's copies, and answers those who evict theirs.

    :param order: returns the peers to ask for a promise, best first
    :param evicted: told (image id, ids of its locations, manifest) of each
    """

    def __init__(self, site: str, log: RecordLog, store: LocalChunks,
                 order: Callable[[str, bytes], Sequence[PeerClient]],
                 evicted: Callable[[str], None]):
        self._site = site
        self._log = log
        self._store = store
        self._order = order
        self._evicted = evicted
        self._lock = threading.Lock()
        self._making_room = threading.Lock()
        self._leaving: set[tuple[str, bytes]] = set()
        self.done = Evicted()

    def evictable(self) -> list[KeptCopy]:
        """Return the copies that could go, the least recently read first."""
        found = []
        for copy in self._store.kept_copies():
            bits = with_manifest(self._log.images_of(copy.image),
                                 copy.manifest)
            # What metadata does not know stays: it may come by a sync.
            if (bits is not None and bits.home != self._site
                    and not bits.decide(self._site).wanted):
                found.append(copy)
        return sorted(found, key=lambda copy: copy.used)

    def make_room(self) -> None:
        """Evict until the store is below its limit, as far as may be."""
        # One at a time: two would each free all of it.
        with self._making_room:
            self._make_room(self.evictable())

    def _make_room(self, candidates: Sequence[KeptCopy]) -> None:
        limit = self._store.limit
        # Not what the packs take: what is dead in them is compaction's.
        over = self._store.live_bytes() - limit * _LOW_WATER if limit else 0
        for copy in candidates:
            if over <= 0:
                return
            try:
                over -= self.evict(copy)
            except errors.GeoError as error:
                self.done.blocked = f'image {copy.image}: {error}'
                LOG.warning('Copy of image %s stays: %s', copy.image, error)

    def evict(self, copy: KeptCopy) -> int:
        """Give a copy up once another node keeps its own.

        :returns: stored bytes that it took
        :raises BitsUnavailable: nobody promised; the copy stays
        """
        key = (copy.image, copy.manifest)
        with self._lock:
            self._leaving.add(key)
        try:
            keeper = self._promised(copy)
            _, _, size = self._store.view([copy.image], copy.manifest).held()
            self._store.drop_copy(copy.image, copy.manifest)
        finally:
            with self._lock:
                self._leaving.discard(key)
        LOG.info('Image %s: copy of %d bytes evicted; site %s keeps its own',
                 copy.image, size, keeper)
        self.done.copies += 1
        self.done.bytes += size
        self.done.blocked = None
        self._evicted(copy.image)
        return size

    def _promised(self, copy: KeptCopy) -> str:
        causes = []
        for peer in self._order(copy.image, copy.manifest):
            try:
                peer.keep(copy.image, copy.manifest)
                return peer.site
            except (errors.Unreachable, errors.PeerRefused,
                    errors.PeerMisbehaved) as error:
                causes.append(str(error))
        raise errors.BitsUnavailable(
            'no other site promises to keep it: '
            + ('; '.join(causes) or 'no other site is configured'))

    def promise(self, site: str, image: str, manifest: bytes) -> None:
        """Promise a site to keep an image's copy, durably.

        :raises PeerRefused: it is not whole here, or about to go itself
        """
        # Held while the promise is written: an eviction that begins after
        # must find somebody else first.
        with self._lock:
            bits = with_manifest(self._log.images_of(image), manifest)
            names = {image} if bits is None else set(bits.names)
            holder = self._store.holder(names, manifest)
            here, total, _ = self._store.view(names, manifest).held()
            if holder is None or not total or here != total:
                raise errors.PeerRefused(
                    f'site {self._site} does not hold image {image} whole')
            if (holder, manifest) in self._leaving:
                raise errors.PeerRefused(
                    f'site {self._site} is giving image {image} up itself')
            self._store.lease(holder, manifest, site)
