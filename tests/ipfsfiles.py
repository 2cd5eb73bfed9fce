# SPDX-License-Identifier: Apache-2.0
"""Writing and reading files of IPFS, as the driver does, for tests."""

import io
import random
import uuid

from glance_geo.core import cids
from glance_geo.store.ipfs import writing
from glance_geo.store.ipfs.reading import FileReader
from glance_geo.store.ipfs.references import PinReferences

MIB = 1 << 20
NONCE = '0' * 16


def data_of(size, seed=1):
    return random.Random(seed).randbytes(size)


def store(node, data, size=0, image=None, name='swarm', **more):
    refs = PinReferences(node, name)
    return writing.write(node, refs, image or str(uuid.uuid4()), NONCE,
                         io.BytesIO(data), size, 'sha512', **more)


def reader(node, cid):
    return FileReader(node, 'image-1', cids.parse(cid))


def read(node, cid, start=0, length=None):
    stream, _ = reader(node, cid).read(start, length)
    return b''.join(stream)


def remove(node, cid, root):
    """Lose a block, as a bad disk would."""
    node.unpin(cids.parse(root))
    assert 'Error' not in node._call('/block/rm', str(cid))[0]
