# SPDX-License-Identifier: Apache-2.0
"""How fast a node of IPFS (Kubo) gives a file through its RPC.

What ``store/ipfs/reading.py`` chooses between: one stream, leaves by their
names, and a pin; of what is at the node, and of what another one has, as Kubo
is configured by itself and as ``glance-geo ipfs init`` does it. Every reading
is of new random bytes.
"""

import json
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor

from geolab import ipfs as kubo
from geolab.lab import Lab
from geolab.layout import Stores
from geolab.processes import LabError

from benchlib.ipfs import Unavailable, needed, spread
from glance_geo.store.ipfs.node import IPFSNode
from glance_geo.store.ipfs.reading import AHEAD, FileReader

_MIB = 1 << 20
_SITES = ('paris', 'rennes')
_LIMIT = 'MaxOutstandingBytesPerPeer'
_HERE, _OWN, _SET = 'at the node', 'far, as Kubo is', 'far, as init sets it'


def _node(lab, site):
    secret = lab.folder / site / 'etc' / 'keys' / 'ipfs.auth'
    return IPFSNode(f'{lab.sites[site]["ipfs_api"]}/http',
                    secret.read_text().strip(), timeout=60.0)


def _stream(node, cid):
    return sum(map(len, node.stream(cid, 0, 1 << 40)))


def _by_name(node, cid):
    leaves = [leaf.cid for leaf in FileReader(node, 'bench', cid).leaves()]
    with ThreadPoolExecutor(AHEAD) as pool:
        return sum(map(len, pool.map(node.block, leaves)))


def _pin(node, cid):
    node.pin(cid, 'bench')
    return None


WAYS = {'one stream': _stream, f'leaves by name, {AHEAD} at once': _by_name,
        'pin': _pin}


def _configuration(lab, site):
    path = lab.folder / site / 'ipfs' / 'config'
    return path, json.loads(path.read_text())


def _configure(lab, limit):
    """Start the nodes again with a limit; None: Kubo's own."""
    for site in _SITES:
        lab.kill(site, kubo.ROLE)
        path, config = _configuration(lab, site)
        bitswap = config['Internal']['Bitswap']
        bitswap.pop(_LIMIT, None)
        if limit is not None:
            bitswap[_LIMIT] = limit
        path.write_text(json.dumps(config))
        lab.start(site, kubo.ROLE)
    deadline = time.monotonic() + 60
    node = _node(lab, 'rennes')
    while not node.peers():
        node.reconnect()
        if time.monotonic() > deadline:
            raise LabError('the nodes do not find each other')
        time.sleep(0.1)


def _rate(way, reader, giver, size, seed):
    """Return the bytes in a second at which a new file is read."""
    source = random.Random(seed)
    cid = giver.add((source.randbytes(_MIB) for _ in range(size // _MIB)),
                    'bench')
    began = time.monotonic()
    got = WAYS[way](reader, cid)
    took = time.monotonic() - began
    if got is not None and got != size:
        raise LabError(f'{way}: {got} bytes of {size}')
    for node in {reader, giver}:
        node.unpin(cid)
        node.collect()
    return size / took


def run(work, size, rounds, wan, seed, progress):
    """Return the results: bytes in a second.

    :param wan: shape of the link; None: not shaped
    :raises Unavailable: no Kubo, or no link of this shape
    """
    needed()
    lab, seeds = Lab(work / 'lab'), random.Random(seed)
    found = {_HERE: {way: [] for way in WAYS if way != 'pin'},
             **{where: {way: [] for way in WAYS} for where in (_OWN, _SET)}}
    try:
        lab.up(_SITES, stores=Stores(('swarm',)), wan=wan)
        giver, reader = (_node(lab, site) for site in _SITES)
        limit = _configuration(lab, 'paris')[1]['Internal']['Bitswap'][_LIMIT]
        for turn in range(rounds):
            for where, ways in found.items():
                if where != _HERE:
                    _configure(lab, None if where == _OWN else limit)
                for way, rates in ways.items():
                    progress(f'{where}: {way}, round {turn + 1} of {rounds}')
                    rates.append(_rate(
                        way, giver if where == _HERE else reader,
                        giver, size, seeds.getrandbits(32)))
    except LabError as error:
        raise Unavailable(str(error)) from error
    finally:
        lab.down()
    return {
        'rates': {where: {way: spread(rates) for way, rates in ways.items()}
                  for where, ways in found.items()},
        'wan': wan, 'bytes': size, 'rounds': rounds, 'cpus': os.cpu_count()}


def table(results):
    """Return the results as text."""
    lines = [f'{"Mbit/s":30}' + ''.join(
        f'{where:>26}' for where in results['rates'])]
    lines.append('-' * len(lines[0]))
    for way in WAYS:
        cells = []
        for ways in results['rates'].values():
            rate = {what: value * 8 / 1e6
                    for what, value in ways.get(way, {}).items()}
            cells.append(f'{rate["median"]:.1f} ({rate["min"]:.1f}–'
                         f'{rate["max"]:.1f})' if rate else '')
        lines.append(f'{way:30}' + ''.join(f'{cell:>26}' for cell in cells))
    return '\n'.join([
        *lines, '', f'{results["bytes"] / _MIB:.0f} MiB of random bytes; '
        f'link: {results["wan"] or "not shaped"}; {results["rounds"]} '
        f'rounds; median (least–most); {results["cpus"]} CPUs'])
