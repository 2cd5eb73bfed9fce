# SPDX-License-Identifier: Apache-2.0
"""Links between network namespaces, shaped like a WAN (needs root).

Each site is a namespace. Each two sites are joined by a link of their own:
a veth pair with ``tc netem`` where the kernel has it, else two taps joined by
VDE's ``wirefilter``, which does the same in user space. A third pair of
addresses joins each site with the calling shell; it carries no traffic
between sites.
"""

import hashlib
import itertools
import json
import os
import shutil
import socket
import subprocess

from geolab import processes
from geolab.links_relay import link_name
from geolab.processes import LabError

_NEEDED = {'vde_switch': 'vde2', 'wirefilter': 'vde2', 'dpipe': 'vdeplug',
           'vde_plug': 'vdeplug'}


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise LabError(f'{" ".join(command)}: {done.stderr.strip()}')
    return done.stdout


def parse(text):
    """Return {delay: ms, rate: bytes/s, loss: per cent} of an option."""
    shape = {'delay': 0.0, 'rate': 0.0, 'loss': 0.0}
    units = {'kbit': 125.0, 'mbit': 125e3, 'gbit': 125e6}
    for part in filter(None, text.split(',')):
        name, _, value = part.partition('=')
        try:
            if name == 'delay':
                shape['delay'] = float(value.removesuffix('ms'))
            elif name == 'rate':
                shape['rate'] = float(value[:-4]) * units[value[-4:].lower()]
            elif name == 'loss':
                shape['loss'] = float(value.removesuffix('%'))
            else:
                raise ValueError
        except (ValueError, KeyError):
            raise LabError(f'--wan: {part!r}; use delay=25ms,rate=100mbit,'
                           f'loss=0.1%') from None
    return shape


def has_netem():
    """Say whether this kernel shapes traffic by itself."""
    name = f'geo-probe-{os.getpid()}'
    run('ip', 'netns', 'add', name)
    try:
        run('ip', '-n', name, 'link', 'set', 'lo', 'up')
        return subprocess.run(
            ['ip', 'netns', 'exec', name, 'tc', 'qdisc', 'add', 'dev', 'lo',
             'root', 'netem', 'delay', '1ms'],
            capture_output=True).returncode == 0
    finally:
        run('ip', 'netns', 'del', name)


def _until_prompt(connection):
    """Return what wirefilter says before it asks for the next command."""
    text = b''
    while not text.rstrip().endswith(b'$'):
        data = connection.recv(4096)
        if not data:
            raise LabError('link: wirefilter closed its management socket')
        text += data
    return text.decode()


class WanLinks:
    """The links of a lab started with ``--wan``."""

    kind = 'wan'

    def __init__(self, folder, state):
        self._folder = folder
        self._state = state

    @staticmethod
    def plan(folder, names):
        """Return addresses for the sites and their links."""
        if os.geteuid() != 0:
            raise LabError('--wan needs root (network namespaces)')
        netem = has_netem()
        if not netem:
            missing = {package for tool, package in _NEEDED.items()
                       if not shutil.which(tool)}
            if missing:
                raise LabError(
                    'this kernel has no netem; --wan needs VDE: apt-get '
                    f'install {" ".join(sorted(missing))}')
        mark = hashlib.sha256(str(folder).encode()).hexdigest()[:5]
        third = int(mark[:2], 16)
        links = {link_name(a, b): {
            'ends': sorted((a, b)), 'number': number,
            'net': f'10.214.{number}'}
            for number, (a, b) in enumerate(
                itertools.combinations(sorted(names), 2))}
        return {'netem': netem, 'mark': mark, 'links': links, 'sites': {
            name: {'netns': f'geo-{mark}-{name}',
                   'outside': f'10.213.{third}.{4 * number + 1}',
                   'address': f'10.213.{third}.{4 * number + 2}',
                   'veth': f'g{mark}{number}'}
            for number, name in enumerate(sorted(names))}}

    def netns(self, site):
        return self._state['sites'][site]['netns']

    def address(self, link, site):
        link = self._state['links'][link]
        return f'{link["net"]}.{link["ends"].index(site) + 1}'

    def _device(self, link):
        return f'wan{self._state["links"][link]["number"]}'

    def start(self):
        for site in self._state['sites'].values():
            netns, veth = site['netns'], site['veth']
            run('ip', 'netns', 'add', netns)
            run('ip', 'link', 'add', veth, 'type', 'veth', 'peer', 'name',
                'mgmt0', 'netns', netns)
            run('ip', 'addr', 'add', f'{site["outside"]}/30', 'dev', veth)
            run('ip', 'link', 'set', veth, 'up')
            run('ip', '-n', netns, 'addr', 'add', f'{site["address"]}/30',
                'dev', 'mgmt0')
            for device in ('lo', 'mgmt0'):
                run('ip', '-n', netns, 'link', 'set', device, 'up')
        for name in self._state['links']:
            (self._start_netem if self._state['netem']
             else self._start_vde)(name)
        for name, link in self._state['links'].items():
            for site in link['ends']:
                netns, device = self.netns(site), self._device(name)
                run('ip', '-n', netns, 'addr', 'add',
                    f'{self.address(name, site)}/24', 'dev', device)
                run('ip', '-n', netns, 'link', 'set', device, 'up')
            self.shape(*link['ends'], self._state['shape'])

    def _start_netem(self, name):
        a, b = self._state['links'][name]['ends']
        device = self._device(name)
        run('ip', '-n', self.netns(a), 'link', 'add', device, 'type', 'veth',
            'peer', 'name', device, 'netns', self.netns(b))

    def _start_vde(self, name):
        folder = self._folder / 'run'
        device = self._device(name)
        plugs = []
        for site in self._state['links'][name]['ends']:
            control = str(folder / f'{device}-{site}.ctl')
            processes.start(
                self._folder, f'link {name}',
                ['vde_switch', '-d', '-s', control, '-tap', device],
                folder / f'{device}.log', netns=self.netns(site))
            processes.wait_for(
                lambda c=control: os.path.exists(f'{c}/ctl'),
                f'vde_switch of {name} does not start',
                log=folder / f'{device}.log')
            plugs.append(control)
        management = str(folder / f'{device}.mgmt')
        processes.start(
            self._folder, f'link {name}',
            # Below a shell: dpipe wants a process group of its own, which
            # the leader of a session can't make.
            ['sh', '-c', '"$@" & wait', 'sh', 'dpipe', 'vde_plug', plugs[0],
             '=', 'wirefilter', '-M', management, '=', 'vde_plug', plugs[1]],
            folder / f'{device}.log')
        processes.wait_for(lambda: os.path.exists(management),
                           f'wirefilter of {name} does not start',
                           log=folder / f'{device}.log')

    def shape(self, a, b, shape):
        name = link_name(a, b)
        if not self._state['netem']:
            commands = [f'delay {shape["delay"]}',
                        f'bandwidth {int(shape["rate"])}',
                        f'loss {shape["loss"]}']
            path = str(self._folder / 'run' / f'{self._device(name)}.mgmt')
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(5)
                connection.connect(path)
                _until_prompt(connection)
                for command in commands:
                    connection.sendall(command.encode() + b'\n')
                    answer = _until_prompt(connection)
                    if '1000' not in answer:
                        raise LabError(f'link: {command}: {answer.strip()}')
            return
        for site in (a, b):
            options = ['delay', f'{shape["delay"]}ms']
            if shape['rate']:
                options += ['rate', f'{int(shape["rate"] * 8)}bit']
            if shape['loss']:
                options += ['loss', f'{shape["loss"]}%']
            run('ip', 'netns', 'exec', self.netns(site), 'tc', 'qdisc',
                'replace', 'dev', self._device(name), 'root', 'netem',
                'limit', '10000', *options)

    def _set(self, links, state):
        for a, b in links:
            name = link_name(a, b)
            for site in (a, b):
                run('ip', '-n', self.netns(site), 'link', 'set',
                    self._device(name), state)

    def cut(self, links):
        self._set(links, 'down')

    def heal(self, links):
        self._set(links, 'up')

    def bytes(self):
        found = {}
        for name, link in self._state['links'].items():
            device = self._device(name)
            found[name] = 0
            for site in link['ends']:
                text = run('ip', '-n', self.netns(site), '-j', '-s', 'link',
                           'show', 'dev', device)
                found[name] += json.loads(text)[0]['stats64']['rx']['bytes']
        return found

    def cut_links(self):
        return [name for name, link in self._state['links'].items()
                if 'UP' not in json.loads(run(
                    'ip', '-n', self.netns(link['ends'][0]), '-j', 'link',
                    'show', 'dev', self._device(name)))[0]['flags']]

    def remove(self):
        for site in self._state['sites'].values():
            subprocess.run(['ip', 'netns', 'del', site['netns']],
                           capture_output=True)
            subprocess.run(['ip', 'link', 'del', site['veth']],
                           capture_output=True)
