# SPDX-License-Identifier: Apache-2.0
"""A node of a database as its clients see it: a proxy at the wire.

It counts the messages that a client waits for, dies, falls silent, and loses
the answer to a commit; the server behind it is real.
"""

import socket
import struct
import threading
from contextlib import suppress

from sqlalchemy.engine import make_url


class SQLProxy:
    """Forwards to the server of a URL, message by message.

    :ivar asked: the queries that were sent, in order
    :ivar dies_at: told each query before it is passed on; the node dies
        instead when it returns true
    """

    def __init__(self, url):
        url = make_url(url)
        self._server = (url.host, url.port)
        self.asked = []
        self.dies_at = None
        self._lose = None
        self._silent = threading.Event()
        self._listening = None
        self._connections = set()
        self._lock = threading.Lock()
        self.port = None
        self.start()

    def start(self):
        self._listening = socket.create_server(
            ('127.0.0.1', self.port or 0), reuse_port=False)
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listening,),
                         daemon=True).start()

    def kill(self):
        """Die, as a node does: connections break, new ones are refused."""
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        with self._lock:
            broken, self._connections = self._connections, set()
        for each in broken:
            self._break(each)

    stop = kill

    def silence(self):
        """Take everything, and answer nothing from now on."""
        self._silent.set()

    def lose_commit(self, where):
        """Break the connection at the next COMMIT.

        :param where: ``before`` it reaches the server, ``after`` it was
            carried out, or ``ambiguous``: carried out, but answered with
            an error of SQLSTATE 40003
        """
        self._lose = where

    @staticmethod
    def _break(connection):
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                                  struct.pack('ii', 1, 0))
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()

    def _accept(self, listening):
        while True:
            try:
                client, _ = listening.accept()
                server = socket.create_connection(self._server)
            except OSError:
                return
            with self._lock:
                self._connections |= {client, server}
            link = _Link(self, client, server)
            for run in (link.ask, link.answer):
                threading.Thread(target=run, daemon=True).start()


class _Link:
    """One client's connection."""

    def __init__(self, proxy, client, server):
        self._proxy, self._client, self._server = proxy, client, server
        self._losing = None

    def _end(self):
        for each in (self._client, self._server):
            SQLProxy._break(each)

    @staticmethod
    def _take(stream, size):
        data = b''
        while len(data) < size:
            part = stream.recv(size - len(data))
            if not part:
                raise OSError('closed')
            data += part
        return data

    def _message(self, stream):
        """Return (type, whole message)."""
        head = self._take(stream, 5)
        (size,) = struct.unpack('>I', head[1:])
        return head[:1], head + self._take(stream, size - 4)

    def ask(self):
        """Carry what the client asks to the server."""
        try:
            while True:     # TLS or GSS may be asked for first
                (size,) = struct.unpack('>I', self._take(self._client, 4))
                rest = self._take(self._client, size - 4)
                if rest[:4] in (struct.pack('>I', 80877103),
                                struct.pack('>I', 80877104)):
                    self._client.sendall(b'N')
                    continue
                self._server.sendall(struct.pack('>I', size) + rest)
                break
            while True:
                kind, data = self._message(self._client)
                if kind == b'Q':
                    self._query(data[5:-1].decode())
                if self._proxy._silent.is_set():
                    continue
                self._server.sendall(data)
        except OSError:
            self._end()

    def _query(self, text):
        self._proxy.asked.append(text)
        if self._proxy.dies_at and self._proxy.dies_at(text):
            self._proxy.dies_at = None
            self._proxy.kill()
            raise OSError('died')
        if 'COMMIT' in text and self._proxy._lose:
            self._losing, self._proxy._lose = self._proxy._lose, None
            if self._losing == 'before':
                raise OSError('lost')

    def answer(self):
        """Carry what the server answers to the client."""
        try:
            while True:
                kind, data = self._message(self._server)
                if self._proxy._silent.is_set():
                    continue
                if self._losing:
                    self._lost(kind, data)
                    continue
                self._client.sendall(data)
        except OSError:
            self._end()

    def _lost(self, kind, data):
        if kind != b'Z':        # until the server is ready again
            return
        if self._losing == 'after':
            raise OSError('lost')
        self._losing = None
        fields = (b'SERROR\0C40003\0Mresult is ambiguous (a node died)\0\0')
        self._client.sendall(b'E' + struct.pack('>I', len(fields) + 4)
                             + fields + data)
