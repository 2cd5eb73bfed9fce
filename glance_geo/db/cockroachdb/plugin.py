# SPDX-License-Identifier: Apache-2.0
"""Where SQLAlchemy finds this support: ``…?plugin=glance_geo`` in a URL, or
``[database] connection_parameters = plugin=glance_geo``.

Any service that creates its engines through oslo.db can use it.
"""

import json
import re
import time
from typing import Any
from urllib.parse import parse_qs

from sqlalchemy import event, exc
from sqlalchemy.engine import URL, CreateEnginePlugin

from glance_geo.db.cockroachdb import commits, connection, faults, filters

_PORT = '26257'
_OLDEST = (22, 2)
_IDLE_SECONDS = 60.0
_GRACE_SECONDS = 5.0
_STATEMENT_SECONDS = 10.0
_LIBPQ = {'connect_timeout': '5', 'keepalives_idle': '5',
          'keepalives_interval': '2', 'keepalives_count': '3',
          'tcp_user_timeout': '10000', 'application_name': 'glance-geo'}
_LOCAL = ('localhost', '127.0.0.1', '::1')


def _hosts(url: URL) -> list[str]:
    listed = url.query.get('host', ())
    names = [listed] if isinstance(listed, str) else list(listed)
    found = [name for text in names for name in text.split(',')]
    return found or ([url.host] if url.host else [])


def _is_local(host: str) -> bool:
    return host.startswith('/') or host.strip('[]') in _LOCAL or (
        host.rpartition(':')[0].strip('[]') in _LOCAL)


def server_version(text: str) -> tuple[int, int] | None:
    """Return (year, release) of a CockroachDB's version string, or None."""
    found = re.search(r'CockroachDB.*? v(\d+)\.(\d+)', text)
    return (int(found[1]), int(found[2])) if found else None


def check_server(text: str) -> None:
    """Refuse servers that this support is not for.

    :raises ServerUnfit: in one line
    """
    version = server_version(text)
    if version is None:
        raise faults.ServerUnfit(ValueError(
            f'the server is no CockroachDB but "{text.partition(",")[0]}": '
            f'use its own URL scheme'))
    if version < _OLDEST:
        raise faults.ServerUnfit(ValueError(
            f'CockroachDB {version[0]}.{version[1]} is too old: '
            f'{_OLDEST[0]}.{_OLDEST[1]} or later is needed'))


def parameters(url: str, present: str, seconds: float) -> str:
    """Return ``connection_parameters`` that name this plugin.

    What the operator gave there, or in the URL, stays as it is.

    :param present: those that the operator gave
    :param seconds: the time limit of a statement
    """
    given = parse_qs(present) | parse_qs(url.partition('?')[2])
    more = [] if 'glance_geo' in given.get('plugin', ()) else [
        'plugin=glance_geo']
    if 'geo_statement_timeout' not in given:
        more.append(f'geo_statement_timeout={seconds:g}')
    return '&'.join(filter(None, (present, *more)))


def named(url: URL) -> URL:
    """Return a URL that names this plugin, beside others that it names."""
    plugins = url.query.get('plugin', ())
    if 'glance_geo' in ((plugins,) if isinstance(plugins, str) else plugins):
        return url
    return url.update_query_dict({'plugin': 'glance_geo'}, append=True)


class CockroachDBPlugin(CreateEnginePlugin):
    """Prepares an engine of the ``cockroachdb`` dialect.

    URL arguments: ``geo_statement_timeout`` (seconds, default 10, 0: none)
    and ``geo_certain_commits`` (default 1).

    :raises ArgumentError: for an engine of another dialect
    """

    def __init__(self, url: URL, kwargs: dict[str, Any]):
        super().__init__(url, kwargs)
        if url.get_backend_name() != 'cockroachdb':
            raise exc.ArgumentError(
                'plugin=glance_geo is for cockroachdb:// URLs; this is '
                f'{url.drivername}://')
        filters.register()
        self._ready = False
        seconds = self._seconds(url)
        self._wants_certainty = url.query.get(
            'geo_certain_commits', '1') != '0'
        self._kind = connection.kind(
            seconds + _GRACE_SECONDS if seconds else 0.0, False)
        arguments = kwargs.setdefault('connect_args', {})
        arguments['connection_factory'] = self._kind
        self._libpq(url, arguments, seconds)
        # What oslo.db sets for PostgreSQL by the URL's name.
        kwargs.setdefault('json_serializer', json.dumps)
        kwargs.setdefault('json_deserializer', json.loads)

    @staticmethod
    def _seconds(url: URL) -> float:
        given = url.query.get('geo_statement_timeout', _STATEMENT_SECONDS)
        try:
            seconds = float(given)  # type: ignore[arg-type]
            if seconds >= 0:
                return seconds
        except (TypeError, ValueError):
            pass
        raise exc.ArgumentError(f'geo_statement_timeout={given}: say once '
                                'how many seconds, 0 for no limit')

    @staticmethod
    def _libpq(url: URL, arguments: dict[str, Any], seconds: float) -> None:
        for name, value in _LIBPQ.items():
            if name not in url.query:
                arguments.setdefault(name, value)
        hosts = _hosts(url)
        if 'sslmode' not in url.query and not all(map(_is_local, hosts)):
            arguments.setdefault('sslmode', 'verify-full')
        if url.port is None and 'port' not in url.query and not any(
                re.search(r':\d+$', host) for host in hosts):
            arguments.setdefault('port', _PORT)
        arguments['options'] = ' '.join(filter(None, (
            str(url.query.get('options', '')),
            '-c default_transaction_isolation=serializable',
            f'-c statement_timeout={int(seconds * 1000)}')))

    def update_url(self, url: URL) -> URL:
        return url.difference_update_query(
            ['plugin', 'geo_statement_timeout', 'geo_certain_commits',
             'options'])

    def handle_pool_kwargs(self, pool_cls: Any, pool_args: dict[str, Any],
                           ) -> None:
        # The socket tells whether the server has closed it; only a long
        # idle connection is worth a round trip.
        pool_args['pre_ping'] = False

    def engine_created(self, engine: Any) -> None:
        event.listen(engine, 'connect', self._connected)
        event.listen(engine, 'checkout', self._checked_out)
        # SQLAlchemy asks nobody about a connection that can't be made,
        # unless somebody listens to the dialect itself.
        event.listen(engine.dialect, 'handle_error', lambda context: None)

    def _connected(self, made: Any, record: Any) -> None:
        if self._ready:
            return
        check_server(made.ask('SELECT version()')[0])
        if self._wants_certainty:
            self._kind.certain = commits.prepare(made.ask)
        self._ready = True

    @staticmethod
    def _checked_out(found: Any, record: Any, proxy: Any) -> None:
        try:
            lost = found.is_lost()
            if not lost and time.monotonic() - found.used > _IDLE_SECONDS:
                found.ask('SELECT 1')
        except Exception as error:  # whatever it is, connect anew
            raise exc.DisconnectionError(str(error)) from error
        if lost:
            raise exc.DisconnectionError('the server closed the connection')
