# SPDX-License-Identifier: Apache-2.0
"""The geo store beside a file store; its upkeep by command; conversion."""

import json
import os
import shutil
import subprocess
import time

import pytest

from tests.functional.labs import (
    Client,
    Lab,
    Stores,
    command,
    openstack,
    wait,
)
from tests.unit.test_advice import text_of
from tests.unit.test_store_upkeep import flip

SITES = ('paris', 'rennes')


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    made = Lab(tmp_path_factory.mktemp('stores') / 'lab')
    made.up(SITES, stores=Stores(('geo', 'file')),
            convert=bool(shutil.which('qemu-img')),
            extra=['enabled_import_methods = '
                   '[glance-direct,web-download,copy-image]'])
    yield made
    made.down()


@pytest.fixture
def paris(lab):
    return Client(lab, 'paris')


@pytest.fixture
def rennes(lab):
    return Client(lab, 'rennes')


@pytest.fixture
def admin(lab):
    return Client(lab, 'paris', 'root:demo:admin')


def stage(client, data, **values):
    image = client.create(**values)
    answer = client.http.put(
        f'/v2/images/{image}/stage', content=data,
        headers={'Content-Type': 'application/octet-stream'})
    assert answer.status_code == 204, answer.text
    return image


def bring_in(client, image, stores, method='glance-direct', **more):
    answer = client.http.post(f'/v2/images/{image}/import', json={
        'method': {'name': method}, 'stores': stores, **more})
    assert answer.status_code == 202, answer.text
    wait(lambda: set(stores) <= set(stores_of(client, image)), 60)
    client.wait_active(image)


def stores_of(client, image):
    return [s for s in (client.show(image) or {}).get('stores', '').split(
        ',') if s]


def store_show(lab, site='paris'):
    return json.loads(command(lab, site, 'glance-geo', 'store', 'show', '-f',
                              'json'))


def log_of(lab, site):
    return (lab.folder / site / 'log' / 'glance-api.log').read_text()


def test_import_into_both_stores_and_out_of_each(paris, admin):
    data = text_of(3_000_000, 1)
    image = stage(paris, data)
    bring_in(paris, image, ['geo', 'file'])
    assert sorted(stores_of(paris, image)) == ['file', 'geo']
    assert paris.read(image).content == data
    for store, left in (('geo', 'file'), ('file', 'geo')):
        answer = admin.http.delete(f'/v2/stores/{store}/{image}')
        assert answer.status_code == 204, answer.text
        assert stores_of(paris, image) == [left]
        assert paris.read(image).content == data
        bring_in(admin, image, [store], 'copy-image')
        assert sorted(stores_of(paris, image)) == ['file', 'geo']
    # The last location can't go.
    assert admin.http.delete(f'/v2/stores/geo/{image}').status_code == 204
    assert admin.http.delete(f'/v2/stores/file/{image}').status_code == 403
    assert paris.delete(image).status_code == 204


def test_an_image_of_the_file_store_copied_to_geo_is_read_elsewhere(
        lab, paris, admin, rennes):
    data = text_of(2_000_000, 2)
    image = stage(paris, data)
    bring_in(paris, image, ['file'])
    bring_in(admin, image, ['geo'], 'copy-image')
    wait(lambda: stores_of(rennes, image) == ['geo'])
    assert rennes.read(image).content == data


def test_the_openstack_client_imports_into_several_stores(lab, tmp_path):
    path = tmp_path / 'x.raw'
    path.write_bytes(text_of(1_000_000, 3))
    image = json.loads(openstack(
        lab, 'paris', 'image', 'create', '--disk-format', 'raw',
        '--container-format', 'bare', '--file', str(path), '--import', 'both',
        '-f', 'json'))['id']
    wait(lambda: 'active' in openstack(lab, 'paris', 'image', 'show', image,
                                       '-c', 'status', '-f', 'value'))
    openstack(lab, 'paris', 'image', 'import', image, '--method',
              'copy-image', '--store', 'file')
    stores = openstack(lab, 'paris', 'image', 'stores', 'list', '-f', 'json')
    assert {s['ID'] for s in json.loads(stores)} == {'geo', 'file'}


def test_bits_that_were_deleted_from_geo_are_freed(lab, paris, admin):
    image = stage(paris, os.urandom(2_000_000))
    bring_in(paris, image, ['geo', 'file'])
    before = store_show(lab)['stored_bytes']
    assert admin.http.delete(f'/v2/stores/geo/{image}').status_code == 204

    def freed():
        command(lab, 'paris', 'glance-geo', 'store', 'collect', '--compact')
        return store_show(lab)['stored_bytes'] < before - 1_900_000
    wait(freed, 30)


def test_compressed_qcow2_is_converted_on_import(lab, paris, tmp_path):
    if not shutil.which('qemu-img'):
        pytest.skip('needs qemu-utils')
    raw, path = tmp_path / 'i.raw', tmp_path / 'i.qcow2'
    data = text_of(6_000_000, 4) + bytes(2 << 20)
    data = data[:len(data) // 512 * 512]
    raw.write_bytes(data)
    subprocess.run(['qemu-img', 'convert', '-c', '-O', 'qcow2', str(raw),
                    str(path)], check=True)
    image = stage(paris, path.read_bytes(), disk_format='qcow2')
    bring_in(paris, image, ['geo'])
    assert paris.show(image)['disk_format'] == 'raw'
    assert paris.read(image).content == data
    # Uploaded as it is, it is stored as it is; the log says what it costs.
    kept = paris.create(disk_format='qcow2')
    assert paris.upload(kept, path.read_bytes()).status_code == 204
    assert paris.read(kept).content == path.read_bytes()
    said = wait(lambda: [line for line in log_of(lab, 'paris').splitlines()
                         if kept in line and 'image_conversion' in line])
    # All of it is there already, in the raw image of the same project.
    assert 'added about 0 MiB' in said[0], said


def test_p7_projects_share_nothing_but_public_images(lab):
    data = os.urandom(2_000_000)
    alice, bob = (Client(lab, 'paris', f'{who}:{who}:admin')
                  for who in ('alice', 'bob'))

    def grown(action):
        before = store_show(lab)['stored_bytes']
        action()
        return store_show(lab)['stored_bytes'] - before
    images = []
    assert grown(lambda: images.append(alice.create(data=data))) > 1_900_000
    assert grown(lambda: bob.create(data=data)) > 1_900_000
    assert grown(lambda: alice.create(data=data)) < 10_000
    alice.set(images[0], visibility='public')
    carol = Client(lab, 'paris', 'carol:carol:member')
    deadline = time.monotonic() + 30
    # The agent follows the record before long.
    while grown(lambda c=carol: c.create(
            data=data + os.urandom(10))) > 500_000:
        assert time.monotonic() < deadline
        carol = Client(lab, 'paris', f'carol:c{time.monotonic_ns()}:member')


def test_check_and_repair_from_another_site(lab, paris, rennes):
    data = os.urandom(3_000_000)
    image = paris.create(data=data)
    rennes.wait_active(image)
    assert rennes.read(image).content == data
    clean = command(lab, 'paris', 'glance-geo', 'store', 'check',
                    '--read-data', '-f', 'json')
    assert json.loads(clean) == []
    packs = lab.folder / 'paris' / 'chunks' / 'packs'
    newest = max(packs.iterdir(), key=lambda p: p.stat().st_mtime)
    for at in (500_000, 1_500_000, 2_500_000):
        flip(newest, at)
    found = command(lab, 'paris', 'glance-geo', 'store', 'check',
                    '--read-data=100%', '-f', 'json', check=False)
    assert found.returncode == 2
    rows = json.loads(found.stdout)
    assert {row['Kind'] for row in rows} >= {'chunk', 'image'}
    assert store_show(lab)['damaged_chunks'] >= 3
    done = command(lab, 'paris', 'glance-geo', 'store', 'check', '--repair',
                   '-f', 'json')
    assert [row['State'] for row in json.loads(done)
            if row['Kind'] == 'image'] == ['repaired']
    assert paris.read(image).content == data
    assert json.loads(command(lab, 'paris', 'glance-geo', 'store', 'check',
                              '--read-data', '-f', 'json')) == []


def test_p2_a_reader_of_a_damaged_image_notices_nothing(lab, paris, rennes):
    data = os.urandom(3_000_000)
    image = paris.create(data=data)
    rennes.wait_active(image)
    assert rennes.read(image).content == data
    packs = lab.folder / 'paris' / 'chunks' / 'packs'
    newest = max(packs.iterdir(), key=lambda p: p.stat().st_mtime)
    flip(newest, 1_000_000)
    answer = paris.read(image)
    assert answer.status_code == 200 and answer.content == data


def test_the_index_is_rebuilt_by_command(lab, paris, rennes):
    data = os.urandom(1_500_000)
    image = paris.create(data=data)
    copy = rennes.create(data=data[::-1])
    paris.wait_active(copy)
    assert paris.read(copy).content == data[::-1]
    refused = command(lab, 'paris', 'glance-geo', 'store', 'rebuild-index',
                      check=False)
    assert refused.returncode == 1 and 'is running' in refused.stderr
    before = store_show(lab)
    for role in ('glance-api', 'agent'):
        lab.kill('paris', role)
    for path in (lab.folder / 'paris' / 'chunks').glob('index.db*'):
        path.unlink()
    done = json.loads(command(lab, 'paris', 'glance-geo', 'store',
                              'rebuild-index', '-f', 'json'))
    assert done['damaged'] == 0 and done['images'] >= 2
    for role in ('agent', 'glance-api'):
        lab.start('paris', role)
    lab.isolate('paris')
    try:
        wait(lambda: paris.show(image))
        assert paris.read(image).content == data
        assert paris.read(copy).content == data[::-1]
    finally:
        lab.heal()
    command(lab, 'paris', 'glance-geo', 'store', 'collect')
    assert store_show(lab)['images'] == before['images']
