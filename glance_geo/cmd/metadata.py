# SPDX-License-Identifier: Apache-2.0
"""Commands that move metadata: to and from files, engines, SQL."""

import contextlib

from cliff import show

from glance_geo import assembly
from glance_geo.cmd import exchange
from glance_geo.conf import options
from glance_geo.core import errors

_SHOWN = 10


def _bar(total, text):
    from tqdm import tqdm
    return tqdm(total=total, unit='record', desc=text, disable=None)


class _OnFile(show.ShowOne):
    """A command that takes a file."""

    def get_parser(self, prog_name):
        parser = super().get_parser(prog_name)
        parser.add_argument('file', metavar='FILE')
        return parser


class MetadataExport(_OnFile):
    """Write all metadata of this site to a file.

    The file holds every project's images: keep it private.
    """

    def take_action(self, parsed_args):
        records = assembly.installed_data_api(
            self.app.configuration()).records
        total = sum(1 for _ in records.everything())
        with _bar(total, 'export') as bar:
            def counted():
                for record in records.everything():
                    bar.update()
                    yield record
            exchange.write(parsed_args.file, counted(), total)
        return ('file', 'records'), (parsed_args.file, total)


class MetadataImport(_OnFile):
    """Merge the metadata of a file into this site; may be repeated."""

    def take_action(self, parsed_args):
        records = assembly.installed_data_api(
            self.app.configuration()).records
        total, found = exchange.read(parsed_args.file)
        read = changed = 0
        with _bar(total, 'import') as bar:
            for record in found:
                changed += records.absorb(record)
                read += 1
                bar.update()
        records.changed()
        return ('records', 'changed'), (read, changed)


class MetadataMigrate(show.ShowOne):
    """Copy metadata from one place to another, and compare both.

    Between any two engines (with conflicts and history), or from the SQL
    database of a Glance (postgresql+psycopg2://…, mysql+pymysql://…,
    sql+sqlite:////path). May be cut off and repeated. Stop what writes to
    either side before.
    """

    def get_parser(self, prog_name):
        parser = super().get_parser(prog_name)
        parser.add_argument('--from', dest='source', required=True,
                            metavar='URL')
        parser.add_argument('--to', dest='target', metavar='URL',
                            help='default: [glance_geo] metadata_backend')
        parser.add_argument('--verify-only', action='store_true',
                            help='copy nothing, compare')
        return parser

    def take_action(self, parsed_args):
        conf = self.app.configuration()
        with contextlib.ExitStack() as opened:
            source = opened.enter_context(
                assembly.metadata_source(conf, parsed_args.source))
            target = opened.enter_context(assembly.metadata_target(
                conf, parsed_args.target
                or conf[options.GROUP].metadata_backend))
            total, changed = source.count(), 0
            if not parsed_args.verify_only:
                with _bar(total, 'copy') as bar:
                    changed = source.copy_to(target, bar.update)
            with _bar(total, 'verify') as bar:
                differing = list(source.differing(target, bar.update))
        if differing:
            raise errors.MigrationIncomplete(
                f'{len(differing)} of {total} records differ: '
                + ', '.join(differing[:_SHOWN])
                + (', …' if len(differing) > _SHOWN else '')
                + '. If nothing else writes there, run the command again')
        return ('records', 'copied', 'differing'), (total, changed, 0)
