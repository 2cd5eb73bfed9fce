# SPDX-License-Identifier: Apache-2.0
"""Starting processes that outlive this one, and ending all of them.

Every process carries the lab's folder in its environment. ``end_all`` finds
them by that, so nothing is left even if the lab itself was killed between
starting a process and noting it.
"""

import os
import select
import signal
import subprocess
import time
from pathlib import Path

MARK = 'GLANCE_GEO_LAB'
ROLE = 'GLANCE_GEO_LAB_ROLE'


class LabError(Exception):
    """Shown to the user as one line."""


def start(folder, role, command, log, env=None, netns=None):
    """Start a process in its own session; return it.

    :param role: what it is, such as ``paris/agent``
    """
    if netns:
        command = ['ip', 'netns', 'exec', netns, *command]
    # setproctitle (gunicorn uses it) would write over the environment that
    # we recognise processes by.
    environment = {**os.environ, **(env or {}), MARK: str(folder),
                   ROLE: role, 'SPT_NOENV': '1'}
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    with open(log, 'ab') as output:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            env=environment, start_new_session=True, cwd=folder)


def running(folder):
    """Return {pid: role} of the lab's live processes."""
    mark = f'{MARK}={folder}'.encode()
    found = {}
    for entry in Path('/proc').iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            variables = (entry / 'environ').read_bytes().split(b'\0')
            state = (entry / 'stat').read_text().rpartition(')')[2].split()[0]
        except OSError:
            continue
        if mark in variables and state != 'Z':
            found[int(entry.name)] = next(
                (v.partition(b'=')[2].decode() for v in variables
                 if v.startswith(ROLE.encode() + b'=')), '?')
    return found


def end(folder, role=None, number=signal.SIGTERM, grace=10.0):
    """End the lab's processes (of one role); by force after the grace.

    When this returns, their sockets and files are closed too. (A process that
    exits is not ``running`` any more before they are.)
    """
    while pids := [pid for pid, its in running(folder).items()
                   if role is None or its == role]:
        _end(pids, number, grace)
        number = signal.SIGKILL


def _end(pids, number, grace):
    """Signal processes, and wait for some seconds until they are gone."""
    deadline = time.monotonic() + grace
    handles = []
    for pid in pids:
        try:
            handles.append(os.pidfd_open(pid))
        except ProcessLookupError:
            pass
    for handle in handles:
        try:
            signal.pidfd_send_signal(handle, number)
        except ProcessLookupError:
            pass
    try:
        for handle in handles:
            left = max(0.0, deadline - time.monotonic())
            select.select([handle], [], [], left)
    finally:
        for handle in handles:
            os.close(handle)


def wait_for(condition, what, seconds=60.0, log=None):
    """Wait until a condition holds; fail with the end of a log if not."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            text = ''
            if log is not None and Path(log).exists():
                lines = Path(log).read_text(errors='replace').splitlines()
                text = '\n  ' + '\n  '.join(lines[-12:])
            raise LabError(f'{what}: not within {seconds:.0f} s{text}')
        time.sleep(0.05)
