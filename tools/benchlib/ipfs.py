# SPDX-License-Identifier: Apache-2.0
"""Images in IPFS, in the geo store, and in the geo store over IPFS blocks.

Real sites with real clients. What two sites do is measured in three labs at
once, on links of one shape (``--wan``), in turn; the crowd, one lab after
the other, over links that are not shaped, where bytes are what counts.
"""

import json
import os
import platform
import statistics
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from geolab import ipfs as kubo
from geolab.lab import Lab
from geolab.layout import Stores
from geolab.processes import LabError

KINDS = {
    'ipfs': Stores(('swarm',), ipfs_timeout=30.0),
    'geo': Stores(('geo',)),
    'geo over IPFS': Stores(('geo',), chunks_in_ipfs=True, prefer_ipfs=True,
                            ipfs_timeout=30.0)}
_BLOCK = 1 << 20
_RANGE = 4 << 20
_SITES = ('paris', 'rennes')


class Unavailable(Exception):
    """Something that the benchmark needs is not there."""


def needed():
    """Raise ``Unavailable`` where there is no Kubo."""
    if kubo.binary() is None:
        raise Unavailable('no Kubo: "make kubo" builds it, or set '
                          'GLANCE_GEO_IPFS')


class Site:
    """A user of one site, who measures."""

    def __init__(self, lab, name):
        self.lab, self.name = lab, name
        self.http = httpx.Client(
            base_url=lab.sites[name]['endpoint'], timeout=1800,
            trust_env=False, headers={'X-Auth-Token': 'bench:bench:admin'})

    def put(self, path):
        """Upload a file; return its image and the seconds."""
        image = self.http.post('/v2/images', json={
            'name': path.name, 'disk_format': 'raw',
            'container_format': 'bare'}).raise_for_status().json()['id']

        def blocks():
            with open(path, 'rb') as file:
                while block := file.read(_BLOCK):
                    yield block
        began = time.monotonic()
        self.http.put(f'/v2/images/{image}/file', content=blocks(), headers={
            'Content-Type': 'application/octet-stream'}).raise_for_status()
        return image, time.monotonic() - began

    def get(self, image, size, **headers):
        """Read an image, or a range; return the seconds."""
        began, got = time.monotonic(), 0
        with self.http.stream('GET', f'/v2/images/{image}/file',
                              headers=headers) as answer:
            answer.raise_for_status()
            for piece in answer.iter_raw(_BLOCK):
                got += len(piece)
        if got != size:
            raise LabError(f'{self.name}: {got} bytes of {size}')
        return time.monotonic() - began

    def command(self, *words):
        argv, environment = self.lab.command(self.name, ['glance-geo',
                                                         *words])
        done = subprocess.run(argv, env=environment, capture_output=True,
                              text=True)
        if done.returncode:
            raise LabError(f'{" ".join(words)}: {done.stderr.strip()}')
        return done.stdout

    def wait_active(self, image):
        def status():
            answer = self.http.get(f'/v2/images/{image}')
            return answer.status_code == 200 and answer.json()['status']
        _wait(lambda: status() == 'active', f'{image} at {self.name}')

    def has_no_chunks(self):
        self.command('store', 'collect', '--compact')
        return not json.loads(self.command('store', 'show', '-f', 'json'))[
            'chunks']

    def published(self, image):
        return any(row['Image'] == image and row['Pinned'] for row in
                   json.loads(self.command('ipfs', 'show', '-f', 'json')))


def _wait(condition, what, seconds=600):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f'{what}: not in time')
        time.sleep(0.05)


def _settled(kind, site, image):
    """Wait until an upload is offered to other sites; return the seconds."""
    began = time.monotonic()
    if kind == 'geo over IPFS':
        _wait(lambda: site.published(image), 'publication')
    return time.monotonic() - began


def _forget(kind, sites, images):
    """Delete images everywhere, bits too, so that the next round is alike."""
    for image in images:
        sites[0].http.delete(f'/v2/images/{image}').raise_for_status()
    for site in sites:
        _wait(lambda s=site: all(
            s.http.get(f'/v2/images/{image}').status_code == 404
            for image in images), 'deletion')
        if kind != 'ipfs':
            _wait(lambda s=site: s.has_no_chunks(), 'collection')
        if kind != 'geo':
            _wait(lambda s=site: not json.loads(
                s.command('ipfs', 'show', '-f', 'json')), 'unpinning')
            site.command('ipfs', 'collect')


def _round(kind, lab, files):
    """Return {what: seconds} and {what: bytes over the link}."""
    paris, rennes = (Site(lab, name) for name in _SITES)
    raw, updated = files
    seconds, moved = {}, {}

    def far(what, image, size, **headers):
        before = sum(lab.bytes().values())
        seconds[what] = rennes.get(image, size, **headers)
        moved[what] = sum(lab.bytes().values()) - before
    image, seconds['add'] = paris.put(raw)
    seconds['offered after'] = _settled(kind, paris, image)
    seconds['local read'] = paris.get(image, raw.stat().st_size)
    rennes.wait_active(image)
    far('remote range 4 MiB', image, _RANGE,
        Range=f'bytes={_BLOCK}-{_BLOCK + _RANGE - 1}')
    far('remote read', image, raw.stat().st_size)
    seconds['read again'] = rennes.get(image, raw.stat().st_size)
    second, seconds['add updated'] = paris.put(updated)
    _settled(kind, paris, second)
    rennes.wait_active(second)
    far('remote read updated', second, updated.stat().st_size)
    _forget(kind, (paris, rennes), (image, second))
    return seconds, moved


def _crowd(kind, folder, count, path, rounds, progress):
    """All other sites read one image at once; return seconds and bytes."""
    lab = Lab(folder)
    names = ['paris', *(f'site{number}' for number in range(1, count))]
    lab.up(names, stores=KINDS[kind])
    found = []
    try:
        sites = [Site(lab, name) for name in names]
        size = path.stat().st_size
        for turn in range(rounds):
            progress(f'{kind}: crowd of {count}, round {turn + 1}')
            image, _ = sites[0].put(path)
            _settled(kind, sites[0], image)
            for site in sites[1:]:
                site.wait_active(image)
            before = lab.bytes()
            began = time.monotonic()
            with ThreadPoolExecutor(count) as pool:
                list(pool.map(Site.get, sites[1:], [image] * (count - 1),
                              [size] * (count - 1)))
            took = time.monotonic() - began
            after = lab.bytes()
            by_link = {link: after[link] - before[link] for link in after}
            found.append({
                'seconds': took, 'bytes': sum(by_link.values()),
                'from_origin': sum(value for link, value in by_link.items()
                                   if 'paris' in link.split('-'))})
            _forget(kind, sites, [image])
    finally:
        lab.down()
    return found


def run(files, work, rounds, wan, count, crowd_rounds, progress):
    """Return the results.

    :param files: (an image, the same updated)
    :param wan: shape of the links; None: not shaped
    :raises Unavailable: no Kubo
    """
    needed()
    labs, two = {}, {kind: [] for kind in KINDS}
    try:
        for kind, stores in KINDS.items():
            progress(f'{kind}: two sites')
            labs[kind] = Lab(work / kind.replace(' ', '-'))
            labs[kind].up(_SITES, stores=stores, wan=wan)
        for turn in range(rounds):
            order = list(KINDS)[turn % 3:] + list(KINDS)[:turn % 3]
            for kind in order:
                progress(f'{kind}: round {turn + 1} of {rounds}')
                two[kind].append(_round(kind, labs[kind], files))
    except LabError as error:
        raise Unavailable(str(error)) from error
    finally:
        for lab in labs.values():
            lab.down()
    crowd = {kind: _crowd(kind, work / f'crowd-{number}', count, files[0],
                          crowd_rounds, progress)
             for number, kind in enumerate(KINDS)} if count else {}
    return _results(two, crowd, files, wan, count, rounds)


def _data(path):
    """Return a file's bytes that are not in runs of zeros."""
    zeros, total = bytes(1 << 16), 0
    with open(path, 'rb') as file:
        while block := file.read(1 << 16):
            total += len(block) if block != zeros[:len(block)] else 0
    return total


def spread(values):
    return {'min': min(values), 'median': statistics.median(values),
            'max': max(values)}


def _results(two, crowd, files, wan, count, rounds):
    first = next(iter(two.values()))[0]
    return {
        'seconds': {what: {kind: spread([r[0][what] for r in done])
                           for kind, done in two.items()}
                    for what in first[0]},
        'bytes': {what: {kind: spread([r[1][what] for r in done])
                         for kind, done in two.items()}
                  for what in first[1]},
        'crowd': {kind: {what: spread([each[what] for each in done])
                         for what in done[0]}
                  for kind, done in crowd.items()},
        'files': {'image': [files[0].name, files[0].stat().st_size,
                            _data(files[0])],
                  'updated': [files[1].name, files[1].stat().st_size,
                              _data(files[1])]},
        'wan': wan, 'sites': count, 'rounds': rounds,
        'cpus': os.cpu_count(), 'machine': platform.machine()}


def table(results):
    """Return the results as text."""
    kinds = list(KINDS)
    lines = []

    def rows(title, values, scale):
        head = f'{title:26}' + ''.join(f'{kind:>24}' for kind in kinds)
        lines.extend([head, '-' * len(head)])
        for what, by in values.items():
            cells = (f'{its["median"] * scale:.2f} '
                     f'({its["min"] * scale:.2f}–{its["max"] * scale:.2f})'
                     for its in map(by.get, kinds))
            lines.append(f'{what:26}' + ''.join(f'{cell:>24}'
                                                for cell in cells))
        lines.append('')
    rows('seconds', results['seconds'], 1)
    rows('MiB over the link', results['bytes'], 1 / (1 << 20))
    if results['crowd']:
        by = {f'{what}, {results["sites"]} sites': {
            kind: its[what] for kind, its in results['crowd'].items()}
            for what in ('seconds', 'bytes', 'from_origin')}
        rows('crowd: seconds', dict(list(by.items())[:1]), 1)
        rows('crowd: MiB', dict(list(by.items())[1:]), 1 / (1 << 20))
    lines += [f'{name}: {file}, {size / 2**20:.0f} MiB, {data / 2**20:.0f} '
              f'of them not zero'
              for name, (file, size, data) in results['files'].items()]
    lines += [f'links: {results["wan"] or "not shaped"}; {results["rounds"]} '
              f'rounds; median (least–most); {results["cpus"]} CPUs, '
              f'{results["machine"]}']
    return '\n'.join(lines)


def inputs(images, work, quick, seed):
    """Return (an image, the same updated).

    :param images: folder with Debian images of tools/make-images, or None
    :raises Unavailable: they can't be made
    """
    from benchlib import storeinputs
    try:
        if images is not None and not quick:
            found = storeinputs.debian(Path(images), work, seed)
            return found.first, found.updated
        found = storeinputs.local(work, 8 if quick else 64, seed)
    except storeinputs.Unavailable as error:
        raise Unavailable(str(error)) from error
    return found.raw, found.updated
