# SPDX-License-Identifier: Apache-2.0
"""Commands on authorities, sites and the agent."""

from pathlib import Path

from cliff import command, lister, show

from glance_geo import assembly
from glance_geo.conf import options
from glance_geo.core import errors
from glance_geo.core.rules import shown
from glance_geo.replication import identity


class CAInit(command.Command):
    """Make the authority that signs the sites' certificates.

    Keep its folder where only you can read it; sites never need it.
    """

    def get_parser(self, prog_name):
        parser = super().get_parser(prog_name)
        parser.add_argument('--dir', required=True, metavar='DIR',
                            help='folder to make (ca.key, ca.crt, '
                                 'location.keys)')
        return parser

    def take_action(self, parsed_args):
        folder = Path(parsed_args.dir)
        identity.create_authority(folder)
        self.app.stdout.write(
            f'Made an authority in {folder}. Keep ca.key private; it signs '
            f'with "glance-geo site init --ca-dir {folder}".\n')


class SiteInit(command.Command):
    """Make a node's key and certificate, signed by the authority."""

    def get_parser(self, prog_name):
        parser = super().get_parser(prog_name)
        parser.add_argument('site', help='name of the site')
        parser.add_argument('--node', help='name of the node (default: the '
                                           "site's name)")
        parser.add_argument('--ca-dir', required=True, metavar='DIR',
                            help='the folder that "ca init" made')
        parser.add_argument('--dir', default='/etc/glance-geo', metavar='DIR',
                            help='where to put the files (default: '
                                 '%(default)s)')
        parser.add_argument('--address', action='append', required=True,
                            metavar='HOST', help='host name or IP address at '
                            'which other sites reach the agent (repeatable)')
        parser.add_argument('--overwrite', action='store_true',
                            help='replace keys that are there')
        return parser

    def take_action(self, parsed_args):
        for name in (parsed_args.site, parsed_args.node):
            if name is not None and not options._NAME.fullmatch(name):
                raise errors.ConfigurationInvalid(
                    f'{name!r}: use lower-case letters, digits and hyphens')
        folder = Path(parsed_args.dir)
        identity.create_node(
            Path(parsed_args.ca_dir), folder, parsed_args.site,
            parsed_args.node or parsed_args.site, parsed_args.address,
            parsed_args.overwrite)
        self.app.stdout.write(
            f'Made {folder}/site.key, site.crt, ca.crt and location.keys '
            f'for site {parsed_args.site}. Move the folder to the node; let '
            f'the user that runs glance-api and the agent read it.\n')


class SiteList(lister.Lister):
    """List the sites, and how this node reaches them."""

    def take_action(self, parsed_args):
        conf = self.app.configuration()
        status = assembly.local_agent(conf).call('/status', {})
        peers = {peer['site']: peer for peer in status['peers']}
        rows = []
        for site in status['sites']:
            peer = peers.get(site)
            if site == status['site']:
                rows.append((site, 'this site', None, None, None))
            elif peer is None:
                rows.append((site, 'not a peer', None, None, None))
            else:
                state = {True: 'reachable', False: 'unreachable'}.get(
                    peer['reachable'], 'not tried yet')
                rows.append((site, state, peer['rtt_ms'],
                             peer['last_sync_seconds_ago'], peer['error']))
        return ('Site', 'State', 'RTT ms', 'Synced s ago', 'Error'), rows


class Status(show.ShowOne):
    """Show what this node's agent does."""

    def take_action(self, parsed_args):
        conf = self.app.configuration()
        status = assembly.local_agent(conf).call('/status', {})
        status['unreachable'] = ', '.join(
            f'{peer["site"]}: {peer["error"]}' for peer in status['peers']
            if peer['reachable'] is False) or None
        return zip(*sorted(status.items()), strict=True)


class Sync(command.Command):
    """Make the agent exchange records with every peer now."""

    def take_action(self, parsed_args):
        assembly.local_agent(self.app.configuration()).call('/sync', {})


class StoreCollect(show.ShowOne):
    """Remove chunks that no image refers to."""

    def take_action(self, parsed_args):
        conf = self.app.configuration()
        collected = assembly.local_agent(conf).call('/collect', {})
        return zip(*sorted(collected.items()), strict=True)


class StoreShow(show.ShowOne):
    """Show what this node's chunk store holds."""

    def take_action(self, parsed_args):
        conf = self.app.configuration()
        store = assembly.chunk_store(conf)
        try:
            chunks, raw, stored = store.index.totals()
            packs = store.pack_files()
            images = {image for image, _ in store.copies()}
            return zip(*(
                ('folder', str(store.folder)), ('images', len(images)),
                ('chunks', chunks), ('unique_bytes', raw),
                ('stored_bytes', stored), ('packs', len(packs)),
                ('pack_bytes', sum(p.stat().st_size for p in packs))),
                strict=True)
        finally:
            store.close()


class MetadefsLoad(command.Command):
    """Load metadata definitions from JSON files; may be repeated."""

    def get_parser(self, prog_name):
        parser = super().get_parser(prog_name)
        parser.add_argument('--path', default='/etc/glance/metadefs',
                            metavar='DIR', help='folder of *.json files '
                                                '(default: %(default)s)')
        return parser

    def take_action(self, parsed_args):
        from glance.context import RequestContext
        from tqdm import tqdm

        from glance_geo.db import metadeffiles
        conf = self.app.configuration()
        try:
            documents = metadeffiles.read(Path(parsed_args.path))
        except (OSError, ValueError) as error:
            raise errors.ConfigurationInvalid(str(error)) from error
        if not documents:
            raise errors.ConfigurationInvalid(
                f'{parsed_args.path} holds no *.json files')
        with tqdm(total=len(documents), unit='namespace',
                  disable=None) as bar:
            created = metadeffiles.load(
                assembly.installed_data_api(conf),
                RequestContext(is_admin=True), documents,
                lambda name: bar.update())
        self.app.stdout.write(
            f'{created} of {len(documents)} namespaces created; the others '
            f'were there already.\n')


class ConflictsList(lister.Lister):
    """List the fields that several sites changed at the same time."""

    def take_action(self, parsed_args):
        from glance_geo.core.rules import conflicts
        conf = self.app.configuration()
        records = assembly.installed_data_api(conf).records
        rows = []
        for kind in ('image', 'namespace'):
            for record in records.list(kind):
                if (shown(record).get('deletion') or {}).get('deleted'):
                    continue
                moved = record.extra.get('moved_from')
                if moved:
                    rows.append((kind, record.id, 'id', record.birth.site,
                                 moved, 'moved aside'))
                for field, values in conflicts(record).items():
                    for value in values:
                        data = value['value']
                        if isinstance(data, dict) and 'value' in data:
                            data = ('(removed)' if data.get('removed')
                                    else data['value'])
                        rows.append((
                            kind, record.id, field.removeprefix('prop:'),
                            value['incarnation'].rpartition('.')[0], data,
                            'shown' if value['shown'] else 'kept'))
        return ('Kind', 'ID', 'Field', 'Site', 'Value', 'State'), rows
