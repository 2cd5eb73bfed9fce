# SPDX-License-Identifier: Apache-2.0
"""P1, P2, P8: writers, readers, collectors and compactors of one chunk store
are killed at random instants, and the power is cut; what was acknowledged
reads back with its hash, and one collection leaves nothing."""

import hashlib
import multiprocessing
import os
import shutil
import subprocess
import threading
import time

import pytest

from glance_geo.store import check
from glance_geo.store.chunkstore import ChunkStore
from glance_geo.store.download import ImageReader, NoSource
from tests.faults import storeworkers

_FORK = multiprocessing.get_context('forkserver')
_FORK.set_forkserver_preload(['tests.faults.storeworkers'])


class Workers:
    """The processes, and what they told.

    :ivar acknowledged: image -> (manifest, number of its data)
    :ivar deleted: images whose deletion had begun
    """

    def __init__(self, folder, rng):
        self._folder, self._rng = folder, rng
        self.acknowledged, self.deleted, self.bad = {}, set(), []
        self._out, self._in = os.pipe()
        threading.Thread(target=self._listen, daemon=True).start()
        self._running = [(role, self._start(role))
                         for role in storeworkers.ROLES]

    def _start(self, role):
        process = _FORK.Process(target=_run, daemon=True, args=(
            role, str(self._folder), multiprocessing.reduction.DupFd(
                self._in), self._rng.randrange(2 ** 32)))
        process.start()
        return process

    def _listen(self):
        with os.fdopen(self._out) as lines:
            for line in lines:
                kind, image, *rest = line.split(None, 2)
                if kind == 'ack':
                    manifest, number = rest[0].split()
                    self.acknowledged[image] = (bytes.fromhex(manifest),
                                                int(number))
                elif kind == 'del':
                    self.deleted.add(image)
                else:
                    self.bad.append(line)

    def kill_one(self):
        place = self._rng.randrange(len(self._running))
        role, process = self._running[place]
        process.kill()
        process.join()
        self._running[place] = role, self._start(role)

    def stop(self):
        for _, process in self._running:
            process.kill()
            process.join()
        os.close(self._in)

    def expected(self):
        return {image: found for image, found in self.acknowledged.items()
                if image not in self.deleted}


def _run(role, folder, pipe, seed):
    storeworkers.run(role, folder, pipe.detach(), seed)


def read_back(store, expected):
    for image, (manifest, number) in expected.items():
        got = hashlib.sha512()
        for piece in ImageReader(store, image, manifest,
                                 NoSource()).read()[0]:
            got.update(piece)
        assert got.digest() == hashlib.sha512(
            storeworkers.data_of(number)).digest(), image


def nothing_left(store):
    for ref in store.refs.all():
        store.refs.drop(ref.image, ref.manifest, ref.nonce)
    store.collect()
    assert store.index.totals()[0] == 0
    assert store.pack_files() == []
    assert not list(store.folder.sessions.iterdir())
    for table in ('sessions', 'packs', 'damaged', 'refs', 'chunks'):
        assert store.index.query(f'SELECT * FROM {table}') == []  # noqa: S608


def kill(folder, rng, kills):
    workers = Workers(folder, rng)
    try:
        deadline = time.monotonic() + 60
        while not workers.acknowledged:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for _ in range(kills):
            # The random instant is what this test is about.
            time.sleep(rng.random() * 0.25)
            workers.kill_one()
    finally:
        workers.stop()
    assert not workers.bad
    store = ChunkStore(folder)
    expected = workers.expected()
    assert len(expected) > kills / 10, 'hardly anything was written'
    read_back(store, expected)
    store.collect()
    assert list(check.check(store, share=1.0)) == []
    read_back(store, expected)
    nothing_left(store)
    store.close()


def test_p1_p8_kills_of_everything_that_uses_the_store(tmp_path, rng):
    kill(tmp_path / 'chunks', rng, 30)


@pytest.mark.long
def test_p1_p8_many_kills_of_everything_that_uses_the_store(tmp_path, rng):
    kill(tmp_path / 'chunks', rng, 550)


class Disk:
    """A disk whose power can be cut: what was not synced is lost then.

    An ext4 file system in a file on Btrfs, which copies files at an instant.
    """

    def __init__(self, folder):
        self.folder = folder
        self._mounts = []
        outer = self._mount(self._file(folder / 'outer.img', 4096, 'btrfs'),
                            'outer')
        self._image = self._file(outer / 'disk.img', 256, 'ext4')
        self.path = self._mount(self._image, 'disk')
        self._cuts = 0

    @staticmethod
    def _file(path, mib, kind):
        with open(path, 'wb') as file:
            file.truncate(mib << 20)
        quiet = {'btrfs': ['-q'], 'ext4': ['-q', '-F']}[kind]
        subprocess.run([f'mkfs.{kind}', *quiet, str(path)], check=True,
                       capture_output=True, env={
                           **os.environ, 'PATH': f'{os.environ["PATH"]}'
                                                 ':/sbin:/usr/sbin'})
        return path

    def _mount(self, image, name):
        point = self.folder / name
        point.mkdir()
        subprocess.run(['mount', '-o', 'loop', str(image), str(point)],
                       check=True)
        self._mounts.append(point)
        return point

    def after_a_cut(self):
        """Return the disk as it would be had the power been cut now."""
        self._cuts += 1
        copy = self._image.with_name(f'cut{self._cuts}.img')
        subprocess.run(['cp', '--reflink=always', str(self._image),
                        str(copy)], check=True)
        return self._mount(copy, f'cut{self._cuts}')

    def forget_cut(self):
        point = self._mounts.pop()
        subprocess.run(['umount', str(point)], check=True)
        self._image.with_name(f'{point.name}.img').unlink()

    def close(self):
        for point in reversed(self._mounts):
            subprocess.run(['umount', '-l', str(point)], check=False)


@pytest.fixture
def disk(tmp_path):
    if os.geteuid() != 0:
        pytest.skip('mounting needs root')
    if not shutil.which('mkfs.btrfs', path='/sbin:/usr/sbin:/usr/bin'):
        pytest.skip('needs btrfs-progs')
    try:
        made = Disk(tmp_path)
    except (subprocess.CalledProcessError, OSError) as error:
        pytest.skip(f'this machine mounts no files: {error}')
    yield made
    made.close()


def cut(disk, rng, cuts):
    workers = Workers(disk.path / 'chunks', rng)
    seen = 0
    try:
        for _ in range(cuts):
            before = len(workers.acknowledged)
            deadline = time.monotonic() + 60
            while len(workers.acknowledged) < before + 2:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(rng.random() * 0.3)
            # What is told until now must be there; what is being deleted
            # by the time of the cut may be there or not.
            expected = workers.expected()
            after = disk.after_a_cut()
            time.sleep(0.2)     # the pipe: deletions that had begun
            expected = {image: found for image, found in expected.items()
                        if image not in workers.deleted}
            store = ChunkStore(after / 'chunks')
            read_back(store, expected)
            store.collect()
            assert list(check.check(store, share=1.0)) == []
            read_back(store, expected)
            nothing_left(store)
            store.close()
            disk.forget_cut()
            seen += len(expected)
    finally:
        workers.stop()
    assert not workers.bad
    assert seen >= cuts


def test_p1_power_cuts_lose_nothing_acknowledged(disk, rng):
    cut(disk, rng, 4)


@pytest.mark.long
def test_p1_many_power_cuts_lose_nothing_acknowledged(disk, rng):
    cut(disk, rng, 60)
