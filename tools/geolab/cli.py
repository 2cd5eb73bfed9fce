# SPDX-License-Identifier: Apache-2.0
"""The ``tools/lab`` command."""

import argparse
import json
import os
import sys

from geolab.lab import Lab
from geolab.layout import Stores
from geolab.processes import LabError


def _parser():
    parser = argparse.ArgumentParser(
        prog='tools/lab',
        description='Run several real glance_geo sites on this machine: '
                    'each a stock glance-api and an agent.')
    commands = parser.add_subparsers(dest='command', required=True,
                                     metavar='COMMAND')

    def add(name, text):
        made = commands.add_parser(name, help=text, description=text)
        made.add_argument('--dir', default=os.environ.get(
            'GLANCE_GEO_LAB_DIR', './lab'), metavar='DIR',
            help='folder of the lab (default: $GLANCE_GEO_LAB_DIR or ./lab)')
        return made

    up = add('up', 'start the sites and write DIR/sites.json')
    up.add_argument('--sites', default='paris,rennes,nantes',
                    help='names, separated by commas (default: %(default)s)')
    up.add_argument('--metadata', default='sqlite',
                    help='metadata engine: sqlite, redis (a server per '
                         'site), cockroachdb (a cluster with a node per '
                         'site, for Glance\'s own SQL), or the URL of one '
                         'that all sites share, such as riak://host:8087 or '
                         'sql+cockroachdb://… (default: %(default)s)')
    up.add_argument('--wan', nargs='?', const='', metavar='SHAPE',
                    help='a network namespace per site, links shaped as in '
                         'delay=25ms,rate=100mbit,loss=0.1%% (needs root)')
    up.add_argument('--file-store', action='store_true',
                    help='a second store, "file", at every site')
    up.add_argument('--ipfs', action='store_true',
                    help='a node of IPFS per site, and a store "swarm" that '
                         'keeps images there (needs Kubo: $GLANCE_GEO_IPFS, '
                         'ipfs in $PATH, or "make kubo")')
    up.add_argument('--ipfs-chunks', action='store_true',
                    help='a node of IPFS per site; the geo store offers its '
                         'chunks there, and asks there first')
    up.add_argument('--convert', action='store_true',
                    help='imported images are converted to raw (needs '
                         'qemu-img)')
    up.add_argument('--option', action='append', default=[],
                    metavar='NAME=VALUE',
                    help='another line for [DEFAULT] in glance-api.conf')
    add('down', 'end everything that the lab started')
    add('status', 'say what runs, as JSON')
    add('bytes', 'print the bytes that crossed each link, as JSON')
    cut = add('cut', 'cut the link between two sites')
    heal = add('heal', 'heal a link, all links of a site, or all')
    link = add('link', 'shape a link anew (labs with --wan)')
    isolate = add('isolate', 'cut all links of a site')
    for made in (cut, link, isolate):
        made.add_argument('a', metavar='SITE')
    for made in (cut, link):
        made.add_argument('b', metavar='SITE')
    heal.add_argument('a', nargs='?', metavar='SITE')
    heal.add_argument('b', nargs='?', metavar='SITE')
    link.add_argument('shape', nargs='+',
                      metavar='delay=…|rate=…|loss=…')
    for name, text in (('kill', 'kill -9 a process of a site'),
                       ('start', 'start a process of a site again')):
        made = add(name, text)
        made.add_argument('a', metavar='SITE')
        made.add_argument('role', choices=('glance-api', 'agent', 'redis',
                                           'ipfs'))
    run = add('exec', 'run a command with a site\'s client environment')
    run.add_argument('a', metavar='SITE')
    run.add_argument('argv', nargs=argparse.REMAINDER, metavar='-- CMD …')
    return parser


def _show(document):
    print(json.dumps(document, indent=1))


def _stores(arguments):
    names = ['geo'] + ['file'] * arguments.file_store + [
        'swarm'] * arguments.ipfs
    return Stores(tuple(names), arguments.ipfs_chunks, arguments.ipfs_chunks)


def _run(arguments):
    lab = Lab(arguments.dir)
    name = arguments.command
    if name == 'up':
        lab.up([s.strip() for s in arguments.sites.split(',') if s.strip()],
               arguments.metadata, arguments.wan, _stores(arguments),
               arguments.convert,
               [o.replace('=', ' = ', 1) for o in arguments.option])
        for site, its in lab.sites.items():
            print(f'{site:12} openstack --os-auth-type none --os-endpoint '
                  f'{its["endpoint"]} image list')
    elif name == 'down':
        lab.down()
    elif name in ('status', 'bytes'):
        _show(getattr(lab, name)())
    elif name == 'cut':
        lab.cut(arguments.a, arguments.b)
    elif name == 'isolate':
        lab.isolate(arguments.a)
    elif name == 'heal':
        lab.heal(arguments.a, arguments.b)
    elif name == 'link':
        lab.link(arguments.a, arguments.b, arguments.shape)
    elif name in ('kill', 'start'):
        getattr(lab, name)(arguments.a, arguments.role)
    else:
        argv = [a for i, a in enumerate(arguments.argv)
                if not (i == 0 and a == '--')]
        if not argv:
            raise LabError('exec: no command; tools/lab exec SITE -- CMD …')
        command, environment = lab.command(arguments.a, argv)
        os.execvpe(command[0], command, environment)


def main():
    try:
        _run(_parser().parse_args())
    except LabError as error:
        print(f'lab: {error}', file=sys.stderr)
        return 1
    except FileNotFoundError as error:
        print(f'lab: {error.filename}: not found', file=sys.stderr)
        return 1
    return 0
