# SPDX-License-Identifier: Apache-2.0
"""The configuration of a Kubo that talks to the operator's sites only.

Pure functions over the JSON that ``ipfs init`` wrote. What Kubo would do by
default and a private site must not: look up bootstrap nodes and automatic
settings, announce content, discover neighbours, offer relays, ask for newer
versions, fetch over public HTTP, send telemetry.
"""

from __future__ import annotations

import copy
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from glance_geo.core import errors

RPC_PATHS = (
    'add', 'block/get', 'block/put', 'cat', 'dag/export', 'dag/import',
    'files/cp', 'files/ls', 'files/mkdir', 'files/rm', 'id', 'pin/add',
    'pin/ls', 'pin/rm', 'repo/gc', 'repo/stat', 'swarm/connect',
    'swarm/peering/ls', 'swarm/peers')
"""The calls of the RPC that this package makes, and no others."""
USER = 'glance-geo'
API = '/ip4/127.0.0.1/tcp/5001'
LISTEN = '/ip4/0.0.0.0/tcp/4001'

_OFF = (
    'AutoConf.Enabled', 'AutoTLS.Enabled', 'AutoTLS.AutoWSS',
    'Discovery.MDNS.Enabled', 'HTTPRetrieval.Enabled', 'Provide.Enabled',
    'Version.SwarmCheckEnabled', 'Swarm.RelayClient.Enabled',
    'Swarm.RelayService.Enabled', 'Swarm.EnableHolePunching',
    # A private network speaks TCP only.
    'Swarm.Transports.Network.QUIC', 'Swarm.Transports.Network.Relay',
    'Swarm.Transports.Network.WebTransport',
    'Swarm.Transports.Network.WebRTCDirect',
    'Swarm.Transports.Network.Websocket')


def _set(config: dict[str, Any], path: str, value: Any) -> None:
    *folders, name = path.split('.')
    for folder in folders:
        config = config.setdefault(folder, {})
    config[name] = value


def private(config: Mapping[str, Any], api: str | None,
            listen: Sequence[str] | None, announce: Sequence[str] | None,
            peers: Mapping[str, str], secret: str,
            storage_max: str | None) -> dict[str, Any]:
    """Return a configuration made private.

    :param api: multiaddr of the RPC; None: as it is
    :param listen: multiaddrs for other nodes; None: as it is, where a private
        network can
    :param announce: what they are told; None: the same; empty: nothing
    :param peers: id -> multiaddr of the operator's other nodes; those that
        are configured already stay
    :param secret: what the RPC wants of its one user; '' for nothing
    """
    made = copy.deepcopy(dict(config))
    addresses = made.setdefault('Addresses', {})
    api = api or addresses.get('API') or API
    listen = listen or [each for each in addresses.get('Swarm') or ()
                        if '/tcp/' in each and '/ws' not in each] or [LISTEN]
    for path in _OFF:
        _set(made, path, False)
    for path, value in (
            ('Addresses.API', api), ('Addresses.Gateway', []),
            ('Addresses.Swarm', list(listen)), ('Bootstrap', []),
            ('Routing.Type', 'none'), ('Routing.DelegatedRouters', []),
            ('Ipns.DelegatedPublishers', []), ('DNS.Resolvers', {}),
            # By default one block of 1 MiB is on its way to a node at a time:
            # 35 Mbit/s of a link of 100 with 25 ms of delay, not 86.
            ('Internal.Bitswap.MaxOutstandingBytesPerPeer', 16 << 20),
            ('Internal.Bitswap.EngineTaskWorkerCount', 16),
            ('Internal.Bitswap.TaskWorkerCount', 16),
            ('Swarm.DisableNatPortMap', True),
            ('AutoNAT.ServiceMode', 'disabled'),
            ('Plugins.Plugins', {'telemetry': {'Disabled': True}})):
        _set(made, path, value)
    if announce is not None:
        _set(made, 'Addresses.Announce', list(announce))
        _set(made, 'Addresses.NoAnnounce', [] if announce else list(listen))
    known = {its['ID']: its.get('Addrs') or [] for its in (
        made.get('Peering') or {}).get('Peers') or []}
    known.update({name: [address] for name, address in peers.items()})
    known.pop(made['Identity']['PeerID'], None)
    _set(made, 'Peering.Peers', [{'ID': name, 'Addrs': addresses}
                                 for name, addresses in sorted(
                                     known.items())])
    if storage_max:
        _set(made, 'Datastore.StorageMax', storage_max)
    if secret:
        _set(made, 'API.Authorizations', {USER: {
            'AuthSecret': secret,
            'AllowedPaths': [f'/api/v0/{path}' for path in RPC_PATHS]}})
    return made


def peer(text: str) -> tuple[str, str]:
    """Return (id, multiaddr) of another node, as ``…/p2p/<id>``.

    :raises ConfigurationInvalid: not of this form
    """
    address, sign, name = text.rpartition('/p2p/')
    if not sign or not address.startswith('/') or not name.isalnum():
        raise errors.ConfigurationInvalid(
            f'--peer {text}: use /ip4/<address>/tcp/<port>/p2p/<id>, as '
            f'"glance-geo ipfs init" prints it at the other site')
    return name, address


def swarm_key() -> str:
    """Return a new key of a private network (libp2p's PSK, version 1)."""
    return f'/key/swarm/psk/1.0.0/\n/base16/\n{secrets.token_hex(32)}\n'


def bearer() -> str:
    """Return a new secret for the RPC."""
    return f'bearer:{secrets.token_urlsafe(32)}'
