# SPDX-License-Identifier: Apache-2.0
"""Every option of glance_geo, its checks, and what follows from it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oslo_config import cfg

from glance_geo.core import errors

GROUP = 'glance_geo'
SQL = 'sql'
"""The ``metadata_backend`` that is Glance's own database."""
_NAME = re.compile(r'[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?')
_PEER = re.compile(r'([a-z0-9-]+)@(\[[0-9a-fA-F:]+\]|[^:/\s]+):(\d+)')

driver_opt = cfg.StrOpt(
    'driver', sample_default='glance_geo',
    help='Must be ``glance_geo``. It makes oslo.config load this package '
         'when Glance reads ``[DEFAULT] config_source = glance_geo``.')

site_opts = [
    cfg.StrOpt(
        'site_name', sample_default='paris',
        help='Name of the site that this node belongs to: lower-case '
             'letters, digits and hyphens, unique among all sites. Required.'),
    cfg.StrOpt(
        'node_name',
        help='Name of this node, unique within the site. Default: the '
             'site\'s name, which fits a site of one node.'),
    cfg.StrOpt(
        'metadata_backend',
        default='sqlite:////var/lib/glance-geo/metadata.db',
        secret=True,
        help='Where metadata lives. The scheme picks the engine: '
             '``sqlite:////path`` (embedded, one node), '
             '``redis://[user:password@]host``, '
             '``redis+sentinel://host,host/master``, '
             '``redis+cluster://host,host`` (``rediss`` for TLS), '
             '``riak://host,host/bucket?type=…``, '
             '``cockroachdb+psycopg2://…`` or ``memory://`` (tests). '
             'The operator guide has their options. ``sql`` leaves metadata '
             'to Glance\'s own database; on CockroachDB that is supported.'),
    cfg.FloatOpt(
        'sql_retry_time', default=15.0, min=0,
        help='With ``metadata_backend = sql`` on CockroachDB: seconds for '
             'which a transaction is repeated that lost against others, or '
             'whose connection was lost, before a request answers 503.'),
    cfg.FloatOpt(
        'sql_statement_timeout', default=10.0, min=0,
        help='Seconds after which a statement without an answer is given up: '
             'a cluster without a quorum answers nothing. 0: never. Changes '
             'of the schema are not limited.'),
    cfg.BoolOpt(
        'sql_follower_reads', default=False,
        help='Let lists of images and metadata definitions read the nearest '
             'replica, as it was some seconds ago. What was just created may '
             'be missing in them.'),
    cfg.StrOpt(
        'agent_socket', default='/run/glance-geo/agent.sock',
        help='Unix socket on which this node\'s glance-geo-agent serves '
             'glance-api.'),
    cfg.StrOpt(
        'location_keys_file', default='/etc/glance-geo/location.keys',
        help='File with the keys that sign image locations: one '
             '``<key id> <64 hex digits>`` per line, the same at every site. '
             'The first signs, all are accepted.'),
]

agent_opts = [
    cfg.StrOpt(
        'listen', default='0.0.0.0:9494',
        help='``address:port`` on which the agent serves other nodes, over '
             'mutual TLS.'),
    cfg.ListOpt(
        'peers', default=[],
        sample_default='paris@10.0.1.1:9494,rennes@10.0.2.1:9494',
        help='The agents of the other sites, as ``site@host:port``, '
             'separated by commas. This node\'s own entry is ignored, so '
             'that all sites can share one list.'),
    cfg.StrOpt(
        'ca_file', default='/etc/glance-geo/ca.crt',
        help='Certificate of the authority that signs the sites\' '
             'certificates.'),
    cfg.StrOpt(
        'cert_file', default='/etc/glance-geo/site.crt',
        help='This node\'s certificate, as ``glance-geo site init`` '
             'makes it.'),
    cfg.StrOpt(
        'key_file', default='/etc/glance-geo/site.key',
        help='Private key of this node\'s certificate.'),
    cfg.FloatOpt(
        'sync_interval', default=10.0, min=0.1,
        help='Seconds between exchanges of metadata with each peer. Hints '
             'after writes make them prompt; this is the upper bound when '
             'hints are lost.'),
    cfg.FloatOpt(
        'peer_timeout', default=10.0, min=0.1,
        help='Seconds without an answer after which a peer counts as '
             'unreachable.'),
    cfg.FloatOpt(
        'audit_interval', default=3600.0, min=0,
        help='Seconds between audits of the metadata with each peer: both '
             'sites\' digests over all records are compared, and what '
             'differs is brought together. 0: none.'),
    cfg.FloatOpt(
        'tombstone_interval', default=60.0, min=0.1,
        help='Seconds between looks for deleted records that every site has '
             'passed, which can be forgotten.'),
    cfg.FloatOpt(
        'geo_trash_days', default=7.0, min=0,
        help='Days for which a deleted record is kept at least, and for '
             'which the bits of an image stay whose deletion met a change '
             'that it had not seen.'),
    cfg.StrOpt(
        'metrics_listen', default='', sample_default='127.0.0.1:9495',
        help='``address:port`` on which the agent serves metrics to '
             'Prometheus, without authentication. Empty: none.'),
    cfg.IntOpt(
        'collect_interval', default=600, min=1,
        help='Seconds between collections of chunks that nothing refers to.'),
]

store_opts = [
    cfg.StrOpt(
        'geo_store_datadir', sample_default='/var/lib/glance-geo/chunks',
        help='Folder of this node\'s chunk store, on a local file system, '
             'which no other store uses. Glance and the agent must both be '
             'able to write to it. Required.'),
    cfg.StrOpt(
        'geo_dedup_scope', default='project',
        choices=[('project', 'a project\'s own images and public ones'),
                 ('site', 'all images of the site')],
        help='Among which images equal chunks are stored and fetched once. '
             'With ``site``, how long an upload takes can tell a project '
             'whether another one has the same bytes.'),
    cfg.IntOpt(
        'geo_store_size_limit', default=0, min=0,
        help='MiB that the packs of the store may take; 0: all of the disk '
             'but a reserve. When they take more than nine tenths of it, the '
             'agent evicts copies that placement does not want here, the '
             'least recently read first, each once another site has promised '
             'to keep its own.'),
    cfg.FloatOpt(
        'geo_compact_rate', default=32.0, min=0,
        help='MiB that the agent copies in a second when it rewrites packs '
             'that are partly dead; 0: as fast as the disk goes.'),
]


def _node_opts(prefix: str, address: str, use: str) -> list[Any]:
    """Return the options that say which node of IPFS a store uses.

    :param prefix: glance_store registers all drivers' options in one group,
        where those of two must not have one name
    """
    return [
        cfg.StrOpt(
            f'{prefix}ipfs_api', default=address,
            sample_default='/ip4/127.0.0.1/tcp/5001/http',
            help='Address of the RPC of this site\'s node of IPFS (Kubo), as '
                 'a multiaddr: ``/ip4/127.0.0.1/tcp/5001/http``, '
                 '``/dns/host/tcp/443/https`` or '
                 f'``/unix/run/ipfs/api.sock``. {use}'),
        cfg.StrOpt(
            f'{prefix}ipfs_auth_file', default='',
            sample_default='/etc/glance-geo/ipfs.auth',
            help='File with what the RPC wants: ``basic:<user>:<password>`` '
                 'or ``bearer:<token>``, as in the node\'s '
                 '``API.Authorizations``. Empty: nothing.'),
        cfg.StrOpt(
            f'{prefix}ipfs_ca_file', default='',
            help='Certificate of the authority of an https node. Empty: the '
                 'system\'s.'),
        cfg.FloatOpt(
            f'{prefix}ipfs_timeout', default=30.0, min=1.0,
            help='Seconds after which a block that nobody gives counts as '
                 'missing, and a node that does not answer as down.'),
    ]


ipfs_opts = _node_opts('', '/ip4/127.0.0.1/tcp/5001/http',
                       'The images are kept there.')
store_opts += [
    *_node_opts('geo_', '',
                'With it, chunks can come from the swarm beside other sites\' '
                'agents. Empty: no IPFS.'),
    cfg.BoolOpt(
        'geo_ipfs_publish', default=True,
        help='With ``geo_ipfs_api``: offer the chunks of the images that this '
             'site holds whole, and whose placement lets every site have '
             'them, to the swarm. They are kept once more there, not '
             'compressed.'),
    cfg.BoolOpt(
        'geo_ipfs_prefer', default=False,
        help='With ``geo_ipfs_api``: ask the swarm for missing chunks before '
             'other sites\' agents, not after them.'),
]


# Glance's own options, for the sample alone: never registered.
_glance_opts = [
    cfg.ListOpt('config_source', sample_default='glance_geo',
                help='Makes Glance load this package. Required.'),
    cfg.DictOpt('enabled_backends', sample_default='geo:geo',
                help='The stores of this site. The geo store has the same '
                     'name at every site. Required.'),
    cfg.ListOpt('enabled_import_methods', bounds=True,
                sample_default='[glance-direct,web-download,copy-image]',
                help='How images may be imported.'),
    cfg.StrOpt('worker_self_reference_url',
               sample_default='http://<this node>:9292',
               help='Where this node\'s glance-api is reached.'),
]
_default_store_opts = [
    cfg.StrOpt('default_backend', sample_default='geo',
               help='The store that takes uploads. Required.')]


def _folder_opts(name: str) -> list[Any]:
    return [cfg.StrOpt('filesystem_store_datadir',
                       sample_default=f'/var/lib/glance/{name}',
                       help=f'Folder that Glance uses for {name}.')]


def list_opts() -> list[tuple[str, list[Any]]]:
    """Return the options for oslo-config-generator.

    With those of Glance's own that a site must set: the sample is a whole
    site's, to be filled in.
    """
    return [('DEFAULT', _glance_opts), (GROUP, [
        driver_opt, *site_opts, *agent_opts]),
        ('glance_store', _default_store_opts), ('geo', store_opts),
        ('swarm', ipfs_opts),
        ('os_glance_staging_store', _folder_opts('staging')),
        ('os_glance_tasks_store', _folder_opts('tasks'))]


def register(conf: cfg.ConfigOpts) -> None:
    """Register ``[glance_geo]``; may be repeated."""
    conf.register_opts([*site_opts, *agent_opts], group=GROUP)


def check_site(conf: cfg.ConfigOpts) -> None:
    """Check what every process of a node needs.

    :raises ConfigurationInvalid: naming the option
    """
    group = conf[GROUP]
    for name in ('site_name', 'node_name'):
        value = group[name]
        if name == 'node_name' and not value:
            continue
        if not value:
            raise errors.ConfigurationInvalid(
                f'[{GROUP}] {name} is not set: give this site a name')
        if not _NAME.fullmatch(value):
            raise errors.ConfigurationInvalid(
                f'[{GROUP}] {name} = {value!r}: use lower-case letters, '
                f'digits and hyphens (32 at most)')


def node_name(conf: cfg.ConfigOpts) -> str:
    """Return the node's name, unique among all sites."""
    group = conf[GROUP]
    return f'{group.site_name}/{group.node_name or group.site_name}'


def peers(conf: cfg.ConfigOpts) -> list[tuple[str, str, int]]:
    """Return (site, host, port) of the other nodes' agents.

    :raises ConfigurationInvalid: an entry does not parse
    """
    own = conf[GROUP].site_name
    found = []
    for entry in conf[GROUP].peers:
        match = _PEER.fullmatch(entry.strip())
        if match is None:
            raise errors.ConfigurationInvalid(
                f'[{GROUP}] peers: {entry!r} is not site@host:port')
        if match[1] != own:
            found.append((match[1], match[2].strip('[]'), int(match[3])))
    return found


def address(conf: cfg.ConfigOpts, option: str) -> tuple[str, int]:
    """Return the (host, port) that an option holds.

    :raises ConfigurationInvalid: not host:port
    """
    text = conf[GROUP][option]
    host, colon, port = text.rpartition(':')
    if not colon or not port.isdigit():
        raise errors.ConfigurationInvalid(
            f'[{GROUP}] {option} = {text!r} is not address:port')
    return host.strip('[]'), int(port)


def location_keys(conf: cfg.ConfigOpts) -> dict[str, bytes]:
    """Return the keys that sign and check locations, the signing one first.

    :raises ConfigurationInvalid: missing or malformed; no key is shown
    """
    path = conf[GROUP].location_keys_file
    try:
        lines = Path(path).read_text().splitlines()
    except OSError as error:
        raise errors.ConfigurationInvalid(
            f'[{GROUP}] location_keys_file {path}: {error.strerror}; '
            f'"glance-geo site init" installs it') from error
    keys: dict[str, bytes] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith('#'):
            continue
        try:
            key_id, key = line.split()
            keys[key_id] = bytes.fromhex(key)
            if len(keys[key_id]) != 32:
                raise ValueError
        except ValueError:
            raise errors.ConfigurationInvalid(
                f'{path}, line {number}: expected "<key id> <64 hex '
                f'digits>"') from None
    if not keys:
        raise errors.ConfigurationInvalid(f'{path} holds no key')
    return keys


def signing_key(keys: Mapping[str, bytes]) -> tuple[str, bytes]:
    """Return the key that signs new locations."""
    return next(iter(keys.items()))


def _only_store(conf: cfg.ConfigOpts, kind: str,
                opts: list[Any]) -> str | None:
    """Return the name of the node's store of a type, if it has one.

    :raises ConfigurationInvalid: it has several
    """
    backends: Any = conf.enabled_backends or {}
    names = [name for name, its in backends.items() if its == kind]
    if len(names) > 1:
        raise errors.ConfigurationInvalid(
            f'enabled_backends names several stores of type {kind}: a node '
            f'has one')
    if not names:
        return None
    conf.register_opts(opts, group=names[0])
    return names[0]


def geo_store(conf: cfg.ConfigOpts) -> str | None:
    """Return the node's geo store; raises as ``_only_store``."""
    return _only_store(conf, 'geo', store_opts)


def ipfs_store(conf: cfg.ConfigOpts) -> str | None:
    """Return the node's ipfs store; raises as ``_only_store``."""
    return _only_store(conf, 'ipfs', ipfs_opts)


def ipfs_node(conf: cfg.ConfigOpts, store: str,
              ) -> tuple[str, str, str, float]:
    """Return (address, secret, authority's file, time limit in seconds) of
    the node of IPFS that a store uses; the address is '' where it uses none.

    :raises ConfigurationInvalid: a file can't be read; no secret is shown
    """
    prefix = 'geo_' if store == geo_store(conf) else ''
    group = conf[store]
    path, secret = group[f'{prefix}ipfs_auth_file'], ''
    if path:
        try:
            secret = Path(path).read_text().strip()
        except OSError as error:
            raise errors.ConfigurationInvalid(
                f'[{store}] {prefix}ipfs_auth_file {path}: {error.strerror}'
            ) from error
    return (group[f'{prefix}ipfs_api'], secret,
            group[f'{prefix}ipfs_ca_file'], group[f'{prefix}ipfs_timeout'])


def store_folder(conf: cfg.ConfigOpts) -> tuple[str, str]:
    """Return (store name, folder) of the node's geo store.

    :raises ConfigurationInvalid: there is none, or it has no folder
    """
    name = geo_store(conf)
    if name is None:
        raise errors.ConfigurationInvalid(
            'enabled_backends must name one store of type geo, such as '
            'enabled_backends = geo:geo')
    folder = conf[name].geo_store_datadir
    if not folder:
        raise errors.ConfigurationInvalid(
            f'[{name}] geo_store_datadir is not set')
    return name, folder


def store_owner(conf: cfg.ConfigOpts, store: str) -> str:
    """Return what the folder of a geo store is marked with."""
    register(conf)
    return f'{store} at {node_name(conf)}'


def store_limit(conf: cfg.ConfigOpts, store: str) -> int:
    """Return the bytes that a geo store's packs may take; 0: no limit."""
    return conf[store].geo_store_size_limit * 1024 * 1024
