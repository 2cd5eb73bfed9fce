# SPDX-License-Identifier: Apache-2.0
"""The lab's CockroachDB: what it would start, and that it says what it
needs. The commands themselves were never run: there is no program here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'tools'))

from geolab import cockroach  # noqa: E402

SITES = {name: {'addresses': ['127.0.0.1'],
                'cockroach_ports': (20000 + 2 * n, 20001 + 2 * n)}
         for n, name in enumerate(('paris', 'rennes', 'nantes'))}


def test_without_the_program_one_line_says_so(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / 'tools/lab'), 'up', '--metadata',
         'cockroachdb', '--dir', str(tmp_path / 'lab')], text=True,
        capture_output=True, timeout=60,
        env={**os.environ, 'PATH': str(tmp_path)})
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert 'needs a cockroach program' in line
    assert not (tmp_path / 'lab').exists()


@pytest.fixture
def program(tmp_path, monkeypatch):
    its = tmp_path / 'cockroach'
    its.touch(0o755)
    monkeypatch.setenv('PATH', str(tmp_path))
    return str(its)


def test_a_node_a_site_in_a_region_of_its_name(program):
    nodes = cockroach.nodes(SITES)
    command = cockroach.start_command('rennes', '/lab/rennes', nodes)
    assert command[:3] == [program, 'start', '--insecure']
    assert '--locality=region=rennes' in command
    assert '--listen-addr=127.0.0.1:20002' in command
    assert ('--join=127.0.0.1:20000,127.0.0.1:20002,127.0.0.1:20004'
            in command)


def test_a_sites_own_node_comes_first_in_its_url():
    url = cockroach.url('nantes', cockroach.nodes(SITES))
    assert url.startswith('sql+cockroachdb+psycopg2://root@/glance?'
                          'host=127.0.0.1:20004&host=127.0.0.1:20000&')
    assert url.endswith('&sslmode=disable')
