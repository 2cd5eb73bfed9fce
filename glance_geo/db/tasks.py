# SPDX-License-Identifier: Apache-2.0
"""Tasks. Expiry is derived when a task is read: nothing is written by a
list, and sites need not agree on when a task expired."""

import json
import uuid
from collections.abc import Mapping
from typing import Any

from glance.common import exception

from glance_geo.core.records import Record
from glance_geo.core.rules import shown
from glance_geo.db import rows, terms
from glance_geo.db.calls import Calls, now_us
from glance_geo.db.rows import Row

_COLUMNS = ('type', 'status', 'owner', 'expires_at', 'created_at',
            'updated_at', 'deleted_at', 'deleted', 'image_id', 'request_id',
            'user_id')
_INFO = ('input', 'result', 'message')
_TIMES = ('expires_at', *rows.TIMES)
_JSON = ('input', 'result')


def _stored(values: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name in (*_COLUMNS, *_INFO):
        if name in values:
            value = values[name]
            if name in _TIMES:
                value = rows.to_us(value)
            elif name in _JSON and value is not None:
                value = json.dumps(value)
            found[name] = value
    return found


def _row(record: Record, with_info: bool = True) -> Row:
    values = shown(record)
    row = Row(id=record.id)
    for name in _COLUMNS:
        value = values.get(name)
        row[name] = rows.from_us(value) if name in _TIMES else value
    row['deleted'] = bool(row['deleted'])
    if with_info:
        for name in _INFO:
            value = values.get(name)
            row[name] = (json.loads(value) if name in _JSON
                         and value is not None else value)
    return row


class TaskCalls(Calls):
    """``task_*``."""

    def task_create(self, context, values):
        values = dict(values)
        task_id = values.pop('id', None) or str(uuid.uuid4())
        now = now_us()
        fields: dict[str, Any] = {'created_at': now, 'updated_at': now,
                                  'deleted': False}
        fields.update((name, value)
                      for name, value in _stored(values).items()
                      if not (name in ('created_at', 'updated_at')
                              and value is None))

        def create(present: Record | None) -> dict[str, Any]:
            if present is not None:
                raise exception.Duplicate(f'Task {task_id} already exists')
            return fields
        return _row(self._records.create('task', task_id, create))

    @staticmethod
    def _visible(context: Any, row: Row) -> bool:
        return (context.is_admin or row['owner'] is None
                or (context.owner is not None
                    and context.owner == row['owner']))

    @staticmethod
    def _expire(row: Row, now: int) -> Row:
        """Mark a task that has expired."""
        if (not row['deleted'] and row['expires_at'] is not None
                and (rows.to_us(row['expires_at']) or 0) <= now):
            row['deleted'] = True
            row['deleted_at'] = row['expires_at']
        return row

    def _task(self, context: Any, task_id: str, record: Record | None,
              force_show_deleted: bool = False) -> Row:
        row = None if record is None else _row(record)
        if row is None or (row['deleted'] and not force_show_deleted
                           and not context.can_see_deleted):
            raise exception.TaskNotFound(task_id=task_id)
        if not self._visible(context, row):
            raise exception.Forbidden(
                f'Forbidding request, task {task_id} is not visible')
        return row

    def task_get(self, context, task_id, force_show_deleted=False):
        return self._task(context, task_id,
                          self._records.get('task', task_id),
                          force_show_deleted)

    def task_update(self, context, task_id, values):
        fields = _stored({name: value for name, value in values.items()
                          if name not in ('created_at', 'updated_at',
                                          'deleted_at', 'deleted', 'id')})
        fields['deleted'] = False

        def change(present: Any) -> dict[str, Any]:
            self._task(context, task_id, present)
            current = shown(present)
            changes = {name: value for name, value in fields.items()
                       if name not in current or current[name] != value}
            changes['updated_at'] = now_us()
            return changes
        return _row(self._records.update('task', task_id, change))

    def task_delete(self, context, task_id):
        def change(present: Any) -> dict[str, Any]:
            self._task(context, task_id, present)
            now = now_us()
            return {'deleted': True, 'deleted_at': now, 'updated_at': now}
        return _row(self._records.update('task', task_id, change))

    def tasks_get_by_image(self, context, image_id):
        prefix = terms.ordered(image_id)
        now = now_us()
        found = []
        for record in self._records.walk('task.image', prefix,
                                         terms.after(prefix)):
            row = self._expire(_row(record), now)
            expired = (row['expires_at'] is not None
                       and rows.to_us(row['expires_at']) < now)
            if expired or (row['deleted'] and not context.can_see_deleted):
                continue
            if self._visible(context, row):
                found.append(row)
        # As SQL gives them: the oldest first.
        return sorted(found, key=lambda row: (row['created_at'], row['id']))

    def task_get_all(self, context, filters=None, marker=None, limit=None,
                     sort_key='created_at', sort_dir='desc',
                     admin_as_user=False):
        filters = dict(filters or {})
        everyone = context.is_admin or admin_as_user or context.owner is None
        now = now_us()
        found = []
        for record in self._records.list('task'):
            row = self._expire(_row(record, with_info=False), now)
            if not everyone and row['owner'] != context.owner:
                continue
            if 'deleted' in filters and (
                    row['deleted'] != bool(filters['deleted'])):
                continue
            if all(row[name] == value for name, value in filters.items()
                   if name != 'deleted' and value is not None
                   and name in row):
                found.append(row)
        keys = ['created_at', 'id']
        if sort_key not in keys:
            keys.insert(0, sort_key)
        for key in reversed(keys):
            found.sort(key=lambda row, key=key: (row[key] is not None,
                                                 row[key]),
                       reverse=sort_dir == 'desc')
        if marker is not None:
            self.task_get(context, marker,
                          force_show_deleted=filters.get('deleted', False))
            place = next((index for index, row in enumerate(found)
                          if row['id'] == marker), None)
            found = [] if place is None else found[place + 1:]
        return found[:limit]
