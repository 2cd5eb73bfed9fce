# SPDX-License-Identifier: Apache-2.0
"""Links over loopback: a relay between each two sites that counts and cuts.

Each site reaches each other site's agent through a port of the relay. A cut
link drops its connections and refuses new ones.
"""

import asyncio
import itertools
import json
import socket
import sys
from pathlib import Path

from geolab import processes


def link_name(a, b):
    return '-'.join(sorted((a, b)))


class Relay:
    """The relay process."""

    def __init__(self, plan):
        self.cut = set()
        self.bytes = {link_name(a, b): 0 for a, b, *_ in plan['routes']}
        self._routes = plan['routes']
        self._writers = {}

    async def run(self, control):
        for source, target, port, agent in self._routes:
            await asyncio.start_server(
                self._handler(link_name(source, target), agent),
                '127.0.0.1', port)
        server = await asyncio.start_unix_server(self._control, control)
        await server.serve_forever()

    def _handler(self, link, agent):
        async def handle(reader, writer):
            if link in self.cut:
                writer.transport.abort()
                return
            try:
                far_reader, far_writer = await asyncio.open_connection(
                    '127.0.0.1', agent)
            except OSError:
                writer.transport.abort()
                return
            pair = (writer, far_writer)
            self._writers.setdefault(link, set()).update(pair)
            try:
                await asyncio.gather(self._pump(link, reader, far_writer),
                                     self._pump(link, far_reader, writer))
            finally:
                self._writers[link].difference_update(pair)
                for end in pair:
                    end.transport.abort()
        return handle

    async def _pump(self, link, reader, writer):
        try:
            while data := await reader.read(65536):
                self.bytes[link] += len(data)
                writer.write(data)
                await writer.drain()
            writer.write_eof()
        except (OSError, RuntimeError):
            writer.transport.abort()

    async def _control(self, reader, writer):
        request = json.loads(await reader.readline())
        for link in request.get('cut', ()):
            self.cut.add(link)
            for end in list(self._writers.get(link, ())):
                end.transport.abort()
        self.cut.difference_update(request.get('heal', ()))
        writer.write(json.dumps({'cut': sorted(self.cut),
                                 'bytes': self.bytes}).encode() + b'\n')
        await writer.drain()
        writer.close()


class RelayLinks:
    """The links of a lab without network namespaces."""

    kind = 'relay'

    def __init__(self, folder, state):
        self._folder = folder
        self._state = state
        self._control = str(folder / 'run' / 'relay.sock')

    @staticmethod
    def plan(sites, ports, to):
        """Return the relay's routes: (from, to, port, port there).

        :param to: which of a site's ports they lead to
        """
        return [(a, b, next(ports), sites[b][to])
                for a, b in itertools.permutations(sites, 2)]

    def start(self):
        plan = self._folder / 'run' / 'relay.json'
        plan.write_text(json.dumps({'routes': self._state['routes']}))
        log = self._folder / 'run' / 'relay.log'
        processes.start(
            self._folder, 'relay',
            [sys.executable, '-m', 'geolab.links_relay', str(plan),
             self._control], log,
            {'PYTHONPATH': str(Path(__file__).resolve().parent.parent)})
        processes.wait_for(self._answers, 'the relay does not start', log=log)

    def _answers(self):
        try:
            self._ask({})
            return True
        except OSError:
            return False

    def _ask(self, request):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(self._control)
            connection.sendall(json.dumps(request).encode() + b'\n')
            with connection.makefile() as answer:
                return json.loads(answer.readline())

    def netns(self, site):
        return None

    def cut(self, links):
        self._ask({'cut': [link_name(a, b) for a, b in links]})

    def heal(self, links):
        self._ask({'heal': [link_name(a, b) for a, b in links]})

    def shape(self, a, b, options):
        raise processes.LabError(
            'link: needs a lab that was started with --wan')

    def bytes(self):
        return self._ask({})['bytes']

    def cut_links(self):
        return self._ask({})['cut']

    def remove(self):
        pass


if __name__ == '__main__':
    asyncio.run(Relay(json.loads(Path(sys.argv[1]).read_text())).run(
        sys.argv[2]))
