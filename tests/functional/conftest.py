# SPDX-License-Identifier: Apache-2.0
import sys
from pathlib import Path

import glance
import pytest

from tests.functional.labs import Client, Lab, Stores

SITES = ('paris', 'rennes', 'nantes')


@pytest.fixture(scope='session')
def glance_work_folder(tmp_path_factory):
    """A folder in which Glance's own tests find their data.

    They open files by paths relative to Glance's source tree.
    """
    folder = tmp_path_factory.mktemp('glance-work')
    (folder / 'glance').symlink_to(Path(glance.__file__).parent)
    (folder / 'etc').mkdir()
    for entry in (Path(sys.prefix) / 'etc' / 'glance').iterdir():
        (folder / 'etc' / entry.name).symlink_to(entry)
    return folder


@pytest.fixture(scope='session')
def lab(tmp_path_factory):
    made = Lab(tmp_path_factory.mktemp('lab') / 'lab')
    made.up(SITES, stores=Stores(('geo', 'file')), extra=[
        'show_multiple_locations = true', 'enabled_import_methods = '
        '[glance-direct,web-download,copy-image]'])
    yield made
    made.down()


@pytest.fixture
def healed(lab):
    """All links and processes are up again after the test."""
    yield
    lab.heal()
    for site in SITES:
        for role in ('ipfs', 'agent', 'glance-api')[
                not lab.state.get('ipfs'):]:
            if not lab._alive(f'{site}/{role}'):
                lab.start(site, role)


@pytest.fixture
def sites(lab, healed):
    return [Client(lab, site) for site in SITES]
