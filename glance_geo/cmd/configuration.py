# SPDX-License-Identifier: Apache-2.0
"""Reading glance-api.conf in our own commands, as Glance reads it."""

import os
from collections.abc import Sequence

# Glance's modules register options, command-line ones among them, when they
# are imported: that must come before the arguments are parsed.
import glance.common.config
import glance.common.utils  # noqa: F401
from oslo_config import cfg
from oslo_log import log

from glance_geo.conf import options
from glance_geo.core import errors

PROJECT = 'glance'
PROGRAM = 'glance-api'


def read(arguments: Sequence[str], program: str) -> cfg.ConfigOpts:
    """Parse ``--config-file`` and ``--config-dir`` and the files.

    Without either, the files that glance-api itself would read, honouring
    ``OS_GLANCE_CONFIG_DIR``.

    :raises ConfigurationInvalid: a file is missing or malformed
    """
    conf = cfg.CONF
    try:
        log.register_options(conf)
    except cfg.ArgsAlreadyParsedError:
        pass    # a second read in one process
    options.register(conf)
    files = None
    folder = os.environ.get('OS_GLANCE_CONFIG_DIR')
    if folder:
        files = [os.path.join(folder, f'{PROGRAM}.conf')]
    else:
        files = cfg.find_config_files(PROJECT, PROGRAM)
    try:
        conf(list(arguments), project=PROJECT, prog=program,
             default_config_files=files)
    except cfg.Error as error:
        raise errors.ConfigurationInvalid(str(error)) from error
    return conf
