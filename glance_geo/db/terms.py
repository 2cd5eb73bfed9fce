# SPDX-License-Identifier: Apache-2.0
"""Index terms of records: pure functions from a record to its positions.

Terms order bytewise as their values do, with None first, and no two records
share one (they end in the record's id), so that a page can go on behind the
last term of the one before. Image sort terms
carry ``created_at`` and ``id`` behind the value, which is how Glance breaks
ties, so that one walk of an index yields a list in its final order.
"""

from collections.abc import Iterator
from typing import Any

from glance_geo.core import clock
from glance_geo.core.births import NO_SITE
from glance_geo.core.interfaces import Term
from glance_geo.core.records import PENDING, Record
from glance_geo.core.rules import shown
from glance_geo.db import rows

SEEN = 'seen/'
CHANGED = 'changed'
IMAGE_SORT_KEYS = ('name', 'status', 'container_format', 'disk_format',
                   'size', 'id', 'created_at', 'updated_at')
_SIGN = 1 << 63


def ordered(*values: Any) -> bytes:
    """Return bytes that order as the values do, compared left to right."""
    parts = []
    for value in values:
        if value is None:
            parts.append(b'\0')
        elif isinstance(value, int):
            parts.append(b'\1' + (value + _SIGN).to_bytes(8, 'big'))
        else:
            text = str(value).encode().replace(b'\0', b'\0\1')
            parts.append(b'\1' + text + b'\0\0')
    return b''.join(parts)


def after(prefix: bytes) -> bytes:
    """Return the first term past all those that begin with a prefix."""
    return prefix + b'\xff' * 24


def kind_index(kind: str) -> str:
    return f'kind/{kind}'


def of(record: Record, numbered: bool = True) -> Iterator[Term]:
    """Yield every term under which a record is indexed.

    :param numbered: by the writes that it has seen, for the sync between
        sites; otherwise by the clock reading of its last change
    """
    yield Term(kind_index(record.kind), record.id.encode())
    if numbered:
        yield from _seen(record)
    else:
        last = max((value.hlc for siblings in record.fields.values()
                    for value in siblings.values()), default=0)
        # With the key: many records may change within a millisecond.
        yield Term(CHANGED, b'%016x/%s' % (clock.milliseconds(last),
                                           record.key.encode()))
    by_kind = _BY_KIND.get(record.kind)
    if by_kind is not None:
        yield from by_kind(record)


def has(record: Record, index: str, term: bytes) -> bool:
    """Say whether a record is to be found at a position of an index."""
    return any(found.index == index and found.value == term
               for found in of(record, numbered=False))


def _seen(record: Record) -> Iterator[Term]:
    for incarnation, counter in record.context.items():
        if incarnation.startswith(NO_SITE):
            continue
        if counter == PENDING:
            yield Term(SEEN + incarnation, b'', stamped=True)
        else:
            yield Term(SEEN + incarnation, b'%016x' % counter)


def _image(record: Record) -> Iterator[Term]:
    values = rows.image_columns(record.id, shown(record))
    if values['deleted']:
        yield Term('image.deleted', record.id.encode())
    else:
        for key in IMAGE_SORT_KEYS:
            yield Term(f'image.{key}', ordered(
                values[key], values['created_at'], record.id))
        yield Term('image.owner', ordered(values['owner'], record.id))
    if 'moved_from' in record.extra:
        yield Term('image.moved_from',
                   ordered(record.extra['moved_from'], record.id))
    for member in rows.memberships(record):
        yield Term('image.member', ordered(member['member'], record.id))
        yield Term('image.member_id', ordered(member['id']))


def _task(record: Record) -> Iterator[Term]:
    values = shown(record)
    if values.get('image_id'):
        yield Term('task.image', ordered(values['image_id'], record.id))


def _namespace(record: Record) -> Iterator[Term]:
    values = shown(record)
    if 'id' in values:
        yield Term('namespace.id', ordered(values['id']))


_BY_KIND = {'image': _image, 'task': _task, 'namespace': _namespace}
