# SPDX-License-Identifier: Apache-2.0
"""Moves metadata between two stores, and compares them.

All of it may be repeated, and goes on where it was cut off: what is there
already is merged with, or skipped.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from glance_geo.core import digests
from glance_geo.core.rules import shown
from glance_geo.db.recordstore import RecordStore
from glance_geo.db.sqlsource import SQLSource

Progress = Callable[[], object]


class Source(Protocol):
    """Where metadata comes from."""

    def count(self) -> int: ...

    def copy_to(self, target: RecordStore, progress: Progress) -> int:
        """Bring everything into a store.

        :returns: how many records changed there
        """

    def differing(self, target: RecordStore,
                  progress: Progress) -> Iterator[str]:
        """Yield the keys that the store does not have as the source has."""


class RecordSource:
    """The records of another engine; merged, with all their history."""

    def __init__(self, source: RecordStore):
        self._source = source

    def count(self) -> int:
        return sum(1 for _ in self._source.everything())

    def copy_to(self, target: RecordStore, progress: Progress) -> int:
        # Before the records: what is written meanwhile is not in it, and
        # the sync brings it again.
        vector = self._source.vector()
        changed = 0
        for record in self._source.everything():
            changed += target.absorb(record)
            progress()
        target.advance(vector)
        return changed

    def differing(self, target: RecordStore,
                  progress: Progress) -> Iterator[str]:
        # By batches: the target is asked once for many keys.
        for batch in _batches(self._source.everything(), 200):
            there = {record.key: digests.digest(record) for record in
                     target.states([record.key for record in batch])}
            for record in batch:
                progress()
                if there.get(record.key) != digests.digest(record):
                    yield record.key


class GlanceSource:
    """The images, tasks and metadata definitions of a Glance SQL database.

    Created here as by this site, at the time at which they were created
    there; those that are deleted there are left out.
    """

    def __init__(self, source: SQLSource):
        self._source = source

    def count(self) -> int:
        return self._source.count()

    def copy_to(self, target: RecordStore, progress: Progress) -> int:
        created: set[str] = set()
        for kind, id, fields in self._source.records(target.site):
            def change(present: Any, fields: Any = fields,
                       key: str = f'{kind}/{id}') -> Any:
                if present is not None:
                    return None
                created.add(key)
                return fields
            target.update(kind, id, change)
            progress()
        return len(created)

    def differing(self, target: RecordStore,
                  progress: Progress) -> Iterator[str]:
        for batch in _batches(self._source.records(target.site), 200):
            there = {record.key: shown(record) for record in target.states(
                [f'{kind}/{id}' for kind, id, _ in batch])}
            for kind, id, fields in batch:
                progress()
                values = there.get(f'{kind}/{id}', {})
                if any(values.get(name) != value
                       for name, value in fields.items()):
                    yield f'{kind}/{id}'


def _batches(found: Iterable, size: int) -> Iterator[list]:
    batch: list = []
    for item in found:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
