# SPDX-License-Identifier: Apache-2.0
"""Image lists: walk the index that fits, filter, stop at the page's end."""

from collections.abc import Iterator
from typing import Any

from glance.common import exception
from glance.db import utils as db_utils

from glance_geo.core.records import REMOVED, Record
from glance_geo.core.rules import shown
from glance_geo.db import queries, rows, terms
from glance_geo.db.calls import Calls, check_4byte, not_found
from glance_geo.db.images import ImageCalls
from glance_geo.db.rows import Row

# A page of 25 should not read hundreds of records; a long list should not
# make hundreds of round trips.
_SMALLEST_BATCH = 32
_LARGEST_BATCH = 500


class ImageListCalls(ImageCalls):
    """``image_get_all`` and what it needs."""

    def _walked(self, order: queries.Order, marker: Row | None,
                deleted: bool | None, limit: int | None,
                ) -> tuple[Iterator[Record], bool]:
        """Return candidate records, and whether they come in order."""
        indexed = order.index
        if deleted is not False or indexed is None:
            live = (iter(()) if deleted
                    else self._records.walk('image.created_at'))
            gone = (iter(()) if deleted is False
                    else self._records.walk('image.deleted'))
            return (record for part in (live, gone) for record in part), False
        column, reverse = indexed
        start = stop = None
        if marker is not None:
            value = marker[column]
            if column in rows.TIMES:
                value = rows.to_us(value)
            edge = terms.ordered(value, rows.to_us(marker['created_at']),
                                 marker['id'])
            start, stop = (None, edge) if reverse else (edge + b'\0', None)
        batch = max(_SMALLEST_BATCH, min(limit or _LARGEST_BATCH,
                                         _LARGEST_BATCH))
        return self._records.walk(f'image.{column}', start, stop, reverse,
                                  batch), True

    def image_get_all(self, context, filters=None, marker=None, limit=None,
                      sort_key=None, sort_dir=None,
                      member_status='accepted', is_public=None,
                      admin_as_user=False, return_tag=False, v1_mode=False):
        filters = dict(filters or {})
        visibility = filters.pop('visibility', None)
        show_deleted = bool('changes-since' in filters or
                            filters.get('deleted', False))
        # Without a filter on it Glance lists deleted images too.
        deleted = (bool(filters['deleted']) if 'deleted' in filters else None)
        checks = queries.compile_filters(filters, is_public)
        order = queries.Order.of(sort_key, sort_dir)
        marker_row = None
        if marker is not None:
            marker_row = self.image_get(context, marker,
                                        force_show_deleted=show_deleted)
        candidates, in_order = self._walked(order, marker_row, deleted, limit)
        members: dict[str, list[Row]] = {}
        listed = queries.visibility_check(
            context.owner, not context.is_admin or admin_as_user, visibility,
            member_status, lambda row: members[row['id']])

        found: list[Row] = []
        for record in candidates:
            if limit is not None and in_order and len(found) >= limit:
                break
            row = rows.image_row(record, self._records.site,
                                 context.is_admin, show_deleted,
                                 with_tags=True)
            members[record.id] = [m for m in rows.memberships(record)
                                  if not m['deleted']]
            if listed(row) and all(check(row) for check in checks):
                if marker_row is None or order.past(row, marker_row):
                    found.append(row)
        if not in_order:
            order.sort(found)
        return [self._finished(row, return_tag, v1_mode)
                for row in found[:limit]]

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
        if value not in self._tags(image_id):
            raise exception.NotFound()
        self._records.update('image', image_id,
                             lambda present: {f'tag:{value}': REMOVED})
