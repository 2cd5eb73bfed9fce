# SPDX-License-Identifier: Apache-2.0
"""Real Debian disk images, made once and cached (tools/make-images)."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.functional.labs import TOOLS

CACHE = TOOLS.parent / '.cache' / 'images'
NEEDED = ('mmdebstrap', 'debugfs', 'mke2fs', 'qemu-img')


@pytest.fixture(scope='module')
def images():
    path = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
    missing = [tool for tool in NEEDED if not shutil.which(tool, path=path)]
    if missing:
        pytest.skip(f'making images needs {", ".join(missing)}: apt-get '
                    f'install mmdebstrap qemu-utils e2fsprogs')
    done = subprocess.run(
        [sys.executable, str(TOOLS / 'make-images'), '--dir', str(CACHE),
         'web', 'web-updated', 'minimal-qcow2'],
        capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f'no images can be made here: {done.stderr.strip()}')
    return {name: CACHE / name for name in (
        'web.raw', 'web-updated.raw', 'minimal-qcow2.qcow2')}


def create(client, path, disk_format='raw'):
    image = client.create(path.name, disk_format=disk_format)
    with open(path, 'rb') as file:
        assert client.upload(image, file).status_code == 204
    return image


def read_hash(client, image):
    digest = hashlib.sha512()
    with client.http.stream('GET', f'/v2/images/{image}/file') as answer:
        assert answer.status_code == 200
        for piece in answer.iter_bytes():
            digest.update(piece)
    return digest.hexdigest()


def moved(lab, client, image):
    """Return the bytes that crossed while an image was read, checked."""
    client.wait_active(image)
    shown = client.show(image)
    before = lab.bytes()['paris-rennes']
    assert read_hash(client, image) == shown['os_hash_value']
    return lab.bytes()['paris-rennes'] - before


def test_p5_an_updated_debian_moves_what_changed(lab, sites, images):
    paris, rennes, _ = sites
    first = moved(lab, rennes, create(paris, images['web.raw']))
    size = Path(images['web.raw']).stat().st_size
    assert first < size / 4
    second = moved(lab, rennes, create(paris, images['web-updated.raw']))
    assert second < first / 4


def test_a_qcow2_of_debian_is_read_elsewhere(lab, sites, images):
    paris, rennes, _ = sites
    assert moved(lab, rennes, create(
        paris, images['minimal-qcow2.qcow2'], 'qcow2')) > 0
