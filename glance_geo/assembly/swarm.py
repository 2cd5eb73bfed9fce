# SPDX-License-Identifier: Apache-2.0
"""Puts together what a site does with IPFS."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oslo_config import cfg

from glance_geo.conf import options
from glance_geo.core import errors
from glance_geo.core.interfaces import LocalChunks, RecordLog
from glance_geo.replication.pins import Pinner
from glance_geo.replication.publishing import Publications
from glance_geo.replication.swarm import Probe, Swarm

if TYPE_CHECKING:
    from glance_geo.store.ipfs.chunks import SwarmChunks
    from glance_geo.store.ipfs.node import IPFSNode


def node(conf: cfg.ConfigOpts, store: str) -> IPFSNode:
    """Return the node of IPFS that a store uses; it may be down.

    :raises ConfigurationInvalid: naming the option
    """
    try:
        from glance_geo.store.ipfs.node import IPFSNode
    except ImportError as error:
        raise errors.ConfigurationInvalid(
            f'[{store}] uses IPFS, which needs a client library: {error}. '
            f'Install glance_geo[ipfs]') from error
    return IPFSNode(*options.ipfs_node(conf, store))


def assemble(conf: cfg.ConfigOpts, log: RecordLog,
             chunks: LocalChunks) -> Swarm:
    """Return what a node's agent does with IPFS.

    :raises ConfigurationInvalid: naming the option
    """
    probes: dict[str, Probe] = {}
    files, geo = options.ipfs_store(conf), options.geo_store(conf)
    pinner = None if files is None else _pinner(conf, log, files, probes)
    if geo is None or not conf[geo].geo_ipfs_api:
        return Swarm(pinner, probes=probes)
    publications, provider = _for_chunks(conf, log, chunks, geo, probes)
    return Swarm(pinner, publications, provider, conf[geo].geo_ipfs_prefer,
                 probes)


def _pinner(conf: cfg.ConfigOpts, log: RecordLog, store: str,
            probes: dict[str, Probe]) -> Pinner:
    made = node(conf, store)
    from glance_geo.store.ipfs.references import PinReferences
    probes[store] = made.state
    group = conf[options.GROUP]
    return Pinner(group.site_name, options.node_name(conf), store, log,
                  PinReferences(made, store), options.location_keys(conf),
                  group.geo_trash_days)


def _for_chunks(conf: cfg.ConfigOpts, log: RecordLog, chunks: LocalChunks,
                store: str, probes: dict[str, Probe],
                ) -> tuple[Publications | None, SwarmChunks]:
    made = node(conf, store)
    from glance_geo.store.ipfs.chunks import SwarmChunks, SwarmPublisher
    from glance_geo.store.ipfs.references import PinReferences
    probes[store] = made.state
    if not conf[store].geo_ipfs_publish:
        return None, SwarmChunks(made)
    publisher = SwarmPublisher(made, PinReferences(made, store))
    return Publications(log, chunks, publisher, publisher.repair,
                        ), SwarmChunks(made)
