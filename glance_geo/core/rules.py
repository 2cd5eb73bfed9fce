# SPDX-License-Identifier: Apache-2.0
"""Which of a field's concurrent values is shown, and what conflicts.

Field names say by their prefix how they resolve:

========================  ==================================================
``prop:NAME``             property; a value wins over a removal
``tag:VALUE``             add-wins: a removal takes away what it saw
``member:PROJECT``        remove-wins; names a membership
``mstatus:ID``            the status of one membership, so that a status
                          never outlives the membership it answered
``loc:KEY``               one location
``data``                  what an upload bound: binds once, earliest wins
``deletion``              final wins over pending, pending over none
``deactivated``           true wins
``visibility``            the narrower wins
``updated_at``            the latest
anything else             the write with the highest clock reading
========================  ==================================================
"""

from collections.abc import Mapping
from typing import Any

from glance_geo.core.records import (
    NO_SITE,
    Dot,
    Record,
    Sibling,
    Siblings,
    covers,
)

_NARROWNESS = {'private': 3, 'shared': 2, 'community': 1, 'public': 0}

# Fields whose concurrent values agree by rule, with nothing for a person to
# decide: they are never reported as conflicts.
_SETTLED = ('updated_at', 'deletion', 'deactivated', 'tag:', 'member:',
            'mstatus:', 'loc:', 'holding', 'accepted')


def _order(item: tuple[Dot, Sibling]) -> tuple:
    dot, value = item
    return (value.hlc, dot)


def _deletion_rank(data: Any) -> int:
    if not data:
        return 0
    if data.get('status') == 'pending_delete':
        return 1
    return 2 if data.get('deleted') or data.get('status') else 0


def _preference(field: str, item: tuple[Dot, Sibling]) -> tuple:
    """A key whose maximum is the value to show."""
    data = item[1].data
    last = _order(item)
    if field == 'visibility':
        return (_NARROWNESS.get(data, -1), last)
    if field == 'data':
        bound = bool(data.get('bound'))
        # Among bound values the earliest; dots break ties the same way.
        return (1, -last[0], last[1]) if bound else (0, *last)
    if field == 'deletion':
        return (_deletion_rank(data), last)
    if field == 'deactivated':
        return (bool(data), last)
    if field == 'updated_at':
        return (data, last)
    if field.startswith('member:'):
        return (bool(data.get('removed')), last)
    if isinstance(data, Mapping) and 'removed' in data:
        return (not data['removed'], last)
    return (0, last)


def _ranked(field: str, siblings: Siblings) -> list[tuple[Dot, Sibling]]:
    """Return a field's concurrent values, the one to show first."""
    return sorted(siblings.items(), reverse=True,
                  key=lambda item: _preference(field, item))


def resolve(field: str, siblings: Siblings) -> Any:
    """Return the value to show of a field's concurrent values (never none)."""
    return _ranked(field, siblings)[0][1].data


def shown(record: Record) -> dict[str, Any]:
    """Return field -> value to show."""
    return {name: (next(iter(siblings.values())).data if len(siblings) == 1
                   else resolve(name, siblings))
            for name, siblings in record.fields.items()}


def overtaken(record: Record) -> int | None:
    """Say whether a final deletion met changes that it had not seen.

    :returns: when it was deleted, in microseconds since 1970; None if it is
        not deleted, or the deletion had seen everything
    """
    siblings = record.fields.get('deletion')
    if not siblings:
        return None
    deletion = resolve('deletion', siblings)
    if not deletion.get('deleted') or 'seen' not in deletion:
        return None
    for name, values in record.fields.items():
        for dot in values:
            if (name != 'deletion' and dot not in siblings
                    and not covers(deletion['seen'], dot)):
                return deletion.get('deleted_at')
    return None


def conflicts(record: Record) -> dict[str, list[dict[str, Any]]]:
    """Return the fields whose concurrent values a person should look at.

    :returns: field -> list of ``{'value', 'incarnation', 'hlc', 'shown'}``,
        the shown value first
    """
    found = {}
    for name, siblings in record.fields.items():
        if len(siblings) < 2 or name.startswith(_SETTLED):
            continue
        # What moving a record aside added is told with its id.
        written = {repr(value.data) for dot, value in siblings.items()
                   if not dot[0].startswith(NO_SITE)}
        if len(written) < 2:
            continue
        ranked = _ranked(name, siblings)
        found[name] = [
            {'value': value.data, 'incarnation': dot[0], 'hlc': value.hlc,
             'shown': index == 0}
            for index, (dot, value) in enumerate(ranked)]
    return found
