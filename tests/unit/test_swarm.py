# SPDX-License-Identifier: Apache-2.0
"""What the agent tells of IPFS, whom it asks for chunks, and the private
network's configuration (P7, P9)."""

import time

import pytest

from glance_geo.core import errors
from glance_geo.replication.metrics import StatusCollector
from glance_geo.replication.swarm import Swarm
from glance_geo.store.ipfs import configuration
from glance_geo.store.nochunks import NoChunks


class Provider:
    def __init__(self, label):
        self.label = label


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_whom_to_ask_first():
    peers, swarm = [Provider('a'), Provider('b')], Provider('the swarm')
    assert Swarm().with_peers(peers) == peers
    assert Swarm(chunks=swarm).with_peers(peers) == [*peers, swarm]
    assert Swarm(chunks=swarm, prefer=True).with_peers(peers) == [
        swarm, *peers]


def test_p9_a_node_that_is_down_is_told_and_measured():
    def down():
        raise errors.Unreachable('IPFS node /x can not be reached: refused')

    def up():
        return {'address': '/y', 'repository_bytes': 5,
                'repository_limit': 10, 'peers': 2}

    def odd():
        raise KeyError('RepoSize')
    swarm = Swarm(probes={'swarm': down, 'odd': odd, 'geo': up})
    swarm.start()
    try:
        until(lambda: len(swarm.status()['nodes']) == 3)
        found = swarm.status()
    finally:
        swarm.stop()
    assert found['traffic'] == 'unmetered'
    assert found['nodes']['geo']['reachable']
    assert not found['nodes']['swarm']['reachable']
    assert 'refused' in found['nodes']['swarm']['error']
    assert 'RepoSize' in found['nodes']['odd']['error']
    status = {'site': 'paris', 'peers': [], 'store': {}, 'ipfs': found,
              'evicted': {'copies': 0, 'bytes': 0},
              'tombstones': {'waiting': 0, 'blocked_by': {}, 'forgotten': 0}}
    samples = {(sample.name, sample.labels.get('store')): sample.value
               for metric in StatusCollector(lambda: status).collect()
               for sample in metric.samples}
    assert samples['glance_geo_ipfs_reachable', 'swarm'] == 0
    assert samples['glance_geo_ipfs_reachable', 'geo'] == 1
    assert samples['glance_geo_ipfs_repository_bytes', 'geo'] == 5
    assert samples['glance_geo_ipfs_failing', None] == 0


def test_a_node_without_a_chunk_store_says_so():
    chunks = NoChunks()
    view = chunks.view(['i'], bytes(32))
    assert view.held() == (0, 0, 0) and view.missing([b'a', b'a']) == [b'a']
    for call in (lambda: chunks.session(''),
                 lambda: chunks.keep_copy('i', bytes(32), ''),
                 lambda: chunks.lease('i', bytes(32), 'n')):
        with pytest.raises(errors.StoreUnusable, match='geo store'):
            call()
    with pytest.raises(errors.ChunkMissing):
        view.manifest()


CONFIG = {'Identity': {'PeerID': 'me'}, 'Bootstrap': ['auto'],
          'Routing': {'Type': 'auto'}, 'Kept': {'by': 'the operator'},
          'Peering': {'Peers': [{'ID': 'old', 'Addrs': ['/a']}]}}


def private(**changes):
    return configuration.private(CONFIG, **{
        'api': '/ip4/127.0.0.1/tcp/5001', 'listen': ['/ip4/0.0.0.0/tcp/4001'],
        'announce': None, 'peers': {}, 'secret': '', 'storage_max': None,
        **changes})


def test_p7_a_private_node_talks_to_nobody_else():
    made = private(peers={'other': '/b', 'me': '/c'},
                   secret='bearer:s', storage_max='5GB')
    assert made['Bootstrap'] == [] and made['Routing']['Type'] == 'none'
    assert made['Plugins']['Plugins']['telemetry']['Disabled']
    for path in ('AutoConf', 'AutoTLS', 'HTTPRetrieval', 'Provide'):
        assert made[path]['Enabled'] is False
    assert not made['Discovery']['MDNS']['Enabled']
    assert [its['ID'] for its in made['Peering']['Peers']] == ['old', 'other']
    assert made['Kept'] == CONFIG['Kept']
    assert made['Datastore']['StorageMax'] == '5GB'
    rights = made['API']['Authorizations'][configuration.USER]
    assert rights['AuthSecret'] == 'bearer:s'
    assert not {'/api/v0', '/api/v0/shutdown', '/api/v0/config'} & set(
        rights['AllowedPaths'])
    assert CONFIG['Bootstrap'] == ['auto']      # the input is not touched


def test_what_is_not_given_stays_where_a_private_network_can():
    again = configuration.private(
        private(api='/unix/run/x', listen=['/ip4/10.0.0.1/tcp/4009']), None,
        None, None, {}, '', None)
    assert again['Addresses']['API'] == '/unix/run/x'
    assert again['Addresses']['Swarm'] == ['/ip4/10.0.0.1/tcp/4009']
    fresh = configuration.private({**CONFIG, 'Addresses': {'Swarm': [
        '/ip4/0.0.0.0/udp/4001/quic-v1', '/ip4/0.0.0.0/tcp/4001/ws',
        '/ip4/0.0.0.0/tcp/4001']}}, None, None, None, {}, '', None)
    assert fresh['Addresses']['API'] == configuration.API
    assert fresh['Addresses']['Swarm'] == [configuration.LISTEN]


def test_what_is_announced():
    assert 'NoAnnounce' not in private()['Addresses']
    nothing = private(announce=[])['Addresses']
    assert nothing['Announce'] == [] and nothing['NoAnnounce']
    some = private(announce=['/dns/x/tcp/4001'])['Addresses']
    assert some['Announce'] == ['/dns/x/tcp/4001'] and not some['NoAnnounce']


def test_keys_are_fresh_and_of_the_form_that_kubo_reads():
    key = configuration.swarm_key()
    assert key != configuration.swarm_key()
    assert len(bytes.fromhex(key.splitlines()[2])) == 32
    assert len(configuration.bearer()) > 40


@pytest.mark.parametrize('text', ['', 'paris', '/ip4/1.2.3.4/tcp/4001',
                                  '/ip4/1.2.3.4/tcp/1/p2p/../x', '/p2p/x'])
def test_a_peer_of_another_form_is_refused(text):
    with pytest.raises(errors.ConfigurationInvalid, match='/p2p/'):
        configuration.peer(text)
