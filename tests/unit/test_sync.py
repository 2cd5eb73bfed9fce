# SPDX-License-Identifier: Apache-2.0
"""A pull takes in what it can read, and says what it could not."""

from contextlib import contextmanager

import pytest

from glance_geo.core import codec, errors
from glance_geo.core.rules import shown
from glance_geo.db.engines.memory import MemoryEngine
from glance_geo.db.recordstore import RecordStore
from glance_geo.replication import wire
from glance_geo.replication.sync import pull


class Frames(list):
    last = b''


class Sender:
    """A peer whose answer is written here."""

    site = 'paris'

    def __init__(self, origin, extra=()):
        self.origin, self.extra = origin, list(extra)

    @contextmanager
    def records(self, vector):
        answer = Frames(self.extra + [codec.encode(r) for r in
                                      self.origin.newer(vector)])
        answer.last = wire.pack(self.origin.vector())
        yield answer


@pytest.fixture
def origin():
    made = RecordStore(MemoryEngine(), 'paris')
    made.create('image', 'i', lambda present: {'name': 'x'})
    return made


def test_p4_a_pull_advances_the_vector(origin):
    here = RecordStore(MemoryEngine(), 'rennes')
    assert pull(here, Sender(origin)) == 1
    assert pull(here, Sender(origin)) == 0
    assert not list(origin.newer(here.vector()))


def test_one_unreadable_record_stops_no_other_and_comes_again(origin):
    here = RecordStore(MemoryEngine(), 'rennes')
    newer = b'\x63' + codec.encode(origin.get('image', 'i'))[1:]
    with pytest.raises(errors.PeerMisbehaved, match='version 99'):
        pull(here, Sender(origin, [newer]))
    assert shown(here.get('image', 'i'))['name'] == 'x'
    assert list(origin.newer(here.vector()))    # not taken for seen


def test_a_malformed_field_stops_no_other(origin):
    here = RecordStore(MemoryEngine(), 'rennes')
    bad = RecordStore(MemoryEngine(), 'nantes').create(
        'task', 'j', lambda present: {'image_id': None})
    bad.kind = 'image'
    bad.fields['member:x'] = bad.fields.pop('image_id')
    with pytest.raises(errors.PeerMisbehaved, match='image/j'):
        pull(here, Sender(origin, [codec.encode(bad)]))
    assert here.get('image', 'i')
