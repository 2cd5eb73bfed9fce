# SPDX-License-Identifier: Apache-2.0
"""Commands on Glance's SQL database, where that is a CockroachDB."""

import logging
import sys
from contextlib import contextmanager

from cliff import command, lister, show

from glance_geo import assembly
from glance_geo.core import errors


@contextmanager
def _database(app):
    """Open the configured database; say in one line why it can't be."""
    from oslo_db import exception
    engine = None
    # It says at each start that URLs might name their driver.
    logging.getLogger('oslo_db.sqlalchemy.engines').setLevel(logging.ERROR)
    try:
        engine = assembly.sql_engine(app.configuration())
        yield engine
    except exception.DBError as error:
        from glance_geo.db.cockroachdb import filters
        raise errors.EngineUnavailable(
            f'[database] connection: {filters.explain(error)}') from error
    finally:
        if engine is not None:
            engine.dispose()


class DBSync(command.Command):
    """Bring up or upgrade the schema of Glance's database.

    From empty, and from any older release's. May be repeated after it was
    interrupted. Stop glance-api before an upgrade.
    """

    def take_action(self, parsed_args):
        with _database(self.app) as engine:
            from glance_geo.db.cockroachdb import schema
            schema.sync(engine, lambda text: print(text, flush=True))


class DBVersion(show.ShowOne):
    """Show the revision of the schema, and the one that Glance wants."""

    def take_action(self, parsed_args):
        with _database(self.app):
            from glance_geo.db.cockroachdb import schema
            found = schema.revisions()
        return zip(('present', ', '.join(found.present) or 'none'),
                   ('wanted', found.contract),
                   ('up to date', found.current), strict=True)


class DBCheck(lister.Lister):
    """Check the server, its schema and its settings.

    Ends with 2 when something is to be done.
    """

    def take_action(self, parsed_args):
        with _database(self.app) as engine:
            from glance_geo.db.cockroachdb import schema
            found = list(schema.check(engine))
        self._wrong = any(finding.advice for finding in found)
        return (('what', 'state', 'to do'),
                [(f.what, f.state, f.advice) for f in found])

    def run(self, parsed_args):
        code = super().run(parsed_args)
        sys.stdout.flush()
        return 2 if getattr(self, '_wrong', False) else code
