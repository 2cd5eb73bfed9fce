# SPDX-License-Identifier: Apache-2.0
"""The chunk store of a node: chunks under their names, in a folder.

Several processes may use one folder. Writing happens in a *session*: chunks
become findable after ``flush`` and are kept for good by the reference that
``commit`` enters. A session whose process died is recognised by its lock.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from glance_geo.core import chunker, errors, manifest
from glance_geo.core.manifest import Extent, Manifest, SegmentRef
from glance_geo.store import collect, packs
from glance_geo.store.index import ChunkIndex
from glance_geo.store.packs import PackReader, PackWriter, Place

LOG = logging.getLogger(__name__)

_FORMAT = 'glance_geo chunk store 1\n'
# Locks and fsync of these can't be trusted across hosts.
_NETWORK = frozenset((
    'nfs', 'nfs4', 'cifs', 'smb3', 'smbfs', 'ceph', 'glusterfs', 'afs',
    'fuse.sshfs', 'fuse.glusterfs', 'fuse.ceph', 'fuse.s3fs', 'lustre',
    'beegfs', 'gpfs', 'ocfs2', 'gfs2'))
# Room that writers may not take: the index and collections need it. A writer
# looks again each time it has written so much.
_RESERVE = 32 * 1024 * 1024
_LOOK_AGAIN = 8 * 1024 * 1024
_FLUSH_CHUNKS = 8192


def _file_system(path: Path) -> str:
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
def _disk_errors(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise errors.StoreFull(f'{what}: {error.strerror}') from error
        raise errors.StoreUnusable(f'{what}: {error.strerror}') from error


class ChunkStore:
    """Chunks in a folder.

    :raises StoreUnusable: the folder is not writable, lies on a network file
        system, or holds something else
    """

    def __init__(self, folder: str | os.PathLike[str]):
        chunker.check_library()
        self.folder = Path(folder).absolute()
        self._packs = self.folder / 'packs'
        self._sessions = self.folder / 'sessions'
        with _disk_errors(f'geo_store_datadir {self.folder}'):
            for path in (self.folder, self._packs, self._sessions):
                path.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._check_format()
        kind = _file_system(self.folder)
        if kind in _NETWORK:
            raise errors.StoreUnusable(
                f'geo_store_datadir {self.folder} is on {kind}: a chunk '
                f'store needs a local file system')
        self.index = ChunkIndex(self.folder / 'index.db')
        self._reader = PackReader(self._packs)

    def _check_format(self) -> None:
        marker = self.folder / 'format'
        if not marker.exists():
            if (self.folder / 'index.db').exists():
                raise errors.StoreUnusable(
                    f'geo_store_datadir {self.folder}: no format marker')
            temporary = self.folder / f'format.{os.getpid()}'
            temporary.write_text(_FORMAT)
            temporary.replace(marker)
        found = marker.read_text()
        if found != _FORMAT:
            raise errors.StoreUnusable(
                f'geo_store_datadir {self.folder} holds {found.strip()!r}; '
                f'this release reads {_FORMAT.strip()!r}')

    def close(self) -> None:
        self._reader.close()

    # -- reading ----------------------------------------------------------
    def missing(self, names: Iterable[bytes]) -> list[bytes]:
        """Return those of the chunks that are not here, each once."""
        names = list(dict.fromkeys(names))
        present = self.index.places(names)
        return [name for name in names if name not in present]

    def read(self, name: bytes, place: Place | None = None) -> bytes:
        """Return a chunk's bytes, verified.

        A corrupt chunk is forgotten, so that it can be fetched again.

        :param place: as ``index.places`` told; saves the look-up
        :raises ChunkMissing: not here, or set aside just now as corrupt
        """
        codec, stored, raw = self.read_stored(name, place)
        try:
            return packs.unpack(name, codec, stored, raw)
        except errors.ChunkCorrupt as error:
            LOG.error('Chunk store %s: %s; set aside', self.folder, error)
            found = self.index.places([name]).get(name)
            if found is not None:
                self.index.forget(name, found)
            raise errors.ChunkMissing(str(error)) from error

    def read_stored(self, name: bytes, place: Place | None = None,
                    ) -> tuple[int, bytes, int]:
        """Return (codec, stored bytes, raw length), not verified."""
        place = place or self.index.places([name]).get(name)
        if place is None:
            raise errors.ChunkMissing(f'chunk {name.hex()} is not here')
        try:
            return place.codec, self._reader.read(place), place.raw
        except errors.ChunkMissing:
            fresh = self.index.places([name]).get(name)
            if fresh is not None and fresh != place:    # moved meanwhile
                return fresh.codec, self._reader.read(fresh), fresh.raw
            if fresh is not None:
                LOG.error('Chunk store %s: chunk %s lost its bytes; set '
                          'aside', self.folder, name.hex())
                self.index.forget(name, fresh)
            raise

    def manifest(self, name: bytes) -> Manifest:
        """Return a parsed root.

        :raises ChunkMissing: the root is not here
        :raises ManifestInvalid: it does not add up
        """
        return manifest.parse_root(self.read(name))

    def segment(self, ref: SegmentRef) -> list[Extent]:
        """Return a segment's extents; raises as ``manifest`` does."""
        return manifest.parse_segment(ref, self.read(ref.name))

    def held(self, name: bytes) -> tuple[int, int, int]:
        """Return how much of a manifest is here.

        The manifest's own parts count as chunks, so that an image of zeros
        can be whole too.

        :returns: (chunks here, chunks in all, stored bytes here); chunks in
            all is 0 while the manifest itself is not whole
        """
        names = {name}
        try:
            root = self.manifest(name)
            for ref in root.segments:
                names.add(ref.name)
                names.update(e.name for e in self.segment(ref) if e.name)
            total = len(names)
        except (errors.ChunkMissing, errors.ManifestInvalid):
            total = 0
        places = self.index.places(names)
        return (len(places), total,
                sum(place.stored for place in places.values()))

    # -- references -------------------------------------------------------
    def keep_copy(self, image: str, name: bytes) -> None:
        """Keep the chunks of a manifest for an image whose bits come here."""
        self.index.keep_copy(image, name)

    def copies(self) -> set[tuple[str, bytes]]:
        """Return (image, manifest) of everything that is kept."""
        return {(image, name) for image, name, _ in self.index.refs()}

    def settle(self, image: str, listed: Collection[tuple[bytes, str]],
               deleted: bool) -> int:
        return collect.settle(self, image, listed, deleted)

    def collect(self) -> collect.Collected:
        return collect.collect(self)

    # -- writing ----------------------------------------------------------
    @staticmethod
    def compress(data: bytes) -> tuple[int, bytes]:
        """Return (codec, stored bytes) for ``WriteSession.put``."""
        return packs.compress(data)

    def session(self) -> WriteSession:
        """Begin writing; ``commit`` or ``abort`` the session.

        :raises StoreFull: only the reserve is left
        """
        self.check_room()
        with _disk_errors(str(self.folder)):
            return WriteSession(self)

    def check_room(self) -> None:
        """Refuse early what the disk would refuse late.

        :raises StoreFull: only the reserve is left
        """
        free = os.statvfs(self.folder)
        if free.f_bavail * free.f_frsize < _RESERVE:
            raise errors.StoreFull(
                f'{self.folder}: less than {_RESERVE >> 20} MiB free, which '
                f'are kept for deletions')

    def dead_sessions(self) -> list[str]:
        """Return the sessions whose process is gone."""
        return [path.name for path in self._sessions.iterdir()
                if path.suffix != packs.UNNAMED and not self.alive(path.name)]

    def alive(self, session: str) -> bool:
        """Say whether the process that began a session still runs."""
        try:
            with open(self._sessions / session, 'rb') as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            return False
        return False

    def remove_unnamed(self) -> None:
        """Remove what writers left that died as they began."""
        for folder in (self._packs, self._sessions):
            packs.remove_unnamed(folder)

    def remove_session_file(self, session: str) -> None:
        (self._sessions / session).unlink(missing_ok=True)

    def pack_files(self) -> list[Path]:
        return sorted(self._packs.glob('*.pack'))

    def remove_pack(self, pack: str) -> None:
        (self._packs / f'{pack}.pack').unlink(missing_ok=True)


class WriteSession:
    """One writer: an upload, or a fetch from other nodes."""

    def __init__(self, store: ChunkStore):
        self._store = store
        self.id = uuid.uuid4().hex
        self._lock = packs.locked_file(store._sessions / self.id)
        self._pack: PackWriter | None = None
        self._written: list[str] = []
        self._fresh: dict[bytes, Place] = {}
        self.stored_bytes = 0
        self.flushed = False
        self._look_at = _LOOK_AGAIN
        store.index.begin(self.id)

    def unknown(self, names: Sequence[bytes]) -> list[bytes]:
        """Return those of the chunks that must be put; pin the others."""
        asked = [name for name in dict.fromkeys(names)
                 if name not in self._fresh]
        present = self._store.index.pin_present(self.id, asked)
        return [name for name in asked if name not in present]

    def put(self, name: bytes, codec: int, stored: bytes, raw: int) -> None:
        """Append a chunk whose bytes were verified against its name.

        :raises StoreFull: no room; the session must be aborted
        """
        if name in self._fresh:
            return
        with _disk_errors(str(self._store.folder)):
            if self._pack is None:
                self._pack = PackWriter(self._store._packs)
                self._written.append(self._pack.name)
            self._fresh[name] = self._pack.append(name, codec, stored, raw)
        self.stored_bytes += len(stored)
        if self.stored_bytes >= self._look_at:
            self._look_at = self.stored_bytes + _LOOK_AGAIN
            self._store.check_room()
        if (self._pack.size >= packs.PACK_MAXIMUM
                or len(self._fresh) >= _FLUSH_CHUNKS):
            self.flush()

    def put_blob(self, data: bytes) -> bytes:
        """Store a manifest's part like a chunk; return its name."""
        name = manifest.name_of(data)
        if self.unknown([name]):
            self.put(name, *packs.compress(data), len(data))
        return name

    def flush(self) -> None:
        """Make what was put durable, and findable by everyone."""
        if not self._fresh or self._pack is None:
            return
        with _disk_errors(str(self._store.folder)):
            self._pack.sync()
        self._store.index.add(self.id, self._fresh)
        self.flushed = True
        self._fresh = {}
        if self._pack.size >= packs.PACK_MAXIMUM:
            self._pack.close()
            self._pack = None

    def commit(self, ref: tuple[str, bytes, str] | None = None) -> None:
        """Keep what was put: durable when this returns.

        :param ref: (image, manifest, nonce) that keeps it from collection
        """
        self.flush()
        self._store.index.finish(self.id, ref)
        self._end()

    def abort(self) -> None:
        """Give up what was not flushed; a collection removes the rest."""
        self._fresh = {}
        if self._pack is not None:
            self._pack.close()
        try:
            for pack in self._store.index.abandon(self.id, self._written):
                self._store.remove_pack(pack)
        finally:
            self._end()

    def _end(self) -> None:
        if self._pack is not None:
            self._pack.close()
            self._pack = None
        self._store.remove_session_file(self.id)
        self._lock.close()
