# SPDX-License-Identifier: Apache-2.0
"""Real nodes of IPFS for tests, in a private network of their own.

Kubo is taken from ``GLANCE_GEO_IPFS``, from ``PATH``, or as ``make kubo``
built it; without one the tests that need it are skipped. One that is named
and does not work is a failure.
"""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from glance_geo.store.ipfs.node import IPFSNode

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'tools'))

from geolab import ipfs, lab, planning  # noqa: E402


def needed():
    """Skip the test where there is no Kubo."""
    if ipfs.binary() is None:
        pytest.skip('needs Kubo: "make kubo" builds it, or set '
                    'GLANCE_GEO_IPFS')


class Kubo:
    """One node, started; a context manager.

    :param first: another node, whose network this one joins
    """

    def __init__(self, folder, first=None):
        ports = planning.free_ports()
        self.folder = Path(folder)
        (self.folder / 'etc' / 'keys').mkdir(parents=True, exist_ok=True)
        self.port = next(ports)
        self.site = {'ipfs_api': f'/ip4/127.0.0.1/tcp/{self.port}',
                     'ipfs_listen': f'/ip4/127.0.0.1/tcp/{next(ports)}'}
        self.first = first or self
        self.id = self.init()
        self.process = None

    @property
    def peer(self):
        return f'{self.site["ipfs_listen"]}/p2p/{self.id}'

    @property
    def secret(self):
        return (self.folder / 'etc' / 'keys' / 'ipfs.auth'
                ).read_text().strip()

    def init(self, *peers):
        return ipfs.init(lab.program('glance-geo'), self.folder, self.site,
                         self.first.folder, peers)

    def start(self):
        argv, environment = ipfs.daemon(self.folder)
        with open(self.folder / 'ipfs.log', 'ab') as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log,
                                            env=environment)
        deadline = time.monotonic() + 60
        while not ipfs.answers(self.site['ipfs_api']):
            assert self.process.poll() is None, (
                self.folder / 'ipfs.log').read_text()
            assert time.monotonic() < deadline, 'Kubo does not start'
            time.sleep(0.05)
        return self

    def kill(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def node(self, timeout=3.0, secret=None, address=None):
        return IPFSNode(address or f'{self.site["ipfs_api"]}/http',
                        self.secret if secret is None else secret,
                        timeout=timeout)


def network(folder, count):
    """Start some nodes that know each other."""
    nodes = []
    for number in range(count):
        nodes.append(Kubo(folder / f'n{number}', nodes[0] if nodes else None))
    for each in nodes:
        each.init(*(other.peer for other in nodes if other is not each))
    for each in nodes:
        each.start()
    return nodes
