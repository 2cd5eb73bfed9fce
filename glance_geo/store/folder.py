# SPDX-License-Identifier: Apache-2.0
"""The folder of a chunk store: whether it may be used, and how full it is."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from glance_geo.core import errors

FORMAT = 'glance_geo chunk store 2\n'
_UPGRADED = ('glance_geo chunk store 1\n',)
# Locks and fsync of these can't be trusted across hosts.
_NETWORK = frozenset((
    'nfs', 'nfs4', 'cifs', 'smb3', 'smbfs', 'ceph', 'glusterfs', 'afs',
    'fuse.sshfs', 'fuse.glusterfs', 'fuse.ceph', 'fuse.s3fs', 'lustre',
    'beegfs', 'gpfs', 'ocfs2', 'gfs2'))
# Room that writers may not take: the index and collections need it.
RESERVE = 32 * 1024 * 1024


def file_system(path: Path) -> str:
    """Return the type of the file system that holds a path."""
    best, kind = '', ''
    with open('/proc/self/mounts') as mounts:
        for line in mounts:
            _, point, found, *_ = line.split(' ')
            point = point.replace('\\040', ' ')
            if Path(point) in (path, *path.parents) and len(point) >= len(
                    best):
                best, kind = point, found
    return kind


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn what the system says into errors that name the folder."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise errors.StoreFull(f'{what}: {error.strerror}') from error
        raise errors.StoreUnusable(f'{what}: {error.strerror}') from error


def sync_folder(path: Path) -> None:
    """Return when the names in a folder are on stable storage."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class StoreFolder:
    """Paths in the folder, which is made if need be.

    :param owner: the one store that may use it (store and node); a folder
        that another one uses is refused
    :raises StoreUnusable: it is not writable, lies on a network file
        system, belongs to another store, or holds something else
    """

    def __init__(self, path: str | os.PathLike[str], owner: str):
        self.path = Path(path).absolute()
        self.packs = self.path / 'packs'
        self.sessions = self.path / 'sessions'
        self.index = self.path / 'index.db'
        with disk_errors(f'geo_store_datadir {self.path}'):
            for each in (self.path, self.packs, self.sessions):
                each.mkdir(mode=0o750, parents=True, exist_ok=True)
            kind = file_system(self.path)
            if kind in _NETWORK:
                raise errors.StoreUnusable(
                    f'geo_store_datadir {self.path} is on {kind}: a chunk '
                    f'store needs a local file system')
            self._check_format()
            if owner:
                self._check_owner(owner)

    def _put(self, name: str, text: str) -> None:
        temporary = self.path / f'{name}.{uuid.uuid4().hex}'
        with open(temporary, 'w') as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path / name)
        sync_folder(self.path)

    def _check_format(self) -> None:
        marker = self.path / 'format'
        # In this order: another process may be making the store right now.
        begun = self.index.exists()
        if not marker.exists():
            if begun:
                raise errors.StoreUnusable(
                    f'geo_store_datadir {self.path}: no format marker')
            self._put('format', FORMAT)
        found = marker.read_text()
        if found != FORMAT and found not in _UPGRADED:
            raise errors.StoreUnusable(
                f'geo_store_datadir {self.path} holds {found.strip()!r}; '
                f'this release reads {FORMAT.strip()!r}')

    def upgraded(self) -> None:
        """Say that an older release must not use the folder any more."""
        if (self.path / 'format').read_text() != FORMAT:
            with disk_errors(str(self.path)):
                self._put('format', FORMAT)

    def _check_owner(self, owner: str) -> None:
        marker = self.path / 'owner'
        if not marker.exists():
            self._put('owner', f'{owner}\n')
        found = marker.read_text().strip()
        if found != owner:
            raise errors.StoreUnusable(
                f'geo_store_datadir {self.path} belongs to store {found}, '
                f'this is {owner}: give each store a folder of its own. If '
                f'the node was renamed, remove {marker}')

    def check_index(self) -> None:
        """Refuse to begin an empty index beside packs.

        :raises StoreUnusable: saying how to make the index anew
        """
        packs = next(self.pack_paths(), None)
        if packs is not None and not self.index.exists():
            raise errors.StoreUnusable(
                f'{self.index} is missing, but there are packs: "glance-geo '
                f'store rebuild-index" makes it anew from them')

    def pack_paths(self) -> Iterator[Path]:
        return self.packs.glob('*.pack')

    def pack_bytes(self) -> int:
        """Return the size of all packs."""
        total = 0
        with os.scandir(self.packs) as found:
            for entry in found:
                try:
                    total += entry.stat().st_size
                except FileNotFoundError:
                    continue
        return total

    def free(self) -> int:
        """Return the bytes that writers may still take from the disk."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize - RESERVE
