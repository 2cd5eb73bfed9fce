# SPDX-License-Identifier: Apache-2.0
"""Commands on authorities, sites and the agent."""

from pathlib import Path

from cliff import command, lister, show

from glance_geo import assembly
from glance_geo.conf import options
from glance_geo.core import errors
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
            if site in status['retired']:
                rows.append((site, 'retired', None, None, None))
            elif site == status['site']:
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


class SiteRetire(command.Command):
    """Release a site that leaves: nothing waits for it any more.

    Its agents are refused from then on, until it begins anew with
    "site bootstrap".
    """

    def get_parser(self, prog_name):
        parser = super().get_parser(prog_name)
        parser.add_argument('site', help='name of the site')
        parser.add_argument('--force', action='store_true',
                            help='also if it may have writes that are at no '
                                 'other site: they are given up')
        return parser

    def take_action(self, parsed_args):
        from glance_geo.replication import audit, membership
        conf = self.app.configuration()
        own = conf[options.GROUP].site_name
        records = assembly.records(conf)
        if not parsed_args.force:
            try:
                # What it has now, not what it had when it was last heard of.
                audit.gossip(records, assembly.peer(conf, parsed_args.site))
            except errors.Unreachable as error:
                raise errors.Unreachable(
                    f'{error}. It may have writes that are at no other site: '
                    f'bring its link up, or give them up with --force'
                ) from error
        membership.retire(records, parsed_args.site, own, parsed_args.force)
        self.app.stdout.write(
            f'Site {parsed_args.site} is retired. To take it back, run '
            f'"glance-geo site bootstrap --from {own}" there.\n')


class SiteBootstrap(show.ShowOne):
    """Begin this site's metadata anew from another site.

    For a new site, for one that was retired, or when its data can't be
    trusted. What is here is removed first; what no other site has is written
    to a file for review. Stop glance-api and the agent before.
    """

    def get_parser(self, prog_name):
        parser = super().get_parser(prog_name)
        parser.add_argument('--from', dest='source', required=True,
                            metavar='SITE', help='any site, of [glance_geo] '
                                                 'peers')
        parser.add_argument('--export', metavar='FILE',
                            default='unseen.geo', help='where to put what '
                            'only this site has (default: %(default)s)')
        return parser

    def take_action(self, parsed_args):
        from tqdm import tqdm

        from glance_geo.cmd import exchange
        from glance_geo.replication import bootstrap
        conf = self.app.configuration()
        assembly.refuse_running_agent(conf)
        records = assembly.records(conf)
        if records.replicates:
            raise errors.ConfigurationInvalid(
                'metadata_backend replicates by itself: there is nothing to '
                'bootstrap')
        peer = assembly.peer(conf, parsed_args.source)
        unseen = bootstrap.unseen(records, peer)
        if unseen:
            exchange.write(parsed_args.export, unseen, len(unseen))
            self.app.stderr.write(
                f'{len(unseen)} records that site {parsed_args.source} has '
                f'not seen are in {parsed_args.export}; "glance-geo metadata '
                f'import" takes them in again, if they should be.\n')
        records.engine.reset()
        records.renew_incarnation()
        with tqdm(unit='record', disable=None) as bar:
            def progress(done, total):
                bar.total = total
                bar.update(done - bar.n)
            found = bootstrap.run(records, peer, progress)
        return zip(*(('records', found.compared),
                     ('differing', found.merged + found.dropped),
                     ('set_aside', len(unseen)),
                     ('incarnation', records.incarnation)), strict=True)


class Audit(lister.Lister):
    """Compare this site's metadata with every peer's now, and heal it."""

    def take_action(self, parsed_args):
        found = assembly.local_agent(self.app.configuration()).call(
            '/audit', {})
        return ('Site', 'Compared', 'Merged', 'Removed', 'Error'), [
            (site, done.get('compared'), done.get('merged'),
             done.get('dropped'), done.get('error'))
            for site, done in sorted(found.items())]


class Sync(command.Command):
    """Make the agent exchange records with every peer now."""

    def take_action(self, parsed_args):
        assembly.local_agent(self.app.configuration()).call('/sync', {})


class MetadefsLoad(command.Command):
    """Load metadata definitions from JSON files; may be repeated."""

    def get_parser(self, prog_name):
        parser = super().get_parser(prog_name)
        parser.add_argument('--path', default='/etc/glance/metadefs',
                            metavar='DIR', help='folder of *.json files '
                                                '(default: %(default)s)')
        return parser

    def take_action(self, parsed_args):
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
                assembly.installed_data_api(conf), documents,
                lambda name: bar.update())
        self.app.stdout.write(
            f'{created} of {len(documents)} namespaces created; the others '
            f'were there already.\n')
