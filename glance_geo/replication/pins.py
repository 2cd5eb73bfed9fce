# SPDX-License-Identifier: Apache-2.0
"""Keeps what the site's node of IPFS pins in line with metadata.

For each image that changed: pin the files that placement wants here, give up
those that no record lists, and report what is held. A file stays pinned while
any image at this site refers to it. Everything is derived from the records
and from the node, so a restart begins anew.
"""

import dataclasses
import logging
import threading
import time
from collections.abc import Iterable
from typing import Any

from glance_geo.core import errors, location
from glance_geo.core.interfaces import FilePins, PinReference, RecordLog
from glance_geo.core.location import IPFSLocation
from glance_geo.core.records import Record
from glance_geo.core.rules import shown
from glance_geo.core.settling import COPY, given_up
from glance_geo.replication.sources import (
    ImageBits,
    holding_id,
    holdings,
    image_bits,
    settled,
)
from glance_geo.replication.workqueue import WorkQueue

LOG = logging.getLogger(__name__)

_RETRY_SECONDS = 5.0
_LOOK_SECONDS = 1.0
_BUSY_SECONDS = 20.0
_BLOCK = 1024 * 1024
HOLDING = '.ipfs'
"""Ends the ids of holdings of ipfs stores."""


@dataclasses.dataclass
class PinState:
    """What status shows of the pins.

    :ivar pinning: image -> what is being done, or why it failed last
    """

    kept: int = 0
    asked: int = 0
    pinning: dict[str, str] = dataclasses.field(default_factory=dict)


class Pinner:
    """Follows the records of the images in one ipfs store.

    :param keys: that locations must be signed with
    :param trash_days: days for which bits of some deleted images stay
    """

    def __init__(self, site: str, node: str, store: str, log: RecordLog,
                 pins: FilePins, keys: dict[str, bytes], trash_days: float):
        self.store = store
        self._site = site
        self._node = node
        self._log = log
        self._pins = pins
        self._keys = keys
        self._trash_us = int(trash_days * 86_400 * 1_000_000)
        self._busy = threading.Lock()
        self._loaded = 0.0
        self._refs: dict[str, set[PinReference]] = {}
        self._asked: dict[str, set[PinReference]] = {}
        self._queue: WorkQueue[str, None] = WorkQueue(
            'pinner', self._work, _RETRY_SECONDS)
        self.state = PinState()

    def start(self) -> None:
        self._queue.put('', None)
        self._queue.start()

    def stop(self) -> None:
        self._queue.stop()

    # -- following --------------------------------------------------------
    def look(self, bits: ImageBits) -> None:
        """A record of an image changed: do what follows, before long."""
        # Others are of no file store.
        if self._ours(bits.files | bits.removed):
            self._queue.put(bits.image, None)

    def _ours(self, found: Iterable[IPFSLocation]) -> set[IPFSLocation]:
        """Return those of some locations that this store issued."""
        ours = set()
        for each in found:
            try:
                location.verify(each, self._keys)
            except errors.LocationInvalid:
                continue
            if each.store == self.store:
                ours.add(each)
        return ours

    def _work(self, image: str, _: None) -> bool:
        with self._busy:
            if not image:
                self._tidy()
                return True
            return self._image(image)

    def _image(self, image: str) -> bool:
        self._load(_LOOK_SECONDS)
        self.state.pinning.pop(image, None)     # unless it fails again
        record = self._log.get('image', image)
        if record is None:
            return True
        bits = image_bits(record)
        for name in {image, *(each.image for each in self._ours(
                bits.files | bits.removed))}:
            self._settle(name)
        self._follow(bits)
        return True

    def _load(self, older_than: float = 0.0) -> None:
        """Look at what the node keeps, and was asked to give up.

        :param older_than: seconds for which an earlier look will do
        """
        if time.monotonic() - self._loaded < older_than:
            return
        self._loaded = time.monotonic()
        self._refs = _by_image(self._pins.all())
        self._asked = _by_image(self._pins.asked())
        self.state.kept = sum(map(len, self._refs.values()))
        self.state.asked = sum(map(len, self._asked.values()))

    def _settle(self, name: str) -> None:
        """Give up what metadata has given up of the images under an id."""
        kept = self._refs.get(name, set())
        asked = self._asked.get(name, set())
        if not kept and not asked:
            return
        found, deleted = settled(
            self._log.images_of(name),
            time.time_ns() // 1000 - self._trash_us)
        listed = {(each.cid, each.nonce) for bits in found
                  for each in self._ours(bits.files)}
        removed = {(each.cid, each.nonce) for bits in found
                   for each in self._ours(bits.removed)}
        gone = given_up(
            [(ref.cid, ref.nonce) for ref in kept], listed,
            removed | {(ref.cid, ref.nonce) for ref in asked}, deleted)
        for cid, nonce in gone:
            self._leave(PinReference(name, cid, nonce))
        for ref in asked:
            if deleted or (found and (ref.cid, ref.nonce) not in listed):
                self._pins.answered(ref)

    def _leave(self, ref: PinReference) -> None:
        LOG.info('Image %s: %s is not kept for it any more', ref.image,
                 ref.cid)
        self._pins.leave(ref)
        self._refs.get(ref.image, set()).discard(ref)
        for record in self._log.images_of(ref.image):
            self._report(record.id, ref.cid, None)

    def _follow(self, bits: ImageBits) -> None:
        """Pin, or give up, what placement says; report what is held."""
        decision = bits.decide(self._site)
        for each in sorted(self._ours(bits.files), key=lambda its: its.uri):
            refs = self._kept(each)
            if not refs:
                self._load()    # it may have come this moment
                refs = self._kept(each)
            if not refs and bits.ready and decision.wanted:
                refs = {PinReference(each.image, each.cid, COPY)}
                self._keep(bits, *refs)
            elif not decision.wanted and self._home_holds(bits, each.cid):
                for ref in {ref for ref in refs if ref.nonce == COPY}:
                    self._leave(ref)
                    refs.discard(ref)
            if refs:
                self._report(bits.image, each.cid, bits.size or 0)

    def _kept(self, each: IPFSLocation) -> set[PinReference]:
        return {ref for ref in self._refs.get(each.image, ())
                if ref.cid == each.cid}

    def _keep(self, bits: ImageBits, ref: PinReference) -> None:
        self.state.pinning[bits.image] = 'pulling'
        try:
            self._pins.keep(ref, lambda: self._queue.stopping)
        except errors.GeoError as error:
            self.state.pinning[bits.image] = str(error)
            raise
        LOG.info('Image %s is whole at this site\'s IPFS node', bits.image)
        self.state.pinning.pop(bits.image, None)
        self._refs.setdefault(ref.image, set()).add(ref)

    # -- holdings ---------------------------------------------------------
    def _home_holds(self, bits: ImageBits, cid: str) -> bool:
        """Say whether the image's home, which never gives it up, has it."""
        if not bits.home or bits.home == self._site:
            return False
        record = self._log.get('holding', holding_id(
            bits.image, f'{bits.home}/{bits.home}') + HOLDING)
        return any(held.get('cid') == cid and held['here'] == held['total']
                   for held in holdings([record] if record else []))

    def _report(self, image: str, cid: str, size: int | None) -> None:
        """Write this node's holding of an image, if it changed.

        :param size: of the image; None: it is not here
        """
        blocks = 0 if size is None else max(1, -(-size // _BLOCK))
        holding = {'image': image, 'site': self._site, 'node': self._node,
                   'store': self.store, 'manifest': '', 'cid': cid,
                   'here': blocks, 'total': blocks, 'stored': size or 0}

        def change(present: Record | None) -> dict[str, Any] | None:
            current = shown(present).get('holding') if present else None
            if current == holding or (current is None and size is None):
                return None
            return {'holding': holding}
        self._log.update('holding', holding_id(image, self._node) + HOLDING,
                         change)

    # -- now and then -----------------------------------------------------
    def tidy(self) -> None:
        """Settle everything that is kept; mend pins that went missing.

        Later, if a pin is on its way just now.
        """
        if self._busy.acquire(timeout=_BUSY_SECONDS):
            try:
                self._tidy()
            finally:
                self._busy.release()
        else:
            self.tidy_soon()

    def _tidy(self) -> None:
        self._load()
        for name in self._refs.keys() | self._asked.keys():
            self._settle(name)
        lost = set(self._pins.repair())
        for image, refs in self._refs.items():
            for ref in refs:
                if ref.cid in lost:
                    for record in self._log.images_of(image):
                        self._report(record.id, ref.cid, None)

    def tidy_soon(self) -> None:
        self._queue.put('', None)


def _by_image(refs: Iterable[PinReference],
              ) -> dict[str, set[PinReference]]:
    found: dict[str, set[PinReference]] = {}
    for ref in refs:
        found.setdefault(ref.image, set()).add(ref)
    return found
