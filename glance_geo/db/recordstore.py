# SPDX-License-Identifier: Apache-2.0
"""Records through a metadata engine: read, list, write, absorb.

What other sites wrote is merged in here; how this site's writes get their
dots is in ``writers``, and what the sync between sites asks in
``recordsync``.
"""

import logging
import random
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from glance_geo.core import births, codec, errors, records
from glance_geo.core.clock import HybridClock
from glance_geo.core.engine import Entry, MetadataEngine, Term, Trait
from glance_geo.core.records import Birth, Record
from glance_geo.db import terms, writers
from glance_geo.db.recordsync import RecordSync, wall_ms

LOG = logging.getLogger(__name__)

_ATTEMPTS = 100
_BATCH = 200
# Gets the record, or None; typed loosely since most callers know which.
Change = Callable[[Any], Mapping[str, Any] | None]


class RecordStore(RecordSync):
    """The records of one site.

    :param changed: called after each local write; must not block
    """

    def __init__(self, engine: MetadataEngine, site: str,
                 changed: Callable[[], None] = lambda: None,
                 clock: HybridClock | None = None):
        self.engine = engine
        self.site = site
        self.clock = clock or HybridClock(wall_ms)
        self.changed = changed
        self._writer = writers.writer(engine, site, self._ended)

    @property
    def incarnation(self) -> str:
        """The name under which writes are numbered here."""
        return self._writer.incarnation

    @property
    def replicates(self) -> bool:
        """Whether the engine itself brings records to the other sites."""
        return Trait.REPLICATES in self.engine.traits

    @property
    def feeds(self) -> bool:
        """Whether other nodes write here too, and ``wait`` tells of it."""
        return {Trait.SHARED, Trait.CHANGE_FEED} <= self.engine.traits

    def wait(self, number: int, timeout: float) -> int:
        """Wait for a write after this one; see the engine's method."""
        return self.engine.wait(number, timeout)

    def renew_incarnation(self) -> str:
        """Number writes under a new name from now on.

        Needed when peers know writes of this incarnation that are not here:
        the data was restored, and its next numbers were used before.
        """
        self.engine.renew_life()
        self._writer.refresh()
        return self.incarnation

    # -- reading ----------------------------------------------------------
    def state(self, entry: Entry) -> Record:
        """Return the record of an entry, and unite its siblings.

        :raises RecordCorrupt: it can't be read
        """
        record, *aside = writers.decode(entry)
        if len(entry.values) > 1:
            self._unite(record, aside, entry)
        return record

    def read(self, key: str, entry: Entry) -> Record:
        """Like ``state``, for callers that need all of the record.

        :raises RecordCorrupt, RecordTooNew: naming the record
        """
        try:
            record = self.state(entry)
        except (errors.RecordCorrupt, errors.RecordTooNew) as error:
            raise type(error)(f'{key.replace("/", " ", 1)}: {error}'
                              ) from error
        if record.sealed:
            raise errors.RecordTooNew(
                f'{key.replace("/", " ", 1)} was written by a newer release '
                f'({", ".join(codec.not_understood(record))}); upgrade site '
                f'{self.site} to read it')
        return record

    def _unite(self, record: Record, aside: Sequence[Record],
               entry: Entry) -> None:
        """Store what siblings merge to; those that lost the key first."""
        try:
            for loser in aside:
                self.absorb(loser)
            self.engine.put(record.key, codec.encode(record), entry.token,
                            self._terms(record))
        except (errors.StaleToken, errors.EngineUnavailable) as error:
            # The read has its answer; the next one tries again.
            LOG.info('%s: siblings stay for now: %s', record.key, error)

    def _terms(self, record: Record) -> list[Term]:
        """Return a record's terms; of one with malformed fields, which a
        peer may send, those by which it is passed on."""
        try:
            return list(terms.of(record, self._writer.numbered))
        except Exception as error:  # whatever a malformed field trips
            LOG.error('%s is kept, but shown nowhere: %r', record.key, error)
            return list(terms.least(record, self._writer.numbered))

    def readable(self, found: Iterable[tuple[str, Entry]],
                 ) -> Iterator[Record]:
        """Yield the records of entries; one that can't be read is said, and
        hides no other."""
        for key, entry in found:
            try:
                yield self.read(key, entry)
            except (errors.RecordCorrupt, errors.RecordTooNew) as error:
                LOG.error('Left out at site %s: %s', self.site, error)

    def get(self, kind: str, id: str) -> Record | None:
        """Return a record, tombstones included.

        :raises RecordCorrupt, RecordTooNew: it can't be read
        """
        key = f'{kind}/{id}'
        entry = self.engine.get(key)
        return None if entry is None else self.read(key, entry)

    def get_keys(self, keys: Sequence[str]) -> Iterator[Record]:
        """Yield the readable records at those of the keys that exist."""
        found = self.engine.get_many(keys)
        return self.readable((key, found[key]) for key in keys
                             if key in found)

    def found(self, index: str, prefix: bytes) -> list[tuple[Entry, Record]]:
        """Return what an index has under terms that begin with a prefix."""
        return [(entry, record) for term, key, entry in self.engine.fetch(
                    index, prefix, terms.after(prefix))
                for record in self.readable([(key, entry)])]

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
        siblings = Trait.SIBLINGS in self.engine.traits
        for term, key, entry in self._positions(index, start, stop, reverse,
                                                batch):
            for record in self.readable([(key, entry)]):
                # Of siblings, each left its terms: only those of the record
                # that they merge to count.
                if not siblings or terms.has(record, index, term):
                    yield record

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
        # What is created is hardly ever there: the put itself finds out, in
        # one round trip.
        blind = create and self._writer.numbered
        with self._writer.writing(key):
            for attempt in range(_ATTEMPTS):
                if entry is None and not (blind and attempt == 0):
                    entry = self.engine.get(key)
                present = self._writer.seen(
                    key, None if entry is None else self.read(key, entry))
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
                incoming.key, self._mergeable(incoming.key, entry))
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
                                self._terms(kept))
                return True
            except errors.StaleToken:
                continue
        raise errors.EngineUnavailable(
            f'{incoming.key}: {_ATTEMPTS} writers got in between')

    def _mergeable(self, key: str, entry: Entry | None) -> Record | None:
        """Return the record to merge with; a corrupt one gives way."""
        if entry is None:
            return None
        try:
            return self.state(entry)
        except (errors.RecordCorrupt, errors.RecordTooNew) as error:
            LOG.error('%s at site %s is replaced by what another site has: '
                      '%s', key, self.site, error)
            return None
