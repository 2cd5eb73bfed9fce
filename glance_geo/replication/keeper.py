# SPDX-License-Identifier: Apache-2.0
"""Follows the records of images at one node.

For each image that changed: drop the bits that metadata no longer lists, pull
those that placement wants here, and report what is held. Everything is
derived from the records and the chunk store, so a restart begins anew.
"""

import dataclasses
import logging
import threading
import time
from typing import Any

from glance_geo.core import errors
from glance_geo.core.interfaces import LocalChunks, RecordLog
from glance_geo.core.records import Context, Record
from glance_geo.core.rules import shown
from glance_geo.replication.evict import Evictor
from glance_geo.replication.sources import (
    ImageBits,
    chunk_project,
    holding_id,
    image_bits,
    listed_under,
    settled,
    with_manifest,
)
from glance_geo.replication.swarm import Swarm
from glance_geo.replication.transfer import Fetcher
from glance_geo.replication.workqueue import WorkQueue

LOG = logging.getLogger(__name__)

_RETRY_SECONDS = 5.0
_REPORT_SECONDS = 2.0
# How often room is made, at most, while the store is nearly full.
_TIGHT_SECONDS = 20.0


@dataclasses.dataclass(frozen=True)
class KeeperRules:
    """What the operator wants of the chunk store's upkeep.

    :ivar collect_interval: seconds between collections
    :ivar trash_days: days for which bits of some deleted images stay
    :ivar site_wide: whether all projects share chunks
    :ivar compact_rate: bytes a second that a compaction copies; 0: no limit
    """

    collect_interval: float = 600.0
    trash_days: float = 7.0
    site_wide: bool = False
    compact_rate: float = 0.0


class Keeper:
    """Keeps what the node holds in line with metadata.

    :ivar pulling: image -> what is being pulled, or why it failed last
    """

    def __init__(self, site: str, node: str, log: RecordLog,
                 store: LocalChunks, fetcher: Fetcher, evictor: Evictor,
                 rules: KeeperRules, swarm: Swarm):
        self._swarm = swarm
        self._trash_us = int(rules.trash_days * 86_400 * 1_000_000)
        self._rules = rules
        self._evictor = evictor
        self._site = site
        self._node = node
        self._log = log
        self._store = store
        self._fetcher = fetcher
        self._cursor: Context = {}
        self._wake = threading.Event()
        self._tidy_now = threading.Event()
        self._tidied = 0.0
        self._evictable: set[tuple[str, bytes]] | None = None
        self._stop = threading.Event()
        self._pulls: WorkQueue[str, bytes] = WorkQueue(
            'puller', self._pull_one, _RETRY_SECONDS)
        self.pulling: dict[str, str] = {}
        self._touched: set[tuple[str, bytes]] = set()
        self._threads = [
            threading.Thread(target=self._follow, name='keeper', daemon=True),
            threading.Thread(target=self._tidy, name='collector',
                             daemon=True)]

    def start(self) -> None:
        self._pulls.start()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._wake.set()
        self._tidy_now.set()
        self._pulls.stop()
        for thread in self._threads:
            thread.join(timeout=10)

    def changed(self) -> None:
        """Records changed: look at them soon."""
        self._wake.set()

    def touched(self, image: str, manifest: bytes) -> None:
        """Chunks of an image came: report what is held before long."""
        self._touched.add((image, manifest))

    # -- following --------------------------------------------------------
    def once(self) -> int:
        """Look at every record that is new since the last time."""
        vector = self._log.vector()
        seen = 0
        for record in self._log.newer(self._cursor):
            if record.kind == 'image':
                seen += 1
                self._image(image_bits(record))
        self._cursor = vector
        return seen

    def _image(self, bits: ImageBits) -> None:
        for name in bits.names:
            self._settle(name)
        if not bits.deleted:
            for name in bits.names:
                self._store.share(name, chunk_project(
                    bits, self._rules.site_wide))
        for manifest in bits.manifests:
            self._report(bits, manifest)
            decision = bits.decide(self._site)
            if bits.ready and decision.wanted:
                self._pulls.put(bits.image, manifest)
        self._swarm.look(bits)

    def _settle(self, name: str) -> list[ImageBits]:
        """Drop what metadata has given up of the images under an id."""
        found, deleted = settled(
            self._log.images_of(name),
            time.time_ns() // 1000 - self._trash_us)
        self._store.settle(name, listed_under(found), deleted)
        return found

    def _holder(self, bits: ImageBits, manifest: bytes) -> str | None:
        """Return the image id under which this node keeps a manifest."""
        return self._store.holder(bits.names, manifest)

    def _report(self, bits: ImageBits, manifest: bytes) -> None:
        """Write this node's holding of an image, if it changed."""
        if self._holder(bits, manifest) is None:
            return
        here, total, stored = self._store.view(bits.names, manifest).held()
        self._write_holding(bits.image, {
            'image': bits.image, 'site': self._site, 'node': self._node,
            'manifest': manifest.hex(), 'here': here, 'total': total,
            'stored': stored})
        self._swarm.held(bits.image)

    def _write_holding(self, image: str, holding: dict[str, Any]) -> None:
        def change(present: Record | None) -> dict[str, Any] | None:
            current = shown(present).get('holding') if present else None
            return None if current == holding else {'holding': holding}
        self._log.update('holding', holding_id(image, self._node), change)

    def report_touched(self) -> None:
        """Report the images whose chunks came since the last time."""
        touched, self._touched = self._touched, set()
        for image, manifest in touched:
            bits = with_manifest(self._log.images_of(image), manifest)
            if bits is not None:
                self._report(bits, manifest)

    def collect(self, always: bool = True) -> Any:
        """Drop what metadata no longer lists; free the space.

        :param always: also if nothing became garbage since the last time
        """
        for image in {image for image, _ in self._store.copies()}:
            for bits in self._settle(image):
                if bits.deleted:
                    self._forget_holding(bits.image)
        self._swarm.tidy_soon()
        self._evictor.make_room()
        evictable = {(copy.image, copy.manifest)
                     for copy in self._evictor.evictable()}
        # The statistics say how much could go.
        always = always or evictable != self._evictable
        self._evictable = evictable
        return self._store.collect(evictable, always)

    def forget_holding(self, image: str) -> None:
        """Write that an image, known by any of its ids, is not here."""
        for record in self._log.images_of(image):
            self._forget_holding(record.id)

    def _forget_holding(self, image: str) -> None:
        def change(present: Record | None) -> dict[str, Any] | None:
            current = shown(present).get('holding') if present else None
            if not current or not current['total']:
                return None
            return {'holding': {**current, 'here': 0, 'total': 0,
                                'stored': 0}}
        self._log.update('holding', holding_id(image, self._node), change)

    def _follow(self) -> None:
        while not self._stop.is_set():
            self._guarded(self.once)
            self._wake.wait(_REPORT_SECONDS)
            # Several writes in a row make one look.
            if self._wake.is_set():
                self._stop.wait(0.05)
            self._wake.clear()
            self._guarded(self._fetcher.settle)
            self._guarded(self.report_touched)
            self._guarded(self._make_room_soon)

    def _tidy(self) -> None:
        """Collect and compact, now and then."""
        while not self._stop.is_set():
            self._guarded(self._collect_if_needed)
            self._guarded(self.compact)
            self._tidy_now.wait(self._rules.collect_interval)
            self._tidy_now.clear()

    def _make_room_soon(self) -> None:
        """Do not wait for the next collection when the store gets full."""
        if (self._store.is_tight()
                and time.monotonic() - self._tidied > _TIGHT_SECONDS):
            self._tidied = time.monotonic()
            self._tidy_now.set()

    def _collect_if_needed(self) -> None:
        self.collect(always=False)

    def compact(self, rate: float | None = None) -> Any:
        """Rewrite packs that are partly dead.

        :param rate: bytes a second; None: as configured
        """
        return self._store.compact(
            self._rules.compact_rate if rate is None else rate,
            self._stop.is_set)

    @staticmethod
    def _guarded(call: Any) -> None:
        """Run a step of the loop, which must outlive any failure."""
        try:
            call()
        except errors.GeoError as error:
            LOG.warning('%s: %s', call.__name__, error)
        except Exception:
            LOG.exception('%s failed', call.__name__)

    # -- pulling ----------------------------------------------------------
    def _pull_one(self, image: str, manifest: bytes) -> bool:
        """Pull one image; False asks for another try later."""
        record = self._log.get('image', image)
        bits = None if record is None else image_bits(record)
        here, total, _ = self._store.view(
            {image} if bits is None else bits.names, manifest).held()
        if (total and here == total and bits is not None
                and self._holder(bits, manifest) is not None):
            return True
        if (bits is None or not bits.ready or manifest not in bits.manifests
                or not bits.decide(self._site).wanted):
            self.pulling.pop(image, None)
            return True
        self.pulling[image] = 'pulling'
        try:
            # Under the id that the location names, as a reader would.
            name = min(bits.names - {image}, default=image)
            self._fetcher.pull(name, manifest, self._stop.is_set)
        except errors.GeoError as error:
            LOG.warning('Pull of image %s: %s; trying again', image, error)
            self.pulling[image] = str(error)
            return False
        except Exception as error:
            LOG.exception('Pull of image %s failed', image)
            self.pulling[image] = str(error)
            return False
        LOG.info('Image %s is whole at this node', image)
        self.pulling.pop(image, None)
        self.touched(image, manifest)
        return True
