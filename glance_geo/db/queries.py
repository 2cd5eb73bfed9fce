# SPDX-License-Identifier: Apache-2.0
"""Filters, sorting and paging of image lists: pure functions over rows.

``compile_filters`` turns Glance's filters into a predicate and raises for bad
ones; ``Order`` says which index walk yields the wanted order.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from glance.common import exception, utils
from oslo_utils import timeutils

from glance_geo.db import rows
from glance_geo.db.rows import Row

Predicate = Callable[[Row], bool]

_OPERATOR_COLUMNS = ('name', 'id', 'status', 'container_format',
                     'disk_format')
_STATUSES = ('active', 'saving', 'queued', 'pending_delete', 'deleted',
             'deactivated', 'importing', 'uploading')


def _has_property(name: str, value: Any) -> Predicate:
    return lambda row: any(
        prop['name'] == name and prop['value'] == value
        and not prop['deleted'] for prop in row['properties'])


def _equals(column: str, value: Any) -> Predicate:
    return lambda row: row[column] == value


def _tagged(tag: str) -> Predicate:
    return lambda row: tag in row['tags']


def _changed_since(since: Any) -> Predicate:
    return lambda row: row['updated_at'] > since


def _range(key: str, text: Any) -> Predicate:
    column = key[:-4]
    try:
        limit = int(text)
    except ValueError:
        raise exception.InvalidFilterRangeValue(
            'Unable to filter on a range with a non-numeric value.') from None
    if key.endswith('_min'):
        return lambda row: (row[column] is not None
                            and row[column] >= limit)
    return lambda row: row[column] is not None and row[column] <= limit


def _time(column: str, text: str) -> Predicate:
    operator, isotime = utils.split_filter_op(text)
    try:
        threshold = timeutils.normalize_time(
            timeutils.parse_isotime(isotime))
    except ValueError:
        raise exception.InvalidParameterValue(
            f'Bad "{column}" query filter format. '
            'Use ISO 8601 DateTime notation.') from None
    utils.evaluate_filter_op(threshold, operator, threshold)  # checks it
    return lambda row: utils.evaluate_filter_op(row[column], operator,
                                                threshold)


def _operator(column: str, text: Any) -> Predicate:
    operator, value = utils.split_filter_op(text)
    if operator == 'in':
        values = frozenset(utils.split_filter_value_for_quotes(value))
        return lambda row: row[column] in values
    if operator == 'eq':
        return _equals(column, value)
    raise exception.InvalidFilterOperatorValue(
        f"Unable to filter by unknown operator '{operator}'.")


def compile_filters(filters: Mapping[str, Any], is_public: bool | None,
                    ) -> list[Predicate]:
    """Return the predicates that a row must satisfy.

    :raises InvalidFilterRangeValue, InvalidParameterValue,
        InvalidFilterOperatorValue: as Glance's SQL data API does
    """
    checks: list[Predicate] = []
    if is_public is not None:
        checks.append(lambda row: (row['visibility'] == 'public')
                      == is_public)
    for key, value in filters.items():
        if key == 'properties':
            checks.extend(_has_property(*item) for item in value.items())
        elif key == 'tags':
            checks.extend(_tagged(tag) for tag in value)
        elif key == 'changes-since':
            checks.append(_changed_since(timeutils.normalize_time(value)))
        elif key == 'deleted':
            checks.append(_equals('deleted', bool(value)))
            if not value:
                checks.append(lambda row: row['status'] in _STATUSES)
        elif key in ('os_hidden', 'checksum', 'os_hash_value'):
            checks.append(_equals(key, value))
        elif value is None:
            continue
        elif key.endswith(('_min', '_max')):
            checks.append(_range(key, value))
        elif key in ('created_at', 'updated_at'):
            checks.append(_time(key, value))
        elif key in _OPERATOR_COLUMNS:
            checks.append(_operator(key, value))
        elif key in rows.COLUMNS:
            checks.append(_equals(key, value))
        else:
            checks.append(_has_property(key, value))
    return checks


def visibility_check(owner: str | None, regular: bool,
                     visibility: str | None, member_status: str,
                     memberships: Callable[[Row], Iterable[Row]],
                     ) -> Predicate:
    """Return which images a project's list shows.

    :param regular: not an administrator, or one who asked as a user
    :param memberships: yields an image's live memberships
    """
    def listed(row: Row) -> bool:
        if visibility is not None:
            if visibility not in ('all', row['visibility']):
                return False
        elif row['visibility'] == 'community' and (owner is None or
                                                   row['owner'] != owner):
            return False
        if not regular or row['visibility'] in ('public', 'community'):
            return True
        if owner is not None and row['owner'] == owner:
            return True
        if row['visibility'] != 'shared':
            return False
        return any(
            (owner is None) or (member['member'] == owner and
                                member_status in ('all', member['status']))
            for member in memberships(row))
    return listed


@dataclasses.dataclass(frozen=True)
class Order:
    """A total order of images: columns and directions, ties broken."""

    keys: tuple[str, ...]
    directions: tuple[str, ...]

    @classmethod
    def of(cls, keys: Iterable[str] | None, directions: Iterable[str] | None,
           ) -> 'Order':
        """Complete the order that a caller asked for, as Glance does.

        :raises InvalidSortKey: no such column
        """
        keys = list(keys or ['created_at'])
        directions = list(directions or [])
        default = 'desc'
        if len(directions) == 1:
            default = directions[0]
        if len(directions) < 2:
            directions = [default] * len(keys)
        for key in ('created_at', 'id'):
            if key not in keys:
                keys.append(key)
                directions.append(default)
        if any(key not in rows.COLUMNS for key in keys):
            raise exception.InvalidSortKey()
        if any(way not in ('asc', 'desc') for way in directions):
            raise ValueError("Unknown sort direction, "
                             "must be 'desc' or 'asc'")
        return cls(tuple(keys), tuple(directions))

    @property
    def index(self) -> tuple[str, bool] | None:
        """Return (column, reverse) of the index walk in this order, if any."""
        # Index terms are (column, created_at, id), all in one direction.
        column = self.keys[0]
        expected = {'created_at': ('created_at', 'id'),
                    'id': ('id', 'created_at')}.get(
                        column, (column, 'created_at', 'id'))
        if self.keys != expected or len(set(self.directions)) != 1:
            return None
        return column, self.directions[0] == 'desc'

    def sort(self, found: list[Row]) -> None:
        """Sort rows in place; None comes before every value."""
        for key, way in reversed(list(zip(self.keys, self.directions,
                                      strict=True))):
            found.sort(key=lambda row, key=key: (  # type: ignore[misc]

                row[key] is not None, row[key]), reverse=way == 'desc')

    def past(self, row: Row, marker: Row) -> bool:
        """Say whether a row comes strictly after the marker."""
        for key, way in zip(self.keys, self.directions, strict=True):
            mine = (row[key] is not None, row[key])
            other = (marker[key] is not None, marker[key])
            if mine != other:
                return (mine > other) if way == 'asc' else (mine < other)
        return False
