# SPDX-License-Identifier: Apache-2.0
"""The records of a site whose images are in Glance's own SQL database.

Images are read there, as they are at the moment; what agents write (sites,
holdings) is in tables beside Glance's. The database brings both to all sites.
"""

import datetime
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from glance.db.sqlalchemy import models

from glance_geo.core import codec, records
from glance_geo.core.engine import MetadataEngine
from glance_geo.core.records import Context, Record
from glance_geo.db import rows
from glance_geo.db.recordstore import RecordStore
from glance_geo.db.recordsync import wall_ms
from glance_geo.db.sqlsource import SQLSource

_CHANGED = 'sql'
# Glance's clocks, at all sites, set when an image was changed.
_OVERLAP_MS = 120_000
_BATCH = 200
SITE = 'site'
"""In a location's metadata: where its bits were uploaded."""


def _home(locations: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the site of an image's first upload."""
    for row in locations:
        metadata = row['meta_data']
        if isinstance(metadata, str):
            metadata = json.loads(metadata or '{}')
        if (metadata or {}).get(SITE):
            return metadata[SITE]
    return None


def image_record(site: str, row: Mapping[str, Any],
                 properties: Sequence[Mapping[str, Any]],
                 locations: Sequence[Mapping[str, Any]]) -> Record:
    """Return an image's record, deleted ones' too.

    :param site: whose record it is to be
    """
    wanted = {name: row[name] for name in (
        *rows.PLAIN, *rows.DATA, 'status', 'deleted')}
    for name in ('created_at', 'updated_at', 'deleted_at'):
        wanted[name] = rows.to_us(row[name])
    fields = {**rows.image_changes({}, wanted), 'home': _home(locations)}
    for prop in properties:
        fields[f'prop:{prop["name"]}'] = {'value': prop['value'],
                                          'removed': False}
    for place, found in enumerate(locations):
        fields[rows.location_field(row['id'], found['value'],
                                   found['id'])] = rows.new_location(
            {'url': found['value'], 'metadata': {},
             'status': found['status']}, [0, place], site,
            wanted['updated_at'])
    return records.write(Record('image', row['id']), _CHANGED, 0, fields, 1)


class SQLRecords(RecordStore):
    """What replication sees of such a site."""

    def __init__(self, engine: MetadataEngine, site: str, source: SQLSource):
        super().__init__(engine, site)
        self._source = source
        self._followed: dict[str, bytes] = {}

    @property
    def feeds(self) -> bool:
        """Images change without a word to us."""
        return False

    # -- images -----------------------------------------------------------
    def _images(self, where: Any) -> Iterator[Record]:
        table, last = models.Image.__table__, ''
        while True:
            page = self._source.rows(sa.select(table).where(
                where, table.c.id > last).order_by(table.c.id).limit(_BATCH))
            if not page:
                return
            ids = [row['id'] for row in page]
            properties = self._source.of(models.ImageProperty, 'image_id',
                                         ids)
            locations = self._source.of(models.ImageLocation, 'image_id',
                                        ids, deleted=True)
            for row in page:
                yield image_record(self.site, row,
                                   properties.get(row['id'], []),
                                   locations.get(row['id'], []))
            if len(page) < _BATCH:
                return
            last = ids[-1]

    def get(self, kind: str, id: str) -> Record | None:
        if kind != 'image':
            return super().get(kind, id)
        return next(self._images(models.Image.__table__.c.id == id), None)

    def images_of(self, id: str) -> list[Record]:
        found = self.get('image', id)
        return [] if found is None else [found]

    def list(self, kind: str) -> Iterator[Record]:
        if kind != 'image':
            yield from super().list(kind)
            return
        yield from self._images(sa.true())

    # -- following --------------------------------------------------------
    def vector(self) -> Context:
        return {_CHANGED: wall_ms()}

    def newer(self, than: Mapping[str, int]) -> Iterator[Record]:
        """Yield the images that changed since.

        For one follower: it gets an image again only when that differs from
        what it was shown last.
        """
        if _CHANGED not in than:
            yield from self.list('image')
            return
        since = datetime.datetime.fromtimestamp(
            (than[_CHANGED] - _OVERLAP_MS) / 1000,
            datetime.UTC).replace(tzinfo=None)
        table = models.Image.__table__
        followed = {}
        for record in self._images(sa.or_(table.c.updated_at >= since,
                                          table.c.deleted_at >= since)):
            state = codec.encode(record)
            if self._followed.get(record.id) != state:
                yield record
            # Here, the follower has dealt with it.
            followed[record.id] = state
        self._followed = followed
