# SPDX-License-Identifier: Apache-2.0
"""The chunk store: what is stored comes back, and only that (P1, P2, P8)."""

import hashlib
import io
import random
import subprocess
import sys
import threading
import tracemalloc

import pytest

from glance_geo.core import chunker, errors
from glance_geo.core.manifest import name_of
from glance_geo.store import packs
from glance_geo.store.body import SizeMismatch
from glance_geo.store.chunkstore import ChunkStore
from glance_geo.store.download import ImageReader, NoSource
from glance_geo.store.upload import upload

IMAGE = '11111111-2222-3333-4444-555555555555'
OTHER = '11111111-2222-3333-4444-666666666666'


@pytest.fixture
def store(tmp_path):
    made = ChunkStore(tmp_path / 'chunks')
    yield made
    made.close()


def data_of(size, seed=1, holes=True):
    rng = random.Random(seed)
    data = rng.randbytes(size)
    if holes:
        data = data[:size // 3] + bytes(size // 3) + data[2 * (size // 3):]
    return data


def put(store, data, image=IMAGE, nonce='0' * 16, size=None):
    return upload(store, image, nonce, io.BytesIO(data),
                  len(data) if size is None else size, 'sha512')


def get(store, stored, start=0, length=None, source=None, image=IMAGE):
    reader = ImageReader(store, image, stored.manifest, source or NoSource())
    stream, size = reader.read(start, length)
    return b''.join(stream)


@pytest.mark.parametrize('size', [0, 1, 65536, 65537, 1_000_003, 9_000_001])
def test_round_trip_with_glance_hashes(store, size):
    data = data_of(size)
    stored = put(store, data)
    assert stored.size == size
    assert stored.checksum == hashlib.md5(data).hexdigest()
    assert stored.multihash == hashlib.sha512(data).hexdigest()
    assert get(store, stored) == data


def test_ranges(store, rng):
    data = data_of(6_000_000)
    stored = put(store, data)
    for _ in range(60):
        start = rng.randrange(len(data))
        length = rng.choice((1, 4096, 70_000, 5_000_000))
        assert get(store, stored, start, length) == data[start:start + length]
    assert get(store, stored, len(data), 10) == b''


def test_zeros_cost_nothing(store):
    before = store.index.totals()[2]
    put(store, bytes(50_000_000))
    assert store.index.totals()[2] - before < 1000


def test_p5_the_same_bytes_are_stored_once(store):
    data = data_of(3_000_000, holes=False)
    first = put(store, data)
    second = put(store, data, OTHER)
    assert first.new_bytes > 2_000_000 and second.new_bytes < 200
    assert first.manifest == second.manifest


@pytest.mark.parametrize('announced', [999_999, 1_000_001])
def test_a_body_of_another_size_leaves_nothing(store, announced):
    with pytest.raises(SizeMismatch):
        put(store, data_of(1_000_000), size=announced)
    assert store.index.totals()[0] == 0
    assert store.pack_files() == [] and store.refs.all() == []


def test_a_source_that_fails_leaves_nothing(store):
    class Breaks(io.BytesIO):
        def read(self, size):
            if self.tell() > 30_000_000:
                raise OSError('the client went away')
            return super().read(size)
    with pytest.raises(OSError):
        upload(store, IMAGE, '0' * 16, Breaks(data_of(40_000_000)), 0,
               'sha512')
    store.collect()
    assert store.index.totals()[0] == 0 and store.pack_files() == []


def test_p2_a_flipped_bit_is_found_and_never_served(store, rng):
    data = data_of(2_000_000, holes=False)
    stored = put(store, data)
    (pack,) = store.pack_files()
    content = bytearray(pack.read_bytes())
    content[rng.randrange(200, len(content) - 200)] ^= 0x10
    pack.write_bytes(content)
    try:
        assert get(store, stored) == data      # hit a header or slack
    except errors.BitsUnavailable:
        pass


def test_p2_a_corrupt_chunk_is_fetched_again(store, tmp_path):
    data = data_of(2_000_000, holes=False)
    stored = put(store, data)
    (pack,) = store.pack_files()
    pack.write_bytes(packs.MAGIC + bytes(pack.stat().st_size))
    good = ChunkStore(tmp_path / 'good')
    put(good, data)
    asked = []

    class Healer:
        def ensure(self, image_id, manifest, names):
            asked.extend(names)
            session = store.session()
            found, _ = good.view([IMAGE], manifest).load(names)
            for name in session.unknown(names):
                session.put(name, *packs.compress(found[name]),
                            len(found[name]))
            session.commit((image_id, manifest, 'copy'))
    assert get(store, stored, source=Healer()) == data
    assert asked
    assert get(store, stored) == data
    good.close()


def test_p2_a_truncated_or_missing_pack_is_an_error(store):
    stored = put(store, data_of(2_000_000, holes=False))
    (pack,) = store.pack_files()
    pack.write_bytes(pack.read_bytes()[:100_000])
    with pytest.raises(errors.BitsUnavailable):
        get(store, stored)
    pack.unlink()
    store.close()
    with pytest.raises(errors.BitsUnavailable):
        get(ChunkStore(store.path), stored)


def test_p2_decompression_is_bounded():
    big = bytes(50_000_000)
    codec, stored = packs.compress(big)
    with pytest.raises(errors.ChunkCorrupt):
        packs.unpack(name_of(big), codec, stored, 100)


def test_p8_collection_keeps_what_is_referred_to(store):
    shared = data_of(1_500_000, holes=False)
    kept = put(store, shared + data_of(500_000, 2, False))
    put(store, shared + data_of(500_000, 3, False), OTHER)
    # Not listed is not enough: the record may be on its way, or restored.
    store.settle(OTHER, frozenset(), deleted=False)
    assert store.collect().chunks == 0
    store.settle(OTHER, frozenset(), deleted=True)
    collected = store.collect()
    assert collected.chunks > 0
    assert get(store, kept) == shared + data_of(500_000, 2, False)


def test_p8_a_deletion_asked_for_goes_once_metadata_agrees(store):
    stored = put(store, data_of(300_000, holes=False))
    store.refs.queue_check(IMAGE, stored.manifest, '0' * 16)
    store.settle(IMAGE, {(stored.manifest, '0' * 16)}, deleted=False)
    assert store.refs.all(IMAGE)
    store.settle(IMAGE, frozenset(), deleted=False)
    assert not store.refs.all()
    assert not store.index.query('SELECT * FROM checks')


def test_p8_an_upload_may_rely_on_a_chunk_while_it_is_collected(store):
    data = data_of(1_000_000, holes=False)
    first = put(store, data)
    store.refs.drop(IMAGE, first.manifest, '0' * 16)
    session = store.session()
    names = [row[0] for row in store.index.query(
        'SELECT name FROM chunks')]
    assert session.unknown(names) == []     # all are here: relied on now
    store.collect()
    assert set(store.index.places(names, [0])) == set(names)
    session.commit((IMAGE, first.manifest, '1' * 16))
    store.collect()
    store.collect()
    assert get(store, first) == data


def test_p8_uploads_reads_and_collections_at_once(store, rng):
    shared = data_of(400_000, holes=False)
    failures = []
    stop = threading.Event()

    def work(number):
        try:
            for turn in range(12):
                own = shared + data_of(100_000, number * 100 + turn, False)
                nonce = f'{number:08x}{turn:08x}'
                stored = put(store, own, IMAGE, nonce)
                if get(store, stored) != own:
                    raise AssertionError('other bytes')
                store.refs.drop(IMAGE, stored.manifest, nonce)
        except BaseException as error:
            failures.append(error)

    def collect():
        while not stop.is_set():
            store.collect()
    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    collector = threading.Thread(target=collect)
    for thread in (*threads, collector):
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    collector.join()
    assert not failures
    store.collect()
    assert store.index.totals()[0] == 0 and store.pack_files() == []


def test_p1_a_dead_writer_leaves_nothing_after_a_collection(store):
    script = ('import io, os, sys, random\n'
              'from glance_geo.store.chunkstore import ChunkStore\n'
              'store = ChunkStore(sys.argv[1])\n'
              'session = store.session()\n'
              'for n in range(50):\n'
              '    session.put_blob(random.randbytes(30000))\n'
              'session.flush()\n'
              'session.put_blob(random.randbytes(30000))\n'
              'os.kill(os.getpid(), 9)\n')
    done = subprocess.run([sys.executable, '-c', script, str(store.path)])
    assert done.returncode == -9
    assert store.index.totals()[0] == 50
    store.collect()
    assert store.index.totals()[0] == 0 and store.pack_files() == []
    assert store.dead_sessions() == []


def test_p1_a_writer_killed_as_it_began_leaves_nothing(store):
    """Found by the long run of kills."""
    for folder in ('packs', 'sessions'):
        (store.path / folder / 'dead.new').write_bytes(b'')
    alive = store.session()
    store.collect()
    assert not list(store.path.glob('*/*.new'))
    alive.put_blob(b'still writing')
    alive.commit((IMAGE, name_of(b'still writing'), 'x'))
    assert store.view([IMAGE], name_of(b'still writing')).read(
        name_of(b'still writing')) == b'still writing'


def test_memory_stays_flat(store):
    class Long:
        left = 300_000_000

        def read(self, size):
            part = min(size, self.left)
            self.left -= part
            return random.randbytes(part)
    tracemalloc.start()
    stored = upload(store, IMAGE, '0' * 16, Long(), 0, 'sha512')
    written = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    for _ in ImageReader(store, IMAGE, stored.manifest,
                         NoSource()).read()[0]:
        pass
    read = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert written < 128 << 20 and read < 128 << 20


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / 'format').write_text('something else\n')
    with pytest.raises(errors.StoreUnusable, match='something else'):
        ChunkStore(tmp_path)


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(errors.StoreUnusable, match='geo_store_datadir'):
        ChunkStore(tmp_path / 'file')


def test_an_index_of_another_version_is_refused(store):
    store.index.query('PRAGMA user_version=99')
    with pytest.raises(errors.StoreUnusable, match='version 99'):
        ChunkStore(store.path)


def test_a_pure_python_chunker_is_refused(tmp_path, monkeypatch):
    class Fallback:
        __module__ = 'pyfastcdc.py'
    monkeypatch.setattr(chunker.pyfastcdc, 'FastCDC', Fallback)
    with pytest.raises(errors.StoreUnusable, match='pure-Python'):
        ChunkStore(tmp_path / 'c')


def test_a_reader_that_lacks_something_fetches_ahead(store, tmp_path):
    """Not window by window: each request costs a round trip."""
    data = data_of(8_000_000, holes=False)
    good = ChunkStore(tmp_path / 'good')
    stored = put(good, data)
    asked = []

    class Source:
        def ensure(self, image_id, manifest, names):
            asked.append(len(names))
            store.keep_copy(image_id, manifest, '')
            found, _ = good.view([IMAGE], manifest).load(names)
            session = store.session()
            for name in session.unknown(names):
                session.put(name, *packs.compress(found[name]),
                            len(found[name]))
            session.commit()
    assert get(store, stored, source=Source()) == data
    assert max(asked) > 60 and len(asked) < 10
    good.close()
