# SPDX-License-Identifier: Apache-2.0
"""Commands on Glance's SQL database, where that is a CockroachDB."""

import logging
import sys
from contextlib import contextmanager

from cliff import command, lister, show

from glance_geo import assembly
from glance_geo.assembly import sql
from glance_geo.core import errors


@contextmanager
def _database(app):
    """Open the configured database; say in one line why it can't be."""
    from oslo_db import exception
    from sqlalchemy.exc import ArgumentError
    engine = None
    # It says that URLs might name their driver, and shows where an error
    # that we tell in a line came from.
    for noisy in ('engines', 'exc_filters'):
        logging.getLogger(f'oslo_db.sqlalchemy.{noisy}').setLevel(
            logging.ERROR)
    try:
        engine = sql.engine(app.configuration())
        yield engine
    except (exception.DBError, ArgumentError) as error:
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
            # The agents' tables too: their user may not make any.
            assembly.sql_records_tables(self.app.configuration())
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


class _Locality(lister.Lister):
    """What both commands take."""

    def get_parser(self, prog_name):
        parser = super().get_parser(prog_name)
        parser.add_argument(
            '--primary', metavar='REGION',
            help='where writes are decided (default: the first)')
        parser.add_argument(
            '--near', action='store_true',
            help='a replica to read in every region, for '
                 'sql_follower_reads')
        return parser

    @staticmethod
    def _plan(engine, parsed_args, regions=None):
        import sqlalchemy as sa

        from glance_geo.db.cockroachdb import locality
        if regions is None:
            with engine.connect() as connection:
                regions = list(connection.execute(
                    sa.text(locality.READ_REGIONS)).scalars())
        return locality.plan(engine.url.database, regions,
                             parsed_args.primary, parsed_args.near)


class DBLocalityPlan(_Locality):
    """Show how the database would be placed over the cluster's regions.

    ``db locality apply`` carries out what needs no licence. The rest is for
    clusters whose version and licence allow multi-region SQL.
    """

    def get_parser(self, prog_name):
        parser = super().get_parser(prog_name)
        parser.add_argument(
            '--regions', metavar='A,B,…',
            help='plan for these, without asking the cluster')
        return parser

    def take_action(self, parsed_args):
        given = parsed_args.regions
        with _database(self.app) as engine:
            steps = self._plan(engine, parsed_args, None if given is None
                               else [r for r in given.split(',') if r])
        return (('statement', 'why', 'needs a licence'),
                [(step.statement, step.why, step.licensed)
                 for step in steps])


class DBLocalityApply(_Locality):
    """Place the database over the cluster's regions.

    By zone configurations and lease preferences, which need no licence. May
    be repeated, also after regions were added.
    """

    def take_action(self, parsed_args):
        done = []
        with _database(self.app) as engine:
            for step in self._plan(engine, parsed_args):
                if not step.licensed:
                    with engine.connect() as connection:
                        connection.exec_driver_sql(step.statement)
                        connection.commit()
                    done.append((step.statement, step.why))
        return ('applied', 'why'), done
