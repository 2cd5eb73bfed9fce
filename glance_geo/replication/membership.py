# SPDX-License-Identifier: Apache-2.0
"""Which sites take part: their records, retirement, and what each has seen.

A site's record is written by the site itself (where its node is), and by
whoever retires it. A retired site holds nothing up, and is not listened to:
what it wrote meanwhile must not slip in beside what was forgotten without it.
"""

import time
from collections.abc import Iterable, Mapping
from typing import Any

from glance_geo.core import errors, records
from glance_geo.core.interfaces import RecordLog
from glance_geo.core.records import Context, Record
from glance_geo.core.rules import shown


def retired(record: Record | None) -> dict[str, Any] | None:
    """Return when and where a site was retired; None: it was not."""
    return None if record is None else shown(record).get('retired') or None


def retired_sites(found: Iterable[Record]) -> set[str]:
    """Return the names of those sites that are retired."""
    return {record.id for record in found if retired(record)}


def waiting(known: Mapping[str, Context], sites: Iterable[str],
            seen: Mapping[str, int]) -> list[str]:
    """Return the sites that may lack some of the writes in a context."""
    return sorted(site for site in sites
                  if not records.includes(known.get(site, {}), seen))


def retire(log: RecordLog, site: str, by: str, force: bool) -> None:
    """Release a site from all that waits for it.

    :param force: also when it may have writes that are nowhere else
    :raises PeerRefused: it may; the text says what is missing
    """
    known = log.known()
    mine = known[by]
    theirs = known.get(site)
    if site == by:
        raise errors.PeerRefused(
            f'site {site} can not retire itself: do it at another one')
    behind = [name for name, number in (theirs or {}).items()
              if name.startswith(f'{site}.') and mine.get(name, 0) < number]
    if not force and (theirs is None or behind):
        raise errors.PeerRefused(
            f'site {site} may have writes that are not at site {by}'
            + (f' ({", ".join(behind)})' if behind else
               ' (nothing is known of what it has)')
            + '; bring its link up and try again, or give up what it alone '
              'has with --force')

    def change(present: Record | None) -> dict[str, Any]:
        if present is None:
            raise errors.PeerRefused(f'no site {site} is known here')
        return {'retired': {'by': by, 'at': int(time.time())}}
    log.update('site', site, change)


def readmit(log: RecordLog, site: str) -> None:
    """Let a site take part again that begins anew."""
    log.update('site', site, lambda present: (
        {'retired': None} if retired(present) else None))
