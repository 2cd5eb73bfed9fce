# SPDX-License-Identifier: Apache-2.0
"""``glance-geo db``: the schema that it makes, from whatever is there.

On which database: tests/cockroach.py. Only there is what Glance's own command
makes on PostgreSQL at hand to compare with.
"""

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import glance.db.sqlalchemy.api as sql_api
import pytest
import sqlalchemy as sa
from alembic import command as alembic
from glance.db.sqlalchemy import alembic_migrations
from oslo_db import exception
from oslo_db.sqlalchemy import enginefacade
from sqlalchemy.engine import make_url

from glance_geo.db.cockroachdb import schema, scope
from tests import cockroach
from tests.functional.test_cockroachdb import connect, through  # noqa: F401
from tests.sqlproxy import SQLProxy

on_postgresql = pytest.mark.skipif(
    bool(cockroach.GIVEN), reason='compares with Glance on PostgreSQL')

_COLUMNS = """
SELECT table_name, column_name, data_type, character_maximum_length,
    is_nullable, column_default FROM information_schema.columns
WHERE table_schema = 'public' AND table_name <> 'geo_commits'"""
_INDEXES = """
SELECT tablename, indexname, indexdef FROM pg_indexes
WHERE schemaname = 'public' AND tablename <> 'geo_commits'"""
_CONSTRAINTS = """
SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid)
FROM pg_constraint WHERE connamespace = 'public'::regnamespace
AND conrelid::regclass::text <> 'geo_commits'"""


def described(url):
    """Return a database's columns, indexes and constraints."""
    server = cockroach.server()
    found = []
    with closing(server.connect(make_url(url).database)) as made:
        cursor = made.cursor()
        for query in (_COLUMNS, _INDEXES, _CONSTRAINTS):
            cursor.execute(query)
            found.append(sorted(map(str, cursor.fetchall())))
    return found


def configuration(folder, url, backend='sql'):
    folder.mkdir(exist_ok=True)
    source = 'config_source = glance_geo\n' if backend else ''
    (folder / 'glance-api.conf').write_text(
        f'[DEFAULT]\n{source}enabled_backends = geo:geo\n'
        f'[glance_geo]\ndriver = glance_geo\nsite_name = paris\n'
        f'metadata_backend = {backend}\n[database]\nconnection = {url}\n'
        f'[geo]\ngeo_store_datadir = {folder}/chunks\n')
    return folder / 'glance-api.conf'


def run(program, conf, *arguments, before=()):
    return subprocess.run(
        [str(Path(sys.executable).with_name(program)), *before,
         '--config-file', str(conf), *arguments], capture_output=True,
        text=True, timeout=200, env={**os.environ,
                                     'PYTHONWARNINGS': 'ignore'})


@pytest.fixture(scope='module')
def stock(tmp_path_factory):
    """What Glance's own command makes on PostgreSQL, without us."""
    url = cockroach.database()
    plain = make_url(url).set(drivername='postgresql+psycopg2', query={})
    conf = configuration(tmp_path_factory.mktemp('stock'),
                         plain.render_as_string(), None)
    done = run('glance-manage', conf, 'db_sync')
    assert not done.returncode, done.stderr
    return described(url)


@pytest.fixture
def over(connect, monkeypatch):  # noqa: F811
    """Return a function that points Glance's engine at a URL."""
    # Migrations ask oslo.db's own facade, which keeps its first URL.
    monkeypatch.setattr(enginefacade.writer, 'get_engine',
                        lambda: sql_api.get_engine())

    def point(url):
        connect(url)
        return sql_api.get_engine()
    return point


@on_postgresql
def test_from_empty_it_is_what_glance_makes(over, stock):
    url = cockroach.database()
    engine = over(url)
    told = []
    schema.sync(engine, told.append)
    assert told[-1] == 'up to date' and len(told) == 4
    assert described(url) == stock
    assert not [f for f in schema.check(engine) if f.advice]
    schema.sync(engine, told.append)
    assert told[4:] == ['up to date']


def test_what_is_missing_is_found(over):
    engine = over(cockroach.database())
    schema.sync(engine, lambda text: None)
    assert schema.differences(engine) == []
    with engine.begin() as connection:
        connection.execute(sa.text('ALTER TABLE images DROP COLUMN min_ram'))
    with engine.begin() as connection:
        connection.execute(sa.text('DROP INDEX owner_image_idx'))
        connection.execute(sa.text('DROP TABLE task_info'))
    assert sorted(schema.differences(engine)) == [
        'column images.min_ram is missing',
        'index owner_image_idx of table images is missing',
        'table task_info is missing']


@on_postgresql
@pytest.mark.parametrize('revision', [
    'liberty', 'mitaka02', 'ocata_contract01', 'pike_contract01',
    'queens_contract01', 'rocky_contract02', 'train_contract01',
    'wallaby_contract01', 'zed_contract01', '2023_1_contract01'])
def test_from_every_older_release_it_is_the_same(over, stock, revision):
    url = cockroach.database()
    engine = over(url)
    from glance.cmd import manage
    manage.USE_TRIGGERS = False
    alembic.upgrade(alembic_migrations.get_alembic_config(), revision)
    schema.sync(engine, lambda text: None)
    assert described(url) == stock


def test_images_of_mitaka_keep_their_visibility(over):
    """Ocata's own data migration is not run, or not committed."""
    engine = over(cockroach.database())
    alembic.upgrade(alembic_migrations.get_alembic_config(), 'mitaka02')
    wanted = {'a': 'public', 'b': 'private', 'c': 'shared', 'd': 'private'}
    with engine.begin() as connection:
        for name, visibility in wanted.items():
            connection.execute(sa.text(
                "INSERT INTO images (id, status, is_public, created_at, "
                "deleted, min_disk, min_ram, protected) VALUES (:id, "
                "'active', :public, now(), false, 0, 0, false)"),
                {'id': name, 'public': visibility == 'public'})
        for image, deleted in (('c', False), ('d', True), ('a', False)):
            connection.execute(sa.text(
                "INSERT INTO image_members (image_id, member, can_share, "
                "created_at, deleted, status) VALUES (:image, 'm', false, "
                "now(), :deleted, 'accepted')"),
                {'image': image, 'deleted': deleted})
    schema.sync(engine, lambda text: None)
    with engine.connect() as connection:
        assert dict(connection.execute(sa.text(
            'SELECT id, visibility FROM images')).tuples().all()) == wanted


@on_postgresql
def test_a_node_that_dies_at_any_change_leaves_a_run_to_repeat(over, stock):
    url = cockroach.database()
    node = SQLProxy(url)
    engine = over(through(url, node))
    died = 0
    while True:
        seen = 0

        def third(text):
            nonlocal seen
            seen += text.lstrip().startswith(('CREATE', 'ALTER', 'DROP',
                                              'UPDATE', 'INSERT'))
            # Later each time, for what is found made costs a change too.
            return seen > 3 * (died + 1)    # noqa: B023
        node.dies_at = third
        try:
            schema.sync(engine, lambda text: None)
            break
        except exception.DBError:
            died += 1
            node.start()
    node.dies_at = None
    node.stop()
    assert died > 10
    assert described(url) == stock


def test_changes_are_made_one_by_one(over):
    url = cockroach.database()
    node = SQLProxy(url)
    engine = over(through(url, node))
    schema.sync(engine, lambda text: None)
    changes = [text for text in node.asked
               if text.lstrip().startswith(('CREATE', 'ALTER', 'DROP'))]
    assert len(changes) > 60
    assert not [text for text in node.asked if cockroach.different(text)]
    open_transaction = False
    for text in node.asked:
        if text.startswith('BEGIN'):
            open_transaction = True
        elif text.endswith(('COMMIT', 'ROLLBACK')):
            open_transaction = False
        assert not (open_transaction and text in changes), text
    node.stop()


def test_outside_of_a_sync_a_table_that_exists_is_an_error(over):
    engine = over(cockroach.database())
    create = sa.text('CREATE TABLE twice (a INT PRIMARY KEY)')
    with engine.begin() as connection:
        connection.execute(create)
    with pytest.raises(exception.DBError), engine.begin() as connection:
        connection.execute(create)
    with scope.within(scope.Scope(resuming=True)), \
            engine.begin() as connection:
        connection.execute(create)


# -- the commands ----------------------------------------------------------
@on_postgresql
def test_glance_manage_works_on_it(tmp_path, stock):
    url = cockroach.database()
    conf = configuration(tmp_path, url.partition('?')[0])
    done = run('glance-manage', conf, 'db_sync')
    assert not done.returncode, done.stderr
    assert described(url) == stock


def test_the_commands(tmp_path):
    conf = configuration(tmp_path, cockroach.database())
    before = run('glance-geo', conf, 'db', 'check', '-f', 'json')
    assert before.returncode == 2 and 'db sync' in before.stdout
    done = run('glance-geo', conf, 'db', 'sync')
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == 'up to date'
    version = json.loads(run('glance-geo', conf, 'db', 'version', '-f',
                             'json').stdout)
    assert version['up to date'] is True
    plan = json.loads(run('glance-geo', conf, 'db', 'locality', 'plan',
                          '--regions', 'a,b,c', '--primary', 'b', '-f',
                          'json').stdout)
    assert '[[+region=b]]' in plan[0]['statement']
    refused = run('glance-geo', conf, 'db', 'locality', 'plan', '--regions',
                  'a,b', '--primary', 'c')
    assert refused.returncode == 1 and '--primary c' in refused.stderr
    after = run('glance-geo', conf, 'db', 'check', '-f', 'json')
    assert after.returncode == 0, after.stdout


@on_postgresql
def test_least_privilege_is_enough(tmp_path):
    """The owner makes the tables; who serves only reads and writes rows."""
    url = make_url(cockroach.database())
    server = cockroach.server()
    for statement in (
            'CREATE ROLE geo_owner LOGIN', 'CREATE ROLE geo_server LOGIN',
            'ALTER ROLE geo_owner SET search_path = public,crdb,pg_catalog',
            'ALTER ROLE geo_server SET search_path = public,crdb,pg_catalog',
            f'ALTER DATABASE {url.database} OWNER TO geo_owner',
            'GRANT CREATE ON SCHEMA public TO geo_owner',
            'GRANT USAGE ON SCHEMA crdb TO geo_owner, geo_server',
            'ALTER DEFAULT PRIVILEGES FOR ROLE geo_owner GRANT SELECT, '
            'INSERT, UPDATE, DELETE ON TABLES TO geo_server',
            'ALTER DEFAULT PRIVILEGES FOR ROLE geo_owner GRANT USAGE ON '
            'SEQUENCES TO geo_server'):
        server.execute(url.database, statement)

    def conf(user):
        return configuration(tmp_path / user, url.set(
            username=user).render_as_string())
    refused = run('glance-geo', conf('geo_server'), 'db', 'sync')
    assert refused.returncode == 1
    assert 'permission denied' in refused.stderr
    done = run('glance-geo', conf('geo_owner'), 'db', 'sync')
    assert done.returncode == 0, done.stderr
    served = run('glance-geo', conf('geo_server'), 'db', 'check')
    assert served.returncode == 0, served.stdout + served.stderr
    listed = run('glance-geo', conf('geo_server'), 'image', 'list')
    assert listed.returncode == 0, listed.stderr


@pytest.mark.parametrize('change, said', [
    (lambda url: url.set(port=1), 'refused'),
    (lambda url: url.set(database='nosuchdb'), 'nosuchdb'),
    (lambda url: url.set(drivername='postgresql+psycopg2', query={}),
     'no cockroachdb:// URL'),
    (lambda url: url.update_query_dict({
        'sslmode': 'verify-full', 'sslrootcert': '/nowhere/ca.crt'}),
     'sslmode'),
])
def test_what_is_wrong_is_one_line(tmp_path, change, said):
    url = change(make_url(cockroach.database()))
    conf = configuration(tmp_path, url.render_as_string(hide_password=False))
    done = run('glance-geo', conf, 'db', 'check')
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert said in line and line.startswith('[database] connection')
