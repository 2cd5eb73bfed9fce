# SPDX-License-Identifier: Apache-2.0
"""Round trips, counted by the servers themselves."""

import collections

import pytest

from glance_geo.db import api
from tests import engines
from tests.property.test_image_lists import ADMIN, caller

ID = '00000000-0000-4000-8000-000000000000'


def fill(data_api):
    for number in range(60):
        data_api.image_create(ADMIN, {
            'id': f'00000000-0000-4000-8000-{number:012d}',
            'status': 'active', 'name': f'image {number}', 'owner': 'one',
            'visibility': 'public' if number % 2 else 'private'})


@pytest.fixture
def redis(tmp_path):
    data_api = api.load(engines.url('redis', tmp_path))
    fill(data_api)
    client = engines.server('redis').client()

    def cost(call, *arguments, **options):
        client.config_resetstat()
        found = call(*arguments, **options)
        stats = client.info('commandstats')
        # What a script calls on the server is no round trip.
        return found, sum(stats.get(f'cmdstat_{name}', {}).get('calls', 0)
                          for name in ('evalsha', 'eval', 'script'))
    yield data_api, cost
    data_api.close()


def test_on_redis(redis):
    data_api, cost = redis
    live = {'deleted': False, 'os_hidden': False}
    assert cost(data_api.image_get, ADMIN, ID)[1] == 1
    for context in (ADMIN, caller('one')):
        page, calls = cost(data_api.image_get_all, context, dict(live),
                           limit=25, return_tag=True)
        assert len(page) == 25 and calls <= 2
        page, calls = cost(data_api.image_get_all, context, dict(live),
                           limit=25, marker=page[-1]['id'])
        assert len(page) == 25 and calls <= 2
        assert cost(data_api.image_get_all, context,
                    {**live, 'name': 'image 3'}, limit=25)[1] <= 2
    assert cost(data_api.image_update, ADMIN, ID, {'name': 'x'})[1] <= 2
    assert cost(data_api.image_tag_create, ADMIN, ID, 't')[1] <= 2
    assert cost(data_api.image_destroy, ADMIN, ID)[1] <= 2


def test_on_riak(tmp_path):
    if engines.os.environ.get('GLANCE_GEO_TEST_RIAK'):
        pytest.skip('only the stand-in counts what it is asked')
    import riak.pb.messages as m
    server = engines.server('riak')
    data_api = api.load(engines.url('riak', tmp_path))
    fill(data_api)

    def cost(call, *arguments, **options):
        server.calls.clear()
        call(*arguments, **options)
        found = collections.Counter(server.calls)
        return (found[m.MSG_CODE_GET_REQ], found[m.MSG_CODE_PUT_REQ],
                found[m.MSG_CODE_INDEX_REQ])
    assert cost(data_api.image_get, ADMIN, ID) == (1, 0, 0)
    assert cost(data_api.image_update, ADMIN, ID, {'name': 'x'}) == (1, 1, 0)
    gets, puts, queries = cost(
        data_api.image_get_all, ADMIN, {'deleted': False, 'os_hidden': False},
        limit=25)
    assert (puts, queries) == (0, 1) and gets <= 32
    data_api.close()
