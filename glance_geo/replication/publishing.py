# SPDX-License-Identifier: Apache-2.0
"""Offers the images that are whole here to the swarm, and takes them back.

What placement keeps from some sites is not offered: in the swarm, whoever
knows a name is given its bytes.
"""

from collections.abc import Callable
from typing import Any

from glance_geo.core import errors
from glance_geo.core.interfaces import ChunkPublisher, LocalChunks, RecordLog
from glance_geo.replication.sources import ImageBits, image_bits
from glance_geo.replication.workqueue import WorkQueue

_RETRY_SECONDS = 20.0
_ELSEWHERE = ''
"""A site that no list names: what it may have, every site may."""


class Publications:
    """Follows the images of a geo store.

    :param mend: looks after what is offered already, now and then
    :ivar failed: image -> why it is not offered
    """

    def __init__(self, log: RecordLog, store: LocalChunks,
                 publisher: ChunkPublisher, mend: Callable[[], None]):
        self._log = log
        self._store = store
        self._publisher = publisher
        self._mend = mend
        self._published: set[tuple[str, bytes]] | None = None
        self._queue: WorkQueue[str, None] = WorkQueue(
            'publisher', self._work, _RETRY_SECONDS)
        self.failed: dict[str, str] = {}

    def start(self) -> None:
        self._queue.put('', None)
        self._queue.start()

    def stop(self) -> None:
        self._queue.stop()

    def look(self, image: str) -> None:
        """An image's record, or what is here of it, changed."""
        self._queue.put(image, None)

    def tidy_soon(self) -> None:
        self._queue.put('', None)

    @property
    def count(self) -> int:
        return len(self._published or ())

    def _work(self, image: str, _: None) -> bool:
        if not image or self._published is None:
            self._mend()
            self._published = self._publisher.published()
            # Of some, the record may be long gone.
            for each in {name for name, _ in self._published} | {image}:
                if each:
                    self._queue.put(each, None)
        else:
            self._bring(image)
        return True

    def _bring(self, image: str) -> None:
        """Bring what is offered of an image in line with its record."""
        assert self._published is not None
        record = self._log.get('image', image)
        bits = None if record is None else image_bits(record)
        wanted = set() if bits is None else {
            manifest for manifest in bits.manifests
            if self._may_offer(bits, manifest)}
        if not wanted:
            self.failed.pop(image, None)
        for each in [manifest for name, manifest in self._published
                     if name == image and manifest not in wanted]:
            self._publisher.withdraw(image, each)
            self._published.discard((image, each))
        for manifest in sorted(wanted):
            if (image, manifest) not in self._published:
                assert bits is not None
                self._publish(bits, manifest)

    def _may_offer(self, bits: ImageBits, manifest: bytes) -> bool:
        if not bits.ready or not bits.decide(_ELSEWHERE).allowed:
            return False
        here, total, _ = self._store.view(bits.names, manifest).held()
        return bool(total) and here == total

    def _publish(self, bits: ImageBits, manifest: bytes) -> None:
        try:
            self._publisher.publish(
                bits.image, manifest,
                self._store.view(bits.names, manifest),
                lambda: self._queue.stopping)
        except errors.GeoError as error:
            self.failed[bits.image] = str(error)
            raise
        self.failed.pop(bits.image, None)
        if not self._queue.stopping:
            assert self._published is not None
            self._published.add((bits.image, manifest))

    def state(self) -> dict[str, Any]:
        """Return what status shows."""
        return {'published': self.count, 'unpublished': dict(self.failed)}
