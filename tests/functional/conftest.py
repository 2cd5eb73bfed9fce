# SPDX-License-Identifier: Apache-2.0
import sys
from pathlib import Path

import glance
import pytest


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
