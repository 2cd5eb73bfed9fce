# SPDX-License-Identifier: Apache-2.0
"""The images that are there before anything is measured: the same ones on
every backend."""

import datetime
import random
import uuid

import sqlalchemy as sa
from geolab.tokens import project_id
from glance.db.sqlalchemy import models, models_metadef

PROJECTS = [project_id(f'project-{n}') for n in range(20)]
DISTROS = [f'distro-{n}' for n in range(40)]
_CHUNK = 2000
_BEGIN = datetime.datetime(2026, 1, 1)


def image_id(number):
    return str(uuid.UUID(int=(0x4000 << 64) | number, version=4))


def _rows(numbers, seed):
    """Return the rows of some images, by table."""
    images, properties, tags = [], [], []
    for number in numbers:
        rng = random.Random(f'{seed}/{number}')
        at = _BEGIN + datetime.timedelta(seconds=number * 7)
        times = {'created_at': at, 'updated_at': at, 'deleted': False}
        images.append({
            'id': image_id(number), 'name': f'image-{number}',
            'status': 'active', 'size': rng.randrange(1 << 34),
            'visibility': rng.choice(('public', 'private', 'private',
                                      'private', 'shared')),
            'owner': rng.choice(PROJECTS), 'disk_format': rng.choice(
                ('raw', 'qcow2')), 'container_format': 'bare',
            'checksum': f'{number:032x}', 'os_hash_algo': 'sha512',
            'os_hash_value': f'{number:0128x}', 'min_disk': 0, 'min_ram': 0,
            'protected': False, 'os_hidden': False, **times})
        for name, value in (('os_distro', rng.choice(DISTROS)),
                            ('architecture', 'x86_64'),
                            ('hw_disk_bus', 'virtio')):
            properties.append({'image_id': image_id(number), 'name': name,
                               'value': value, **times})
        for value in {f'tag-{rng.randrange(200)}' for _ in range(2)}:
            tags.append({'image_id': image_id(number), 'value': value,
                         **times})
    return images, properties, tags


def fill_sql(url, first, last, seed):
    """Insert images into Glance's tables, making them if need be."""
    engine = sa.create_engine(url)
    if first == 0:
        models.BASE.metadata.create_all(engine)
        models_metadef.BASE_DICT.metadata.create_all(engine)
    for start in range(first, last, _CHUNK):
        parts = _rows(range(start, min(start + _CHUNK, last)), seed)
        with engine.begin() as connection:
            for model, rows in zip((models.Image, models.ImageProperty,
                                    models.ImageTag), parts, strict=True):
                connection.execute(sa.insert(model.__table__), rows)
    with engine.connect() as connection:    # as its own upkeep would do
        connection = connection.execution_options(
            isolation_level='AUTOCOMMIT')
        for table in ('images', 'image_properties', 'image_tags'):
            connection.execute(sa.text(
                f'ANALYZE {"" if "postgres" in url else "TABLE "}{table}'))
    engine.dispose()


def fill_geo(backend, sql_url):
    """Copy the images of an SQL database, without waiting for the disk."""
    from glance_geo.db.engines import open_engine
    from glance_geo.db.moving import GlanceSource
    from glance_geo.db.recordstore import RecordStore
    from glance_geo.db.sqlsource import SQLSource
    engine = open_engine(backend.url)
    redis = getattr(engine, '_client', None)
    if redis is None:
        engine._connection().execute('PRAGMA synchronous=OFF')
    else:
        redis.server().config_set('appendfsync', 'no')
    source = GlanceSource(SQLSource(sql_url))
    source.copy_to(RecordStore(engine, 'bench'), lambda: None)
    if redis is not None:
        redis.server().config_set('appendfsync', 'always')
    engine.close()
