# SPDX-License-Identifier: Apache-2.0
"""What projects use, for quotas."""

import itertools

from glance.common import exception

from glance_geo.db import rows, terms
from glance_geo.db.calls import Calls
from glance_geo.db.rows import Row


class UsageCalls(Calls):
    """``user_get_*``."""

    def _owned(self, owner_id: str, gone: tuple[str, ...]) -> list[Row]:
        found = (rows.image_row(record, self._records.site, True)
                 for record in self._records.walk(
                     f'image.created_at/{terms.owner_scope(owner_id)}'))
        return [row for row in found if row['status'] not in gone]

    def user_get_storage_usage(self, context, owner_id, image_id=None):
        if image_id is not None and len(image_id) > 36:
            raise exception.ImageNotFound()
        return sum(
            row['size'] * len(row['locations'])
            for row in self._owned(owner_id, ('killed', 'deleted',
                                              'pending_delete'))
            if row['id'] != image_id and (row['size'] or 0) > 0)

    @staticmethod
    def _copying(row: Row) -> bool:
        return any(prop['name'] == 'os_glance_importing_to_stores'
                   and prop['value'] for prop in row['properties']
                   if not prop['deleted'])

    def user_get_staging_usage(self, context, owner_id):
        owned = self._owned(owner_id, ('killed', 'deleted',
                                       'pending_delete'))
        importing = [row for row in owned
                     if row['status'] in ('uploading', 'importing')]
        copying = [row for row in owned if row not in importing
                   and self._copying(row)]
        return sum(row['size'] for row in itertools.chain(importing, copying)
                   if (row['size'] or 0) > 0)

    def user_get_image_count(self, context, owner_id):
        return len(self._owned(owner_id, ('killed', 'pending_delete',
                                          'deleted')))

    def user_get_uploading_count(self, context, owner_id):
        owned = self._owned(owner_id, ('killed', 'deleted',
                                       'pending_delete'))
        return sum(row['status'] in ('saving', 'uploading', 'importing')
                   or self._copying(row) for row in owned)
