# SPDX-License-Identifier: Apache-2.0
"""The agent's status as Prometheus metrics."""

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
)

from glance_geo.core import errors

_PER_PEER = (
    ('reachable', 'whether the last exchange succeeded'),
    ('rtt_ms', 'smoothed time to a first answer, in milliseconds'),
    ('last_sync_seconds_ago', 'age of the last exchange of records'))
_PEER_COUNTERS = (
    ('records_received', 'records that changed this site'),
    ('bytes_received', 'bytes that came from the site'),
    ('audits', 'audits of the metadata with the site'),
    ('audit_healed', 'records that audits brought together'))


_STORE = (
    ('used_bytes', 'what the packs take on the disk'),
    ('limit_bytes', 'what the packs may take; 0: no limit'),
    ('images', 'images of which there are bits'),
    ('logical_bytes', 'sizes of the images'),
    ('unique_bytes', 'bytes of the images without zeros and duplicates'),
    ('stored_bytes', 'unique bytes, compressed'),
    ('evictable_bytes', 'stored bytes that only copies use which may go'),
    ('chunks', 'chunks that are stored'))
_IPFS_NODE = (
    ('reachable', 'whether the node answered last'),
    ('repository_bytes', 'what the node\'s repository takes'),
    ('repository_limit', 'what it may take'),
    ('peers', 'nodes that it is connected to'))
_EVICTED = (('copies', 'copies that were evicted'),
            ('bytes', 'stored bytes of copies that were evicted'))


class StatusCollector:
    """Turns a status into metrics when somebody asks."""

    def __init__(self, status: Callable[[], dict[str, Any]]):
        self._status = status

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        labels = ['site', 'peer']
        for name, text in _PER_PEER:
            gauge = GaugeMetricFamily(f'glance_geo_peer_{name}', text,
                                      labels=labels)
            for peer in status['peers']:
                if peer[name] is not None:
                    gauge.add_metric([status['site'], peer['site']],
                                     float(peer[name]))
            yield gauge
        for name, text in _PEER_COUNTERS:
            counter = CounterMetricFamily(f'glance_geo_peer_{name}', text,
                                          labels=labels)
            for peer in status['peers']:
                counter.add_metric([status['site'], peer['site']],
                                   float(peer[name]))
            yield counter
        yield from self._ipfs(status)
        yield from self._tombstones(status)
        yield from self._store(status)

    @staticmethod
    def _store(status: dict[str, Any]) -> Iterator[Metric]:
        site = [status['site']]
        for name, text in _STORE:
            if name in status['store']:
                gauge = GaugeMetricFamily(f'glance_geo_store_{name}', text,
                                          labels=['site'])
                gauge.add_metric(site, float(status['store'][name]))
                yield gauge
        for name, text in _EVICTED:
            counter = CounterMetricFamily(f'glance_geo_evicted_{name}', text,
                                          labels=['site'])
            counter.add_metric(site, float(status['evicted'][name]))
            yield counter

    @staticmethod
    def _ipfs(status: dict[str, Any]) -> Iterator[Metric]:
        found, site = status['ipfs'], status['site']
        for name, text in _IPFS_NODE:
            gauge = GaugeMetricFamily(f'glance_geo_ipfs_{name}', text,
                                      labels=['site', 'store'])
            for store, node in found.get('nodes', {}).items():
                if name in node:
                    gauge.add_metric([site, store], float(node[name]))
            yield gauge
        pins = found.get('pins', {'kept': 0, 'pinning': {}})
        failing = {**pins['pinning'], **found.get('unpublished', {})}
        for name, text, value in (
                ('pins', 'files that the node keeps for images',
                 pins['kept']),
                ('published', 'images of the geo store that are offered',
                 found.get('published', 0)),
                ('failing', 'images that are not pinned or offered yet',
                 len(failing))):
            gauge = GaugeMetricFamily(f'glance_geo_ipfs_{name}', text,
                                      labels=['site'])
            gauge.add_metric([site], float(value))
            yield gauge

    @staticmethod
    def _tombstones(status: dict[str, Any]) -> Iterator[Metric]:
        found, site = status['tombstones'], [status['site']]
        waiting = GaugeMetricFamily(
            'glance_geo_tombstones_waiting',
            'deleted records that some site has not passed', labels=['site'])
        waiting.add_metric(site, found['waiting'])
        yield waiting
        blocked = GaugeMetricFamily(
            'glance_geo_tombstones_blocked',
            'deleted records that wait for a site',
            labels=['site', 'blocked_by'])
        for name, count in found['blocked_by'].items():
            blocked.add_metric([*site, name], count)
        yield blocked
        forgotten = CounterMetricFamily(
            'glance_geo_tombstones_forgotten',
            'deleted records that every site had passed', labels=['site'])
        forgotten.add_metric(site, found['forgotten'])
        yield forgotten


def serve(status: Callable[[], dict[str, Any]],
          address: tuple[str, int]) -> Any:
    """Serve metrics until the process ends.

    :raises ConfigurationInvalid: the address is taken or unusable
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StatusCollector(status))  # type: ignore[arg-type]
    try:
        return start_http_server(address[1], address[0], registry)
    except OSError as error:
        raise errors.ConfigurationInvalid(
            f'[glance_geo] metrics_listen {address[0]}:{address[1]}: '
            f'{error.strerror}') from error
