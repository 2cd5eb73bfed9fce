# SPDX-License-Identifier: Apache-2.0
"""Images and their properties: the data API's largest part.

Semantics are those of ``glance.db.sqlalchemy.api``; docstrings say only what
is not to be read there.
"""

import logging
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from glance.common import exception
from glance.db import utils as db_utils

from glance_geo.core import errors
from glance_geo.core.records import Record
from glance_geo.core.rules import shown
from glance_geo.db import rows
from glance_geo.db.calls import check_4byte, not_found, now_us
from glance_geo.db.imagelocations import LocationCalls
from glance_geo.db.rows import Row

LOG = logging.getLogger(__name__)

_STATUSES = ('active', 'saving', 'queued', 'killed', 'pending_delete',
             'deleted', 'deactivated', 'importing', 'uploading')
# Moves out of ``queued`` that put bits at this site: the home's to make.
_BINDING = ('saving', 'uploading', 'importing', 'active')
_MAX_DB_INT = 2 ** 31 - 1


class _HomeElsewhere(Exception):
    """Another site is the home of the queued image."""


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


def _stored(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what a client got from a read, and sends back."""
    return {name: value for name, value in properties.items()
            if name not in rows.COMPUTED}


def _columns(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that are columns, times as integers."""
    found = {name: values[name] for name in rows.COLUMNS if name in values}
    for name in rows.TIMES:
        if name in found:
            found[name] = rows.to_us(found[name])
    return found


class ImageCalls(LocationCalls):
    """``image_*`` but for lists, locations, members and tags."""

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
                              viewer=context.owner, **options)

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
        properties = _stored(values.pop('properties', {}))
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
        properties = _stored(values.pop('properties', {}))
        locations = values.pop('locations', None)
        if 'owner' in values and not values['owner']:
            values['owner'] = None
        for name in ('created_at', 'updated_at', 'deleted_at', 'deleted'):
            values.pop(name, None)
        _validate(values, bool(values.get('status')))
        wanted = _columns(values)
        wanted['updated_at'] = now_us()
        binds = from_state == 'queued' and wanted.get('status') in _BINDING

        def change(present: Any, claimed: list[str]) -> dict[str, Any]:
            record = self._checked(context, image_id, present)
            if binds:
                self._check_home(record, claimed)
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

        record = self._update_at_home(image_id, change)
        image = self._row(context, record)
        return db_utils.mutate_image_dict_to_v1(image) if v1_mode else image

    def _check_home(self, record: Record, claimed: list[str]) -> None:
        """Let bits be put at this site only once it is the image's home.

        :raises _HomeElsewhere: another site must agree first
        """
        values = shown(record)
        home = values.get('home')
        if (home not in (None, self._records.site) and not claimed
                and (values.get('data') or {}).get('status') == 'queued'):
            raise _HomeElsewhere(home)

    def _update_at_home(self, image_id: str,
                        change: Callable[[Any, list[str]], Any]) -> Any:
        """Update an image; where its home must agree first, ask it to.

        :raises InvalidImageStatusTransition: (409) the home is cut off
        """
        claimed: list[str] = []
        try:
            return self._records.update(
                'image', image_id, lambda present: change(present, claimed))
        except _HomeElsewhere as elsewhere:
            home = elsewhere.args[0]
        try:
            self._neighbour.claim_home(image_id)
        except (errors.HomeUnreachable, errors.PeerRefused) as error:
            LOG.warning('Image %s: %s', image_id, error)
            raise exception.InvalidImageStatusTransition(
                f'Image {image_id} was created at site {home}, which must '
                f'agree before its data is uploaded at site '
                f'{self._records.site}: {error}. Upload at {home}, or try '
                f'again when the link is up.') from error
        claimed.append(home)
        return self._records.update(
            'image', image_id, lambda present: change(present, claimed))

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
            # What it has seen tells later whether a change met it: then the
            # bits stay in the trash for a while.
            return {'updated_at': now, 'deletion': {
                **(current.get('deletion') or {}), 'deleted': True,
                'deleted_at': now, 'seen': dict(record.context)}}
        record = self._records.update('image', image_id, change)
        return self._row(context, record)

    # -- properties -------------------------------------------------------
    def image_set_property_atomic(self, image_id, name, value):
        def change(present: Any, claimed: list[str]) -> dict[str, Any]:
            if present is None:
                raise not_found(image_id)
            self._check_home(present, claimed)
            current = shown(present).get(f'prop:{name}')
            if current is not None and not current['removed']:
                raise exception.Duplicate()
            return {f'prop:{name}': {'value': value, 'removed': False}}
        self._update_at_home(image_id, change)

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
