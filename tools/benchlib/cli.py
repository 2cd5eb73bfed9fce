# SPDX-License-Identifier: Apache-2.0
"""The command line of ``tools/bench``."""

import argparse
import json
import sys
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
    options = parser.parse_args(argv)
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
