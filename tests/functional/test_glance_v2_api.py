# SPDX-License-Identifier: Apache-2.0
"""Glance's own functional v2 API tests, on our data API and our store.

Every test class of ``glance.tests.functional.v2`` (in-process) is subclassed
once: the embedded engine takes SQL's place, ``geo`` stores the place of
``file`` stores. ``doc/source/glance-tests.rst`` explains each test that ends
differently from the stock run; the list here is checked both ways, so that a
difference can neither appear nor vanish unnoticed.
"""

import copy
import functools
import importlib
import inspect
import os
import pkgutil
import socket
import sys
from unittest import mock

import glance.tests.functional.v2 as v2
import glance_store
import pytest
from glance.tests import functional
from oslo_config import cfg
from oslo_db import options as db_options

from glance_geo.conf import options
from glance_geo.db import api
from tests import engines

CONF = cfg.CONF

_LOOKS_INTO_FILES = ('looks for the image in the folder of a file store, or '
                     'makes the file driver fail')

#: Test -> why it can't end on geo stores as it does on file stores.
DIFFERENCES = {
    'test_stores': '/v2/info/stores/detail knows only the drivers in '
                   'glance_store itself, and fails for any other',
    **dict.fromkeys((
        'test_copy_image_revert_lifecycle',
        'test_parallel_all_stores_must_succeed_failure',
        'test_parallel_all_stores_must_succeed_failure_with_image_conversion',
        'test_parallel_all_target_stores_fail',
        'test_parallel_bare_raw_multi_store_success',
        'test_parallel_glance_direct_imports_all_stores',
        'test_parallel_partial_success_not_all_must'), _LOOKS_INTO_FILES)}

_resolve = socket.getaddrinfo


def _getaddrinfo(host, *arguments, **options):
    """Resolve the two names that the tests use also without a resolver."""
    if host == 'localhost.':
        host = 'localhost'
    elif host == 'example.com.':
        host = '192.0.2.1'
    return _resolve(host, *arguments, **options)


@pytest.fixture(autouse=True)
def in_glance_work_folder(glance_work_folder, monkeypatch):
    monkeypatch.chdir(glance_work_folder)
    monkeypatch.setattr(socket, 'getaddrinfo', _getaddrinfo)


@pytest.fixture(autouse=True)
def with_fresh_samples(request, monkeypatch):
    """Some tests change the samples of their module, which run once only
    where Glance runs them."""
    for its in request.cls.__mro__:
        if its.__module__.startswith(v2.__name__):
            module = sys.modules[its.__module__]
            for name, value in vars(module).items():
                if name.isupper() and isinstance(value, dict):
                    monkeypatch.setattr(module, name, copy.deepcopy(value))


class OnGeo:
    """Overrides the two hooks of Glance's base class, and nothing else."""

    metadata_engine = 'sqlite'

    def setup_database(self):
        options.register(CONF)
        keys = f'{self.test_dir}/location.keys'
        with open(keys, 'w') as file:
            file.write(f'k1 {"5a" * 32}\n')
        for name, value in (('site_name', 'test'), ('agent_socket', ''),
                            ('location_keys_file', keys)):
            self.config(**{name: value}, group=options.GROUP)
        data_api = api.load(engines.url(self.metadata_engine,
                                        self.test_dir))
        self.addCleanup(data_api.close)
        for target, ours in (('glance.db.get_api', lambda: data_api),
                             ('glance.quota.keystone.db', data_api)):
            patch = mock.patch(target, ours)
            patch.start()
            self.addCleanup(patch.stop)

    def setup_stores(self):
        # Glance registers the options of file stores; geo ones have their
        # own, under the same store names.
        super().setup_stores()
        stores = {name: 'geo' for name in ('store1', 'store2', 'store3')}
        self.config(enabled_backends=stores)
        for name in stores:
            CONF.register_opts(options.store_opts, group=name)
            self.config(geo_store_datadir=f'{self._store_dir(name)}-chunks',
                        group=name)
        glance_store.create_multi_stores(CONF)


def _classes():
    for module in pkgutil.iter_modules(v2.__path__):
        if not module.name.startswith('test_'):
            continue
        loaded = importlib.import_module(f'{v2.__name__}.{module.name}')
        for name, its in inspect.getmembers(loaded, inspect.isclass):
            if (issubclass(its, functional.SynchronousAPIBase)
                    and its.__module__ == loaded.__name__):
                yield module.name, name, its


def _define():
    stock = bool(os.environ.get('GLANCE_GEO_TEST_STOCK'))
    if stock:
        db_options.set_defaults(CONF)
    for module, name, its in _classes():
        made = f'{name}_{module.removeprefix("test_")}'
        if stock:
            globals()[made] = type(made, (its,), {'__module__': __name__})
            continue
        different = {
            test: pytest.mark.xfail(reason=why, strict=True)(
                _again(getattr(its, test)))
            for test, why in DIFFERENCES.items() if hasattr(its, test)}
        for engine in engines.PRODUCTS:
            globals()[f'{made}_on_{engine}'] = type(
                f'{made}_on_{engine}', (OnGeo, its),
                {'__module__': __name__, 'metadata_engine': engine,
                 **different})


def _again(test):
    """Return the same test as another function, to carry its own mark."""
    @functools.wraps(test)
    def run(self):
        return test(self)
    return run


_define()
