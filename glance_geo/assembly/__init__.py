# SPDX-License-Identifier: Apache-2.0
"""The one place where concrete parts are chosen and put together."""

from __future__ import annotations

import contextlib
import logging
import ssl
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from oslo_config import cfg

from glance_geo.assembly import sql
from glance_geo.conf import options
from glance_geo.core import errors

if TYPE_CHECKING:
    from glance_geo.core.interfaces import LocalChunks
    from glance_geo.db.api import DataAPI
    from glance_geo.db.moving import Source
    from glance_geo.db.recordstore import RecordStore
    from glance_geo.replication.agent import Agent
    from glance_geo.replication.client import PeerClient
    from glance_geo.replication.keeper import KeeperRules
    from glance_geo.replication.local import LocalAgent
    from glance_geo.store.chunkstore import ChunkStore

LOG = logging.getLogger(__name__)



_data_api: DataAPI | None = None
_installed = False
_sql_records: RecordStore | None = None
_local_agents: dict[str, LocalAgent] = {}


def local_agent(conf: cfg.ConfigOpts) -> LocalAgent:
    """Return this process's way to the node's agent."""
    from glance_geo.replication.local import LocalAgent
    options.register(conf)
    path = conf[options.GROUP].agent_socket
    if path not in _local_agents:
        _local_agents[path] = LocalAgent(path)
    return _local_agents[path]


def chunk_source(conf: cfg.ConfigOpts) -> LocalAgent | None:
    """Return where this node's missing chunks come from; None: nowhere."""
    options.register(conf)
    return local_agent(conf) if conf[options.GROUP].agent_socket else None


def open_data_api(conf: cfg.ConfigOpts) -> DataAPI:
    """Return the data API over the configured engine.

    :raises ConfigurationInvalid: naming the option
    """
    from glance_geo.db import api
    options.register(conf)
    options.check_site(conf)
    group = conf[options.GROUP]
    if group.metadata_backend == options.SQL:
        raise errors.ConfigurationInvalid(
            '[glance_geo] metadata_backend = sql: metadata is in Glance\'s '
            'own database, and this is for glance_geo\'s own engines')
    return api.load(group.metadata_backend, site=group.site_name,
                    node=options.node_name(conf),
                    neighbour=local_agent(conf))


def _records(conf: cfg.ConfigOpts, url: str) -> RecordStore:
    from glance_geo.db.engines import open_engine
    from glance_geo.db.recordstore import RecordStore
    options.register(conf)
    options.check_site(conf)
    return RecordStore(open_engine(url), conf[options.GROUP].site_name)


@contextlib.contextmanager
def metadata_target(conf: cfg.ConfigOpts, url: str) -> Iterator[RecordStore]:
    """Open the records at a URL, as this site.

    :raises ConfigurationInvalid: it is no metadata engine's
    """
    records = _records(conf, url)
    try:
        yield records
    finally:
        records.engine.close()


@contextlib.contextmanager
def metadata_source(conf: cfg.ConfigOpts, url: str) -> Iterator[Source]:
    """Open a metadata engine, or a Glance's SQL database, to copy from."""
    from glance_geo.db import moving, sqlsource
    if sqlsource.is_sql(url):
        yield moving.GlanceSource(sqlsource.SQLSource(url))
        return
    with metadata_target(conf, url) as records:
        yield moving.RecordSource(records)


def install_data_api(conf: cfg.ConfigOpts) -> None:
    """Put the data API in the place of Glance's SQL one.

    :raises ConfigurationInvalid: it can't be; Glance must not start then
    """
    global _data_api, _installed
    options.register(conf)
    if conf[options.GROUP].metadata_backend == options.SQL:
        options.check_site(conf)
        sql.install(conf)
        _installed = True
        return
    _refuse_encrypted_locations(conf)
    _data_api = open_data_api(conf)
    _installed = True

    import glance.db
    glance.db.get_api = lambda: _data_api
    # The one module of the API service that imports the SQL API by itself.
    # Imported now or later, it must see ours.
    import glance.quota.keystone
    glance.quota.keystone.db = _data_api
    LOG.info('Metadata of site %s is in %s', conf[options.GROUP].site_name,
             conf[options.GROUP].metadata_backend.partition('@')[2]
             or conf[options.GROUP].metadata_backend)


def _refuse_encrypted_locations(conf: cfg.ConfigOpts) -> None:
    try:
        key = conf.metadata_encryption_key
    except cfg.NoSuchOptError:
        return
    if key:
        raise errors.ConfigurationInvalid(
            'metadata_encryption_key is set: agents must read locations. '
            'geo locations are signed and hold no secret; unset it')


def installed_data_api(conf: cfg.ConfigOpts) -> DataAPI:
    """Return the data API of this process, opened if need be."""
    global _data_api
    if _data_api is None:
        _data_api = open_data_api(conf)
    return _data_api


def records(conf: cfg.ConfigOpts) -> RecordStore:
    """Return the records that replication follows, opened if need be.

    :raises ConfigurationInvalid: naming the option
    """
    global _sql_records
    options.register(conf)
    if conf[options.GROUP].metadata_backend != options.SQL:
        return installed_data_api(conf).records
    if _sql_records is None:
        options.check_site(conf)
        if not sql.on_cockroachdb(conf):
            raise errors.ConfigurationInvalid(
                '[glance_geo] metadata_backend = sql: the agent needs a '
                '[database] connection = cockroachdb://…; on other databases '
                'geo stores serve what their node holds')
        from glance_geo.db.engines import open_engine
        from glance_geo.db.sqlrecords import SQLRecords
        from glance_geo.db.sqlsource import SQLSource
        url = conf.database.connection
        _sql_records = SQLRecords(open_engine(url),
                                  conf[options.GROUP].site_name,
                                  SQLSource(url))
    return _sql_records


def sql_records_tables(conf: cfg.ConfigOpts) -> None:
    """Make the tables of what agents write beside Glance's own."""
    from glance_geo.db.engines import open_engine
    open_engine(conf.database.connection).close()


def location_metadata(conf: cfg.ConfigOpts) -> dict[str, str]:
    """Return what a location must say that metadata does not: the site."""
    options.register(conf)
    group = conf[options.GROUP]
    if group.metadata_backend != options.SQL:
        return {}
    return {'site': group.site_name}


def chunk_store(conf: cfg.ConfigOpts) -> ChunkStore:
    """Open the node's chunk store.

    :raises ConfigurationInvalid, StoreUnusable: naming what is wrong
    """
    from glance_geo.store.chunkstore import ChunkStore
    name, folder = options.store_folder(conf)
    return ChunkStore(folder, options.store_owner(conf, name),
                      options.store_limit(conf, name))


def dedup_project(conf: cfg.ConfigOpts, store: str, image: str,
                  context: Any = None) -> str:
    """Return the project among whose chunks an image's are stored.

    '' for what all projects share: public images, and with
    ``geo_dedup_scope = site`` all.

    :param context: says whose an image is that metadata does not know
    """
    from glance_geo.replication.sources import chunk_project, image_bits
    site_wide = conf[store].geo_dedup_scope == 'site'
    if not site_wide and _data_api is not None:
        record = _data_api.records.get('image', image)
        if record is not None:
            return chunk_project(image_bits(record), site_wide)
    return '' if site_wide else getattr(context, 'project_id', None) or ''


def tls_files(conf: cfg.ConfigOpts) -> tuple[str, str, str]:
    group = conf[options.GROUP]
    return group.ca_file, group.cert_file, group.key_file


def agent_runs(conf: cfg.ConfigOpts) -> bool:
    """Say whether this node's agent answers."""
    try:
        local_agent(conf).call('/status', {})
    except errors.Unreachable:
        return False
    return True


def refuse_running_agent(conf: cfg.ConfigOpts) -> None:
    """Refuse what can't be done under a running agent.

    :raises ConfigurationInvalid: saying what to do
    """
    if agent_runs(conf):
        raise errors.ConfigurationInvalid(
            'the agent of this node is running: stop glance-geo-agent and '
            'glance-api, then try again')


def peer(conf: cfg.ConfigOpts, site: str) -> PeerClient:
    """Return a client of one other site's agent.

    :raises ConfigurationInvalid: no such peer, or bad certificates
    """
    from glance_geo.replication import identity
    from glance_geo.replication.client import PeerClient
    group = conf[options.GROUP]
    for name, host, port in options.peers(conf):
        if name == site:
            return PeerClient(name, host, port, identity.context(
                ssl.Purpose.SERVER_AUTH, *tls_files(conf)),
                group.peer_timeout)
    raise errors.ConfigurationInvalid(
        f'[glance_geo] peers lists no site {site!r}')


def agent(conf: cfg.ConfigOpts) -> Agent:
    """Return the node's agent, not started.

    :raises ConfigurationInvalid, StoreUnusable: naming what is wrong
    """
    from glance_geo.assembly import swarm
    from glance_geo.replication import identity
    from glance_geo.replication.agent import Agent, Intervals
    from glance_geo.replication.client import PeerClient
    options.register(conf)
    options.check_site(conf)
    group = conf[options.GROUP]
    chunks = _local_chunks(conf)
    tls = identity.context(ssl.Purpose.SERVER_AUTH, *tls_files(conf))
    peers = [PeerClient(site, host, port, tls, group.peer_timeout)
             for site, host, port in options.peers(conf)]
    return Agent(group.site_name, options.node_name(conf),
                 records(conf), chunks, peers,
                 Intervals(group.sync_interval, group.audit_interval,
                           group.tombstone_interval),
                 _keeper_rules(conf),
                 swarm.assemble(conf, records(conf), chunks))


def _local_chunks(conf: cfg.ConfigOpts) -> LocalChunks:
    """Open the node's chunk store, or what stands in where it has none."""
    if options.geo_store(conf) is None and options.ipfs_store(conf):
        from glance_geo.store.nochunks import NoChunks
        return NoChunks()
    return chunk_store(conf)


def _keeper_rules(conf: cfg.ConfigOpts) -> KeeperRules:
    from glance_geo.replication.keeper import KeeperRules
    group, name = conf[options.GROUP], options.geo_store(conf)
    if name is None:
        return KeeperRules(group.collect_interval, group.geo_trash_days)
    return KeeperRules(group.collect_interval, group.geo_trash_days,
                       conf[name].geo_dedup_scope == 'site',
                       conf[name].geo_compact_rate * 1024 * 1024)


def check_placement(conf: cfg.ConfigOpts, image: str, cid: str) -> None:
    """Refuse to read a file of IPFS that placement keeps from this site.

    Where nothing tells (Glance's own SQL without an agent), nothing is
    refused.

    :raises BitsElsewhere: saying why
    """
    from glance_geo.replication.sources import image_bits
    site = conf[options.GROUP].site_name
    try:
        known = records(conf)
    except errors.ConfigurationInvalid:
        return
    for record in known.images_of(image):
        bits = image_bits(record)
        decision = bits.decide(site)
        if not decision.allowed and any(its.cid == cid for its in bits.files):
            raise errors.BitsElsewhere(
                f'image {image} can not be read at site {site}: '
                f'{decision.why}')


def start_agent(conf: cfg.ConfigOpts, made: Agent) -> None:
    """Start an agent on the configured addresses."""
    from glance_geo.replication import identity
    group = conf[options.GROUP]
    _, cert_file, key_file = tls_files(conf)
    made.start(options.address(conf, 'listen'),
               identity.context(ssl.Purpose.CLIENT_AUTH, *tls_files(conf)),
               cert_file, key_file, group.agent_socket, group.peer_timeout)
    if group.metrics_listen:
        from glance_geo.replication import metrics
        metrics.serve(made.status, options.address(conf, 'metrics_listen'))


def guard_against_sql() -> None:
    """Make Glance stop, rather than start on SQL, if we are named but not
    loaded.

    oslo.config only logs a config_source whose ``driver`` is missing or
    misspelt. It does build every source driver first, ours too: until ours is
    opened, asking for the data API checks that nobody meant us.
    """
    if 'glance' not in sys.modules:
        return
    import glance.db
    stock = glance.db.get_api

    def get_api() -> Any:
        if options.GROUP in cfg.CONF.config_source and not _installed:
            raise SystemExit(
                'glance_geo: [DEFAULT] config_source names glance_geo, but '
                '[glance_geo] driver is not glance_geo')
        return stock()
    glance.db.get_api = get_api
