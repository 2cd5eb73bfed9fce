# SPDX-License-Identifier: Apache-2.0
"""``tools/bench index``: the index of a large store, with made-up chunks.

The chunks' bytes do not exist; the index, and the manifests that a collection
reads, are real.
"""

import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

from glance_geo.core.manifest import Extent, ManifestBuilder

_UNITS = {'GiB': 1 << 30, 'TiB': 1 << 40}
_AVERAGE = 36_000       # bytes of image in a chunk, as measured
_BATCH = 500_000
_LOOK_UPS = 200_000
_IMAGE = 10 << 30


def parse(text):
    """Return the bytes that a text such as 1TiB says."""
    match = re.fullmatch(r'(\d+)(GiB|TiB)', text)
    if match is None:
        raise ValueError(f'{text!r} is no size such as 1TiB')
    return int(match[1]) * _UNITS[match[2]]


def _fill(store, chunks, seed, progress):
    """Enter made-up chunks in the order of their names, and images of them.

    The images' manifests are real, and their names are all over the range,
    as hashes are: each takes every so-manieth name.
    """
    rng, step = random.Random(seed), 2 ** 256 // chunks
    index, session = store.index, store.session()
    with index.transaction() as connection:
        packs = [index.enter_pack(connection, f'{n:032x}')
                 for n in range(max(1, chunks // 20_000))]
    images = max(1, chunks * _AVERAGE // _IMAGE)
    builders = [ManifestBuilder() for _ in range(images)]
    for start in range(0, chunks, _BATCH):
        rows = []
        for place in range(start, min(chunks, start + _BATCH)):
            name = (place * step + rng.randrange(step)).to_bytes(32, 'big')
            raw = rng.randrange(8192, 131072)
            rows.append((name, 0, rng.choice(packs), rng.randrange(1 << 28),
                         raw // 3, raw, 1, 0))
            for part in builders[place % images].add(Extent(raw, name)):
                session.put_blob(part)
        with index.transaction(durable=False) as connection:
            connection.executemany(
                'INSERT INTO chunks VALUES (?, ?, ?, ?, ?, ?, ?, ?)', rows)
        progress(f'{start + len(rows):,} of {chunks:,} chunks')
    for number, builder in enumerate(builders):
        for part in builder.finish():
            session.put_blob(part)
        root = session.put_blob(builder.root())
        store.refs.enter(str(uuid.UUID(int=number)), root, '0' * 16, 0)
    session.commit()


def _resident():
    with open('/proc/self/status') as status:
        return {line.split(':')[0]: int(line.split()[1]) * 1024
                for line in status if line.startswith(('VmHWM', 'VmRSS'))}


def _use(folder, seed):
    """In a process of its own: what a store of that size costs one."""
    from glance_geo.store.chunkstore import ChunkStore
    store, rng = ChunkStore(folder), random.Random(seed)
    names = [row[0] for row in store.index.query(
        'SELECT name FROM chunks WHERE name > ? LIMIT 1000',
        (rng.randbytes(32),))]
    before = _resident()['VmRSS']
    began = time.perf_counter()
    for _ in range(_LOOK_UPS // 64):
        # Like an upload's: half known, half not, a block at a time.
        store.index.rely_on(1, 0, rng.sample(names, 32) + [
            rng.randbytes(32) for _ in range(32)])
    took = (time.perf_counter() - began) / _LOOK_UPS
    looked = _resident()['VmHWM']
    began = time.perf_counter()
    removed = store.collect().chunks
    return {'before': before, 'look_ups': looked, 'look_up_us': took * 1e6,
            'collection': _resident()['VmHWM'],
            'collection_seconds': time.perf_counter() - began,
            'removed': removed}


def run(logical, progress):
    """Return what an index for so many bytes of images takes."""
    from glance_geo.store.chunkstore import ChunkStore
    folder = Path(tempfile.mkdtemp(prefix='geo-index-',
                                   dir=os.environ.get('TMPDIR')))
    try:
        chunks = logical // _AVERAGE
        store = ChunkStore(folder)
        _fill(store, chunks, 1, progress)
        store.index.query('PRAGMA wal_checkpoint(TRUNCATE)')
        progress('look-ups and a collection')
        done = subprocess.run(
            [sys.executable, '-c', 'import sys, json; sys.path.insert(0, '
             f'{str(Path(__file__).resolve().parents[1])!r}); from benchlib '
             'import indexsize; print(json.dumps(indexsize._use('
             f'{str(folder)!r}, 2)))'], check=True, stdout=subprocess.PIPE)
        import json
        found = json.loads(done.stdout)
        if found['removed']:
            raise AssertionError('a collection took what images refer to')
        stored = store.index.query('SELECT sum(stored) FROM chunks')[0][0]
        size = (folder / 'index.db').stat().st_size
        return {'summary': {
            'logical_bytes': logical, 'chunks': chunks, 'index_bytes': size,
            'bytes_per_chunk': round(size / chunks, 1),
            'index_share': round(size / stored, 4),
            'resident_bytes': found['look_ups'],
            'resident_bytes_collecting': found['collection'],
            'look_up_microseconds': round(found['look_up_us'], 2),
            'collection_seconds': round(found['collection_seconds'], 1)}}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def table(results):
    return '\n'.join(f'{name:28}{value:>20,}'
                     for name, value in results['summary'].items())
