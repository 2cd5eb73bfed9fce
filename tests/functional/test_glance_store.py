# SPDX-License-Identifier: Apache-2.0
"""glance_store's own functional driver tests, on the geo driver.

They come with glance_store, and know single stores and clouds.yaml only; what
is put in place here is the multi-store set-up that Glance itself uses.
"""

import functools
import pathlib
import tempfile

import glance_store
import testtools
from glance_store import location, multi_backend
from glance_store.tests.functional import base
from oslo_config import cfg


class TestGeo(base.BaseFunctionalTests):
    def __init__(self, *args, **kwargs):
        # Not base.Base's: it wants a cloud's credentials.
        testtools.TestCase.__init__(self, *args, **kwargs)

    def setUp(self):
        testtools.TestCase.setUp(self)
        made = tempfile.TemporaryDirectory()
        self.addCleanup(made.cleanup)
        folder = pathlib.Path(made.name)
        (folder / 'location.keys').write_text(f'k1 {"5a" * 32}\n')
        (folder / 'glance-api.conf').write_text(f'''
[DEFAULT]
enabled_backends = geo:geo
[glance_store]
default_backend = geo
[geo]
geo_store_datadir = {folder}/chunks
[glance_geo]
site_name = paris
agent_socket =
location_keys_file = {folder}/location.keys
''')
        conf = cfg.ConfigOpts()
        conf.register_opt(cfg.DictOpt('enabled_backends'))
        conf(['--config-file', str(folder / 'glance-api.conf')])
        # glance_store reads the process-wide options here and there.
        for module in (multi_backend, location):
            self.patch(module, 'CONF', conf)
        glance_store.register_store_opts(conf)
        glance_store.create_multi_stores(conf)
        self.store = glance_store.get_store_from_store_identifier('geo')
        self.patch(location, 'get_location_from_uri', functools.partial(
            location.get_location_from_uri_and_backend, backend='geo',
            conf=conf))


