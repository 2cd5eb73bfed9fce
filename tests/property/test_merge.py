# SPDX-License-Identifier: Apache-2.0
"""P4: merging is commutative, associative and idempotent."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from glance_geo.core import births, codec, records, rules
from glance_geo.core.clock import HybridClock
from glance_geo.core.records import REMOVED, Birth, Record
from glance_geo.db.engines.memory import MemoryEngine
from glance_geo.db.recordstore import RecordStore

SITES = ('paris', 'rennes', 'nantes')
FIELDS = ('name', 'visibility', 'tag:red', 'prop:os', 'deactivated',
          'deletion', 'member:blue', 'updated_at')
VALUES = {
    'name': st.sampled_from(('a', 'b', 'c')),
    'visibility': st.sampled_from(('public', 'private', 'shared')),
    'tag:red': st.just([1, 0]),
    'prop:os': st.fixed_dictionaries(
        {'value': st.sampled_from('xyz'), 'removed': st.booleans()}),
    'deactivated': st.booleans(),
    'deletion': st.sampled_from((
        {'status': 'deleted', 'deleted': True},
        {'status': 'pending_delete', 'deleted': True},
        {'status': None, 'deleted': False})),
    'member:blue': st.fixed_dictionaries(
        {'id': st.integers(1, 3), 'removed': st.booleans(),
         'can_share': st.just(False), 'created_at': st.just(0)}),
    'updated_at': st.integers(0, 9)}


@st.composite
def changes(draw):
    names = draw(st.sets(st.sampled_from(FIELDS), min_size=1, max_size=3))
    return {name: (REMOVED if draw(st.integers(0, 4)) == 0
                   else draw(VALUES[name])) for name in sorted(names)}


@st.composite
def histories(draw):
    """Return states of one record at three sites after writes and merges."""
    birth = Birth(1, 'paris', 'n')
    states = {site: Record('image', 'i', birth) for site in SITES}
    counters = dict.fromkeys(SITES, 0)
    hlc = itertools.count(1)
    for _ in range(draw(st.integers(0, 10))):
        site = draw(st.sampled_from(SITES))
        if draw(st.booleans()):
            counters[site] += 1
            states[site] = records.write(
                states[site], site, next(hlc), draw(changes()),
                counters[site])
        else:
            other = draw(st.sampled_from(SITES))
            states[site] = records.merge(states[site], states[other])
    return list(states.values())


def same(a, b):
    assert codec.decode(codec.encode(a)) == codec.decode(codec.encode(b))
    assert rules.shown(a) == rules.shown(b)


@st.composite
def sealed_histories(draw):
    """Like ``histories``, with states that only a newer release reads."""
    states = draw(histories())
    for number, state in enumerate(states):
        if draw(st.booleans()):
            whole = codec.encode(state)
            states[number] = codec.decode(b'\2' + whole[1:])
    return states


@given(sealed_histories())
def test_p4_merging_what_can_not_be_read_follows_the_same_laws(states):
    a, b, c = states
    same(records.merge(a, b), records.merge(b, a))
    same(records.merge(records.merge(a, b), c),
         records.merge(a, records.merge(b, c)))
    once = records.merge(a, b)
    same(records.merge(once, b), once)
    # Nothing that was seen is forgotten, and nothing sealed is lost but to
    # something that has seen all of it.
    assert once.seen == records.join(a.seen, b.seen)
    parts = [once.context, *(part.context for part in once.sealed)]
    for part in (*a.sealed, *b.sealed):
        assert any(records.includes(seen, part.context) for seen in parts)


KINDS = ('image', 'namespace', 'task', 'resource_type', 'site', 'holding')


@given(histories(), st.sampled_from(KINDS))
def test_p4_every_kind_of_record_merges_alike(states, kind):
    for state in states:
        state.kind = kind
        state.birth = state.birth if kind in births.CLAIMED else None
    a, b, c = states
    (here,), (there,) = births.reconcile(a, b), births.reconcile(b, a)
    same(here, there)
    (left,) = births.reconcile(here, c)
    (right,) = births.reconcile(a, births.reconcile(b, c)[0])
    same(left, right)


@given(histories())
def test_p4_merge_is_commutative(states):
    a, b, _ = states
    same(records.merge(a, b), records.merge(b, a))


@given(histories())
def test_p4_merge_is_associative(states):
    a, b, c = states
    same(records.merge(records.merge(a, b), c),
         records.merge(a, records.merge(b, c)))


@given(histories())
def test_p4_merge_is_idempotent(states):
    a, b, _ = states
    once = records.merge(a, b)
    same(records.merge(once, b), once)
    same(records.merge(once, once), once)


@given(histories())
def test_p4_merge_keeps_every_value_that_no_write_saw(states):
    a, b, _ = states
    merged = records.merge(a, b)
    for mine, other in ((a, b), (b, a)):
        for field, siblings in mine.fields.items():
            for dot, value in siblings.items():
                if not records.covers(other.context, dot):
                    assert merged.fields[field][dot] == value


@given(histories())
def test_codec_round_trip_keeps_unknown_entries(states):
    record = states[0].copy()
    record.extra['from_a_newer_release'] = {'x': [1, b'2']}
    assert codec.decode(codec.encode(record)) == record


def test_equal_records_have_equal_bytes():
    """Found by the state machine: unknown entries that came in another
    order made the sites' digests differ for ever."""
    a = Record('image', 'i', extra={'x': 1, 'y': 2})
    b = Record('image', 'i', extra={'y': 2, 'x': 1})
    assert a == b and codec.encode(a) == codec.encode(b)


@given(histories())
def test_p4_moving_aside_and_merging_commute(states):
    a, b, _ = states
    same(births.moved_aside(records.merge(a, b)),
         records.merge(births.moved_aside(a), births.moved_aside(b)))


@given(histories(), histories())
def test_p4_two_creations_of_one_id_end_the_same_everywhere(one, two):
    first, second = one[0], two[0]
    second = second.copy()
    second.birth = Birth(2, 'rennes', 'm')
    second.context = {f'{k}2': v for k, v in second.context.items()}
    second.fields = {
        field: {(f'{dot[0]}2', dot[1]): value
                for dot, value in siblings.items()}
        for field, siblings in second.fields.items()}
    if not first.context or not second.context:
        return
    here = births.reconcile(first, second)
    there = births.reconcile(second, first)
    assert [codec.encode(r) for r in here] == [
        codec.encode(r) for r in there]
    kept, moved = here
    assert kept.birth == first.birth and kept.id == 'i'
    assert moved.id != 'i'
    assert rules.shown(moved)['visibility'] == 'private'


def test_p4_news_spread_between_sites_that_never_meet():
    a, b, c = (RecordStore(MemoryEngine(), site) for site in SITES)
    a.create('image', 'i', lambda present: {'name': 'x'})
    for target, origin in ((b, a), (c, b)):
        vector = origin.vector()
        for record in list(origin.newer(target.vector())):
            target.absorb(record)
        target.advance(vector)
    assert rules.shown(c.get('image', 'i'))['name'] == 'x'
    assert c.vector()[a.incarnation] == a.vector()[a.incarnation]


def test_p4_concurrent_values_are_kept_until_a_write_that_saw_them():
    a, b = (RecordStore(MemoryEngine(), site) for site in SITES[:2])
    a.create('image', 'i', lambda present: {'name': 'first'})
    b.absorb(a.get('image', 'i'))
    a.update('image', 'i', lambda present: {'name': 'by-a'})
    b.update('image', 'i', lambda present: {'name': 'by-b'})
    a.absorb(b.get('image', 'i'))
    found = rules.conflicts(a.get('image', 'i'))['name']
    assert {value['value'] for value in found} == {'by-a', 'by-b'}
    a.update('image', 'i', lambda present: {'name': 'settled'})
    b.absorb(a.get('image', 'i'))
    assert not rules.conflicts(b.get('image', 'i'))


def test_p4_a_namespace_deleted_and_created_again_replaces_the_old():
    a, b = (RecordStore(MemoryEngine(), site) for site in SITES[:2])
    a.create('namespace', 'N', lambda present: {'owner': 'one'})
    b.absorb(a.get('namespace', 'N'))
    b.update('namespace', 'N', lambda present: {'description': 'old'})
    a.update('namespace', 'N', lambda present: {'deleted': True})
    a.create('namespace', 'N', lambda present: {'owner': 'two'})
    for target, origin in ((a, b), (b, a), (a, b)):
        for record in list(origin.list('namespace')):
            target.absorb(record)
    for store in (a, b):
        (record,) = store.list('namespace')
        assert rules.shown(record) == {'owner': 'two'}


def test_p4_a_key_written_after_its_first_holder_moved_aside():
    """Found by the state machine: the later writes of a site must not pass
    for having seen what that site wrote under the key before."""
    stores = {}
    for number, site in enumerate(SITES):
        stores[site] = RecordStore(MemoryEngine(), site, clock=HybridClock(
            lambda n=number: 1000 + n * 4000))
    paris, rennes, nantes = stores.values()

    def pull(to, source):
        vector = source.vector()
        for record in list(source.newer(to.vector())):
            to.absorb(record)
        to.advance(vector)
    nantes.create('image', 'j', lambda present: {'name': 'nantes'})
    pull(paris, nantes)
    rennes.create('image', 'j', lambda present: {'name': 'rennes'})
    pull(nantes, rennes)
    nantes.update('image', 'j', lambda present: {'name': 'both'})
    pull(paris, nantes)
    for to, source in itertools.permutations(stores.values(), 2):
        pull(to, source)
    for store in stores.values():
        assert sorted(rules.shown(record)['name']
                      for record in store.list('image')) == ['both', 'nantes']
