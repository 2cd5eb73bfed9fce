# SPDX-License-Identifier: Apache-2.0
"""Bringing up and upgrading the schema of Glance's database.

By Glance's own migrations; ``connection`` makes each change of the schema by
itself, as CockroachDB wants it, so that a run that was interrupted leaves
changes behind that the next one finds made, and passes over.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import Any

import sqlalchemy as sa
from alembic import command as alembic
from glance.db import migration
from glance.db.sqlalchemy import alembic_migrations, models, models_metadef

from glance_geo.db.cockroachdb import commits, plugin, scope

LOG = logging.getLogger(__name__)

# What Ocata's data migration does. Glance's own is never run from an older
# release than the one before, and does not commit what it does.
_VISIBILITY = (
    "UPDATE images SET visibility = 'public' "
    "WHERE is_public AND visibility IS NULL",
    "UPDATE images SET visibility = 'shared' WHERE NOT is_public AND "
    "visibility IS NULL AND id IN (SELECT image_id FROM image_members "
    "WHERE NOT deleted)",
    "UPDATE images SET visibility = 'private' "
    "WHERE NOT is_public AND visibility IS NULL")


@dataclasses.dataclass(frozen=True)
class Revisions:
    """Where a database's schema is, and where Glance wants it.

    :ivar present: alembic's heads; none: no schema
    """

    present: tuple[str, ...]
    expand: str
    contract: str

    @property
    def current(self) -> bool:
        return self.contract in self.present


def revisions() -> Revisions:
    """Return the revisions of the configured database.

    :raises DBError: it can't be reached
    """
    return Revisions(
        tuple(sorted(alembic_migrations.get_current_alembic_heads())),
        alembic_migrations.get_alembic_branch_head(migration.EXPAND_BRANCH),
        alembic_migrations.get_alembic_branch_head(
            migration.CONTRACT_BRANCH))


def sync(engine: Any, told: Callable[[str], None]) -> None:
    """Bring the schema to what the installed Glance wants.

    May be repeated, also after it was killed. Not beside a running
    glance-api of another release.

    :param told: told each step, in words
    """
    # Glance's triggers are for upgrades while it runs, on MySQL.
    from glance.cmd import manage
    manage.USE_TRIGGERS = False
    with scope.within(scope.Scope(resuming=True)):
        wanted = revisions()
        if not wanted.current:
            config = alembic_migrations.get_alembic_config()
            told(f'expanding to {wanted.expand}')
            alembic.upgrade(config, wanted.expand)
            told('moving data')
            _move_data(engine)
            told(f'contracting to {wanted.contract}')
            alembic.upgrade(config, wanted.contract)
        with engine.connect() as connection:
            connection.execute(sa.text(commits.CREATE))
            connection.commit()
    told('up to date')


def _move_data(engine: Any) -> None:
    columns = {column['name']
               for column in sa.inspect(engine).get_columns('images')}
    if not {'is_public', 'visibility'} <= columns:
        return
    with engine.begin() as connection:
        for statement in _VISIBILITY:
            connection.execute(sa.text(statement))


def _tables() -> Iterator[sa.Table]:
    for base in (models.BASE, models_metadef.BASE_DICT):
        yield from base.metadata.sorted_tables


def differences(engine: Any) -> list[str]:
    """Return what Glance's models want and the database lacks, in words."""
    found = []
    inspector = sa.inspect(engine)
    present = set(inspector.get_table_names())
    for table in _tables():
        if table.name not in present:
            found.append(f'table {table.name} is missing')
            continue
        columns = {column['name']
                   for column in inspector.get_columns(table.name)}
        for column in table.columns:
            if column.name not in columns:
                found.append(f'column {table.name}.{column.name} is missing')
        indexes = {index['name'] for index in inspector.get_indexes(
            table.name)}
        found += [f'index {index.name} of table {table.name} is missing'
                  for index in table.indexes if index.name not in indexes]
    return found


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that ``check`` looked at.

    :ivar advice: what to do, '' if all is well
    """

    what: str
    state: str
    advice: str = ''


def check(engine: Any) -> Iterator[Finding]:
    """Yield what was looked at in a database, and whether it is well.

    :raises DBError: it can't be reached, or is no CockroachDB
    """
    with engine.connect() as connection:
        version = connection.execute(sa.text('SELECT version()')).scalar()
        level = connection.execute(
            sa.text('SHOW default_transaction_isolation')).scalar()
    release = plugin.server_version(version)
    yield Finding('server', 'CockroachDB {}.{}'.format(*release) if release
                  else str(version))
    yield Finding(
        'isolation', level, '' if level.lower() == 'serializable' else
        'this support needs serializable: do not set another in the URL')
    found = revisions()
    yield Finding(
        'revision', ', '.join(found.present) or 'none',
        '' if found.current else f'run "glance-geo db sync": Glance wants '
                                 f'{found.contract}')
    for text in differences(engine) if found.present else ():
        yield Finding('schema', text, 'run "glance-geo db sync"')
    markers = sa.inspect(engine).has_table(commits.TABLE)
    yield Finding(
        'commit markers', 'kept' if markers else 'none',
        '' if markers else 'run "glance-geo db sync" as the owner of the '
                           'database, or lost answers stay ambiguous')
