# SPDX-License-Identifier: Apache-2.0
"""Processes that use one chunk store, to be killed at any instant.

Each tells its parent, in lines over a pipe, what was acknowledged, what it is
about to delete, and what it saw that must not be.
"""

import hashlib
import io
import os
import random
import uuid

from glance_geo.core import errors
from glance_geo.store import body, compact, packs, upload
from glance_geo.store.chunkstore import ChunkStore
from glance_geo.store.download import ImageReader, NoSource

ROLES = ('write', 'write', 'read', 'tidy')
_PROJECTS = ('red', 'blue', '')
_LIVING = 25    # images of a writer


def small():
    """Make packs and blocks small, so that every step comes often."""
    packs.PACK_MAXIMUM = 600_000
    compact._SMALL = 100_000
    compact._SMALL_PACKS = 3
    body.BLOCK = 128 * 1024


def data_of(seed):
    """Return an image's bytes: parts that others have too, and own ones."""
    rng = random.Random(seed)
    parts = []
    for _ in range(rng.randrange(1, 6)):
        shared = random.Random(rng.randrange(10))
        parts.append(shared.randbytes(shared.randrange(30_000, 150_000)))
        parts.append(bytes(rng.choice((0, 70_000, 200_000))))
    parts.append(rng.randbytes(rng.randrange(40_000)))
    return b''.join(parts)


def _tell(pipe, *words):
    # One write of a short line: whole, or not at all.
    os.write(pipe, (' '.join(map(str, words)) + '\n').encode())


def _delete(store, pipe, image, manifest):
    _tell(pipe, 'del', image)
    store.refs.drop(image, manifest, '0' * 16)


def write(folder, pipe, seed):
    store, rng = ChunkStore(folder), random.Random(seed)
    mine = []
    while True:
        number = rng.randrange(2 ** 40)
        data, image = data_of(number), str(uuid.UUID(int=rng.getrandbits(
            128)))
        try:
            stored = upload.upload(store, image, '0' * 16, io.BytesIO(data),
                                   0, 'sha512', project=rng.choice(_PROJECTS))
        except errors.StoreFull:
            if mine:
                _delete(store, pipe, *mine.pop(rng.randrange(len(mine))))
            continue
        if stored.multihash != hashlib.sha512(data).hexdigest():
            _tell(pipe, 'bad', image, 'other hash')
        _tell(pipe, 'ack', image, stored.manifest.hex(), number)
        mine.append((image, stored.manifest))
        if rng.random() < 0.3:
            store.share(image, rng.choice(_PROJECTS))
        # What lives stays bounded, or long runs only ever get slower.
        if len(mine) > _LIVING or rng.random() < 0.6:
            _delete(store, pipe, *mine.pop(rng.randrange(len(mine))))


def read(folder, pipe, seed):
    store, rng = ChunkStore(folder), random.Random(seed)
    while True:
        refs = store.refs.all()
        if not refs:
            continue
        ref = rng.choice(refs)
        try:
            for _ in ImageReader(store, ref.image, ref.manifest,
                                 NoSource()).read()[0]:
                pass
        except errors.GeoError as error:
            if store.refs.all(ref.image):
                _tell(pipe, 'bad', ref.image, str(error).replace('\n', ' '))


def tidy(folder, pipe, seed):
    store, rng = ChunkStore(folder), random.Random(seed)
    while True:
        rng.choice((store.collect, store.compact))()


def run(role, folder, pipe, seed):
    small()
    try:
        {'write': write, 'read': read, 'tidy': tidy}[role](folder, pipe, seed)
    except BaseException as error:
        _tell(pipe, 'bad', role, repr(error)[:300].replace('\n', ' '))
        raise
