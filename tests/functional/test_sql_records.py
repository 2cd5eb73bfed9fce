# SPDX-License-Identifier: Apache-2.0
"""What agents see of images that are in Glance's own SQL database."""

import uuid

import pytest

from glance_geo.core import location
from glance_geo.db.engines import open_engine
from glance_geo.db.sqlrecords import SQLRecords
from glance_geo.db.sqlsource import SQLSource
from glance_geo.replication.sources import image_bits
from tests.functional.test_cockroachdb import (  # noqa: F401
    ADMIN,
    api,
    connect,
    database,
    new_image,
)

MANIFEST = bytes(range(32))


@pytest.fixture
def log(database):  # noqa: F811
    engine = open_engine(database)
    yield SQLRecords(engine, 'rennes', SQLSource(database))
    engine.close()


def stored(api, **values):  # noqa: F811
    image = str(uuid.uuid4())
    url = location.issue('geo', image, MANIFEST, '0' * 16, 'k1',
                         b'k' * 32).uri
    return new_image(api, id=image, status='active', size=10, locations=[{
        'url': url, 'metadata': {'store': 'geo', 'site': 'paris'},
        'status': 'active'}], **values)


def bits(log, image):
    return image_bits(log.get('image', image))


def test_an_image_has_its_home_its_bits_and_its_policy(api, log):  # noqa: F811
    image = stored(api, visibility='public',
                   properties={'geo_policy': 'everywhere'})
    found = bits(log, image)
    assert found.home == 'paris' and found.ready and found.public
    assert found.manifests == [MANIFEST]
    assert found.decide('rennes').wanted
    assert [record.id for record in log.images_of(image)] == [image]
    assert image in {record.id for record in log.list('image')}
    assert log.get('image', str(uuid.uuid4())) is None


def test_deletion_frees_bits_unless_it_is_delayed(api, log):  # noqa: F811
    image, delayed = stored(api), stored(api)
    api.image_destroy(ADMIN, image)
    assert bits(log, image).deleted and not bits(log, image).manifests
    api.image_update(ADMIN, delayed, {'status': 'pending_delete'})
    (its,) = api.image_get(ADMIN, delayed)['locations']
    api.image_location_delete(ADMIN, delayed, its['id'], 'pending_delete')
    found = bits(log, delayed)
    assert not found.deleted and found.manifests == [MANIFEST]


def test_a_follower_is_shown_each_change_once(api, log):  # noqa: F811
    def changed():
        nonlocal cursor
        vector = log.vector()
        found = {record.id for record in log.newer(cursor)}
        cursor = vector
        return found
    image, cursor = stored(api), {}
    assert image in changed()
    changed()
    assert changed() == set()
    api.image_update(ADMIN, image, {'name': 'other'})
    assert changed() == {image}
    assert changed() == set()
    api.image_destroy(ADMIN, image)
    assert changed() == {image}


def test_a_follower_that_fails_is_shown_it_again(api, log):  # noqa: F811
    cursor = log.vector()
    image = stored(api)
    for record in log.newer(cursor):
        if record.id == image:
            break
    assert image in {record.id for record in log.newer(cursor)}


def test_what_agents_write_is_beside(log):
    log.update('holding', 'a.b', lambda record: {'holding': {'total': 1}})
    assert log.get('holding', 'a.b').fields['holding']
    assert log.replicates and not log.feeds
