# SPDX-License-Identifier: Apache-2.0
"""``glance-geo``: the operator's command."""

import logging
import sys
import warnings
from collections.abc import Sequence
from importlib import metadata

from cliff import app, commandmanager

from glance_geo.core import errors


class GlanceGeo(app.App):
    """Its commands are the entry points of ``glance_geo.cli``."""

    DEFAULT_VERBOSE_LEVEL = 0   # a command's output is its result

    def __init__(self) -> None:
        super().__init__(
            description='Operate geo-distributed Glance sites.',
            version=metadata.version('glance_geo'),
            command_manager=commandmanager.CommandManager('glance_geo.cli'),
            deferred_help=True)

    def build_option_parser(self, description, version, argparse_kwargs=None):
        parser = super().build_option_parser(description, version,
                                             argparse_kwargs)
        parser.add_argument(
            '--config-file', action='append', default=[], metavar='PATH',
            help='glance-api.conf of this node (default: where glance-api '
                 'looks, or $OS_GLANCE_CONFIG_DIR/glance-api.conf)')
        parser.add_argument(
            '--config-dir', action='append', default=[], metavar='DIR',
            help='folder of *.conf files')
        return parser

    def configure_logging(self) -> None:
        super().configure_logging()
        if not self.options.debug:
            for noisy in ('httpx', 'httpcore', 'stevedore'):
                logging.getLogger(noisy).setLevel(logging.WARNING)

    def run_subcommand(self, argv):
        try:
            return super().run_subcommand(argv)
        except errors.GeoError as error:
            print(f'glance-geo: {error}', file=sys.stderr)
            return 1

    def configuration(self):
        """Read the node's configuration."""
        from glance_geo.cmd import configuration
        arguments = []
        for path in self.options.config_file:
            arguments += ['--config-file', path]
        for path in self.options.config_dir:
            arguments += ['--config-dir', path]
        return configuration.read(arguments, 'glance-geo')


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command."""
    # A library that Glance imports says so at every start.
    warnings.filterwarnings('ignore', message=r'\s*Eventlet is deprecated')
    try:
        return GlanceGeo().run(list(sys.argv[1:] if argv is None else argv))
    except errors.GeoError as error:
        print(f'glance-geo: {error}', file=sys.stderr)
        return 1
