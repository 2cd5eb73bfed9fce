# SPDX-License-Identifier: Apache-2.0
"""The records of a site, as the sync between sites sees them: what is newer
than a vector, what differs, what is gone for good."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgpack

from glance_geo.core import codec, digests, errors, records
from glance_geo.core.engine import Entry, MetadataEngine
from glance_geo.core.records import Context, Record
from glance_geo.db import terms
from glance_geo.db.writers import Writer

LOG = logging.getLogger(__name__)

_ATTEMPTS = 100
_BATCH = 200
# How far back a follower of an engine without numbers looks, for writes that
# became visible late or were stamped by a clock that is behind: in ms.
_OVERLAP_MS = 60_000
_CHANGED = 'changed'


def wall_ms() -> int:
    """Return the time in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class RecordSync:
    """What ``RecordStore`` does for replication."""

    engine: MetadataEngine
    site: str
    _writer: Writer
    state: Callable[[Entry], Record]
    incarnation: Any

    def _local(self, name: str) -> str:
        return f'local/{self.site}/{name}'

    def _change_local(self, name: str,
                      change: Callable[[Any], Any]) -> None:
        """Change a document that this site keeps for itself."""
        for _ in range(_ATTEMPTS):
            entry = self.engine.get(self._local(name))
            present = msgpack.unpackb(entry.values[0]) if entry else {}
            changed = change(present)
            if changed == present:
                return
            try:
                self.engine.put(self._local(name), msgpack.packb(changed),
                                entry.token if entry else None, ())
                return
            except errors.StaleToken:
                continue
        raise errors.EngineUnavailable(f'{name} is contended')

    def _positions(self, index: str, start: bytes | None = None,
                   stop: bytes | None = None, reverse: bool = False,
                   batch: int = _BATCH,
                   ) -> Iterator[tuple[bytes, str, Entry]]:
        """Yield what an index has, batch by batch: one round trip each, on
        engines that fetch in one."""
        while True:
            page = self.engine.fetch(index, start, stop, reverse, batch)
            yield from page
            if len(page) < batch:
                return
            last = page[-1][0]
            if reverse:
                stop = last
            else:
                start = last + b'\0'

    # -- vectors ----------------------------------------------------------
    def vector(self) -> Context:
        """Return, for each incarnation, up to where its writes are here.

        On an engine without numbers: where a follower may go on from.
        """
        if not self._writer.numbered:
            return {_CHANGED: wall_ms()}
        # Another process may have found that the data began another life:
        # its numbers must not pass for those of the one before.
        self._writer.refresh()
        # The own number is read first: writes that come meanwhile are sent
        # again, which costs little; the other order would lose them.
        own = self.engine.last_number()
        entry = self.engine.get(self._local('vector'))
        seen: Context = msgpack.unpackb(entry.values[0]) if entry else {}
        seen[self.incarnation] = max(own, seen.get(self.incarnation, 0))
        return seen

    def advance(self, seen: Mapping[str, int]) -> None:
        """Note that everything up to here has been absorbed."""
        def join(present: Context) -> Context:
            joined = records.join(present, seen)
            joined.pop(_CHANGED, None)
            return joined
        self._change_local('vector', join)

    def _ended(self, incarnation: str, last: int) -> None:
        """Note the last number of an incarnation that this site leaves."""
        self._change_local('vector', lambda present: records.join(
            present, {incarnation: last}))

    def known(self) -> dict[str, Context]:
        """Return, for each site, up to where it has what was written."""
        entry = self.engine.get(self._local('known'))
        found = msgpack.unpackb(entry.values[0]) if entry else {}
        return {**found, self.site: self.vector()}

    def learn(self, known: Mapping[str, Mapping[str, int]]) -> None:
        """Note up to where sites have what was written."""
        def join(present: dict[str, Context]) -> dict[str, Context]:
            return {**present, **{
                site: records.join(present.get(site, {}), vector)
                for site, vector in known.items() if site != self.site}}
        self._change_local('known', join)

    def newer(self, than: Mapping[str, int]) -> Iterator[Record]:
        """Yield the records with writes that a vector has not seen.

        Per incarnation in the order of the writes; a record that is newer in
        several is yielded once.
        """
        sent: set[str] = set()
        if not self._writer.numbered:
            since = than.get(_CHANGED, 0) - _OVERLAP_MS
            yield from self._from(terms.CHANGED, max(0, since), sent)
            return
        for index in self.engine.indexes(terms.SEEN):
            known = than.get(index[len(terms.SEEN):], 0)
            yield from self._from(index, known + 1, sent)

    def _from(self, index: str, position: int,
              sent: set[str]) -> Iterator[Record]:
        start = b'%016x' % position
        while True:
            page = self.engine.scan(index, start, None, False, _BATCH)
            keys = [key for _, key in page if key not in sent]
            sent.update(keys)
            yield from self._states(keys)
            if len(page) < _BATCH:
                return
            # Not past it: two records may have seen the same write.
            start = page[-1][0]

    def _states(self, keys: Sequence[str]) -> Iterator[Record]:
        """Yield the records at some keys, also what can't be read of them:
        it is passed on. A corrupt one is not."""
        found = self.engine.get_many(keys)
        return self._decoded((key, found[key]) for key in keys
                             if key in found)

    def _decoded(self, found: Iterable[tuple[str, Entry]],
                 ) -> Iterator[Record]:
        for key, entry in found:
            try:
                yield self.state(entry)
            except (errors.RecordCorrupt, errors.RecordTooNew) as error:
                LOG.error('%s at site %s is not passed on: %s', key,
                          self.site, error)

    # -- audit ------------------------------------------------------------
    def everything(self) -> Iterator[Record]:
        """Yield every record, tombstones included."""
        indexes = ([terms.CHANGED] if not self._writer.numbered
                   else self.engine.indexes(terms.kind_index('')))
        for index in indexes:
            yield from self._decoded(
                (key, entry) for _, key, entry in self._positions(index))

    def digests(self) -> digests.Digests:
        """Return digests over all records; reads all of them."""
        return digests.of(self.everything())

    def bucket(self, number: int) -> dict[str, bytes]:
        """Return key -> digest of the records in one bucket."""
        return {record.key: digests.digest(record)
                for record in self.everything()
                if digests.bucket(record.key) == number}

    def states(self, keys: Sequence[str]) -> Iterator[Record]:
        """Yield the records at some keys, tombstones included."""
        return self._states([key for key in keys
                             if not key.startswith('local/')])

    def is_gone(self, record: Record) -> bool:
        """Say whether a record is a tombstone."""
        return terms.gone_since(record) is not None

    def drop(self, key: str, seen: Mapping[str, int]) -> bool:
        """Remove a record that another site has seen whole and lacks: it is
        deleted there, so long ago that its tombstone is gone.

        What was dropped is kept aside for review.

        :param seen: what the other site has seen
        :returns: whether it was removed
        """
        entry = self.engine.get(key)
        if entry is None:
            return False
        record = self.state(entry)
        if not records.includes(seen, record.seen):
            return False
        if terms.gone_since(record) is None:
            LOG.warning('Record %s is deleted at other sites; it is removed '
                        'at site %s and kept for review', key, self.site)
            self._change_local(f'dropped/{key}', lambda present: {
                'record': codec.encode(record), 'at': wall_ms()})
        return self.forget(key, entry.token)

    def tombstones(self, before_us: int) -> Iterator[tuple[Record, Any]]:
        """Yield the records deleted before a time, and the tasks that had
        expired, with their tokens."""
        stop = b'%016x' % max(0, before_us)
        for _, _, entry in self._positions(terms.GONE, stop=stop):
            try:
                yield self.state(entry), entry.token
            except errors.RecordCorrupt as error:
                LOG.error('A tombstone stays: %s', error)

    def forget(self, key: str, token: Any) -> bool:
        """Remove a record without a trace.

        :returns: False if it changed since it was read
        """
        try:
            self.engine.delete(key, token)
        except errors.StaleToken:
            return False
        return True
