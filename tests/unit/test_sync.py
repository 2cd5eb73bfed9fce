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
    def records(self, vector, bootstrap=False):
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


def test_p4_what_was_written_under_an_old_name_is_sent_once(origin):
    """Found with sites on Redis: after a restart the old name was missing
    from the vector, and its last writes came again with every pull."""
    here = RecordStore(MemoryEngine(), 'rennes')
    old = origin.incarnation
    origin.renew_incarnation()
    assert origin.vector()[old] == 1
    assert pull(here, Sender(origin)) == 1
    assert not list(origin.newer(here.vector()))


def test_p4_a_process_that_missed_a_restore_does_not_claim_lost_writes():
    """Found with sites on Redis: an agent that had not written since took
    the new life's numbers for the old name's."""
    engine = MemoryEngine()
    writing, agent = (RecordStore(engine, 'paris') for _ in range(2))
    old = writing.incarnation
    writing.create('image', 'i', lambda present: {'name': 'x'})
    engine.renew_life()
    for number in range(5):
        writing.update('image', f'{number}', lambda present: {'name': 'y'})
    agent.advance({'rennes.1': 3, old: 1})
    assert agent.vector() == {old: 1, writing.incarnation: 6, 'rennes.1': 3}


def newer_release(record, seen):
    """Return a record as a later release might write it."""
    return b'\x63' + wire.pack({
        'k': record.kind, 'i': record.id,
        'b': [record.birth.hlc, record.birth.site, record.birth.nonce],
        'c': [[name, n] for name, n in seen.items()], 'shape': 'unknown'})


def test_a_corrupt_record_stops_no_other_and_comes_again(origin):
    here = RecordStore(MemoryEngine(), 'rennes')
    with pytest.raises(errors.PeerMisbehaved, match='does not parse'):
        pull(here, Sender(origin, [b'\x01garbage']))
    assert shown(here.get('image', 'i'))['name'] == 'x'
    assert list(origin.newer(here.vector()))    # not taken for seen


def test_p4_a_newer_releases_record_is_kept_and_passed_on(origin, caplog):
    here = RecordStore(MemoryEngine(), 'rennes')
    third = RecordStore(MemoryEngine(), 'nantes')
    pull(here, Sender(origin))
    record = origin.get('image', 'i')
    newer = newer_release(record, {**record.context, 'lyon.1': 7})
    assert pull(here, Sender(origin, [newer])) == 1
    assert pull(here, Sender(origin, [newer])) == 0
    with pytest.raises(errors.RecordTooNew, match='image i.*version 99'):
        here.get('image', 'i')
    assert not list(here.list('image')) and 'version 99' in caplog.text
    # A write that has not seen it takes nothing away from it.
    origin.update('image', 'i', lambda present: {'name': 'y'})
    pull(here, Sender(origin))
    pull(third, Sender(here))
    (passed,) = third.newer({})
    assert [part.value for part in passed.sealed] == [newer]
    assert shown(passed)['name'] == 'y'
    # What has seen all of it takes its place.
    seen = passed.copy()
    seen.sealed, seen.context = (), {**passed.context, 'lyon.1': 8}
    third.absorb(seen)
    assert shown(third.get('image', 'i'))['name'] == 'y'


def test_a_malformed_field_is_kept_and_passed_on_but_not_shown(origin):
    here = RecordStore(MemoryEngine(), 'rennes')
    bad = RecordStore(MemoryEngine(), 'nantes').create(
        'task', 'j', lambda present: {'image_id': None})
    bad.kind = 'image'
    bad.fields['member:x'] = bad.fields.pop('image_id')
    assert pull(here, Sender(origin, [codec.encode(bad)])) == 2
    assert here.get('image', 'i')
    assert list(here.walk('image.created_at'))[0].id == 'i'
    assert bad in list(here.newer({}))


def test_a_corrupt_record_gives_way_to_what_another_site_has(origin, caplog):
    here = RecordStore(MemoryEngine(), 'rennes')
    pull(here, Sender(origin))
    entry = here.engine.get('image/i')
    here.engine.put('image/i', b'\x01broken', entry.token, ())
    with pytest.raises(errors.RecordCorrupt, match='image i'):
        here.get('image', 'i')
    assert here.absorb(origin.get('image', 'i'))
    assert shown(here.get('image', 'i'))['name'] == 'x'
