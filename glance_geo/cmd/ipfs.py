# SPDX-License-Identifier: Apache-2.0
"""Commands on this site's node of IPFS."""

import json
import os
import shutil
import subprocess
from pathlib import Path

from cliff import lister, show

from glance_geo import assembly
from glance_geo.assembly import swarm
from glance_geo.conf import options
from glance_geo.core import errors
from glance_geo.core.settling import COPY


def _kubo(name: str | None) -> str:
    found = shutil.which(name or 'ipfs')
    if found is None:
        raise errors.ConfigurationInvalid(
            f'{name or "ipfs"} is not there: install Kubo, or name the '
            f'program with --ipfs')
    return found


def _with_http(api: str | list[str]) -> str:
    """Return an address of the RPC as ``ipfs_api`` takes it."""
    first = api if isinstance(api, str) else api[0]
    return first if first.startswith('/unix/') else f'{first}/http'


def _write(path: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    new = path.with_name(f'{path.name}.new')
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
              'w') as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


class IPFSInit(show.ShowOne):
    """Make, or change, a Kubo that talks to this operator's sites only.

    Run it at each site with the same swarm key; then again with a --peer for
    each other site. It prints what to pass to the others, and how to start
    the node.
    """

    def get_parser(self, prog_name):
        parser = super().get_parser(prog_name)
        parser.add_argument('--repo', metavar='DIR', default=os.environ.get(
            'IPFS_PATH', '/var/lib/ipfs'),
            help='folder of the node (default: %(default)s)')
        parser.add_argument('--swarm-key', metavar='FILE', help='key of the '
                            'private network, the same at every site; '
                            'copied into the folder')
        parser.add_argument('--new-swarm-key', action='store_true',
                            help='make a key; print where it is')
        parser.add_argument('--api', metavar='MULTIADDR',
                            help='where the RPC is (default: as it is, or '
                                 '/ip4/127.0.0.1/tcp/5001)')
        parser.add_argument('--listen', metavar='MULTIADDR', action='append',
                            help='where other nodes reach this one; may be '
                                 'repeated (default: as it is, or '
                                 '/ip4/0.0.0.0/tcp/4001)')
        parser.add_argument('--announce', metavar='MULTIADDR',
                            action='append', help='what other nodes are told '
                            'instead; "none": nothing, they know what their '
                            'own --peer says')
        parser.add_argument('--peer', metavar='MULTIADDR', action='append',
                            default=[], help='another site\'s node, as '
                            '/ip4/…/tcp/…/p2p/<id>; may be repeated, and '
                            'added later')
        parser.add_argument('--auth-file', metavar='FILE',
                            help='for ipfs_auth_file: the secret that the '
                                 'RPC wants from then on; made if it is not '
                                 'there')
        parser.add_argument('--storage-max', metavar='SIZE',
                            help='what the repository may take, such as '
                                 '500GB (default: Kubo\'s own, 10GB)')
        parser.add_argument('--ipfs', metavar='PATH',
                            help='the program (default: ipfs in $PATH)')
        return parser

    def take_action(self, parsed_args):
        from glance_geo.store.ipfs import configuration
        repo = Path(parsed_args.repo).absolute()
        peers = dict(configuration.peer(text) for text in parsed_args.peer)
        program = _kubo(parsed_args.ipfs)
        config = repo / 'config'
        self._key(configuration, repo, parsed_args)
        if config.exists():
            self.app.stderr.write('A node that runs reads its configuration '
                                  'when it is started again.\n')
        else:
            done = subprocess.run(
                [program, 'init', '--empty-repo'], capture_output=True,
                text=True, env={**os.environ, 'IPFS_PATH': str(repo)})
            if done.returncode:
                raise errors.ConfigurationInvalid(
                    f'{program} init: {done.stderr.strip()}')
        announce = parsed_args.announce
        made = configuration.private(
            json.loads(config.read_text()), parsed_args.api,
            parsed_args.listen,
            [] if announce == ['none'] else announce, peers,
            self._secret(configuration, parsed_args.auth_file),
            parsed_args.storage_max)
        _write(config, json.dumps(made, indent=2))
        name = made['Identity']['PeerID']
        return zip(*(
            ('peer_id', name),
            ('peers', [its['ID'] for its in made['Peering']['Peers']]),
            ('listen', [f'{address}/p2p/{name}'
                        for address in made['Addresses']['Swarm']]),
            ('repo', str(repo)), ('swarm_key', str(repo / 'swarm.key')),
            ('ipfs_api', _with_http(made['Addresses']['API'])),
            ('start', f'IPFS_PATH={repo} LIBP2P_FORCE_PNET=1 '
                      f'IPFS_TELEMETRY=off {program} daemon')), strict=True)

    @staticmethod
    def _key(configuration, repo, parsed_args):
        target = repo / 'swarm.key'
        repo.mkdir(parents=True, exist_ok=True, mode=0o700)
        if parsed_args.swarm_key:
            try:
                text = Path(parsed_args.swarm_key).read_text()
            except OSError as error:
                raise errors.ConfigurationInvalid(
                    f'--swarm-key {parsed_args.swarm_key}: '
                    f'{error.strerror}') from error
            if not text.startswith('/key/swarm/psk/1.0.0/'):
                raise errors.ConfigurationInvalid(
                    f'--swarm-key {parsed_args.swarm_key}: not a swarm key')
            if not (target.exists() and target.samefile(
                    parsed_args.swarm_key)):
                _write(target, text)
        elif parsed_args.new_swarm_key:
            if target.exists():
                raise errors.ConfigurationInvalid(
                    f'{target} is there already: leave --new-swarm-key out')
            _write(target, configuration.swarm_key())
        elif not target.exists():
            raise errors.ConfigurationInvalid(
                'a private network needs a key: at the first site '
                '--new-swarm-key, at the others --swarm-key with a copy of '
                'that')

    @staticmethod
    def _secret(configuration, path):
        if not path:
            return ''
        if not Path(path).exists():
            _write(Path(path), configuration.bearer() + '\n')
        return Path(path).read_text().strip()


def _stores(conf):
    """Yield (store, type, its node) of those that use IPFS."""
    files, geo = options.ipfs_store(conf), options.geo_store(conf)
    if files is not None:
        yield files, 'ipfs', swarm.node(conf, files)
    if geo is not None and conf[geo].geo_ipfs_api:
        yield geo, 'geo', swarm.node(conf, geo)
    if files is None and (geo is None or not conf[geo].geo_ipfs_api):
        raise errors.ConfigurationInvalid(
            'no store of this site uses IPFS: enabled_backends names none '
            'of type ipfs, and the geo store has no geo_ipfs_api')


class IPFSShow(lister.Lister):
    """Show what this site keeps at its node of IPFS, and for which image."""

    def take_action(self, parsed_args):
        from glance_geo.store.ipfs.references import PinReferences
        conf = self.app.configuration()
        rows = []
        for store, kind, node in _stores(conf):
            refs = PinReferences(node, store)
            pinned, asked = node.pins(), set(refs.asked())
            for ref in refs.all():
                rows.append((
                    store, ref.image, ref.cid,
                    'published' if kind == 'geo' else 'copy'
                    if ref.nonce == COPY else 'uploaded here',
                    ref.cid in pinned, ref in asked))
        return ('Store', 'Image', 'CID', 'Why', 'Pinned',
                'Deletion asked'), sorted(rows)


class IPFSCollect(lister.Lister):
    """Let this site's node of IPFS remove what is not pinned, now.

    What no image refers to any more is unpinned before, if the agent runs.
    """

    def take_action(self, parsed_args):
        conf = self.app.configuration()
        stores = list(_stores(conf))
        try:
            assembly.local_agent(conf).call('/pins', {})
        except errors.Unreachable as error:
            self.app.stderr.write(f'{error}: nothing was unpinned\n')
        rows, seen = [], set()
        for _, _, node in stores:
            if node.address in seen:
                continue
            seen.add(node.address)
            before, _ = node.space()
            blocks = node.collect()
            rows.append((node.address, blocks, before - node.space()[0]))
        return ('Node', 'Blocks removed', 'Bytes freed'), rows
