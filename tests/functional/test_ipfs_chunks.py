# SPDX-License-Identifier: Apache-2.0
"""The geo store's chunks as blocks of IPFS, on real nodes (P2, P5)."""

import io
import random
import uuid

import pytest

from glance_geo.core import cids, errors, manifest
from glance_geo.core.manifest import name_of
from glance_geo.store.chunkstore import ChunkStore
from glance_geo.store.ipfs.chunks import (
    _FETCH_PIN,
    SwarmChunks,
    SwarmPublisher,
)
from glance_geo.store.ipfs.references import PinReferences
from glance_geo.store.upload import upload

NONCE = '0' * 16


@pytest.fixture
def store(tmp_path):
    made = ChunkStore(tmp_path / 'chunks')
    yield made
    made.close()


class Image:
    """An image in a chunk store."""

    def __init__(self, store, data):
        self.id, self.data = str(uuid.uuid4()), data
        self.manifest = upload(store, self.id, NONCE, io.BytesIO(data), 0,
                               'sha512').manifest
        self.view = store.view([self.id], self.manifest)

    @property
    def names(self):
        root = self.view.manifest()
        return [self.manifest, *(ref.name for ref in root.segments), *dict.
                fromkeys(its.name for ref in root.segments
                         for its in self.view.segment(ref) if its.name)]

    def publish(self, publisher):
        publisher.publish(self.id, self.manifest, self.view, lambda: False)


def publisher_at(kubo_node, name='geo', timeout=5.0):
    node = kubo_node.node(timeout=timeout)
    return SwarmPublisher(node, PinReferences(node, name))


def root_of(kubo_node, image, name='geo'):
    return next(ref.cid for ref in PinReferences(kubo_node.node(),
                                                 name).all()
                if ref.image == image.id)


def fetch(kubo_node, names, timeout=5.0):
    with SwarmChunks(kubo_node.node(timeout=timeout)).chunks(
            'image', bytes(32), names) as frames:
        return list(frames)


def data_of(size, seed):
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize('data', [
    b'', b'x', data_of(3_000_000, 1),
    data_of(100_000, 2) + bytes(3_000_000) + data_of(5, 3) + bytes(70_000),
    bytes(1_000_000)], ids=['empty', 'byte', 'random', 'holes', 'zeros'])
def test_what_is_published_is_the_image_and_its_chunks(nodes, store, data):
    image = Image(store, data)
    publisher = publisher_at(nodes[0])
    image.publish(publisher)
    assert (image.id, image.manifest) in publisher.published()
    root = root_of(nodes[0], image)
    assert nodes[0].node().is_pinned(cids.parse(root))
    # At another node, by what any IPFS tool does.
    assert b''.join(nodes[1].node()._pieces('/cat', f'{root}/image')
                    ) == data
    names = image.names
    got = fetch(nodes[1], names)
    assert [name_of(block) for block in got] == names


def test_again_and_by_two_images_it_is_the_same_root(nodes, store):
    data = data_of(2_000_000, 4)
    first, second = Image(store, data), Image(store, data)
    publisher = publisher_at(nodes[0])
    for image in (first, first, second):
        image.publish(publisher)
    assert root_of(nodes[0], first) == root_of(nodes[0], second)
    publisher.withdraw(first.id, first.manifest)
    publisher.withdraw(first.id, first.manifest)
    node = nodes[0].node()
    assert node.is_pinned(cids.parse(root_of(nodes[0], second)))
    root = root_of(nodes[0], second)
    publisher.withdraw(second.id, second.manifest)
    assert not node.is_pinned(cids.parse(root))


def test_p5_an_update_sends_only_what_is_new_to_the_node(nodes, store,
                                                         monkeypatch):
    # Many segments in a small image.
    monkeypatch.setattr(manifest, '_MIN_ENTRIES', 16)
    monkeypatch.setattr(manifest, '_BOUNDARY_MASK', 15)
    data = bytearray(data_of(12_000_000, 5))
    sent = []

    class Counting(type(nodes[0].node())):
        def import_car(self, pieces):
            def counted():
                for piece in pieces:
                    sent.append(len(piece))
                    yield piece
            super().import_car(counted())
    node = Counting(f'{nodes[0].site["ipfs_api"]}/http', nodes[0].secret)
    publisher = SwarmPublisher(node, PinReferences(node, 'update'))
    first = Image(store, bytes(data))
    first.publish(publisher)
    whole = sum(sent)
    data[-100:] = b'!' * 100
    sent.clear()
    Image(store, bytes(data)).publish(publisher)
    assert len(first.view.manifest().segments) > 4
    assert sum(sent) < whole / 2


def test_what_the_node_lost_is_sent_again(nodes, store):
    image = Image(store, data_of(1_500_000, 6))
    publisher = publisher_at(nodes[0], 'lost', timeout=1.0)
    image.publish(publisher)
    node = nodes[0].node()
    root = root_of(nodes[0], image, 'lost')
    publisher.withdraw(image.id, image.manifest)
    node.collect()
    with pytest.raises(errors.ChunkMissing):
        node.block(cids.parse(root), offline=True)
    # A segment's node that is there promises its chunks; here it lies.
    from glance_geo.core import publication
    ref = image.view.manifest().segments[0]
    link, blocks = publication.segment(image.view.segment(ref))
    node.put_node(dict(blocks)[link.cid])
    image.publish(publisher)
    assert [name_of(block) for block in fetch(nodes[1], image.names)
            ] == image.names


def test_a_batch_brings_what_there_is_and_says_what_is_not(nodes, store):
    image = Image(store, data_of(1_000_000, 7))
    image.publish(publisher_at(nodes[0], 'part'))
    names = image.names
    unknown = [name_of(b'nobody has this'), name_of(b'nor this')]
    asked = [unknown[0], *names, unknown[1]]
    got = fetch(nodes[1], asked, timeout=1.0)
    assert got[0] == got[-1] == b''
    assert [name_of(block) for block in got[1:-1]] == names


def test_a_fetch_leaves_no_pin_behind(nodes, store):
    image = Image(store, data_of(500_000, 8))
    image.publish(publisher_at(nodes[0], 'tidy'))
    fetch(nodes[1], image.names)
    node = nodes[1].node()
    assert _FETCH_PIN not in node.pins().values()
    # One of a process that died is forgotten by the next.
    left = node.add(iter([b'a batch']), _FETCH_PIN)
    publisher_at(nodes[1], 'tidy').repair()
    assert not node.is_pinned(left)


def test_an_image_that_is_not_whole_is_not_published(nodes, store, tmp_path):
    image = Image(store, data_of(1_000_000, 9))
    other = ChunkStore(tmp_path / 'other')
    try:
        with pytest.raises(errors.ChunkMissing):
            publisher_at(nodes[0], 'broken').publish(
                image.id, image.manifest, other.view([image.id],
                                                     image.manifest),
                lambda: False)
    finally:
        other.close()
    assert not publisher_at(nodes[0], 'broken').published()


def test_a_node_that_is_down_is_unreachable(store):
    from glance_geo.store.ipfs.node import IPFSNode
    node = IPFSNode('/ip4/127.0.0.1/tcp/9/http', timeout=1)
    image = Image(store, b'x')
    with pytest.raises(errors.Unreachable):
        image.publish(SwarmPublisher(node, PinReferences(node, 'geo')))
    with pytest.raises(errors.Unreachable), SwarmChunks(node).chunks(
            'i', bytes(32), [bytes(32)]):
        pass
