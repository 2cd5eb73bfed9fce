# SPDX-License-Identifier: Apache-2.0
"""CIDs, UnixFS nodes, CAR streams and publications: round trips, damage."""

import hashlib
import itertools

import blake3
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glance_geo.core import car, cids, errors, publication, unixfs
from glance_geo.core.cids import CID
from glance_geo.core.manifest import Extent, SegmentRef, name_of
from glance_geo.core.unixfs import Link

names = st.binary(min_size=32, max_size=32)
any_cid = st.builds(CID, st.sampled_from([cids.RAW, cids.DAG_PB]),
                    st.sampled_from([cids.SHA2_256, cids.BLAKE3]), names)
links = st.lists(st.builds(Link, any_cid, st.integers(0, 2**40)),
                 max_size=20)


def test_known_names():
    """As Kubo 0.43 names them (``add --raw-leaves --cid-version 1``, and
    ``block put --mhtype blake3``)."""
    assert str(cids.of_leaf(b'')) == ('bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xed'
                                      'zdetojuzjevtenxquvyku')
    assert str(cids.of_chunk(name_of(b'hello'))) == (
        'bafkr4ihkr4ld3m4gqkjf4reryxsy2s5tkbxprqkow6fin2iiyvreuzzab4')


@given(any_cid)
def test_a_cid_is_one_text_and_one_run_of_bytes(cid):
    assert cids.parse(str(cid)) == cid
    assert cids.from_binary(cid.binary) == cid


@given(st.text(max_size=120))
def test_p7_other_texts_are_no_cids(text):
    try:
        assert str(cids.parse(text)) == text
    except errors.CIDInvalid:
        pass


@given(st.binary(max_size=50))
def test_other_bytes_are_no_cids(data):
    try:
        assert cids.from_binary(data).binary == data
    except errors.CIDInvalid:
        pass


@given(st.binary(max_size=2000), st.integers(0, 15999))
def test_p2_a_changed_block_is_noticed(data, bit):
    for cid in (cids.of_leaf(data), cids.of_chunk(
            blake3.blake3(data).digest()), cids.of_node(data)):
        cids.verify(cid, data)
        if data:
            changed = bytearray(data)
            changed[bit // 8 % len(data)] ^= 1 << bit % 8
            with pytest.raises(errors.ChunkCorrupt):
                cids.verify(cid, changed)


@given(links)
def test_a_file_s_node_comes_back(given_links):
    found = unixfs.parse_file(unixfs.file_node(given_links))
    assert found.links == tuple(given_links)
    assert found.size == sum(link.size for link in given_links)


@given(st.binary(max_size=300))
def test_any_bytes_parse_or_are_refused(data):
    try:
        unixfs.parse_file(data)
    except errors.CIDInvalid:
        pass


@given(links, st.data())
def test_a_damaged_node_is_never_another_size(given_links, data):
    """Truncation at least: other damage is what CIDs are for."""
    block = unixfs.file_node(given_links)
    cut = data.draw(st.integers(0, len(block) - 1))
    with pytest.raises(errors.CIDInvalid):
        unixfs.parse_file(block[:cut])


def test_what_is_no_file_is_refused():
    with pytest.raises(errors.CIDInvalid, match='directory'):
        unixfs.parse_file(unixfs.directory([('a', cids.of_chunk(bytes(32)))]))
    node = unixfs.file_node([Link(cids.of_chunk(bytes(32)), 5)])
    with pytest.raises(errors.CIDInvalid, match='add up'):
        # The file's size, not its block's, is made larger.
        unixfs.parse_file(node.replace(b'\x18\x05\x20\x05',
                                       b'\x18\x06\x20\x05'))


blocks = st.lists(st.binary(max_size=3000).map(
    lambda data: (cids.of_leaf(data), data)), max_size=12)


@given(blocks, st.integers(1, 500))
def test_a_car_stream_comes_back_however_it_is_cut_up(given_blocks, step):
    data = b''.join(car.write(given_blocks))
    pieces = [data[at:at + step] for at in range(0, len(data), step)]
    assert list(car.read(pieces)) == given_blocks


@given(blocks.filter(bool), st.data())
def test_p2_a_car_stream_cut_short_is_noticed_or_ends_at_a_block(
        given_blocks, data):
    stream = b''.join(car.write(given_blocks))
    cut = data.draw(st.integers(0, len(stream) - 1))
    got = []
    try:
        for block in car.read([stream[:cut]]):
            got.append(block)
    except (errors.PeerMisbehaved, errors.CIDInvalid):
        pass
    assert got == given_blocks[:len(got)] and len(got) < len(given_blocks)


def test_p7_a_car_stream_can_not_claim_endless_blocks():
    head = next(car.write([]))
    for length in (2**34, cids.BLOCK_MAXIMUM + 37, 3):
        with pytest.raises(errors.PeerMisbehaved):
            list(car.read([head, unixfs.varint(length), bytes(100)]))


def _read(cid, store):
    """Return a file's bytes from its blocks, as any node of IPFS would."""
    block = store[cid]
    cids.verify(cid, block)
    if cid.codec == cids.RAW:
        return block
    node = unixfs.parse_file(block)
    parts = [_read(link.cid, store) for link in node.links]
    assert [len(part) for part in parts] == [
        link.size for link in node.links]
    return b''.join(parts)


extents = st.lists(st.one_of(
    st.binary(min_size=1, max_size=50),
    st.sampled_from([1, 100, 65536, 65537, 200_000, 3_000_000])), max_size=8)


@given(extents, extents)
def test_a_publication_is_the_image(first, second):
    """Holes of any length, and chunks that come twice."""
    store, parts = {}, []
    for pieces in (first, second):
        made = []
        for piece in pieces:
            if isinstance(piece, bytes):
                store[cids.of_chunk(name_of(piece))] = piece
                made.append(Extent(len(piece), name_of(piece)))
            else:
                made.append(Extent(piece, None))
        link, nodes = publication.segment(made)
        store.update(nodes)
        parts.append(link)
    image, nodes = publication.file(parts)
    store.update(nodes)
    wanted = b''.join(piece if isinstance(piece, bytes) else bytes(piece)
                      for piece in itertools.chain(first, second))
    assert _read(image.cid, store) == wanted and image.size == len(wanted)


def test_a_hole_of_a_tebibyte_is_a_few_blocks():
    link, nodes = publication.segment([Extent(2**31 - 1, None)] * 512)
    assert link.size == (2**31 - 1) * 512
    assert len({cid for cid, _ in nodes}) < 10
    assert sum(len(block) for _, block in nodes) < 12 * 2**20
    assert all(len(block) <= cids.BLOCK_MAXIMUM for _, block in nodes)


def test_the_root_links_all_that_another_site_needs():
    name = name_of(b'root')
    refs = [SegmentRef(5, 3, name_of(b'%d' % n)) for n in range(3)]
    cid, block = publication.directory(name, refs, Link(
        cids.of_leaf(b'x'), 1))
    cids.verify(cid, block)
    for each in (name, *(ref.name for ref in refs)):
        assert cids.of_chunk(each).binary in block
    assert hashlib.sha256(b'x').digest() in block
