# SPDX-License-Identifier: Apache-2.0
"""The servers that are compared, each durable, each in a folder of its own."""

import glob
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from geolab import layout

GEO = ('geo-sqlite', 'geo-redis')
SQL = ('sql-postgresql', 'sql-mariadb')


class Unavailable(Exception):
    """Something that the benchmark needs is not installed."""


def free_port():
    with socket.socket() as one:
        one.bind(('127.0.0.1', 0))
        return one.getsockname()[1]


def program(name, *patterns):
    found = shutil.which(name)
    for pattern in patterns:
        found = found or next(iter(sorted(glob.glob(pattern))[::-1]), None)
    if found is None:
        raise Unavailable(f'{name} is not installed')
    return found


def until(true, seconds, what):
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise Unavailable(f'{what} did not start')
        time.sleep(0.05)


def listens(port):
    try:
        socket.create_connection(('127.0.0.1', port), 1).close()
        return True
    except OSError:
        return False


class Backend:
    """A place for metadata, and a glance-api on it.

    :ivar url: of the engine or the SQL database
    """

    def __init__(self, name, folder):
        self.name = name
        self.folder = folder / name
        self.folder.mkdir()
        self._processes = []
        self.url = ''
        self.start()

    def start(self):
        """Start the server and set ``url``."""

    def spawn(self, command, env=None, user=None):
        log = open(self.folder / 'log', 'ab')
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=self.folder, user=user,
            group=user, env={**os.environ, **(env or {})},
            start_new_session=True)
        self._processes.append(process)
        return process

    def stop(self):
        for process in reversed(self._processes):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()

    def options(self):
        """Return the lines of glance-api.conf that choose the metadata."""
        return '', f'[database]\nconnection = {self.url}\n'

    def serve(self):
        """Start glance-api; set ``endpoint``."""
        port = free_port()
        self.endpoint = f'http://127.0.0.1:{port}'
        etc = self.folder / 'etc'
        etc.mkdir()
        layout._write_paste(etc / 'glance-api-paste.ini')
        default, section = self.options()
        for name in ('images', 'staging', 'tasks'):
            (self.folder / name).mkdir()
        (etc / 'glance-api.conf').write_text(f'''[DEFAULT]
enabled_backends = file:file
worker_self_reference_url = {self.endpoint}
image_member_quota = -1
image_tag_quota = -1
{default}
[glance_store]
default_backend = file
[file]
filesystem_store_datadir = {self.folder}/images
[os_glance_staging_store]
filesystem_store_datadir = {self.folder}/staging
[os_glance_tasks_store]
filesystem_store_datadir = {self.folder}/tasks
[paste_deploy]
flavor = lab
config_file = {etc}/glance-api-paste.ini
{section}''')
        tools = str(Path(__file__).resolve().parents[1])
        self.spawn(
            [str(Path(sys.executable).parent / 'gunicorn'), '-w', '1',
             '--threads', '4', '--keep-alive', '600', '-b',
             urlsplit(self.endpoint).netloc, '--log-level', 'warning',
             'glance.wsgi.api:application'],
            {'OS_GLANCE_CONFIG_DIR': str(etc), 'PYTHONPATH': tools})

    def wait(self):
        until(lambda: listens(urlsplit(self.endpoint).port), 60,
              f'glance-api on {self.name}, see {self.folder}/log')


class GeoSQLite(Backend):
    def start(self):
        self.url = f'sqlite:///{self.folder}/metadata.db'

    def options(self):
        return 'config_source = glance_geo', f'''[glance_geo]
driver = glance_geo
site_name = bench
metadata_backend = {self.url}
agent_socket = {self.folder}/agent.sock
'''


class GeoRedis(GeoSQLite):
    def start(self):
        self.port = free_port()
        self.spawn([program('redis-server'), '--port', str(self.port),
                    '--bind', '127.0.0.1', '--appendonly', 'yes',
                    '--appendfsync', 'always', '--save', '',
                    '--dir', str(self.folder)])
        until(lambda: listens(self.port), 10, 'redis-server')
        self.url = f'redis://127.0.0.1:{self.port}'


class PostgreSQL(Backend):
    def start(self):
        pattern = '/usr/lib/postgresql/*/bin/'
        initdb = program('initdb', f'{pattern}initdb')
        postgres = program('postgres', f'{pattern}postgres')
        # It refuses to run as root.
        user = 'postgres' if os.getuid() == 0 else None
        data = self.folder / 'data'
        data.mkdir()
        for path in (self.folder, data):
            if user:
                shutil.chown(path, user, user)
        subprocess.run([initdb, '-D', str(data), '-A', 'trust', '-U',
                        'glance'], check=True, stdout=subprocess.DEVNULL,
                       user=user, group=user, cwd=self.folder)
        self.port = free_port()
        self.spawn([postgres, '-D', str(data), '-p', str(self.port), '-h',
                    '127.0.0.1', '-k', ''], user=user)
        until(lambda: listens(self.port), 20, 'postgres')
        self.url = (f'postgresql+psycopg2://glance@127.0.0.1:{self.port}'
                    f'/postgres')


class MariaDB(Backend):
    def start(self):
        install = program('mariadb-install-db')
        daemon = program('mariadbd', '/usr/sbin/mariadbd')
        user = 'mysql' if os.getuid() == 0 else None
        data = self.folder / 'data'
        data.mkdir()
        for path in (self.folder, data):
            if user:
                shutil.chown(path, user, user)
        subprocess.run([install, '--no-defaults', f'--datadir={data}',
                        '--auth-root-authentication-method=normal',
                        '--skip-test-db'], check=True, user=user, group=user,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                       cwd=self.folder)
        self.port = free_port()
        self.spawn([daemon, '--no-defaults', f'--datadir={data}',
                    f'--port={self.port}', '--bind-address=127.0.0.1',
                    f'--socket={self.folder}/sock'], user=user)
        until(lambda: listens(self.port), 30, 'mariadbd')
        import sqlalchemy as sa
        root = sa.create_engine(
            f'mysql+pymysql://root@127.0.0.1:{self.port}/mysql')
        with root.begin() as connection:
            connection.execute(sa.text(
                'CREATE DATABASE glance CHARACTER SET utf8mb3'))
        self.url = f'mysql+pymysql://root@127.0.0.1:{self.port}/glance'


KINDS = {'geo-sqlite': GeoSQLite, 'geo-redis': GeoRedis,
         'sql-postgresql': PostgreSQL, 'sql-mariadb': MariaDB}
