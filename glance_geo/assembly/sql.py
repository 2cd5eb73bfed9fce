# SPDX-License-Identifier: Apache-2.0
"""Puts Glance's own SQL data API to work, repeated safely on CockroachDB."""

from __future__ import annotations

from typing import Any

from oslo_config import cfg

from glance_geo.conf import options
from glance_geo.core import errors


def on_cockroachdb(conf: cfg.ConfigOpts) -> bool:
    return (conf.database.connection or '').startswith('cockroachdb')


def install(conf: cfg.ConfigOpts) -> None:
    """Let Glance's own data API run, repeated safely on CockroachDB."""
    from oslo_db import options as db_options
    db_options.set_defaults(conf)
    if not on_cockroachdb(conf):
        return
    try:
        import sqlalchemy_cockroachdb  # noqa: F401

        from glance_geo.db.cockroachdb import plugin
    except ImportError as error:
        raise errors.ConfigurationInvalid(
            f'[database] connection: cockroachdb:// needs a client library: '
            f'{error}. Install glance_geo[cockroachdb]') from error
    group = conf[options.GROUP]
    # Our calls have a limit of their own.
    conf.set_override('max_retries', 0, group='database')
    conf.set_override('connection_parameters', plugin.parameters(
        conf.database.connection, conf.database.connection_parameters,
        group.sql_statement_timeout), group='database')
    api: Any = None

    def get_api() -> Any:
        nonlocal api
        if api is None:
            from glance.db.sqlalchemy import api as stock

            from glance_geo.db.cockroachdb.calls import RepeatingAPI
            api = RepeatingAPI(stock, group.sql_retry_time,
                               group.sql_follower_reads)
        return api
    import glance.db
    glance.db.get_api = get_api
    import glance.quota.keystone
    glance.quota.keystone.db = get_api()


def engine(conf: cfg.ConfigOpts) -> Any:
    """Return the engine of Glance's own database, for its operators.

    :raises ConfigurationInvalid: it is none that this package supports
    """
    options.register(conf)
    backend = conf[options.GROUP].metadata_backend
    if backend != options.SQL:
        raise errors.ConfigurationInvalid(
            '[glance_geo] metadata_backend is not sql: there is no database '
            'of Glance\'s own')
    if not on_cockroachdb(conf):
        raise errors.ConfigurationInvalid(
            '[database] connection is no cockroachdb:// URL: use '
            'glance-manage for other databases')
    from glance.db.sqlalchemy import api
    return api.get_engine()
