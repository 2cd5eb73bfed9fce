# SPDX-License-Identifier: Apache-2.0
"""Engines that are killed, paused, slow or wiped under the data API: one
clear 503 each, nothing acknowledged is lost, and all is well again without a
restart when they are back."""

import os
import socket
import sqlite3
import threading

import pytest
import webob.exc

from glance_geo.core import errors
from glance_geo.core.rules import shown
from glance_geo.db import api
from glance_geo.db.engines import open_engine
from glance_geo.db.recordstore import RecordStore
from tests import servers
from tests.property.test_image_lists import ADMIN
from tests.servers import until


def image(number):
    return {'id': f'00000000-0000-4000-8000-{number:012d}',
            'status': 'queued', 'name': f'image {number}', 'owner': 'one'}


@pytest.fixture
def server():
    made = servers.RedisServer(*servers.RedisServer.DURABLE)
    yield made
    made.stop()


@pytest.fixture
def data_api(server):
    made = api.load(f'{server.url}?timeout=0.5')
    yield made
    made.close()


def refused(call, *arguments):
    with pytest.raises(webob.exc.HTTPServiceUnavailable) as caught:
        call(*arguments)
    assert caught.value.headers['Retry-After']
    assert 'Redis at 127.0.0.1' in caught.value.explanation
    return caught.value


def test_p1_a_killed_redis_answers_503_and_loses_nothing(server, data_api):
    data_api.image_create(ADMIN, image(1))
    server.kill()
    refused(data_api.image_get, ADMIN, image(1)['id'])
    refused(data_api.image_create, ADMIN, image(2))
    server.start()
    assert data_api.image_get(ADMIN, image(1)['id'])['name'] == 'image 1'
    data_api.image_create(ADMIN, image(3))


def test_a_paused_redis_answers_503_within_its_timeout(server, data_api):
    data_api.image_create(ADMIN, image(1))
    server.pause()
    refused(data_api.image_get, ADMIN, image(1)['id'])
    server.resume()
    assert data_api.image_get(ADMIN, image(1)['id'])


def test_a_slow_redis_is_waited_for(server, data_api):
    data_api.image_create(ADMIN, image(1))
    server.pause()
    threading.Timer(0.2, server.resume).start()     # within the timeout
    assert data_api.image_get(ADMIN, image(1)['id'])


def test_p7_tls_with_certificates_of_both_sides(tmp_path):
    from glance_geo.replication import identity
    identity.create_authority(tmp_path / 'ca')
    for name in ('server', 'client'):
        identity.create_node(tmp_path / 'ca', tmp_path / name, name, name,
                             ['127.0.0.1'])
    at = tmp_path / 'server'
    port = servers.free_port()
    server = servers.RedisServer(
        *servers.RedisServer.DURABLE, '--tls-port', str(port),
        '--tls-cert-file', f'{at}/site.crt', '--tls-key-file',
        f'{at}/site.key', '--tls-ca-cert-file', f'{at}/ca.crt')
    try:
        files = tmp_path / 'client'
        options = (f'ca_file={files}/ca.crt&cert_file={files}/site.crt'
                   f'&key_file={files}/site.key')
        data_api = api.load(f'rediss://127.0.0.1:{port}?{options}')
        data_api.image_create(ADMIN, image(1))
        with pytest.raises(errors.EngineUnavailable):
            open_engine(f'rediss://127.0.0.1:{port}')   # an unknown authority
        data_api.close()
    finally:
        server.stop()


def test_p1_of_writes_under_kills_none_that_was_acknowledged_is_lost(
        server, data_api, rng):
    """Writers go on while the server is killed and started again."""
    acknowledged, stop = [], threading.Event()
    numbers = iter(range(1_000_000))

    def write():
        while not stop.is_set():
            number = next(numbers)
            try:
                data_api.image_create(ADMIN, image(number))
                acknowledged.append(number)
            except webob.exc.HTTPServiceUnavailable:
                pass
    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        before = len(acknowledged)
        until(lambda before=before: len(acknowledged) > before
              + rng.randrange(1, 60))
        server.kill()
        server.start()
    stop.set()
    for thread in threads:
        thread.join()
    for number in acknowledged:
        assert data_api.image_get(ADMIN, image(number)['id'])
    listed = {row['id'] for row in
              data_api.image_get_all(ADMIN, {'deleted': False})}
    assert {image(number)['id'] for number in acknowledged} <= listed


def test_p4_a_restarted_redis_writes_under_a_new_name(server):
    """Its last numbers may be gone: they must not be given twice."""
    store = RecordStore(open_engine(server.url), 'paris')
    store.update('image', 'i', lambda present: {'name': 'x'})
    first = store.incarnation
    store.update('image', 'i', lambda present: {'name': 'y'})
    assert store.incarnation == first
    server.kill()
    server.start()
    store.update('image', 'i', lambda present: {'name': 'z'})
    assert store.incarnation != first
    assert set(store.get('image', 'i').context) == {first,
                                                    store.incarnation}


def test_p4_a_wiped_redis_begins_a_new_life(server):
    store = RecordStore(open_engine(server.url), 'paris')
    store.update('image', 'i', lambda present: {'name': 'x'})
    first = store.incarnation
    server.wipe()
    assert store.get('image', 'i') is None
    store.update('image', 'i', lambda present: {'name': 'new'})
    assert store.incarnation != first


def test_p1_with_wait_every_acknowledged_write_survives_a_failover():
    group = servers.RedisUnderSentinel()
    try:
        data_api = api.load(f'{group.url}?timeout=1')
        for number in range(50):
            data_api.image_create(ADMIN, image(number))
        incarnation = data_api.records.incarnation
        group.master.kill()

        def opened():
            try:
                return api.load(f'{group.url}?timeout=1&wait_replicas=0')
            except errors.EngineUnavailable:
                return None
        reader = until(opened, 60, 'failover')
        assert len(reader.image_get_all(ADMIN, {'deleted': False})) == 50
        reader.image_create(ADMIN, image(60))
        assert reader.records.incarnation != incarnation
        with pytest.raises(webob.exc.HTTPServiceUnavailable,
                           match='0 of 1 replicas'):
            data_api.image_create(ADMIN, image(61))
    finally:
        group.stop()


def test_a_slot_that_moves_to_another_node_is_followed(tmp_path):
    cluster = servers.RedisCluster()
    try:
        data_api = api.load(f'{cluster.url}&prefix=moving')
        data_api.image_create(ADMIN, image(1))
        clients = [node.client() for node in cluster.nodes]
        ids = [client.execute_command('CLUSTER', 'MYID')
               for client in clients]
        slot = clients[0].execute_command('CLUSTER', 'KEYSLOT', 'moving')
        held = [client.execute_command('CLUSTER', 'COUNTKEYSINSLOT', slot)
                for client in clients]
        a, b = (0, 1) if held[0] else (1, 0)
        clients[b].execute_command('CLUSTER', 'SETSLOT', slot, 'IMPORTING',
                                   ids[a])
        clients[a].execute_command('CLUSTER', 'SETSLOT', slot, 'MIGRATING',
                                   ids[b])
        for key in clients[a].execute_command('CLUSTER', 'GETKEYSINSLOT',
                                              slot, 1000):
            clients[a].execute_command(
                'MIGRATE', '127.0.0.1', cluster.nodes[b].port, key, 0, 5000)
        for client in clients:
            client.execute_command('CLUSTER', 'SETSLOT', slot, 'NODE',
                                   ids[b])
        assert data_api.image_get(ADMIN, image(1)['id'])
        data_api.image_create(ADMIN, image(2))
    finally:
        cluster.stop()


@pytest.mark.parametrize('settings,allowed', [
    ((), False), (('--appendonly', 'yes'), False),
    (servers.RedisServer.DURABLE, True)])
def test_a_redis_that_may_lose_writes_is_refused(settings, allowed):
    server = servers.RedisServer(*settings)
    try:
        if allowed:
            open_engine(server.url).close()
            return
        with pytest.raises(errors.ConfigurationInvalid,
                           match='appendfsync.*allow_nondurable'):
            open_engine(server.url)
        open_engine(f'{server.url}?allow_nondurable=true').close()
    finally:
        server.stop()


def test_p7_an_acl_user_with_the_rights_of_the_guide_is_enough(tmp_path):
    server = servers.RedisServer(*servers.RedisServer.DURABLE)
    try:
        guide = os.path.join(os.path.dirname(__file__), '..', '..', 'doc',
                             'source', 'engines.rst')
        with open(guide) as file:
            (rule,) = (line.strip() for line in file
                       if line.strip().startswith('user glance_geo '))
        server.client().execute_command(
            'ACL', 'SETUSER', *rule.replace('PASSWORD', 'secret').split()[1:])
        server.client().execute_command('ACL', 'SETUSER', 'default',
                                        'resetpass', '>other')
        address = f'redis://glance_geo:secret@127.0.0.1:{server.port}'
        store = RecordStore(open_engine(address), 'paris')
        store.update('image', 'i', lambda present: {'name': 'x'})
        assert shown(store.get('image', 'i'))['name'] == 'x'
        assert store.engine.wait(0, 5) == 1
        with pytest.raises(errors.EngineRefused):
            RecordStore(open_engine(f'{address}?prefix=nova'), 'paris')
        with pytest.raises(errors.GeoError) as caught:
            open_engine(address.replace('secret', 'wrong'))
        assert 'wrong' not in str(caught.value)
    finally:
        server.stop()


@pytest.mark.parametrize('url,text', [
    ('redis://h/0?prefex=x', 'unknown option .*prefex'),
    ('redis://h:port/0', 'is not host'),
    ('redis+sentinel://h', 'MASTER'),
    ('redis+cluster://h/3', 'no numbered databases'),
    ('redis://a,b', 'redis\\+sentinel'),
    ('redis://h?shared=maybe', 'true or false'),
    ('redis://h?prefix={x}', 'braces'),
    ('redis://u:hidden@h?timeout=x', 'timeout'),
    ('riak://h/b?tpye=x', 'unknown option .*tpye'),
    ('riak://', 'is not host')])
def test_a_bad_address_is_one_clear_error_without_secrets(url, text):
    with pytest.raises(errors.ConfigurationInvalid, match=text) as caught:
        open_engine(url)
    assert 'hidden' not in str(caught.value)


def test_sqlite_that_is_locked_for_long_is_503(tmp_path, monkeypatch):
    from glance_geo.db.engines import sqlite
    monkeypatch.setattr(sqlite, '_BUSY_SECONDS', 0.1)
    data_api = api.load(f'sqlite:///{tmp_path}/m.db')
    data_api.image_create(ADMIN, image(1))
    blocker = sqlite3.connect(tmp_path / 'm.db', isolation_level=None)
    blocker.execute('BEGIN IMMEDIATE')
    with pytest.raises(webob.exc.HTTPServiceUnavailable):
        data_api.image_create(ADMIN, image(2))
    assert data_api.image_get(ADMIN, image(1)['id'])    # reads go on
    blocker.execute('ROLLBACK')
    data_api.image_create(ADMIN, image(2))


def test_p4_a_restored_sqlite_file_begins_a_new_life(tmp_path):
    path = tmp_path / 'm.db'
    store = RecordStore(open_engine(f'sqlite:///{path}'), 'paris')
    store.update('image', 'i', lambda present: {'name': 'x'})
    first = store.incarnation
    store.engine._connection().execute(f"VACUUM INTO '{tmp_path}/backup'")
    for number in range(40):
        store.update('image', f'i{number}', lambda present: {'name': 'x'})
    store.engine.close()
    again = RecordStore(open_engine(f'sqlite:///{path}'), 'paris')
    assert again.incarnation == first       # a plain restart
    again.engine.close()
    # Put back into the very same file: only its numbers tell.
    for end in ('-wal', '-shm'):
        if os.path.exists(f'{path}{end}'):
            os.unlink(f'{path}{end}')
    path.write_bytes((tmp_path / 'backup').read_bytes())
    again = RecordStore(open_engine(f'sqlite:///{path}'), 'paris')
    assert again.incarnation != first
    second = again.incarnation
    again.engine.close()
    # Another file in its place.
    os.replace(tmp_path / 'backup', path)
    again = RecordStore(open_engine(f'sqlite:///{path}'), 'paris')
    assert again.incarnation not in (first, second)
    again.engine.close()


class Silent:
    """A port that takes connections and answers nothing: a paused node."""

    def __init__(self):
        self.socket = socket.create_server(('127.0.0.1', 0))
        self.port = self.socket.getsockname()[1]


def test_a_paused_riak_node_is_passed_over_and_then_avoided():
    from tests.riakserver import RiakStandIn
    silent = Silent()
    with RiakStandIn() as riak:
        address = riak.url.removeprefix('riak://')
        store = RecordStore(open_engine(
            f'riak://127.0.0.1:{silent.port},{address}/b?timeout=0.2'),
            'paris')
        for number in range(5):
            store.update('image', f'i{number}', lambda present: {'name': 'x'})
        assert len(list(store.list('image'))) == 5
        assert [node.bad_until > 0 for node in store.engine._nodes] == [
            True, False]
        store.engine.close()


def test_a_riak_node_that_goes_away_is_503_until_it_is_back():
    from tests.riakserver import RiakStandIn
    with RiakStandIn() as riak:
        data_api = api.load(f'{riak.url}/b?timeout=0.2')
        data_api.image_create(ADMIN, image(1))
        riak.hang_up()
        with pytest.raises(webob.exc.HTTPServiceUnavailable, match='Riak'):
            data_api.image_get(ADMIN, image(1)['id'])
        riak.take_calls()
        assert data_api.image_get(ADMIN, image(1)['id'])
        data_api.close()
