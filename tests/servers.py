# SPDX-License-Identifier: Apache-2.0
"""Real servers for tests: Redis alone, watched by Sentinels, as a Cluster."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import redis


def free_port():
    """Return a port that is free, and whose cluster bus port is."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(('127.0.0.1', 0))
            port = one.getsockname()[1]
            try:
                two.bind(('127.0.0.1', port + 10000))
            except (OSError, OverflowError):
                continue
            return port


def until(true, seconds=30, what='condition'):
    """Return when a condition holds.

    :raises TimeoutError: it did not in time
    """
    deadline = time.monotonic() + seconds
    while True:
        found = true()
        if found:
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.02)


class RedisServer:
    """One ``redis-server`` on a port of its own."""

    DURABLE = ('--appendonly', 'yes', '--appendfsync', 'always')

    def __init__(self, *options, sentinel=False):
        binary = shutil.which('redis-server')
        if binary is None:
            raise RuntimeError('redis-server is not installed: apt-get '
                               'install redis-server')
        self.folder = Path(tempfile.mkdtemp(prefix='geo-redis-'))
        self.port = free_port()
        self._options = [binary]
        if sentinel:
            (self.folder / 'sentinel.conf').write_text('')
            self._options += [str(self.folder / 'sentinel.conf'),
                              '--sentinel']
        self._options += ['--port', str(self.port), '--bind', '127.0.0.1',
                          '--dir', str(self.folder), '--save', '', *options]
        self._process = None
        self.start()

    def start(self):
        with open(self.folder / 'log', 'a') as log:
            self._process = subprocess.Popen(self._options, stdout=log,
                                             stderr=log)
        until(self._answers, what=f'redis-server, see {self.folder}/log')

    def _answers(self):
        try:
            return self.client().ping()
        except redis.exceptions.RedisError:
            return False

    def client(self):
        return redis.Redis(port=self.port, socket_timeout=5)

    def kill(self):
        self._process.kill()
        self._process.wait()

    def pause(self):
        os.kill(self._process.pid, signal.SIGSTOP)

    def resume(self):
        os.kill(self._process.pid, signal.SIGCONT)

    def wipe(self):
        """Lose everything, as a disk does: killed, emptied, started."""
        self.kill()
        for path in self.folder.iterdir():
            if path.name != 'log':
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.start()

    def stop(self):
        if self._process.poll() is None:
            self.resume()
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def url(self):
        return f'redis://127.0.0.1:{self.port}'


class RedisUnderSentinel:
    """A master, a replica, and a Sentinel that moves the name between."""

    def __init__(self):
        self.master = RedisServer(*RedisServer.DURABLE)
        self.replica = RedisServer(
            *RedisServer.DURABLE, '--replicaof',
            f'127.0.0.1 {self.master.port}', '--repl-diskless-sync-delay',
            '0')
        self.sentinel = RedisServer(sentinel=True)
        client = self.sentinel.client()
        client.execute_command('SENTINEL', 'MONITOR', 'geo', '127.0.0.1',
                               self.master.port, 1)
        for name, value in (('down-after-milliseconds', 500),
                            ('failover-timeout', 3000)):
            client.execute_command('SENTINEL', 'SET', 'geo', name, value)
        until(lambda: self.master.client().info('replication').get(
            'slave0', {}).get('state') == 'online', what='replica')
        # A Sentinel learns of replicas from the master, by and by.
        until(lambda: client.execute_command('SENTINEL', 'REPLICAS', 'geo'),
              what='the Sentinel knows the replica')

    @property
    def url(self):
        return f'redis+sentinel://127.0.0.1:{self.sentinel.port}/geo'

    def stop(self):
        for server in (self.sentinel, self.replica, self.master):
            server.stop()


class RedisCluster:
    """Two masters, each with half of the slots."""

    def __init__(self):
        self.nodes = [RedisServer(*RedisServer.DURABLE, '--cluster-enabled',
                                  'yes') for _ in range(2)]
        for node, first in zip(self.nodes, (0, 8192), strict=True):
            node.client().execute_command('CLUSTER', 'ADDSLOTSRANGE', first,
                                          first + 8191)
        self.nodes[0].client().execute_command(
            'CLUSTER', 'MEET', '127.0.0.1', self.nodes[1].port)
        for node in self.nodes:
            until(lambda node=node: b'cluster_state:ok' in
                  node.client().execute_command('CLUSTER', 'INFO')
                  or node.client().cluster('info').get(
                      'cluster_state') == 'ok', what='cluster')
            until(lambda node=node: len(node.client().cluster('nodes')) == 2,
                  what='cluster nodes')

    @property
    def url(self):
        hosts = ','.join(f'127.0.0.1:{node.port}' for node in self.nodes)
        return f'redis+cluster://{hosts}?wait_replicas=0'

    def stop(self):
        for node in self.nodes:
            node.stop()
