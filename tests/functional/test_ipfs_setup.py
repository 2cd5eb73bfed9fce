# SPDX-License-Identifier: Apache-2.0
"""Setting up nodes of IPFS, and sites that have nothing else."""

import hashlib
import json
import subprocess

import pytest

from tests import kubo
from tests.functional.labs import Client, Lab, LabError, Stores, command, wait
from tests.functional.test_ipfs_sites import data_of, held, of


def test_a_site_with_only_an_ipfs_store(tmp_path):
    kubo.needed()
    made = Lab(tmp_path / 'lab')
    made.up(['lyon', 'metz'], stores=Stores(('swarm',)))
    try:
        lyon, metz = Client(made, 'lyon'), Client(made, 'metz')
        data = data_of(3_000_000, 16)
        image = lyon.create(data=data, geo_policy='everywhere')
        metz.wait_active(image)
        assert hashlib.md5(metz.read(image).content).digest() == \
            hashlib.md5(data).digest()
        wait(lambda: held(made, 'lyon', image)['metz'] == 'whole')
        for words in (['store', 'collect'], ['status'], ['image', 'list']):
            command(made, 'lyon', 'glance-geo', *words)
        shown = command(made, 'lyon', 'glance-geo', 'store', 'show',
                        check=False)
        assert shown.returncode == 1 and 'type geo' in shown.stderr
        assert lyon.delete(image).status_code == 204
        wait(lambda: not of(made, 'metz', image))
    finally:
        made.down()


def test_init_says_what_is_wrong(tmp_path):
    from geolab.lab import program
    kubo.needed()
    repo = tmp_path / 'repo'

    def init(*words):
        return subprocess.run(
            [program('glance-geo'), 'ipfs', 'init', '--repo', str(repo),
             '--ipfs', kubo.ipfs.needed(), *words], capture_output=True,
            text=True)
    for words, text in (
            ([], '--new-swarm-key'), (['--swarm-key', '/nowhere'], 'No such'),
            (['--swarm-key', __file__], 'not a swarm key'),
            (['--new-swarm-key', '--peer', 'paris'], '/p2p/'),
            (['--new-swarm-key', '--ipfs', 'no-such-kubo'], 'install Kubo')):
        done = init(*words)
        assert done.returncode == 1 and text in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1
    auth = tmp_path / 'auth'
    done = init('--new-swarm-key', '--auth-file', str(auth), '--api',
                '/ip4/127.0.0.1/tcp/5999', '-f', 'json')
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert auth.read_text().strip() not in done.stdout
    for path in (auth, repo / 'swarm.key', repo / 'config'):
        assert path.stat().st_mode & 0o077 == 0
    config = json.loads((repo / 'config').read_text())
    assert config['Bootstrap'] == [] and config['Routing']['Type'] == 'none'
    # Again, with another site's node: what was there stays.
    peer = f'/ip4/10.0.0.2/tcp/4001/p2p/{made["peer_id"][:-1]}X'
    again = json.loads(init('--peer', peer, '-f', 'json').stdout)
    assert again['peer_id'] == made['peer_id'] and len(again['peers']) == 1
    assert again['ipfs_api'] == '/ip4/127.0.0.1/tcp/5999/http'
    assert len(json.loads(init('-f', 'json').stdout)['peers']) == 1


def test_the_lab_says_what_it_needs(monkeypatch, tmp_path):
    monkeypatch.setattr(kubo.ipfs, 'binary', lambda: None)
    with pytest.raises(LabError, match='make kubo'):
        Lab(tmp_path / 'lab').up(['paris'], stores=Stores(('swarm',)))


