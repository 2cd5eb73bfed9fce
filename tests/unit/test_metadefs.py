# SPDX-License-Identifier: Apache-2.0
"""Metadata definitions from files: the same records at every site."""

from pathlib import Path

import glance
import pytest

from glance_geo.core.rules import conflicts, shown
from glance_geo.db import api, metadeffiles
from tests.property.test_image_lists import ADMIN
from tests.unit.test_conflicts import meet


@pytest.fixture(scope='module')
def documents():
    import sys
    for root in (Path(sys.prefix), Path(glance.__file__).parents[1]):
        folder = root / 'etc' / 'glance' / 'metadefs'
        if folder.is_dir():
            return metadeffiles.read(folder)
    pytest.skip('Glance was installed without its metadata definitions')


def test_p4_sites_that_load_apart_have_the_same(documents):
    paris, rennes, third = (api.load('memory://', site=name)
                            for name in ('paris', 'rennes', 'nantes'))
    for data_api in (paris, rennes):
        assert metadeffiles.load(data_api, documents) == len(documents)
        assert metadeffiles.load(data_api, documents) == 0
    for data_api in (paris, rennes):
        assert {r.key: shown(r) for r in data_api.records.list('namespace')
                } == {r.key: shown(r) for r in paris.records.list('namespace')}
    meet(paris, rennes)
    assert paris.records.digests() == rennes.records.digests()
    spaces = list(paris.records.list('namespace'))
    assert len(spaces) == len(documents)        # none moved aside
    assert not any(conflicts(record) for record in spaces)
    # And the sync takes them on.
    for record in list(paris.records.newer({})):
        third.records.absorb(record)
    assert len(third.metadef_namespace_get_all(ADMIN)) == len(documents)
    name = documents[0]['namespace']
    assert (third.metadef_property_count(ADMIN, name)
            == len(documents[0].get('properties', {})))


def test_what_was_deleted_can_be_loaded_again(documents):
    data_api = api.load('memory://')
    metadeffiles.load(data_api, documents[:1])
    name = documents[0]['namespace']
    data_api.metadef_namespace_delete(ADMIN, name)
    assert metadeffiles.load(data_api, documents[:1]) == 1
    assert data_api.metadef_namespace_get(ADMIN, name)
