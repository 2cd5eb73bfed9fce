# SPDX-License-Identifier: Apache-2.0
"""Audits, tombstones, retirement and bootstrap, between real agents."""

import ssl

import pytest
from prometheus_client import CollectorRegistry

from glance_geo.core import codec, digests, errors
from glance_geo.core.records import REMOVED
from glance_geo.core.rules import shown
from glance_geo.db.engines.memory import MemoryEngine
from glance_geo.db.recordstore import RecordStore
from glance_geo.replication import audit, bootstrap, identity, membership
from glance_geo.replication.client import PeerClient
from glance_geo.replication.metrics import StatusCollector
from glance_geo.replication.sync import pull
from tests.unit.test_agents import Site, wait


@pytest.fixture
def sites(tmp_path):
    authority = tmp_path / 'ca'
    identity.create_authority(authority)
    made = [Site(name, tmp_path, authority)
            for name in ('paris', 'rennes', 'nantes')]
    for site in made:
        site.serve()
    for site in made:
        site.connect([peer for peer in made if peer is not site])
        site.agent._announce()
    yield {site.name: site for site in made}
    for site in made:
        site.serving.stop()
        site.store.close()


def client(sites, at, to):
    return sites[at].agent._peers[to]


def sync(sites, at, to):
    return pull(sites[at].records, client(sites, at, to))


def meet(sites, *names):
    for _ in range(2):
        for at in names or sites:
            for to in names or sites:
                if at != to:
                    sync(sites, at, to)
    for at in names or sites:
        for to in names or sites:
            if at != to:
                audit.gossip(sites[at].records, client(sites, at, to))


def create(site, id, **fields):
    return site.records.create('image', id, lambda present: fields)


def delete(site, id):
    site.records.update('image', id, lambda present: {
        'deletion': {'status': 'deleted', 'deleted': True, 'deleted_at': 1,
                     'seen': dict(present.context)}})


def compare(sites, at, *peers):
    """Audit one site with others; return what was merged and dropped."""
    votes = audit.Votes(lambda: peers)
    found = [audit.audit(sites[at].records, client(sites, at, peer), votes)
             for peer in peers]
    return sum(f.merged for f in found), sum(f.dropped for f in found)


def forget(sites, *names):
    for name in names or sites:
        agent = sites[name].agent
        from glance_geo.replication import tombstones
        tombstones.collect(sites[name].records, agent.members(), 0,
                           agent.tombstones)


def test_p4_an_audit_of_equal_sites_finds_nothing(sites):
    create(sites['paris'], 'i', name='x')
    meet(sites)
    found = audit.audit(sites['rennes'].records,
                        client(sites, 'rennes', 'paris'),
                        audit.Votes(lambda: ['paris']))
    assert found.compared == 4      # three sites and an image
    assert (found.merged, found.dropped) == (0, 0)


def test_p4_an_audit_heals_a_damaged_database(sites):
    for number in range(50):
        create(sites['paris'], f'i{number}', name='x')
    meet(sites)
    engine = sites['rennes'].records.engine
    engine.delete('image/i7')
    engine.put('image/i9', b'\1broken', engine.get('image/i9').token, ())
    assert sync(sites, 'rennes', 'paris') == 0      # vectors agree
    # To paris alone, what rennes lacks could be a deletion of long ago; that
    # nantes has it too says that rennes lost it.
    assert compare(sites, 'paris', 'rennes', 'nantes') == (0, 0)
    assert compare(sites, 'rennes', 'paris', 'nantes') == (2, 0)
    assert sites['rennes'].records.digests() == sites[
        'paris'].records.digests()


def test_p4_tombstones_wait_for_every_site_and_say_for_which(sites):
    create(sites['paris'], 'i', name='x')
    meet(sites)
    delete(sites['paris'], 'i')
    meet(sites, 'paris', 'rennes')
    forget(sites, 'paris')
    found = sites['paris'].agent.tombstones
    assert (found.waiting, found.forgotten) == (1, 0)
    assert found.blocked_by == {'nantes': 1}
    registry = CollectorRegistry()
    registry.register(StatusCollector(sites['paris'].agent.status))
    assert registry.get_sample_value('glance_geo_tombstones_blocked', {
        'site': 'paris', 'blocked_by': 'nantes'}) == 1
    meet(sites)
    forget(sites)
    for site in sites.values():
        assert site.records.get('image', 'i') is None
        assert site.agent.tombstones.forgotten == 1
    # Nothing comes back, however often they meet and compare.
    meet(sites)
    assert compare(sites, 'paris', 'rennes', 'nantes') == (0, 0)
    assert all(site.records.get('image', 'i') is None
               for site in sites.values())


def test_p4_tombstones_of_what_moved_aside_are_forgotten_too(sites):
    """No vector covers the dots that moving made: no site wrote them."""
    create(sites['paris'], 'i', name='x')
    create(sites['rennes'], 'i', name='y')
    meet(sites)
    ids = [record.id for record in sites['nantes'].records.list('image')]
    assert len(ids) == 2
    for id in ids:
        delete(sites['nantes'], id)
    meet(sites)
    forget(sites)
    assert not list(sites['paris'].records.list('image'))
    assert compare(sites, 'paris', 'rennes', 'nantes') == (0, 0)


def test_p4_a_restored_backup_does_not_bring_back_what_was_forgotten(sites):
    create(sites['paris'], 'i', name='x')
    create(sites['paris'], 'k', name='stays')
    meet(sites)
    rennes = sites['rennes'].records
    kept = {key: rennes.engine.get(key) for key in
            ('image/i', 'local/rennes/vector')}
    delete(sites['nantes'], 'i')
    meet(sites)
    forget(sites)
    # The backup of rennes: the image is there, its tombstone never was.
    from glance_geo.db import terms
    record = codec.decode(kept['image/i'].values[0], kept['image/i'].stamp)
    rennes.engine.put('image/i', codec.encode(record), None,
                      terms.of(record))
    at = 'local/rennes/vector'
    rennes.engine.put(at, kept[at].values[0], rennes.engine.get(at).token, ())
    meet(sites)
    assert sites['paris'].records.get('image', 'i') is None
    assert compare(sites, 'paris', 'rennes', 'nantes') == (0, 0)
    assert sites['paris'].records.get('image', 'i') is None
    assert compare(sites, 'rennes', 'paris', 'nantes') == (0, 1)
    assert rennes.get('image', 'i') is None
    assert rennes.engine.get('local/rennes/dropped/image/i')  # for review
    assert shown(rennes.get('image', 'k'))['name'] == 'stays'


def test_p4_an_audit_does_not_take_an_unsynced_record_for_a_deletion(sites):
    meet(sites)
    create(sites['rennes'], 'new', name='x')
    assert compare(sites, 'rennes', 'paris', 'nantes') == (0, 0)
    assert sites['rennes'].records.get('image', 'new')


def test_p4_a_retired_site_blocks_nothing_and_is_not_heard(sites):
    create(sites['paris'], 'i', name='x')
    meet(sites)
    create(sites['nantes'], 'alone', name='only-here')
    delete(sites['paris'], 'i')
    meet(sites, 'paris', 'rennes')
    paris = sites['paris'].records
    membership.retire(paris, 'nantes', 'paris', force=True)
    meet(sites, 'paris', 'rennes')
    forget(sites, 'paris', 'rennes')
    assert paris.get('image', 'i') is None
    assert sites['paris'].agent.members() == ['paris', 'rennes']
    # It comes back: it is told what to do, and nobody takes from it.
    with pytest.raises(errors.SiteRetired, match='bootstrap'):
        sync(sites, 'nantes', 'paris')
    with pytest.raises(errors.SiteRetired):
        sites['paris'].agent._syncs['nantes'].once()
    # It begins anew; what it alone had is put aside first.
    nantes = sites['nantes'].records
    aside = bootstrap.unseen(nantes, client(sites, 'nantes', 'paris'))
    assert [record.id for record in aside] == ['alone']
    nantes.engine.reset()
    nantes.renew_incarnation()
    told = []
    bootstrap.run(nantes, client(sites, 'nantes', 'paris'),
                  lambda done, total: told.append((done, total)))
    assert told[0][0] == 0 and told[-1][0] == told[-1][1] > 0
    assert nantes.get('image', 'i') is None
    assert nantes.get('image', 'alone') is None
    assert sync(sites, 'nantes', 'paris') == 0
    sync(sites, 'paris', 'nantes')
    assert 'nantes' in sites['paris'].agent.members()


def test_expired_tasks_are_forgotten_like_deleted_ones(sites):
    for id, at in (('old', 1), ('new', 1 << 61)):
        sites['paris'].records.create('task', id, lambda present, at=at: {
            'expires_at': at, 'deleted': False})
    meet(sites)
    forget(sites)
    assert [r.id for r in sites['rennes'].records.list('task')] == ['new']


def test_p4_a_site_is_not_retired_while_it_may_have_more(sites):
    meet(sites)
    create(sites['nantes'], 'alone', name='x')
    audit.gossip(sites['paris'].records, client(sites, 'paris', 'nantes'))
    with pytest.raises(errors.PeerRefused, match='--force'):
        membership.retire(sites['paris'].records, 'nantes', 'paris', False)
    meet(sites)
    membership.retire(sites['paris'].records, 'nantes', 'paris', False)
    with pytest.raises(errors.PeerRefused, match='itself'):
        membership.retire(sites['paris'].records, 'paris', 'paris', True)


def test_a_thousand_records_cross_in_one_request(sites, monkeypatch):
    for number in range(1000):
        create(sites['paris'], f'i{number}', name=f'image {number}')
    requests = []
    peer = client(sites, 'rennes', 'paris')
    send = peer._http.stream
    monkeypatch.setattr(peer._http, 'stream', lambda *a, **o: (
        requests.append(a), send(*a, **o))[1])
    assert sync(sites, 'rennes', 'paris') >= 1000
    assert len(requests) == 1


def test_hints_and_pulls_use_one_connection(sites, monkeypatch):
    """Found on a slow link: each hint left its connection unusable, and so
    cost three round trips."""
    peer = client(sites, 'rennes', 'paris')
    ports = set()
    check = peer._check
    monkeypatch.setattr(peer, '_check', lambda answer: (ports.add(
        answer.extensions['network_stream'].get_extra_info(
            'client_addr')), check(answer)))
    for _ in range(3):
        peer.hint()
        sync(sites, 'rennes', 'paris')
    assert len(ports) == 1


def test_a_new_site_begins_from_any_one(sites, tmp_path):
    for number in range(30):
        create(sites['paris'], f'i{number}', name='x')
    meet(sites)
    lyon = Site('lyon', tmp_path, tmp_path / 'ca')
    tls = lyon.context(ssl.Purpose.SERVER_AUTH)
    peer = PeerClient('nantes', '127.0.0.1', sites['nantes'].port, tls, 5.0)
    found = bootstrap.run(lyon.records, peer)
    assert (found.merged, found.dropped) == (0, 0)
    assert lyon.records.digests() == sites['nantes'].records.digests()
    peer.close()
    lyon.store.close()


def test_agents_audit_and_forget_by_themselves(sites):
    create(sites['paris'], 'i', name='x')
    for site in sites.values():
        site.run()
        for thread in site.agent._threads:
            thread.start()
    try:
        wait(lambda: all(site.records.get('image', 'i')
                         for site in sites.values()))
        delete(sites['rennes'], 'i')
        wait(lambda: all(site.records.get('image', 'i') is None
                         for site in sites.values()))
    finally:
        for site in sites.values():
            site.agent.stop()


def test_bucket_digests_do_not_depend_on_order():
    store = RecordStore(MemoryEngine(), 'paris')
    for number in range(40):
        store.create('image', f'i{number}', lambda present: {'name': 'x'})
    found = list(store.list('image'))
    assert digests.of(found) == digests.of(found[::-1])
    store.update('image', 'i3', lambda present: {'name': REMOVED})
    assert digests.of(found).differing(digests.of(store.list('image'))) == [
        digests.bucket('image/i3')]
