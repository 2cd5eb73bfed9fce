# SPDX-License-Identifier: Apache-2.0
"""How a file of IPFS is read: as a stream, or by its leaves' names."""

import threading
import time

from glance_geo.core import cids, unixfs
from glance_geo.store.ipfs.reading import AHEAD, FileReader

_LEAVES = [bytes([number % 256]) * 100 + number.to_bytes(2, 'big')
           for number in range(600)]


class Node:
    """A node that has a whole file, and gives one leaf after the other.

    :param slow: how many of a stream's leaves come as if from far
    """

    def __init__(self, slow):
        self.blocks = {cids.of_leaf(leaf): leaf for leaf in _LEAVES}
        root = unixfs.file_node(unixfs.Link(cids.of_leaf(leaf), len(leaf))
                                for leaf in _LEAVES)
        self.root = cids.of_node(root)
        self.blocks[self.root] = root
        self.by_name = 0
        self._slow = slow
        self._one = threading.Lock()

    def block(self, cid):
        with self._one:
            self.by_name += 1
            time.sleep(0.004)
            return self.blocks[cid]

    def stream(self, cid, offset, length):
        data = b''.join(_LEAVES)[offset:offset + length]
        while data:
            if self._slow:
                self._slow -= 1
                time.sleep(0.1)
            yield data[:102]
            data = data[102:]


def test_what_is_far_is_asked_for_by_name_and_what_is_near_is_not():
    """Leaves that are asked for at once share the node: each of them takes
    long, and is near all the same."""
    node = Node(slow=1)
    stream, size = FileReader(node, 'image-1', node.root).read()
    assert b''.join(stream) == b''.join(_LEAVES) and size == 600 * 102
    assert AHEAD <= node.by_name < 300


def test_what_is_near_is_one_stream():
    node = Node(slow=0)
    stream, _ = FileReader(node, 'image-1', node.root).read()
    assert b''.join(stream) == b''.join(_LEAVES)
    assert node.by_name < 300   # the root, if the machine is not too slow
