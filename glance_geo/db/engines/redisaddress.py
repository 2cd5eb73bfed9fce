# SPDX-License-Identifier: Apache-2.0
"""Addresses of a Redis: one server, Sentinels, or the nodes of a Cluster.

::

    redis://[user[:password]@]host[:6379][/db][?options]
    redis+sentinel://[user[:password]@]host[:26379],host…/master[/db][?options]
    redis+cluster://[user[:password]@]host[:6379],host…[?options]

with ``rediss`` in the place of ``redis`` for TLS. Options: ``prefix`` (default
``glance_geo``), ``shared``, ``allow_nondurable``, ``wait_replicas``,
``timeout`` (seconds), ``ca_file``, ``cert_file``, ``key_file``,
``sentinel_username``, ``sentinel_password_file``, ``password_file``.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import redis
import redis.cluster
import redis.exceptions
import redis.sentinel
from redis.backoff import NoBackoff
from redis.retry import Retry

from glance_geo.core import errors

_OPTIONS = ('prefix', 'shared', 'allow_nondurable', 'wait_replicas',
            'timeout', 'ca_file', 'cert_file', 'key_file',
            'sentinel_username', 'sentinel_password_file', 'password_file')
_TRUE = {'true': True, '1': True, 'yes': True,
         'false': False, '0': False, 'no': False}


@dataclasses.dataclass(frozen=True)
class RedisAddress:
    """Where a Redis is, and how to talk to it. Its text holds no secret."""

    form: str
    hosts: tuple[tuple[str, int], ...]
    tls: bool = False
    username: str | None = None
    password: str | None = dataclasses.field(default=None, repr=False)
    master: str = ''
    database: int = 0
    prefix: str = 'glance_geo'
    shared: bool = False
    allow_nondurable: bool = False
    wait_replicas: int = 0
    timeout: float = 5.0
    files: tuple[tuple[str, str], ...] = ()
    sentinel: tuple[tuple[str, str], ...] = dataclasses.field(
        default=(), repr=False)

    def __str__(self) -> str:
        hosts = ','.join(f'{host}:{port}' for host, port in self.hosts)
        return hosts + (f' (master {self.master})' if self.master else '')

    @property
    def options(self) -> dict[str, Any]:
        """The client's options for a connection to a data server."""
        # The client repeats commands by itself unless told not to: a put
        # whose answer was lost must not be sent twice.
        found: dict[str, Any] = {
            'username': self.username, 'password': self.password,
            'socket_timeout': self.timeout,
            'socket_connect_timeout': self.timeout,
            'socket_keepalive': True, 'retry': Retry(NoBackoff(), 0)}
        if self.tls:
            names = {'ca_file': 'ssl_ca_certs', 'cert_file': 'ssl_certfile',
                     'key_file': 'ssl_keyfile'}
            found.update({names[name]: path for name, path in self.files},
                         ssl=True, ssl_cert_reqs='required')
        return found

    def connect(self) -> RedisServers:
        return _FORMS[self.form](self)


class RedisServers:
    """Finds the server that has the data: here, always the same one."""

    def __init__(self, address: RedisAddress):
        (host, port), = address.hosts
        self._server = redis.Redis(host=host, port=port, db=address.database,
                                   **address.options)

    def server(self) -> Any:
        """Return a client of the server that takes writes now."""
        return self._server

    def lost(self, error: Exception) -> None:
        """Note that the server did not answer, or is not the one."""

    def close(self) -> None:
        self._server.close()


class SentinelServers(RedisServers):
    """Asks Sentinels who the master is, whenever a connection is made."""

    def __init__(self, address: RedisAddress):
        sentinel_options = {
            name: value for name, value in address.options.items()
            if name not in ('username', 'password')}
        sentinel_options.update(address.sentinel)
        self._sentinel = redis.sentinel.Sentinel(
            address.hosts, sentinel_kwargs=sentinel_options)
        self._server = self._sentinel.master_for(
            address.master, db=address.database, **address.options)

    def lost(self, error: Exception) -> None:
        self._server.connection_pool.disconnect(inuse_connections=False)

    def close(self) -> None:
        self._server.close()
        for sentinel in self._sentinel.sentinels:
            sentinel.close()


class ClusterServers(RedisServers):
    """Knows which node of a Cluster has the slot of our keys."""

    def __init__(self, address: RedisAddress):
        self._address = address
        self._cluster: Any = None

    def server(self) -> Any:
        if self._cluster is None:
            self._cluster = redis.cluster.RedisCluster(
                startup_nodes=[redis.cluster.ClusterNode(host, port)
                               for host, port in self._address.hosts],
                **self._address.options)
        node = self._cluster.get_node_from_key(f'{{{self._address.prefix}}}')
        return self._cluster.get_redis_connection(node)

    def lost(self, error: Exception) -> None:
        # Learn anew who has the slot: from any node that still answers.
        self.close()

    def close(self) -> None:
        cluster, self._cluster = self._cluster, None
        if cluster is not None:
            cluster.close()


_FORMS: dict[str, type[RedisServers]] = {
    'redis': RedisServers, 'redis+sentinel': SentinelServers,
    'redis+cluster': ClusterServers}


def _invalid(text: str) -> errors.ConfigurationInvalid:
    return errors.ConfigurationInvalid(f'metadata_backend: {text}')


def _hosts(text: str, port: int) -> tuple[tuple[str, int], ...]:
    found = []
    for part in text.split(','):
        try:
            parsed = urlsplit(f'//{part}')
            if not parsed.hostname:
                raise ValueError
            found.append((parsed.hostname, parsed.port or port))
        except ValueError:
            raise _invalid(f'{part!r} is not host[:port]') from None
    return tuple(found)


def _secret(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        raise _invalid(f'password file {path}: {error.strerror}') from error


def _flag(name: str, text: str) -> bool:
    if text.lower() not in _TRUE:
        raise _invalid(f'{name}={text}: use true or false')
    return _TRUE[text.lower()]


def _number(name: str, text: str, kind: type) -> Any:
    try:
        value = kind(text)
        if value < 0:
            raise ValueError
    except ValueError:
        raise _invalid(f'{name}={text}: use a number') from None
    return value


def parse(url: str) -> RedisAddress:
    """Return the address of a URL.

    :raises ConfigurationInvalid: it is wrong; the text holds no secret
    """
    parts = urlsplit(url)
    form = parts.scheme.replace('rediss', 'redis')
    userinfo, _, hosts = parts.netloc.rpartition('@')
    username, _, password = userinfo.partition(':')
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    unknown = sorted(options.keys() - set(_OPTIONS))
    if unknown:
        raise _invalid(f'unknown option {unknown[0]!r}; use '
                       + ', '.join(_OPTIONS))
    path = [part for part in parts.path.split('/') if part]
    master = ''
    if form == 'redis+sentinel':
        if not path:
            raise _invalid('a Sentinel address ends in /MASTER, the name '
                           'under which the Sentinels watch the servers')
        master = unquote(path.pop(0))
    if form == 'redis+cluster' and path:
        raise _invalid('a Cluster has no numbered databases')
    found = _hosts(hosts, 26379 if master else 6379)
    if form == 'redis' and len(found) > 1:
        raise _invalid('several servers: use redis+sentinel:// or '
                       'redis+cluster://')
    if 'password_file' in options:
        password = _secret(options['password_file'])
    sentinel = []
    if 'sentinel_username' in options:
        sentinel.append(('username', options['sentinel_username']))
    if 'sentinel_password_file' in options:
        sentinel.append(('password',
                         _secret(options['sentinel_password_file'])))
    prefix = options.get('prefix', 'glance_geo')
    if not prefix or set('{}') & set(prefix):
        raise _invalid(f'prefix={prefix}: one character or more, no braces')
    return RedisAddress(
        form=form, hosts=found, tls=parts.scheme.startswith('rediss'),
        username=unquote(username) or None,
        password=unquote(password) or None, master=master,
        database=_number('database', path[0], int) if path else 0,
        prefix=prefix, shared=_flag('shared', options.get('shared', 'no')),
        allow_nondurable=_flag('allow_nondurable',
                               options.get('allow_nondurable', 'no')),
        wait_replicas=_number('wait_replicas', options.get(
            'wait_replicas', '0' if form == 'redis' else '1'), int),
        timeout=_number('timeout', options.get('timeout', '5'), float),
        files=tuple((name, options[name]) for name in (
            'ca_file', 'cert_file', 'key_file') if name in options),
        sentinel=tuple(sentinel))
