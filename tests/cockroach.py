# SPDX-License-Identifier: Apache-2.0
"""Databases for the ``cockroachdb`` dialect.

With ``GLANCE_GEO_TEST_COCKROACHDB=cockroachdb://root@host:26257/defaultdb?…``
they are made on that cluster. Otherwise on a PostgreSQL at SERIALIZABLE, whose
serialization failures are real ones, behind a thin layer (``_COMPATIBLE``) of
what the dialect asks a CockroachDB for. What that shows, and what it cannot
show, is in ``doc/source/cockroachdb.rst``.
"""

import atexit
import functools
import glob
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import uuid
from contextlib import closing
from pathlib import Path

import psycopg2
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from tests.servers import free_port, until

GIVEN = os.environ.get('GLANCE_GEO_TEST_COCKROACHDB')
PLUGIN = 'plugin=glance_geo'

_COMPATIBLE = """
CREATE SCHEMA crdb;
CREATE FUNCTION crdb.version() RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT 'CockroachDB CCL v24.3.0 (a PostgreSQL in its place, built 2024)'
$$;
CREATE SEQUENCE crdb.rowid;
CREATE FUNCTION crdb.unique_rowid() RETURNS bigint LANGUAGE sql AS $$
    SELECT nextval('crdb.rowid') + (1::bigint << 60)
$$;
CREATE OR REPLACE VIEW information_schema.columns AS
    {columns};
"""

# What CockroachDB's documentation lists as not supported, or as limited, of
# what PostgreSQL has, and SQLAlchemy or a migration might send.
_DIFFERENT = (
    r'LOCK TABLE', r'DEFERRABLE', r'INITIALLY DEFERRED', r'TRIGGER',
    r'DO \$', r'EXCLUDE USING', r'INHERITS', r'pg_advisory\w*', r'LISTEN',
    r'NOTIFY', r'CREATE EXTENSION', r'TEMP(ORARY)? TABLE', r'ctid', r'xmin',
    r'FOR \w+ OF', r'DROP CONSTRAINT', r'ALTER COLUMN \w+ TYPE',
    r'SAVEPOINT', r'DECLARE', r'COPY', r'WITH OIDS', r'DOMAIN', r'CITEXT',
    r'TABLESAMPLE', r'REPLICA IDENTITY')


def different(statement):
    """Return what in a statement CockroachDB does otherwise, None if nothing
    is known."""
    # What is in quotes is data.
    text = re.sub(r"'(?:[^']|'')*'", "''", statement)
    found = re.search(rf'\b(?:{"|".join(_DIFFERENT)})', text, re.IGNORECASE)
    return found and found[0]


def _program(name):
    found = shutil.which(name) or max(
        glob.glob(f'/usr/lib/postgresql/*/bin/{name}'), default=None)
    if found is None:
        raise RuntimeError(f'{name} is not installed: apt-get install '
                           'postgresql')
    return found


class PostgreSQL:
    """One server on a port of its own, at SERIALIZABLE."""

    def __init__(self, *options):
        self.folder = Path(tempfile.mkdtemp(prefix='geo-postgres-'))
        # It refuses to run as root.
        self._user = 'postgres' if os.getuid() == 0 else None
        if self._user:
            pwd.getpwnam(self._user)
            shutil.chown(self.folder, self._user, self._user)
        self._data = self.folder / 'data'
        self._run(_program('initdb'), '-D', self._data, '-A', 'trust', '-U',
                  'root', '-E', 'UTF8', '--locale=C.UTF-8', '--no-sync')
        self.port = free_port()
        self._options = options
        self._prepared = False
        self._process = None
        self.start()

    def _run(self, *command):
        subprocess.run([str(word) for word in command], check=True,
                       stdout=subprocess.DEVNULL, user=self._user,
                       group=self._user, cwd=self.folder)

    def start(self):
        with open(self.folder / 'log', 'a') as log:
            self._process = subprocess.Popen(
                [_program('postgres'), '-D', str(self._data), '-p',
                 str(self.port), '-h', '127.0.0.1', '-k', '', '-c',
                 'default_transaction_isolation=serializable', '-c',
                 'max_connections=300', '-c', 'fsync=off', *self._options],
                stdout=log, stderr=log, user=self._user, group=self._user,
                cwd=self.folder)
        until(self._answers, what=f'postgres, see {self.folder}/log')

    def _answers(self):
        try:
            self.connect('postgres').close()
            return True
        except psycopg2.OperationalError:
            return False

    def connect(self, database):
        made = psycopg2.connect(host='127.0.0.1', port=self.port,
                                user='root', dbname=database)
        made.autocommit = True
        return made

    def kill(self):
        # At once, and its children with it.
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(30)

    def stop(self):
        if self._process.poll() is None:
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def database(self):
        """Return the URL of a new database."""
        name = f'geo_{uuid.uuid4().hex[:12]}'
        self._prepare()
        self.execute('postgres', f'CREATE DATABASE {name} TEMPLATE '
                                 'compatible')
        return f'cockroachdb+psycopg2://root@127.0.0.1:{self.port}/{name}?{PLUGIN}'

    def execute(self, database, statement):
        """Run statements; return the last one's first row, if any."""
        with closing(self.connect(database)) as made:
            cursor = made.cursor()
            cursor.execute(statement)
            return cursor.fetchone() if cursor.description else None

    def _prepare(self):
        if self._prepared:
            return
        self._prepared = True
        self.execute('postgres', 'CREATE DATABASE compatible')
        (view,) = self.execute('compatible', 'SELECT pg_get_viewdef('
                               "'information_schema.columns'::regclass)")
        self.execute('compatible',
                     _COMPATIBLE.format(columns=_with_more(view)))
        # Before pg_catalog, whose version() is PostgreSQL's. A template's
        # own settings would not be copied.
        self.execute('postgres', 'ALTER ROLE root SET search_path = '
                     'public, crdb, pg_catalog')


def _with_more(view):
    """Return the view of columns with those that CockroachDB adds."""
    return (f"SELECT its.*, 'NO'::text AS is_hidden, its.udt_name::text AS "
            f"crdb_sql_type, NULL::text AS column_comment FROM "
            f"({view.rstrip().rstrip(';')}) AS its")


class Given:
    """The cluster that the environment names."""

    def database(self):
        name = f'geo_{uuid.uuid4().hex[:12]}'
        url = make_url(GIVEN)
        query = {key: value for key, value in url.query.items()
                 if key != 'plugin'}
        with closing(psycopg2.connect(url.set(
                drivername='postgresql', query=query).render_as_string(
                    hide_password=False))) as made:
            made.autocommit = True
            made.cursor().execute(f'CREATE DATABASE {name}')
        made = url.set(database=name).update_query_string(PLUGIN)
        return made.render_as_string(hide_password=False)


@functools.cache
def server():
    """Return what makes databases for this process's tests."""
    if GIVEN:
        return Given()
    made = PostgreSQL()
    atexit.register(made.stop)
    return made


def database():
    """Return the URL of a new database, with the plugin."""
    return server().database()


def plain(url):
    """Return a database's URL without the plugin."""
    return make_url(url).difference_update_query(
        ['plugin']).render_as_string(hide_password=False)


def count(url, table):
    """Return how many rows a table of a database has."""
    engine = sa.create_engine(url)
    try:
        with engine.connect() as connection:
            return connection.execute(sa.text(
                f'SELECT count(*) FROM {table}')).scalar()
    finally:
        engine.dispose()
