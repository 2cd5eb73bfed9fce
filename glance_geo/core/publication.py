# SPDX-License-Identifier: Apache-2.0
"""An image of the geo store as files of IPFS: pure functions.

A chunk is a raw block under its own name (``cids.of_chunk``), so what two
images or two versions share is one block in the swarm too. Around the chunks,
nodes of UnixFS make the image a file that any node of IPFS can read: one for
each segment of the manifest, and one above them. A hole links the same block
of zeros again and again.

``directory`` is the root that is pinned: the image, and the manifest's own
parts, by which other sites find the chunks.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence

from glance_geo.core import cids, manifest, unixfs
from glance_geo.core.cids import CID
from glance_geo.core.manifest import Extent, SegmentRef
from glance_geo.core.unixfs import Link

# Zeros are linked in nodes of nodes of blocks, each so many times as large.
_ZERO_BLOCK = 64 * 1024
_ZERO_LINKS = 1024
# Links of one node: 60 bytes each, and a block is 2 MiB at most.
_LINKS = 16384

Block = tuple[CID, bytes]


@functools.cache
def _zeros(level: int) -> tuple[Block, int]:
    """Return a block that is, or links, zeros, and how many."""
    if not level:
        data = bytes(_ZERO_BLOCK)
        return (cids.of_chunk(manifest.name_of(data)), data), _ZERO_BLOCK
    (cid, _), size = _zeros(level - 1)
    node = unixfs.file_node([Link(cid, size)] * _ZERO_LINKS)
    return (cids.of_node(node), node), size * _ZERO_LINKS


def _hole(length: int) -> Iterator[tuple[Link, list[Block]]]:
    """Yield links that make a hole, and the blocks behind each."""
    level = 3
    while length:
        (cid, _), size = _zeros(level)
        if length < size:
            if not level:
                data = bytes(length)
                cid = cids.of_chunk(manifest.name_of(data))
                yield Link(cid, length), [(cid, data)]
                return
            level -= 1
            continue
        behind = [_zeros(each)[0] for each in range(level + 1)]
        for _ in range(length // size):
            yield Link(cid, size), behind
        length %= size


def segment(extents: Iterable[Extent]) -> tuple[Link, list[Block]]:
    """Return the link to a part of an image, and its nodes.

    Not its chunks, which are in the chunk store.
    """
    links: list[Link] = []
    blocks: dict[CID, bytes] = {}
    # A manifest has a long hole in parts.
    for hole, run in itertools.groupby(
            extents, lambda extent: extent.name is None):
        if not hole:
            links += [Link(cids.of_chunk(extent.name or b''), extent.length)
                      for extent in run]
            continue
        for link, behind in _hole(sum(extent.length for extent in run)):
            links.append(link)
            blocks.update(behind)
    link, nodes = file(links)
    return link, [*blocks.items(), *nodes]


def file(links: Sequence[Link]) -> tuple[Link, list[Block]]:
    """Return the link to a file of some parts, and its nodes."""
    nodes: list[Block] = []
    while True:
        above = []
        for start in range(0, max(len(links), 1), _LINKS):
            part = links[start:start + _LINKS]
            node = unixfs.file_node(part)
            nodes.append((cids.of_node(node), node))
            above.append(Link(nodes[-1][0], sum(its.size for its in part)))
        if len(above) == 1:
            return above[0], nodes
        links = above


def directory(name: bytes, refs: Sequence[SegmentRef],
              image: Link) -> Block:
    """Return the root under which an image is pinned.

    :param name: of the manifest
    :param refs: its segments
    """
    node = unixfs.directory([
        ('image', image.cid), ('manifest', cids.of_chunk(name)),
        *((f'segment-{number:06}', cids.of_chunk(ref.name))
          for number, ref in enumerate(refs))])
    return cids.of_node(node), node


def batch(names: Iterable[bytes]) -> bytes:
    """Return a node that links some chunks, to be fetched together.

    Their sizes are not known: it is no file that could be read.
    """
    return unixfs.directory((f'{number:06}', cids.of_chunk(name))
                            for number, name in enumerate(names))
