# SPDX-License-Identifier: Apache-2.0
"""Image lists and tags."""

from collections.abc import Iterator, Mapping
from typing import Any

from glance.common import exception
from glance.db import utils as db_utils

from glance_geo.core.records import REMOVED, Record
from glance_geo.core.rules import shown
from glance_geo.db import planner, queries, rows
from glance_geo.db.calls import Calls, check_4byte, not_found
from glance_geo.db.images import ImageCalls
from glance_geo.db.imagesearch import Accept, ImageSearch
from glance_geo.db.rows import Row


class ImageListCalls(ImageCalls):
    """``image_get_all`` and what it needs."""

    def image_get_all(self, context, filters=None, marker=None, limit=None,
                      sort_key=None, sort_dir=None,
                      member_status='accepted', is_public=None,
                      admin_as_user=False, return_tag=False, v1_mode=False):
        filters = dict(filters or {})
        visibility = filters.pop('visibility', None)
        show_deleted = bool('changes-since' in filters or
                            filters.get('deleted', False))
        checks = queries.compile_filters(filters, is_public)
        order = queries.Order.of(sort_key, sort_dir)
        regular = not context.is_admin or admin_as_user
        members: dict[str, list[Row]] = {}
        listed = queries.visibility_check(
            context.owner, regular, visibility, member_status,
            lambda row: members[row['id']])

        def accept(record: Record) -> Row | None:
            row = rows.image_row(record, self._records.site,
                                 context.is_admin, show_deleted,
                                 with_tags=True, viewer=context.owner)
            members[record.id] = [m for m in rows.memberships(record)
                                  if not m['deleted']]
            if listed(row) and all(check(row) for check in checks):
                return row
            return None

        def check_marker(record: Record | None) -> Row:
            return self._row(context, self._checked(
                context, marker, record, show_deleted))

        # Without a filter on it Glance lists deleted images too.
        if filters.get('deleted', True) is not False:
            found = self._with_deleted(filters, order, accept, marker,
                                       check_marker)[:limit]
        else:
            plan = planner.plan(filters, order, planner.scopes(
                context.owner, regular, visibility, member_status))
            found = ImageSearch(
                self._records, plan, order, accept, limit,
                None if marker is None else f'image/{marker}',
            ).run(check_marker)
        return [self._finished(row, return_tag, v1_mode) for row in found]

    def _with_deleted(self, filters: Mapping[str, Any], order: queries.Order,
                      accept: Accept, marker: str | None,
                      check_marker: Any) -> list[Row]:
        """Return a list that shows deleted images, which nobody pages fast:
        neither the API nor an operator's tool asks for one regularly."""
        behind = None
        if marker is not None:
            behind = check_marker(self._records.get('image', marker))

        def candidates() -> Iterator[Record]:
            if not filters.get('deleted'):
                yield from self._records.walk('image.created_at')
            yield from self._records.walk('image.deleted')
        found = [row for record in candidates()
                 if (row := accept(record)) is not None
                 and (behind is None or order.past(row, behind))]
        order.sort(found)
        return found

    @staticmethod
    def _finished(row: Row, return_tag: bool, v1_mode: bool) -> Any:
        if not return_tag:
            del row['tags']
        return db_utils.mutate_image_dict_to_v1(row) if v1_mode else row


class TagCalls(Calls):
    """``image_tag_*``: tags merge add-wins."""

    def _tags(self, image_id: str) -> list[str]:
        if len(image_id) > 36:
            raise exception.ImageNotFound()
        record = self._records.get('image', image_id)
        values = {} if record is None else shown(record)
        if (values.get('deletion') or {}).get('deleted'):
            return []
        return rows.tags(values)

    def image_tag_get_all(self, context, image_id):
        return self._tags(image_id)

    def image_tag_set_all(self, context, image_id, tags):
        def change(present: Any) -> dict[str, Any] | None:
            if present is None:
                raise not_found(image_id)
            return rows.tag_changes(shown(present), tags,
                                    self._records.clock.next()) or None
        self._records.update('image', image_id, change)

    def image_tag_create(self, context, image_id, value):
        check_4byte(value)

        def change(present: Any) -> dict[str, Any] | None:
            if present is None:
                raise not_found(image_id)
            if f'tag:{value}' in present.fields:
                return None
            return {f'tag:{value}': [self._records.clock.next(), 0]}
        self._records.update('image', image_id, change)
        return value

    def image_tag_delete(self, context, image_id, value):
        def change(present: Any) -> dict[str, Any]:
            if present is None or f'tag:{value}' not in present.fields:
                raise exception.NotFound()
            return {f'tag:{value}': REMOVED}
        self._records.update('image', image_id, change)
