# SPDX-License-Identifier: Apache-2.0
"""``tools/bench metadata``: every kind of request on every backend, in turn.

The backends take turns with each round, so that whatever else the machine
does meets them all alike. All are durable: PostgreSQL and MariaDB with their
defaults (``fsync``, ``innodb_flush_log_at_trx_commit=1``), Redis with
``appendfsync always``, SQLite with ``synchronous=FULL``.
"""

import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchlib import backends, population
from benchlib.apirequests import Client, requests
from benchlib.backends import GEO, SQL, Unavailable

_WARM_UP = 3


class Worker:
    """A process that makes data-API calls on one backend."""

    def __init__(self, backend):
        self._process = subprocess.Popen(
            [sys.executable, '-m', 'benchlib.worker',
             backend.name.partition('-')[0], backend.url],
            cwd=Path(__file__).resolve().parents[1],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            stderr=open(backend.folder / 'worker.log', 'w'))
        self._backend = backend

    def wait(self):
        if self._process.stdout.readline().strip() != 'ready':
            text = (self._backend.folder / 'worker.log').read_text()
            raise Unavailable(f'data API on {self._backend.name}: '
                              f'{text.strip().splitlines()[-1:]}')

    def round(self, *arguments):
        self._process.stdin.write(json.dumps(arguments) + '\n')
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def stop(self):
        self._process.stdin.close()
        self._process.wait(10)


def _start(folder):
    made, missing = [], []
    with ThreadPoolExecutor(4) as pool:
        starts = {name: pool.submit(kind, name, folder)
                  for name, kind in backends.KINDS.items()}
    for name, start in starts.items():
        try:
            made.append(start.result())
        except Unavailable as error:
            missing.append(f'{name}: {error}')
    for line in missing:
        print(f'bench: left out {line}', file=sys.stderr)
    names = [backend.name for backend in made]
    if not set(names) & set(SQL) or not set(names) & set(GEO):
        for backend in made:
            backend.stop()
        raise Unavailable('nothing to compare with: ' + '; '.join(missing))
    return made


def _fill(made, first, last, seed):
    sql = [b for b in made if b.name in SQL]
    for backend in sql:
        population.fill_sql(backend.url, first, last, seed)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda b: population.fill_geo(b, sql[0].url),
                      [b for b in made if b.name in GEO]))


def _measure(made, clients, workers, images, rounds, seed, began):
    """Return {level: {kind: {backend: [ms]}}}."""
    found = {'http': {}, 'api': {}}
    for number in range(-_WARM_UP, rounds):
        # Whoever is first in a round is first in none of the next ones.
        turn = number % len(made)
        for backend in made[turn:] + made[:turn]:
            at = began + number + _WARM_UP
            taken = {'http': requests(clients[backend.name], at, images,
                                      seed),
                     'api': workers[backend.name].round(at, images, seed)}
            for level, results in taken.items():
                for kind, took in results:
                    if number >= 0:
                        found[level].setdefault(kind, {}).setdefault(
                            backend.name, []).append(took / 1e6)
        _progress(number, rounds)
    return found


def _progress(number, rounds):
    if sys.stderr.isatty():
        print(f'\rbench: round {max(0, number + 1)} of {rounds} ',
              end='' if number + 1 < rounds else '\n', file=sys.stderr)


def _quantiles(samples):
    ordered = sorted(samples)
    return {'p50': statistics.median(ordered),
            'p95': ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))],
            'min': ordered[0]}


def summary(results):
    """Return the figures that the goals name."""
    cells, worst, worst_cell = [], 0.0, None
    at_api = {}
    for size, levels in results.items():
        for level, kinds in levels.items():
            for kind, by in kinds.items():
                for geo in GEO:
                    for sql in SQL:
                        if geo not in by or sql not in by:
                            continue
                        ratio = by[geo]['p50'] / by[sql]['p50']
                        faster = (ratio < 1 and
                                  by[geo]['p95'] < by[sql]['p95'])
                        if level == 'http':
                            cells.append(faster)
                            if ratio > worst:
                                worst = ratio
                                worst_cell = f'{kind}, {size}: {geo}/{sql}'
                        elif kind in ('image_get', 'image_create'):
                            name = ('show' if kind == 'image_get'
                                    else 'create')
                            at_api.setdefault(name, []).append(1 / ratio)
    return {'share_faster': round(sum(cells) / len(cells), 4),
            'compared': len(cells), 'worst_p50_ratio': round(worst, 3),
            'worst': worst_cell,
            **{f'api_{name}_times_faster_{what}': round(take(values), 2)
               for name, values in at_api.items()
               for what, take in (('min', min),
                                  ('median', statistics.median))}}


def run(sizes, rounds, seed):
    """Run the benchmark; return its results.

    :raises Unavailable: what it compares with is not installed
    """
    folder = Path(tempfile.mkdtemp(prefix='geo-bench-'))
    folder.chmod(0o755)
    made = _start(folder)
    results, filled, began = {}, 0, 0
    try:
        for size in sizes:
            _fill(made, filled, size, seed)
            if not filled:
                for backend in made:
                    backend.serve()
                workers = {b.name: Worker(b) for b in made}
                for backend in made:
                    backend.wait()
                    workers[backend.name].wait()
                clients = {b.name: Client(b.endpoint) for b in made}
            filled = size
            found = _measure(made, clients, workers, size, rounds, seed,
                             began)
            began += rounds + _WARM_UP
            results[str(size)] = {
                level: {kind: {name: _quantiles(samples)
                               for name, samples in by.items()}
                        for kind, by in kinds.items()}
                for level, kinds in found.items()}
        for worker in workers.values():
            worker.stop()
        return {'summary': summary(results), 'results': results,
                'rounds': rounds, 'seed': seed,
                'machine': platform.platform()}
    finally:
        for backend in made:
            backend.stop()
        shutil.rmtree(folder, ignore_errors=True)
