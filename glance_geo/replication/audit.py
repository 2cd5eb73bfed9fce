# SPDX-License-Identifier: Apache-2.0
"""Audit by digests: finds what the exchange of newer records can't.

Two sites whose vectors agree should have the same records. Where they do not
(a restored backup, a damaged database, a fault of ours), the audit brings
them together. What the other has differently is merged in. What one has, and
the other has seen and lacks, was either deleted so long ago that its tombstone
is forgotten, or lost: a site removes it only when all its peers lack it, and
takes it back only when all of them (two at least) have it.
"""

import dataclasses
import logging
import threading
from collections.abc import Callable, Collection

from glance_geo.core import codec, digests, errors, records
from glance_geo.core.interfaces import RecordLog
from glance_geo.replication.client import PeerClient

LOG = logging.getLogger(__name__)

_KEYS_PER_CALL = 1000


@dataclasses.dataclass
class Audited:
    """What an audit found.

    :ivar compared: records here
    :ivar merged: records that differed, and changed here
    :ivar dropped: records that were deleted elsewhere, without a tombstone
    """

    compared: int = 0
    merged: int = 0
    dropped: int = 0


class Votes:
    """Which peers have, and which lack, what this site sees otherwise."""

    def __init__(self, voters: Callable[[], Collection[str]]):
        self._voters = voters
        self._lock = threading.Lock()
        self._has: dict[str, dict[str, bool]] = {}

    def cast(self, key: str, site: str, has: bool) -> bool:
        """Note a peer's vote; say whether all peers vote so."""
        voters = set(self._voters())
        with self._lock:
            votes = self._has.setdefault(key, {})
            votes[site] = has
            agreed = all(votes.get(voter) == has for voter in voters)
            if agreed:
                del self._has[key]
        return agreed and (not has or len(voters) > 1)


def audit(log: RecordLog, peer: PeerClient, votes: Votes) -> Audited:
    """Compare this site's records with a peer's, and heal this site.

    The peer heals itself by its own audit. May be repeated and cut off.

    :param votes: kept over the audits with all peers
    :raises Unreachable: what was healed before stays so
    """
    mine = log.digests()
    theirs, seen = _theirs(peer.digest({}))
    done = Audited(sum(mine.counts))
    for number in mine.differing(theirs):
        _heal_bucket(log, peer, number, seen, votes, done)
    if done.merged or done.dropped:
        LOG.warning('Audit with site %s: %d records merged, %d removed',
                    peer.site, done.merged, done.dropped)
    return done


def _theirs(answer: object) -> tuple[digests.Digests, dict[str, int]]:
    try:
        assert isinstance(answer, dict)
        sums, counts = tuple(answer['sums']), tuple(answer['counts'])
        if (len(sums) != digests.BUCKETS or len(counts) != digests.BUCKETS
                or not all(isinstance(s, bytes) for s in sums)
                or not all(isinstance(c, int) for c in counts)):
            raise ValueError('wrong shape')
        return digests.Digests(sums, counts), dict(answer['vector'])
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise errors.PeerMisbehaved(f'digests: {error!r}') from error


def total(answer: object) -> int:
    """Return how many records a peer has, by its digests."""
    return sum(_theirs(answer)[0].counts)


def _heal_bucket(log: RecordLog, peer: PeerClient, number: int,
                 seen: dict[str, int], votes: Votes,
                 done: Audited) -> None:
    here = log.bucket(number)
    there = peer.digest({'bucket': number}).get('records')
    if not isinstance(there, dict):
        raise errors.PeerMisbehaved('bucket is no map')
    lacking = sorted(here.keys() - there.keys())
    for record in log.states(lacking):
        if records.includes(seen, record.seen) and (
                log.is_gone(record)
                or votes.cast(record.key, peer.site, False)):
            done.dropped += log.drop(record.key, seen)
    differing = sorted(key for key, digest in there.items()
                       if here.get(key) != digest)
    vector = log.vector()
    for start in range(0, len(differing), _KEYS_PER_CALL):
        part = differing[start:start + _KEYS_PER_CALL]
        with peer.states(part) as frames:
            for frame in frames:
                record = codec.decode(frame)
                if record.key not in part:
                    raise errors.PeerMisbehaved('a record was not asked for')
                if record.key in here or not records.includes(
                        vector, record.seen) or (
                            not log.is_gone(record)
                            and votes.cast(record.key, peer.site, True)):
                    done.merged += log.absorb(record)


def gossip(log: RecordLog, peer: PeerClient) -> None:
    """Exchange what each knows of how far the sites are."""
    answer = peer.known({'known': log.known()})
    log.learn(checked(answer.get('known')))


def checked(known: object) -> dict[str, dict[str, int]]:
    """Return what a peer says of how far sites are.

    :raises PeerMisbehaved: it is malformed
    """
    if not isinstance(known, dict) or not all(
            isinstance(site, str) and isinstance(vector, dict)
            and all(isinstance(name, str) and isinstance(number, int)
                    for name, number in vector.items())
            for site, vector in known.items()):
        raise errors.PeerMisbehaved('known is malformed')
    return known

