# SPDX-License-Identifier: Apache-2.0
"""The command line of ``tools/bench``."""

import argparse
import json
import sys
import tempfile
from pathlib import Path


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog='tools/bench', description=__doc__ or 'Benchmarks.')
    which = parser.add_subparsers(dest='which', required=True)
    metadata = which.add_parser(
        'metadata', help='every kind of request, on embedded and Redis '
                         'metadata and on Glance\'s SQL')
    metadata.add_argument('--quick', action='store_true',
                          help='1,000 images and few rounds: under a minute')
    metadata.add_argument('--images', default='1000,100000', metavar='N,N',
                          help='how many images there are (default: '
                               '%(default)s)')
    metadata.add_argument('--rounds', type=int, default=120,
                          help='requests of each kind (default: %(default)s)')
    metadata.add_argument('--seed', type=int, default=1)
    metadata.add_argument('-f', '--format', choices=('table', 'json'),
                          default='table')
    metadata.add_argument('--out', type=Path, metavar='DIR',
                          help='folder for the results as JSON, the table '
                               'and the plot')
    store = which.add_parser(
        'store', help='the geo store beside Glance\'s file store, borg, '
                      'restic and desync')
    store.add_argument('--quick', action='store_true',
                       help='few rounds on an image of this machine\'s own '
                            'files: under a minute')
    store.add_argument('--images', type=Path, metavar='DIR',
                       default=Path('.cache/bench-images'),
                       help='Debian images, made there with '
                            'tools/make-images if need be (default: '
                            '%(default)s)')
    store.add_argument('--rounds', type=int, default=9,
                       help='of each (default: %(default)s)')
    store.add_argument('--no-http', action='store_true',
                       help='without the rounds through glance-api')
    store.add_argument('--seed', type=int, default=1)
    table = which.add_parser(
        'index', help='the chunk store\'s index at the size that an amount '
                      'of images makes, with made-up chunks')
    table.add_argument('--logical', default='1TiB', metavar='SIZE',
                       help='such as 1TiB or 50GiB (default: %(default)s)')
    swarm = which.add_parser(
        'ipfs', help='images in IPFS, in the geo store, and in the geo store '
                     'over IPFS blocks: two sites on links of one shape, and '
                     'a crowd')
    swarm.add_argument('--quick', action='store_true',
                       help='a small image, one round, three sites, links '
                            'that are not shaped')
    swarm.add_argument('--images', metavar='DIR',
                       help='Debian images, made there with '
                            'tools/make-images if need be (default: files of '
                            'this machine)')
    swarm.add_argument('--rounds', type=int, default=5,
                       help='between two sites (default: %(default)s)')
    swarm.add_argument('--crowd', type=int, default=10, metavar='SITES',
                       help='sites of the crowd; 0: none (default: '
                            '%(default)s)')
    swarm.add_argument('--crowd-rounds', type=int, default=3,
                       help='(default: %(default)s)')
    node = which.add_parser(
        'ipfs-node', help='how fast a node of IPFS gives a file through its '
                          'RPC, and what its limit of bytes on their way does')
    node.add_argument('--mib', type=int, default=64,
                      help='of a file (default: %(default)s)')
    node.add_argument('--rounds', type=int, default=3,
                      help='(default: %(default)s)')
    for each in (swarm, node):
        each.add_argument('--wan', default='delay=25ms,rate=100mbit',
                          metavar='SHAPE', help='of the link between two '
                          'sites (needs root); empty: not shaped (default: '
                          '%(default)s)')
        each.add_argument('--seed', type=int, default=1)
    for each in (store, table, swarm, node):
        each.add_argument('-f', '--format', choices=('table', 'json'),
                          default='table')
        each.add_argument('--out', type=Path, metavar='DIR',
                          help='folder for the results')
    options = parser.parse_args(argv)
    return {'metadata': _metadata, 'store': _store, 'index': _index,
            'ipfs': _ipfs, 'ipfs-node': _ipfs_node}[options.which](options)


def _tell(results, text, options, name):
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f'{name}.json').write_text(
            json.dumps(results, indent=1))
        (options.out / f'{name}.txt').write_text(text + '\n')
    print(json.dumps(results) if options.format == 'json' else text)
    return 0


def _progress(text):
    if sys.stderr.isatty():
        print(f'\r\x1b[Kbench: {text} ', end='', file=sys.stderr, flush=True)


def _store(options):
    from benchlib import store as bench
    from benchlib import storereport
    if options.quick:
        options.rounds, options.no_http = min(options.rounds, 3), True
    try:
        results = bench.run(options.images, options.rounds, options.seed,
                            options.quick, not options.no_http, _progress)
    except bench.Unavailable as error:
        print(f'bench: {error}', file=sys.stderr)
        return 1
    if options.out:
        storereport.plot(results, options.out)
    _progress('')
    return _tell(results, storereport.table(results), options, 'store')


def _ipfs(options):
    from benchlib import ipfs as bench
    if options.quick:
        options.rounds, options.crowd_rounds = 1, 1
        options.crowd, options.wan = min(options.crowd, 3), ''
    with tempfile.TemporaryDirectory(prefix='geo-bench-') as work:
        try:
            files = bench.inputs(options.images, Path(work), options.quick,
                                 options.seed)
            results = bench.run(files, Path(work), options.rounds,
                                options.wan or None, options.crowd,
                                options.crowd_rounds, _progress)
        except bench.Unavailable as error:
            print(f'bench: {error}', file=sys.stderr)
            return 1
    _progress('')
    return _tell(results, bench.table(results), options, 'ipfs')


def _ipfs_node(options):
    from benchlib import ipfsnode as bench
    with tempfile.TemporaryDirectory(prefix='geo-bench-') as work:
        try:
            results = bench.run(Path(work), options.mib << 20, options.rounds,
                                options.wan or None, options.seed, _progress)
        except bench.Unavailable as error:
            print(f'bench: {error}', file=sys.stderr)
            return 1
    _progress('')
    return _tell(results, bench.table(results), options, 'ipfs-node')


def _index(options):
    from benchlib import indexsize
    try:
        results = indexsize.run(indexsize.parse(options.logical), _progress)
    except ValueError as error:
        print(f'bench: --logical: {error}', file=sys.stderr)
        return 1
    _progress('')
    return _tell(results, indexsize.table(results), options, 'index')


def _metadata(options):
    from benchlib import metadata as bench
    from benchlib import report
    if options.quick:
        options.images, options.rounds = '1000', min(options.rounds, 8)
    try:
        results = bench.run([int(n) for n in options.images.split(',')],
                            options.rounds, options.seed)
    except bench.Unavailable as error:
        print(f'bench: {error}', file=sys.stderr)
        return 1
    if options.out:
        report.write(results, options.out)
    if options.format == 'json':
        print(json.dumps(results))
    else:
        print(report.table(results))
    return 0
