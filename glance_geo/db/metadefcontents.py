# SPDX-License-Identifier: Apache-2.0
"""The data API's functions on what namespaces hold, and on resource types."""

from typing import Any

from glance.common import exception

from glance_geo.core.engine import Entry
from glance_geo.core.records import REMOVED, Record
from glance_geo.core.rules import shown
from glance_geo.db import rows, terms
from glance_geo.db.calls import check_4byte, now_us
from glance_geo.db.metadefs import ContentCalls, _page, _sorted, contents
from glance_geo.db.rows import Row


class ObjectCalls(ContentCalls):
    """``metadef_object_*``."""

    def metadef_object_get_all(self, context, namespace_name):
        return self._contents(context, namespace_name, 'object')

    def metadef_object_get(self, context, namespace_name, object_name):
        return self._content(context, namespace_name, 'object', object_name)

    def metadef_object_create(self, context, namespace_name, object_dict):
        return self._add(context, namespace_name, 'object', [object_dict])[0]

    def metadef_object_update(self, context, namespace_name, object_id,
                              object_dict):
        return self._change(context, namespace_name, 'object', object_id,
                            object_dict)

    def metadef_object_delete(self, context, namespace_name, object_name):
        return self._take_one(context, namespace_name, 'object', object_name)

    def metadef_object_delete_namespace_content(self, context,
                                                namespace_name):
        return len(self._take(context, namespace_name, 'object', None))

    def metadef_object_count(self, context, namespace_name):
        return len(self.metadef_object_get_all(context, namespace_name))


class PropertyCalls(ContentCalls):
    """``metadef_property_*``."""

    def metadef_property_get_all(self, context, namespace_name):
        return self._contents(context, namespace_name, 'property')

    def metadef_property_get(self, context, namespace_name, property_name):
        return self._content(context, namespace_name, 'property',
                             property_name)

    def metadef_property_create(self, context, namespace_name,
                                property_dict):
        return self._add(context, namespace_name, 'property',
                         [property_dict])[0]

    def metadef_property_update(self, context, namespace_name, property_id,
                                property_dict):
        return self._change(context, namespace_name, 'property', property_id,
                            property_dict)

    def metadef_property_delete(self, context, namespace_name,
                                property_name):
        return self._take_one(context, namespace_name, 'property',
                              property_name)

    def metadef_property_delete_namespace_content(self, context,
                                                  namespace_name):
        return len(self._take(context, namespace_name, 'property', None))

    def metadef_property_count(self, context, namespace_name):
        return len(self.metadef_property_get_all(context, namespace_name))


class LabelCalls(ContentCalls):
    """``metadef_tag_*``."""

    def metadef_tag_get_all(self, context, namespace_name, filters=None,
                            marker=None, limit=None, sort_key='created_at',
                            sort_dir='desc'):
        found = self._contents(context, namespace_name, 'label')
        _sorted(found, sort_key, sort_dir)
        if marker is not None and not any(row['id'] == marker
                                          for row in found):
            raise exception.MetadefTagNotFound(
                message=f'Metadata tag not found for id {marker}')
        return _page(found, marker, limit)

    def metadef_tag_get(self, context, namespace_name, name):
        return self._content(context, namespace_name, 'label', name)

    def metadef_tag_create(self, context, namespace_name, tag_dict):
        return self._add(context, namespace_name, 'label', [tag_dict])[0]

    def metadef_tag_create_tags(self, context, namespace_name, tag_list,
                                can_append=False):
        if not tag_list:
            return []
        return self._add(context, namespace_name, 'label', tag_list,
                         replace=not can_append)

    def metadef_tag_update(self, context, namespace_name, id, tag_dict):
        return self._change(context, namespace_name, 'label', id, tag_dict)

    def metadef_tag_delete(self, context, namespace_name, name):
        return self._take_one(context, namespace_name, 'label', name)

    def metadef_tag_delete_namespace_content(self, context, namespace_name):
        return len(self._take(context, namespace_name, 'label', None))

    def metadef_tag_count(self, context, namespace_name):
        return len(self._contents(context, namespace_name, 'label'))


def _type_row(record: Record) -> Row:
    values = shown(record)
    return Row(id=values['id'], name=record.id,
               protected=bool(values['protected']),
               created_at=rows.from_us(values['created_at']),
               updated_at=rows.from_us(values['updated_at']))


class ResourceTypeCalls(ContentCalls):
    """``metadef_resource_type_*`` and the associations."""

    def metadef_resource_type_get(self, context, resource_type_name):
        record = self._records.get('resource_type', resource_type_name)
        if record is None or shown(record).get('deleted'):
            raise exception.MetadefResourceTypeNotFound(
                resource_type_name=resource_type_name)
        return _type_row(record)

    def metadef_resource_type_get_all(self, context):
        return [_type_row(record)
                for record in self._records.walk(
                    terms.live_index('resource_type'))
                if not shown(record).get('deleted')]

    def metadef_resource_type_create(self, context, values):
        check_4byte(dict(values))
        name, now = values['name'], now_us()

        def create(present: Record | None) -> dict[str, Any]:
            if present is not None and not shown(present).get('deleted'):
                raise exception.MetadefDuplicateResourceType(
                    resource_type_name=name)
            # A resource type is its name: sites that create it apart create
            # the same one.
            return {'id': rows.stable_id('resource_type', name),
                    'protected': bool(values.get('protected')),
                    'created_at': now, 'updated_at': now, 'deleted': False}
        return _type_row(self._records.create('resource_type', name, create))

    def metadef_resource_type_delete(self, context, resource_type_name):
        row = self.metadef_resource_type_get(context, resource_type_name)
        if row['protected']:
            raise exception.ProtectedMetadefResourceTypeSystemDelete(
                resource_type_name=resource_type_name)
        for record in self._records.walk(terms.live_index('namespace')):
            if f'type:{resource_type_name}' in record.fields:
                raise exception.MetadefIntegrityError(
                    record_type='resource-type',
                    record_name=resource_type_name)
        self._records.update(
            'resource_type', resource_type_name,
            lambda present: {'deleted': True, 'updated_at': now_us()})
        return row

    @staticmethod
    def _association(row: Row) -> Row:
        return Row((name, row.get(name)) for name in (
            'name', 'properties_target', 'prefix', 'created_at',
            'updated_at'))

    def _linked(self, context: Any, namespace_name: str, type_name: str,
                ) -> tuple[Entry | None, Record, bool]:
        """Read a namespace and a resource type in one round trip.

        :returns: the namespace's entry and record, and whether the type is
            there
        """
        keys = [f'namespace/{namespace_name}', f'resource_type/{type_name}']
        found = self._records.engine.get_many(keys)
        record, kind = (self._records.read(key, found[key]) if key in found
                        else None for key in keys)
        checked = self._checked_namespace(context, namespace_name, record)
        return (found.get(keys[0]), checked,
                kind is not None and not shown(kind).get('deleted'))

    def _association_in(self, record: Record, type_name: str) -> Row:
        for row in contents(record, 'type'):
            if row['name'] == type_name:
                return self._association(row)
        raise exception.MetadefResourceTypeAssociationNotFound(
            resource_type_name=type_name, namespace_name=record.id)

    def metadef_resource_type_association_get(self, context, namespace_name,
                                              resource_type_name):
        _, record, known = self._linked(context, namespace_name,
                                        resource_type_name)
        if not known:
            raise exception.MetadefResourceTypeNotFound(
                resource_type_name=resource_type_name)
        return self._association_in(record, resource_type_name)

    def metadef_resource_type_association_get_all_by_namespace(
            self, context, namespace_name):
        return [self._association(row) for row in contents(
            self._namespace(context, namespace_name), 'type')]

    def metadef_resource_type_association_create(self, context,
                                                 namespace_name, values):
        name = values['name']
        entry, _, known = self._linked(context, namespace_name, name)
        if not known:
            self.metadef_resource_type_create(
                context, {'name': name, 'protected': False})
        now = now_us()

        def change(present: Any) -> dict[str, Any]:
            current = shown(self._checked_namespace(context, namespace_name,
                                                    present))
            if f'type:{name}' in current:
                raise exception.MetadefDuplicateResourceTypeAssociation(
                    resource_type_name=name, namespace_name=namespace_name)
            return {f'type:{name}': {
                'properties_target': values.get('properties_target'),
                'prefix': values.get('prefix'), 'created_at': now,
                'updated_at': now,
                'order': [self._records.clock.next(), 0]}}
        return self._association_in(self._records.update(
            'namespace', namespace_name, change, entry), name)

    def metadef_resource_type_association_delete(self, context,
                                                 namespace_name,
                                                 resource_type_name):
        entry, record, known = self._linked(context, namespace_name,
                                            resource_type_name)
        if not known:
            raise exception.MetadefResourceTypeNotFound(
                resource_type_name=resource_type_name)
        row = self._association_in(record, resource_type_name)
        self._records.update(
            'namespace', namespace_name,
            lambda present: {f'type:{resource_type_name}': REMOVED}, entry)
        return row
