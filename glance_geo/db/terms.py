# SPDX-License-Identifier: Apache-2.0
"""Index terms of records: pure functions from a record to its positions.

Terms order bytewise as their values do, with None first, and no two records
share one (they end in the record's id), so that a page can go on behind the
last term of the one before. Image sort terms
carry ``created_at`` and ``id`` behind the value, which is how Glance breaks
ties, so that one walk of an index yields a list in its final order.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

from glance_geo.core import clock
from glance_geo.core.engine import Term
from glance_geo.core.records import PENDING, Record
from glance_geo.core.rules import shown
from glance_geo.db import rows

SEEN = 'seen/'
CHANGED = 'changed'
EQUAL = 'image.equal'
GONE = 'gone'
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


_LISTED = ('namespace', 'resource_type')


def live_index(kind: str) -> str:
    """Return the index of those records of a kind that are not deleted."""
    return f'live/{kind}'


def of(record: Record, numbered: bool = True) -> Iterator[Term]:
    """Yield every term under which a record is indexed.

    :param numbered: by the writes that it has seen, for the sync between
        sites; otherwise by the clock reading of its last change
    """
    yield from least(record, numbered)
    gone = gone_since(record) or _expiry(record)
    if gone is not None:
        yield Term(GONE, b'%016x/%s' % (gone, record.key.encode()))
    elif record.kind in _LISTED and not record.sealed:
        yield Term(live_index(record.kind), record.id.encode())
    by_kind = _BY_KIND.get(record.kind)
    if by_kind is not None:
        yield from by_kind(record)


def gone_since(record: Record) -> int | None:
    """Return when a record was deleted, in microseconds since 1970; None if
    it lives."""
    if record.sealed:
        return None
    values = shown(record)
    if record.kind == 'image':
        deletion = values.get('deletion') or {}
        final = (deletion.get('deleted')
                 and deletion.get('status') != 'pending_delete')
        return deletion.get('deleted_at') if final else None
    if record.kind == 'holding':
        holding = values.get('holding') or {}
        if holding.get('total'):
            return None
        written = record.fields.get('holding', {}).values()
        return 1000 * max((clock.milliseconds(value.hlc)
                           for value in written), default=0)
    if values.get('deleted'):
        return values.get('deleted_at') or values.get('updated_at')
    return None


def _expiry(record: Record) -> int | None:
    """Return when a task goes by itself, in microseconds since 1970."""
    if record.kind != 'task' or record.sealed:
        return None
    return shown(record).get('expires_at')


def least(record: Record, numbered: bool) -> Iterator[Term]:
    """Yield the terms that do not depend on what the fields say."""
    yield Term(kind_index(record.kind), record.id.encode())
    if numbered:
        yield from _seen(record)
    else:
        last = max((value.hlc for siblings in record.fields.values()
                    for value in siblings.values()), default=0)
        # With the key: many records may change within a millisecond.
        yield Term(CHANGED, b'%016x/%s' % (clock.milliseconds(last),
                                           record.key.encode()))


def has(record: Record, index: str, term: bytes) -> bool:
    """Say whether a record is to be found at a position of an index."""
    return any(found.index == index and found.value == term
               for found in of(record, numbered=False))


def _seen(record: Record) -> Iterator[Term]:
    for incarnation, counter in record.seen.items():
        if counter == PENDING:
            yield Term(SEEN + incarnation, b'', stamped=True)
        else:
            yield Term(SEEN + incarnation, b'%016x' % counter)


def digest(field: str, value: Any) -> bytes:
    """Return what stands for a field's value where only equality matters."""
    return hashlib.blake2b(f'{field}\0{value}'.encode(),
                           digest_size=12).digest()


def visibility_scope(visibility: str) -> str:
    return f'visibility={visibility}'


def owner_scope(owner: str) -> str:
    return f'owner={owner}'


def member_scope(member: str | None, status: str) -> str:
    return f'member={member}={status}'


def _image(record: Record) -> Iterator[Term]:
    if record.sealed:
        return      # not shown before it can be read
    shows = shown(record)
    values = rows.image_columns(record.id, shows)
    members = list(rows.memberships(record))
    if values['deleted']:
        yield Term('image.deleted', record.id.encode())
    else:
        yield from _listed(record.id, values, members)
        for field, value in _equal(values, shows):
            yield Term(EQUAL, digest(field, value) + ordered(
                values['created_at'], record.id), descends=True)
    if 'moved_from' in record.extra:
        yield Term('image.moved_from',
                   ordered(record.extra['moved_from'], record.id))
    for member in members:
        yield Term('image.member', ordered(member['member'], record.id))
        yield Term('image.member_id', ordered(member['id']))


def _listed(id: str, values: dict[str, Any], members: list[Any],
            ) -> Iterator[Term]:
    """Yield the positions of an image in lists: per sort key, one among all
    images and one in each scope."""
    scopes = ['', '/' + visibility_scope(values['visibility'])]
    if values['owner'] is not None:
        scopes.append('/' + owner_scope(values['owner']))
    if values['visibility'] == 'shared':
        scopes += ['/' + member_scope(member['member'], member['status'])
                   for member in members if not member['deleted']]
    for key in IMAGE_SORT_KEYS:
        term = ordered(values[key], values['created_at'], id)
        for scope in scopes:
            yield Term(f'image.{key}{scope}', term, descends=True)


def _equal(values: dict[str, Any], shows: dict[str, Any],
           ) -> Iterator[tuple[str, Any]]:
    """Yield what an image is found by, beside the columns that sort."""
    for name in ('checksum', 'os_hash_value'):
        yield name, values[name]
    if values['os_hidden']:
        yield 'os_hidden', True
    for field, data in shows.items():
        if field.startswith('tag:'):
            yield 'tag', field[4:]
        elif field.startswith('prop:') and not data['removed']:
            yield field, data['value']


def _task(record: Record) -> Iterator[Term]:
    values = shown(record)
    if values.get('image_id'):
        yield Term('task.image', ordered(values['image_id'], record.id))


def _namespace(record: Record) -> Iterator[Term]:
    values = shown(record)
    if 'id' in values:
        yield Term('namespace.id', ordered(values['id']))


_BY_KIND = {'image': _image, 'task': _task, 'namespace': _namespace}
