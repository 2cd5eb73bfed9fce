# SPDX-License-Identifier: Apache-2.0
"""Commands on what several sites changed at the same time."""

import datetime
import json

from cliff import command, lister

from glance_geo import assembly
from glance_geo.core import births, clock, errors
from glance_geo.core.rules import conflicts
from glance_geo.db import rows, terms

_KINDS = births.CLAIMED


def _name(field):
    return field.removeprefix('prop:')


def _of(record):
    """Yield (field, site, value, written, state) of a record's conflicts."""
    if rows.is_aside(record):
        yield ('id', record.birth.site, record.extra['moved_from'],
               _time(record.birth.hlc), 'moved aside')
    for field, values in conflicts(record).items():
        for value in values:
            yield (_name(field), value['incarnation'].rpartition('.')[0],
                   rows.plain(value['value']), _time(value['hlc']),
                   'shown' if value['shown'] else 'kept')


def _time(hlc):
    return datetime.datetime.fromtimestamp(
        clock.milliseconds(hlc) / 1000, datetime.UTC).isoformat(
            timespec='seconds')


class ConflictsList(lister.Lister):
    """List what several sites changed at the same time."""

    def take_action(self, parsed_args):
        records = assembly.installed_data_api(
            self.app.configuration()).records
        return ('Kind', 'ID', 'Field', 'Site', 'Value', 'Written', 'State'), [
            (kind, record.id, *values)
            for kind in _KINDS for record in records.list(kind)
            if terms.gone_since(record) is None for values in _of(record)]


class _OnRecord:
    """The arguments that name a record."""

    def get_parser(self, prog_name):
        parser = super().get_parser(prog_name)
        parser.add_argument('id', metavar='ID', help='id of the image, or '
                                                     'name of the namespace')
        parser.add_argument('--kind', choices=_KINDS, default='image')
        return parser

    def _record(self, records, parsed_args):
        record = records.get(parsed_args.kind, parsed_args.id)
        if record is None or terms.gone_since(record) is not None:
            raise errors.ConfigurationInvalid(
                f'no {parsed_args.kind} {parsed_args.id}')
        return record


class ConflictsShow(_OnRecord, lister.Lister):
    """Show an image's conflicting values, the shown one first."""

    def take_action(self, parsed_args):
        records = assembly.installed_data_api(
            self.app.configuration()).records
        return (('Field', 'Site', 'Value', 'Written', 'State'),
                list(_of(self._record(records, parsed_args))))


class ConflictsResolve(_OnRecord, command.Command):
    """End a conflict: one value stays, at every site."""

    def get_parser(self, prog_name):
        parser = super().get_parser(prog_name)
        parser.add_argument('field', metavar='FIELD',
                            help='as "conflicts list" names it')
        which = parser.add_mutually_exclusive_group(required=True)
        which.add_argument('--keep', metavar='SITE',
                           help='keep the value written at this site')
        which.add_argument('--keep-shown', action='store_true',
                           help='keep the value that is shown now')
        which.add_argument('--value', metavar='JSON',
                           help='another value, as JSON')
        return parser

    def take_action(self, parsed_args):
        records = assembly.installed_data_api(
            self.app.configuration()).records
        record = self._record(records, parsed_args)
        if parsed_args.field == 'id' and rows.is_aside(record):
            change = {'accepted': True}     # it stays under its new id
        else:
            change = self._change(record, parsed_args)
        records.update(parsed_args.kind, parsed_args.id,
                       lambda present: change)
        self.app.stdout.write(f'{parsed_args.kind} {parsed_args.id}: '
                              f'{parsed_args.field} is settled.\n')

    @staticmethod
    def _change(record, parsed_args):
        found = {_name(field): (field, values)
                 for field, values in conflicts(record).items()}
        if parsed_args.field not in found:
            raise errors.ConfigurationInvalid(
                f'{parsed_args.kind} {parsed_args.id} has no conflict on '
                f'{parsed_args.field!r}; it has: '
                + (', '.join(sorted(found)) or 'none'))
        field, values = found[parsed_args.field]
        if parsed_args.value is not None:
            try:
                value = json.loads(parsed_args.value)
            except ValueError as error:
                raise errors.ConfigurationInvalid(
                    f'--value {parsed_args.value} is no JSON (text needs '
                    f'quotes: \'"text"\'): {error}') from error
            if field.startswith('prop:'):
                value = {'value': str(value), 'removed': False}
            return {field: value}
        if parsed_args.keep_shown:
            return {field: values[0]['value']}
        for value in values:
            if value['incarnation'].rpartition('.')[0] == parsed_args.keep:
                return {field: value['value']}
        raise errors.ConfigurationInvalid(
            f'no value of {parsed_args.field} was written at site '
            f'{parsed_args.keep}; sites: ' + ', '.join(sorted({
                value['incarnation'].rpartition('.')[0]
                for value in values})))
