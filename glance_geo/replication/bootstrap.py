# SPDX-License-Identifier: Apache-2.0
"""Begins a site's metadata anew from any other site: a new site, one that
was retired, or one whose data can't be trusted."""

from collections.abc import Callable
from typing import Any

from glance_geo.core import records
from glance_geo.core.interfaces import RecordLog
from glance_geo.core.records import Record
from glance_geo.replication import audit
from glance_geo.replication.client import PeerClient
from glance_geo.replication.sync import pull


def unseen(log: RecordLog, peer: PeerClient) -> list[Record]:
    """Return the records with writes that a peer has not seen.

    Only what beginning anew would lose: to be put aside first.
    """
    seen = dict(peer.digest({'bootstrap': True})['vector'])
    return [record for record in log.newer(seen)
            if not records.includes(seen, record.seen)
            and record.kind not in ('holding', 'site')]


def run(log: RecordLog, peer: PeerClient,
        progress: Callable[[int, int], Any] = lambda done, total: None,
        ) -> audit.Audited:
    """Bring in all that a peer has, and compare.

    May be repeated: goes on where it was cut off.

    :param progress: called with the records that came, and how many there are
    :raises Unreachable: the peer is cut off
    """
    total = audit.total(peer.digest({'bootstrap': True}))
    done = 0

    def came() -> None:
        nonlocal done
        done += 1
        progress(done, max(done, total))
    progress(0, total)
    pull(log, peer, bootstrap=True, progress=came)
    # What the peer wrote meanwhile, and its readmission of this site.
    pull(log, peer, bootstrap=True)
    return audit.audit(log, peer, audit.Votes(lambda: [peer.site]))
