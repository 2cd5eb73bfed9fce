# SPDX-License-Identifier: Apache-2.0
"""Which index ranges hold the images of a list: pure functions.

A list is answered in one of two ways. Where a filter names few images, their
keys are found in that filter's index, and all of them are read, filtered and
sorted. Otherwise the index in the list's order is walked until the page is
full. Which of the two is decided when the first round trip has shown how many
positions each filter's ranges hold, up to ``FEW``.

A caller who may see only some images walks one *scope* per reason to see one
(public, own, shared with the project); all scopes of a sort key order by the
same terms, so that they merge.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from glance.common import utils
from oslo_utils import timeutils

from glance_geo.core.engine import Range
from glance_geo.db import rows, terms
from glance_geo.db.queries import Order

FEW = 500
"""As many records are read to find a page among them."""

_MEMBER_STATUSES = ('pending', 'accepted', 'rejected')
# Nearly every image has one of few values: to look how many is in vain.
_COMMON = {'status': ('active',), 'disk_format': None,
           'container_format': None}

Choice = tuple[Range, ...]
"""Ranges that together hold every image of a list, and others."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """How to find the images of a list.

    :ivar keys: the only keys that can be in it; None: any
    :ivar choices: for each selective filter, where its images are
    :ivar streams: ranges whose merged order is the list's
    :ivar column: what the streams sort by
    :ivar reverse: they are walked from their end
    :ivar grouped: they order by the list's first key alone
    """

    keys: tuple[str, ...] | None
    choices: tuple[Choice, ...]
    streams: Choice
    column: str
    reverse: bool
    grouped: bool


def scopes(owner: str | None, regular: bool, visibility: str | None,
           member_status: str) -> tuple[str, ...] | None:
    """Return the scopes that hold what a caller may list; None: all do.

    :param regular: not an administrator, or one who asked as a user
    """
    statuses = (_MEMBER_STATUSES if member_status == 'all'
                else (member_status,))
    mine = (terms.owner_scope(owner),) if owner is not None else ()
    shared = tuple(terms.member_scope(owner, status) for status in statuses
                   if owner is not None)
    if visibility not in (None, 'all'):
        if regular and owner is not None:
            if visibility == 'private':
                return mine
            if visibility == 'shared':
                return mine + shared
        return (terms.visibility_scope(visibility),)
    if not regular or owner is None:
        return None
    other = ('community',) if visibility == 'all' else ()
    return (*(terms.visibility_scope(name) for name in ('public', *other)),
            *mine, *shared)


def _prefixed(index: str, prefix: bytes) -> Range:
    return Range(index, prefix, terms.after(prefix))


def _time_range(column: str, text: str) -> Range | None:
    operator, isotime = utils.split_filter_op(text)
    at = rows.to_us(timeutils.normalize_time(timeutils.parse_isotime(isotime)))
    low, past = terms.ordered(at), terms.after(terms.ordered(at))
    index = f'image.{column}'
    return {'eq': Range(index, low, past), 'gt': Range(index, past),
            'gte': Range(index, low), 'lt': Range(index, None, low),
            'lte': Range(index, None, past)}.get(operator)


def _choice(key: str, value: Any) -> Choice | None:
    """Return where the images are that pass one filter, if an index says."""
    if key in ('checksum', 'os_hash_value'):
        return (_prefixed(terms.EQUAL, terms.digest(key, value)),)
    if key == 'os_hidden':
        return ((_prefixed(terms.EQUAL, terms.digest(key, True)),)
                if value else None)
    if value is None or key in ('deleted', 'is_public'):
        return None
    if key in ('size_min', 'size_max'):
        low = terms.ordered(int(value))
        return ((Range('image.size', low),) if key == 'size_min' else
                (Range('image.size', terms.ordered(-1), terms.after(low)),))
    if key in ('created_at', 'updated_at'):
        found = _time_range(key, value)
        return None if found is None else (found,)
    if key in ('name', 'status', 'disk_format', 'container_format'):
        operator, text = utils.split_filter_op(value)
        values = ([text] if operator == 'eq'
                  else utils.split_filter_value_for_quotes(text))
        common = _COMMON.get(key, ())
        if common is None or any(name in common for name in values):
            return None
        return tuple(_prefixed(f'image.{key}', terms.ordered(name))
                     for name in dict.fromkeys(values))
    if key == 'size':
        return (_prefixed('image.size', terms.ordered(value)),)
    if key in rows.COLUMNS or key.endswith(('_min', '_max')):
        return None
    return (_prefixed(terms.EQUAL, terms.digest(f'prop:{key}', value)),)


def _choices(filters: Mapping[str, Any]) -> dict[str, Choice]:
    found: dict[str, Choice] = {}
    for key, value in filters.items():
        if key == 'tags':
            for tag in value:
                found[f'tag:{tag}'] = (_prefixed(
                    terms.EQUAL, terms.digest('tag', tag)),)
        elif key == 'properties':
            for name, text in value.items():
                found[f'prop:{name}'] = (_prefixed(
                    terms.EQUAL, terms.digest(f'prop:{name}', text)),)
        elif key not in ('id', 'owner'):
            choice = _choice(key, value)
            if choice is not None:
                found[key] = choice
    return found


def _ids(filters: Mapping[str, Any]) -> tuple[str, ...] | None:
    if filters.get('id') is None:
        return None
    operator, text = utils.split_filter_op(filters['id'])
    ids = ([text] if operator == 'eq'
           else utils.split_filter_value_for_quotes(text))
    return tuple(f'image/{id}' for id in dict.fromkeys(ids))


def _narrowed(index: str, column: str, choices: Mapping[str, Choice],
              ) -> Range:
    """Return an index, cut to the filters on the column that it sorts by."""
    start: bytes | None = None
    stop: bytes | None = None
    for choice in choices.values():
        if len(choice) == 1 and choice[0].index == f'image.{column}':
            low, high = choice[0].start, choice[0].stop
            start = max((b for b in (start, low) if b is not None),
                        default=None)
            stop = min((b for b in (stop, high) if b is not None),
                       default=None)
    return Range(index, start, stop)


def plan(filters: Mapping[str, Any], order: Order,
         within: tuple[str, ...] | None) -> Plan:
    """Return how to find the images of a list.

    :param filters: as Glance gives them, checked, without visibility; images
        that are not deleted only
    :param within: the scopes that hold what the caller may list
    """
    choices = _choices(filters)
    column, reverse = order.keys[0], order.directions[0] == 'desc'
    if filters.get('owner') is not None:
        within = (terms.owner_scope(filters['owner']),)
    indexes = [f'image.{column}' + (f'/{scope}' if scope else '')
               for scope in (within or ('',))]
    streams = tuple(_narrowed(index, column, choices) for index in indexes)
    grouped = order.index is None
    if column == 'created_at' and not grouped:
        # Within one value every index orders by this.
        equal = [choice for key, choice in choices.items()
                 if len(choice) == 1 and key not in (
                     'size_min', 'size_max', 'created_at', 'updated_at')]
        if equal and within is None:
            streams = equal[0]
    return Plan(_ids(filters), tuple(choices.values()), streams, column,
                reverse, grouped)


def edge(stream: Range, order: Order, marker: Mapping[str, Any],
         grouped: bool) -> bytes:
    """Return the term of the marker in a stream.

    :param marker: an image's columns, times as Glance has them
    """
    def value(name: str) -> Any:
        found = marker[name]
        return rows.to_us(found) if name in rows.TIMES else found

    first = order.keys[0]
    if grouped:
        return terms.ordered(value(first))
    rest = (value('created_at'), marker['id'])
    if stream.index == terms.EQUAL:
        assert stream.start is not None
        return stream.start + terms.ordered(*rest)
    if not stream.index.startswith(f'image.{first}'):
        assert stream.start is not None     # one value of another column
        return stream.start + terms.ordered(*rest)
    return terms.ordered(value(first), *rest)


def creation(term: bytes, key: str) -> bytes:
    """Return the end of an image's term, which orders as its creation:
    ``(created_at, id)``, whatever comes before."""
    tail = len(terms.ordered(0, key.partition('/')[2]))
    return term[-tail:]
