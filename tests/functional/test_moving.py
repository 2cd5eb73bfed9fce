# SPDX-License-Identifier: Apache-2.0
"""Metadata moves between engines, files and SQL, and arrives whole."""

import datetime
import json
import subprocess
import sys

import pytest
import sqlalchemy as sa
from glance.db.sqlalchemy import models, models_metadef
from sqlalchemy.orm import Session

from glance_geo.db import api
from tests import engines

SITE = 'paris'


def command(config, *arguments, ok=True):
    """Run ``glance-geo`` as an operator does."""
    done = subprocess.run(
        [sys.executable, '-c', 'import sys; from glance_geo.cmd.main import '
         'main; sys.exit(main())', '--config-file', str(config),
         *arguments], capture_output=True, text=True, timeout=120)
    assert (done.returncode == 0) == ok, done.stderr
    return done.stdout if ok else done.stderr


def configure(folder, url):
    path = folder / 'glance-api.conf'
    path.write_text(f'[glance_geo]\nsite_name = {SITE}\n'
                    f'metadata_backend = {url}\nagent_socket = '
                    f'{folder}/none.sock\n')
    return path


def fill(url):
    data_api = api.load(url, site=SITE)
    for number in range(30):
        data_api.records.create('image', f'i{number}', lambda present: {
            'name': 'x', 'created_at': 1, 'visibility': 'public'})
    data_api.records.update('image', 'i3', lambda present: {'name': 'y'})
    data_api.close()


@pytest.mark.parametrize('source,target', [
    ('sqlite', 'redis'), ('redis', 'sqlite'), ('sqlite', 'riak'),
    ('riak', 'redis')])
def test_between_engines_and_back(source, target, tmp_path):
    urls = [engines.url(name, tmp_path) for name in (source, target)]
    fill(urls[0])
    config = configure(tmp_path, urls[1])
    # Cut off in the middle, it goes on.
    half = api.load(urls[1], site=SITE)
    half.records.absorb(api.load(urls[0], site=SITE).records.get(
        'image', 'i7'))
    half.close()
    done = json.loads(command(config, 'metadata', 'migrate', '--from',
                              urls[0], '-f', 'json'))
    assert done == {'records': 30, 'copied': 29, 'differing': 0}
    again = json.loads(command(config, 'metadata', 'migrate', '--from',
                               urls[0], '-f', 'json'))
    assert again['copied'] == 0
    moved = api.load(urls[1], site=SITE)
    moved.records.update('image', 'i5', lambda present: {'name': 'changed'})
    moved.close()
    text = command(config, 'metadata', 'migrate', '--from', urls[0],
                   '--verify-only', ok=False)
    assert '1 of 30 records differ: image/i5' in text


def test_through_a_file(tmp_path):
    url = engines.url('sqlite', tmp_path)
    fill(url)
    file = tmp_path / 'all.geo'
    command(configure(tmp_path, url), 'metadata', 'export', str(file))
    assert file.stat().st_mode & 0o077 == 0
    other = engines.url('sqlite', tmp_path)
    config = configure(tmp_path, other)
    done = json.loads(command(config, 'metadata', 'import', str(file), '-f',
                              'json'))
    assert done == {'records': 30, 'changed': 30}
    data = file.read_bytes()
    file.write_bytes(data[:len(data) // 2])
    assert 'cut short' in command(config, 'metadata', 'import', str(file),
                                  ok=False)
    file.write_bytes(b'something else')
    assert 'is no file of' in command(config, 'metadata', 'import',
                                      str(file), ok=False)


@pytest.fixture
def sql(tmp_path):
    """A Glance database with one of everything."""
    url = f'sqlite:///{tmp_path}/glance.db'
    engine = sa.create_engine(url)
    models.BASE.metadata.create_all(engine)
    models_metadef.BASE_DICT.metadata.create_all(engine)
    at = datetime.datetime(2026, 1, 2, 3, 4, 5)
    times = {'created_at': at, 'updated_at': at}
    with Session(engine) as session:
        for number in range(3):
            id = f'00000000-0000-4000-8000-00000000000{number}'
            session.add(models.Image(
                id=id, name=f'image {number}', status='active', size=7,
                visibility='shared', owner='one', min_disk=1, min_ram=2,
                disk_format='raw', container_format='bare',
                checksum='c', deleted=number == 2, **times))
            session.flush()
            session.add(models.ImageProperty(image_id=id, name='os',
                                             value='x', **times))
            session.add(models.ImageTag(image_id=id, value='red', **times))
            session.add(models.ImageLocation(
                image_id=id, value=f'file:///images/{id}',
                meta_data={'store': 'file'}, status='active', **times))
            session.add(models.ImageMember(image_id=id, member='two',
                                           status='accepted', **times))
        session.add(models.Task(id='t', type='import', status='success',
                                owner='one', deleted=False, **times))
        session.flush()
        session.add(models.TaskInfo(task_id='t', input={'a': 1},
                                    result=None, message='m'))
        space = models_metadef.MetadefNamespace(
            namespace='N', visibility='public', owner='one',
            protected=False, **times)
        kind = models_metadef.MetadefResourceType(name='T', protected=True,
                                                  **times)
        session.add_all([space, kind])
        session.flush()
        session.add_all([
            models_metadef.MetadefObject(
                namespace_id=space.id, name='o', json_schema={'b': 2},
                **times),
            models_metadef.MetadefProperty(
                namespace_id=space.id, name='p', json_schema={}, **times),
            models_metadef.MetadefTag(namespace_id=space.id, name='t',
                                      **times),
            models_metadef.MetadefNamespaceResourceType(
                namespace_id=space.id, resource_type_id=kind.id,
                prefix='hw_', **times)])
        session.commit()
    engine.dispose()
    return f'sql+{url}'


@pytest.mark.parametrize('target', [*engines.PRODUCTS[1:], 'cockroachdb'])
def test_from_glances_sql_database(sql, target, tmp_path):
    url = engines.url(target, tmp_path)
    config = configure(tmp_path, url)
    done = json.loads(command(config, 'metadata', 'migrate', '--from', sql,
                              '-f', 'json'))
    assert done == {'records': 5, 'copied': 5, 'differing': 0}
    assert json.loads(command(config, 'metadata', 'migrate', '--from', sql,
                              '-f', 'json'))['copied'] == 0
    from tests.property.test_image_lists import ADMIN, caller
    data_api = api.load(url, site=SITE)
    images = data_api.image_get_all(caller('two'), {'deleted': False},
                                    return_tag=True)
    assert [image['name'] for image in images] == ['image 1', 'image 0']
    image = images[0]
    assert image['created_at'] == datetime.datetime(2026, 1, 2, 3, 4, 5)
    assert image['tags'] == ['red'] and image['properties'][0].value == 'x'
    assert image['locations'][0]['url'].startswith('file:///images/')
    assert image['locations'][0]['metadata'] == {'store': 'file'}
    assert data_api.task_get(ADMIN, 't')['input'] == {'a': 1}
    assert data_api.metadef_object_get(ADMIN, 'N', 'o')['json_schema'] == {
        'b': 2}
    assert data_api.metadef_resource_type_association_get(
        ADMIN, 'N', 'T')['prefix'] == 'hw_'
    data_api.close()


def test_a_database_that_is_not_there_is_one_clear_error(tmp_path):
    config = configure(tmp_path, engines.url('sqlite', tmp_path))
    text = command(config, 'metadata', 'migrate', '--from',
                   f'sql+sqlite:///{tmp_path}/none.db', ok=False)
    assert 'Traceback' not in text and 'no such table' in text
