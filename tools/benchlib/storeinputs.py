# SPDX-License-Identifier: Apache-2.0
"""The images that the store benchmark writes and reads."""

import dataclasses
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

_BLOCK = 64 * 1024
_ZEROS = bytes(_BLOCK)
_TOOLS = Path(__file__).resolve().parents[1]
_NAMES = ('minimal', 'python', 'web', 'web-updated')
_COMPRESSED = 'python-qcow2-compressed'
# MiB free in each, so that a quarter of an image is not zero: as in the cloud
# images that distributions publish.
_FREE = 448


class Unavailable(Exception):
    """Something that the benchmark needs is not there."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Files, by what they stand for.

    :ivar first: on top of which ``updated`` is written
    :ivar all: the set whose stored bytes are compared
    """

    raw: Path
    first: Path
    updated: Path
    dense: Path
    qcow2: Path | None
    all: list[Path]


def _dense(source, path, seed):
    """Write the data of an image without its zeros, a quarter random."""
    rng = random.Random(seed)
    with open(source, 'rb') as file, open(path, 'wb') as out:
        number = 0
        while block := file.read(_BLOCK):
            if block != _ZEROS[:len(block)]:
                out.write(block)
                number += 1
                if number % 3 == 0:
                    out.write(rng.randbytes(_BLOCK))


def debian(folder, work, seed):
    """Return the images that tools/make-images made, or makes now.

    :raises Unavailable: they can't be made here
    """
    done = subprocess.run(
        [sys.executable, str(_TOOLS / 'make-images'), '--dir', str(folder),
         '--extra', str(_FREE), *_NAMES, _COMPRESSED],
        capture_output=True, text=True)
    if done.returncode:
        raise Unavailable(done.stderr.strip().splitlines()[-1])
    found = {name: folder / f'{name}.raw' for name in _NAMES}
    qcow2 = folder / f'{_COMPRESSED}.qcow2'
    dense = work / 'dense.raw'
    _dense(found['web'], dense, seed)
    return Inputs(found['web'], found['web'], found['web-updated'], dense,
                  qcow2, [*found.values(), qcow2])


def local(work, mib, seed):
    """Return an ext4 image of this machine's own files, and a changed one.

    :raises Unavailable: no e2fsprogs
    """
    tree, raw = work / 'tree', work / 'local.raw'
    tree.mkdir()
    taken = 0
    for path in sorted(Path('/usr/bin').iterdir()) + sorted(
            Path('/usr/lib/python3').rglob('*')):
        if path.is_file() and not path.is_symlink() and os.access(
                path, os.R_OK):
            taken += path.stat().st_size
            if taken > mib << 20:
                break
            target = tree / path.relative_to('/')
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    mke2fs = shutil.which('mke2fs', path=f'{os.environ["PATH"]}:/sbin:'
                                         '/usr/sbin')
    if not mke2fs:
        raise Unavailable('mke2fs is not installed (e2fsprogs)')
    subprocess.run([mke2fs, '-q', '-t', 'ext4', '-d', str(tree), str(raw),
                    f'{mib * 3}M'], check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(tree)
    updated, dense = work / 'local-updated.raw', work / 'dense.raw'
    rng = random.Random(seed)
    shutil.copyfile(raw, updated)
    with open(updated, 'r+b') as file:
        for _ in range(40):
            file.seek(rng.randrange(mib << 20))
            file.write(rng.randbytes(rng.randrange(1, 300_000)))
    _dense(raw, dense, seed)
    return Inputs(raw, raw, updated, dense, None, [raw, updated])
