# SPDX-License-Identifier: Apache-2.0
"""The benchmark runs, and its summary says what the goals name. No time is
judged here: machines differ."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
