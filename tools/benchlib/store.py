# SPDX-License-Identifier: Apache-2.0
"""``tools/bench store``: the geo store beside Glance's file store.

Both through glance_store's drivers, in turn, on the same disk, each PUT made
durable (the file store's by an fsync of the file and its folder, which its
driver leaves out). Reads go through a TCP socket to another process.
"""

import contextlib
import os
import platform
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

from benchlib import storehttp, storerivals
from benchlib.storeinputs import Unavailable, debian, local

_RANGE = 4 * 1024 * 1024
_RANGES = 48
_DRAIN = '''
import socket
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
buffer = bytearray(1 << 20)
while True:
    one, _ = server.accept()
    while one.recv_into(buffer):
        pass
    one.sendall(b".")
    one.close()
'''


class Drain:
    """A process that takes whatever is sent to it."""

    def __init__(self):
        self._process = subprocess.Popen([sys.executable, '-c', _DRAIN],
                                         stdout=subprocess.PIPE, text=True)
        self._port = int(self._process.stdout.readline())

    def send(self, pieces):
        with socket.create_connection(('127.0.0.1', self._port)) as one:
            for piece in pieces:
                one.sendall(piece)
            one.shutdown(socket.SHUT_WR)
            one.recv(1)

    def close(self):
        self._process.kill()
        self._process.wait()


class Stores:
    """Both drivers, as Glance would load them."""

    def __init__(self, folder):
        import glance_store
        from glance_store import location
        from oslo_config import cfg
        self.folder = folder
        (folder / 'files').mkdir()
        (folder / 'keys').write_text(f'k1 {"5a" * 32}\n')
        (folder / 'glance-api.conf').write_text(f'''
[DEFAULT]
enabled_backends = geo:geo,file:file
[glance_store]
default_backend = geo
[geo]
geo_store_datadir = {folder}/chunks
[file]
filesystem_store_datadir = {folder}/files
[glance_geo]
site_name = bench
agent_socket =
location_keys_file = {folder}/keys
''')
        conf = cfg.CONF
        with contextlib.suppress(cfg.DuplicateOptError):
            conf.register_opt(cfg.DictOpt('enabled_backends'))
        conf(['--config-file', str(folder / 'glance-api.conf')])
        glance_store.register_store_opts(conf)
        glance_store.create_multi_stores(conf)
        self._location = lambda uri, name: (
            location.get_location_from_uri_and_backend(uri, name, conf=conf))
        self._drivers = {name: glance_store.get_store_from_store_identifier(
            name) for name in ('file', 'geo')}
        self.chunks = self._drivers['geo']._chunks()

    def put(self, name, path):
        """Store an image, durably; return its location."""
        image = str(uuid.uuid4())
        with open(path, 'rb') as source:
            uri = self._drivers[name].add(
                image, source, path.stat().st_size, 'sha512')[0]
        if name == 'file':
            for each, flags in ((self.folder / 'files' / image, os.O_RDONLY),
                                (self.folder / 'files',
                                 os.O_RDONLY | os.O_DIRECTORY)):
                descriptor = os.open(each, flags)
                os.fsync(descriptor)
                os.close(descriptor)
        return self._location(uri, name)

    def get(self, name, where, start=0, length=None):
        return self._drivers[name].get(where, offset=start,
                                       chunk_size=length)[0]

    def forget(self, name, where):
        """Remove an image and what only it used."""
        if name == 'file':
            self._drivers[name].delete(where)
            return
        geo = where.store_location.parsed
        self.chunks.refs.drop(geo.image, geo.manifest, geo.nonce)
        self.chunks.collect()

    def cool(self):
        """Let the page cache forget what both have written."""
        os.sync()
        for path in [*(self.folder / 'files').iterdir(),
                     *self.chunks.pack_files()]:
            with open(path, 'rb') as file:
                os.posix_fadvise(file.fileno(), 0, 0,
                                 os.POSIX_FADV_DONTNEED)


def _warm(*paths):
    for path in paths:
        with open(path, 'rb') as file:
            while file.read(1 << 22):
                pass


class Rounds:
    """Times, by what was measured and by store."""

    def __init__(self):
        self.times = {}

    def take(self, what, name, call):
        began = time.perf_counter()
        result = call()
        self.times.setdefault(what, {}).setdefault(name, []).append(
            time.perf_counter() - began)
        return result


def _input(stores, rounds, what, path, turn, drain, rng, more):
    """One round of one input on both stores."""
    _warm(path)
    size = path.stat().st_size
    where = {}
    names = ['file', 'geo'][::1 if turn % 2 else -1]
    for name in names:
        where[name] = rounds.take(f'put_{what}', name,
                                  lambda n=name: stores.put(n, path))
    for name in names:
        rounds.take(f'get_{what}', name, lambda n=name: drain.send(
            stores.get(n, where[n])))
    if more:
        starts = [rng.randrange(max(1, size - _RANGE))
                  for _ in range(_RANGES)]
        for name in names:
            rounds.take('get_random', name, lambda n=name: drain.send(
                piece for start in starts
                for piece in stores.get(n, where[n], start, _RANGE)))
        for name in names:
            stores.cool()
            rounds.take('get_cold', name, lambda n=name: drain.send(
                stores.get(n, where[n])))
    for name in names:
        stores.forget(name, where[name])


def _measure(stores, inputs, count, seed, progress):
    rounds, rng, drain = Rounds(), random.Random(seed), Drain()
    kinds = [('raw', inputs.raw, True), ('dense', inputs.dense, False)]
    if inputs.qcow2 is not None:
        kinds.append(('qcow2', inputs.qcow2, False))
    try:
        for turn in range(count):
            progress(f'round {turn + 1} of {count}')
            for what, path, more in kinds:
                _input(stores, rounds, what, path, turn, drain, rng, more)
            first = stores.put('geo', inputs.first)
            _input(stores, rounds, 'updated', inputs.updated, turn, drain,
                   rng, False)
            stores.forget('geo', first)
    finally:
        drain.close()
    return rounds.times


def _stored(stores, inputs, folder, progress):
    """Return the bytes that the set takes in each."""
    progress('stored bytes: geo')
    for path in inputs.all:
        stores.put('geo', path)
    stores.chunks.index.query('PRAGMA wal_checkpoint(TRUNCATE)')
    found = {'geo': stores.chunks.used_bytes(),
             'file': sum(path.stat().st_size for path in inputs.all)}
    index = stores.chunks.folder.index.stat().st_size
    chunks = stores.chunks.index.totals()[0]
    for kind in storerivals.RIVALS:
        if kind.installed():
            progress(f'stored bytes: {kind.program}')
            rival = kind(folder)
            rival.start()
            for path in inputs.all:
                rival.store(path)
            found[kind.program] = rival.bytes()
    return {'bytes': found, 'index': index, 'chunks': chunks}


def _ratios(times):
    """Return {what: file's time / geo's}: above 1, geo is faster.

    Of each round, since both meet what else the machine does alike; the
    median over the rounds, and their least and greatest.
    """
    found = {}
    for what, by in times.items():
        each = [one / other for one, other in zip(by['file'], by['geo'],
                                                  strict=True)]
        found[what] = {'median': round(statistics.median(each), 3),
                       'min': round(min(each), 3),
                       'max': round(max(each), 3)}
    return found


def run(images, rounds, seed, quick, http, progress):
    """Run the benchmark; return its results.

    :raises Unavailable: naming what is missing
    """
    work = Path(tempfile.mkdtemp(prefix='geo-bench-',
                                 dir=os.environ.get('TMPDIR')))
    try:
        progress('images')
        inputs = (local(work, 48, seed) if quick
                  else debian(images, work, seed))
        (work / 'stores').mkdir()
        stores = Stores(work / 'stores')
        times = _measure(stores, inputs, rounds, seed, progress)
        stored = _stored(stores, inputs, work, progress)
        through = storehttp.run(inputs, rounds, work, progress) if http else {}
        ratios = _ratios({**times, **through})
        rivals = {name: size for name, size in stored['bytes'].items()
                  if name not in ('geo', 'file')}
        geo = stored['bytes']['geo'] + stored['index']
        summary = {what: found['median'] for what, found in ratios.items()}
        summary['index_share'] = round(
            stored['index'] / stored['bytes']['geo'], 4)
        summary['stored_vs_file'] = round(geo / stored['bytes']['file'], 3)
        if rivals:
            summary['stored_vs_best'] = round(geo / min(rivals.values()), 3)
        return {'summary': summary, 'ratios': ratios, 'stored': stored,
                'seconds': {what: {name: [round(t, 4) for t in values]
                                   for name, values in by.items()}
                            for what, by in {**times, **through}.items()},
                'inputs': {name: [str(path.name), path.stat().st_size]
                           for name, path in vars(inputs).items()
                           if isinstance(path, Path)},
                'rounds': rounds, 'seed': seed,
                'cpus': os.cpu_count(), 'machine': platform.platform()}
    finally:
        shutil.rmtree(work, ignore_errors=True)


__all__ = ['Unavailable', 'run']
