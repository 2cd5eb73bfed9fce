# SPDX-License-Identifier: Apache-2.0
"""Two creations of one key: the earlier keeps it, the other moves aside.

A site that was cut off may create an image or a namespace whose id or name
another site uses too. When the two meet, every site computes the same
outcome from the same two states: no message is needed.
"""

import uuid

from glance_geo.core import records
from glance_geo.core.records import NO_SITE, Record, Sibling

CLAIMED = ('image', 'namespace')
"""The kinds whose keys users choose: two sites may claim one."""

REPLACES = 'replaces'
"""Entry of a record that was created where a deleted one was: the births of
those before it, which it replaces for good."""

_DERIVED = uuid.UUID('b4e0c7a1-63b8-5d0a-9a52-6c6a0f1d7e11')


def replacing(present: Record | None) -> dict[str, list[str]]:
    """Return the entries of a record created where another was."""
    if present is None or present.birth is None:
        return {}
    return {REPLACES: sorted({*present.extra.get(REPLACES, ()),
                              present.birth.nonce})}


def moved_aside(loser: Record) -> Record:
    """Return the later-born record under its derived key.

    An image becomes a private image of its owner under an id derived from the
    old one and its birth; a namespace gets its site's name appended.

    Moving states and merging them gives the same as merging and moving: what
    is added here is the same for every state of the record. So "private" is
    one more concurrent value of the visibility, which wins as the narrowest
    and gives way to the next write, under a dot that belongs to no site.
    """
    assert loser.birth is not None
    moved = loser.copy()
    moved.extra['moved_from'] = loser.id
    if loser.kind != 'image':
        moved.id = f'{loser.id}@{loser.birth.site}'[:80]
        return moved
    moved.id = str(uuid.uuid5(
        _DERIVED, f'{loser.id}/{loser.birth.site}/{loser.birth.nonce}'))
    dot = (f'{NO_SITE}{loser.birth.nonce}', 1)
    moved.context[dot[0]] = dot[1]
    moved.fields.setdefault('visibility', {})[dot] = Sibling(
        loser.birth.hlc, 'private')
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
    if local.birth is None or incoming.birth is None:
        return [records.merge(local, incoming)]
    # Contexts can't tell which came first: a site that wrote the one after
    # it saw the other moved aside has "seen" writes of both.
    if local.birth.nonce in incoming.extra.get(REPLACES, ()):
        return [incoming]
    if incoming.birth.nonce in local.extra.get(REPLACES, ()):
        return [local]
    first, second = ((local, incoming) if local.birth < incoming.birth
                     else (incoming, local))
    return [first, moved_aside(second)]
