# SPDX-License-Identifier: Apache-2.0
"""The sample configuration is what the options say, and it is usable."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_sample_is_up_to_date(tmp_path):
    made = tmp_path / 'sample.conf'
    subprocess.run(
        [str(Path(sys.executable).parent / 'oslo-config-generator'),
         '--namespace', 'glance_geo', '--wrap-width', '78', '--output-file',
         str(made)], check=True, capture_output=True)
    assert made.read_text() == (
        ROOT / 'etc' / 'glance-geo-site.conf.sample').read_text(), (
            'run "make config"')


def test_drivers_options_can_share_a_group():
    """As glance_store registers them where stores are not named."""
    from glance_store import backend
    from oslo_config import cfg
    conf = cfg.ConfigOpts()
    backend.register_opts(conf)
    assert 'geo_ipfs_api' in conf.glance_store
    assert 'ipfs_api' in conf.glance_store
