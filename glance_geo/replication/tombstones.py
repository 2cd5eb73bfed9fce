# SPDX-License-Identifier: Apache-2.0
"""Forgets deleted records once every site that takes part has passed them.

Never by age alone: a site that was away for longer than any delay would bring
back what the others forgot.
"""

import collections
import dataclasses
import logging
import time
from collections.abc import Iterable

from glance_geo.core.interfaces import RecordLog
from glance_geo.replication import membership

LOG = logging.getLogger(__name__)


@dataclasses.dataclass
class Tombstones:
    """What the last look found.

    :ivar waiting: old enough, and not passed by every site
    :ivar blocked_by: site -> how many of them it holds up
    :ivar forgotten: removed since the agent began
    """

    waiting: int = 0
    blocked_by: dict[str, int] = dataclasses.field(default_factory=dict)
    forgotten: int = 0


def collect(log: RecordLog, sites: Iterable[str], days: float,
            found: Tombstones) -> None:
    """Forget the tombstones that all sites have passed.

    :param sites: all that take part
    :param days: keep each at least this long, for people to look at
    :param found: gets the counts
    """
    known = log.known()
    sites = list(sites)
    before_us = time.time_ns() // 1000 - int(days * 86_400_000_000)
    waiting, blocked, forgotten = 0, collections.Counter[str](), 0
    for record, token in log.tombstones(before_us):
        behind = membership.waiting(known, sites, record.seen)
        if behind:
            waiting += 1
            blocked.update(behind)
        elif log.forget(record.key, token):
            forgotten += 1
    found.waiting, found.blocked_by = waiting, dict(blocked)
    found.forgotten += forgotten
    if forgotten:
        LOG.info('%d deleted records forgotten: every site has passed them',
                 forgotten)
