# SPDX-License-Identifier: Apache-2.0
"""Loading metadata definitions from the JSON files that Glance ships.

``glance-manage db_load_metadefs`` writes SQL tables; this goes through the
data API, so that it works on every engine and reaches every site.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from glance_geo.core import births
from glance_geo.core.records import Birth, Record, Sibling
from glance_geo.core.rules import shown
from glance_geo.db import rows
from glance_geo.db.recordstore import RecordStore

_ORIGIN = 'metadefs'
# Sites load the files at different times, and must get equal records.
_TIME_US = 946_684_800_000_000      # 2000-01-01
_TIMES = {'created_at': _TIME_US, 'updated_at': _TIME_US}


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


def records_of(document: dict[str, Any]) -> Iterator[Record]:
    """Return the records that a definition stands for.

    They are the same at every site, down to their births and dots: sites that
    load a file apart from each other have nothing to merge.
    """
    for link in document.get('resource_type_associations', []):
        yield _record('resource_type', link['name'], {
            'id': rows.stable_id('resource_type', link['name']),
            'protected': True, 'deleted': False, **_TIMES})
    name = document['namespace']
    fields: dict[str, Any] = {
        'id': rows.stable_id('namespace', name, _ORIGIN), 'deleted': False,
        'owner': document.get('owner', 'admin'), **_TIMES,
        **{key: document.get(key) for key in (
            'display_name', 'description', 'visibility', 'protected')}}
    for place, (sort, thing, values) in enumerate(_contents(document)):
        fields[f'{sort}:{thing}'] = {
            **values, 'order': [0, place], **_TIMES,
            **({} if sort == 'type' else {
                'id': rows.stable_id(sort, name, thing, _ORIGIN)})}
    yield _record('namespace', name, fields)


def _contents(document: dict[str, Any],
              ) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (sort, name, values) of what a definition holds."""
    for link in document.get('resource_type_associations', []):
        yield 'type', link['name'], {
            'prefix': link.get('prefix'),
            'properties_target': link.get('properties_target')}
    for name, schema in document.get('properties', {}).items():
        yield 'property', name, {'json_schema': json.dumps(schema)}
    for thing in document.get('objects', []):
        yield 'object', thing['name'], {
            'description': thing.get('description'), 'required': None,
            'json_schema': json.dumps(thing.get('properties') or {})}
    for tag in document.get('tags', []):
        yield 'label', tag['name'], {}


def _record(kind: str, id: str, fields: dict[str, Any]) -> Record:
    digest = hashlib.blake2b(repr((kind, id, fields)).encode(),
                             digest_size=6).hexdigest()
    dot = (f'{births.NO_SITE}{_ORIGIN}.{digest}', 1)
    return Record(
        kind, id, (Birth(0, _ORIGIN, _ORIGIN) if kind in births.CLAIMED
                   else None), {dot[0]: dot[1]},
        {name: {dot: Sibling(0, value)} for name, value in fields.items()})


def _load_one(store: RecordStore, record: Record) -> bool:
    """Bring in a record that is not there; say whether it was not."""
    present = store.get(record.kind, record.id)
    if present is not None and not shown(present).get('deleted'):
        return False
    if present is None:
        store.absorb(record)
        # What no site wrote, none would send: this write takes it along.
        store.update(record.kind, record.id,
                     lambda present: {'loaded': True})
    else:
        store.create(record.kind, record.id,
                     lambda present: {**shown(record), 'loaded': True})
    return True


def load(data_api: Any, documents: Sequence[dict[str, Any]],
         progress: Callable[[str], None] = lambda name: None) -> int:
    """Create what does not exist yet; may be repeated, at any site.

    :returns: how many namespaces were created
    """
    created = 0
    for document in documents:
        for record in records_of(document):
            new = _load_one(data_api.records, record)
            created += new and record.kind == 'namespace'
        progress(document['namespace'])
    return created


def unload(data_api: Any, context: Any) -> None:
    """Remove every namespace and resource type."""
    for row in data_api.metadef_namespace_get_all(context):
        data_api.metadef_namespace_delete(context, row['namespace'])
