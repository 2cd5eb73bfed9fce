# SPDX-License-Identifier: Apache-2.0
"""Agents of several sites in one process, over real mutual TLS."""

import io
import ssl
import threading
import time

import httpx
import pytest

from glance_geo.core import errors, location
from glance_geo.core.rules import shown
from glance_geo.db.engines.memory import MemoryEngine
from glance_geo.db.recordstore import RecordStore
from glance_geo.replication import identity, wire
from glance_geo.replication.agent import Agent, Intervals
from glance_geo.replication.client import PeerClient
from glance_geo.replication.keeper import KeeperRules
from glance_geo.replication.serving import serve_peers
from glance_geo.store.chunkstore import ChunkStore
from glance_geo.store.download import ImageReader
from glance_geo.store.upload import upload
from glance_geo.store.view import ChunkView

IMAGE = '11111111-2222-3333-4444-555555555555'
KEY = b'k' * 32


def wait(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, 'not in time'
        time.sleep(0.01)


class Site:
    def __init__(self, name, folder, authority):
        self.name = name
        self.folder = folder / name
        self.keys = self.folder / 'keys'
        identity.create_node(authority, self.keys, name, name, ['127.0.0.1'])
        self.records = RecordStore(MemoryEngine(), name)
        self.store = ChunkStore(self.folder / 'chunks')
        self.files = [str(self.keys / f) for f in
                      ('ca.crt', 'site.crt', 'site.key')]
        self.serving = None

    def context(self, purpose):
        return identity.context(purpose, *self.files)

    def connect(self, peers):
        tls = self.context(ssl.Purpose.SERVER_AUTH)
        self.agent = Agent(
            self.name, f'{self.name}/{self.name}', self.records, self.store,
            [PeerClient(peer.name, '127.0.0.1', peer.port, tls, 5.0)
             for peer in peers], Intervals(sync=0.2, tombstones=0.2),
            KeeperRules(collect_interval=3600, trash_days=0))

    def serve(self, port=0):
        # Bound before the agents know each other's ports.
        self.application = lambda *a: self.agent.peer_server(*a)
        self.serving = serve_peers(
            self.application, ('127.0.0.1', port),
            self.context(ssl.Purpose.CLIENT_AUTH), *self.files[1:], 5.0)
        self.port = self.serving.address[1]

    def run(self):
        self.agent._announce()
        self.agent.keeper.start()
        for sync in self.agent._syncs.values():
            sync.start()

    def create(self, data, **properties):
        stored = upload(self.store, IMAGE, '0' * 16, io.BytesIO(data),
                        len(data), 'sha512')
        uri = location.issue('geo', IMAGE, stored.manifest, '0' * 16, 'k1',
                             KEY).uri
        self.records.create('image', IMAGE, lambda present: {
            'name': 'x', 'home': self.name,
            'data': {'status': 'active', 'bound': True, 'size': len(data)},
            'loc:1': {'url': uri, 'status': 'active', 'removed': False,
                      'site': None, 'order': [1, 0], 'metadata': '{}',
                      'deleted_at': None},
            **{f'prop:{k}': {'value': v, 'removed': False}
               for k, v in properties.items()}})
        self.agent._written()
        return stored.manifest

    def stop(self):
        for sync in self.agent._syncs.values():
            sync.stop()
        self.agent.keeper.stop()
        if self.serving:
            self.serving.stop()
        self.store.close()


@pytest.fixture
def authority(tmp_path):
    identity.create_authority(tmp_path / 'ca')
    return tmp_path / 'ca'


@pytest.fixture
def sites(tmp_path, authority):
    made = [Site(name, tmp_path, authority)
            for name in ('paris', 'rennes', 'nantes')]
    for site in made:
        site.serve()
    for site in made:
        site.connect([peer for peer in made if peer is not site])
    for site in made:
        site.run()
    yield made
    for site in made:
        site.stop()


def read(site, manifest, **arguments):
    return b''.join(ImageReader(site.store, IMAGE, manifest,
                                site.agent).read(**arguments)[0])


def whole(site, manifest):
    here, total, _ = site.store.view([IMAGE], manifest).held()
    return total and here == total


def data_of(size):
    import random
    return random.Random(3).randbytes(size)


def test_a_remote_image_is_read_and_kept(sites):
    paris, rennes, _ = sites
    data = data_of(9_000_000)
    manifest = paris.create(data)
    wait(lambda: rennes.records.get('image', IMAGE))
    assert read(rennes, manifest) == data
    sent = paris.agent.peer_server.chunks_sent
    assert read(rennes, manifest) == data
    assert paris.agent.peer_server.chunks_sent == sent
    wait(lambda: any(
        shown(r)['holding']['site'] == 'rennes'
        and shown(r)['holding']['here'] == shown(r)['holding']['total']
        for r in paris.records.list('holding')))


def test_p5_a_range_fetches_only_what_lies_under_it(sites):
    paris, rennes, _ = sites
    data = data_of(30_000_000)
    manifest = paris.create(data)
    wait(lambda: rennes.records.get('image', IMAGE))
    assert read(rennes, manifest, start=20_000_000, length=100_000) == \
        data[20_000_000:20_100_000]
    assert paris.agent.peer_server.chunks_sent < 12


def test_p5_many_readers_cause_one_transfer(sites):
    paris, rennes, _ = sites
    data = data_of(12_000_000)
    manifest = paris.create(data)
    wait(lambda: rennes.records.get('image', IMAGE))
    results = []
    threads = [threading.Thread(target=lambda: results.append(
        read(rennes, manifest) == data)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 6
    total = paris.store.view([IMAGE], manifest).held()[1]
    assert paris.agent.peer_server.chunks_sent == total


def test_a_copy_serves_others_when_the_home_is_gone(sites):
    paris, rennes, nantes = sites
    data = data_of(2_000_000)
    manifest = paris.create(data)
    wait(lambda: rennes.records.get('image', IMAGE)
         and nantes.records.get('image', IMAGE))
    read(rennes, manifest)
    paris.serving.stop()
    paris.serving = None
    assert read(nantes, manifest) == data


def test_placement_everywhere_is_pulled_without_a_reader(sites):
    paris, rennes, nantes = sites
    manifest = paris.create(data_of(3_000_000), geo_policy='everywhere')
    for site in (rennes, nantes):
        wait(lambda s=site: whole(s, manifest))


def test_placement_sites_reach_only_the_named(sites):
    paris, rennes, nantes = sites
    manifest = paris.create(data_of(1_000_000), geo_policy='sites',
                            geo_sites='rennes')
    wait(lambda: whole(rennes, manifest))
    wait(lambda: nantes.records.get('image', IMAGE))
    with pytest.raises(errors.BitsElsewhere, match='rennes'):
        read(nantes, manifest)


@pytest.mark.parametrize('policy', ['local', 'misspelt'])
def test_p7_bits_that_must_stay_are_refused_by_their_holder_too(sites,
                                                                policy):
    paris, rennes, _ = sites
    manifest = paris.create(data_of(100_000), geo_policy=policy)
    wait(lambda: rennes.records.get('image', IMAGE))
    with pytest.raises(errors.BitsElsewhere, match='paris'):
        read(rennes, manifest)
    # A site that does not keep to the rules asks all the same.
    peer = rennes.agent._peers['paris']
    with pytest.raises(errors.PeerRefused, match='paris'):
        with peer.chunks(IMAGE, manifest, [manifest]) as frames:
            list(frames)


def test_p7_knowing_a_name_grants_nothing(sites):
    paris, rennes, _ = sites
    manifest = paris.create(data_of(100_000))
    session = paris.store.session()
    secret = session.put_blob(b'a chunk of another image')
    session.commit((IMAGE, secret, 'x'))
    wait(lambda: rennes.records.get('image', IMAGE))
    peer = rennes.agent._peers['paris']
    with peer.chunks(IMAGE, manifest, [secret]) as frames:
        assert list(frames) == [b'']
    with pytest.raises(errors.PeerRefused):
        with peer.chunks(IMAGE, secret, [secret]) as frames:
            list(frames)


def test_p7_a_node_without_our_certificate_gets_nothing(sites, tmp_path):
    paris = sites[0]
    identity.create_authority(tmp_path / 'other-ca')
    stranger = tmp_path / 'stranger'
    identity.create_node(tmp_path / 'other-ca', stranger, 'rennes', 'rennes',
                         ['127.0.0.1'])
    (stranger / 'ca.crt').unlink()
    (stranger / 'ca.crt').write_bytes((paris.keys / 'ca.crt').read_bytes())
    tls = identity.context(ssl.Purpose.SERVER_AUTH, *(
        str(stranger / f) for f in ('ca.crt', 'site.crt', 'site.key')))
    with pytest.raises(errors.Unreachable):
        PeerClient('paris', '127.0.0.1', paris.port, tls, 5).hint()
    plain = ssl.create_default_context(cafile=str(paris.keys / 'ca.crt'))
    with pytest.raises(httpx.TransportError):
        httpx.post(f'https://127.0.0.1:{paris.port}/v1/status', verify=plain,
                   trust_env=False)


def test_p7_a_site_that_is_another_than_configured_is_refused(sites):
    paris, rennes, _ = sites
    tls = rennes.context(ssl.Purpose.SERVER_AUTH)
    with pytest.raises(errors.PeerRefused, match='is site paris'):
        PeerClient('nantes', '127.0.0.1', paris.port, tls, 5).hint()


@pytest.mark.parametrize('path, body', [
    ('/v1/chunks', wire.pack({})), ('/v1/chunks', b'\xc1'),
    ('/v1/chunks', wire.pack({'image': 'x' * 99, 'manifest': b'',
                              'names': []})),
    ('/v1/chunks', wire.pack({'image': '../../etc', 'manifest': bytes(32),
                              'names': [b'short']})),
    ('/v1/records', wire.pack({'vector': [1]})), ('/v1/nothing', b'\x80'),
    ('/v1/hint', wire.pack([1, 2])),
    ('/v1/hint', bytes(wire.REQUEST_MAXIMUM + 1))])
def test_p7_malformed_requests_are_refused(sites, path, body):
    paris, rennes, _ = sites
    http = rennes.agent._peers['paris']._http
    answer = http.post(path, content=body)
    assert 400 <= answer.status_code < 500, answer.text
    assert 'Traceback' not in answer.text


def test_p2_wrong_bytes_from_a_peer_are_never_stored(sites, monkeypatch):
    paris, rennes, _ = sites
    manifest = paris.create(data_of(500_000))
    wait(lambda: rennes.records.get('image', IMAGE))
    honest = ChunkView.load

    def lying(view, names):
        found, missing = honest(view, names)
        return {name: data[:-1] + b'!'
                for name, data in found.items()}, missing
    # The reader's own view of an empty store has nothing to lie about.
    monkeypatch.setattr(ChunkView, 'load', lying)
    with pytest.raises(errors.BitsUnavailable, match='wrong bytes'):
        read(rennes, manifest)
    assert rennes.store.index.totals()[0] == 0


def test_a_deleted_image_frees_the_bits_at_every_site(sites):
    paris, rennes, _ = sites
    manifest = paris.create(data_of(1_000_000))
    wait(lambda: rennes.records.get('image', IMAGE))
    read(rennes, manifest)
    rennes.agent.fetcher.settle(force=True)
    rennes.records.update('image', IMAGE, lambda present: {
        'deletion': {'status': 'deleted', 'deleted': True}})
    rennes.agent._written()
    for site in (paris, rennes):
        wait(lambda s=site: not s.store.refs.all())
        site.agent.keeper.collect()
        assert site.store.index.totals()[0] == 0


def test_p8_metadata_that_is_older_than_the_store_frees_nothing(sites):
    paris = sites[0]
    data = data_of(500_000)
    manifest = paris.create(data)
    paris.records.engine.reset()    # as restored from before the image was
    for _ in range(3):
        paris.agent.keeper.collect()
    assert whole(paris, manifest)


def test_home_moves_only_while_queued(sites):
    paris, rennes, nantes = sites
    paris.records.create('image', IMAGE, lambda present: {
        'home': 'paris', 'data': {'status': 'queued', 'bound': False}})
    paris.agent._written()
    wait(lambda: rennes.records.get('image', IMAGE)
         and nantes.records.get('image', IMAGE))
    rennes.agent.claim_home(IMAGE)
    assert shown(rennes.records.get('image', IMAGE))['home'] == 'rennes'
    wait(lambda: shown(nantes.records.get('image', IMAGE))['home']
         == 'rennes')
    rennes.records.update('image', IMAGE, lambda present: {
        'data': {'status': 'saving', 'bound': False}})
    with pytest.raises(errors.PeerRefused, match='saving'):
        nantes.agent.claim_home(IMAGE)
    rennes.serving.stop()
    rennes.serving = None
    with pytest.raises(errors.HomeUnreachable):
        nantes.agent.claim_home(IMAGE)


def test_restored_data_takes_a_new_incarnation(sites):
    paris, rennes, _ = sites
    paris.records.create('image', IMAGE, lambda present: {'name': 'x'})
    paris.agent._written()
    wait(lambda: rennes.records.get('image', IMAGE))
    before = paris.records.incarnation
    paris.records.engine.reset()
    paris.records.engine.put('local/identity', before.encode(), None, ())
    wait(lambda: paris.records.incarnation != before)
    wait(lambda: paris.records.get('image', IMAGE))

