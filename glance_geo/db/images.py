# SPDX-License-Identifier: Apache-2.0
"""Images, their properties and locations: the data API's largest part.

Semantics are those of ``glance.db.sqlalchemy.api``; docstrings say only what
is not to be read there.
"""

import itertools
import logging
import uuid
from collections.abc import Mapping
from typing import Any

from glance.common import exception
from glance.db import utils as db_utils

from glance_geo.core import errors
from glance_geo.core import location as geo_location
from glance_geo.core.records import Record
from glance_geo.core.rules import shown
from glance_geo.db import rows, terms
from glance_geo.db.calls import Calls, check_4byte, now_us
from glance_geo.db.rows import Row

LOG = logging.getLogger(__name__)

_STATUSES = ('active', 'saving', 'queued', 'killed', 'pending_delete',
             'deleted', 'deactivated', 'importing', 'uploading')
# Moves out of ``queued`` that put bits at this site: the home's to make.
_BINDING = ('saving', 'uploading', 'importing', 'active')
_MAX_DB_INT = 2 ** 31 - 1


def _validate(values: Mapping[str, Any], status_required: bool) -> None:
    if status_required:
        status = values.get('status')
        if not status:
            raise exception.Invalid('Image status is required.')
        if status not in _STATUSES:
            raise exception.Invalid(
                f"Invalid image status '{status}' for image.")
    for name in ('min_disk', 'min_ram'):
        if values.get(name) and values[name] > _MAX_DB_INT:
            raise exception.Invalid(
                f"'{name}' value out of range, must not exceed "
                f'{_MAX_DB_INT}.')


def _columns(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that are columns, times as integers."""
    found = {name: values[name] for name in rows.COLUMNS if name in values}
    for name in rows.TIMES:
        if name in found:
            found[name] = rows.to_us(found[name])
    return found


def not_found(image_id: str) -> exception.ImageNotFound:
    return exception.ImageNotFound(f'No image found with ID {image_id}')


class ImageCalls(Calls):
    """``image_*`` but for lists, members and tags."""

    # -- reading ----------------------------------------------------------
    def _image(self, image_id: str) -> Record:
        if image_id is not None and len(image_id) > 36:
            raise exception.ImageNotFound()
        record = self._records.get('image', image_id)
        if record is None:
            raise not_found(image_id)
        return record

    def _row(self, context: Any, record: Record, **options: Any) -> Row:
        return rows.image_row(record, self._records.site, context.is_admin,
                              **options)

    def _visible(self, context: Any, record: Record, row: Row) -> bool:
        def member_find(context, image_id, member, status):
            return [m for m in rows.memberships(record)
                    if m['member'] == member and not m['deleted']
                    and status in (None, m['status'])]
        return db_utils.is_image_visible(context, row, member_find)

    def _checked(self, context: Any, image_id: str, record: Record | None,
                 force_show_deleted: bool = False) -> Record:
        """Return the record if the caller may see the image."""
        if record is None:
            raise not_found(image_id)
        row = Row(rows.image_columns(record.id, shown(record)))
        if row['deleted'] and not (force_show_deleted or
                                   context.can_see_deleted):
            raise not_found(image_id)
        if not self._visible(context, record, row):
            raise exception.Forbidden(
                f'Forbidding request, image {image_id} not visible')
        return record

    def image_get(self, context, image_id, force_show_deleted=False,
                  v1_mode=False):
        record = self._checked(context, image_id, self._image(image_id),
                               force_show_deleted)
        image = self._row(context, record, show_deleted=force_show_deleted)
        return db_utils.mutate_image_dict_to_v1(image) if v1_mode else image

    def is_image_mutable(self, context, image):
        if context.is_admin:
            return True
        if image['owner'] is None or context.owner is None:
            return False
        return image['owner'] == context.owner

    def is_image_visible(self, context, image, status=None):
        def member_find(context, image_id, member, status):
            record = self._records.get('image', image_id)
            return [m for m in (rows.memberships(record) if record else ())
                    if m['member'] == member and not m['deleted']
                    and status in (None, m['status'])]
        return db_utils.is_image_visible(context, image, member_find, status)

    def _check_mutable(self, context: Any, row: Mapping[str, Any]) -> None:
        if self.is_image_mutable(context, row):
            return
        LOG.warning('Attempted to modify image user did not own.')
        raise (exception.Forbidden
               if row['visibility'] in ('private', 'shared')
               else exception.ForbiddenPublicImage)(
                   'You do not own this image')

    # -- creating and updating --------------------------------------------
    def image_create(self, context, values, v1_mode=False):
        check_4byte(dict(values))
        for location in values.get('locations') or ():
            check_4byte(dict(location))
        values = db_utils.ensure_image_dict_v2_compliant(dict(values))
        properties = values.pop('properties', {})
        locations = values.pop('locations', None) or []
        values['id'] = values.get('id') or str(uuid.uuid4())
        if len(values['id']) > 36:
            raise exception.Invalid('Image id is too long')
        if values.get('size') is not None:
            values['size'] = int(values['size'])
        for name in ('min_ram', 'min_disk'):
            values[name] = int(values.get(name) or 0)
        for name in ('protected', 'os_hidden'):
            values[name] = bool(values.get(name, False))
        values['owner'] = values.get('owner') or None
        values.setdefault('visibility', 'shared')
        _validate(values, True)
        now = now_us()
        wanted: dict[str, Any] = dict.fromkeys(
            (*rows.PLAIN, *rows.DATA))
        wanted.update(_columns(values))
        for name in ('created_at', 'updated_at'):
            if wanted.get(name) is None:
                wanted[name] = now

        def create(present: Record | None) -> dict[str, Any]:
            if present is not None:
                raise exception.Duplicate(
                    f'Image ID {values["id"]} already exists!')
            changes = rows.image_changes({}, wanted)
            changes['home'] = self._records.site
            changes.update(rows.property_changes({}, properties, False, ()))
            for place, location in enumerate(locations):
                changes.update(self._added(values['id'], location, place))
            return changes

        record = self._records.create('image', values['id'], create)
        image = self._row(context, record)
        return db_utils.mutate_image_dict_to_v1(image) if v1_mode else image

    def image_update(self, context, image_id, values, purge_props=False,
                     from_state=None, v1_mode=False, atomic_props=None):
        check_4byte(dict(values))
        for location in values.get('locations') or ():
            check_4byte(dict(location))
        values = db_utils.ensure_image_dict_v2_compliant(dict(values))
        properties = values.pop('properties', {})
        locations = values.pop('locations', None)
        if 'owner' in values and not values['owner']:
            values['owner'] = None
        for name in ('created_at', 'updated_at', 'deleted_at', 'deleted'):
            values.pop(name, None)
        _validate(values, bool(values.get('status')))
        wanted = _columns(values)
        wanted['updated_at'] = now_us()
        if from_state == 'queued' and wanted.get('status') in _BINDING:
            self._claim_home(image_id)

        def change(present: Any) -> dict[str, Any]:
            record = self._checked(context, image_id, present)
            current = shown(record)
            columns = rows.image_columns(image_id, current)
            self._check_mutable(context, columns)
            if from_state and columns['status'] != from_state:
                raise exception.Conflict(
                    f'cannot transition from {columns["status"]} to '
                    f'{wanted.get("status")} in update '
                    f'(wanted from_state={from_state})')
            changes = rows.image_changes(current, wanted)
            changes.update(rows.property_changes(
                current, properties, purge_props, atomic_props or ()))
            if locations:
                changes.update(self._location_changes(record, locations))
            return changes

        record = self._records.update('image', image_id, change)
        image = self._row(context, record)
        return db_utils.mutate_image_dict_to_v1(image) if v1_mode else image

    def _claim_home(self, image_id: str) -> None:
        """Become the home of a queued image before bits are put here.

        :raises InvalidImageStatusTransition: (409) the home is cut off
        """
        record = self._records.get('image', image_id)
        if record is None:
            return
        values = shown(record)
        home = values.get('home')
        if (home in (None, self._records.site)
                or (values.get('data') or {}).get('status') != 'queued'):
            return
        try:
            self._neighbour.claim_home(image_id)
        except (errors.HomeUnreachable, errors.PeerRefused) as error:
            LOG.warning('Image %s: %s', image_id, error)
            raise exception.InvalidImageStatusTransition(
                f'Image {image_id} was created at site {home}, which must '
                f'agree before its data is uploaded at site '
                f'{self._records.site}: {error}. Upload at {home}, or try '
                f'again when the link is up.') from error

    def image_restore(self, context, image_id):
        def change(present: Any) -> dict[str, Any]:
            record = self._checked(context, image_id, present)
            status = rows.image_columns(image_id, shown(record))['status']
            if status != 'pending_delete':
                raise exception.Conflict(
                    f'cannot restore the image from {status} to active '
                    f'(wanted from_state=pending_delete)')
            return {'deletion': {'status': None, 'deleted': False,
                                 'deleted_at': None}}
        self._records.update('image', image_id, change)

    def image_destroy(self, context, image_id):
        def change(present: Any) -> dict[str, Any]:
            record = self._checked(context, image_id, present)
            current = shown(record)
            self._check_mutable(context,
                                rows.image_columns(image_id, current))
            now = now_us()
            return {'updated_at': now, 'deletion': {
                **(current.get('deletion') or {}), 'deleted': True,
                'deleted_at': now}}
        record = self._records.update('image', image_id, change)
        return self._row(context, record)

    # -- properties -------------------------------------------------------
    def image_set_property_atomic(self, image_id, name, value):
        self._claim_home(image_id)

        def change(present: Any) -> dict[str, Any]:
            if present is None:
                raise not_found(image_id)
            current = shown(present).get(f'prop:{name}')
            if current is not None and not current['removed']:
                raise exception.Duplicate()
            return {f'prop:{name}': {'value': value, 'removed': False}}
        self._records.update('image', image_id, change)

    def image_delete_property_atomic(self, image_id, name, value):
        def change(present: Any) -> dict[str, Any]:
            current = (shown(present).get(f'prop:{name}')
                       if present is not None else None)
            if current != {'value': value, 'removed': False}:
                raise exception.NotFound()
            return {f'prop:{name}': {'value': value, 'removed': True}}
        self._records.update('image', image_id, change)

    def image_property_create(self, context, values):
        image_id, name = values['image_id'], values['name']
        field = {'value': values.get('value'), 'removed': False}

        def change(present: Any) -> dict[str, Any]:
            if present is None:
                raise not_found(image_id)
            return {f'prop:{name}': field}
        record = self._records.update('image', image_id, change)
        return self._property(record, name)

    def image_property_delete(self, context, prop_ref, image_ref):
        def change(present: Any) -> dict[str, Any]:
            current = (shown(present).get(f'prop:{prop_ref}')
                       if present is not None else None)
            if current is None:
                raise exception.NotFound()
            return {f'prop:{prop_ref}': {**current, 'removed': True}}
        record = self._records.update('image', image_ref, change)
        return self._property(record, prop_ref)

    def _property(self, record: Record, name: str) -> Row:
        return next(row for row in rows.properties(
            record.id, shown(record), False) if row['name'] == name)

    # -- locations --------------------------------------------------------
    def _added(self, image_id: str, location: Mapping[str, Any],
               place: int = 0) -> dict[str, Any]:
        self._check_owner(image_id, location['url'])
        reading = self._records.clock.next()
        field = rows.location_field(image_id, location['url'], reading)
        return {field: rows.new_location(
            location, [reading, place], self._records.site, now_us())}

    @staticmethod
    def _check_owner(image_id: str, url: str) -> None:
        """Refuse a geo location that was issued for another image.

        Where users may set locations, a copied one would give its bits to
        whoever has seen it. Its signature is the store's to check.

        :raises BadStoreUri: (400)
        """
        if not url.startswith(f'{geo_location.SCHEME}:'):
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

    # -- usage ------------------------------------------------------------
    def _owned(self, owner_id: str, gone: tuple[str, ...]) -> list[Row]:
        prefix = terms.ordered(owner_id)
        found = (rows.image_row(record, self._records.site, True)
                 for record in self._records.walk(
                     'image.owner', prefix, terms.after(prefix)))
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
