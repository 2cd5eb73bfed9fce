# SPDX-License-Identifier: Apache-2.0
"""Sites with a Redis each: stock glance-api processes, agents, the real
client; and what an operator sees of conflicts, audits and leaving sites."""

import json

import pytest

from tests.functional.labs import Client, Lab, command, openstack, wait


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    made = Lab(tmp_path_factory.mktemp('redis-lab'))
    made.up(['paris', 'rennes', 'nantes'], metadata='redis')
    yield made
    made.down()


@pytest.fixture(scope='module')
def sites(lab):
    return [Client(lab, site) for site in lab.sites]


def geo(lab, site, *arguments):
    return json.loads(command(lab, site, 'glance-geo', *arguments, '-f',
                              'json'))


def test_an_image_reaches_every_site(sites):
    paris, rennes, nantes = sites
    image = paris.create(data=b'bits' * 100_000)
    for client in (rennes, nantes):
        client.wait_active(image)
        assert client.read(image).content == b'bits' * 100_000


def test_p3_a_dead_redis_is_503_and_comes_back_without_a_restart(lab, sites):
    paris, rennes, _ = sites
    image = paris.create(name='kept')
    lab.kill('paris', 'redis')
    answer = paris.http.get(f'/v2/images/{image}')
    assert answer.status_code == 503, answer.text
    assert answer.headers['Retry-After'] and 'Redis' in answer.text
    assert rennes.http.get('/v2/images').status_code == 200
    lab.start('paris', 'redis')
    wait(lambda: paris.show(image))
    other = paris.create(name='after')
    wait(lambda: rennes.show(other))


def test_p4_a_conflict_is_shown_to_the_owner_and_settled(lab, sites):
    paris, rennes, _ = sites
    image = paris.create(name='first')
    wait(lambda: rennes.show(image))
    lab.isolate('paris')
    paris.set(image, name='by-paris')
    rennes.set(image, name='by-rennes')
    lab.heal()
    wait(lambda: 'geo_conflicts' in paris.show(image))
    found = json.loads(paris.show(image)['geo_conflicts'])
    assert {v['site']: v['value'] for v in found['name']} == {
        'paris': 'by-paris', 'rennes': 'by-rennes'}
    shown = json.loads(openstack(lab, 'rennes', 'image', 'show', image, '-f',
                                 'json'))
    assert 'by-paris' in json.dumps(shown['properties']['geo_conflicts'])
    rows = geo(lab, 'paris', 'conflicts', 'show', image)
    assert {row['Site'] for row in rows} == {'paris', 'rennes'}
    # The owner ends it as anything is changed; the property is not stored.
    rennes.set(image, name='settled')
    for client in sites:
        wait(lambda client=client: client.show(image)['name'] == 'settled')
        assert 'geo_conflicts' not in client.show(image)


def test_p4_a_deletion_that_met_a_change_can_be_taken_back(lab, sites):
    paris, rennes, _ = sites
    data = b'precious' * 50_000
    image = paris.create(name='x', data=data, note='kept')
    rennes.wait_active(image)
    assert rennes.read(image).content == data
    lab.isolate('paris')
    assert paris.delete(image).status_code == 204
    rennes.set(image, name='still in use')
    lab.heal()
    wait(lambda: rennes.show(image) is None)
    rows = geo(lab, 'rennes', 'trash', 'list')
    assert [(row['ID'], row['Name']) for row in rows] == [
        (image, 'still in use')]
    command(lab, 'rennes', 'glance-geo', 'store', 'collect')
    fresh = command(lab, 'rennes', 'glance-geo', 'trash', 'restore',
                    image).strip()
    assert fresh != image
    shown = rennes.show(fresh)
    assert (shown['visibility'], shown['note'], shown['status']) == (
        'private', 'kept', 'active')
    assert rennes.read(fresh).content == data
    paris.wait_active(fresh)
    assert paris.read(fresh).content == data


def test_p4_audits_find_nothing_between_healthy_sites(lab, sites):
    wait(lambda: len({json.dumps(c.listed(), sort_keys=True)
                      for c in sites}) == 1)
    rows = geo(lab, 'paris', 'audit')
    assert {row['Site'] for row in rows} == {'rennes', 'nantes'}
    assert all(row['Compared'] and not row['Removed'] and not row['Error']
               for row in rows)


def test_a_site_retires_and_bootstraps_anew(lab, sites):
    paris, rennes, nantes = sites
    lab.isolate('nantes')
    alone = nantes.create(name='only at nantes')
    refused = command(lab, 'paris', 'glance-geo', 'site', 'retire', 'nantes',
                      check=False)
    assert refused.returncode == 1 and '--force' in refused.stderr
    command(lab, 'paris', 'glance-geo', 'site', 'retire', 'nantes',
            '--force')
    lab.heal()
    wait(lambda: {row['Site']: row['State'] for row in
                  geo(lab, 'rennes', 'site', 'list')}['nantes'] == 'retired')
    wait(lambda: any('bootstrap' in (row['Error'] or '') for row in
                     geo(lab, 'nantes', 'site', 'list')))
    assert paris.show(alone) is None
    refused = command(lab, 'nantes', 'glance-geo', 'site', 'bootstrap',
                      '--from', 'paris', check=False)
    assert refused.returncode == 1 and 'stop' in refused.stderr
    for role in ('agent', 'glance-api'):
        lab.kill('nantes', role)
    file = str(lab.folder / 'unseen.geo')
    done = geo(lab, 'nantes', 'site', 'bootstrap', '--from', 'paris',
               '--export', file)
    assert done['differing'] == 0
    from glance_geo.cmd import exchange
    kept = [record for record in exchange.read(file)[1]]
    assert [record.id for record in kept] == [alone], kept
    for role in ('agent', 'glance-api'):
        lab.start('nantes', role)
    wait(lambda: len({json.dumps(c.listed(), sort_keys=True)
                      for c in sites}) == 1)
    assert nantes.show(alone) is None
    # What it alone had comes back if somebody wants it.
    assert geo(lab, 'nantes', 'metadata', 'import', file)['changed'] == 1
    wait(lambda: paris.show(alone))
    wait(lambda: {row['Site']: row['State'] for row in
                  geo(lab, 'paris', 'site', 'list')}['nantes'] == 'reachable')
