# SPDX-License-Identifier: Apache-2.0
"""Where the cluster keeps Glance's data: pure functions from regions to SQL.

A node's region is what it was started with (``--locality=region=paris``).
Zone configurations work in every version without a licence; what needs one is
marked. Follows CockroachDB's documentation on replication controls and
multi-region SQL.
"""

import dataclasses
import re
from collections.abc import Sequence

from glance_geo.core import errors

READ_REGIONS = 'SELECT region FROM [SHOW REGIONS FROM CLUSTER] ORDER BY region'
#: Read at every site, and hardly ever written.
GLOBAL_TABLES = (
    'metadef_namespaces', 'metadef_objects', 'metadef_properties',
    'metadef_tags', 'metadef_resource_types',
    'metadef_namespace_resource_types', 'alembic_version')
#: Their rows belong where they were written.
ROW_TABLES = (
    'images', 'image_properties', 'image_locations', 'image_tags',
    'image_members', 'tasks', 'task_info', 'node_reference',
    'cached_images')
_REGION = re.compile(r'[A-Za-z0-9][A-Za-z0-9_-]*')


@dataclasses.dataclass(frozen=True)
class Step:
    """One statement of a plan.

    :ivar licensed: it needs a licence, and is only printed
    """

    statement: str
    why: str
    licensed: bool = False


def _name(text: str) -> str:
    """Return an identifier in quotes."""
    return '"' + text.replace('"', '""') + '"'


def _checked(regions: Sequence[str], primary: str | None) -> str:
    for region in regions:
        if not _REGION.fullmatch(region):
            raise errors.ConfigurationInvalid(
                f'region {region!r}: letters, digits, - and _ only')
    if not regions:
        raise errors.ConfigurationInvalid(
            'the cluster has no regions: start its nodes with '
            '--locality=region=NAME')
    if primary is not None and primary not in regions:
        raise errors.ConfigurationInvalid(
            f'--primary {primary}: the cluster has regions '
            f'{", ".join(regions)}')
    return primary or regions[0]


def _zone(regions: Sequence[str], primary: str, near: bool) -> str:
    """Return the settings of the database's zone."""
    # A majority must outlive any one region.
    voters = 5 if len(regions) >= 5 else 3
    if len(regions) <= voters:
        each = max(1, voters // len(regions))
        wanted = {region: each for region in regions}
    else:
        wanted = {primary: 1}   # the others spread by themselves
    listed = ', '.join(f'+region={region}: {count}'
                       for region, count in sorted(wanted.items()))
    # Where all lists may be old, each region has something to read.
    replicas = max(voters, len(regions)) if near else voters
    settings = [f'num_replicas = {replicas}']
    if replicas > voters:
        settings.append(f'num_voters = {voters}')
        listed_all = ', '.join(f'+region={region}: 1'
                               for region in sorted(regions))
        settings += [f"constraints = '{{{listed_all}}}'",
                     f"voter_constraints = '{{{listed}}}'"]
    else:
        settings.append(f"constraints = '{{{listed}}}'")
    settings.append(f"lease_preferences = '[[+region={primary}]]'")
    return ', '.join(settings)


def plan(database: str, regions: Sequence[str], primary: str | None = None,
         near: bool = False) -> list[Step]:
    """Return how to place a database over regions.

    :param primary: where writes are decided; the first region by default
    :param near: a replica to read in every region (for follower reads)
    :raises ConfigurationInvalid: no regions, or an unknown primary one
    """
    primary = _checked(regions, primary)
    name = _name(database)
    steps = [Step(
        f'ALTER DATABASE {name} CONFIGURE ZONE USING '
        f'{_zone(regions, primary, near)}',
        f'leases at {primary}; ' + (
            'a majority outlives any one region' if len(regions) > 2 else
            f'{len(regions)} region(s): the loss of one can stop writes'))]
    others = [region for region in regions if region != primary]
    steps.append(Step(f'ALTER DATABASE {name} SET PRIMARY REGION '
                      f'{_name(primary)}', 'multi-region SQL', True))
    steps += [Step(f'ALTER DATABASE {name} ADD REGION {_name(region)}',
                   'multi-region SQL', True) for region in others]
    if len(regions) > 2:
        steps.append(Step(f'ALTER DATABASE {name} SURVIVE REGION FAILURE',
                          'one region may be lost', True))
    steps += [Step(f'ALTER TABLE {_name(table)} SET LOCALITY GLOBAL',
                   'read everywhere at local speed', True)
              for table in GLOBAL_TABLES]
    steps += [Step(f'ALTER TABLE {_name(table)} SET LOCALITY REGIONAL BY '
                   'ROW', 'rows live where they were written', True)
              for table in ROW_TABLES]
    return steps
