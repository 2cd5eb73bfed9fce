# SPDX-License-Identifier: Apache-2.0
"""What a peer sends is bounded and checked before it is believed (P7)."""

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from glance_geo.core import errors
from glance_geo.replication import wire


def pieces(data, size):
    return [data[i:i + size] for i in range(0, len(data), size)]


@given(st.lists(st.binary(max_size=5000), max_size=10), st.binary(
    max_size=100), st.integers(1, 4000))
def test_round_trip(items, last, size):
    stream = b''.join(wire.frames(items, last))
    reader = wire.FrameReader(pieces(stream, size), 5000)
    assert list(reader) == items and reader.last == last


@given(st.integers(0, 400))
def test_a_stream_cut_anywhere_is_noticed(cut):
    stream = b''.join(wire.frames([bytes(range(200)), b'x' * 50], b'end'))
    reader = wire.FrameReader([stream[:min(cut, len(stream) - 5)]], 5000)
    with pytest.raises((errors.Unreachable, errors.PeerMisbehaved)):
        list(reader)


def test_a_frame_that_is_too_long_is_refused_before_it_is_taken():
    stream = b''.join(wire.frames([bytes(10_000_000)], b''))
    assert len(stream) < 10_000
    with pytest.raises(errors.PeerMisbehaved, match='10000000'):
        list(wire.FrameReader([stream], 1000))


def test_a_window_that_is_too_large_is_refused():
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    made = zstandard.ZstdCompressor(compression_params=parameters)
    stream = made.compressobj()
    data = stream.compress(bytes(1 << 20)) + stream.flush()
    with pytest.raises((errors.PeerMisbehaved, errors.Unreachable)):
        list(wire.FrameReader([data], 1 << 24))


@pytest.mark.parametrize('data', [b'', b'\xc1', b'\xdf\xff\xff\xff\xff',
                                  b'\xa5ab'])
def test_garbage_is_no_message(data):
    with pytest.raises(errors.PeerMisbehaved):
        wire.unpack(data)


def test_the_level_of_compression_follows_the_link():
    assert [wire.level_for(rate) for rate in (
        None, 100e6, 30e6, 10e6, 3e6, 2e6, 100e3)] == [3, 1, 1, 3, 6, 9, 12]


@pytest.mark.parametrize('level', [1, 3, 6, 9, 12])
def test_frames_of_every_level_read_back(level):
    items = [bytes(range(256)) * n for n in range(60)]
    stream = b''.join(wire.frames(items, b'end', level))
    reader = wire.FrameReader(pieces(stream, 1000), 1 << 20)
    assert list(reader) == items and reader.last == b'end'
