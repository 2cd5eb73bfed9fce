# SPDX-License-Identifier: Apache-2.0
"""Image members: memberships merge remove-wins.

A membership is one act of sharing an image with a project. Its status is kept
under the membership's id, so that an answer to an old membership never
applies to a new one.
"""

from collections.abc import Iterator
from typing import Any

from glance.common import exception

from glance_geo.core.engine import Entry
from glance_geo.core.records import Record
from glance_geo.core.rules import shown
from glance_geo.db import rows, terms
from glance_geo.db.calls import Calls, check_4byte, now_us
from glance_geo.db.rows import Row


def _format(member: Row) -> Row:
    return Row((name, member[name]) for name in (
        'id', 'image_id', 'member', 'can_share', 'status', 'created_at',
        'updated_at', 'deleted'))


class MemberCalls(Calls):
    """``image_member_*``."""

    def _membership(self, record: Record, member: str) -> Row | None:
        return next((m for m in rows.memberships(record)
                     if m['member'] == member), None)

    def _fresh(self, image_id: str, member: str, values: dict) -> dict:
        """Return the field changes of a new membership."""
        now = now_us()
        identity = rows.stable_id(image_id, member,
                                  self._records.clock.next())
        return {
            f'member:{member}': {
                'id': identity, 'removed': False, 'created_at': now,
                'can_share': bool(values.get('can_share', False))},
            f'mstatus:{identity}': {
                'status': values.get('status') or 'pending',
                'updated_at': now}}

    def image_member_create(self, context, values):
        check_4byte(dict(values))
        image_id, member = values['image_id'], values['member']

        def change(present: Any) -> dict[str, Any]:
            if present is None:
                raise exception.ImageNotFound(
                    f'No image found with ID {image_id}')
            existing = self._membership(present, member)
            if existing is not None and not existing['deleted']:
                raise exception.Duplicate(
                    f'Image {image_id} is already shared with {member}')
            return self._fresh(image_id, member, values)
        record = self._records.update('image', image_id, change)
        return _format(self._membership(record, member))

    def _by_id(self, memb_id: int) -> tuple[Entry, Record, Row]:
        for entry, record in self._records.found(
                'image.member_id', terms.ordered(memb_id)):
            for member in rows.memberships(record):
                if member['id'] == memb_id:
                    return entry, record, member
        raise exception.NotFound(f'No membership with ID {memb_id}')

    def image_member_update(self, context, memb_id, values):
        entry, record, known = self._by_id(memb_id)
        member = known['member']

        def change(present: Any) -> dict[str, Any] | None:
            existing = (None if present is None
                        else self._membership(present, member))
            if existing is None:
                raise exception.NotFound(f'No membership with ID {memb_id}')
            if existing['deleted']:
                return self._fresh(record.id, member, values)
            changes: dict[str, Any] = {f'mstatus:{existing["id"]}': {
                'status': values.get('status', existing['status']),
                'updated_at': now_us()}}
            can_share = bool(values.get('can_share', False))
            if can_share != existing['can_share']:
                changes[f'member:{member}'] = {
                    **shown(present)[f'member:{member}'],
                    'can_share': can_share}
            return changes
        updated = self._records.update('image', record.id, change, entry)
        return _format(self._membership(updated, member))

    def image_member_delete(self, context, memb_id):
        entry, record, known = self._by_id(memb_id)
        field = f'member:{known["member"]}'

        def change(present: Any) -> dict[str, Any]:
            return {field: {**shown(present)[field], 'removed': True}}
        self._records.update('image', record.id, change, entry)

    def _sharing(self, image_id: str | None, member: str | None,
                 ) -> Iterator[Record]:
        if image_id is not None:
            record = self._records.get('image', image_id)
            return iter(() if record is None else (record,))
        if member is not None:
            prefix = terms.ordered(member)
            return self._records.walk('image.member', prefix,
                                      terms.after(prefix))
        return iter({record.id: record for record in
                     self._records.walk('image.member')}.values())

    def image_member_find(self, context, image_id=None, member=None,
                          status=None, include_deleted=False):
        found = []
        for record in self._sharing(image_id, member):
            columns = rows.image_columns(record.id, shown(record))
            for row in rows.memberships(record):
                if columns['deleted']:
                    row['deleted'] = True
                if row['deleted'] and not include_deleted:
                    continue
                if (not context.is_admin and context.owner not in
                        (columns['owner'], row['member'])):
                    continue
                if (member in (None, row['member'])
                        and status in (None, row['status'])):
                    found.append(_format(row))
        return found

    def image_member_count(self, context, image_id):
        if not image_id:
            raise exception.Invalid('Image id is required.')
        record = self._records.get('image', str(image_id))
        if record is None:
            return 0
        return sum(not m['deleted'] for m in rows.memberships(record))
