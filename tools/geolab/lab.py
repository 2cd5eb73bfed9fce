# SPDX-License-Identifier: Apache-2.0
"""What the lab does: bring sites up, cut and heal links, take all down."""

import http.client
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

from geolab import cockroach, ipfs, layout, planning, processes
from geolab.links_relay import RelayLinks
from geolab.links_wan import WanLinks, parse
from geolab.processes import LabError

_METADATA = {'sqlite': 'sqlite:///{folder}/metadata.db',
             'redis': 'redis://127.0.0.1:{port}', 'cockroachdb': None}


def program(name):
    """Return the path of a command of this Python's environment."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        raise LabError(f'{name} is not installed in this environment; '
                       f'pip install -r tools/requirements.txt')
    return found


class Lab:
    """A lab in a folder, running or not."""

    def __init__(self, folder):
        self.folder = Path(folder).absolute()
        self._state_file = self.folder / 'lab.json'
        self._started = {}

    # -- state ------------------------------------------------------------
    @property
    def state(self):
        try:
            return json.loads(self._state_file.read_text())
        except FileNotFoundError:
            raise LabError(f'no lab in {self.folder}; start one with '
                           f'"tools/lab up --dir {self.folder}"') from None

    @property
    def links(self):
        state = self.state
        kind = WanLinks if state['links']['kind'] == 'wan' else RelayLinks
        return kind(self.folder, state['links'])

    @property
    def sites(self):
        if not self._state_file.exists():
            return self.state    # which says that there is no lab
        return json.loads((self.folder / 'sites.json').read_text())

    def _site(self, name):
        if name not in self.sites:
            raise LabError(f'no site {name}; there are '
                           f'{", ".join(self.sites)}')
        return name

    # -- up ---------------------------------------------------------------
    def up(self, names, metadata='sqlite', wan=None,
           stores=layout.GEO, convert=False, extra=()):
        if metadata not in _METADATA and '://' not in metadata:
            raise LabError(f'--metadata {metadata}: use '
                           f'{", ".join(_METADATA)}, or the URL of an engine '
                           f'that all sites share')
        if metadata == 'cockroachdb':
            cockroach.binary()
        if stores.uses_ipfs:
            ipfs.needed()
        if len(set(names)) != len(names):
            raise LabError('--sites: names must differ')
        if self._state_file.exists() or processes.running(self.folder):
            raise LabError(f'a lab is in {self.folder} already; '
                           f'"tools/lab down --dir {self.folder}" first')
        (self.folder / 'run').mkdir(parents=True, exist_ok=True)
        plan = (planning.relay(names) if wan is None
                else planning.wan(self.folder, names, wan))
        self._state_file.write_text(json.dumps(
            {'links': plan['links'], 'metadata': metadata,
             'ipfs': stores.uses_ipfs}, indent=1))
        self._write_sites(plan['sites'])
        try:
            self._keys(plan['sites'])
            for name, site in plan['sites'].items():
                layout.write_site(
                    self.folder / name, name, site['endpoint'],
                    site['listen'], site['peers'],
                    self._metadata_url(metadata, name, plan['sites']),
                    stores, site['ipfs_api'], convert, extra)
            self.links.start()
            if stores.uses_ipfs:
                self._start_swarm(plan['sites'])
            self._start_databases(metadata, plan['sites'])
            for name in names:
                self.start_agent(name, wait=False)
                self.start_api(name, wait=False)
            for name in names:
                self._wait_agent(name)
                self._wait_api(name)
        except BaseException:
            self.down()
            raise

    def _metadata_url(self, metadata, name, sites):
        if metadata == 'cockroachdb':
            return cockroach.url(name, cockroach.nodes(sites))
        return _METADATA.get(metadata, metadata).format(
            folder=self.folder / name, port=sites[name]['redis_port'])

    def _start_databases(self, metadata, sites):
        if metadata == 'redis':
            for name, site in sites.items():
                self._start_redis(name, site['redis_port'])
        elif metadata == 'cockroachdb':
            self._start_cockroach(sites)
        if metadata == 'cockroachdb' or metadata.startswith(layout.SQL):
            first = next(iter(sites))
            prefix = self._inside(first)
            self._run([*prefix, program('glance-geo'), '--config-file', str(
                self.folder / first / 'etc' / 'glance-api.conf'), 'db',
                'sync'])

    def _inside(self, name):
        netns = self.links.netns(name)
        return ['ip', 'netns', 'exec', netns] if netns else []

    def _start_cockroach(self, sites):
        nodes = cockroach.nodes(sites)
        for name in sites:
            self._started[f'{name}/{cockroach.ROLE}'] = processes.start(
                self.folder, f'{name}/{cockroach.ROLE}',
                cockroach.start_command(name, self.folder / name, nodes),
                self.folder / name / 'log' / 'cockroach.log',
                netns=self.links.netns(name))
        first = next(iter(sites))

        def done(command):
            return subprocess.run([*self._inside(first), *command],
                                  capture_output=True, text=True)
        init, create = cockroach.init_commands(nodes)

        def initialised():
            its = done(init)
            return not its.returncode or 'already' in its.stderr
        self._wait(first, cockroach.ROLE, initialised)
        self._wait(first, cockroach.ROLE,
                   lambda: not done(create).returncode)

    def _write_sites(self, sites):
        (self.folder / 'sites.json').write_text(json.dumps({
            name: {'endpoint': site['endpoint'], 'agent': site['listen'],
                   'redis_port': site['redis_port'],
                   'ipfs_api': site['ipfs_api'],
                   'config_dir': str(self.folder / name / 'etc'),
                   'env': {'OS_AUTH_TYPE': 'none',
                           'OS_ENDPOINT': site['endpoint'],
                           'OS_GLANCE_CONFIG_DIR':
                               str(self.folder / name / 'etc')}}
            for name, site in sites.items()}, indent=1))

    def _keys(self, sites):
        command = program('glance-geo')
        authority = self.folder / 'ca'
        # A lab that comes up again in its folder keeps its data and keys.
        if not authority.exists():
            self._run([command, 'ca', 'init', '--dir', str(authority)])
        for name, site in sites.items():
            self._run([command, 'site', 'init', name, '--ca-dir',
                       str(authority), '--overwrite', '--dir',
                       str(self.folder / name / 'etc' / 'keys'),
                       *itertools.chain.from_iterable(
                           ('--address', a) for a in site['addresses'])])

    @staticmethod
    def _run(command):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise LabError(f'{" ".join(command)}: {done.stderr.strip()}')

    # -- processes --------------------------------------------------------
    def _environment(self, name):
        path = str(Path(__file__).resolve().parent.parent)
        return {'OS_GLANCE_CONFIG_DIR': str(self.folder / name / 'etc'),
                'PYTHONPATH': os.pathsep.join(
                    filter(None, (path, os.environ.get('PYTHONPATH')))),
                'PYTHONWARNINGS': 'ignore'}

    def _start_redis(self, name, port):
        """Start a durable Redis of the site's own, and wait for it."""
        data = self.folder / name / 'redis'
        data.mkdir(exist_ok=True)
        self._started[f'{name}/redis'] = processes.start(
            self.folder, f'{name}/redis',
            [program('redis-server'), '--port', str(port), '--bind',
             '127.0.0.1', '--appendonly', 'yes', '--appendfsync', 'always',
             '--save', '', '--dir', str(data),
             # It would write over the environment that it is known by.
             '--set-proc-title', 'no'],
            self.folder / name / 'log' / 'redis.log',
            netns=self.links.netns(name))

        def ready():
            done = subprocess.run(
                [*self._inside(name), program('redis-cli'), '-p', str(port),
                 'ping'], capture_output=True, text=True)
            return done.stdout.strip() == 'PONG'
        self._wait(name, 'redis', ready)

    def _start_swarm(self, sites):
        """Make the sites' nodes of IPFS known to each other; start them."""
        command, first = program('glance-geo'), self.folder / next(iter(
            sites))
        ids = {name: ipfs.init(command, self.folder / name, site, first)
               for name, site in sites.items()}
        for name, site in sites.items():
            ipfs.init(command, self.folder / name, site, first, [
                f'{address}/p2p/{ids[other]}'
                for other, address in site['ipfs_peers'].items()])
            self.start_ipfs(name, wait=False)
        for name in sites:
            self._wait_ipfs(name)

    def start_ipfs(self, name, wait=True):
        argv, environment = ipfs.daemon(self.folder / name)
        self._started[f'{name}/{ipfs.ROLE}'] = processes.start(
            self.folder, f'{name}/{ipfs.ROLE}', argv,
            self.folder / name / 'log' / 'ipfs.log', environment,
            self.links.netns(name))
        if wait:
            self._wait_ipfs(name)

    def _wait_ipfs(self, name):
        self._wait(name, ipfs.ROLE,
                   lambda: ipfs.answers(self.sites[name]['ipfs_api']))

    def start_api(self, name, wait=True):
        bind = urlsplit(self.sites[name]['endpoint']).netloc
        self._started[f'{name}/glance-api'] = processes.start(
            self.folder, f'{name}/glance-api',
            [program('gunicorn'), '-w', '2', '--threads', '8', '-b', bind,
             '--graceful-timeout', '3', '--log-level', 'warning',
             'glance.wsgi.api:application'],
            self.folder / name / 'log' / 'glance-api.log',
            self._environment(name), self.links.netns(name))
        if wait:
            self._wait_api(name)

    def start_agent(self, name, wait=True):
        self._started[f'{name}/agent'] = processes.start(
            self.folder, f'{name}/agent',
            [program('glance-geo-agent'), '--config-file',
             str(self.folder / name / 'etc' / 'glance-api.conf')],
            self.folder / name / 'log' / 'agent.log',
            self._environment(name), self.links.netns(name))
        if wait:
            self._wait_agent(name)

    def _answers(self, name):
        parts = urlsplit(self.sites[name]['endpoint'])
        try:
            connection = http.client.HTTPConnection(
                parts.hostname, parts.port, timeout=2)
            connection.request('GET', '/healthcheck')
            return connection.getresponse().status == 200
        except OSError:
            return False

    def _alive(self, role):
        return role in processes.running(self.folder).values()

    def _wait(self, name, role, ready):
        log = self.folder / name / 'log' / f'{role}.log'

        def condition():
            # Its environment can't be read yet in the first moments.
            if self._started[f'{name}/{role}'].poll() is not None:
                text = log.read_text(errors='replace').splitlines()
                raise LabError(f'{role} of {name} ended: '
                               + (text[-1] if text else 'no output'))
            return ready()
        processes.wait_for(condition, f'{role} of {name} does not answer',
                           log=log)

    def _wait_api(self, name):
        self._wait(name, 'glance-api', lambda: self._answers(name))

    def _wait_agent(self, name):
        path = self.folder / name / 'run' / 'agent.sock'

        def ready():
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(str(path))
                    return True
                except OSError:
                    return False
        self._wait(name, 'agent', ready)

    def kill(self, name, role):
        """Kill a site's process as a power cut would."""
        processes.end(self.folder, f'{self._site(name)}/{role}',
                      signal.SIGKILL)

    def start(self, name, role):
        """Start a site's process again."""
        if self._alive(f'{self._site(name)}/{role}'):
            raise LabError(f'{role} of {name} runs already')
        if role == 'redis':
            self._start_redis(name, self.sites[name]['redis_port'])
        else:
            {'glance-api': self.start_api, 'agent': self.start_agent,
             ipfs.ROLE: self.start_ipfs}[role](name)

    # -- down -------------------------------------------------------------
    def down(self):
        """End everything, also what a crashed lab left; keep the files."""
        processes.end(self.folder)
        if self._state_file.exists():
            self.links.remove()
            self._state_file.unlink()

    # -- links ------------------------------------------------------------
    def _pairs(self, a=None, b=None):
        names = list(self.sites)
        if a is None:
            return list(itertools.combinations(names, 2))
        self._site(a)
        if b is None:
            return [(a, other) for other in names if other != a]
        if a == self._site(b):
            raise LabError('a link has two different ends')
        return [(a, b)]

    def cut(self, a, b):
        self.links.cut(self._pairs(a, b))

    def isolate(self, a):
        self.links.cut(self._pairs(a))

    def heal(self, a=None, b=None):
        self.links.heal(self._pairs(a, b))

    def link(self, a, b, shape):
        self._pairs(a, b)
        self.links.shape(a, b, parse(','.join(shape)))

    def bytes(self):
        return self.links.bytes()

    def status(self):
        running = sorted(processes.running(self.folder).values())
        return {'sites': {name: {
            'endpoint': site['endpoint'],
            'glance-api': 'up' if self._answers(name) else 'down',
            'agent': 'up' if f'{name}/agent' in running else 'down'}
            for name, site in self.sites.items()},
            'cut': self.links.cut_links()}

    def command(self, site, arguments):
        """Return (argv, environment) of a command at a site."""
        netns = self.links.netns(self._site(site))
        bin_folder = str(Path(sys.executable).parent)
        environment = {
            **os.environ, **self.sites[site]['env'],
            'PATH': os.pathsep.join((bin_folder, os.environ['PATH']))}
        prefix = ['ip', 'netns', 'exec', netns] if netns else []
        return [*prefix, *arguments], environment
