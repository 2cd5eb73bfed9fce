# SPDX-License-Identifier: Apache-2.0
"""Keystone on the same support: its schema, and tokens from it.

A real keystone-manage, a real Keystone under gunicorn, the real client. On
which database: tests/cockroach.py.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import cockroach
from tests.servers import free_port, until

_CONF = """\
[DEFAULT]
use_stderr = true
[database]
connection = {url}
connection_parameters = plugin=glance_geo
[token]
provider = fernet
[fernet_tokens]
key_repository = {folder}/tokens
[fernet_receipts]
key_repository = {folder}/receipts
[credential]
key_repository = {folder}/credentials
"""
_PASSWORD = 'a-password'


def program(name):
    return str(Path(sys.executable).with_name(name))


@pytest.fixture(scope='module')
def keystone(tmp_path_factory):
    """A Keystone; gives its URL and its database's."""
    folder = tmp_path_factory.mktemp('keystone')
    url = cockroach.database()
    (folder / 'keystone.conf').write_text(_CONF.format(
        url=cockroach.plain(url), folder=folder))
    environment = {**os.environ, 'OS_KEYSTONE_CONFIG_DIR': str(folder),
                   'PYTHONWARNINGS': 'ignore'}
    port = free_port()
    endpoint = f'http://127.0.0.1:{port}/v3'
    for command in (
            ('db_sync',),
            ('fernet_setup', '--keystone-user', 'root', '--keystone-group',
             'root') if os.getuid() == 0 else ('fernet_setup',),
            ('bootstrap', '--bootstrap-password', _PASSWORD,
             '--bootstrap-region-id', 'paris', '--bootstrap-public-url',
             endpoint)):
        done = subprocess.run(
            [program('keystone-manage'), '--config-file',
             str(folder / 'keystone.conf'), *command], env=environment,
            capture_output=True, text=True, timeout=300)
        assert not done.returncode, done.stderr
    # Keystone reads the arguments of whatever program it runs in.
    (folder / 'gunicorn.conf.py').write_text(
        f"bind = '127.0.0.1:{port}'\nworkers = 2\nthreads = 4\n"
        "wsgi_app = 'keystone.wsgi.api:application'\n")
    with open(folder / 'log', 'w') as log:
        process = subprocess.Popen([program('gunicorn')], cwd=folder,
                                   env=environment, stdout=log, stderr=log)
    try:
        until(lambda: openstack(endpoint, 'token', 'issue').returncode == 0,
              90, f'keystone, see {folder}/log')
        yield endpoint, url
    finally:
        process.terminate()
        process.wait(30)


def openstack(endpoint, *command):
    return subprocess.run(
        [program('openstack'), '--os-auth-url', endpoint, '--os-username',
         'admin', '--os-password', _PASSWORD, '--os-project-name', 'admin',
         '--os-user-domain-id', 'default', '--os-project-domain-id',
         'default', *command, '-f', 'json'], capture_output=True, text=True,
        timeout=120, env={**os.environ, 'PYTHONWARNINGS': 'ignore'})


def test_keystone_issues_tokens(keystone):
    endpoint, url = keystone
    token = json.loads(openstack(endpoint, 'token', 'issue').stdout)
    assert token['id'] and token['project_id']
    # Our support was at work: its commits are certain.
    assert cockroach.count(url, 'geo_commits') > 0


def test_keystone_writes_at_once(keystone):
    """Projects made side by side, over serialization failures.

    Keystone does not repeat such a transaction: it answers 500, and its client
    asks again. What must not be is a project twice, or half of one.
    """
    endpoint, _ = keystone
    names = [f'project-{n}' for n in range(4)]
    running = [subprocess.Popen(
        [program('openstack'), '--os-auth-url', endpoint, '--os-username',
         'admin', '--os-password', _PASSWORD, '--os-project-name', 'admin',
         '--os-user-domain-id', 'default', '--os-project-domain-id',
         'default', 'project', 'create', name], stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL) for name in names]
    for name, process in zip(names, running, strict=True):
        if process.wait(120):
            until(lambda name=name: openstack(
                endpoint, 'project', 'create', name).returncode == 0, 60,
                'the repeated request')
    listed = json.loads(openstack(endpoint, 'project', 'list').stdout)
    assert sorted(project['Name'] for project in listed
                  if project['Name'] in names) == names
    # A name that is taken is a conflict, not an error of the server.
    refused = openstack(endpoint, 'project', 'create', names[0])
    assert refused.returncode and '409' in refused.stderr
