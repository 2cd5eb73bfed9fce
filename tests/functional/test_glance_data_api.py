# SPDX-License-Identifier: Apache-2.0
"""Glance's own data-API tests, as shipped, on the metadata engines.

Every class of ``glance.tests.functional.db`` but ``DBPurgeTests`` (SQL only),
with no test overridden: each is subclassed once per engine, and only the
functions that choose and reset the data API are ours.
"""

import tempfile
from pathlib import Path
from unittest import mock

import glance.tests.functional.db as db_tests
import pytest
from glance.context import RequestContext
from glance.tests.functional.db import base, base_metadef, test_sqlalchemy

from glance_geo.db import api, metadeffiles
from tests import engines


@pytest.fixture(autouse=True)
def in_glance_work_folder(glance_work_folder, monkeypatch):
    monkeypatch.chdir(glance_work_folder)


def address(test, name):
    folder = tempfile.TemporaryDirectory()
    test.addCleanup(folder.cleanup)
    return engines.url(name, folder.name)


ENGINES = {'Memory': 'memory', 'SQLite': 'sqlite', 'Redis': 'redis',
           'RedisSentinel': 'redis-sentinel', 'RedisCluster': 'redis-cluster',
           'Riak': 'riak'}

CLASSES = {
    'Driver': (base.TestDriver, base.DriverTests),
    'Visibility': (base.TestVisibility, base.VisibilityTests),
    'MembershipVisibility': (base.TestMembershipVisibility,
                             base.MembershipVisibilityTests),
    'Task': (base.TaskTests,),
    'Quota': (base.DriverQuotaTests,),
    'Metadef': (base_metadef.TestMetadefDriver,
                base_metadef.MetadefDriverTests),
    # Glance defines these only beside its SQL tests.
    'CacheOps': (test_sqlalchemy.TestImageCacheOperations,),
    'AtomicOps': (test_sqlalchemy.TestImageAtomicOps,),
    'StorageUsage': (test_sqlalchemy.TestImageStorageUsage,),
}


class MetadefFiles:
    context = RequestContext(is_admin=True)

    @classmethod
    def db_load_metadefs(cls, data_api):
        metadeffiles.load(data_api,
                          metadeffiles.read(Path('etc/metadefs')))

    @classmethod
    def db_unload_metadefs(cls, data_api):
        metadeffiles.unload(data_api, cls.context)


def reset(data_api):
    data_api.reset()


def subclass(name, bases, engine):
    def setUp(self):
        def get_db(config):
            config(debug=False)
            data_api = api.load(address(self, engine))
            self.addCleanup(data_api.close)
            return data_api
        for function, ours in (('get_db', get_db), ('reset_db', reset)):
            patch = mock.patch.object(test_sqlalchemy, function, ours)
            patch.start()
            self.addCleanup(patch.stop)
        # The one test that loads metadefs hands an SQL engine to Glance's
        # loader; ours takes its place, as it does for operators.
        patch = mock.patch.object(base_metadef, 'metadata', MetadefFiles)
        patch.start()
        self.addCleanup(patch.stop)
        db_tests.load(get_db, reset)
        self.addCleanup(db_tests.reset)
        super(made, self).setUp()
    made = type(name, bases, {'setUp': setUp, '__module__': __name__})
    return made


for _title, _engine in ENGINES.items():
    for _class, _bases in CLASSES.items():
        globals()[f'Test{_class}On{_title}'] = subclass(
            f'Test{_class}On{_title}', _bases, _engine)


def test_all_of_glances_tests_run():
    """A Glance that adds or drops tests shows here."""
    counts = {
        name: sum(attribute.startswith('test_') for attribute in dir(
            globals()[f'Test{name}OnMemory'])) for name in CLASSES}
    assert sum(counts.values()) >= 242, counts
