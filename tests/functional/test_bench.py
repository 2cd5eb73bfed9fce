# SPDX-License-Identifier: Apache-2.0
"""The benchmark runs, and its summary says what the goals name. No time is
judged here: machines differ."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import kubo

ROOT = Path(__file__).resolve().parents[2]


def test_bench_metadata_quick(tmp_path):
    if not (shutil.which('mariadbd') or list(
            Path('/usr/lib/postgresql').glob('*/bin/postgres'))):
        pytest.skip('neither PostgreSQL nor MariaDB is installed')
    done = subprocess.run(
        [sys.executable, str(ROOT / 'tools/bench'), 'metadata', '--quick',
         '--rounds', '2', '-f', 'json', '--out', str(tmp_path)],
        capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert 0 <= results['summary']['share_faster'] <= 1
    assert results['summary']['api_show_times_faster_min'] > 0
    assert 'image create' in results['results']['1000']['http']
    assert (tmp_path / 'metadata.svg').stat().st_size > 1000
    assert 'ratio' in (tmp_path / 'metadata.txt').read_text()


def test_bench_store_quick(tmp_path):
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', str(ROOT / 'tools/bench'), 'store',
         '--quick', '--rounds', '2', '-f', 'json', '--out', str(tmp_path)],
        capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    for name in ('put_raw', 'put_updated', 'put_dense', 'get_raw',
                 'get_dense', 'get_cold', 'get_random', 'index_share'):
        assert results['summary'][name] > 0
    if shutil.which('borg') or shutil.which('restic'):
        assert results['summary']['stored_vs_best'] > 0
    assert results['stored']['bytes']['geo'] < results['stored']['bytes'][
        'file']
    assert (tmp_path / 'store.svg').stat().st_size > 1000
    assert 'goal' in (tmp_path / 'store.txt').read_text()


def test_bench_index_of_a_small_store(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / 'tools/bench'), 'index', '--logical',
         '2GiB', '-f', 'json'], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)['summary']
    assert summary['chunks'] > 10_000
    assert summary['resident_bytes_collecting'] < 256 << 20


def test_bench_ipfs_quick(tmp_path):
    kubo.needed()
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', str(ROOT / 'tools/bench'), 'ipfs',
         '--quick', '-f', 'json', '--out', str(tmp_path)],
        capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    kinds = {'ipfs', 'geo', 'geo over IPFS'}
    for table in ('seconds', 'bytes'):
        assert set(results[table]['remote read']) == kinds
    assert set(results['crowd']) == kinds
    # What compression and content-defined chunks are for.
    assert (results['bytes']['remote read updated']['geo']['median']
            < results['bytes']['remote read updated']['ipfs']['median'])
    assert 'MiB over the link' in (tmp_path / 'ipfs.txt').read_text()


def test_bench_ipfs_node():
    kubo.needed()
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', str(ROOT / 'tools/bench'),
         'ipfs-node', '--mib', '4', '--rounds', '1', '--wan', '', '-f',
         'json'], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    rates = json.loads(done.stdout)['rates']
    assert len(rates) == 3 and all(
        its['median'] > 0 for ways in rates.values()
        for its in ways.values())
