# SPDX-License-Identifier: Apache-2.0
"""Files of records: what ``metadata export`` writes.

One zstd stream of frames, as between agents (``doc/source/formats.rst``): a
map with the format's name, version and the number of records, then encoded
records; the last frame is empty and says that the file is whole.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from glance_geo.core import codec, errors
from glance_geo.core.records import Record
from glance_geo.replication import wire

_FORMAT = 'glance-geo-metadata'
_VERSION = 1
_PIECE = 256 * 1024


def write(path: str, records: Iterable[Record], count: int) -> None:
    """Write records to a new file; it has its name only when it is whole.

    :raises ConfigurationInvalid: it can't be written
    """
    def frames() -> Iterator[bytes]:
        yield wire.pack({'format': _FORMAT, 'version': _VERSION,
                         'records': count})
        for record in records:
            yield codec.encode(record)
    part = Path(f'{path}.part')
    try:
        with open(part, 'wb', opener=_private) as file:
            for piece in wire.frames(frames(), b''):
                file.write(piece)
        part.replace(path)
    except OSError as error:
        raise errors.ConfigurationInvalid(
            f'{path}: {error.strerror}') from error


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)      # it holds all projects' images


def read(path: str) -> tuple[int, Iterator[Record]]:
    """Return how many records a file has, and the records.

    :raises ConfigurationInvalid: it is no such file, or cut short
    """
    try:
        file = open(path, 'rb')
    except OSError as error:
        raise errors.ConfigurationInvalid(
            f'{path}: {error.strerror}') from error
    frames = iter(wire.FrameReader(iter(lambda: file.read(_PIECE), b''),
                                   wire.RECORD_MAXIMUM))
    cut = errors.ConfigurationInvalid(
        f'{path} is cut short; what came before it is taken in')
    try:
        head = wire.unpack(next(frames))
        if head['format'] != _FORMAT or head['version'] != _VERSION:
            raise ValueError
    except errors.Unreachable as error:
        raise cut from error
    except (errors.GeoError, KeyError, TypeError, ValueError,
            StopIteration) as error:
        raise errors.ConfigurationInvalid(
            f'{path} is no file of "glance-geo metadata export" that this '
            f'release reads') from error

    def found() -> Iterator[Record]:
        with file:
            try:
                for frame in frames:
                    yield codec.decode(frame)
            except errors.Unreachable as error:
                raise cut from error
    return head['records'], found()
