# SPDX-License-Identifier: Apache-2.0
"""Carries out the plan of an image list: two round trips for most pages."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

from glance_geo.core.engine import Entry, Position, Range, Trait
from glance_geo.core.records import Record
from glance_geo.db import planner, terms
from glance_geo.db.planner import Plan
from glance_geo.db.queries import Order
from glance_geo.db.recordstore import RecordStore
from glance_geo.db.rows import Row

_SLACK = 7          # a page is rarely filled by exactly as many records
_LARGEST_BATCH = 500

Accept = Callable[[Record], Row | None]
"""Returns the row of a record that belongs to the list."""


class _Stream:
    """What was read of one range and not yet taken; goes on by itself."""

    def __init__(self, range: Range):
        self._left = range
        self.found: list[tuple] = []
        self.over = False

    def next_range(self, size: int) -> Range:
        return dataclasses.replace(self._left, limit=size)

    def add(self, found: Sequence[tuple], size: int) -> None:
        self.found = list(found)[::-1]      # taken from the end
        if len(found) < size:
            self.over = True
        elif self._left.reverse:
            self._left = dataclasses.replace(self._left, stop=found[-1][0])
        else:
            self._left = dataclasses.replace(self._left,
                                             start=found[-1][0] + b'\0')


class ImageSearch:
    """One list of images.

    :param limit: how many rows are wanted; None: all
    :param marker: the key of the image behind which the list begins
    """

    def __init__(self, records: RecordStore, plan: Plan, order: Order,
                 accept: Accept, limit: int | None, marker: str | None):
        self._records = records
        self._engine = records.engine
        self._plan = plan
        self._order = order
        self._accept = accept
        self._limit = limit
        self._marker_key = marker
        self._marker: Row | None = None
        self._last = ''
        self._batch = (_LARGEST_BATCH if limit is None
                       else min(limit + _SLACK, _LARGEST_BATCH))
        self._check_terms = Trait.SIBLINGS in self._engine.traits

    def run(self, check_marker: Callable[[Record | None], Row]) -> list[Row]:
        """Return the rows of the list.

        :param check_marker: gets the marker's record and returns its row, or
            raises what the caller is to be told
        """
        keys, streams = self._first_look(check_marker)
        if keys is not None and keys is not self._plan.keys \
                and self._by_creation():
            return list(itertools.islice(
                self._rows(self._read(keys, self._batch)), self._limit))
        if keys is not None:
            found = list(self._rows(self._read(keys, _LARGEST_BATCH)))
            self._order.sort(found)
            return found[:self._limit]
        walked = self._rows(self._walk(streams))
        if self._plan.grouped:
            walked = self._regrouped(walked)
        return list(itertools.islice(walked, self._limit))

    # -- the first round trip ---------------------------------------------
    def _first_look(self, check_marker: Callable[[Record | None], Row],
                    ) -> tuple[Sequence[str] | None, list[_Stream]]:
        """Read the marker, and how much each choice of ranges holds.

        :returns: the keys to read, if they are few; else streams to walk
        """
        plan = self._plan
        choices = () if plan.keys is not None else plan.choices
        probes = [dataclasses.replace(part, limit=planner.FEW + 1)
                  for choice in choices for part in choice]
        # With a marker the streams' beginnings are not known yet.
        early = (self._marker_key is None and plan.keys is None
                 and (len(plan.streams) > 1 or bool(probes)))
        streams = [] if self._marker_key else self._streams()
        if early:
            probes += [stream.next_range(self._batch) for stream in streams]
        marker = [self._marker_key] if self._marker_key else []
        if not probes and not marker:
            return plan.keys, streams
        positions, entries = self._engine.look(probes, marker)
        if self._marker_key:
            entry = entries.get(self._marker_key)
            self._marker = check_marker(
                None if entry is None
                else self._records.read(self._marker_key, entry))
            streams = self._streams()
        if early:
            for stream in reversed(streams):
                stream.add(positions.pop(), self._batch)
        if plan.keys is not None:
            return plan.keys, []
        return self._few(choices, positions), streams

    def _by_creation(self) -> bool:
        """Whether the list's order is that in which all terms end."""
        return self._plan.column == 'created_at' and not self._plan.grouped

    def _few(self, choices: Sequence[planner.Choice],
             positions: list[list[Position]]) -> list[str] | None:
        """Return the keys that every choice has that has few; in the list's
        order, if their terms tell it. None: no choice has few."""
        keys: dict[str, bytes] | None = None
        parts = iter(positions)
        for choice in choices:
            found = [next(parts) for _ in choice]
            if any(len(part) > planner.FEW for part in found):
                continue
            here = {key: planner.creation(term, key)
                    for part in found for term, key in part}
            keys = here if keys is None else {
                key: at for key, at in keys.items() if key in here}
        if keys is None or len(keys) > planner.FEW:
            return None
        if self._by_creation():
            return sorted(keys, key=keys.__getitem__,
                          reverse=self._plan.reverse)
        return list(keys)

    def _streams(self) -> list[_Stream]:
        found = []
        for part in self._plan.streams:
            part = dataclasses.replace(part, reverse=self._plan.reverse)
            if self._marker is not None:
                edge = planner.edge(part, self._order, self._marker,
                                    self._plan.grouped)
                part = self._behind(part, edge)
            found.append(_Stream(part))
        return found

    def _behind(self, part: Range, edge: bytes) -> Range:
        if self._plan.reverse:
            stop = terms.after(edge) if self._plan.grouped else edge
            return dataclasses.replace(
                part, stop=stop if part.stop is None else min(stop,
                                                              part.stop))
        start = edge if self._plan.grouped else edge + b'\0'
        return dataclasses.replace(
            part, start=start if part.start is None else max(start,
                                                             part.start))

    # -- walking ----------------------------------------------------------
    def _walk(self, streams: list[_Stream]) -> Iterator[Record]:
        """Yield the records of the streams in their common order."""
        size = self._batch
        while True:
            page = self._merged(streams, size)
            yield from self._records_of(page)
            if not page:
                return
            size = min(2 * size, _LARGEST_BATCH)

    def _merged(self, streams: list[_Stream], size: int) -> list[tuple]:
        """Take the next positions: up to ``size``, in order, none twice."""
        page: list[tuple] = []
        while len(page) < size:
            self._fill(streams, size)
            heads = [(stream.found[-1][:2], stream) for stream in streams
                     if stream.found]
            if not heads:
                break
            pick = max if self._plan.reverse else min
            _, stream = pick(heads, key=lambda head: head[0])
            taken = stream.found.pop()
            # An image in several scopes has the same term in each.
            if taken[1] != self._last:
                self._last = taken[1]
                page.append(taken)
            if not stream.found and not stream.over and page:
                # Its next position is not known: what is here goes first,
                # so that a short page costs no further round trip.
                break
        return page

    def _fill(self, streams: list[_Stream], size: int) -> None:
        empty = [stream for stream in streams
                 if not stream.found and not stream.over]
        if not empty:
            return
        ranges = [stream.next_range(size) for stream in empty]
        found: Sequence[Sequence[tuple]] = (
            self._engine.fetch_many(ranges)
            if len(streams) == 1 or self._marker is not None
            else self._engine.look(ranges)[0])
        for stream, part in zip(empty, found, strict=True):
            stream.add(part, size)

    def _records_of(self, page: list[tuple]) -> Iterator[Record]:
        """Yield the records at some positions, read where they were not."""
        unread = [found[1] for found in page if len(found) == 2]
        entries: Mapping[str, Entry] = (
            self._engine.get_many(unread) if unread else {})
        for found in page:
            term, key = found[:2]
            entry = found[2] if len(found) == 3 else entries.get(key)
            if entry is None:
                continue
            for record in self._records.readable([(key, entry)]):
                if not self._check_terms or any(
                        terms.has(record, part.index, term)
                        for part in self._plan.streams):
                    yield record

    def _read(self, keys: Sequence[str], batch: int) -> Iterator[Record]:
        for start in range(0, len(keys), batch):
            yield from self._records.get_keys(keys[start:start + batch])

    # -- rows -------------------------------------------------------------
    def _rows(self, found: Iterator[Record]) -> Iterator[Row]:
        for record in found:
            row = self._accept(record)
            if row is not None and (self._marker is None or
                                    self._order.past(row, self._marker)):
                yield row

    def _regrouped(self, walked: Iterator[Row]) -> Iterator[Row]:
        """Sort within equal values of the first key."""
        column = self._order.keys[0]
        for _, group in itertools.groupby(walked,
                                          lambda row: row[column]):
            part = list(group)
            self._order.sort(part)
            yield from part


