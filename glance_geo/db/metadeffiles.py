# SPDX-License-Identifier: Apache-2.0
"""Loading metadata definitions from the JSON files that Glance ships.

``glance-manage db_load_metadefs`` writes SQL tables; this goes through the
data API, so that it works on every engine and reaches every site.
"""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from glance.common import exception

LOG = logging.getLogger(__name__)


def read(folder: Path) -> list[dict[str, Any]]:
    """Return the namespaces defined by the ``*.json`` files of a folder.

    :raises ValueError: a file is no JSON or defines no namespace
    :raises OSError: the folder can't be read
    """
    found = []
    for path in sorted(folder.glob('*.json')):
        try:
            document = json.loads(path.read_text())
            document['namespace']
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f'{path}: no metadata definition: '
                             f'{error!r}') from error
        found.append(document)
    return found


def _put_contents(data_api: Any, context: Any,
                  document: dict[str, Any]) -> None:
    name = document['namespace']
    for link in document.get('resource_type_associations', []):
        try:
            data_api.metadef_resource_type_create(
                context, {'name': link['name'], 'protected': True})
        except exception.MetadefDuplicateResourceType:
            pass
        data_api.metadef_resource_type_association_create(context, name, {
            'name': link['name'], 'prefix': link.get('prefix'),
            'properties_target': link.get('properties_target')})
    for prop, schema in document.get('properties', {}).items():
        data_api.metadef_property_create(
            context, name, {'name': prop, 'json_schema': schema})
    for thing in document.get('objects', []):
        data_api.metadef_object_create(context, name, {
            'name': thing['name'], 'description': thing.get('description'),
            'json_schema': thing.get('properties')})
    data_api.metadef_tag_create_tags(
        context, name, [{'name': tag['name']}
                        for tag in document.get('tags', [])], True)


def load(data_api: Any, context: Any, documents: Sequence[dict[str, Any]],
         progress: Callable[[str], None] = lambda name: None) -> int:
    """Create the namespaces that do not exist yet; may be repeated.

    :returns: how many were created
    """
    created = 0
    for document in documents:
        try:
            data_api.metadef_namespace_create(context, {
                'namespace': document['namespace'],
                'display_name': document.get('display_name'),
                'description': document.get('description'),
                'visibility': document.get('visibility'),
                'protected': document.get('protected'),
                'owner': document.get('owner', 'admin')})
        except exception.MetadefDuplicateNamespace:
            LOG.info('Namespace %s is there already', document['namespace'])
        else:
            _put_contents(data_api, context, document)
            created += 1
        progress(document['namespace'])
    return created


def unload(data_api: Any, context: Any) -> None:
    """Remove every namespace and resource type."""
    for row in data_api.metadef_namespace_get_all(context):
        data_api.metadef_namespace_delete(context, row['namespace'])
