# SPDX-License-Identifier: Apache-2.0
"""HTTP servers of the agent: cheroot, over mutual TLS or a Unix socket."""

import os
import socket
import ssl
import threading
from pathlib import Path
from typing import Any

from cheroot import wsgi
from cheroot.ssl.builtin import BuiltinSSLAdapter

from glance_geo.core import errors
from glance_geo.replication.server import PEER_ENVIRON

IDLE_SECONDS = 75.0
_PEER_THREADS = 12
_LOCAL_THREADS = 16


class _MutualTLS(BuiltinSSLAdapter):
    """Demands a client certificate; shows it to the application."""

    def __init__(self, context: ssl.SSLContext, cert_file: str,
                 key_file: str):
        super().__init__(cert_file, key_file)
        self.context = context

    def get_environ(self, sock: Any) -> Any:  # type: ignore[override]
        environ: Any = super().get_environ(sock)
        environ[PEER_ENVIRON] = sock.getpeercert()
        return environ


class Serving:
    """One running server."""

    def __init__(self, server: wsgi.Server, name: str):
        self._server = server
        server.prepare()
        self._thread = threading.Thread(target=server.serve, name=name,
                                        daemon=True)
        self._thread.start()

    @property
    def address(self) -> Any:
        return self._server.bind_addr

    def stop(self) -> None:
        self._server.stop()
        self._thread.join(timeout=5)


def serve_peers(application: Any, address: tuple[str, int],
                context: ssl.SSLContext, cert_file: str, key_file: str,
                timeout: float) -> Serving:
    """Serve other nodes.

    :raises ConfigurationInvalid: the address can't be bound
    """
    server = wsgi.Server(address, application, numthreads=_PEER_THREADS,
                         timeout=int(max(timeout, IDLE_SECONDS)),
                         server_name='glance-geo')
    server.ssl_adapter = _MutualTLS(context, cert_file, key_file)
    try:
        return Serving(server, 'peers')
    except OSError as error:
        raise errors.ConfigurationInvalid(
            f'[glance_geo] listen = {address[0]}:{address[1]}: '
            f'{error}') from error


def serve_local(application: Any, path: str) -> Serving:
    """Serve this node's processes.

    :raises ConfigurationInvalid: another agent runs, or the path is unusable
    """
    try:
        Path(path).parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        _remove_stale(path)
        server = wsgi.Server(path, application, numthreads=_LOCAL_THREADS,
                             timeout=3600, server_name='glance-geo-agent')
        serving = Serving(server, 'local')
        # Whoever may enter the folder may connect.
        os.chmod(path, 0o660)
        return serving
    except OSError as error:
        raise errors.ConfigurationInvalid(
            f'[glance_geo] agent_socket {path}: {error}') from error


def _remove_stale(path: str) -> None:
    """Remove the socket that an agent left behind; refuse a live one's."""
    if not os.path.exists(path):
        return
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.connect(path)
    except OSError:
        os.unlink(path)
    else:
        raise errors.ConfigurationInvalid(
            f'[glance_geo] agent_socket {path}: another agent serves it')
    finally:
        probe.close()


class HintListener:
    """Takes the hints of this node's glance-api processes."""

    def __init__(self, path: str, hinted: Any):
        if os.path.exists(path):
            os.unlink(path)
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(path)
        os.chmod(path, 0o660)
        self._hinted = hinted
        threading.Thread(target=self._run, name='hints', daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                self._socket.recv(16)
            except OSError:
                return
            self._hinted()

    def stop(self) -> None:
        self._socket.close()
        if os.path.exists(self._path):
            os.unlink(self._path)
