# SPDX-License-Identifier: Apache-2.0
"""Record <-> bytes, with a version marker.

Layout: one byte of format version, then a MessagePack map. Dots name their
incarnation by its place in the context's list, since incarnations are long
and few. Entries that this release does not know are kept as they came.
"""

from typing import Any

import msgpack

from glance_geo.core import errors
from glance_geo.core.records import PENDING, Birth, Record, Sibling, number

VERSION = 1
_KNOWN = frozenset(('k', 'i', 'b', 'c', 'f', 'p'))


def encode(record: Record) -> bytes:
    """Return the record's stored form; a pending write stays pending.

    Equal records give equal bytes: sites compare digests of them.
    """
    incarnations = sorted(record.context)
    place = {name: index for index, name in enumerate(incarnations)}
    pending = next((name for name, counter in record.context.items()
                    if counter == PENDING), None)
    document: dict[str, Any] = dict(record.extra)
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
    return bytes([VERSION]) + msgpack.packb(document, use_bin_type=True)


def decode(value: bytes, stamp: int = 0) -> Record:
    """Return the record of a stored form.

    :param stamp: the number that the engine gave the last local write
    :raises RecordTooNew: written by a release that this one can't read
    :raises RecordCorrupt: not a record at all
    """
    if not value:
        raise errors.RecordCorrupt('empty record')
    if value[0] != VERSION:
        raise errors.RecordTooNew(
            f'record version {value[0]}; this release reads {VERSION}')
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
             if name not in _KNOWN})
        pending = document.get('p')
    except Exception as error:  # any malformed input, whatever it trips over
        raise errors.RecordCorrupt(
            f'record does not parse: {type(error).__name__}: {error}'
        ) from error
    if pending is not None:
        number(record, pending, stamp)
    return record
