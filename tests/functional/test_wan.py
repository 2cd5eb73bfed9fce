# SPDX-License-Identifier: Apache-2.0
"""Sites in network namespaces, joined by shaped links (needs root)."""

import json
import os
import shutil
import subprocess
import time

import pytest

from tests.functional.labs import Client, Lab, LabError, command, wait

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0,
                       reason='network namespaces need root'),
    pytest.mark.skipif(not shutil.which('ip'),
                       reason='needs iproute2')]


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    made = Lab(tmp_path_factory.mktemp('wan') / 'lab')
    try:
        made.up(('paris', 'rennes'), wan='delay=20ms,rate=50mbit')
    except LabError as error:
        if 'needs VDE' in str(error):
            pytest.skip(str(error))
        raise
    yield made
    made.down()
    assert made.folder.name and not subprocess.run(
        ['ip', 'netns', 'list'], capture_output=True,
        text=True).stdout.count(mark(made))


def mark(lab):
    import hashlib
    return 'geo-' + hashlib.sha256(str(lab.folder).encode()).hexdigest()[:5]


def rtt_ms(lab):
    rows = json.loads(command(lab, 'rennes', 'glance-geo', 'site', 'list',
                              '-f', 'json'))
    return {row['Site']: row['RTT ms'] for row in rows}['paris']


def test_an_image_crosses_a_shaped_link(lab):
    paris, rennes = Client(lab, 'paris'), Client(lab, 'rennes')
    data = os.urandom(6_000_000)
    image = paris.create(data=data)
    rennes.wait_active(image)
    before = lab.bytes()['paris-rennes']
    began = time.monotonic()
    assert rennes.read(image).content == data
    took = time.monotonic() - began
    moved = lab.bytes()['paris-rennes'] - before
    assert len(data) < moved < 1.15 * len(data)
    # The link's own arithmetic, not the machine's speed: 6 MB at 50 Mbit/s.
    assert took > 0.8 * 6_000_000 * 8 / 50e6


def test_the_link_has_the_delay_asked_for_and_can_be_changed(lab):
    wait(lambda: (rtt_ms(lab) or 0) >= 40)
    lab.link('paris', 'rennes', ['delay=120ms', 'rate=50mbit'])
    wait(lambda: rtt_ms(lab) > 150, 60)
    lab.link('paris', 'rennes', ['delay=1ms', 'rate=50mbit'])


def test_p3_p4_a_cut_link_heals(lab):
    paris, rennes = Client(lab, 'paris'), Client(lab, 'rennes')
    lab.cut('paris', 'rennes')
    assert lab.status()['cut'] == ['paris-rennes']
    image = rennes.create(data=b'apart')
    assert rennes.read(image).content == b'apart'
    assert paris.show(image) is None
    lab.heal('paris', 'rennes')
    wait(lambda: paris.show(image), 60)
    assert wait(lambda: paris.read(image).status_code == 200, 60)
