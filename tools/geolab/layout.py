# SPDX-License-Identifier: Apache-2.0
"""A site's files: its configuration as an operator would write it."""

import configparser
import dataclasses
import sys
from pathlib import Path

from geolab.processes import LabError

_CONF = """\
[DEFAULT]
# These two lines, and the section they name, are all that makes a stock
# Glance a geo-distributed one.
config_source = glance_geo
enabled_backends = {backends}
enabled_import_methods = [glance-direct,web-download,copy-image]
worker_self_reference_url = {endpoint}
use_stderr = true
{extra}

[glance_geo]
driver = glance_geo
site_name = {site}
metadata_backend = {metadata}
agent_socket = {folder}/run/agent.sock
listen = {listen}
peers = {peers}
ca_file = {folder}/etc/keys/ca.crt
cert_file = {folder}/etc/keys/site.crt
key_file = {folder}/etc/keys/site.key
location_keys_file = {folder}/etc/keys/location.keys
sync_interval = 2
peer_timeout = 5

[glance_store]
default_backend = {default}

{stores}
[os_glance_staging_store]
filesystem_store_datadir = {folder}/staging

[os_glance_tasks_store]
filesystem_store_datadir = {folder}/tasks

{database}[paste_deploy]
flavor = lab
config_file = {folder}/etc/glance-api-paste.ini
"""


_IPFS = """\
{prefix}ipfs_api = {{ipfs_api}}/http
{prefix}ipfs_auth_file = {{folder}}/etc/keys/ipfs.auth
{prefix}ipfs_timeout = {{ipfs_timeout:g}}
"""
_STORES = {
    'geo': """\
[geo]
geo_store_datadir = {folder}/chunks
store_description = Chunk store of site {site}
""",
    'file': """\
[file]
filesystem_store_datadir = {folder}/files
""",
    'swarm': """\
[swarm]
store_description = IPFS node of site {site}
""" + _IPFS.format(prefix='')}
_KINDS = {'geo': 'geo', 'file': 'file', 'swarm': 'ipfs'}


@dataclasses.dataclass(frozen=True)
class Stores:
    """Which stores every site has; the first takes uploads.

    :ivar names: of geo, file, swarm (a node of IPFS)
    :ivar chunks_in_ipfs: the geo store uses the node of IPFS too
    :ivar ipfs_timeout: seconds after which a block counts as missing
    :ivar prefer_ipfs: the geo store asks there before it asks other agents
    """

    names: tuple[str, ...] = ('geo',)
    chunks_in_ipfs: bool = False
    prefer_ipfs: bool = False
    ipfs_timeout: float = 5.0

    @property
    def uses_ipfs(self):
        return self.chunks_in_ipfs or 'swarm' in self.names

    @property
    def backends(self):
        return ','.join(f'{name}:{_KINDS[name]}' for name in self.names)

    def sections(self, **values):
        """Return the stores' sections."""
        parts = []
        for name in self.names:
            text = _STORES[name]
            if name == 'geo' and self.chunks_in_ipfs:
                text += _IPFS.format(
                    prefix='geo_') + f'geo_ipfs_prefer = {self.prefer_ipfs}\n'
            parts.append(text.format(ipfs_timeout=self.ipfs_timeout,
                                     **values))
        return '\n'.join(parts)


GEO = Stores()
SQL = 'sql+'
_CONVERT = """
[image_import_opts]
image_import_plugins = [image_conversion]

[image_conversion]
output_format = raw
"""


def shipped_paste():
    """Return the path of the paste file that Glance ships."""
    import glance
    for root in (Path(sys.prefix), Path(glance.__file__).parents[4],
                 Path('/')):
        path = root / 'etc' / 'glance' / 'glance-api-paste.ini'
        if path.exists():
            return path
    raise LabError('glance-api-paste.ini is not where Glance installs it')


def _write_paste(path):
    paste = configparser.ConfigParser(interpolation=None)
    paste.optionxform = str
    paste.read(shipped_paste())
    paste['composite:glance-api-lab'] = dict(
        paste['composite:glance-api'])
    paste['composite:api']['lab'] = (
        'cors http_proxy_to_wsgi versionnegotiation labtoken context rootapp')
    paste['filter:labtoken'] = {
        'paste.filter_factory': 'geolab.tokens:filter_factory'}
    with open(path, 'w') as file:
        paste.write(file)


def write_site(folder, site, endpoint, listen, peers, metadata, stores,
               ipfs_api, convert, extra):
    """Write a site's configuration.

    :param peers: {site: (host, port)}
    :param metadata: an engine's URL; ``sql+`` and SQLAlchemy's: Glance's own
        database
    :param convert: imported images become raw
    :param extra: more lines for ``[DEFAULT]``
    """
    for name in ('etc', 'run', 'log', 'staging', 'tasks'):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / 'run').chmod(0o750)
    (folder / 'etc' / 'glance-api.conf').write_text(_CONF.format(
        site=site, folder=folder, endpoint=endpoint, listen=listen,
        metadata='sql' if metadata.startswith(SQL) else metadata,
        database=(f'[database]\nconnection = {metadata.removeprefix(SQL)}'
                  '\n\n' if metadata.startswith(SQL) else ''),
        extra='\n'.join(extra),
        backends=stores.backends, default=stores.names[0],
        stores=stores.sections(folder=folder, site=site, ipfs_api=ipfs_api)
        + (_CONVERT if convert else ''),
        peers=','.join(f'{name}@{host}:{port}'
                       for name, (host, port) in peers.items())))
    _write_paste(folder / 'etc' / 'glance-api-paste.ini')
