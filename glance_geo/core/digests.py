# SPDX-License-Identifier: Apache-2.0
"""Digests over records, by which two sites find out where they differ.

Keys fall into 256 buckets by their hash; a bucket's digest is the sum of its
records' digests, so that their order does not matter (an incremental hash as
of Bellare and Micciancio, 1997).
"""

import dataclasses
import hashlib
from collections.abc import Iterable

from glance_geo.core import codec
from glance_geo.core.records import Record

BUCKETS = 256
_BYTES = 16
_MODULUS = 1 << (8 * _BYTES)


@dataclasses.dataclass(frozen=True)
class Digests:
    """The digests of one site.

    :ivar counts: how many records each bucket has
    """

    sums: tuple[bytes, ...]
    counts: tuple[int, ...]

    def differing(self, other: 'Digests') -> list[int]:
        """Return the buckets that two sites do not have alike."""
        return [number for number in range(BUCKETS)
                if self.sums[number] != other.sums[number]]


def bucket(key: str) -> int:
    """Return the bucket of a record's key."""
    return hashlib.blake2b(key.encode(), digest_size=1).digest()[0]


def digest(record: Record) -> bytes:
    """Return the digest of one record; equal records have equal ones."""
    return hashlib.blake2b(codec.encode(record), digest_size=_BYTES).digest()


def of(found: Iterable[Record]) -> Digests:
    """Return the digests of some records."""
    sums, counts = [0] * BUCKETS, [0] * BUCKETS
    for record in found:
        number = bucket(record.key)
        counts[number] += 1
        sums[number] += int.from_bytes(digest(record), 'big')
    return Digests(tuple((value % _MODULUS).to_bytes(_BYTES, 'big')
                         for value in sums), tuple(counts))
