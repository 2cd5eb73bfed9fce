# SPDX-License-Identifier: Apache-2.0
"""Every metadata engine, for the suites that run on all of them.

``urls(name, folder)`` gives the address of an empty one. Servers are started
when first needed and stopped with the test process. With
``GLANCE_GEO_TEST_RIAK=host:pb_port,host:pb_port`` Riak is that cluster,
otherwise a stand-in at the wire. CockroachDB: ``tests/cockroach.py``.
"""

import atexit
import functools
import os
import uuid

from tests import cockroach, servers

NAMES = ('memory', 'sqlite', 'redis', 'redis-sentinel', 'redis-cluster',
         'riak', 'cockroachdb')
#: One per product, for suites that take long.
PRODUCTS = ('memory', 'sqlite', 'redis', 'riak')


@functools.cache
def server(name):
    """Return the running server behind an engine's name."""
    if name == 'riak':
        from tests.riakserver import RiakStandIn
        made = RiakStandIn()
        atexit.register(made.shutdown)
        return made
    made = {'redis': lambda: servers.RedisServer(
                *servers.RedisServer.DURABLE),
            'redis-sentinel': servers.RedisUnderSentinel,
            'redis-cluster': servers.RedisCluster}[name]()
    atexit.register(made.stop)
    return made


def riak_address():
    """Return the address of the Riak to test on."""
    given = os.environ.get('GLANCE_GEO_TEST_RIAK')
    return f'riak://{given}' if given else server('riak').url


def url(name, folder):
    """Return the URL of an engine that holds nothing."""
    fresh = f'geo-test-{uuid.uuid4().hex[:12]}'
    if name == 'memory':
        return 'memory://'
    if name == 'sqlite':
        return f'sqlite:///{folder}/{fresh}.db'
    if name == 'cockroachdb':
        return cockroach.database()
    if name == 'riak':
        kind = os.environ.get('GLANCE_GEO_TEST_RIAK_TYPE', 'default')
        # An index answers from one replica: suites that list what they have
        # just written want all of them to have it.
        return f'{riak_address()}/{fresh}?type={kind}&w=all'
    address = server(name).url
    return f'{address}{"&" if "?" in address else "?"}prefix={fresh}'
