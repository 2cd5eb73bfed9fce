# SPDX-License-Identifier: Apache-2.0
import json
import os
import random

import hypothesis
import pytest

from tests import kubo

hypothesis.settings.register_profile(
    'default', deadline=None, print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile(os.environ.get('HYPOTHESIS_PROFILE',
                                                'default'))


@pytest.fixture
def rng(request):
    """A random generator whose seed is shown when the test fails."""
    seed = int(os.environ.get('GLANCE_GEO_TEST_SEED', random.getrandbits(32)))
    print(f'GLANCE_GEO_TEST_SEED={seed}')
    return random.Random(seed)


@pytest.fixture(scope='session')
def nodes(tmp_path_factory):
    """Two nodes of IPFS that know each other."""
    kubo.needed()
    made = kubo.network(tmp_path_factory.mktemp('kubo'), 2)
    yield made
    for each in made:
        each.kill()


@pytest.fixture(scope='session')
def lossy(tmp_path_factory):
    """A node that may be told to lose blocks."""
    kubo.needed()
    made = kubo.Kubo(tmp_path_factory.mktemp('lossy'))
    path = made.folder / 'ipfs' / 'config'
    config = json.loads(path.read_text())
    config['API']['Authorizations']['glance-geo']['AllowedPaths'] = [
        '/api/v0']
    path.write_text(json.dumps(config))
    yield made.start()
    made.kill()


@pytest.fixture
def here(nodes):
    """A node of IPFS, with the least rights."""
    return nodes[0]
