# SPDX-License-Identifier: Apache-2.0
"""The upload's log says what conversion or a trim would have saved."""

import random
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glance_geo.core.chunker import Chunker, Hole
from glance_geo.core.manifest import name_of
from glance_geo.store import advice


def reader(data):
    return lambda start, length: data[start:start + length]


def text_of(size, seed=1):
    rng = random.Random(seed)
    words = [rng.randbytes(4).hex() for _ in range(500)]
    return ' '.join(rng.choices(words, k=size // 8)).encode()[:size]


def qcow2(tmp_path, data, *options):
    if not shutil.which('qemu-img'):
        pytest.skip('needs qemu-utils')
    raw, made = tmp_path / 'i.raw', tmp_path / 'i.qcow2'
    raw.write_bytes(data)
    subprocess.run(['qemu-img', 'convert', '-O', 'qcow2', *options, str(raw),
                    str(made)], check=True)
    return made.read_bytes()


@pytest.mark.parametrize('options', [
    ('-c',), ('-c', '-o', 'compression_type=zstd'),
    ('-c', '-o', 'cluster_size=4096')])
def test_compressed_qcow2_that_others_share(tmp_path, options):
    guest = text_of(6_000_000)
    data = qcow2(tmp_path, guest, *options)
    facts = advice.Facts(len(data), len(data), len(data))
    alone = advice.advise(facts, reader(data), lambda names: set())
    assert 'image_conversion' in alone
    chunker = Chunker()
    known = {name_of(p) for p in [*chunker.feed(guest), *chunker.finish()]
             if not isinstance(p, Hole)}
    shared = advice.advise(facts, reader(data),
                           lambda names: known & set(names))

    def said(text):
        return int(text.partition('about ')[2].split()[0])
    assert said(shared) < said(alone) or said(alone) < 3


def test_plain_qcow2_and_plain_data_get_no_advice(tmp_path):
    for data in (qcow2(tmp_path, text_of(2_000_000)), text_of(500_000), b'',
                 b'QFI\xfb', b'QFI\xfb' + bytes(200)):
        facts = advice.Facts(len(data), len(data), len(data))
        assert advice.advise(facts, reader(data), lambda names: set()) is None


@given(st.binary(max_size=2000))
def test_garbage_behind_the_magic_is_no_matter(data):
    data = b'QFI\xfb\0\0\0\3' + data
    facts = advice.Facts(len(data), len(data), len(data))
    try:
        advice.advise(facts, reader(data), lambda names: set())
    except (ValueError, MemoryError):
        raise AssertionError('it must not depend on the bytes') from None


@pytest.mark.parametrize('partition', [None, 'mbr', 'gpt'])
def test_freed_blocks_of_ext4(tmp_path, partition):
    mke2fs = shutil.which('mke2fs', path='/sbin:/usr/sbin:/bin:/usr/bin')
    if not mke2fs:
        pytest.skip('needs e2fsprogs')
    path = tmp_path / 'fs'
    subprocess.run([mke2fs, '-q', '-t', 'ext4', str(path), '128M'],
                   check=True)
    data = path.read_bytes()
    if partition == 'mbr':
        table = bytearray(512)
        table[446 + 4] = 0x83
        table[446 + 8:446 + 12] = (2048).to_bytes(4, 'little')
        table[510:] = b'\x55\xaa'
        data = bytes(table) + bytes(2047 * 512) + data
    elif partition == 'gpt':
        head = bytearray(92)
        head[:8] = b'EFI PART'
        head[72:80] = (2).to_bytes(8, 'little')
        head[80:88] = (128).to_bytes(4, 'little') * 2
        entry = bytearray(128)
        entry[0] = 1
        entry[32:40] = (2048).to_bytes(8, 'little')
        data = (bytes(510) + b'\x55\xaa' + bytes(head) + bytes(420)
                + bytes(entry) + bytes(2046 * 512 - 128) + data)
    full = advice.Facts(len(data), 100 << 20, 40 << 20)
    assert 'fstrim' in advice.advise(full, reader(data), lambda n: set())
    trimmed = advice.Facts(len(data), 10 << 20, 4 << 20)
    assert advice.advise(trimmed, reader(data), lambda n: set()) is None
