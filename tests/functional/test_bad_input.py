# SPDX-License-Identifier: Apache-2.0
"""What goes wrong ends in one clear answer, and nothing is half-written."""

import os
import random
import signal
import socket
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tests.functional.labs import TOOLS, Client, command, wait


def data_of(size, seed):
    return random.Random(seed).randbytes(size)


def test_an_image_nowhere_reachable_is_503_and_says_why(lab, sites):
    paris, rennes, _ = sites
    image = paris.create(data=data_of(300_000, 13))
    rennes.wait_active(image)
    lab.isolate('paris')
    answer = rennes.read(image)
    assert answer.status_code == 503
    assert image in answer.text and 'paris' in answer.text
    lab.heal()
    assert wait(lambda: rennes.read(image).status_code == 200)


def test_p3_with_the_agent_down_what_is_here_is_served(lab, sites):
    paris, rennes, _ = sites
    image = paris.create(data=data_of(300_000, 14))
    far = paris.create(data=data_of(300_000, 15))
    for one in (image, far):
        rennes.wait_active(one)
    assert rennes.read(image).status_code == 200
    lab.kill('rennes', 'agent')
    assert rennes.read(image).status_code == 200
    answer = rennes.read(far)
    assert answer.status_code == 503 and 'agent' in answer.text
    made = rennes.create(data=b'without an agent')
    assert rennes.read(made).content == b'without an agent'


def test_upload_at_another_site_asks_the_home(lab, sites):
    paris, rennes, _ = sites
    image = paris.create()
    wait(lambda: rennes.show(image))
    lab.isolate('paris')
    answer = rennes.upload(image, b'bytes')
    assert answer.status_code == 409 and 'paris' in answer.text
    assert rennes.show(image)['status'] == 'queued'
    lab.heal()
    wait(lambda: rennes.upload(image, b'bytes').status_code == 204)
    paris.wait_active(image)
    assert paris.read(image).content == b'bytes'


def test_a_body_shorter_than_announced_leaves_a_queued_image(sites):
    paris = sites[0]
    image = paris.create()
    answer = paris.upload(image, b'x' * 1000,
                          **{'x-openstack-image-size': '2000'})
    assert answer.status_code == 400, answer.text
    assert '2000' in answer.text
    assert paris.show(image)['status'] == 'queued'
    assert paris.upload(image, b'x' * 1000).status_code == 204


def test_a_client_that_goes_away_leaves_no_half_image(lab, sites):
    paris = sites[0]
    image = paris.create()
    host, port = paris.lab.sites['paris']['endpoint'][7:].split(':')
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall((f'PUT /v2/images/{image}/file HTTP/1.1\r\n'
                     f'Host: x\r\nX-Auth-Token: alice:demo:member\r\n'
                     f'Content-Type: application/octet-stream\r\n'
                     f'Content-Length: 50000000\r\n\r\n').encode())
        raw.sendall(bytes(range(256)) * 4000)
        wait(lambda: paris.show(image)['status'] == 'saving')
    wait(lambda: paris.show(image)['status'] == 'queued')
    assert paris.upload(image, b'whole').status_code == 204
    assert paris.read(image).content == b'whole'


def test_p7_a_location_of_another_image_is_refused(lab, sites):
    paris = sites[0]
    image = paris.create(data=b'private bytes', visibility='private')
    admin = Client(lab, 'paris', 'root:demo:admin')
    location = admin.show(image)['locations'][0]['url']
    mallory = Client(lab, 'paris', 'mallory:evil:admin')
    claimed = mallory.create()
    for url in (location, location[:-4] + '0000', location.replace(
            image, claimed), 'geo://geo/../../etc/passwd',
            'file:///etc/passwd'):
        answer = mallory.patch(claimed, {
            'op': 'add', 'path': '/locations/-',
            'value': {'url': url, 'metadata': {}}})
        assert answer.status_code == 400, (url, answer.status_code,
                                           answer.text)
    assert mallory.show(claimed)['status'] == 'queued'
    assert paris.read(image).content == b'private bytes'


@pytest.mark.parametrize('bad', ['../../etc/passwd', 'not-a-uuid', '%00'])
def test_p7_identifiers_never_become_paths(sites, bad):
    answer = sites[0].http.post('/v2/images', json={
        'id': bad, 'disk_format': 'raw', 'container_format': 'bare'})
    assert answer.status_code == 400


def test_lab_down_ends_everything_also_after_a_crash(tmp_path):
    folder = tmp_path / 'crash'
    process = subprocess.Popen(
        [sys.executable, str(TOOLS / 'lab'), 'up', '--dir', str(folder),
         '--sites', 'a,b'], stdout=subprocess.DEVNULL)
    from geolab import processes
    wait(lambda: len(processes.running(folder)) >= 3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert processes.running(folder)
    subprocess.run([sys.executable, str(TOOLS / 'lab'), 'down', '--dir',
                    str(folder)], check=True)
    assert not processes.running(folder)


@pytest.mark.parametrize('arguments, says', [
    (('up', '--metadata', 'nosuch'), 'nosuch'),
    (('status',), 'no lab in'), (('cut', 'a', 'b'), 'no lab in'),
    (('up', '--sites', 'a,a'), 'differ'),
    (('up', '--wan', 'speed=3'), 'speed')])
def test_lab_errors_are_one_line(tmp_path, arguments, says):
    done = subprocess.run(
        [sys.executable, str(TOOLS / 'lab'), arguments[0], '--dir',
         str(tmp_path / 'none'), *arguments[1:]], capture_output=True,
        text=True)
    assert done.returncode == 1
    assert says in done.stderr and len(done.stderr.splitlines()) == 1


def test_glance_geo_errors_are_one_line(lab):
    for arguments in (('image', 'show', str(uuid.uuid4())),
                      ('metadefs', 'load', '--path', '/nonexistent')):
        done = command(lab, 'paris', 'glance-geo', *arguments, check=False)
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    done = subprocess.run(
        [str(Path(sys.executable).parent / 'glance-geo'), 'status'],
        capture_output=True, text=True,
        env={**os.environ, 'OS_GLANCE_CONFIG_DIR': '/nonexistent'})
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
