# SPDX-License-Identifier: Apache-2.0
"""Records: metadata documents that every site may write.

A record maps field names to *siblings*: the values that were written
concurrently, each under the dot of its write. One causal context (a version
vector) per record says which writes the record has seen. This is the delta
CRDT "map of multi-value registers with a shared causal context" of Almeida,
Shoker and Baquero (2018), built on the dotted version vectors of Preguiça et
al. (2010).

A vector is enough as the context because a site writes one record strictly
after its own earlier writes of it (compare-and-set at its engine), and because
whole records travel, never single writes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

Dot = tuple[str, int]
"""(site incarnation, counter): the identity of one write."""

Context = dict[str, int]
"""Incarnation -> highest counter seen."""

PENDING = 0
"""The counter of a write that the engine has not numbered yet."""


NO_SITE = 'moved.'
"""Prefix of the incarnations of dots that no site wrote, but every site makes
alike: sites do not sync by them."""


class _Removed:
    """The marker for a field that a write takes away."""

    def __repr__(self) -> str:
        return 'REMOVED'


REMOVED = _Removed()


@dataclasses.dataclass(frozen=True)
class Sibling:
    """One value of a field and the clock reading of its write."""

    hlc: int
    data: Any


Siblings = dict[Dot, Sibling]


@dataclasses.dataclass(frozen=True, order=True)
class Birth:
    """Identity of a record's creation; the earlier of two keeps the key."""

    hlc: int
    site: str
    nonce: str


@dataclasses.dataclass(frozen=True, order=True)
class Sealed:
    """A state of a record that only a newer release can read.

    It is kept and passed on as it came. Its context lets it be dropped once
    something that has seen all of it is here.
    """

    value: bytes
    version: int
    seen: tuple[tuple[str, int], ...]

    @property
    def context(self) -> Context:
        return dict(self.seen)


@dataclasses.dataclass
class Record:
    """One metadata document.

    :ivar kind: ``image``, ``namespace``, ``task``, ``site``, ``holding``, …
    :ivar id: unique within the kind
    :ivar birth: None for kinds whose key can't be claimed twice
    :ivar context: the writes that ``fields`` have seen
    :ivar extra: top-level entries of newer releases, kept and passed on
    :ivar sealed: states that this release can't read, in order
    """

    kind: str
    id: str
    birth: Birth | None = None
    context: Context = dataclasses.field(default_factory=dict)
    fields: dict[str, Siblings] = dataclasses.field(default_factory=dict)
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)
    sealed: tuple[Sealed, ...] = ()

    @property
    def seen(self) -> Context:
        """All sites' writes that are in the record, read or not."""
        seen = dict(self.context)
        for part in self.sealed:
            seen = join(seen, part.context)
        return {name: counter for name, counter in seen.items()
                if not name.startswith(NO_SITE)}

    @property
    def key(self) -> str:
        return f'{self.kind}/{self.id}'

    def copy(self) -> Record:
        """Return a copy whose maps can be changed without touching this."""
        return dataclasses.replace(
            self, context=dict(self.context),
            fields={name: dict(s) for name, s in self.fields.items()},
            extra=dict(self.extra))


def covers(context: Mapping[str, int], dot: Dot) -> bool:
    """Say whether the write is among those that the context has seen."""
    return dot[1] <= context.get(dot[0], -1)


def join(a: Mapping[str, int], b: Mapping[str, int]) -> Context:
    """Return the least context that has seen what either has seen."""
    return {site: max(a.get(site, 0), b.get(site, 0))
            for site in sorted(a.keys() | b.keys())}


def write(record: Record, incarnation: str, hlc: int,
          changes: Mapping[str, Any], counter: int = PENDING) -> Record:
    """Return the record after one local write.

    The write saw every value of the fields that it changes, and replaces
    them; other fields keep their siblings.

    :param changes: field -> new value, or ``REMOVED``
    :param counter: the write's number; ``PENDING`` lets the engine number it
        in the same atomic step that stores it
    """
    after = record.copy()
    for name, data in changes.items():
        if data is REMOVED:
            after.fields.pop(name, None)
        else:
            after.fields[name] = {(incarnation, counter): Sibling(hlc, data)}
    after.context[incarnation] = (
        PENDING if counter == PENDING
        else max(counter, after.context.get(incarnation, 0)))
    return after


def number(record: Record, incarnation: str, counter: int) -> Record:
    """Give the record's pending write its number."""
    pending = (incarnation, PENDING)
    for siblings in record.fields.values():
        if pending in siblings:
            siblings[(incarnation, counter)] = siblings.pop(pending)
    record.context[incarnation] = counter
    return record


def includes(a: Mapping[str, int], b: Mapping[str, int]) -> bool:
    """Say whether a context has seen all that another has."""
    return all(counter <= a.get(site, -1) for site, counter in b.items())


def _merge_sealed(parts: Iterable[Sealed], context: Context,
                  ) -> tuple[Sealed, ...]:
    """Unite sealed states, less those that another part has seen whole."""
    kept = sorted(set(parts))
    return tuple(
        part for part in kept
        if not includes(context, part.context) and not any(
            includes(other.context, part.context)
            and (not includes(part.context, other.context) or other < part)
            for other in kept if other is not part))


def _merge_field(a: Siblings, a_context: Context,
                 b: Siblings, b_context: Context) -> Siblings:
    kept = {dot: value for dot, value in a.items()
            if dot in b or not covers(b_context, dot)}
    kept.update((dot, value) for dot, value in b.items()
                if dot in a or not covers(a_context, dot))
    return dict(sorted(kept.items()))


def merge(a: Record, b: Record) -> Record:
    """Unite two states of one record (same key, same birth).

    Commutative, associative and idempotent: a value stays unless the other
    side has seen its write and no longer has it.
    """
    fields = {}
    for name in sorted(a.fields.keys() | b.fields.keys()):
        siblings = _merge_field(a.fields.get(name, {}), a.context,
                                b.fields.get(name, {}), b.context)
        if siblings:
            fields[name] = siblings
    # Of two unknown top-level entries neither can be judged here: taking the
    # greater by its text is arbitrary, but the same at every site.
    extra = {name: max((side[name] for side in (a.extra, b.extra)
                        if name in side), key=repr)
             for name in sorted(a.extra.keys() | b.extra.keys())}
    context = join(a.context, b.context)
    return Record(a.kind, a.id, a.birth, context, fields, extra,
                  _merge_sealed((*a.sealed, *b.sealed), context))


def unite(states: Iterable[Record]) -> Record:
    """Merge any number of states (at least one) of one record."""
    iterator = iter(states)
    result = next(iterator)
    for state in iterator:
        result = merge(result, state)
    return result
