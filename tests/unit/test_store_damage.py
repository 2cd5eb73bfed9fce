# SPDX-License-Identifier: Apache-2.0
"""Damage to a chunk store is found, named, and never served (P1, P2)."""

import random
import sqlite3

import pytest

from glance_geo.core import errors
from glance_geo.core.manifest import Extent, ManifestBuilder, name_of
from glance_geo.store import check, packs, rebuild, references
from glance_geo.store.chunkstore import ChunkStore
from glance_geo.store.references import COPY
from tests.unit.test_chunkstore import IMAGE, OTHER, data_of, get, put
from tests.unit.test_chunkstore import store as store  # noqa: F401
from tests.unit.test_store_upkeep import (
    THIRD,
    copied,
    entry_at,
    flip,
    problems,
    upload_as,
)


def test_p2_check_finds_every_flipped_bit_of_the_data(store, rng):
    stored = put(store, data_of(1_000_000, holes=False))
    path, entry = entry_at(store, rng.randrange(10))
    flip(path, entry.offset + rng.randrange(entry.stored))
    found = problems(store, share=1.0)
    assert [kind for kind, _ in found] == ['chunk', 'image']
    assert 'set aside' in found[0][1] and '1 of' in found[1][1]
    with pytest.raises(errors.BitsUnavailable):
        get(store, stored)


def test_p2_check_finds_missing_and_truncated_packs(store):
    put(store, data_of(500_000, holes=False))
    (path,) = store.pack_files()
    with open(path, 'r+b') as file:
        file.truncate(200_000)
    found = problems(store)
    assert found[0][0] == 'pack' and 'cut short' in found[0][1]
    put(store, data_of(100_000, 2, holes=False), OTHER)
    for each in store.pack_files():
        each.unlink()
    assert [kind for kind, _ in problems(store)].count('pack') == 2


def test_check_tells_a_torn_end_from_damage(store):
    """An end that was never synced is nobody's; a header before it is."""
    put(store, data_of(500_000, holes=False))
    path, entry = entry_at(store, 3)
    with open(path, 'ab') as file:
        file.write(bytes(5000))
    assert problems(store, share=1.0) == []
    flip(path, entry.offset - 10)
    assert [kind for kind, _ in problems(store)] == ['pack']


def test_check_of_a_share_reads_a_share(store, monkeypatch):
    put(store, data_of(3_000_000, holes=False))
    read = []
    monkeypatch.setattr(check, '_verify',
                        lambda *arguments: read.append(arguments) and None)
    list(check.check(store, share=0.3, seed=5))
    total = store.index.totals()[0]
    assert 0.1 * total < len(read) < 0.6 * total


@pytest.mark.parametrize('lost', ['index', 'garbage'])
def test_p1_the_index_is_made_anew_from_the_packs(store, lost, tmp_path):
    data = data_of(800_000)
    first = upload_as(store, data, IMAGE, 'red')
    upload_as(store, data, OTHER, 'blue')
    public = upload_as(store, data[:300_000], THIRD, '')
    # A copy is known from metadata alone.
    other = ChunkStore(tmp_path / 'other')
    copy = put(other, data_of(250_000, 4, False))
    copied(other, store, copy.manifest)
    store.close()
    if lost == 'index':
        store.folder.index.unlink()
    else:
        for path in store.path.glob('index.db-*'):
            path.unlink()
        store.folder.index.write_bytes(random.randbytes(50_000))
        with pytest.raises(errors.StoreUnusable, match='rebuild-index'):
            ChunkStore(store.path)
    done = rebuild.rebuild(store.path, '', [
        rebuild.Listed(THIRD, copy.manifest, COPY, 'red'),
        rebuild.Listed(OTHER, bytes(32), COPY, 'red')])
    assert (done.images, done.unknown, done.damaged) == (3, 2, 0)
    again = ChunkStore(store.path)
    assert {(r.image, again.index.project(r.scope), r.nonce)
            for r in again.refs.all()} == {
                (IMAGE, 'red', '0' * 16), (OTHER, 'blue', '0' * 16),
                (THIRD, 'red', COPY), (THIRD, 'red', '0' * 16)}
    again.collect()
    assert not problems(again, share=1.0)
    for image in (IMAGE, OTHER):
        assert get(again, first, image=image) == data
    assert get(again, public, image=THIRD) == data[:300_000]
    assert get(again, copy, image=THIRD) == data_of(250_000, 4, False)
    again.compact()
    assert get(again, first) == data
    again.close()


def test_a_rebuild_beside_a_writer_is_refused(store):
    session = store.session()
    with pytest.raises(errors.StoreUnusable, match='in use'):
        rebuild.rebuild(store.path, '', [])
    session.abort()


def test_a_rebuild_goes_past_damaged_headers(store):
    data = data_of(900_000, holes=False)
    stored = put(store, data)
    path, entry = entry_at(store, 5)
    flip(path, entry.offset - packs.HEADER_BYTES + 39)   # the stored length
    store.close()
    store.folder.index.unlink()
    assert rebuild.rebuild(store.path, '', [rebuild.Listed(
        IMAGE, stored.manifest, '0' * 16, '')]).damaged == 1
    again = ChunkStore(store.path)
    found, missing = again.view([IMAGE], stored.manifest).load(
        [e.name for e in packs.entries(path)])
    assert not missing
    assert [t for k, t in problems(again) if k == 'image'] == [
        f'1 of {len(found)} chunks are missing']


def test_p7_a_reference_among_image_bytes_is_none(store):
    forged = references.blob(OTHER, bytes(32), '0' * 16, 'red')
    put(store, forged)
    store.close()
    store.folder.index.unlink()
    rebuild.rebuild(store.path, '', [])
    assert [r.image for r in ChunkStore(store.path).refs.all()] == [IMAGE]


# -- bad input ---------------------------------------------------------------
def crafted(store, root, *parts):
    """Store a manifest whose bytes are as given."""
    session = store.session()
    for part in parts:
        session.put_blob(part)
    name = session.put_blob(root)
    session.commit((IMAGE, name, '0' * 16))

    class Stored:
        manifest = name
    return Stored


def test_p2_manifests_that_lie_are_refused(store):
    chunk = random.randbytes(1000)
    builder = ManifestBuilder()
    (segment,) = [*builder.add(Extent(1000, name_of(chunk))),
                  *builder.finish()]
    honest = builder.root()
    for root, text in (
            # says 2000 bytes, its segment covers 1000
            (honest[:4] + (2000).to_bytes(8, 'little') + honest[12:],
             'another size'),
            # names the chunk as its segment
            (honest.replace(name_of(segment), name_of(chunk)),
             'not the segment'),
            # the segment twice, with the size of once
            (honest[:12] + (2).to_bytes(4, 'little') + honest[16:] * 2,
             'another size')):
        stored = crafted(store, root, segment, chunk)
        with pytest.raises(errors.ManifestInvalid, match=text):
            get(store, stored)
    # It can't hold its own name; naming another root instead is no segment.
    inner = honest
    outer = honest[:16] + honest[16:].replace(
        name_of(segment), name_of(inner)).replace(
            len(segment).to_bytes(4, 'little'),
            len(inner).to_bytes(4, 'little'))
    with pytest.raises(errors.ManifestInvalid, match='not the segment'):
        get(store, crafted(store, outer, inner, segment, chunk))


def test_p2_a_chunk_longer_than_its_manifest_says_is_refused(store):
    big = bytes(range(256)) * 400
    builder = ManifestBuilder()
    parts = [*builder.add(Extent(1000, name_of(big))), *builder.finish()]
    stored = crafted(store, builder.root(), big, *parts)
    with pytest.raises(errors.ManifestInvalid, match='102400'):
        get(store, stored)


def test_full_index_is_named(tmp_path):
    store = ChunkStore(tmp_path / 'c')
    error = sqlite3.OperationalError('database or disk is full')
    error.sqlite_errorname = 'SQLITE_FULL'
    assert isinstance(store.index._failure(error), errors.StoreFull)
