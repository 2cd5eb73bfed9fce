# SPDX-License-Identifier: Apache-2.0
"""Two real sites with real nodes of IPFS: an ipfs store, and a geo store that
offers its chunks to the swarm. What they do like any store is in
``test_sites``."""

import json
import random
import re
import threading

import httpx
import pytest

from glance_geo.core import location
from glance_geo.store.ipfs.node import IPFSNode
from tests import kubo
from tests.functional.labs import (
    Client,
    Lab,
    Stores,
    command,
    openstack,
    wait,
)

SITES = ('paris', 'rennes')
SWARM = {'x-image-meta-store': 'swarm'}


def data_of(size, seed):
    return random.Random(seed).randbytes(size)


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    kubo.needed()
    made = Lab(tmp_path_factory.mktemp('ipfs') / 'lab')
    made.up(SITES, stores=Stores(('geo', 'swarm'), chunks_in_ipfs=True,
                                 prefer_ipfs=True, ipfs_timeout=3.0),
            extra=['show_multiple_locations = true'])
    yield made
    made.down()


@pytest.fixture
def paris(lab):
    return Client(lab, 'paris')


@pytest.fixture
def rennes(lab):
    return Client(lab, 'rennes')


@pytest.fixture
def mended(lab):
    """All is up again after the test."""
    yield
    lab.heal()
    for site in SITES:
        for role in ('ipfs', 'agent', 'glance-api'):
            if not lab._alive(f'{site}/{role}'):
                lab.start(site, role)


def node(lab, site, timeout=5.0):
    secret = lab.folder / site / 'etc' / 'keys' / 'ipfs.auth'
    return IPFSNode(f'{lab.sites[site]["ipfs_api"]}/http',
                    secret.read_text().strip(), timeout=timeout)


def shown(lab, site):
    return json.loads(command(lab, site, 'glance-geo', 'ipfs', 'show', '-f',
                              'json'))


def of(lab, site, image, store='swarm'):
    return [row for row in shown(lab, site)
            if row['Image'] == image and row['Store'] == store]


def held(lab, site, image):
    rows = json.loads(command(lab, site, 'glance-geo', 'image', 'show', image,
                              '-f', 'json'))
    return {row['Site']: row['Held'] for row in rows
            if row['Store'] == 'swarm'}


def create(client, data, **values):
    image = client.create(**values)
    answer = client.upload(image, data, **SWARM)
    assert answer.status_code == 204, answer.text
    return image


def test_the_openstack_client_with_an_image_in_ipfs(lab, tmp_path):
    path = tmp_path / 'x.img'
    path.write_bytes(data_of(3_000_000, 1))
    image = json.loads(openstack(
        lab, 'paris', 'image', 'create', '--file', str(path), '--disk-format',
        'raw', '--container-format', 'bare', '--import', '-f', 'json',
        'made'))['id']
    wait(lambda: 'active' in openstack(lab, 'rennes', 'image', 'show', image,
                                       '-c', 'status', '-f', 'value',
                                       check=False).stdout)
    openstack(lab, 'paris', 'image', 'import', image, '--method',
              'copy-image', '--store', 'swarm')
    wait(lambda: 'swarm' in openstack(lab, 'paris', 'image', 'show', image,
                                      '-f', 'json'))
    wait(lambda: of(lab, 'paris', image))
    target = tmp_path / 'out'
    openstack(lab, 'rennes', 'image', 'save', '--file', str(target), image)
    assert target.read_bytes() == path.read_bytes()


def test_p2_the_node_that_has_it_is_killed_in_mid_transfer(lab, paris,
                                                           rennes, mended):
    data = data_of(120_000_000, 2)
    image = create(paris, data)
    rennes.wait_active(image)
    got = []

    def read():
        try:
            with rennes.http.stream('GET', f'/v2/images/{image}/file',
                                    timeout=60) as answer:
                assert answer.status_code == 200
                for piece in answer.iter_bytes():
                    got.append(piece)
            got.append(None)    # the end, as the client sees it
        except httpx.HTTPError:
            pass
    start = lab.bytes()['paris-rennes']
    reader = threading.Thread(target=read)
    reader.start()
    wait(lambda: sum(map(len, got)) > 2_000_000)
    lab.kill('paris', 'ipfs')
    reader.join()
    if got[-1] is None:     # it had all come
        assert b''.join(got[:-1]) == data
    else:
        assert b''.join(got) == data[:sum(map(len, got))]
    lab.start('paris', 'ipfs')
    assert wait(lambda: rennes.read(image), 60).content == data
    moved = lab.bytes()['paris-rennes'] - start
    assert moved < len(data) * 1.3      # what had come was not sent again


def test_a_node_that_is_down_is_one_clear_error(lab, paris, rennes, mended):
    data = data_of(2_000_000, 3)
    image = create(paris, data)
    other = paris.create()
    lab.kill('paris', 'ipfs')
    for answer in (paris.read(image), paris.upload(other, b'x', **SWARM)):
        assert answer.status_code == 503, answer.text
        # A connection that was kept may break off first.
        assert re.search('/tcp/.*(can not be reached|broke off): .',
                         answer.text), answer.text
    state = wait(lambda: json.loads(command(
        lab, 'paris', 'glance-geo', 'status', '-f', 'json'))['ipfs'])
    wait(lambda: not json.loads(command(
        lab, 'paris', 'glance-geo', 'status', '-f', 'json'))[
            'ipfs']['nodes']['swarm']['reachable'])
    assert state['traffic'] == 'unmetered'
    assert paris.show(other)['status'] == 'queued'
    failed = command(lab, 'paris', 'glance-geo', 'ipfs', 'show', check=False)
    assert failed.returncode == 1 and len(failed.stderr.splitlines()) == 1
    # A geo image is served meanwhile (P3), and one can be deleted.
    kept = paris.create(data=b'in the chunk store')
    assert paris.read(kept).content == b'in the chunk store'
    assert paris.delete(image).status_code == 204
    lab.start('paris', 'ipfs')
    wait(lambda: (command(lab, 'paris', 'glance-geo', 'ipfs', 'collect'),
                  not of(lab, 'paris', image))[1])


def test_p3_what_a_site_pins_is_read_with_the_link_down(lab, paris, rennes,
                                                        mended):
    data = data_of(5_000_000, 4)
    here = create(paris, data, geo_policy='everywhere')
    far = create(paris, data_of(1_000_000, 5))
    wait(lambda: held(lab, 'rennes', here).get('rennes') == 'whole')
    for image in (here, far):
        rennes.wait_active(image)
    lab.isolate('paris')
    assert rennes.read(here).content == data
    answer = rennes.read(far)
    assert answer.status_code == 503 and far in answer.text
    lab.heal()
    assert wait(lambda: rennes.read(far).status_code == 200, 60)


def test_pins_follow_placement_and_holdings_say_which(lab, paris, rennes):
    image = create(paris, data_of(4_000_000, 6))
    wait(lambda: held(lab, 'rennes', image).get('paris') == 'whole')
    assert held(lab, 'rennes', image)['rennes'] == 'none'
    paris.set(image, geo_policy='sites', geo_sites='rennes')
    wait(lambda: held(lab, 'paris', image)['rennes'] == 'whole')
    assert [row['Why'] for row in of(lab, 'rennes', image)] == ['copy']
    paris.set(image, geo_policy='local')
    wait(lambda: held(lab, 'paris', image)['rennes'] == 'none')
    assert not of(lab, 'rennes', image)
    answer = rennes.read(image)
    assert answer.status_code == 403 and 'paris' in answer.text
    assert paris.read(image).status_code == 200
    assert rennes.delete(image).status_code == 204
    wait(lambda: not of(lab, 'paris', image))


def test_p8_two_images_of_one_cid(lab, paris):
    data = data_of(3_000_000, 7)
    first, second = create(paris, data), create(paris, data)
    rows = of(lab, 'paris', first) + of(lab, 'paris', second)
    assert len(rows) == 2 and len({row['CID'] for row in rows}) == 1
    assert paris.delete(first).status_code == 204
    wait(lambda: not of(lab, 'paris', first))
    command(lab, 'paris', 'glance-geo', 'ipfs', 'collect')
    assert paris.read(second).content == data
    assert all(row['Pinned'] for row in of(lab, 'paris', second))
    assert paris.delete(second).status_code == 204
    wait(lambda: not of(lab, 'paris', second))
    freed = json.loads(command(lab, 'paris', 'glance-geo', 'ipfs', 'collect',
                               '-f', 'json'))
    assert freed[0]['Bytes freed'] > 2_900_000


def test_p4_bits_of_a_deletion_that_met_a_change_are_given_back(
        lab, paris, rennes, mended):
    data = data_of(2_000_000, 17)
    image = create(paris, data, geo_policy='everywhere')
    wait(lambda: held(lab, 'rennes', image).get('rennes') == 'whole')
    lab.isolate('paris')
    assert paris.delete(image).status_code == 204
    rennes.set(image, name='changed meanwhile')
    lab.heal()
    wait(lambda: rennes.show(image) is None)
    wait(lambda: image in command(lab, 'rennes', 'glance-geo', 'trash',
                                  'list'))
    command(lab, 'rennes', 'glance-geo', 'ipfs', 'collect')
    assert of(lab, 'rennes', image)
    fresh = command(lab, 'rennes', 'glance-geo', 'trash', 'restore',
                    image).strip()
    assert rennes.read(fresh).content == data
    paris.wait_active(fresh)
    assert paris.read(fresh).content == data


def test_p7_locations_that_are_not_ours_are_refused(lab, paris):
    """A user who may set locations can not claim what he was not given."""
    mine = create(paris, data_of(1_000_000, 8))
    url = paris.show(mine)['locations'][0]['url']
    assert isinstance(location.parse(url), location.IPFSLocation)
    other = create(paris, b'another')
    cid = location.parse(paris.show(other)['locations'][0]['url']).cid
    for bad in (
            url,                                        # another image's
            f'ipfs://{cid}',                            # not signed
            url.replace(location.parse(url).cid, cid),  # another CID
            url.replace('store=swarm', 'store=geo'),
            url[:-1] + ('0' if url[-1] != '0' else '1'),
            'ipfs://../../etc/passwd?store=swarm'):
        image = paris.create()
        answer = paris.patch(image, {'op': 'add', 'path': '/locations/-',
                                     'value': {'url': bad, 'metadata': {}}})
        assert answer.status_code in (400, 403), (bad, answer.text)
        assert paris.show(image)['status'] == 'queued'
    assert paris.read(mine).status_code == 200


def test_a_signed_location_of_something_else_than_a_file(lab, paris):
    """Such as of a store that was attacked: an error, no empty image."""
    from glance_geo.core import unixfs
    folder = node(lab, 'paris').put_node(unixfs.directory([]))
    key_id, key = (lab.folder / 'paris' / 'etc' / 'keys' /
                   'location.keys').read_text().split()[:2]
    image = paris.create()
    url = location.issue_ipfs('swarm', image, str(folder), '1' * 16, key_id,
                              bytes.fromhex(key)).uri
    answer = paris.patch(image, {'op': 'add', 'path': '/locations/-',
                                 'value': {'url': url, 'metadata': {}}})
    if answer.status_code == 200:
        answer = paris.read(image)
    assert answer.status_code >= 400, answer.text


def test_an_upload_that_is_cut_short_leaves_nothing(lab, paris):
    image = paris.create()
    data = data_of(3_000_000, 9)
    port = lab.sites['paris']['endpoint'].rpartition(':')[2]
    import socket
    with socket.create_connection(('127.0.0.1', int(port))) as client:
        client.sendall(
            f'PUT /v2/images/{image}/file HTTP/1.1\r\nHost: x\r\n'
            f'X-Auth-Token: alice:demo:member\r\nX-Image-Meta-Store: swarm\r\n'
            f'Content-Type: application/octet-stream\r\n'
            f'Content-Length: {len(data)}\r\n\r\n'.encode() + data[:-5])
    wait(lambda: paris.show(image)['status'] in ('queued', 'killed'))
    assert not of(lab, 'paris', image)


# -- the geo store's chunks in the swarm ------------------------------------
def traffic(lab):
    """Return what rennes's agent got from paris's, in bytes."""
    status = json.loads(command(lab, 'rennes', 'glance-geo', 'status', '-f',
                                'json'))
    return status['peers'][0]['bytes_received']


def test_p5_chunks_come_from_the_swarm(lab, paris, rennes):
    data = data_of(10_000_000, 10) + bytes(5_000_000) + data_of(100_000, 11)
    image = paris.create(data=data)
    row = wait(lambda: of(lab, 'paris', image, 'geo'))[0]
    # Any node of the network reads the image by its CID.
    from glance_geo.core import cids
    assert b''.join(node(lab, 'rennes')._pieces(
        '/cat', f'{row["CID"]}/image')) == data
    rennes.wait_active(image)
    before = traffic(lab)
    assert rennes.read(image).content == data
    assert traffic(lab) - before < 1_000_000    # records, no chunks
    # An update of it: only what is new is read from the swarm.
    changed = bytearray(data)
    changed[5_000_000:5_000_100] = b'!' * 100
    second = paris.create(data=bytes(changed))
    wait(lambda: of(lab, 'paris', second, 'geo'))
    rennes.wait_active(second)
    start = lab.bytes()['paris-rennes']
    assert rennes.read(second).content == bytes(changed)
    assert lab.bytes()['paris-rennes'] - start < 1_500_000
    assert cids.parse(row['CID'])
    for each in (image, second):
        assert paris.delete(each).status_code == 204
    wait(lambda: not of(lab, 'paris', image, 'geo')
         and not of(lab, 'rennes', image, 'geo')
         and not of(lab, 'paris', second, 'geo'))


def test_chunks_come_from_peers_when_the_swarm_has_them_not(lab, paris,
                                                            rennes, mended):
    data = data_of(3_000_000, 12)
    lab.kill('paris', 'ipfs')
    image = paris.create(data=data)
    rennes.wait_active(image)
    assert rennes.read(image).content == data
    lab.start('paris', 'ipfs')
    wait(lambda: of(lab, 'paris', image, 'geo'), 60)


def test_chunks_come_from_the_swarm_when_agents_do_not_answer(
        lab, paris, rennes, mended):
    data = data_of(4_000_000, 13)
    image = paris.create(data=data)
    rennes.wait_active(image)
    wait(lambda: of(lab, 'paris', image, 'geo'))
    lab.kill('paris', 'agent')
    assert rennes.read(image).content == data


def test_p7_what_placement_keeps_here_is_not_published(lab, paris):
    image = paris.create(data=data_of(2_000_000, 14), geo_policy='local')
    later = paris.create(data=data_of(2_000_000, 15))
    wait(lambda: of(lab, 'paris', later, 'geo'))
    assert not of(lab, 'paris', image, 'geo')
    paris.set(later, geo_policy='local')
    wait(lambda: not of(lab, 'paris', later, 'geo'))
    paris.set(image, geo_policy='on-demand')
    wait(lambda: of(lab, 'paris', image, 'geo'))


# -- commands ----------------------------------------------------------------
def test_a_node_without_the_key_is_refused(lab, tmp_path):
    """P7: knowing the address of a node of the network is not enough."""
    stranger = kubo.Kubo(tmp_path / 'stranger')
    try:
        paris = json.loads((lab.folder / 'paris' / 'ipfs' / 'config'
                            ).read_text())
        stranger.init(f'{paris["Addresses"]["Swarm"][0]}/p2p/'
                      f'{paris["Identity"]["PeerID"]}')
        stranger.start()
        assert stranger.node().reconnect() == 0
        assert stranger.node().peers() == []
    finally:
        stranger.kill()
