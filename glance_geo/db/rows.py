# SPDX-License-Identifier: Apache-2.0
"""Records as Glance sees them, and Glance's values as record fields.

Pure functions. Times are stored as integers, microseconds since 1970 UTC;
Glance gets naive UTC datetimes.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from glance_geo.core.records import REMOVED, Record
from glance_geo.core.rules import conflicts, resolve, shown

_EPOCH = datetime.datetime(1970, 1, 1)

# Columns that are fields of their own; the other image columns derive from
# the fields ``data``, ``deactivated`` and ``deletion``.
PLAIN = ('name', 'disk_format', 'container_format', 'virtual_size',
         'visibility', 'min_disk', 'min_ram', 'owner', 'protected',
         'os_hidden')
DATA = ('size', 'checksum', 'os_hash_algo', 'os_hash_value')
TIMES = ('created_at', 'updated_at', 'deleted_at')
COLUMNS = ('id', *PLAIN, *DATA, 'status', *TIMES, 'deleted')

# Locations of these schemes mean the same at every site.
GLOBAL_SCHEMES = ('geo', 'ipfs', 'http', 'https')


class Row(dict):
    """A dictionary whose items are attributes too, as Glance expects."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def to_us(value: datetime.datetime | None) -> int | None:
    """Return a datetime (naive: UTC) as microseconds since 1970."""
    if value is None:
        return None
    if value.tzinfo is not None:
        value = value.astimezone(datetime.UTC).replace(tzinfo=None)
    return (value - _EPOCH) // datetime.timedelta(microseconds=1)


def from_us(value: int | None) -> datetime.datetime | None:
    """Return microseconds since 1970 as a naive UTC datetime."""
    return None if value is None else _EPOCH + datetime.timedelta(
        microseconds=value)


def stable_id(*parts: object) -> int:
    """Return the 63-bit integer id that every site gives the same thing."""
    text = '\0'.join(map(str, parts))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, 'big') >> 1 or 1


def image_columns(image_id: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return an image's columns; times as integers.

    :param values: the record's shown values
    """
    data = values.get('data') or {}
    deletion = values.get('deletion') or {}
    status = data.get('status')
    if deletion.get('status'):
        status = deletion['status']
    elif values.get('deactivated'):
        status = 'deactivated'
    columns = {name: values.get(name) for name in PLAIN}
    columns.update((name, data.get(name)) for name in DATA)
    columns.update(
        id=image_id, status=status,
        created_at=values.get('created_at'),
        updated_at=values.get('updated_at'),
        deleted=bool(deletion.get('deleted')),
        deleted_at=deletion.get('deleted_at'))
    return columns


def image_changes(current: Mapping[str, Any], wanted: Mapping[str, Any],
                  ) -> dict[str, Any]:
    """Return the field changes that turn an image's columns into others.

    Only what differs is written: a field that the caller did not touch must
    not look like a concurrent write of it.

    :param current: the record's shown values; empty for a new image
    :param wanted: columns; times as integers
    """
    changes: dict[str, Any] = {}
    for name in (*PLAIN, 'created_at', 'updated_at'):
        if name in wanted and (not current or
                               current.get(name) != wanted[name]):
            changes[name] = wanted[name]
    data = dict(current.get('data') or {})
    data.update((name, wanted[name]) for name in DATA if name in wanted)
    status = wanted.get('status')
    if status is not None:
        _status_changes(current, status, data, changes)
    if data != current.get('data'):
        changes['data'] = data
    if 'deleted' in wanted and (
            bool(wanted['deleted'])
            != bool((current.get('deletion') or {}).get('deleted'))):
        changes['deletion'] = {
            **(changes.get('deletion') or current.get('deletion') or {}),
            'deleted': bool(wanted['deleted']),
            'deleted_at': wanted.get('deleted_at')}
    return changes


def _status_changes(current: Mapping[str, Any], status: str,
                    data: dict[str, Any], changes: dict[str, Any]) -> None:
    deletion = current.get('deletion') or {}
    if status in ('deleted', 'pending_delete'):
        if deletion.get('status') != status:
            changes['deletion'] = {**deletion, 'status': status}
        return
    if deletion.get('status'):
        changes['deletion'] = {**deletion, 'status': None}
    deactivated = status == 'deactivated'
    if deactivated != bool(current.get('deactivated')):
        changes['deactivated'] = deactivated
    state = 'active' if deactivated else status
    data['status'] = state
    data['bound'] = state == 'active'


def properties(image_id: str, values: Mapping[str, Any], deleted: bool,
               ) -> list[Row]:
    """Return an image's properties, deleted ones marked."""
    found = []
    changed = from_us(values.get('updated_at'))
    for field, data in sorted(values.items()):
        if field.startswith('prop:'):
            name = field[5:]
            gone = deleted or data['removed']
            found.append(Row(
                id=stable_id(image_id, field), image_id=image_id, name=name,
                value=data['value'], deleted=gone,
                deleted_at=changed if gone else None))
    return found


def property_changes(current: Mapping[str, Any], wanted: Mapping[str, Any],
                     purge: bool, atomic: Iterable[str]) -> dict[str, Any]:
    """Return the field changes that set an image's properties."""
    atomic = frozenset(atomic)
    changes = {}
    for name, value in wanted.items():
        new = {'value': value, 'removed': False}
        if name not in atomic and current.get(f'prop:{name}') != new:
            changes[f'prop:{name}'] = new
    if purge:
        for field, data in current.items():
            if (field.startswith('prop:') and not data['removed']
                    and field[5:] not in wanted and field[5:] not in atomic):
                changes[field] = {**data, 'removed': True}
    return changes


def tags(values: Mapping[str, Any]) -> list[str]:
    """Return an image's tags in the order in which they were added."""
    found = [(tuple(data), field[4:]) for field, data in values.items()
             if field.startswith('tag:')]
    return [tag for _, tag in sorted(found)]


def tag_changes(current: Mapping[str, Any], wanted: Iterable[str],
                hlc: int) -> dict[str, Any]:
    """Return the field changes that make these the image's tags."""
    wanted = list(dict.fromkeys(wanted))
    changes: dict[str, Any] = {
        f'tag:{tag}': [hlc, place] for place, tag in enumerate(wanted)
        if f'tag:{tag}' not in current}
    keep = {f'tag:{tag}' for tag in wanted}
    changes.update((field, REMOVED) for field in current
                   if field.startswith('tag:') and field not in keep)
    return changes


def location_field(image_id: str, url: str, nonce: object) -> str:
    return f'loc:{stable_id(image_id, url, nonce)}'


def new_location(location: Mapping[str, Any], order: list[int], site: str,
                 now: int) -> dict[str, Any]:
    """Return the value of a location's field."""
    scheme = location['url'].partition(':')[0]
    gone = location['status'] in ('deleted', 'pending_delete')
    return {'url': location['url'],
            'metadata': json.dumps(location.get('metadata') or {},
                                   sort_keys=True),
            'status': location['status'], 'removed': gone,
            'deleted_at': now if gone else None, 'order': order,
            'site': None if scheme in GLOBAL_SCHEMES else site}


def locations(values: Mapping[str, Any], site: str, show_deleted: bool,
              image_deleted: bool) -> list[dict[str, Any]]:
    """Return the locations that mean something at a site, oldest first."""
    found = []
    for field, data in values.items():
        if not field.startswith('loc:'):
            continue
        if data['site'] not in (None, site):
            continue
        gone = data['removed'] or image_deleted
        if gone and not show_deleted:
            continue
        status = data['status']
        if image_deleted and not data['removed']:
            status = 'deleted'
        found.append((tuple(data['order']), {
            'id': int(field[4:]), 'url': data['url'],
            'metadata': json.loads(data['metadata']), 'status': status}))
    return [location for _, location in sorted(found, key=lambda i: i[0])]


def memberships(record: Record) -> Iterator[Row]:
    """Yield an image's memberships, removed ones marked."""
    for field, siblings in record.fields.items():
        if not field.startswith('member:'):
            continue
        data = resolve(field, siblings)
        status = {'status': 'pending', 'updated_at': data['created_at']}
        answer = record.fields.get(f'mstatus:{data["id"]}')
        if answer:
            status = resolve(f'mstatus:{data["id"]}', answer)
        yield Row(id=data['id'], image_id=record.id, member=field[7:],
                  can_share=data['can_share'], status=status['status'],
                  created_at=from_us(data['created_at']),
                  updated_at=from_us(status['updated_at']),
                  deleted=data['removed'])


CONFLICTS = 'geo_conflicts'
COMPUTED = (CONFLICTS,)
"""Properties that are made when an image is read, and never stored."""


def conflicts_text(record: Record) -> str | None:
    """Return an image's open conflicts as JSON; None if there is none."""
    found: dict[str, Any] = {
        field.removeprefix('prop:'): [
            {'site': value['incarnation'].rpartition('.')[0],
             'value': plain(value['value']), 'shown': value['shown']}
            for value in values]
        for field, values in conflicts(record).items()}
    if is_aside(record):
        found['id'] = {'moved_from': record.extra['moved_from']}
    return json.dumps(found, sort_keys=True, default=repr) if found else None


def is_aside(record: Record) -> bool:
    """Say whether a record lost its key, and nobody has seen to it yet."""
    return 'moved_from' in record.extra and 'accepted' not in record.fields


def plain(data: Any) -> Any:
    """Return a field's value as a person wants to read it."""
    if isinstance(data, Mapping) and 'removed' in data and 'value' in data:
        return None if data['removed'] else data['value']
    return data


def image_row(record: Record, site: str, is_admin: bool,
              show_deleted: bool = False, with_tags: bool = False,
              viewer: str | None = None) -> Row:
    """Return an image as Glance's data API returns it.

    :param viewer: the project that looks: its owner is shown what an
        administrator is shown of conflicts
    """
    values = shown(record)
    row = Row(image_columns(record.id, values))
    for name in TIMES:
        row[name] = from_us(row[name])
    deleted = row['deleted']
    row['properties'] = properties(record.id, values, deleted)
    if is_admin or (viewer is not None and viewer == row['owner']):
        text = conflicts_text(record)
        if text is not None:
            row['properties'].append(Row(
                id=stable_id(record.id, CONFLICTS), image_id=record.id,
                name=CONFLICTS, value=text, deleted=deleted,
                deleted_at=row['deleted_at']))
    hidden = row['status'] == 'deactivated' and not is_admin
    row['locations'] = [] if hidden else locations(
        values, site, show_deleted, deleted)
    if with_tags:
        row['tags'] = [] if deleted else tags(values)
    return row
