# SPDX-License-Identifier: Apache-2.0
"""A node of IPFS (Kubo) for each site, in a private network of the lab's."""

import http.client
import json
import os
import shutil
import subprocess
from pathlib import Path

from geolab.processes import LabError

ROLE = 'ipfs'
_BUILT = Path(__file__).resolve().parents[2] / '.cache' / 'kubo' / 'ipfs'


def binary():
    """Return the path of Kubo's program, or None."""
    named = os.environ.get('GLANCE_GEO_IPFS')
    if named:
        return named
    return shutil.which('ipfs') or (str(_BUILT) if _BUILT.exists() else None)


def needed():
    """Return the path of Kubo's program.

    :raises LabError: it is not there
    """
    found = binary()
    if found is None:
        raise LabError('--ipfs needs Kubo: "make kubo" builds it where Go is '
                       'installed; or name one in $GLANCE_GEO_IPFS')
    return found


def init(command, folder, site, first, peers=()):
    """Make a site's node, or tell it of others; return its id.

    :param command: path of ``glance-geo``
    :param site: with ``ipfs_api``, ``ipfs_listen`` (multiaddrs)
    :param first: folder of the site that made the swarm's key
    :param peers: multiaddrs of other sites' nodes, with their ids
    """
    repo = folder / 'ipfs'
    key = ['--new-swarm-key'] if folder == first else [
        '--swarm-key', str(first / 'ipfs' / 'swarm.key')]
    if (repo / 'swarm.key').exists():
        key = []
    argv = [command, 'ipfs', 'init', '--repo', str(repo), *key,
            '--api', site['ipfs_api'], '--listen', site['ipfs_listen'],
            # Others know what this lab tells them: they must not find ways
            # around its links.
            '--announce', 'none', '--ipfs', needed(), '--auth-file',
            str(folder / 'etc' / 'keys' / 'ipfs.auth'),
            *(word for peer in peers for word in ('--peer', peer)),
            '-f', 'json']
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        raise LabError(f'{" ".join(argv)}: {done.stderr.strip()}')
    return json.loads(done.stdout)['peer_id']


def daemon(folder):
    """Return (argv, environment) of a site's node."""
    return [needed(), 'daemon', '--enable-gc'], {
        'IPFS_PATH': str(folder / 'ipfs'), 'LIBP2P_FORCE_PNET': '1',
        'IPFS_TELEMETRY': 'off'}


def answers(api):
    """Say whether the RPC at a multiaddr answers, with whatever."""
    _, _, host, _, port = api.split('/')
    try:
        connection = http.client.HTTPConnection(host, int(port), timeout=2)
        connection.request('POST', '/api/v0/id')
        return connection.getresponse().status in (200, 403)
    except OSError:
        return False
