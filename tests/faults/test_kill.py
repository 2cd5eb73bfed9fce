# SPDX-License-Identifier: Apache-2.0
"""P1: SIGKILL at random instants of an upload, a download, a sync loses
nothing that was acknowledged, and leaves nothing that is not reclaimed."""

import json
import os
import threading
import time

import httpx
import pytest

from tests.functional.labs import Client, Lab, command, wait

SITES = ('paris', 'rennes')


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    made = Lab(tmp_path_factory.mktemp('kill') / 'lab')
    made.up(SITES)
    yield made
    made.down()


def retry(call, seconds=60):
    """Repeat a call until the site answers again."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return call()
        except (httpx.HTTPError, AssertionError):
            assert time.monotonic() < deadline
            time.sleep(0.1)


class Job(threading.Thread):
    """Uploads, reads, renames; notes what was acknowledged."""

    def __init__(self, lab, rng, acknowledged):
        super().__init__(daemon=True)
        self.lab, self.rng = lab, rng
        self.acknowledged = acknowledged
        self.stop = threading.Event()
        self.started = threading.Event()

    def run(self):
        number = 0
        while not self.stop.is_set():
            number += 1
            try:
                self.once(number)
            except (httpx.HTTPError, AssertionError):
                time.sleep(0.05)

    def once(self, number):
        paris, rennes = (Client(self.lab, site) for site in SITES)
        data = self.rng.randbytes(self.rng.randrange(200_000, 3_000_000))
        image = paris.create(f'n{number}')
        self.started.set()
        if paris.upload(image, data).status_code == 204:
            self.acknowledged[image] = [f'n{number}', data]
            name = f'renamed{number}'
            paris.set(image, name=name)
            self.acknowledged[image][0] = name
        if rennes.show(image):
            rennes.read(image)


def check(lab, acknowledged):
    """Everything acknowledged is there, at both sites, byte for byte."""
    for site in SITES:
        client = Client(lab, site)
        for image, (name, data) in list(acknowledged.items()):
            shown = wait(lambda c=client, i=image: c.show(i), 60)
            assert shown['status'] == 'active'
            # A kill may have come after a write and before its answer.
            assert shown['name'] in (name, 'renamed' + name[1:])
            answer = retry(lambda c=client, i=image: _read(c, i))
            assert answer == data


def _read(client, image):
    answer = client.read(image)
    assert answer.status_code == 200, answer.text
    return answer.content


def kill_at_random(lab, rng, rounds):
    acknowledged = {}
    for _ in range(rounds):
        job = Job(lab, rng, acknowledged)
        job.start()
        job.started.wait(30)
        # The random instant is what this test is about.
        time.sleep(rng.random() * 1.2)
        site, role = rng.choice(SITES), rng.choice(('glance-api', 'agent'))
        print(f'kill -9 {site}/{role}')
        lab.kill(site, role)
        job.stop.set()
        job.join(60)
        assert not job.is_alive()
        lab.start(site, role)
    check(lab, acknowledged)
    assert acknowledged, 'no upload ever succeeded: nothing was shown'
    return acknowledged


def leftovers(lab, site):
    """Return what a store holds beyond its images' own chunks."""
    command(lab, site, 'glance-geo', 'store', 'collect')
    images = json.loads(command(lab, site, 'glance-geo', 'image', 'list',
                                '-f', 'json'))
    chunks = json.loads(command(lab, site, 'glance-geo', 'store', 'show',
                                '-f', 'json'))
    return chunks['chunks'] if not images else None


def reclaim(lab, acknowledged):
    """After all images are deleted, nothing is left at any site."""
    paris = Client(lab, 'paris', 'root:demo:admin')
    for image in paris.listed(limit=1000):
        # Uploads that were killed leave images that are still "saving", as
        # with any Glance store.
        assert paris.delete(image).status_code == 204
    for site in SITES:
        wait(lambda s=site: leftovers(lab, s) == 0, 60)
        packs = os.listdir(lab.folder / site / 'chunks' / 'packs')
        assert packs == []


def test_p1_kills_at_random_instants_lose_nothing(lab, rng):
    reclaim(lab, kill_at_random(lab, rng, 6))


@pytest.mark.long
def test_p1_many_kills_at_random_instants_lose_nothing(lab, rng):
    reclaim(lab, kill_at_random(lab, rng, 120))


def test_full_disk_is_one_clear_error_and_loses_nothing(tmp_path):
    """On a small tmpfs, which needs root."""
    import subprocess

    from glance_geo.core import errors
    from tests.unit.test_chunkstore import data_of, get, put
    if os.geteuid() != 0:
        pytest.skip('mounting a tmpfs needs root')
    folder = tmp_path / 'small'
    folder.mkdir()
    subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=128m', 'tmpfs',
                    str(folder)], check=True)
    try:
        from glance_geo.store.chunkstore import ChunkStore
        store = ChunkStore(folder)
        kept = put(store, data_of(5_000_000, 1, False))
        for seed in range(2, 5):
            with pytest.raises(errors.StoreFull):
                put(store, data_of(150_000_000, seed, False))
        assert get(store, kept) == data_of(5_000_000, 1, False)
        store.collect()
        free = os.statvfs(folder)
        assert free.f_bavail * free.f_frsize > 80 << 20
        put(store, data_of(5_000_000, 9, False))
        store.close()
    finally:
        subprocess.run(['umount', '-l', str(folder)], check=True)
