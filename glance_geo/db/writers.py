# SPDX-License-Identifier: Apache-2.0
"""How a site's writes get their dots: on engines that number puts, and on
engines that take every put and keep siblings."""

from __future__ import annotations

import collections
import os
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from glance_geo.core import births, codec, errors, records
from glance_geo.core.engine import Entry, MetadataEngine, Stored, Trait
from glance_geo.core.records import PENDING, Record
from glance_geo.db import terms

_ATTEMPTS = 20


def fresh_incarnation(site: str) -> str:
    return f'{site}.{uuid.uuid4().hex[:12]}'


def decode(entry: Entry) -> Sequence[Record]:
    """Return what is at a key: the record that keeps it, then those that
    move aside from it.

    :raises RecordCorrupt, RecordTooNew: it can't be read
    """
    first, *others = (codec.decode(value, entry.stamp)
                      for value in entry.values)
    found = [first]
    for other in others:
        kept, *aside = births.reconcile(found[0], other)
        found = [kept, *found[1:], *aside]
    return found


class NumberingWriter:
    """Writes of a site whose engine numbers them.

    All processes of the site write under one incarnation, which the engine
    keeps beside the name of the data's life: after a restore or a failover
    the site writes under a new one, since its next numbers may be used.
    """

    numbered = True

    def __init__(self, engine: MetadataEngine, site: str,
                 ended: Callable[[str, int], None]):
        self._engine = engine
        self._site = site
        self._ended = ended
        self._key = f'local/{site}/identity'
        self.refresh()

    def refresh(self) -> None:
        """Learn, or make, the incarnation of the data's present life."""
        for _ in range(_ATTEMPTS):
            life = self._engine.life()
            entry = self._engine.get(self._key)
            if entry is not None:
                incarnation, _, kept = entry.values[0].decode().partition(' ')
                if kept == life:
                    self.incarnation, self._life = incarnation, life
                    return
                # Up to its last number, what was written under the old name
                # is here: other sites must hear of it in the vector.
                self._ended(incarnation, self._engine.last_number())
            fresh = fresh_incarnation(self._site)
            try:
                self._engine.put(self._key, f'{fresh} {life}'.encode(),
                                 entry.token if entry else None, (),
                                 life=life)
            except errors.StaleToken:
                continue
        raise errors.EngineUnavailable(
            f'{self._key}: {_ATTEMPTS} writers got in between')

    @contextmanager
    def writing(self, key: str) -> Iterator[None]:
        yield

    def seen(self, key: str, record: Record | None) -> Record | None:
        return record

    def counter(self) -> int:
        return PENDING

    def put(self, after: Record, entry: Entry | None) -> Record:
        """Store a record after one write.

        :raises StaleToken: somebody else wrote; read again
        """
        done = self._engine.put(
            after.key, codec.encode(after), entry.token if entry else None,
            terms.of(after), numbered=True, life=self._life)
        return records.number(after, self.incarnation, done.number)


class SiblingWriter:
    """Writes of one process, on an engine that refuses none.

    A context vector is exact only if whoever writes under one name has seen
    its own earlier writes of a record. No quorum ensures that while nodes
    are down, so each process has a name of its own, writes one key at a time
    and remembers what it wrote. When that gets too much, it takes a new name.
    """

    numbered = False
    remember = 2000
    """How many records, before the next name."""

    def __init__(self, engine: MetadataEngine, site: str):
        self._engine = engine
        self._site = site
        self._locks = [threading.RLock() for _ in range(64)]
        self._lock = threading.Lock()
        self.refresh()

    def refresh(self) -> None:
        self._owner = os.getpid()
        self._counter = 0
        self._written: collections.OrderedDict[str, Record] = (
            collections.OrderedDict())
        self._name = fresh_incarnation(self._site)

    @property
    def incarnation(self) -> str:
        # Two children of a fork must not write under one name.
        if os.getpid() != self._owner:
            self.refresh()
        return self._name

    @contextmanager
    def writing(self, key: str) -> Iterator[None]:
        with self._locks[hash(key) % len(self._locks)]:
            yield

    def seen(self, key: str, record: Record | None) -> Record | None:
        """Add what this process wrote, where a stale replica lacks it."""
        mine = self._written.get(key)
        if mine is None:
            return record
        if record is None:
            return mine
        if record.birth != mine.birth:
            return births.reconcile(record, mine)[0]
        return records.merge(record, mine)

    def counter(self) -> int:
        with self._lock:
            if len(self._written) >= self.remember:
                self.refresh()
            self._counter += 1
            return self._counter

    def put(self, after: Record, entry: Entry | None) -> Record:
        # Remembered first: a put that fails may have been stored.
        self._written[after.key] = after
        done = self._engine.put(
            after.key, codec.encode(after), entry.token if entry else None,
            terms.of(after, numbered=False))
        return self.repair(after.key, done, after)

    def repair(self, key: str, done: Stored, after: Record) -> Record:
        """Unite siblings at a key, and with them their index terms."""
        for _ in range(_ATTEMPTS):
            if done.entry is None or len(done.entry.values) < 2:
                return after
            after, *aside = decode(done.entry)
            if aside:
                # The store moves them when it reads: nothing is lost here.
                return after
            done = self._engine.put(key, codec.encode(after),
                                    done.entry.token,
                                    terms.of(after, numbered=False))
        return after


Writer = NumberingWriter | SiblingWriter


def writer(engine: MetadataEngine, site: str,
           ended: Callable[[str, int], None]) -> Writer:
    """Return how writes to an engine get their dots.

    :param ended: called with an incarnation that gives way to another, and
        its last number
    """
    if Trait.SIBLINGS in engine.traits:
        return SiblingWriter(engine, site)
    return NumberingWriter(engine, site, ended)
