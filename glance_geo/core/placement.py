# SPDX-License-Identifier: Apache-2.0
"""Placement: where an image's bits should be, and why. A pure function.

The policy travels with the image, as its properties ``geo_policy`` and
``geo_sites``.
"""

import dataclasses
from collections.abc import Iterable, Mapping

POLICIES = ('on-demand', 'local', 'sites', 'everywhere')
DEFAULT_POLICY = 'on-demand'


@dataclasses.dataclass(frozen=True)
class Decision:
    """What one site should do with one image.

    :ivar wanted: the agent there pulls the image, and keeps it
    :ivar allowed: the bits may come to that site at all
    :ivar why: one sentence for the operator
    """

    wanted: bool
    allowed: bool
    why: str


def parse_sites(value: str | None) -> list[str]:
    """Return the site names of a ``geo_sites`` property."""
    return [name.strip() for name in (value or '').split(',') if name.strip()]


def decide(properties: Mapping[str, str], home: str | None, site: str,
           known_sites: Iterable[str] = ()) -> Decision:
    """Say whether a site should, and may, hold an image's bits."""
    policy = properties.get('geo_policy') or DEFAULT_POLICY
    if site == home and policy not in ('sites',):
        return Decision(True, True, 'home: the image was created here')
    if policy == 'everywhere':
        return Decision(True, True, 'geo_policy=everywhere')
    if policy == 'local':
        return Decision(False, False,
                        f'geo_policy=local: the bits stay at {home}')
    if policy == 'sites':
        wanted = parse_sites(properties.get('geo_sites'))
        listed = ','.join(wanted) or '(none)'
        if site in wanted:
            return Decision(True, True, f'geo_sites={listed}')
        if site == home:
            return Decision(True, True, 'home: the image was created here')
        unknown = sorted(set(wanted) - set(known_sites)) if known_sites else []
        note = f'; unknown site: {",".join(unknown)}' if unknown else ''
        return Decision(False, False,
                        f'geo_policy=sites: the bits stay at {home} and '
                        f'{listed}{note}')
    if policy != 'on-demand':
        # A misspelt policy must not spread bits that were meant to stay.
        return Decision(False, False,
                        f'geo_policy={policy} is unknown (use one of '
                        f'{", ".join(POLICIES)}): the bits stay at {home}')
    return Decision(False, True, 'geo_policy=on-demand: comes when it is read')
