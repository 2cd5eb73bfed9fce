# SPDX-License-Identifier: Apache-2.0
"""Glance's SQL database, read as records.

By Glance's own models, whose schema must be current (``glance-manage
db_sync``). The fields of a row are the same in every run, so that a copy can
be repeated and compared.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from glance.db.sqlalchemy import models, models_metadef
from oslo_db.exception import DBError

from glance_geo.core import errors
from glance_geo.db import rows

_BATCH = 500
_SCHEMES = ('mysql', 'mariadb', 'postgresql', 'cockroachdb')

Found = tuple[str, str, dict[str, Any]]
"""(kind, id, fields) of a record."""


def is_sql(url: str) -> bool:
    """Say whether a URL names an SQL database, rather than an engine.

    SQLite is both: ``sql+sqlite:////path`` is Glance's.
    """
    scheme = url.partition(':')[0]
    return scheme.startswith('sql+') or scheme.partition('+')[0] in _SCHEMES


def _table(model: Any) -> sa.Table:
    return model.__table__


class SQLSource:
    """A connection to Glance's database; it only reads."""

    def __init__(self, url: str):
        made = sa.make_url(url.removeprefix('sql+'))
        if made.get_backend_name() == 'cockroachdb':
            from glance_geo.db.cockroachdb import plugin
            made = plugin.named(made)
        self._engine = sa.create_engine(made)

    def rows(self, query: Any) -> list[Any]:
        """Return what a query selects, as mappings."""
        try:
            with self._engine.connect() as connection:
                return list(connection.execute(query).mappings())
        except (sa.exc.SQLAlchemyError, DBError) as error:
            # Its text may hold the statement; never the URL.
            raise errors.EngineUnavailable(
                f'SQL database at {self._engine.url.host or "a file"}: '
                f'{str(error).splitlines()[0]}') from error

    @staticmethod
    def _live(model: Any) -> Any:
        table = _table(model)
        return (table.c.deleted.is_(False) if 'deleted' in table.c
                else sa.true())

    def count(self) -> int:
        return sum(
            self.rows(sa.select(sa.func.count().label('n')).select_from(
                _table(model)).where(self._live(model)))[0]['n']
            for model in (models.Image, models.Task,
                          models_metadef.MetadefResourceType,
                          models_metadef.MetadefNamespace))

    def _batches(self, model: Any) -> Iterator[list[Mapping[str, Any]]]:
        """Yield live rows by their id, a page at a time."""
        table, last = _table(model), None
        while True:
            query = sa.select(table).where(self._live(model)).order_by(
                table.c.id).limit(_BATCH)
            if last is not None:
                query = query.where(table.c.id > last)
            page = self.rows(query)
            if page:
                yield page
            if len(page) < _BATCH:
                return
            last = page[-1]['id']

    def of(self, model: Any, column: str, ids: Sequence[Any],
           deleted: bool = False) -> dict[Any, list[Mapping[str, Any]]]:
        """Return the rows that belong to others, by those others.

        :param deleted: also those that Glance has marked as deleted
        """
        table = _table(model)
        found: dict[Any, list[Mapping[str, Any]]] = {}
        query = sa.select(table).where(
            sa.true() if deleted else self._live(model),
            table.c[column].in_(ids))
        if 'id' in table.c:
            query = query.order_by(table.c.id)
        for row in self.rows(query):
            found.setdefault(row[column], []).append(row)
        return found

    def records(self, site: str) -> Iterator[Found]:
        """Yield everything that lives, as records of a site."""
        yield from self._images(site)
        yield from self._tasks()
        yield from self._metadefs()

    # -- images -----------------------------------------------------------
    def _images(self, site: str) -> Iterator[Found]:
        for page in self._batches(models.Image):
            ids = [row['id'] for row in page]
            parts = [self.of(model, 'image_id', ids) for model in (
                models.ImageProperty, models.ImageTag, models.ImageLocation,
                models.ImageMember)]
            for row in page:
                yield 'image', row['id'], self._image(
                    row, site, *(part.get(row['id'], []) for part in parts))

    @staticmethod
    def _image(row: Mapping[str, Any], site: str, properties: Any, tags: Any,
               locations: Any, members: Any) -> dict[str, Any]:
        wanted = {name: row[name] for name in (*rows.PLAIN, *rows.DATA,
                                               'status')}
        for name in ('created_at', 'updated_at'):
            wanted[name] = rows.to_us(row[name])
        fields = {**rows.image_changes({}, wanted), 'home': site}
        for prop in properties:
            fields[f'prop:{prop["name"]}'] = {'value': prop['value'],
                                              'removed': False}
        for place, tag in enumerate(tags):
            fields[f'tag:{tag["value"]}'] = [0, place]
        for place, found in enumerate(locations):
            field = rows.location_field(row['id'], found['value'],
                                        found['id'])
            fields[field] = rows.new_location(
                {'url': found['value'], 'metadata': found['meta_data'],
                 'status': found['status']}, [0, place], site,
                wanted['updated_at'])
        for member in members:
            identity = rows.stable_id(row['id'], member['member'],
                                      member['id'])
            fields[f'member:{member["member"]}'] = {
                'id': identity, 'removed': False,
                'created_at': rows.to_us(member['created_at']),
                'can_share': bool(member['can_share'])}
            fields[f'mstatus:{identity}'] = {
                'status': member['status'],
                'updated_at': rows.to_us(member['updated_at'])}
        return fields

    # -- tasks ------------------------------------------------------------
    def _tasks(self) -> Iterator[Found]:
        for page in self._batches(models.Task):
            infos = self.of(models.TaskInfo, 'task_id',
                             [row['id'] for row in page])
            for row in page:
                fields: dict[str, Any] = {
                    name: row[name] for name in (
                        'type', 'status', 'owner', 'image_id', 'request_id',
                        'user_id')}
                for name in ('expires_at', 'created_at', 'updated_at'):
                    fields[name] = rows.to_us(row[name])
                fields['deleted'] = False
                for info in infos.get(row['id'], []):
                    for name in ('input', 'result'):
                        fields[name] = (None if info[name] is None
                                        else json.dumps(info[name]))
                    fields['message'] = info['message']
                yield 'task', row['id'], fields

    # -- metadata definitions ---------------------------------------------
    def _metadefs(self) -> Iterator[Found]:
        types = {}
        for page in self._batches(models_metadef.MetadefResourceType):
            for row in page:
                types[row['id']] = row['name']
                yield 'resource_type', row['name'], {
                    'id': rows.stable_id('resource_type', row['name']),
                    'protected': bool(row['protected']), 'deleted': False,
                    **self._times(row)}
        for page in self._batches(models_metadef.MetadefNamespace):
            ids = [row['id'] for row in page]
            parts = {sort: self.of(model, 'namespace_id', ids)
                     for sort, model in (
                         ('object', models_metadef.MetadefObject),
                         ('property', models_metadef.MetadefProperty),
                         ('label', models_metadef.MetadefTag),
                         ('type',
                          models_metadef.MetadefNamespaceResourceType))}
            for row in page:
                fields = self._namespace(row)
                for sort, part in parts.items():
                    for place, found in enumerate(part.get(row['id'], [])):
                        name = (types[found['resource_type_id']]
                                if sort == 'type' else found['name'])
                        fields[f'{sort}:{name}'] = self._content(
                            sort, row['namespace'], name, found, place)
                yield 'namespace', row['namespace'], fields

    @staticmethod
    def _times(row: Mapping[str, Any]) -> dict[str, Any]:
        created = rows.to_us(row['created_at'])
        return {'created_at': created,
                'updated_at': rows.to_us(row['updated_at']) or created}

    def _namespace(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return {'id': rows.stable_id('namespace', row['namespace'],
                                     row['id']),
                'deleted': False, **self._times(row),
                **{name: row[name] for name in (
                    'display_name', 'description', 'visibility', 'protected',
                    'owner')}}

    def _content(self, sort: str, namespace: str, name: str,
                 row: Mapping[str, Any], place: int) -> dict[str, Any]:
        found = {'order': [0, place], **self._times(row)}
        if sort == 'type':
            found.update(properties_target=row['properties_target'],
                         prefix=row['prefix'])
            return found
        found['id'] = rows.stable_id(sort, namespace, name, row['id'])
        if sort == 'object':
            found.update(description=row['description'],
                         required=row['required'])
        if sort != 'label':
            found['json_schema'] = json.dumps(row['json_schema'] or {})
        return found
