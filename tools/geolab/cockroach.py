# SPDX-License-Identifier: Apache-2.0
"""A CockroachDB over the lab's sites: one node each, region = site.

Insecure, as it listens on this machine only. Written from CockroachDB's
documentation; the project's tests have had no ``cockroach`` program to run.
"""

import shutil

from geolab.processes import LabError

_CACHE = '--cache=64MiB', '--max-sql-memory=64MiB'
_DATABASE = 'glance'
ROLE = 'cockroach'


def binary():
    """Return the path of ``cockroach``.

    :raises LabError: it is not installed
    """
    found = shutil.which('cockroach')
    if found is None:
        raise LabError('--metadata cockroachdb needs a cockroach program on '
                       'PATH (22.2 or later); it is not installed here')
    return found


def nodes(sites):
    """Return {site: (host, SQL port, HTTP port)} of the cluster's nodes."""
    return {name: (site['addresses'][-1], *site['cockroach_ports'])
            for name, site in sites.items()}


def start_command(name, folder, its):
    """Return the command that starts a site's node."""
    host, sql, http = its[name]
    join = ','.join(f'{host}:{port}' for host, port, _ in its.values())
    return [binary(), 'start', '--insecure', f'--store={folder}/cockroach',
            f'--listen-addr={host}:{sql}', f'--http-addr={host}:{http}',
            f'--locality=region={name}', f'--join={join}', *_CACHE]


def init_commands(its):
    """Return the commands that make the nodes a cluster with a database."""
    host, sql, _ = next(iter(its.values()))
    server = '--insecure', f'--host={host}:{sql}'
    return ([binary(), 'init', *server],
            [binary(), 'sql', *server, '--execute',
             f'CREATE DATABASE IF NOT EXISTS {_DATABASE}'])


def url(name, its):
    """Return a site's URL: its own node first, then the others."""
    order = [name, *(other for other in its if other != name)]
    hosts = '&'.join(f'host={its[site][0]}:{its[site][1]}' for site in order)
    return (f'sql+cockroachdb+psycopg2://root@/{_DATABASE}?{hosts}'
            '&sslmode=disable')
