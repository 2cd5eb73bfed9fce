# SPDX-License-Identifier: Apache-2.0
"""The RPC of a node of IPFS (Kubo): the one module that knows its client.

What is known of that (ipfshttpclient 0.7): ``connect()`` refuses every current
Kubo, ``Client()`` does not; a stream whose block is missing ends early without
an error; a miss waits for ever, so every call has a time limit.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import ipfshttpclient
import requests
from ipfshttpclient import exceptions, multipart

from glance_geo.core import errors

NOT_FOUND = 'not found in time'
"""In the errors of what a node itself looked for too long."""
_PIECE = 1024 * 1024

warnings.filterwarnings('ignore', message=r".*'strict' parameter",
                        category=FutureWarning)


class NodeRPC:
    """A node's RPC. Safe for several threads, and for forks.

    Every call raises ``Unreachable`` when the node does not answer in time,
    ``PeerRefused`` when it refuses the credentials, ``StoreFull`` when its
    disk is full and ``IPFSFailed`` for anything else that it says. Every call
    may be repeated.

    :param address: multiaddr, such as ``/ip4/127.0.0.1/tcp/5001/http``,
        ``/dns/ipfs.example/tcp/443/https`` or ``/unix/run/ipfs/api.sock``
    :param secret: ``basic:user:password``, ``bearer:token`` or ''
    :param ca_file: authority of an https node; '' for the system's
    :param timeout: seconds without an answer, or without another byte
    :raises ConfigurationInvalid: the address or the secret is malformed
    """

    def __init__(self, address: str, secret: str = '', ca_file: str = '',
                 timeout: float = 30.0):
        self.address = address
        self.timeout = timeout
        self._secret = secret
        self._ca_file = ca_file
        self._local = threading.local()
        self._client()

    def _client(self) -> Any:
        if getattr(self._local, 'pid', None) != os.getpid():
            self._local.client = self._connect()
            self._local.pid = os.getpid()
        return self._local.client

    def _connect(self) -> Any:
        kind, _, secret = self._secret.partition(':')
        auth = headers = None
        if kind == 'basic' and ':' in secret:
            user, _, password = secret.partition(':')
            auth = (user, password)
        elif kind == 'bearer' and secret:
            headers = {'Authorization': f'Bearer {secret}'}
        elif self._secret:
            raise errors.ConfigurationInvalid(
                'ipfs_auth_file must hold "basic:<user>:<password>" or '
                '"bearer:<token>"')
        try:
            client = ipfshttpclient.Client(
                self.address, auth=auth, headers=headers,
                timeout=(self.timeout, self.timeout), chunk_size=_PIECE)
        except (exceptions.AddressError, ValueError) as error:
            raise errors.ConfigurationInvalid(
                f'ipfs_api {self.address!r} is no address of a node: use '
                f'/ip4/127.0.0.1/tcp/5001/http, /dns/host/tcp/443/https or '
                f'/unix/run/ipfs/api.sock') from error
        # The client has no argument for these. The environment's proxies and
        # authorities are not for a node's RPC.
        properties = client._client._session_props
        properties['trust_env'] = False
        if self._ca_file:
            properties['verify'] = self._ca_file
        if headers:
            # Set whole, it would take the place of the session's own.
            properties['headers'] = requests.structures.CaseInsensitiveDict(
                headers)
        client._client.open_session()
        return client

    # -- calls ------------------------------------------------------------
    @contextmanager
    def _translated(self) -> Iterator[None]:
        name = f'IPFS node {self.address}'
        try:
            yield
        except (exceptions.TimeoutError, requests.Timeout) as error:
            raise errors.Unreachable(
                f'{name} did not answer within {self.timeout:g} s') from error
        except exceptions.ErrorResponse as error:
            text = str(error)
            if 'deadline exceeded' in text:
                raise errors.Unreachable(f'{name}: {NOT_FOUND}') from error
            if 'no space left' in text or 'storage limit' in text:
                raise errors.StoreFull(f'{name}: {text}') from error
            raise errors.IPFSFailed(f'{name}: {text}') from error
        except exceptions.StatusError as error:
            response = getattr(error.original, 'response', None)
            status = getattr(response, 'status_code', None)
            if status in (401, 403):
                raise errors.PeerRefused(
                    f'{name} refuses with {status}: look at ipfs_auth_file, '
                    f'and at API.Authorizations in the node\'s '
                    f'configuration') from error
            raise errors.IPFSFailed(f'{name} answers {status}') from error
        except exceptions.ConnectionError as error:
            raise errors.Unreachable(
                f'{name} can not be reached: {_cause(error)}') from error
        except (exceptions.Error, requests.RequestException) as error:
            raise errors.Unreachable(
                f'{name} broke off: {_cause(error)}') from error

    def _call(self, path: str, *args: str, data: Any = None,
              headers: Any = None, timeout: float | None = None,
              **options: Any) -> list[dict[str, Any]]:
        """Call the RPC; return the documents that it answers."""
        with self._translated():
            return self._client()._client.request(
                path, args, opts=_texts(options), decoder='json', data=data,
                headers=headers, timeout=timeout)

    def _pieces(self, path: str, *args: str, patience: float = 0.0,
                **options: Any) -> Generator[bytes, None, None]:
        """Yield what the RPC answers; it may end early.

        :param patience: seconds for which to wait beyond the time limit
        """
        with self._translated(), self._client()._client.request(
                path, args, opts=_texts(options), stream=True,
                timeout=self.timeout + patience) as pieces:
            yield from pieces

    def _upload(self, path: str, pieces: Iterable[bytes],
                timeout: float | None = None, **options: Any,
                ) -> list[dict[str, Any]]:
        """Call the RPC with a body; return the documents that it answers."""
        body, headers = multipart.stream_bytes(iter(pieces),
                                               chunk_size=_PIECE)
        return self._call(path, data=body, headers=headers, timeout=timeout,
                          **options)

    def _documents(self, path: str, *args: str, **options: Any,
                   ) -> Generator[dict[str, Any], None, None]:
        """Yield the documents that the RPC answers, as they come."""
        with self._translated(), self._client()._client.request(
                path, args, opts=_texts(options), decoder='json',
                stream=True) as documents:
            yield from documents


def _texts(options: dict[str, Any]) -> dict[str, str]:
    return {name.replace('_', '-'): (
        str(value).lower() if isinstance(value, bool) else str(value))
        for name, value in options.items()}


def _cause(error: BaseException) -> str:
    """Return the last cause of a client library's nest of errors."""
    text = str(error)
    while True:
        inner = error.__cause__ or error.__context__ or next(
            (a for a in error.args if isinstance(a, BaseException)), None) \
            or getattr(error, 'reason', None)
        if not isinstance(inner, BaseException):
            return text.rpartition(': ')[2] or text or type(error).__name__
        error, text = inner, str(inner) or text
