# SPDX-License-Identifier: Apache-2.0
"""Chunk boundaries depend on bytes alone; manifests say what they hold."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glance_geo.core import errors, manifest
from glance_geo.core.chunker import MAXIMUM, ZERO_BLOCK, Chunker, Hole
from glance_geo.core.manifest import Extent, ManifestBuilder, name_of


def split(data, sizes):
    chunker = Chunker()
    pieces = []
    position = 0
    for size in sizes:
        pieces += chunker.feed(data[position:position + size])
        position += size
    pieces += chunker.feed(data[position:])
    return pieces + list(chunker.finish())


def join(pieces):
    return b''.join(bytes(p) if isinstance(p, Hole) else p for p in pieces)


@st.composite
def images(draw):
    """Data with runs of zeros at any offset."""
    rng = random.Random(draw(st.integers(0, 2 ** 32)))
    parts = []
    for _ in range(draw(st.integers(0, 5))):
        length = draw(st.integers(0, 400_000))
        parts.append(bytes(length) if draw(st.booleans())
                     else rng.randbytes(length))
    return b''.join(parts)


@settings(max_examples=40)
@given(images(), st.lists(st.integers(1, 300_000), max_size=8))
def test_chunks_do_not_depend_on_how_they_were_fed(data, sizes):
    assert split(data, sizes) == split(data, [])


@settings(max_examples=40)
@given(images())
def test_chunks_join_to_the_image(data):
    pieces = split(data, [])
    assert join(pieces) == data
    for piece in pieces:
        assert isinstance(piece, Hole) or 0 < len(piece) <= MAXIMUM


def test_zero_blocks_are_holes():
    data = random.Random(1).randbytes(ZERO_BLOCK) + bytes(ZERO_BLOCK * 3) + \
        b'end'
    pieces = split(data, [])
    assert [p for p in pieces if isinstance(p, Hole)] == [ZERO_BLOCK * 3]
    assert pieces[-1] == b'end'


def test_boundaries_are_pinned():
    """A change here makes every stored image deduplicate with nothing."""
    data = random.Random(20260101).randbytes(1_000_000)
    lengths = [len(piece) for piece in split(data, [])]
    assert lengths == PINNED


PINNED = [
    41459, 128852, 39923, 40029, 53084, 17135, 49070, 68078, 21690,
    40745, 10228, 33962, 35027, 15064, 33653, 33122, 16763, 9851,
    53914, 31028, 37210, 81473, 18993, 54974, 34673]


@st.composite
def extents(draw):
    return [Extent(draw(st.integers(1, MAXIMUM)),
                   draw(st.one_of(st.none(), st.binary(min_size=32,
                                                       max_size=32))))
            for _ in range(draw(st.integers(0, 60)))]


def build(found):
    builder = ManifestBuilder()
    segments = []
    for extent in found:
        segments += builder.add(extent)
    segments += builder.finish()
    return builder.root(), segments


@given(extents())
def test_manifest_round_trip(found):
    root, segments = build(found)
    parsed = manifest.parse_root(root)
    assert parsed.size == sum(extent.length for extent in found)
    back = []
    for ref, data in zip(parsed.segments, segments, strict=True):
        assert ref.name == name_of(data)
        back += manifest.parse_segment(ref, data)
    assert back == found


@given(extents(), st.data())
def test_p2_a_damaged_manifest_never_parses_as_another_size(found, data):
    root, segments = build(found)
    where = data.draw(st.integers(0, len(root) - 1))
    damaged = bytearray(root)
    damaged[where] ^= 1 << data.draw(st.integers(0, 7))
    try:
        parsed = manifest.parse_root(bytes(damaged))
    except errors.ManifestInvalid:
        return
    assert parsed.size == sum(ref.length for ref in parsed.segments)


@pytest.mark.parametrize('data', [
    b'', b'GGM1', b'GGM1' + bytes(12) + b'x', b'GGM1' + bytes(8) +
    b'\xff\xff\xff\xff', b'NOPE' + bytes(12)])
def test_garbage_is_no_manifest(data):
    with pytest.raises(errors.ManifestInvalid):
        manifest.parse_root(data)


def test_a_segment_that_claims_another_length_is_refused():
    root, (segment,) = build([Extent(5, bytes(32))])
    ref = manifest.parse_root(root).segments[0]
    wrong = manifest.SegmentRef(6, ref.size, ref.name)
    with pytest.raises(errors.ManifestInvalid):
        manifest.parse_segment(wrong, segment)


def test_an_insertion_leaves_later_segments_as_they_were():
    rng = random.Random(5)
    found = [Extent(100, rng.randbytes(32)) for _ in range(30_000)]
    before = {name_of(s) for s in build(found)[1]}
    after = {name_of(s) for s in build([Extent(7, bytes(32)), *found])[1]}
    assert len(before & after) >= len(before) - 2
