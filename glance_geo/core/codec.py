# SPDX-License-Identifier: Apache-2.0
"""Record <-> bytes, with a version marker.

Layout: one byte of format version, then a MessagePack map. Dots name their
incarnation by its place in the context's list, since incarnations are long
and few. Entries that this release does not know are kept as they came.

Every version, also of later releases, has ``k``, ``i``, ``b`` and ``c`` (kind,
id, birth, context) in such a map: a state of a newer version is *sealed*, kept
and passed on whole, beside what this release reads.
"""

from typing import Any

import msgpack

from glance_geo.core import errors
from glance_geo.core.records import (
    PENDING,
    Birth,
    Record,
    Sealed,
    Sibling,
    number,
)

VERSION = 1
_KNOWN = frozenset(('k', 'i', 'b', 'c', 'f', 'p', 's'))
# Entries of a record that are read elsewhere than here.
_UNDERSTOOD = frozenset((*_KNOWN, 'moved_from', 'replaces'))


def encode(record: Record) -> bytes:
    """Return the record's stored form; a pending write stays pending.

    Equal records give equal bytes: sites compare digests of them.
    """
    incarnations = sorted(record.context)
    place = {name: index for index, name in enumerate(incarnations)}
    pending = next((name for name, counter in record.context.items()
                    if counter == PENDING), None)
    document: dict[str, Any] = dict(sorted(record.extra.items()))
    document.update(
        k=record.kind, i=record.id,
        b=(None if record.birth is None else
           [record.birth.hlc, record.birth.site, record.birth.nonce]),
        c=[[name, record.context[name]] for name in incarnations],
        f={name: [[place[dot[0]], dot[1], value.hlc, value.data]
                  for dot, value in sorted(siblings.items(),
                                           key=lambda item: item[0])]
           for name, siblings in sorted(record.fields.items())})
    if pending is not None:
        document['p'] = pending
    if record.sealed:
        document['s'] = [part.value for part in record.sealed]
    return bytes([VERSION]) + msgpack.packb(document, use_bin_type=True)


def decode(value: bytes, stamp: int = 0) -> Record:
    """Return the record of a stored form.

    :param stamp: the number that the engine gave the last local write
    :raises RecordCorrupt: not a record at all
    """
    if not value:
        raise errors.RecordCorrupt('empty record')
    if value[0] > VERSION:
        return _sealed(value)
    if value[0] < 1:
        raise errors.RecordCorrupt(f'no record has version {value[0]}')
    try:
        document = msgpack.unpackb(value[1:], raw=False,
                                   strict_map_key=False)
        incarnations = [name for name, _ in document['c']]
        record = Record(
            document['k'], document['i'],
            None if document['b'] is None else Birth(*document['b']),
            {name: counter for name, counter in document['c']},
            {name: {(incarnations[site], counter): Sibling(hlc, data)
                    for site, counter, hlc, data in siblings}
             for name, siblings in document['f'].items()},
            {name: entry for name, entry in document.items()
             if name not in _KNOWN},
            tuple(_sealed(bytes(part)).sealed[0]
                  for part in document.get('s', ())))
        pending = document.get('p')
    except Exception as error:  # any malformed input, whatever it trips over
        raise errors.RecordCorrupt(
            f'record does not parse: {type(error).__name__}: {error}'
        ) from error
    if pending is not None:
        number(record, pending, stamp)
    return record


def _sealed(value: bytes) -> Record:
    """Return a record of what can be known of a newer version's state.

    :raises RecordTooNew: not even that
    """
    version = value[0]
    try:
        document = msgpack.unpackb(value[1:], raw=False,
                                   strict_map_key=False)
        seen = tuple(sorted((name, counter)
                            for name, counter in document['c']))
        if 'p' in document:
            raise ValueError('it has a write without a number')
        return Record(
            document['k'], document['i'],
            None if document['b'] is None else Birth(*document['b']),
            sealed=(Sealed(value, version, seen),))
    except Exception as error:  # any input, whatever it trips over
        raise errors.RecordTooNew(
            f'record version {version} does not parse; this release reads '
            f'{VERSION}: {error}') from error


def not_understood(record: Record) -> list[str]:
    """Return the names of what this release can't read of a record."""
    return [*(f'record version {part.version}' for part in record.sealed),
            *sorted(name for name in record.extra
                    if name not in _UNDERSTOOD)]
