# SPDX-License-Identifier: Apache-2.0
"""Records through a metadata engine: read, write, absorb, list by change.

What other sites wrote is merged in here; how this site's writes get their
dots is in ``writers``.
"""

import logging
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgpack

from glance_geo.core import births, codec, errors, records
from glance_geo.core.clock import HybridClock
from glance_geo.core.interfaces import Entry, MetadataEngine, Trait
from glance_geo.core.records import Birth, Context, Record
from glance_geo.db import terms, writers

LOG = logging.getLogger(__name__)

_ATTEMPTS = 100
_BATCH = 200
# How far back a follower of an engine without numbers looks, for writes that
# became visible late or were stamped by a clock that is behind: in ms.
_OVERLAP_MS = 60_000
_CHANGED = 'changed'

# Gets the record, or None; typed loosely since most callers know which.
Change = Callable[[Any], Mapping[str, Any] | None]


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


class RecordStore:
    """The records of one site.

    :param changed: called after each local write; must not block
    """

    def __init__(self, engine: MetadataEngine, site: str,
                 changed: Callable[[], None] = lambda: None,
                 clock: HybridClock | None = None):
        self.engine = engine
        self.site = site
        self.clock = clock or HybridClock(_wall_ms)
        self.changed = changed
        self._writer = writers.writer(engine, site)
        self._vector_key = f'local/{site}/vector'

    @property
    def incarnation(self) -> str:
        """The name under which writes are numbered here."""
        return self._writer.incarnation

    @property
    def replicates(self) -> bool:
        """Whether the engine itself brings records to the other sites."""
        return Trait.REPLICATES in self.engine.traits

    def renew_incarnation(self) -> str:
        """Number writes under a new name from now on.

        Needed when peers know writes of this incarnation that are not here:
        the data was restored, and its next numbers were used before.
        """
        self.engine.renew_life()
        self._writer.refresh()
        return self.incarnation

    # -- reading ----------------------------------------------------------
    def read(self, entry: Entry) -> Record:
        """Return the record of an entry, and unite its siblings.

        :raises RecordCorrupt, RecordTooNew: it can't be read
        """
        record, *aside = writers.decode(entry)
        if len(entry.values) > 1:
            self._unite(record, aside, entry)
        return record

    def _unite(self, record: Record, aside: Sequence[Record],
               entry: Entry) -> None:
        """Store what siblings merge to; those that lost the key first."""
        try:
            for loser in aside:
                self.absorb(loser)
            self.engine.put(record.key, codec.encode(record), entry.token,
                            terms.of(record, self._writer.numbered))
        except (errors.StaleToken, errors.EngineUnavailable) as error:
            # The read has its answer; the next one tries again.
            LOG.info('%s: siblings stay for now: %s', record.key, error)

    def readable(self, found: Iterator[tuple[str, Entry]],
                  ) -> Iterator[Record]:
        """Yield the records of entries; one that can't be read is said, and
        hides no other."""
        for key, entry in found:
            try:
                yield self.read(entry)
            except (errors.RecordCorrupt, errors.RecordTooNew) as error:
                LOG.error('Record %s at site %s is left out: %s', key,
                          self.site, error)

    def get(self, kind: str, id: str) -> Record | None:
        """Return a record, tombstones included.

        :raises RecordCorrupt, RecordTooNew: it can't be read
        """
        entry = self.engine.get(f'{kind}/{id}')
        return None if entry is None else self.read(entry)

    def get_keys(self, keys: Sequence[str]) -> Iterator[Record]:
        """Yield the readable records at those of the keys that exist."""
        found = self.engine.get_many(keys)
        return self.readable((key, found[key]) for key in keys
                              if key in found)

    def found(self, index: str, prefix: bytes) -> list[tuple[Entry, Record]]:
        """Return what an index has under terms that begin with a prefix."""
        return [(entry, record) for term, key, entry in self.engine.fetch(
                    index, prefix, terms.after(prefix))
                for record in self.readable(iter(((key, entry),)))]

    def images_of(self, id: str) -> list[Record]:
        """Return the images whose locations may name an image id.

        The image itself, and those that moved aside from its id: their
        locations were issued under it.
        """
        present = self.get('image', id)
        prefix = terms.ordered(id)
        moved = self.walk('image.moved_from', prefix, terms.after(prefix))
        return [*([] if present is None else [present]), *moved]

    def list(self, kind: str) -> Iterator[Record]:
        """Yield all records of a kind, tombstones included."""
        yield from self.walk(terms.kind_index(kind))

    def walk(self, index: str, start: bytes | None = None,
             stop: bytes | None = None, reverse: bool = False,
             batch: int = _BATCH) -> Iterator[Record]:
        """Yield the records of an index in its order, batch by batch."""
        for _, record in self.walk_terms(index, start, stop, reverse, batch):
            yield record

    def walk_terms(self, index: str, start: bytes | None = None,
                   stop: bytes | None = None, reverse: bool = False,
                   batch: int = _BATCH) -> Iterator[tuple[bytes, Record]]:
        """Like ``walk``, with the term under which each record was found.

        One round trip per batch, on engines that fetch in one.
        """
        siblings = Trait.SIBLINGS in self.engine.traits
        while True:
            page = self.engine.fetch(index, start, stop, reverse, batch)
            for term, key, entry in page:
                for record in self.readable(iter(((key, entry),))):
                    # Of siblings, each left its terms: only those of the
                    # record that they merge to count.
                    if not siblings or terms.has(record, index, term):
                        yield term, record
            if len(page) < batch:
                return
            last = page[-1][0]
            if reverse:
                stop = last
            else:
                start = last + b'\0'

    # -- writing ----------------------------------------------------------
    def update(self, kind: str, id: str, change: Change,
               entry: Entry | None = None) -> Any:
        """Change a record in one atomic step: one read and one put.

        :param change: gets the record (None: there is none) and returns the
            field changes, or None to write nothing; may be called again when
            someone else wrote in between
        :param entry: what the caller has just read at the record's key,
            which saves the read
        :returns: the record as it is now; None if there is none still
        """
        return self._write(kind, id, change, False, entry)

    def create(self, kind: str, id: str, change: Change) -> Record:
        """Like ``update``, but the record starts anew.

        What was there under the same key (a tombstone) is replaced: the new
        record has seen it.
        """
        return self._write(kind, id, change, True, None)

    def _write(self, kind: str, id: str, change: Change, create: bool,
               entry: Entry | None) -> Any:
        key = f'{kind}/{id}'
        with self._writer.writing(key):
            for attempt in range(_ATTEMPTS):
                if entry is None:
                    entry = self.engine.get(key)
                present = self._writer.seen(
                    key, None if entry is None else self.read(entry))
                changes = change(present)
                if changes is None:
                    return present
                after = self._after(kind, id, present, changes, create)
                try:
                    stored = self._writer.put(after, entry)
                except errors.StaleToken:
                    time.sleep(random.random() * 0.002 * min(attempt, 20))
                    if self._writer.numbered:
                        self._writer.refresh()
                    entry = None
                    continue
                self.changed()
                return stored
        raise errors.EngineUnavailable(
            f'{key}: {_ATTEMPTS} concurrent writers got in between')

    def _after(self, kind: str, id: str, present: Record | None,
               changes: Mapping[str, Any], create: bool) -> Record:
        hlc = self.clock.next()
        base = present
        if base is None or create:
            base = Record(
                kind, id, None if kind not in births.CLAIMED else
                Birth(hlc, self.site, uuid.uuid4().hex[:12]),
                dict(present.context) if present else {},
                extra=births.replacing(present))
        counter = self._writer.counter()
        return records.write(base, self._writer.incarnation, hlc, changes,
                             counter)

    # -- replication ------------------------------------------------------
    def absorb(self, incoming: Record) -> bool:
        """Merge in a record that another site sent.

        :returns: whether anything here changed
        """
        for siblings in incoming.fields.values():
            for value in siblings.values():
                self.clock.observe(value.hlc)
        changed = False
        for _ in range(_ATTEMPTS):
            entry = self.engine.get(incoming.key)
            present = self._writer.seen(
                incoming.key, None if entry is None else self.read(entry))
            kept, *aside = births.reconcile(present, incoming)
            # What moves aside is stored first: a crash in between must not
            # lose it.
            for loser in aside:
                changed |= self.absorb(loser)
            if kept == present:
                return changed
            try:
                self.engine.put(kept.key, codec.encode(kept),
                                entry.token if entry else None,
                                terms.of(kept, self._writer.numbered))
                return True
            except errors.StaleToken:
                continue
        raise errors.EngineUnavailable(
            f'{incoming.key}: {_ATTEMPTS} writers got in between')

    def vector(self) -> Context:
        """Return, for each incarnation, up to where its writes are here.

        On an engine without numbers: where a follower may go on from.
        """
        if not self._writer.numbered:
            return {_CHANGED: _wall_ms()}
        # The own number is read first: writes that come meanwhile are sent
        # again, which costs little; the other order would lose them.
        own = self.engine.last_number()
        entry = self.engine.get(self._vector_key)
        seen: Context = msgpack.unpackb(entry.values[0]) if entry else {}
        seen[self.incarnation] = max(own, seen.get(self.incarnation, 0))
        return seen

    def advance(self, seen: Mapping[str, int]) -> None:
        """Note that everything up to here has been absorbed."""
        for _ in range(_ATTEMPTS):
            entry = self.engine.get(self._vector_key)
            present = msgpack.unpackb(entry.values[0]) if entry else {}
            joined = records.join(present, seen)
            joined.pop(self.incarnation, None)
            if joined == present:
                return
            try:
                self.engine.put(self._vector_key, msgpack.packb(joined),
                                entry.token if entry else None, ())
                return
            except errors.StaleToken:
                continue
        raise errors.EngineUnavailable('the sync vector is contended')

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
            yield from self.get_keys(keys)
            if len(page) < _BATCH:
                return
            # Not past it: two records may have seen the same write.
            start = page[-1][0]
