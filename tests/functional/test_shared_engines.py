# SPDX-License-Identifier: Apache-2.0
"""Sites that share an engine: metadata is everywhere at once, agents bring
the chunks."""

import json

import pytest
import sqlalchemy as sa

from tests import cockroach, engines, servers
from tests.functional.labs import Client, Lab, command, wait
from tests.riakserver import RiakStandIn


@pytest.fixture(scope='module', params=['riak', 'redis', 'cockroachdb',
                                        'sql'])
def lab(request, tmp_path_factory):
    if request.param in ('cockroachdb', 'sql'):
        # A key-value engine in its tables, or Glance's own SQL.
        url = cockroach.database()
        if request.param == 'sql':
            url = f'sql+{url}&geo_statement_timeout=2'

        def stop():
            pass
    elif request.param == 'riak':
        server = RiakStandIn()
        url, stop = f'{engines.riak_address()}/shared', server.shutdown
    else:
        server = servers.RedisServer(*servers.RedisServer.DURABLE)
        url, stop = f'{server.url}?shared=true', server.stop
    made = Lab(tmp_path_factory.mktemp(f'{request.param}-lab'))
    made.up(['paris', 'rennes'], metadata=url)
    made.engine, made.url = request.param, url
    yield made
    made.down()
    stop()


def test_what_one_site_writes_the_other_has_at_once(lab):
    paris, rennes = (Client(lab, site) for site in lab.sites)
    image = paris.create(data=b'bits' * 200_000)
    assert rennes.show(image)['status'] == 'active'
    assert rennes.read(image).content == b'bits' * 200_000
    rennes.set(image, name='renamed')
    assert paris.show(image)['name'] == 'renamed'


def test_placement_is_followed(lab):
    paris, rennes = (Client(lab, site) for site in lab.sites)
    image = paris.create(data=b'more' * 200_000, geo_policy='everywhere')

    def held():
        rows = json.loads(command(lab, 'rennes', 'glance-geo', 'image',
                                  'show', image, '-f', 'json'))
        return {row['Site']: row['Held'] for row in rows}
    wait(lambda: held().get('rennes') == 'whole', 60)
    assert rennes.delete(image).status_code == 204
    assert paris.show(image) is None


def test_agents_do_not_send_records(lab):
    status = json.loads(command(lab, 'paris', 'glance-geo', 'status', '-f',
                                'json'))
    assert all(peer['reachable'] and not peer['records_received']
               for peer in status['peers'])


def test_a_database_that_takes_no_writes_is_503(lab):
    """A lock that nobody gives back is what a lost quorum looks like."""
    if lab.engine != 'sql':
        pytest.skip('of Glance\'s own SQL')
    paris, rennes = (Client(lab, site) for site in lab.sites)
    image = paris.create(data=b'kept' * 1000)
    change = {'op': 'replace', 'path': '/name', 'value': 'new'}
    engine = sa.create_engine(lab.url.removeprefix('sql+'))
    with engine.begin() as connection:
        connection.execute(sa.text(
            'SELECT 1 FROM images WHERE id = :id FOR UPDATE'), {'id': image})
        refused = rennes.patch(image, change)
        assert refused.status_code == 503
        assert refused.headers['Retry-After']
        assert 'unavailable' in refused.text
        assert rennes.show(image)['status'] == 'active'
        assert rennes.read(image).content == b'kept' * 1000
    engine.dispose()
    assert rennes.patch(image, change).status_code == 200
