# SPDX-License-Identifier: Apache-2.0
"""Real nodes of IPFS: what goes wrong is one clear error; references keep
what is stored (P1, P7, P8)."""

import io
import json
import os
import random
import signal
import subprocess
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from glance_geo.core import cids, errors
from glance_geo.core.interfaces import PinReference
from glance_geo.store.body import SizeMismatch
from glance_geo.store.ipfs import writing
from glance_geo.store.ipfs.node import IPFSNode
from glance_geo.store.ipfs.references import PinReferences
from tests import kubo
from tests.ipfsfiles import MIB, NONCE, data_of, read, reader, store
from tests.kuboproxy import Proxy


# -- what is no image -------------------------------------------------------
def test_a_cid_that_is_no_file_is_refused(here):
    node = here.node()
    from glance_geo.core import unixfs
    folder = node.put_node(unixfs.directory([]))
    with pytest.raises(errors.CIDInvalid, match='directory'):
        reader(node, str(folder)).read()
    with pytest.raises(errors.CIDInvalid):
        cids.parse('QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn')


# -- the node ---------------------------------------------------------------
def test_a_miss_fails_within_the_time_limit(nodes):
    node = nodes[0].node(timeout=1.0)
    began = time.monotonic()
    with pytest.raises(errors.BitsUnavailable, match='within 1 s'):
        read(node, str(cids.of_leaf(os.urandom(20))))
    # Twice, with a look for nodes that came back between; no more.
    assert time.monotonic() - began < 30


def test_a_block_that_comes_late_is_asked_for_again(nodes):
    """Within the time limit: a node may forget what it was asked for."""
    data = os.urandom(1000)
    cid = cids.of_leaf(data)
    timer = threading.Timer(5.0, lambda: store(nodes[1].node(), data))
    timer.start()
    try:
        assert nodes[0].node(timeout=20.0).block(cid) == data
    finally:
        timer.join()


@pytest.mark.parametrize('secret', ['', 'bearer:wrong', 'basic:a:b'])
def test_p7_a_refused_credential_says_where_to_look(here, secret):
    with pytest.raises(errors.PeerRefused, match='ipfs_auth_file') as caught:
        here.node(secret=secret).identity()
    assert 'wrong' not in str(caught.value)


def test_p7_the_rpc_allows_what_is_needed_and_no_more(here):
    for path in ('/config/show', '/shutdown', '/key/list', '/block/rm'):
        with pytest.raises(errors.PeerRefused):
            here.node()._call(path)


def test_a_secret_of_another_form_is_refused_without_being_shown(here):
    with pytest.raises(errors.ConfigurationInvalid) as caught:
        here.node(secret='hunter2')
    assert 'hunter2' not in str(caught.value)


def test_a_node_that_is_down(tmp_path):
    node = IPFSNode('/ip4/127.0.0.1/tcp/9/http', timeout=1)
    with pytest.raises(errors.Unreachable, match='can not be reached'):
        store(node, b'x')


def test_a_node_that_hangs_and_comes_back(here):
    node = here.node(timeout=1.0)
    data = data_of(2 * MIB, 25)
    cid = store(node, data).cid
    here.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(errors.Unreachable, match='did not answer'):
            read(here.node(timeout=1.0), cid)
        with pytest.raises(errors.Unreachable, match='did not answer'):
            store(here.node(timeout=1.0), data)
    finally:
        here.process.send_signal(signal.SIGCONT)
    assert read(node, cid) == data


def test_a_repository_at_its_limit_takes_nothing_more(here):
    class Small(IPFSNode):
        def space(self):
            return super().space()[0], 10_000_000
    node = Small(f'{here.site["ipfs_api"]}/http', here.secret)
    with pytest.raises(errors.StoreFull, match='StorageMax'):
        store(node, data_of(100), 20_000_000)


def test_a_full_disk(tmp_path):
    kubo.needed()
    if os.geteuid():
        pytest.skip('mounts a small disk: needs root')
    disk = tmp_path / 'disk'
    disk.mkdir()
    subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=24m', 'tmpfs', disk],
                   check=True)
    made = None
    try:
        made = kubo.Kubo(disk / 'k').start()
        node = made.node()
        kept = data_of(3 * MIB, 26)
        cid = store(node, kept).cid
        with pytest.raises(errors.StoreFull, match='no space left'):
            store(node, data_of(40 * MIB, 27))
        assert read(node, cid) == kept
        assert {ref.cid for ref in PinReferences(node, 'swarm').all()
                } == {cid}
    finally:
        if made is not None:
            made.kill()
        subprocess.run(['umount', '-l', disk], check=True)


def test_an_upload_that_breaks_off_leaves_nothing(here):
    node = here.node()
    before = set(node.pins())
    data = data_of(3 * MIB, 28)
    for size in (len(data) - 1, len(data) + 1):
        with pytest.raises(SizeMismatch):
            store(node, data, size)

    class Failing(io.BytesIO):
        def read(self, size=-1):
            if self.tell() > MIB:
                raise OSError('the client went away')
            return super().read(size)
    with pytest.raises(OSError, match='went away'):
        writing.write(node, PinReferences(node, 'swarm'), str(uuid.uuid4()),
                      NONCE, Failing(data), 0, 'sha512')
    assert set(node.pins()) == before


# -- P8: references ---------------------------------------------------------
def test_p8_a_file_stays_until_its_last_image_goes(here):
    node = here.node()
    refs = PinReferences(node, 'swarm')
    data = data_of(2 * MIB, 29)
    first, second = str(uuid.uuid4()), str(uuid.uuid4())
    cid = store(node, data, image=first).cid
    assert store(node, data, image=second).cid == cid
    refs.leave(PinReference(first, cid, NONCE))
    node.collect()
    assert read(node, cid) == data and node.is_pinned(cids.parse(cid))
    refs.leave(PinReference(first, cid, NONCE))     # once more: no error
    refs.leave(PinReference(second, cid, NONCE))
    assert not node.is_pinned(cids.parse(cid))
    node.collect()
    with pytest.raises(errors.ChunkMissing):
        node.block(cids.parse(cid), offline=True)


@pytest.mark.parametrize('times', [
    15, pytest.param(400, marks=pytest.mark.long)])
def test_p8_storing_and_giving_up_one_file_at_once(here, times):
    """However they meet: when both are done, what was acknowledged is pinned,
    and whole."""
    data = data_of(MIB + 1, 30)
    seed = random.randrange(1 << 30)
    print('seed', seed)
    rng = random.Random(seed)
    nodes = [here.node(timeout=2.0) for _ in range(3)]

    def later(delay, do, *arguments):
        time.sleep(delay)       # so that they meet in another way each time
        return do(*arguments)

    def put(image):
        return store(nodes[0], data, image=image, name='race').cid
    image = str(uuid.uuid4())
    cid = put(image)
    old = PinReference(image, cid, NONCE)
    keeping, leaving = (PinReferences(node, 'race') for node in nodes[:2])
    with ThreadPoolExecutor(3) as pool:
        for number in range(times):
            new = PinReference(str(uuid.uuid4()), cid, NONCE)
            if number % 2:      # what is short meets more often
                longest, what = 0.006, [(keeping.keep, new)]
            else:
                longest, what = 0.03, [(put, new.image)]
            if number % 8 == 0:
                what.append((nodes[2].collect,))
            what.append((leaving.leave, old))
            done = [pool.submit(later, rng.random() * longest, *each)
                    for each in what]
            try:
                for each in reversed(done):
                    each.result()
            except (errors.ChunkMissing, errors.BitsUnavailable):
                # Collected before it was referred to: that is not
                # acknowledged, and nothing is left of it.
                assert number % 8 == 0 and new not in keeping.all()
                put(new.image)
            assert nodes[0].is_pinned(cids.parse(cid))
            assert read(nodes[0], cid) == data
            old = new


def test_p8_what_is_stored_just_before_the_unpin_stays_pinned(here):
    """Found by three writers: a node that collects holds an unpin back, while
    somebody stores the file and sees it pinned."""
    node, image = here.node(), str(uuid.uuid4())
    cid = store(node, data_of(MIB + 1, 32), image=image, name='held').cid
    new = PinReference(str(uuid.uuid4()), cid, NONCE)

    class HeldBack(IPFSNode):
        def unpin(self, cid):
            PinReferences(node, 'held').keep(new)
            super().unpin(cid)
    PinReferences(HeldBack(node.address, here.secret), 'held').leave(
        PinReference(image, cid, NONCE))
    assert node.is_pinned(cids.parse(cid))
    PinReferences(node, 'held').leave(new)
    assert not node.is_pinned(cids.parse(cid))


def test_p8_a_pin_that_went_missing_is_mended(here):
    node = here.node(timeout=1.0)
    refs = PinReferences(node, 'mend')
    cid = store(node, data_of(2 * MIB, 31), name='mend').cid
    node.unpin(cids.parse(cid))
    node.collect()      # the entry keeps the file all the same
    assert refs.repair() == [] and node.is_pinned(cids.parse(cid))


def test_a_pin_for_nobody_goes_after_a_while(here):
    node = here.node()
    refs = PinReferences(node, 'orphans')
    cid = node.add(iter([b'of an upload whose process died']), refs.pin_name)
    refs.repair()
    assert node.is_pinned(cid)
    refs.orphan_seconds = 0.0
    refs.repair()
    assert not node.is_pinned(cid)


@pytest.mark.parametrize('kills', [
    4, pytest.param(60, marks=pytest.mark.long)])
def test_p1_what_was_acknowledged_survives_a_kill(tmp_path, kills):
    kubo.needed()
    made = kubo.Kubo(tmp_path / 'k')
    try:
        acknowledged = {}
        for turn in range(kills):
            made.start()
            node = made.node()
            killer = threading.Timer(0.1 + random.random(), made.process.kill)
            killer.start()
            try:
                for number in range(200):
                    data = data_of(1_500_000, 1000 * turn + number)
                    acknowledged[store(node, data).cid] = data
            except errors.GeoError:
                pass
            killer.join()
            made.kill()
        made.start()
        node = made.node()
        node.collect()
        assert acknowledged
        kept = {ref.cid for ref in PinReferences(node, 'swarm').all()}
        for cid, data in acknowledged.items():
            assert read(node, cid) == data and cid in kept
            assert node.is_pinned(cids.parse(cid))
    finally:
        made.kill()


# -- ways to reach a node ---------------------------------------------------
def test_a_unix_socket_and_basic_authentication(tmp_path):
    kubo.needed()
    made = kubo.Kubo(tmp_path / 'k')
    path = tmp_path / 'api.sock'
    auth = made.folder / 'etc' / 'keys' / 'ipfs.auth'
    auth.write_text('basic:glance:a:colon\n')
    config = made.folder / 'ipfs' / 'config'
    made.init()
    document = json.loads(config.read_text())
    document['Addresses']['API'] = [made.site['ipfs_api'], f'/unix{path}']
    config.write_text(json.dumps(document))
    try:
        made.start()
        node = made.node(address=f'/unix{path}')
        data = data_of(2 * MIB, 32)
        assert read(node, store(node, data).cid) == data
        with pytest.raises(errors.PeerRefused):
            made.node(address=f'/unix{path}',
                      secret='basic:glance:b').identity()
    finally:
        made.kill()


def test_p7_tls_and_an_authority_of_ones_own(here, tmp_path):
    import ssl

    from glance_geo.replication import identity
    identity.create_authority(tmp_path / 'ca')
    identity.create_node(tmp_path / 'ca', tmp_path / 'n', 'paris', 'paris',
                         ['127.0.0.1'], False)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / 'n' / 'site.crt',
                        tmp_path / 'n' / 'site.key')
    with Proxy(here, tls=tls).running() as proxy:
        with pytest.raises(errors.Unreachable, match='[Cc]ertificate|CERTIF'):
            here.node(address=proxy.address).identity()
        node = IPFSNode(proxy.address, here.secret,
                        str(tmp_path / 'n' / 'ca.crt'), 5.0)
        assert node.identity()['ID'] == here.id
