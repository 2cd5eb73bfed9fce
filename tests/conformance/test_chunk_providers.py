# SPDX-License-Identifier: Apache-2.0
"""What every ``ChunkProvider`` does: another site's agent, and the swarm."""

import uuid

import pytest

from glance_geo.core import errors
from glance_geo.core.manifest import name_of
from glance_geo.replication import identity
from glance_geo.store.ipfs.chunks import SwarmChunks, SwarmPublisher
from glance_geo.store.ipfs.references import PinReferences
from tests.unit.test_agents import IMAGE, Site, data_of


class Case:
    """A provider of an image's chunks.

    :ivar away: makes it not answer any more
    """

    def __init__(self, provider, site, manifest, away):
        self.provider, self.manifest, self.away = provider, manifest, away
        view = site.store.view([IMAGE], manifest)
        root = view.manifest()
        self.names = [manifest, *(ref.name for ref in root.segments), *dict.
                      fromkeys(its.name for ref in root.segments
                               for its in view.segment(ref) if its.name)]

    def ask(self, names):
        with self.provider.chunks(IMAGE, self.manifest, names) as frames:
            return list(frames)


@pytest.fixture(params=['peer', 'swarm'])
def case(request, tmp_path):
    if request.param == 'swarm':
        nodes = request.getfixturevalue('nodes')
    identity.create_authority(tmp_path / 'ca')
    paris, rennes = (Site(name, tmp_path, tmp_path / 'ca')
                     for name in ('paris', 'rennes'))
    for site in (paris, rennes):
        site.serve()
    paris.connect([rennes])
    rennes.connect([paris])
    manifest = paris.create(data_of(3_000_000))
    if request.param == 'peer':
        provider = rennes.agent._peers['paris']
        yield Case(provider, paris, manifest, paris.serving.stop)
    else:
        node = nodes[0].node()
        name = uuid.uuid4().hex[:8]
        SwarmPublisher(node, PinReferences(node, name)).publish(
            IMAGE, manifest, paris.store.view([IMAGE], manifest),
            lambda: False)
        far = nodes[1].node(timeout=1.0)
        provider = SwarmChunks(far)

        def away():
            provider._node = nodes[1].node(
                timeout=1.0, address='/ip4/127.0.0.1/tcp/9/http')
        yield Case(provider, paris, manifest, away)
    for site in (paris, rennes):
        site.serving.stop()
        site.store.close()


def test_it_says_who_it_is(case):
    assert case.provider.label


def test_p2_chunks_come_in_order_and_are_what_was_asked_for(case):
    for names in (case.names, case.names[::-1], case.names[:1]):
        assert [name_of(block) for block in case.ask(names)] == names


def test_it_may_be_asked_again(case):
    assert case.ask(case.names[:5]) == case.ask(case.names[:5])


def test_what_it_has_not_comes_as_nothing(case):
    unknown = name_of(b'of no image')
    got = case.ask([case.names[0], unknown, case.names[1]])
    assert got[1] == b''
    assert [name_of(got[0]), name_of(got[2])] == case.names[:2]


def test_one_that_is_away_is_unreachable(case):
    case.away()
    with pytest.raises(errors.Unreachable):
        case.ask(case.names)
