# SPDX-License-Identifier: Apache-2.0
"""Glance runs unmodified: our data API is chosen in glance-api.conf alone,
it is all there, and what can't be set up stops the process."""

import inspect
import os
import subprocess
import sys

import pytest
from glance.db.sqlalchemy import api as sql_api

from glance_geo.db import api

# SQL's own, or used by glance-manage alone.
SQL_ONLY = {'purge_deleted_rows', 'purge_deleted_rows_from_images',
            'session_for_read', 'session_for_write',
            'visit_delete_from_select'}


def unwrapped(function):
    """Return the function under Glance's decorators."""
    function = inspect.unwrap(function)
    while function.__closure__ and 'self' not in inspect.signature(
            function).parameters:
        inner = [cell.cell_contents for cell in function.__closure__
                 if inspect.isfunction(cell.cell_contents)]
        if not inner or list(inspect.signature(function).parameters) != [
                'args', 'kwargs']:
            break
        function = inspect.unwrap(inner[0])
    return function


def public_functions():
    return {name: its for name, its in vars(sql_api).items()
            if inspect.isfunction(its) and not name.startswith('_')
            and its.__module__ in (sql_api.__name__, 'glance.common.utils',
                                   'oslo_db.api')}


def test_every_function_of_the_data_api_is_there():
    ours = api.load('memory://')
    missing = {name for name in public_functions()
               if not hasattr(ours, name)} - SQL_ONLY
    assert not missing


@pytest.mark.parametrize('name', sorted(set(public_functions()) - SQL_ONLY))
def test_signatures_are_those_of_the_installed_glance(name):
    theirs = inspect.signature(unwrapped(public_functions()[name]))
    ours = inspect.signature(getattr(api.load('memory://'), name))
    assert [(p.name, p.default) for p in ours.parameters.values()] == [
        (p.name, p.default) for p in theirs.parameters.values()]


CONF = """\
[DEFAULT]
config_source = {source}
enabled_backends = geo:geo

[glance_geo]
driver = {driver}
site_name = {site}
metadata_backend = {metadata}
agent_socket = {folder}/agent.sock
{more}
"""

PROGRAM = """\
import glance.db
from glance.common import config
config.parse_args([])
data_api = glance.db.get_api()
print(type(data_api).__name__, getattr(data_api, '__name__', ''))
"""


@pytest.fixture
def run(tmp_path):
    def call(text=None, program=PROGRAM, **values):
        values = {'source': 'glance_geo', 'driver': 'glance_geo',
                  'site': 'paris', 'more': '', 'folder': tmp_path,
                  'metadata': f'sqlite:///{tmp_path}/m.db', **values}
        path = tmp_path / 'glance-api.conf'
        path.write_text(CONF.format(**values) if text is None else text)
        return subprocess.run(
            [sys.executable, '-W', 'ignore', '-c', program.replace(
                'parse_args([])', f'parse_args(["--config-file", "{path}"])')],
            capture_output=True, text=True, cwd=tmp_path,
            env={**os.environ, 'PYTHONPATH': ''})
    return call


def last_line(done):
    return done.stderr.strip().splitlines()[-1]


def test_our_lines_choose_our_data_api(run):
    done = run()
    assert done.stdout.split() == ['DataAPI'], done.stderr


def test_without_our_lines_glance_is_as_without_us(run):
    done = run('[DEFAULT]\n')
    assert done.stdout.split() == ['module', 'glance.db.sqlalchemy.api'], (
        done.stderr)


def test_sql_stays_glances_own(run):
    done = run(metadata='sql')
    assert done.stdout.split() == ['module', 'glance.db.sqlalchemy.api'], (
        done.stderr)


@pytest.mark.parametrize('values, says', [
    ({'metadata': 'nosuch://x'}, 'nosuch'),
    ({'metadata': 'sqlite:////proc/nothing/m.db'}, '/proc/nothing'),
    ({'site': ''}, 'site_name is not set'),
    ({'site': 'Pa/ris'}, 'site_name'),
    ({'more': 'node_name = Not A Name'}, 'node_name'),
    ({'driver': ''}, 'driver is not glance_geo'),
    ({'driver': 'misspelt'}, 'driver is not glance_geo')])
def test_what_cant_be_set_up_stops_with_one_clear_line(run, values, says):
    done = run(**values)
    assert done.returncode != 0 and 'glance.db.sqlalchemy' not in done.stdout
    assert says in last_line(done), done.stderr
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize('program', ['scrubber', 'cache_prefetcher',
                                     'cache_cleaner', 'cache_pruner'])
def test_glances_other_programs_get_it_too(run, tmp_path, program):
    """They read the same file: whatever asks for the data API gets ours."""
    done = run(program=(
        f'import sys\n'
        f'from glance.cmd import {program}\n'
        f'from glance.common import config\n'
        f'from oslo_config import cfg\n'
        f'cfg.CONF(["--config-file", "{tmp_path}/glance-api.conf"], '
        f'project="glance", prog="glance-{program}")\n'
        f'import glance.db\n'
        f'print(type(glance.db.get_api()).__name__)\n'))
    assert done.stdout.split() == ['DataAPI'], done.stderr
