# SPDX-License-Identifier: Apache-2.0
"""P8: the last copies of an image are never evicted, also when two nodes try
at once; only copies that placement does not want go, the oldest first."""

import threading

import pytest

from glance_geo.core import errors
from glance_geo.core.rules import shown
from tests.unit.test_agents import (  # noqa: F401
    IMAGE,
    authority,
    data_of,
    read,
    sites,
    wait,
    whole,
)


def fetched(sites, **properties):  # noqa: F811
    """An image of paris, whole at rennes and nantes too, as copies."""
    paris, rennes, nantes = sites
    manifest = paris.create(data_of(1_500_000), **properties)
    for site in (rennes, nantes):
        wait(lambda s=site: s.records.get('image', IMAGE))
        read(site, manifest)
        site.agent.fetcher.settle(force=True)
        assert whole(site, manifest)
    return manifest


def evict(site):
    (copy,) = site.agent.evictor.evictable()
    return site.agent.evictor.evict(copy)


def holdings_at(site, of):
    return [shown(r)['holding']['here'] for r in site.records.list('holding')
            if shown(r)['holding']['site'] == of]


def test_p8_a_copy_goes_under_a_lease_that_lasts(sites):  # noqa: F811
    paris, rennes, nantes = sites
    manifest = fetched(sites)
    wait(lambda: holdings_at(rennes, 'paris') and holdings_at(
        paris, 'rennes'))
    assert evict(rennes) > 1_000_000
    rennes.agent.keeper.collect()
    assert rennes.store.index.totals()[0] == 0
    assert not rennes.store.pack_files()
    leases = paris.store.refs.leases() + nantes.store.refs.leases()
    assert [(image, name, node) for image, name, node, _ in leases] == [
        (IMAGE, manifest, 'rennes')]
    wait(lambda: holdings_at(paris, 'rennes') == [0])
    assert read(rennes, manifest) == data_of(1_500_000)


def test_p8_the_home_never_evicts(sites):  # noqa: F811
    paris = sites[0]
    fetched(sites)
    assert paris.agent.evictor.evictable() == []


def test_p8_what_placement_wants_here_stays(sites):  # noqa: F811
    fetched(sites, geo_policy='everywhere')
    for site in sites:
        assert site.agent.evictor.evictable() == []


def test_p8_cut_off_nothing_is_evicted(sites):  # noqa: F811
    paris, rennes, nantes = sites
    manifest = fetched(sites)
    for site in (paris, nantes):
        site.serving.stop()
        site.serving = None
    with pytest.raises(errors.BitsUnavailable, match='promises'):
        evict(rennes)
    assert whole(rennes, manifest)


def test_p8_two_that_try_at_once_do_not_both_succeed_on_each_other(
        sites):  # noqa: F811
    """The home is gone: two copies are left, and both want to go."""
    paris, rennes, nantes = sites
    manifest = fetched(sites)
    paris.serving.stop()
    paris.serving = None
    for _ in range(20):
        start, gone = threading.Barrier(2), []

        def attempt(site, start=start, gone=gone):
            start.wait()
            try:
                evict(site)
                gone.append(site)
            except errors.BitsUnavailable:
                pass
        threads = [threading.Thread(target=attempt, args=(site,))
                   for site in (rennes, nantes)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        left = [site for site in (rennes, nantes)
                if site.store.holder({IMAGE}, manifest)]
        assert left, 'both copies went'
        for site in gone:
            # The other one is bound by its promise now.
            (other,) = left
            with pytest.raises(errors.BitsUnavailable):
                evict(other)
            read(site, manifest)
            site.agent.fetcher.settle(force=True)


def test_p8_a_part_promises_nothing(sites):  # noqa: F811
    paris, rennes, nantes = sites
    manifest = paris.create(data_of(9_000_000))
    for site in (rennes, nantes):
        wait(lambda s=site: s.records.get('image', IMAGE))
    read(rennes, manifest)
    read(nantes, manifest, start=0, length=4096)
    assert not whole(nantes, manifest)
    with pytest.raises(errors.PeerRefused, match='whole'):
        nantes.agent.evictor.promise('rennes', IMAGE, manifest)


def test_collections_at_once_evict_no_more_than_one_would(
        sites):  # noqa: F811
    rennes = sites[1]
    fetched(sites)
    rennes.store.limit = 1 << 20
    threads = [threading.Thread(target=rennes.agent.keeper.collect)
               for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rennes.agent.evictor.done.copies == 1


def test_make_room_takes_the_least_recently_read_and_no_more(
        sites):  # noqa: F811
    paris, rennes, _ = sites
    manifest = fetched(sites)
    rennes.store.limit = 100 << 20
    rennes.agent.keeper.collect()
    assert whole(rennes, manifest)
    rennes.store.limit = 1 << 20
    rennes.agent.keeper.collect()
    assert not rennes.store.copies()
    assert rennes.agent.evictor.done.copies == 1
    assert rennes.agent.status()['evicted']['bytes'] > 1_000_000
    # What is dead is no reason to evict: compaction frees it.
    assert not rennes.store.used_bytes() > rennes.store.limit
    assert paris.store.limit == 0


def test_what_is_dead_is_compacted_and_evicts_nothing(sites):  # noqa: F811
    _, rennes, _ = sites
    manifest = fetched(sites)
    session = rennes.store.session('red')
    session.put_blob(data_of(1_500_001))
    session.flush()
    session.abort()
    rennes.store.collect()
    rennes.store.limit = int(rennes.store.live_bytes() / 0.85)
    rennes.agent.keeper.collect()
    assert whole(rennes, manifest)
    rennes.store.compact()
    assert rennes.store.used_bytes() <= rennes.store.limit
