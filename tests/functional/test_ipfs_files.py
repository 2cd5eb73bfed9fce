# SPDX-License-Identifier: Apache-2.0
"""Files in real nodes of IPFS: what is stored comes back, and only that; what
is not whole is never passed off as whole (P2)."""

import hashlib
import random
import uuid

import pytest

from glance_geo.core import cids, errors
from glance_geo.store.ipfs import writing
from glance_geo.store.ipfs.node import IPFSNode
from glance_geo.store.ipfs.references import PinReferences
from tests.ipfsfiles import MIB, NONCE, data_of, read, reader, remove, store
from tests.kuboproxy import Proxy


@pytest.mark.parametrize('size', [
    0, 1, MIB - 1, MIB, MIB + 1, 5 * MIB, 5_000_001])
def test_what_is_stored_comes_back(nodes, size):
    node, data = nodes[0].node(), data_of(size)
    added = store(node, data, size)
    assert (added.size, added.checksum, added.multihash) == (
        size, hashlib.md5(data).hexdigest(),
        hashlib.sha512(data).hexdigest())
    for each in nodes:
        assert read(each.node(), added.cid) == data
    assert reader(node, added.cid).size() == size
    # What Kubo itself makes of the CID is the image.
    assert b''.join(node.stream(cids.parse(added.cid), 0, size + 1)) == data


def test_ranges(here):
    node, data = here.node(), data_of(6_000_000, 2)
    cid = store(node, data).cid
    rng = random.Random(3)
    cases = [(0, 1), (MIB - 1, 2), (5_999_999, 1), (5_999_999, 100),
             (6_000_000, 5), (MIB, MIB)]
    cases += [(rng.randrange(6_000_000), rng.randrange(1, 3_000_000))
              for _ in range(20)]
    for start, length in cases:
        assert read(node, cid, start, length) == data[start:start + length]


def test_a_large_image_has_nodes_between_and_memory_stays(lossy):
    import tracemalloc
    block = data_of(MIB, 4)

    def pieces():
        for number in range(200):
            yield number.to_bytes(4) + block[4:]

    class Source:
        def __init__(self):
            self.left, self.pieces = b'', pieces()

        def read(self, size):
            self.left = self.left or next(self.pieces, b'')
            part, self.left = self.left[:size], self.left[size:]
            return part
    node = lossy.node(timeout=1.0)
    tracemalloc.start()
    added = writing.write(node, PinReferences(node, 'swarm'),
                          str(uuid.uuid4()), NONCE, Source(), 0, 'sha512')
    digest = hashlib.md5()
    stream, size = reader(node, added.cid).read()
    for piece in stream:
        digest.update(piece)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size == 200 * MIB and digest.hexdigest() == added.checksum
    assert peak < 60 * MIB
    root = reader(node, added.cid).root()
    assert any(link.cid.codec == cids.DAG_PB for link in root.links)
    # A node between the root and the leaves is missed like a leaf.
    remove(node, root.links[1].cid, added.cid)
    with pytest.raises(errors.BitsUnavailable, match=str(
            root.links[1].cid)):
        read(node, added.cid)
    assert read(node, added.cid, 5, 10) == block[5:15]


# -- P2: never wrong, never short ------------------------------------------
def test_p2_each_removed_block_is_detected(lossy):
    node = lossy.node(timeout=1.0)
    for seed in range(10, 13):
        data = data_of(6 * MIB + 77, seed)
        cid = store(node, data).cid
        leaves = list(reader(node, cid).leaves())
        leaf = leaves[random.Random(seed).randrange(len(leaves))]
        remove(node, leaf.cid, cid)
        stream, size = iter(()), 0
        got = b''
        with pytest.raises(errors.BitsUnavailable) as caught:
            stream, size = reader(node, cid).read()
            for piece in stream:
                got += piece
        assert str(leaf.cid) in str(caught.value)
        assert 'image-1' in str(caught.value)
        assert got == data[:len(got)] and len(got) <= leaf.offset
        # Kubo's own answer ends there, as if whole.
        assert len(b''.join(node._pieces('/cat', cid, offline=True))
                   ) < len(data)
        # What is not touched by the loss can be read.
        if leaf.offset:
            assert read(node, cid, 0, 100) == data[:100]


def test_p2_every_leaf_in_turn(lossy):
    node = lossy.node(timeout=1.0)
    data = data_of(4 * MIB, 20)
    cid = store(node, data).cid
    for leaf in list(reader(node, cid).leaves()):
        remove(node, leaf.cid, cid)
        with pytest.raises(errors.BitsUnavailable, match=str(leaf.cid)):
            read(node, cid)
        with pytest.raises(errors.BitsUnavailable, match=str(leaf.cid)):
            read(node, cid, leaf.offset + 5, 10)
        store(node, data)
    assert read(node, cid) == data
    remove(node, cids.parse(cid), cid)
    with pytest.raises(errors.BitsUnavailable, match=cid):
        reader(node, cid).size()


def test_p2_an_upload_of_which_a_block_is_lost_is_not_acknowledged(lossy):
    """The node's answer is compared with what it was sent."""
    data = data_of(3 * MIB, 21)

    class Losing(IPFSNode):
        def add(self, pieces, name):
            super().add(pieces, name)
            return super().add(iter([data[:MIB], data[MIB:2 * MIB]]), name)
    node = Losing(f'{lossy.site["ipfs_api"]}/http', lossy.secret, timeout=2)
    image = str(uuid.uuid4())
    with pytest.raises(errors.IPFSFailed, match='other bytes'):
        store(node, data, image=image)
    assert image not in {ref.image
                         for ref in PinReferences(node, 'swarm').all()}


def short(path, pieces):
    if not path.startswith('/api/v0/cat'):
        yield from pieces
        return
    left = 1_500_000
    for piece in pieces:
        yield piece[:left]
        left -= len(piece)
        if left <= 0:
            return


def broken(path, pieces):
    left = 1_500_000 if path.startswith('/api/v0/cat') else 1 << 60
    for piece in pieces:
        yield piece
        left -= len(piece)
        if left <= 0:
            raise ConnectionAbortedError


def wrong(path, pieces):
    at = 0
    for piece in pieces:
        if path.startswith('/api/v0/cat') and at <= 1_500_000 < at + len(
                piece):
            piece = bytearray(piece)
            piece[1_500_000 - at] ^= 1
        at += len(piece)
        yield bytes(piece)


@pytest.mark.parametrize('change', [short, broken, wrong])
def test_p2_a_bad_stream_is_mended_leaf_by_leaf(here, change):
    data = data_of(5 * MIB + 5, 22)
    cid = store(here.node(), data).cid
    with Proxy(here, change).running() as proxy:
        assert read(here.node(address=proxy.address), cid) == data
    assert any('/block/get' in path for path in proxy.calls)


def test_p2_wrong_bytes_everywhere_are_an_error(here):
    data = data_of(3 * MIB, 23)
    cid = store(here.node(), data).cid

    def change(path, pieces):
        whole = bytearray(b''.join(pieces))
        if len(whole) > 1_000_000:
            whole[len(whole) // 2] ^= 1
        yield bytes(whole)
    with Proxy(here, change).running() as proxy, \
            pytest.raises(errors.BitsUnavailable, match='others than'):
        read(here.node(address=proxy.address), cid)


def test_p7_a_node_that_sends_without_end_is_cut_off(here):
    cid = store(here.node(), data_of(3 * MIB, 24)).cid

    def change(path, pieces):
        if path.startswith('/api/v0/block/get'):
            while True:
                yield bytes(65536)
        yield from pieces
    with Proxy(here, change).running() as proxy, \
            pytest.raises(errors.BitsUnavailable, match='too much'):
        read(here.node(address=proxy.address), cid)
