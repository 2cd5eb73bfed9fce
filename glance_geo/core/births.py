# SPDX-License-Identifier: Apache-2.0
"""Two creations of one key: the earlier keeps it, the other moves aside.

A site that was cut off may create an image or a namespace whose id or name
another site uses too. When the two meet, every site computes the same
outcome from the same two states: no message is needed.
"""

import uuid

from glance_geo.core import records
from glance_geo.core.records import Record, Sibling

_DERIVED = uuid.UUID('b4e0c7a1-63b8-5d0a-9a52-6c6a0f1d7e11')


def _rename_field(record: Record, field: str, value: object) -> None:
    """Show another value in a field, at the dots that it already has.

    The record's own dots are reused: moving aside is no write, so that all
    sites arrive at the same state without telling each other.
    """
    assert record.birth is not None
    old = record.fields.get(field) or {
        (site, counter): Sibling(record.birth.hlc, None)
        for site, counter in record.context.items()}
    dot, sibling = max(old.items(), key=lambda i: (i[1].hlc, i[0]))
    record.fields[field] = {dot: Sibling(sibling.hlc, value)}


def moved_aside(loser: Record) -> Record:
    """Return the later-born record under its derived key.

    An image becomes a private image of its owner under an id derived from the
    old one and its birth; a namespace gets its site's name appended.
    """
    assert loser.birth is not None
    moved = loser.copy()
    if loser.kind == 'image':
        moved.id = str(uuid.uuid5(
            _DERIVED, f'{loser.id}/{loser.birth.site}/{loser.birth.nonce}'))
        _rename_field(moved, 'visibility', 'private')
    else:
        moved.id = f'{loser.id}@{loser.birth.site}'[:80]
    moved.extra['moved_from'] = loser.id
    return moved


def reconcile(local: Record | None, incoming: Record) -> list[Record]:
    """Bring a record that arrived together with the one that is here.

    :returns: the records to store: the one that keeps the key first, then
        the one that moved aside, which the caller reconciles in its turn
        with what it has under the derived key
    """
    if local is None:
        return [incoming]
    if local.birth == incoming.birth:
        return [records.merge(local, incoming)]
    if records.dominates(incoming.context, local.context):
        return [incoming]   # deleted and created again, seen in order
    if records.dominates(local.context, incoming.context):
        return [local]
    if local.birth is None or incoming.birth is None:
        return [records.merge(local, incoming)]
    first, second = ((local, incoming) if local.birth < incoming.birth
                     else (incoming, local))
    return [first, moved_aside(second)]
