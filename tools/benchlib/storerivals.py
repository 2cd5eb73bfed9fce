# SPDX-License-Identifier: Apache-2.0
"""Backup tools that deduplicate: what the same images take in them."""

import os
import shutil
import subprocess
from pathlib import Path


def disk_bytes(folder):
    return sum(path.stat().st_size for path in Path(folder).rglob('*')
               if path.is_file())


class Rival:
    """A tool with a repository.

    :ivar program: what must be on PATH
    """

    program = ''

    def __init__(self, folder):
        self.repository = folder / self.program
        self.environment = {**os.environ, 'HOME': str(folder)}
        self._number = 0

    @classmethod
    def installed(cls):
        return shutil.which(cls.program) is not None

    def run(self, *arguments):
        subprocess.run([self.program, *map(str, arguments)], check=True,
                       env=self.environment, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)

    def start(self):
        """Make the repository."""

    def store(self, path):
        """Store an image; durable as far as the tool makes it."""
        raise NotImplementedError

    def bytes(self):
        return disk_bytes(self.repository)


class Borg(Rival):
    program = 'borg'

    def start(self):
        self.environment |= {
            'BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK': 'yes'}
        self.run('init', '--encryption=none', self.repository)

    def store(self, path):
        self._number += 1
        self.run('create', '--compression=zstd', '--files-cache=disabled',
                 f'{self.repository}::{self._number}', path)


class Restic(Rival):
    program = 'restic'

    def start(self):
        self.environment |= {'RESTIC_PASSWORD': 'bench', 'RESTIC_REPOSITORY':
                             str(self.repository)}
        self.run('init')

    def store(self, path):
        self.run('backup', '--force', path)


class Desync(Rival):
    program = 'desync'

    def start(self):
        (self.repository / 'store').mkdir(parents=True)

    def store(self, path):
        self._number += 1
        self.run('make', '-s', self.repository / 'store',
                 self.repository / f'{self._number}.caibx', path)


class Casync(Rival):
    program = 'casync'

    def start(self):
        self.repository.mkdir()

    def store(self, path):
        self._number += 1
        self.run('make', f'--store={self.repository}/store',
                 '--compression=zstd',
                 self.repository / f'{self._number}.caibx', path)


RIVALS = (Borg, Restic, Desync, Casync)
