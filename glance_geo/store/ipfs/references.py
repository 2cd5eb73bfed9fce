# SPDX-License-Identifier: Apache-2.0
"""On whose behalf a node of IPFS keeps a file.

A node counts no references, and a CID may be that of two images. So each
reference is an entry of its own in the node's own files (MFS), which also
keeps the file from collection:
``/glance-geo/<store>/kept/<CID>.<image>.<nonce>``. The pin says that all of
the file is there, and goes with the last entry.

Who stores a file makes its entry, and then looks at the pin; who gives one up
removes the pin, and then looks at the entries. So whichever comes last sees
what the other did, and pins the file again; until then its entry keeps it.

A deletion that was asked for is an empty folder of the same name under
``asked/``; who may decide it is metadata, not whoever asked.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Sequence

from glance_geo.core import cids, errors
from glance_geo.core.interfaces import PinReference
from glance_geo.store.ipfs.node import PIN, IPFSNode

LOG = logging.getLogger(__name__)

_NAME = re.compile(r'(b[a-z2-7]+)\.([0-9a-f-]{36})\.([0-9a-z]{1,64})')


class PinReferences:
    """The references of one store at one node."""

    orphan_seconds = 3600.0
    """For how long a pin may be there before its reference."""

    def __init__(self, node: IPFSNode, store: str):
        self._node = node
        self._orphans: dict[str, float] = {}
        self._pin = f'{PIN} {store}'
        self._kept = f'/{PIN}/{store}/kept'
        self._asked = f'/{PIN}/{store}/asked'

    @property
    def pin_name(self) -> str:
        return self._pin

    def all(self) -> list[PinReference]:
        """Return what the node keeps, and on whose behalf."""
        return self._in(self._kept)

    def asked(self) -> list[PinReference]:
        """Return the deletions that were asked for."""
        return self._in(self._asked)

    def _in(self, folder: str) -> list[PinReference]:
        found = []
        for name in self._node.entries(folder):
            match = _NAME.fullmatch(name)
            if match is None:
                LOG.warning('%s/%s at IPFS node %s is not ours; left alone',
                            folder, name, self._node.address)
                continue
            found.append(PinReference(match[2], match[1], match[3]))
        return found

    @staticmethod
    def _name(ref: PinReference) -> str:
        return f'{ref.cid}.{ref.image}.{ref.nonce}'

    def keep(self, ref: PinReference,
             stopped: Callable[[], bool] = lambda: False) -> None:
        """Keep a file: all of it is at the node when this returns.

        May be repeated; goes on with what is there already.

        :raises ChunkMissing: some of it could not be found
        """
        cid = cids.parse(ref.cid)
        if not self._node.is_pinned(cid):
            self._node.reconnect()
            self._node.pin(cid, self._pin, stopped)
        self._node.link(cid, f'{self._kept}/{self._name(ref)}')
        if not self._node.is_pinned(cid):
            # Somebody gave the same file up in this moment.
            self._node.pin(cid, self._pin)

    def ask(self, ref: PinReference) -> None:
        """Ask for the removal of a reference, if metadata agrees."""
        self._node.mark(f'{self._asked}/{self._name(ref)}')

    def leave(self, ref: PinReference) -> None:
        """Give a reference up, and the file with its last one."""
        self._node.unlink(f'{self._kept}/{self._name(ref)}')
        self.release(ref.cid)
        self._node.unlink(f'{self._asked}/{self._name(ref)}')

    def answered(self, ref: PinReference) -> None:
        """Forget that a removal was asked for."""
        self._node.unlink(f'{self._asked}/{self._name(ref)}')

    def release(self, cid: str) -> None:
        """Unpin a file that no reference keeps."""
        if self._refers(cid):
            return
        self._node.unpin(cids.parse(cid))
        if self._refers(cid):
            # Stored in this moment, by somebody who still saw it pinned.
            self._node.pin(cids.parse(cid), self._pin)

    def _refers(self, cid: str) -> bool:
        return any(ref.cid == cid for ref in self.all())

    def repair(self) -> Sequence[str]:
        """Pin again what references keep and is not pinned.

        And unpin what stays pinned for no reference, such as the file of an
        upload whose process died.

        :returns: the CIDs of what could not be found any more
        """
        kept = {ref.cid for ref in self.all()}
        pinned = self._node.pins()
        lost = []
        for cid in sorted(kept - pinned.keys()):
            LOG.warning('%s is kept at IPFS node %s and was not pinned',
                        cid, self._node.address)
            try:
                self._node.pin(cids.parse(cid), self._pin)
            except errors.ChunkMissing as error:
                LOG.error('%s', error)
                lost.append(cid)
        now = time.monotonic()
        orphans = {cid for cid, name in pinned.items()
                   if name == self._pin and cid not in kept}
        self._orphans = {cid: self._orphans.get(cid, now) for cid in orphans}
        for cid, since in self._orphans.items():
            if now - since > self.orphan_seconds:
                LOG.info('%s was pinned at IPFS node %s for nobody', cid,
                         self._node.address)
                self.release(cid)
        return lost
