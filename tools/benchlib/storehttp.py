# SPDX-License-Identifier: Apache-2.0
"""The same two stores through a real glance-api, over HTTP.

One glance-api with both stores, so that only the store differs. Glance does
not sync what its file store writes: here the file store has that advantage.
"""

import httpx
from geolab.lab import Lab
from geolab.layout import Stores

_BLOCK = 1 << 20


def _blocks(path):
    with open(path, 'rb') as file:
        while block := file.read(_BLOCK):
            yield block


def _put(client, path, store):
    image = client.post('/v2/images', json={
        'name': path.name, 'disk_format': 'raw',
        'container_format': 'bare'}).raise_for_status().json()['id']
    client.put(f'/v2/images/{image}/file', content=_blocks(path), headers={
        'Content-Type': 'application/octet-stream',
        'x-image-meta-store': store}).raise_for_status()
    return image


def _get(client, image):
    with client.stream('GET', f'/v2/images/{image}/file') as answer:
        answer.raise_for_status()
        for _ in answer.iter_raw(_BLOCK):
            pass


def run(inputs, rounds, work, progress):
    """Return {what: {store: [seconds]}}."""
    from benchlib.store import Rounds
    lab, found = Lab(work / 'lab'), Rounds()
    progress('glance-api')
    lab.up(['bench'], stores=Stores(('geo', 'file')))
    try:
        with httpx.Client(base_url=lab.sites['bench']['endpoint'],
                          timeout=600, trust_env=False, headers={
                              'X-Auth-Token': 'bench:bench:admin'}) as client:
            for turn in range(rounds):
                progress(f'HTTP, round {turn + 1} of {rounds}')
                names = ['file', 'geo'][::1 if turn % 2 else -1]
                for what in ('raw', 'dense'):
                    path, made = getattr(inputs, what), {}
                    for name in names:
                        made[name] = found.take(
                            f'http_put_{what}', name,
                            lambda n=name, p=path: _put(client, p, n))
                    for name in names:
                        found.take(f'http_get_{what}', name,
                                   lambda i=made[name]: _get(client, i))
                    for image in made.values():
                        client.delete(f'/v2/images/{image}'
                                      ).raise_for_status()
                    lab_collect(lab)
    finally:
        lab.down()
    return found.times


def lab_collect(lab):
    """Let the next round begin with an empty store."""
    import subprocess
    argv, environment = lab.command('bench', ['glance-geo', 'store',
                                              'collect'])
    subprocess.run(argv, env=environment, check=False,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
