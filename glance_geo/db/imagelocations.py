# SPDX-License-Identifier: Apache-2.0
"""Image locations.

Geo locations mean the same at every site; those of other stores are kept with
the name of the site that wrote them, and shown only there.
"""

from collections.abc import Mapping
from typing import Any

from glance.common import exception

from glance_geo.core import errors
from glance_geo.core import location as geo_location
from glance_geo.core.records import Record
from glance_geo.core.rules import shown
from glance_geo.db import rows
from glance_geo.db.calls import Calls, check_4byte, not_found, now_us


class LocationCalls(Calls):
    """``image_location_*``, and the field changes behind them."""

    def _added(self, image_id: str, location: Mapping[str, Any],
               place: int = 0) -> dict[str, Any]:
        self._check_owner(image_id, location['url'])
        reading = self._records.clock.next()
        field = rows.location_field(image_id, location['url'], reading)
        return {field: rows.new_location(
            location, [reading, place], self._records.site, now_us())}

    @staticmethod
    def _check_owner(image_id: str, url: str) -> None:
        """Refuse a location of ours that was issued for another image.

        Where users may set locations, a copied one would give its bits to
        whoever has seen it. Its signature is the store's to check.

        :raises BadStoreUri: (400)
        """
        if url.partition(':')[0] not in geo_location.SCHEMES:
            return
        try:
            owner = geo_location.parse(url).image
        except errors.LocationInvalid as error:
            raise exception.BadStoreUri(message=str(error)) from error
        if owner != image_id:
            raise exception.BadStoreUri(
                message=f'the location belongs to another image than '
                        f'{image_id}')

    def _updated(self, record: Record, location: Mapping[str, Any],
                 ) -> dict[str, Any]:
        field = f'loc:{location["id"]}'
        current = shown(record).get(field)
        if current is None:
            raise exception.NotFound(
                f'No location found with ID {location["id"]} from image '
                f'{record.id}')
        new = {**rows.new_location(location, current['order'],
                                   self._records.site, now_us()),
               'site': current['site']}
        if {**new, 'deleted_at': None} == {**current, 'deleted_at': None}:
            return {}
        return {field: new}

    def _location_changes(self, record: Record, wanted: list) -> dict:
        """Make these the image's locations at this site.

        Locations that mean nothing here are not the caller's to remove: it
        never saw them.
        """
        changes: dict[str, Any] = {}
        keep = {location['id'] for location in wanted if location.get('id')}
        for location in rows.locations(shown(record), self._records.site,
                                       False, False):
            if keep and location['id'] not in keep or not keep:
                changes.update(self._gone(record, location['id'], 'deleted'))
        for place, location in enumerate(wanted):
            if location.get('id') is None:
                changes.update(self._added(record.id, location, place))
            else:
                changes.update(self._updated(record, location))
        return changes

    def _gone(self, record: Record, location_id: int, status: str) -> dict:
        current = shown(record).get(f'loc:{location_id}')
        if current is None:
            raise exception.NotFound(
                f'No location found with ID {location_id} from image '
                f'{record.id}')
        return {f'loc:{location_id}': {
            **current, 'status': status, 'removed': True,
            'deleted_at': now_us()}}

    def image_location_add(self, context, image_id, location):
        check_4byte(dict(location))

        def change(present: Any) -> dict[str, Any]:
            if present is None:
                raise not_found(image_id)
            return self._added(image_id, location)
        self._records.update('image', image_id, change)

    def image_location_update(self, context, image_id, location):
        check_4byte(dict(location))
        if location.get('id') is None:
            raise exception.Invalid(
                'The location data has an invalid ID: None')

        def change(present: Any) -> dict[str, Any] | None:
            if present is None:
                raise exception.NotFound(
                    f'No location found with ID {location["id"]} from image '
                    f'{image_id}')
            return self._updated(present, location) or None
        self._records.update('image', image_id, change)

    def image_location_delete(self, context, image_id, location_id, status,
                              delete_time=None):
        if status not in ('deleted', 'pending_delete'):
            raise exception.Invalid(
                'The status of deleted image location can only be set to '
                "'pending_delete' or 'deleted'")

        def change(present: Any) -> dict[str, Any]:
            if present is None:
                raise exception.NotFound(
                    f'No location found with ID {location_id} from image '
                    f'{image_id}')
            return self._gone(present, location_id, status)
        self._records.update('image', image_id, change)
