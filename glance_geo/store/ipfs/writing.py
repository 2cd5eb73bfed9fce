# SPDX-License-Identifier: Apache-2.0
"""Writing an image into IPFS.

What the node says that it stored is compared, leaf by leaf, with what it was
sent, before anybody is told that the image is there.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from glance_geo.core import errors
from glance_geo.core.cids import CID
from glance_geo.core.interfaces import PinReference
from glance_geo.store.body import ImageBody, Readable
from glance_geo.store.ipfs.node import IPFSNode
from glance_geo.store.ipfs.reading import FileReader
from glance_geo.store.ipfs.references import PinReferences

_LEAF = 1024 * 1024


@dataclasses.dataclass(frozen=True)
class Added:
    """What an upload stored."""

    cid: str
    size: int
    checksum: str
    multihash: str


class _Leaves:
    """Passes a body on in leaves, and remembers their hashes.

    :ivar failure: why the body broke off, whatever became of that on its way
        through the client
    """

    def __init__(self, body: ImageBody, hashing: ThreadPoolExecutor):
        self._body = body
        self._hashing = hashing
        self.digests: list[Future[bytes]] = []
        self.failure: BaseException | None = None

    def __iter__(self) -> Iterator[bytes]:
        try:
            for block in self._body:
                for at in range(0, len(block), _LEAF):
                    piece = block[at:at + _LEAF]
                    self.digests.append(self._hashing.submit(
                        lambda its: hashlib.sha256(its).digest(), piece))
                    yield piece
        except BaseException as error:
            self.failure = error
            raise

    def check(self, reader: FileReader, size: int) -> None:
        """Compare with what the node has.

        :raises IPFSFailed: it is something else
        """
        wanted = [future.result() for future in self.digests]
        if size <= _LEAF:
            wanted = wanted or [hashlib.sha256().digest()]
        root = reader.root()
        if root.links:
            got = [leaf.cid.digest if leaf.cid else b''
                   for leaf in reader.leaves()]
        else:
            got = [hashlib.sha256(root.data).digest()]
        if root.size != size or got != wanted:
            raise errors.IPFSFailed(
                f'the node has other bytes than it was sent ({root.size} of '
                f'{size})')


def check_room(node: IPFSNode, size: int) -> None:
    """Refuse early what the node would refuse late, or take all the same.

    :raises StoreFull: the repository would outgrow its limit
    """
    used, most = node.space()
    if most and used + size >= most:
        raise errors.StoreFull(
            f'IPFS node {node.address}: its repository takes {used >> 20} MiB '
            f'of the {most >> 20} that Datastore.StorageMax allows, and '
            f'{size >> 20} more were to come; "glance-geo ipfs collect" '
            f'removes what is not pinned')


def write(node: IPFSNode, refs: PinReferences, image: str, nonce: str,
          source: Readable, size: int, hashing_algo: str,
          verifier: Any = None) -> Added:
    """Store an image's bytes; pinned, and referred to, when this returns.

    :param size: bytes announced; 0: unknown
    :raises SizeMismatch: nothing is kept
    :raises StoreFull: nothing is kept
    """
    check_room(node, size)
    with (ImageBody(image, source, size, hashing_algo, verifier) as body,
          ThreadPoolExecutor(1) as hashing):
        leaves = _Leaves(body, hashing)
        try:
            cid = node.add(leaves, refs.pin_name)
        except Exception:
            if leaves.failure is not None:
                raise leaves.failure from None
            raise
        _settle(node, refs, image, nonce, cid, leaves, body.size)
        return Added(str(cid), body.size, body.checksum, body.multihash)


def _settle(node: IPFSNode, refs: PinReferences, image: str, nonce: str,
            cid: CID, leaves: _Leaves, size: int) -> None:
    try:
        leaves.check(FileReader(node, image, cid), size)
        refs.keep(PinReference(image, str(cid), nonce))
    except BaseException:
        refs.release(str(cid))
        raise


