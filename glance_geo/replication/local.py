# SPDX-License-Identifier: Apache-2.0
"""Between glance-api and the agent of one node, over a Unix socket.

``LocalAgent`` is glance-api's side (a ``ChunkSource`` and a ``Neighbour``),
``LocalServer`` the agent's. The folder of the socket says who may connect.
"""

import logging
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import webob
import webob.dec

from glance_geo.core import errors
from glance_geo.core.interfaces import ChunkSource
from glance_geo.replication import wire

LOG = logging.getLogger(__name__)

# A fetch over a slow link takes long; the agent has its own time limits.
_ANSWER_SECONDS = 3600.0
_CONNECT_SECONDS = 5.0
_ERRORS: dict[str, type[errors.GeoError]] = {
    kind.__name__: kind for kind in (
        errors.BitsElsewhere, errors.BitsUnavailable, errors.HomeUnreachable,
        errors.PeerRefused, errors.StoreFull, errors.StoreUnusable,
        errors.ManifestInvalid, errors.EngineUnavailable)}


def hint_path(agent_socket: str) -> str:
    """Return the datagram socket on which the agent takes hints."""
    return f'{agent_socket}.hint'


class LocalAgent:
    """The node's agent, as glance-api sees it. Safe for several threads."""

    def __init__(self, agent_socket: str):
        self._path = agent_socket
        self._pid = 0
        self._http: httpx.Client | None = None
        self._hints: socket.socket | None = None

    def _after_fork(self) -> None:
        if self._pid != os.getpid():
            self._http = httpx.Client(
                base_url='http://agent', trust_env=False,
                transport=httpx.HTTPTransport(uds=self._path),
                timeout=httpx.Timeout(_ANSWER_SECONDS,
                                      connect=_CONNECT_SECONDS))
            self._hints = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._hints.setblocking(False)
            self._pid = os.getpid()

    def changed(self) -> None:
        """Hint that records changed; never blocks, never fails."""
        self._after_fork()
        assert self._hints is not None
        try:
            self._hints.sendto(b'.', hint_path(self._path))
        except OSError:
            pass    # no agent, or it has hints enough: it will look anyway

    def call(self, path: str, document: dict[str, Any]) -> Any:
        """Call the agent.

        :raises Unreachable: no agent answers; other errors are the agent's
        """
        self._after_fork()
        assert self._http is not None
        try:
            answer = self._http.post(path, content=wire.pack(document))
        except httpx.TransportError as error:
            raise errors.Unreachable(
                f'glance-geo-agent does not answer on {self._path}: '
                f'{error}') from error
        if answer.status_code == 200:
            return wire.unpack(answer.content)
        kind = _ERRORS.get(answer.headers.get('x-geo-error', ''),
                           errors.Unreachable)
        raise kind(answer.text.strip())

    def ensure(self, image_id: str, manifest: bytes,
               names: Sequence[bytes]) -> None:
        try:
            self.call('/fetch', {'image': image_id, 'manifest': manifest,
                                 'names': list(names)})
        except errors.Unreachable as error:
            raise errors.BitsUnavailable(
                f'image {image_id}: {len(names)} chunks are not at this '
                f'node, and {error}') from error

    def claim_home(self, image_id: str) -> None:
        try:
            self.call('/claim', {'image': image_id})
        except errors.Unreachable as error:
            raise errors.HomeUnreachable(str(error)) from error


class LocalServer:
    """What the agent does for its node's glance-api and commands."""

    def __init__(self, source: ChunkSource, claim: Callable[[str], None],
                 status: Callable[[], dict[str, Any]],
                 act: Callable[[str], dict[str, Any]]):
        self._source = source
        self._claim = claim
        self._status = status
        self._act = act

    @webob.dec.wsgify
    def __call__(self, request: webob.Request) -> webob.Response:
        try:
            document = wire.unpack(request.body)
            answer = self._answer(request.path_info, document)
            return webob.Response(wire.pack(answer), charset=None,
                                  content_type='application/octet-stream')
        except errors.GeoError as error:
            LOG.warning('%s: %s', request.path_info, error)
            response = webob.Response(status=409, charset='utf-8',
                                      content_type='text/plain')
            response.headers['x-geo-error'] = type(error).__name__
            response.text = str(error)
            return response

    def _answer(self, path: str, document: dict[str, Any]) -> Any:
        if path == '/fetch':
            self._source.ensure(document['image'], document['manifest'],
                                document['names'])
            return {}
        if path == '/claim':
            self._claim(document['image'])
            return {}
        if path == '/status':
            return self._status()
        return self._act(path)
