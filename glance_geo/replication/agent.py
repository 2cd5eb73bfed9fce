# SPDX-License-Identifier: Apache-2.0
"""The agent: syncs records, fetches and serves chunks, follows placement."""

import dataclasses
import logging
import ssl
import threading
import time
from collections.abc import Sequence
from typing import Any

from glance_geo.core import codec, errors
from glance_geo.core.interfaces import LocalChunks, RecordLog
from glance_geo.core.rules import shown
from glance_geo.replication import audit, membership, sources, tombstones
from glance_geo.replication.client import PeerClient
from glance_geo.replication.evict import Evictor
from glance_geo.replication.keeper import Keeper, KeeperRules
from glance_geo.replication.local import LocalServer, hint_path
from glance_geo.replication.server import PeerServer
from glance_geo.replication.serving import (
    HintListener,
    serve_local,
    serve_peers,
)
from glance_geo.replication.swarm import Swarm
from glance_geo.replication.sync import PeerSync, Upkeep
from glance_geo.replication.transfer import Fetcher

LOG = logging.getLogger(__name__)


_FEED_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class Intervals:
    """How often an agent does what: seconds."""

    sync: float = 10.0
    audit: float = 3600.0
    tombstones: float = 60.0


class Agent:
    """One node's agent. ``start`` returns; ``stop`` ends it."""

    def __init__(self, site: str, node: str, log: RecordLog,
                 store: LocalChunks, peers: Sequence[PeerClient],
                 intervals: Intervals, rules: KeeperRules,
                 swarm: Swarm | None = None):
        self.site = site
        self.node = node
        self._log = log
        self._store = store
        self._began = time.time()
        self._peers = {peer.site: peer for peer in peers}
        self._rules = rules
        self.swarm = swarm or Swarm()
        self.fetcher = Fetcher(
            store, self._permit, lambda image, manifest:
            self.swarm.with_peers(self._order(image, manifest)))
        self.evictor = Evictor(site, log, store, self._order,
                               lambda image: self.keeper.forget_holding(image))
        self.keeper = Keeper(site, node, log, store, self.fetcher,
                             self.evictor, rules, self.swarm)
        self._intervals = intervals
        self.tombstones = tombstones.Tombstones()
        votes = audit.Votes(lambda: [site for site in self.members()
                                     if site in self._peers])
        self._syncs = {peer.site: PeerSync(
            log, peer, intervals.sync, Upkeep(
                log, peer, votes, intervals.tombstones, intervals.audit),
            self._news) for peer in peers}
        self._stopping = threading.Event()
        self._threads = [threading.Thread(
            target=self._forget, name='tombstones', daemon=True)]
        if log.feeds:
            self._threads.append(threading.Thread(
                target=self._feed, name='feed', daemon=True))
        self.peer_server = PeerServer(site, log, store, self._hinted,
                                      self.status, self.evictor.promise)
        self.local_server = LocalServer(self, self.claim_home, self.status,
                                        self._act)
        self._serving: list[Any] = []

    # -- life -------------------------------------------------------------
    def start(self, listen: tuple[str, int], tls: ssl.SSLContext,
              cert_file: str, key_file: str, agent_socket: str,
              timeout: float) -> None:
        """Begin to serve and to work.

        :raises ConfigurationInvalid: an address is taken or unusable
        """
        self._announce()
        self._serving = [
            serve_local(self.local_server, agent_socket),
            serve_peers(self.peer_server, listen, tls, cert_file, key_file,
                        timeout),
            HintListener(hint_path(agent_socket), self._written)]
        self.swarm.start()
        self.keeper.start()
        for sync in self._syncs.values():
            sync.start()
        for thread in self._threads:
            thread.start()
        LOG.info('Agent of %s serves %s:%d; peers: %s', self.node, *listen,
                 ', '.join(self._peers) or 'none')

    def stop(self) -> None:
        self._stopping.set()
        for serving in self._serving:
            serving.stop()
        for sync in self._syncs.values():
            sync.stop()
        self.keeper.stop()
        self.swarm.stop()
        try:
            self.fetcher.settle(force=True)
        except errors.GeoError as error:
            LOG.warning('Last chunks: %s', error)
        for peer in self._peers.values():
            peer.close()

    def _announce(self) -> None:
        """Write this site's record, so that every site knows it."""
        present = {'name': self.site, 'node': self.node,
                   'reads': codec.VERSION}
        self._log.update('site', self.site, lambda record: (
            None if record and shown(record).get('site') == present
            else {'site': present}))

    def _forget(self) -> None:
        """Forget deleted records, now and then."""
        while not self._stopping.wait(self._intervals.tombstones):
            if self._log.replicates:
                continue    # other sites' reads are not known here
            try:
                tombstones.collect(
                    self._log, self.members(), self._rules.trash_days,
                    self.tombstones)
            except Exception:
                LOG.exception('Deleted records stay for now')

    def _feed(self) -> None:
        """Notice what other nodes of this site write."""
        number = 0
        while not self._stopping.is_set():
            try:
                last = self._log.wait(number, _FEED_SECONDS)
            except errors.GeoError as error:
                LOG.warning('The change feed broke: %s', error)
                self._stopping.wait(1.0)
                continue
            if last > number and number:
                self._written()
            number = max(number, last)

    # -- news -------------------------------------------------------------
    def _written(self) -> None:
        """A process of this node wrote records."""
        self.keeper.changed()
        for sync in self._syncs.values():
            sync.hint_soon()

    def _hinted(self, site: str) -> None:
        """Another site has something new."""
        if site in self._syncs:
            self._syncs[site].pull_soon()

    def _news(self, source: PeerSync) -> None:
        """Records came from a peer: act on them, and pass the word on."""
        self.keeper.changed()
        for sync in self._syncs.values():
            if sync is not source:
                sync.hint_soon()

    # -- bits -------------------------------------------------------------
    def sites(self) -> list[str]:
        """Return the names of all sites that are known."""
        return sorted({record.id for record in self._log.list('site')}
                      | set(self._peers) | {self.site})

    def members(self) -> list[str]:
        """Return the names of the sites that take part."""
        gone = membership.retired_sites(self._log.list('site'))
        return [site for site in self.sites() if site not in gone]

    def _bits(self, image: str, manifest: bytes) -> sources.ImageBits:
        bits = sources.with_manifest(self._log.images_of(image), manifest)
        if bits is None:
            raise errors.BitsUnavailable(
                f'image {image} lists no such data at site {self.site}')
        return bits

    def _permit(self, image: str, manifest: bytes) -> str:
        bits = self._bits(image, manifest)
        decision = bits.decide(self.site)
        if not decision.allowed:
            raise errors.BitsElsewhere(
                f'image {image} can not be read at site {self.site}: '
                f'{decision.why}')
        return sources.chunk_project(bits, self._rules.site_wide)

    def _order(self, image: str, manifest: bytes) -> list[PeerClient]:
        """Return the peers that may have an image's bits, best first.

        Those that hold it whole, by measured distance, then its home, then
        those with a part, then the others: what is known of holdings may be
        old.
        """
        bits = self._bits(image, manifest)
        rank: dict[str, float] = {}
        for site in self._peers:
            record = self._log.get('holding', sources.holding_id(
                bits.image, f'{site}/{site}'))
            held = sources.holdings([record] if record else [])
            if held and held[0]['manifest'] == manifest.hex():
                rank[site] = 0 if held[0]['here'] == held[0]['total'] else 2
            elif site == bits.home:
                rank[site] = 1
            else:
                rank[site] = 3
        down = {site for site, sync in self._syncs.items()
                if sync.reachable is False}
        return sorted(self._peers.values(), key=lambda peer: (
            peer.site in down, rank[peer.site], peer.rtt or 0.0, peer.site))

    def ensure(self, image_id: str, manifest: bytes,
               names: Sequence[bytes]) -> None:
        """Bring chunks for this node's glance-api."""
        self.fetcher.ensure(image_id, manifest, names)
        self.keeper.touched(image_id, manifest)

    def claim_home(self, image_id: str) -> None:
        """Ask a queued image's home to hand it over to this site.

        :raises HomeUnreachable: it is cut off
        :raises PeerRefused: it has begun to fill the image itself
        """
        known = self._log.get('image', image_id)
        home = shown(known).get('home') if known is not None else None
        if home == self.site:
            return
        peer = self._peers.get(home or '')
        if peer is None:
            raise errors.HomeUnreachable(f'site {home} is no peer of '
                                         f'{self.site}')
        try:
            record = codec.decode(peer.claim_home(image_id))
        except errors.Unreachable as error:
            raise errors.HomeUnreachable(str(error)) from error
        if record.key != f'image/{image_id}':
            raise errors.PeerMisbehaved(f'site {home} answered with another '
                                        f'record')
        self._log.absorb(record)

    # -- telling ----------------------------------------------------------
    def status(self) -> dict[str, Any]:
        """Return what ``glance-geo status`` shows."""
        now = time.time()
        return {
            'site': self.site, 'node': self.node,
            'uptime_seconds': int(now - self._began),
            'incarnation': self._log.incarnation,
            'vector': self._log.vector(), 'sites': self.sites(),
            'peers': [{
                'site': site, 'address': sync.peer.address,
                'reachable': sync.reachable,
                'error': sync.error or sync.peer.last_error,
                'rtt_ms': (None if sync.peer.rtt is None
                           else round(sync.peer.rtt * 1000, 1)),
                'last_sync_seconds_ago': (
                    None if sync.last_pull is None
                    else round(now - sync.last_pull, 1)),
                'records_received': sync.records_received,
                'bytes_received': sync.peer.bytes_received,
                'retired': sync.retired, 'audits': sync.upkeep.audits,
                'audit_healed': sync.upkeep.healed,
            } for site, sync in sorted(self._syncs.items())],
            'tombstones': dataclasses.asdict(self.tombstones),
            'retired': sorted(membership.retired_sites(
                self._log.list('site'))),
            'pulling': {**self.swarm.pinning, **self.keeper.pulling},
            'chunks_received': self.fetcher.chunks_received,
            'chunks_sent': self.peer_server.chunks_sent,
            'store': {'used_bytes': self._store.used_bytes(),
                      'limit_bytes': self._store.limit,
                      **self._store.statistics()},
            'evicted': dataclasses.asdict(self.evictor.done),
            'ipfs': self.swarm.status()}

    def _audit(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for site, sync in self._syncs.items():
            try:
                if sync.upkeep.audit():
                    self._news(sync)
                assert sync.upkeep.last is not None
                found[site] = dataclasses.asdict(sync.upkeep.last)
            except errors.GeoError as error:
                found[site] = {'error': str(error)}
        return found

    def _act(self, path: str) -> dict[str, Any]:
        if path == '/sync':
            for sync in self._syncs.values():
                sync.pull_soon()
            return {}
        if path == '/audit':
            return self._audit()
        if path == '/collect':
            return dataclasses.asdict(self.keeper.collect())
        if path == '/pins':
            self.swarm.tidy()
            return {}
        if path == '/compact':
            return dataclasses.asdict(self.keeper.compact(0.0))
        raise errors.PeerMisbehaved(f'no call {path}')
