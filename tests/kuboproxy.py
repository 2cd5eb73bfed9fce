# SPDX-License-Identifier: Apache-2.0
"""A relay before a node's RPC that changes what comes back, or ends TLS."""

import http.client
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *_):
        pass

    def _body(self):
        if 'Transfer-Encoding' not in self.headers:
            yield self.rfile.read(int(self.headers.get('Content-Length', 0)))
            return
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def do_POST(self):
        proxy = self.server.proxy
        proxy.calls.append(self.path)
        connection = http.client.HTTPConnection('127.0.0.1', proxy.port)
        connection.request('POST', self.path, b''.join(self._body()), {
            name: value for name, value in self.headers.items()
            if name.lower() in ('authorization', 'content-type')})
        answer = connection.getresponse()
        pieces = iter(lambda: answer.read1(65536), b'')
        self.send_response(answer.status)
        self.send_header('Content-Type', answer.headers['Content-Type'])
        self.send_header('Transfer-Encoding', 'chunked')
        self.end_headers()
        try:
            for piece in proxy.change(self.path, pieces):
                self.wfile.write(b'%x\r\n%s\r\n' % (len(piece), piece))
            self.wfile.write(b'0\r\n\r\n')
        except ConnectionAbortedError:
            self.close_connection = True


class Proxy:
    """
    :param change: (path, pieces of the answer) -> what is passed on
    :ivar calls: the paths that were asked for
    """

    def __init__(self, kubo, change=None, tls=None):
        self.port = kubo.port
        self.change = change or (lambda path, pieces: pieces)
        self.calls = []
        self._server = ThreadingHTTPServer(('127.0.0.1', 0), _Handler)
        self._server.proxy = self
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket,
                                                  server_side=True)
        self.address = (f'/ip4/127.0.0.1/tcp/{self._server.server_port}/'
                        f'{"https" if tls else "http"}')

    @contextmanager
    def running(self):
        thread = threading.Thread(target=self._server.serve_forever,
                                  daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
