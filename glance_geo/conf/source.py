# SPDX-License-Identifier: Apache-2.0
"""The oslo.config source driver through which stock Glance loads us.

``[DEFAULT] config_source = glance_geo`` makes oslo.config open this driver
while it reads glance-api.conf, in every Glance binary that reads the file and
before any of them asks for the data API. It supplies no option values; it
puts the data API in place.
"""

import logging
import sys
from typing import Any

from oslo_config import cfg, sources

LOG = logging.getLogger(__name__)


class _NoValues(sources.ConfigurationSource):
    def get(self, group_name: str | None, option_name: str,
            opt: cfg.Opt) -> Any:
        return (sources._NoValue, None)


class GlanceGeoSourceDriver(sources.ConfigurationSourceDriver):
    """Puts glance_geo's data API in the place of Glance's SQL one."""

    def __init__(self) -> None:
        from glance_geo import assembly
        assembly.guard_against_sql()

    def list_options_for_discovery(self) -> list[cfg.Opt]:
        from glance_geo.conf import options
        return [*options.site_opts, *options.agent_opts]

    def open_source_from_opt_group(self, conf: cfg.ConfigOpts,
                                   group_name: str,
                                   ) -> sources.ConfigurationSource:
        # oslo.config logs and swallows an Exception from here, and Glance
        # would start on its SQL database: only SystemExit gets through.
        try:
            from glance_geo import assembly
            from glance_geo.conf import options
            if group_name != options.GROUP:
                raise ValueError(
                    f'config_source must name the group [{options.GROUP}], '
                    f'not [{group_name}]')
            assembly.install_data_api(conf)
        except Exception as error:
            message = f'glance_geo: {error}'
            LOG.critical(message)
            print(message, file=sys.stderr, flush=True)
            raise SystemExit(message) from error
        return _NoValues()
