# SPDX-License-Identifier: Apache-2.0
"""Metadata definitions. A namespace with all that it holds is one record,
keyed by its name; a resource type is one record too.

Fields of a namespace: its columns, and for each thing that it holds
``object:NAME``, ``property:NAME``, ``label:NAME`` (a tag), ``type:NAME`` (an
association with a resource type).
"""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from glance.common import exception

from glance_geo.core.engine import Entry
from glance_geo.core.records import REMOVED, Record
from glance_geo.core.rules import shown
from glance_geo.db import rows, terms
from glance_geo.db.calls import Calls, check_4byte, now_us
from glance_geo.db.rows import Row

_NAMESPACE = ('display_name', 'description', 'visibility', 'protected',
              'owner')
CONTENTS = ('object', 'property', 'label', 'type')


def _sorted(found: list[Row], sort_key: str, sort_dir: str) -> None:
    keys = ['created_at', 'id']
    if sort_key not in keys:
        keys.insert(0, sort_key)
    for key in reversed(keys):
        found.sort(key=lambda row, key=key: (  # type: ignore[misc]
                row.get(key) is not None,
                                             row.get(key)),
                   reverse=sort_dir == 'desc')


def _page(found: list[Row], marker: Any, limit: int | None) -> list[Row]:
    if marker is not None:
        place = next(index for index, row in enumerate(found)
                     if row['id'] == marker)
        found = found[place + 1:]
    return found[:limit]


def namespace_row(record: Record) -> Row:
    values = shown(record)
    row = Row((name, values.get(name)) for name in _NAMESPACE)
    row.update(id=values['id'], namespace=record.id,
               created_at=rows.from_us(values['created_at']),
               updated_at=rows.from_us(values['updated_at']))
    return row


def contents(record: Record, content: str) -> list[Row]:
    """Return the things of one sort that a namespace holds, oldest first."""
    values = shown(record)
    found = []
    for field, data in values.items():
        if not field.startswith(f'{content}:'):
            continue
        row = Row(data, name=field.partition(':')[2],
                  namespace_id=values['id'])
        if 'json_schema' in row:
            row['json_schema'] = json.loads(row['json_schema'])
        order = row.pop('order')
        for name in ('created_at', 'updated_at'):
            row[name] = rows.from_us(row[name])
        found.append((order, row))
    return [row for _, row in sorted(found, key=lambda item: item[0])]


class NamespaceCalls(Calls):
    """``metadef_namespace_*`` and what contents share."""

    @staticmethod
    def _namespace_visible(context: Any, row: Mapping[str, Any]) -> bool:
        return (context.is_admin or row['owner'] is None
                or row['visibility'] == 'public'
                or (context.owner is not None
                    and context.owner == row['owner']))

    def _checked_namespace(self, context: Any, name: str,
                           record: Record | None) -> Record:
        if record is None or shown(record).get('deleted'):
            raise exception.MetadefNamespaceNotFound(namespace_name=name)
        if not self._namespace_visible(context, namespace_row(record)):
            raise exception.MetadefForbidden(
                f'Forbidding request, metadata definition namespace={name} '
                f'is not visible.')
        return record

    def _namespace(self, context: Any, name: str) -> Record:
        return self._checked_namespace(
            context, name, self._records.get('namespace', name))

    def _namespace_by_id(self, context: Any, namespace_id: int,
                         ) -> tuple[Entry, Record]:
        for entry, record in self._records.found(
                'namespace.id', terms.ordered(namespace_id)):
            if not shown(record).get('deleted'):
                return entry, self._checked_namespace(context, record.id,
                                                      record)
        raise exception.MetadefNamespaceNotFound(
            f'Metadata definition namespace not found for id={namespace_id}')

    def metadef_namespace_get(self, context, namespace_name):
        return namespace_row(self._namespace(context, namespace_name))

    def metadef_namespace_get_all(self, context, marker=None, limit=None,
                                  sort_key='created_at', sort_dir='desc',
                                  filters=None):
        filters = filters or {}
        types = filters.get('resource_types')
        visibility = filters.get('visibility')
        wanted = set(types.split(',')) if types else None
        found = []
        for record in self._records.walk(terms.live_index('namespace')):
            if shown(record).get('deleted'):
                continue
            row = namespace_row(record)
            if not (context.is_admin or row['visibility'] == 'public'
                    or (context.owner is not None
                        and row['owner'] == context.owner)):
                continue
            if visibility is not None and row['visibility'] != visibility:
                continue
            if wanted is not None and not any(
                    link['name'] in wanted
                    for link in contents(record, 'type')):
                continue
            found.append(row)
        _sorted(found, sort_key, sort_dir)
        if marker is not None:
            self._namespace_by_id(context, marker)
        return _page(found, marker, limit)

    def metadef_namespace_create(self, context, values):
        check_4byte(dict(values))
        return namespace_row(self._put_namespace(values['namespace'], {
            name: values.get(name) for name in _NAMESPACE}))

    def _put_namespace(self, name: str, fields: dict[str, Any]) -> Record:
        now = now_us()

        def create(present: Record | None) -> dict[str, Any]:
            if present is not None and not shown(present).get('deleted'):
                raise exception.MetadefDuplicateNamespace(
                    namespace_name=name)
            reading = self._records.clock.next()
            return {'id': rows.stable_id('namespace', name, reading),
                    'created_at': now, 'updated_at': now, 'deleted': False,
                    **fields}
        return self._records.create('namespace', name, create)

    def metadef_namespace_update(self, context, namespace_id, namespace_dict):
        check_4byte(dict(namespace_dict))
        entry, record = self._namespace_by_id(context, namespace_id)
        fields = {name: namespace_dict[name] for name in _NAMESPACE
                  if name in namespace_dict}
        name = namespace_dict.get('namespace', record.id)
        if name != record.id:
            return namespace_row(self._rename(record, name, fields))

        def change(present: Any) -> dict[str, Any]:
            current = shown(self._checked_namespace(context, name, present))
            return {'updated_at': now_us(), **{
                field: value for field, value in fields.items()
                if current.get(field) != value}}
        return namespace_row(
            self._records.update('namespace', name, change, entry))

    def _rename(self, record: Record, name: str, fields: dict) -> Record:
        # The new record is there before the old one goes: a crash in between
        # leaves both, never none.
        values = {**shown(record), **fields, 'updated_at': now_us()}
        try:
            renamed = self._put_namespace(name, values)
        except exception.MetadefDuplicateNamespace:
            raise exception.MetadefDuplicateNamespace(
                'Invalid update. It would result in a duplicate metadata '
                f'definition namespace with the same name of {name}'
            ) from None
        self._bury(record.id)
        return renamed

    def _bury(self, name: str,
              check: Callable[[Any], Any] = lambda present: None) -> Record:
        def change(present: Any) -> dict[str, Any]:
            check(present)
            current = shown(present)
            return {'deleted': True, 'updated_at': now_us(), **{
                field: REMOVED for field in current
                if field.partition(':')[0] in CONTENTS}}
        return self._records.update('namespace', name, change)

    def metadef_namespace_delete(self, context, namespace_name):
        return namespace_row(self._bury(
            namespace_name, lambda present: self._checked_namespace(
                context, namespace_name, present)))


class ContentCalls(NamespaceCalls):
    """Objects, properties and tags of a namespace, by one set of methods."""

    _DUPLICATE: dict[str, Any] = {
        'object': lambda ns, name: exception.MetadefDuplicateObject(
            object_name=name, namespace_name=ns),
        'property': lambda ns, name: exception.MetadefDuplicateProperty(
            property_name=name, namespace_name=ns),
        'label': lambda ns, name: exception.MetadefDuplicateTag(
            name=name, namespace_name=ns)}
    _MISSING: dict[str, Any] = {
        'object': lambda ns, name: exception.MetadefObjectNotFound(
            object_name=name, namespace_name=ns),
        'property': lambda ns, name: exception.MetadefPropertyNotFound(
            property_name=name, namespace_name=ns),
        'label': lambda ns, name: exception.MetadefTagNotFound(
            name=name, namespace_name=ns)}
    _COLUMNS: dict[str, tuple[str, ...]] = {
        'object': ('description', 'required', 'json_schema'),
        'property': ('json_schema',), 'label': ()}

    def _content(self, context: Any, namespace: str, content: str,
                 name: str) -> Row:
        record = self._namespace(context, namespace)
        for row in contents(record, content):
            if row['name'] == name:
                return row
        raise self._MISSING[content](namespace, name)

    def _contents(self, context: Any, namespace: str,
                  content: str) -> list[Row]:
        return contents(self._namespace(context, namespace), content)

    def _stored(self, content: str, values: Mapping[str, Any]) -> dict:
        found = {name: values.get(name) for name in self._COLUMNS[content]
                 if name in values}
        if 'json_schema' in self._COLUMNS[content] and (
                'json_schema' in values or not values):
            found['json_schema'] = json.dumps(values.get('json_schema') or {})
        return found

    def _new(self, namespace: str, content: str, values: Mapping[str, Any],
             place: int = 0) -> dict[str, Any]:
        reading = self._records.clock.next()
        now = now_us()
        data: dict[str, Any] = dict.fromkeys(self._COLUMNS[content])
        if 'json_schema' in data:
            data['json_schema'] = '{}'
        data.update(self._stored(content, values))
        data.update(id=rows.stable_id(content, namespace, values['name'],
                                      reading),
                    order=[reading, place], created_at=now, updated_at=now)
        return {f'{content}:{values["name"]}': data}

    def _add(self, context: Any, namespace: str, content: str,
             values: Iterable[Mapping[str, Any]], replace: bool = False,
             ) -> list[Row]:
        values = list(values)
        for value in values:
            check_4byte(dict(value))

        def change(present: Any) -> dict[str, Any]:
            current = shown(self._checked_namespace(context, namespace,
                                                    present))
            changes: dict[str, Any] = {}
            if replace:
                changes.update((field, REMOVED) for field in current
                               if field.startswith(f'{content}:'))
            added: set[str] = set()
            for place, value in enumerate(values):
                field = f'{content}:{value["name"]}'
                if field in added or (not replace and field in current):
                    raise self._DUPLICATE[content](namespace, value['name'])
                added.add(field)
                changes.update(self._new(namespace, content, value, place))
            return changes
        record = self._records.update('namespace', namespace, change)
        names = [value['name'] for value in values]
        found = {row['name']: row for row in contents(record, content)}
        return [found[name] for name in names]

    def _change(self, context: Any, namespace: str, content: str,
                content_id: int, values: Mapping[str, Any]) -> Row:
        check_4byte(dict(values))
        name = ''

        def change(present: Any) -> dict[str, Any]:
            nonlocal name
            record = self._checked_namespace(context, namespace, present)
            current = shown(record)
            old = next((row['name'] for row in contents(record, content)
                        if row['id'] == content_id), None)
            if old is None:
                raise self._MISSING[content](namespace, content_id)
            name = values.get('name', old)
            changes: dict[str, Any] = {}
            if name != old:
                if f'{content}:{name}' in current:
                    raise self._DUPLICATE[content](namespace, name)
                changes[f'{content}:{old}'] = REMOVED
            changes[f'{content}:{name}'] = {
                **current[f'{content}:{old}'],
                **(self._stored(content, values) if values else {}),
                'updated_at': now_us()}
            return changes
        record = self._records.update('namespace', namespace, change)
        return next(row for row in contents(record, content)
                    if row['name'] == name)

    def _take(self, context: Any, namespace: str, content: str,
              names: Iterable[str] | None) -> list[Row]:
        """Remove the named contents (None: all); return what they were."""
        taken: list[Row] = []

        def change(present: Any) -> dict[str, Any] | None:
            record = self._checked_namespace(context, namespace, present)
            wanted = None if names is None else set(names)
            taken[:] = [row for row in contents(record, content)
                        if wanted is None or row['name'] in wanted]
            return {f'{content}:{row["name"]}': REMOVED
                    for row in taken} or None
        self._records.update('namespace', namespace, change)
        return taken

    def _take_one(self, context: Any, namespace: str, content: str,
                  name: str) -> Row:
        taken = self._take(context, namespace, content, [name])
        if not taken:
            raise self._MISSING[content](namespace, name)
        return taken[0]
