# SPDX-License-Identifier: Apache-2.0
"""Exchange of records with other sites.

Each site pulls: it shows its version vector and gets the records with newer
writes, its own and those that the other got from third sites, so that news
spreads also between sites that never meet. A hint after a write makes it
prompt; a lost hint costs at most one interval. Repeating any of it is
harmless.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from glance_geo.core import codec, errors
from glance_geo.core.interfaces import RecordLog
from glance_geo.replication import audit, membership, wire
from glance_geo.replication.client import PeerClient

LOG = logging.getLogger(__name__)


def pull(log: RecordLog, peer: PeerClient, bootstrap: bool = False,
         progress: Callable[[], Any] = lambda: None) -> int:
    """Bring in what a peer has and this site lacks, in one request.

    :param bootstrap: this site begins anew, retired or not
    :param progress: called for each record that came
    :returns: how many records changed here
    :raises Unreachable: what arrived before is kept; pulling again goes on
    """
    mine = log.vector()
    changed = 0
    refused: list[str] = []
    with peer.records(mine, bootstrap) as frames:
        for frame in frames:
            progress()
            try:
                record = codec.decode(frame)
            except (errors.RecordCorrupt, errors.RecordTooNew) as error:
                refused.append(str(error))
                continue
            changed += log.absorb(record)
        theirs = wire.unpack(frames.last or b'')
    if refused:
        # Not counted as seen: the vector stays where it is, so that they
        # come again. All others were taken in.
        raise errors.PeerMisbehaved(
            f'site {peer.site} sent {len(refused)} records that this '
            f'release does not read; the first: {refused[0]}')
    if not isinstance(theirs, dict):
        raise errors.PeerMisbehaved('vector is no map')
    if log.replicates:
        return 0
    own = log.incarnation
    if theirs.get(own, 0) > mine.get(own, 0):
        # They have seen writes of ours that are not here: this data is an
        # older copy, and its next numbers were used before.
        log.renew_incarnation()
        LOG.warning('Site %s knows writes of this site that are not here '
                    '(restored data?): now writing as %s', peer.site,
                    log.incarnation)
    log.advance(theirs)
    return changed


class Upkeep:
    """What is done with a peer now and then, beside the pulls.

    :param votes: shared with the upkeep of all peers
    :param gossip_interval: seconds between exchanges of how far sites are
    :param audit_interval: seconds between audits; 0: none
    """

    def __init__(self, log: RecordLog, peer: PeerClient,
                 votes: audit.Votes, gossip_interval: float,
                 audit_interval: float):
        self.last: audit.Audited | None = None
        self.audits = self.healed = 0
        self._log = log
        self._peer = peer
        self._votes = votes
        self._gossip_interval = gossip_interval
        self._audit_interval = audit_interval
        self._gossip_due = 0.0
        # Not at once: a site that comes up has records to pull first.
        self._audit_due = time.monotonic() + audit_interval

    def once(self) -> bool:
        """Do what is due; say whether records changed here."""
        now = time.monotonic()
        if self._log.replicates:
            return False
        if now >= self._gossip_due:
            self._gossip_due = now + self._gossip_interval
            audit.gossip(self._log, self._peer)
        if not self._audit_interval or now < self._audit_due:
            return False
        self._audit_due = now + self._audit_interval
        return self.audit()

    def audit(self) -> bool:
        """Audit now; say whether records changed here."""
        self.last = audit.audit(self._log, self._peer, self._votes)
        self.audits += 1
        self.healed += self.last.merged + self.last.dropped
        return bool(self.last.merged or self.last.dropped)


class PeerSync:
    """Keeps one peer and this site in step, in a thread of its own.

    :param interval: seconds between pulls when nothing hints
    :param changed: called when a pull brought something new
    """

    def __init__(self, log: RecordLog, peer: PeerClient, interval: float,
                 upkeep: Upkeep, changed: Callable[['PeerSync'], None]):
        self.peer = peer
        self.upkeep = upkeep
        self.retired = False
        self.reachable: bool | None = None
        self.error: str | None = None
        self.last_pull: float | None = None
        self.records_received = 0
        self._log = log
        self._interval = interval
        self._changed = changed
        self._wake = threading.Event()
        self._pull_due = self._hint_due = True
        self._stop = False
        self._thread = threading.Thread(
            target=self._run, name=f'sync-{peer.site}', daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop = True
        self._wake.set()
        self._thread.join(timeout=5)

    def pull_soon(self) -> None:
        """The peer has something new."""
        self._pull_due = True
        self._wake.set()

    def hint_soon(self) -> None:
        """This site has something new for the peer."""
        self._hint_due = True
        self._wake.set()

    def once(self) -> None:
        """Do what is due. Raises what the peer's calls raise."""
        self.retired = bool(membership.retired(
            self._log.get('site', self.peer.site)))
        if self.retired:
            raise errors.SiteRetired(
                f'site {self.peer.site} is retired; it must bootstrap before '
                f'it takes part again')
        if self._hint_due:
            self._hint_due = False
            try:
                self.peer.hint()
            except errors.GeoError:
                self._hint_due = True
                raise
        if self._pull_due:
            self._pull_due = False
            try:
                changed = pull(self._log, self.peer)
            except errors.GeoError:
                self._pull_due = True
                raise
            self.last_pull = time.time()
            if changed:
                self.records_received += changed
                self._changed(self)
        if self.upkeep.once():
            self._changed(self)

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stop:
            if time.monotonic() >= due:
                self._pull_due = True
            failed = False
            try:
                self.once()
            except errors.GeoError as error:
                failed, self.error = True, str(error)
                if self.reachable is not False:
                    LOG.warning('Sync with %s: %s', self.peer.site, error)
            except Exception as error:
                failed, self.error = True, repr(error)
                LOG.exception('Sync with %s failed', self.peer.site)
            else:
                self.error = None
                if self.reachable is False:
                    LOG.info('Sync with %s: reachable again', self.peer.site)
            self.reachable = not failed
            if failed or time.monotonic() >= due:
                due = time.monotonic() + self._interval
            if failed:
                # A peer that is down must not be asked in a tight loop, but
                # one that comes back should be noticed soon.
                self._wake.clear()
                self._wake.wait(min(self._interval, 2.0))
                continue
            self._wake.wait(max(0.0, due - time.monotonic()))
            self._wake.clear()
