# SPDX-License-Identifier: Apache-2.0
"""Records through a metadata engine: read, write, absorb, list by change.

This is where a site's writes get their dots, and where what other sites
wrote is merged in.
"""

import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgpack

from glance_geo.core import births, codec, errors, records
from glance_geo.core.clock import HybridClock
from glance_geo.core.interfaces import Entry, MetadataEngine
from glance_geo.core.records import Birth, Context, Record
from glance_geo.db import terms

_IDENTITY = 'local/identity'
_VECTOR = 'local/vector'
_ATTEMPTS = 100
_BATCH = 200

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
        self._incarnation = self._identity()

    # -- identity ---------------------------------------------------------
    @property
    def incarnation(self) -> str:
        """The name under which this site's writes are numbered."""
        return self._incarnation

    def _identity(self) -> str:
        entry = self.engine.get(_IDENTITY)
        if entry is not None:
            return entry.values[0].decode()
        fresh = f'{self.site}.{uuid.uuid4().hex[:12]}'
        try:
            self.engine.put(_IDENTITY, fresh.encode(), None, ())
        except errors.StaleToken:
            return self._identity()
        return fresh

    def renew_incarnation(self) -> str:
        """Number writes under a new name from now on.

        Needed when peers know writes of this incarnation that are not here:
        the data was restored, and its next numbers were used before.
        """
        entry = self.engine.get(_IDENTITY)
        fresh = f'{self.site}.{uuid.uuid4().hex[:12]}'
        self.engine.put(_IDENTITY, fresh.encode(),
                        entry.token if entry else None, ())
        self._incarnation = fresh
        return fresh

    # -- reading ----------------------------------------------------------
    @staticmethod
    def _decode(entry: Entry) -> Record:
        return records.unite(codec.decode(value, entry.stamp)
                             for value in entry.values)

    def get(self, kind: str, id: str) -> Record | None:
        """Return a record, tombstones included.

        :raises RecordCorrupt, RecordTooNew: it can't be read
        """
        entry = self.engine.get(f'{kind}/{id}')
        return None if entry is None else self._decode(entry)

    def get_keys(self, keys: Sequence[str]) -> list[Record]:
        """Return the records at those of the keys that exist, in order."""
        found = self.engine.get_many(keys)
        return [self._decode(found[key]) for key in keys if key in found]

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
        while True:
            page = self.engine.scan(index, start, stop, reverse, batch)
            yield from self.get_keys([key for _, key in page])
            if len(page) < batch:
                return
            last = page[-1][0]
            if reverse:
                stop = last
            else:
                start = last + b'\0'

    # -- writing ----------------------------------------------------------
    def update(self, kind: str, id: str, change: Change) -> Any:
        """Change a record in one atomic step.

        :param change: gets the record (None: there is none) and returns the
            field changes, or None to write nothing; may be called again when
            someone else wrote in between
        :returns: the record as it is now; None if there is none still
        """
        return self._write(kind, id, change, create=False)

    def create(self, kind: str, id: str, change: Change) -> Record:
        """Like ``update``, but the record starts anew.

        What was there under the same key (a tombstone) is replaced: the new
        record has seen it.
        """
        return self._write(kind, id, change, create=True)

    def _write(self, kind: str, id: str, change: Change,
               create: bool) -> Any:
        key = f'{kind}/{id}'
        for attempt in range(_ATTEMPTS):
            found = self.engine.get_many([key, _IDENTITY])
            if _IDENTITY in found:
                self._incarnation = found[_IDENTITY].values[0].decode()
            entry = found.get(key)
            present = None if entry is None else self._decode(entry)
            changes = change(present)
            if changes is None:
                return present
            hlc = self.clock.next()
            base = present
            if base is None or create:
                base = Record(
                    kind, id, None if kind not in births.CLAIMED else
                    Birth(hlc, self.site, uuid.uuid4().hex[:12]),
                    dict(present.context) if present else {},
                    extra=births.replacing(present))
            after = records.write(base, self.incarnation, hlc, changes)
            try:
                number = self.engine.put(
                    key, codec.encode(after), entry.token if entry else None,
                    terms.of(after), numbered=True)
            except errors.StaleToken:
                time.sleep(random.random() * 0.002 * min(attempt, 20))
                continue
            self.changed()
            return records.number(after, self.incarnation, number)
        raise errors.EngineUnavailable(
            f'{key}: {_ATTEMPTS} concurrent writers got in between')

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
            present = None if entry is None else self._decode(entry)
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
                                terms.of(kept))
                return True
            except errors.StaleToken:
                continue
        raise errors.EngineUnavailable(
            f'{incoming.key}: {_ATTEMPTS} writers got in between')

    def vector(self) -> Context:
        """Return, for each incarnation, up to where its writes are here."""
        # The own number is read first: writes that come meanwhile are sent
        # again, which costs little; the other order would lose them.
        own = self.engine.last_number()
        entry = self.engine.get(_VECTOR)
        seen: Context = msgpack.unpackb(entry.values[0]) if entry else {}
        seen[self.incarnation] = max(own, seen.get(self.incarnation, 0))
        return seen

    def advance(self, seen: Mapping[str, int]) -> None:
        """Note that everything up to here has been absorbed."""
        for _ in range(_ATTEMPTS):
            entry = self.engine.get(_VECTOR)
            present = msgpack.unpackb(entry.values[0]) if entry else {}
            joined = records.join(present, seen)
            joined.pop(self.incarnation, None)
            if joined == present:
                return
            try:
                self.engine.put(_VECTOR, msgpack.packb(joined),
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
        for index in self.engine.indexes(terms.SEEN):
            known = than.get(index[len(terms.SEEN):], 0)
            start = b'%016x' % (known + 1)
            while True:
                page = self.engine.scan(index, start, None, False, _BATCH)
                keys = [key for _, key in page if key not in sent]
                sent.update(keys)
                yield from self.get_keys(keys)
                if len(page) < _BATCH:
                    break
                # Not past it: two records may have seen the same write.
                start = page[-1][0]
