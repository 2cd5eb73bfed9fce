# SPDX-License-Identifier: Apache-2.0
"""The geo store's chunks as blocks of IPFS: publishing and fetching.

Why chunks are kept once more in the node's repository, and what that costs,
is in ``doc/decisions/0014-ipfs-blocks.rst``.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager

from glance_geo.core import car, cids, errors, publication
from glance_geo.core.cids import CID
from glance_geo.core.interfaces import ChunkView, PinReference
from glance_geo.core.manifest import SegmentRef
from glance_geo.core.publication import Block
from glance_geo.core.unixfs import Link
from glance_geo.store.ipfs.node import PIN, IPFSNode
from glance_geo.store.ipfs.references import PinReferences

LOG = logging.getLogger(__name__)

# Chunks that are read from the chunk store at a time.
_READ = 64
_FETCH_PIN = f'{PIN} fetch'


class SwarmPublisher:
    """Offers the chunks of images to the swarm (a ``ChunkPublisher``).

    :param refs: the nonce of an entry is the manifest
    """

    def __init__(self, node: IPFSNode, refs: PinReferences):
        self._node = node
        self._refs = refs

    def published(self) -> set[tuple[str, bytes]]:
        return {(ref.image, bytes.fromhex(ref.nonce))
                for ref in self._refs.all()}

    def publish(self, image: str, manifest: bytes, view: ChunkView,
                stopped: Callable[[], bool]) -> None:
        """Offer an image that is whole here; may be repeated.

        :raises ChunkMissing: it is not, or what was offered before can not
            be found any more
        """
        # What another image brought is not sent again; if it turns out not
        # to be there, everything is.
        for everything in (False, True):
            root = self._send(manifest, view, everything, stopped)
            if root is None:
                return
            try:
                self._refs.keep(PinReference(image, str(root),
                                             manifest.hex()), stopped)
            except errors.ChunkMissing:
                if everything:
                    raise
                continue
            LOG.info('Image %s: published at IPFS node %s as %s', image,
                     self._node.address, root)
            return

    def _send(self, name: bytes, view: ChunkView, everything: bool,
              stopped: Callable[[], bool]) -> CID | None:
        """Give the node the blocks of an image; return the root's CID."""
        found = view.manifest()
        root: list[CID] = []

        def blocks() -> Iterator[Block]:
            yield cids.of_chunk(name), view.read(name)
            links = []
            for ref in found.segments:
                if stopped():
                    return
                link = yield from self._segment(ref, view, everything)
                links.append(link)
            image, nodes = publication.file(links)
            yield from nodes
            directory = publication.directory(name, found.segments, image)
            root.append(directory[0])
            yield directory
        self._node.import_car(car.write(blocks()))
        return root[0] if root else None

    def _segment(self, ref: SegmentRef, view: ChunkView, everything: bool,
                 ) -> Generator[Block, None, Link]:
        extents = view.segment(ref)
        link, nodes = publication.segment(extents)
        if not everything and self._has(link.cid):
            return link
        yield cids.of_chunk(ref.name), view.read(ref.name)
        names = list(dict.fromkeys(its.name for its in extents if its.name))
        for start in range(0, len(names), _READ):
            part = names[start:start + _READ]
            here, missing = view.load(part)
            if missing:
                raise errors.ChunkMissing(
                    f'chunk {missing[0].hex()} is not here')
            for each in part:
                yield cids.of_chunk(each), here[each]
        # Last: a segment whose node is there was sent whole.
        yield from nodes
        return link

    def _has(self, cid: CID) -> bool:
        try:
            self._node.block(cid, offline=True)
        except (errors.ChunkMissing, errors.ChunkCorrupt):
            return False
        return True

    def withdraw(self, image: str, manifest: bytes) -> None:
        for ref in self._refs.all():
            if (ref.image, ref.nonce) == (image, manifest.hex()):
                self._refs.leave(ref)

    def repair(self) -> None:
        """Mend pins that went missing; forget fetches that died."""
        for cid, name in self._node.pins().items():
            if name == _FETCH_PIN and cid not in FETCHING:
                self._node.unpin(cids.parse(cid))
        for lost in self._refs.repair():
            for ref in self._refs.all():
                if ref.cid == lost:     # to be published again
                    self._refs.leave(ref)


FETCHING: set[str] = set()
"""The CIDs of what this process fetches at the moment."""


class SwarmChunks:
    """Missing chunks, from whoever in the swarm has them (a
    ``ChunkProvider``)."""

    label = 'the swarm'

    def __init__(self, node: IPFSNode):
        self._node = node
        self._lock = threading.Lock()

    @contextmanager
    def chunks(self, image: str, manifest: bytes, names: Sequence[bytes],
               ) -> Iterator[Iterator[bytes]]:
        """See ``ChunkProvider``; what comes is checked by who asked.

        The node fetches what a batch links, from many nodes at once, and
        hands it on in one stream.
        """
        del image, manifest     # a block is asked for by its name alone
        batch = self._node.put_node(publication.batch(names))
        with self._lock:
            FETCHING.add(str(batch))
        try:
            try:
                self._node.pin(batch, _FETCH_PIN)
                whole = True
            except errors.ChunkMissing as error:
                # Dial who is away, then take what did come.
                LOG.info('%s', error)
                self._node.reconnect()
                whole = False
            yield self._stream(batch, names) if whole else self._some(names)
        except errors.IPFSFailed as error:
            raise errors.PeerMisbehaved(str(error)) from error
        finally:
            with self._lock:
                FETCHING.discard(str(batch))
            self._node.unpin(batch)

    def _stream(self, batch: CID, names: Sequence[bytes]) -> Iterator[bytes]:
        stream = car.read(self._node.export(batch))
        waiting: dict[bytes, bytes] = {}
        for name in names:
            while name not in waiting:
                cid, block = next(stream, (None, b''))
                if cid is None:
                    # Cut short: what is left is asked for elsewhere.
                    yield b''
                    break
                if cid.hash == cids.BLAKE3:
                    waiting[cid.digest] = block
            else:
                yield waiting.pop(name)

    def _some(self, names: Sequence[bytes]) -> Iterator[bytes]:
        for name in names:
            try:
                yield self._node.block(cids.of_chunk(name), offline=True)
            except (errors.ChunkMissing, errors.ChunkCorrupt):
                yield b''
