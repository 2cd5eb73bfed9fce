# SPDX-License-Identifier: Apache-2.0
"""Which addresses a lab's sites and links get."""

import random
import socket

from geolab.links_relay import RelayLinks
from geolab.links_wan import WanLinks, parse

_REDIS_PORT = 6379
_COCKROACH_PORTS = 26257, 8080
_AGENT_PORT = 9494
_API_PORT = 9292
_IPFS_PORT, _SWARM_PORT = 5001, 4001


def free_ports():
    """Yield ports that are free now, each once.

    Below the range from which the kernel takes ports for outgoing
    connections: one of those could sit on a port while its process is down.
    """
    for port in random.sample(range(20000, 32000), 12000):
        with socket.socket() as probe:
            try:
                probe.bind(('127.0.0.1', port))
            except OSError:
                continue
        yield port


def relay(names):
    """Return a plan of sites on loopback."""
    ports = free_ports()
    sites = {name: {'agent_port': next(ports), 'api_port': next(ports),
                    'redis_port': next(ports), 'cockroach_ports': (
                        next(ports), next(ports)),
                    'swarm_port': next(ports)} for name in names}
    routes = RelayLinks.plan(sites, ports, 'agent_port')
    swarm = RelayLinks.plan(sites, ports, 'swarm_port')
    for name, site in sites.items():
        site['endpoint'] = f'http://127.0.0.1:{site["api_port"]}'
        site['listen'] = f'127.0.0.1:{site["agent_port"]}'
        site['addresses'] = ['127.0.0.1']
        site['peers'] = {to: ('127.0.0.1', port)
                         for source, to, port, _ in routes
                         if source == name}
        site['ipfs_api'] = f'/ip4/127.0.0.1/tcp/{next(ports)}'
        site['ipfs_listen'] = f'/ip4/127.0.0.1/tcp/{site["swarm_port"]}'
        site['ipfs_peers'] = {to: f'/ip4/127.0.0.1/tcp/{port}'
                              for source, to, port, _ in swarm
                              if source == name}
    return {'sites': sites,
            'links': {'kind': 'relay', 'routes': routes + swarm}}


def wan(folder, names, shape):
    """Return a plan of sites in namespaces, with links of one shape."""
    plan = WanLinks.plan(folder, names)
    plan.update(kind='wan', shape=parse(shape))
    links = WanLinks(folder, plan)
    sites = {}
    for name in names:
        address = plan['sites'][name]['address']
        near = [link for link, its in plan['links'].items()
                if name in its['ends']]
        others = {link: next(s for s in plan['links'][link]['ends']
                             if s != name) for link in near}
        sites[name] = {
            'endpoint': f'http://{address}:{_API_PORT}',
            'listen': f'0.0.0.0:{_AGENT_PORT}',
            'redis_port': _REDIS_PORT,
            'cockroach_ports': _COCKROACH_PORTS,
            'ipfs_api': f'/ip4/{address}/tcp/{_IPFS_PORT}',
            'ipfs_listen': f'/ip4/0.0.0.0/tcp/{_SWARM_PORT}',
            'ipfs_peers': {
                other: f'/ip4/{links.address(link, other)}/tcp/'
                       f'{_SWARM_PORT}'
                for link, other in others.items()},
            'addresses': [address] + [links.address(link, name)
                                      for link in near],
            'peers': {other: (links.address(link, other), _AGENT_PORT)
                      for link, other in others.items()}}
    return {'sites': sites, 'links': plan}
