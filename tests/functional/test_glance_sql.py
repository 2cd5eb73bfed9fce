# SPDX-License-Identifier: Apache-2.0
"""Glance's own tests of its SQL data API, as shipped, on CockroachDB.

All 252 of ``glance.tests.functional.db.test_sqlalchemy``, none overridden, on
the data API that ``metadata_backend = sql`` gives Glance. On which database
they run: ``tests/cockroach.py``.
"""

import inspect
import os
from unittest import mock

import glance.db.sqlalchemy.api as sql_api
import pytest
from glance.db.sqlalchemy import models, models_metadef
from glance.tests.functional.db import base_metadef, test_sqlalchemy
from oslo_config import cfg
from oslo_db import options

from glance_geo.db.cockroachdb import calls
from tests.functional.test_cockroachdb import database  # noqa: F401


@pytest.fixture(autouse=True)
def in_glance_work_folder(glance_work_folder, monkeypatch):
    monkeypatch.chdir(glance_work_folder)


@pytest.fixture(autouse=True)
def on_cockroachdb(request, database):  # noqa: F811
    if request.instance is not None:
        request.instance.database = database


def empty(_):
    with sql_api.get_engine().begin() as connection:
        for base in (models.BASE, models_metadef.BASE_DICT):
            for table in reversed(base.metadata.sorted_tables):
                connection.execute(table.delete())


class OnCockroachDB:
    """Chooses the database and how it is emptied, and nothing else."""

    def setUp(self):
        def get_db(config):
            options.set_defaults(cfg.CONF, connection=self.database)
            config(connection=self.database, group='database')
            config(debug=False)
            sql_api.clear_db_env()
            self.addCleanup(lambda: sql_api.get_engine().dispose())
            return calls.RepeatingAPI(sql_api)
        for name, ours in (('get_db', get_db), ('reset_db', empty),
                           ('reset_db_metadef', empty)):
            patch = mock.patch.object(test_sqlalchemy, name, ours)
            patch.start()
            self.addCleanup(patch.stop)
        # They look for them beside Glance's source tree.
        patch = mock.patch.object(base_metadef, 'METADEFS_DIR',
                                  os.path.abspath('etc/metadefs'))
        patch.start()
        self.addCleanup(patch.stop)
        super().setUp()


def _define():
    for name, its in inspect.getmembers(test_sqlalchemy, inspect.isclass):
        if (its.__module__ == test_sqlalchemy.__name__
                and name.startswith('Test')):
            globals()[name] = type(name, (OnCockroachDB, its),
                                   {'__module__': __name__})


_define()


def test_all_of_glances_tests_run():
    """A Glance that adds or drops tests shows here."""
    assert sum(attribute.startswith('test_') for its in globals().values()
               if inspect.isclass(its) and issubclass(its, OnCockroachDB)
               for attribute in dir(its)) >= 252
