# SPDX-License-Identifier: Apache-2.0
"""P7: locations are signed, and names never become paths."""

import pytest

from glance_geo.core import errors, location

IMAGE = '11111111-2222-3333-4444-555555555555'
KEY = b'k' * 32


def issued(**changes):
    parts = {'store': 'geo', 'image': IMAGE, 'manifest': bytes(32),
             'nonce': '0' * 16, 'key_id': 'k1', 'key': KEY, **changes}
    return location.issue(**parts)


def test_round_trip():
    made = issued()
    parsed = location.parse(made.uri)
    assert parsed == made
    location.verify(parsed, {'k0': b'x' * 32, 'k1': KEY})


@pytest.mark.parametrize('change', [
    {'store': '../etc'}, {'image': '../../etc/passwd'},
    {'image': IMAGE.upper().replace('1', 'A')}, {'nonce': 'zz'},
    {'key_id': 'a/b'}])
def test_p7_malformed_parts_are_refused(change):
    with pytest.raises(errors.LocationInvalid):
        issued(**change)


@pytest.mark.parametrize('uri', [
    '', 'file:///etc/passwd', 'geo://', 'geo://geo/x/y/z/k.s',
    f'geo://geo/{IMAGE}/../0000000000000000/k1.00',
    f'geo://geo/{IMAGE}/{"0" * 64}/{"0" * 16}/k1',
    'geo://' + 'a' * 1000])
def test_p7_other_texts_are_no_locations(uri):
    with pytest.raises(errors.LocationInvalid):
        location.parse(uri)


@pytest.mark.parametrize('old, new', [
    (IMAGE, IMAGE[:-1] + '6'), ('/geo/', '/geo2/'),
    ('0' * 64, '1' + '0' * 63), ('0' * 16 + '/k1', '1' * 16 + '/k1')])
def test_p7_a_changed_location_is_refused(old, new):
    uri = issued().uri.replace('geo://geo/', 'geo:///geo/').replace(
        old, new, 1).replace('geo:///', 'geo://')
    with pytest.raises(errors.LocationInvalid, match='signature'):
        location.verify(location.parse(uri), {'k1': KEY})


def test_p7_an_unknown_key_is_refused():
    with pytest.raises(errors.LocationInvalid, match='unknown key'):
        location.verify(issued(), {'k2': KEY})


# -- ipfs:// ------------------------------------------------------------------
CID = 'bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku'


def ipfs(**changes):
    parts = {'store': 'swarm', 'image': IMAGE, 'cid': CID,
             'nonce': '0' * 16, 'key_id': 'k1', 'key': KEY, **changes}
    return location.issue_ipfs(**parts)


def test_an_ipfs_location_is_its_cid_and_a_proof():
    made = ipfs()
    assert made.uri.startswith(f'ipfs://{CID}?')
    assert location.parse(made.uri) == made
    location.verify(location.parse(made.uri), {'k1': KEY})


@pytest.mark.parametrize('uri', [
    f'ipfs://{CID}', f'ipfs://{CID}?store=swarm',
    ipfs().uri + '&more=1', ipfs().uri.replace('store=', 'stores='),
    ipfs().uri.replace(CID, '../etc/passwd'), ipfs().uri.replace(CID, ''),
    ipfs().uri.replace(CID, CID.upper()), ipfs().uri + 'x' * 600,
    ipfs().uri.replace('&image=', '&store=geo&image=')])
def test_p7_other_texts_are_no_ipfs_locations(uri):
    with pytest.raises(errors.LocationInvalid):
        location.parse(uri)


@pytest.mark.parametrize('old, new', [
    (IMAGE, IMAGE[:-1] + '6'), ('=swarm', '=swarn'),
    (CID, 'bafkreiaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'),
    ('nonce=0', 'nonce=1')])
def test_p7_a_changed_ipfs_location_is_refused(old, new):
    uri = ipfs().uri
    assert old in uri
    with pytest.raises(errors.LocationInvalid):
        location.verify(location.parse(uri.replace(old, new)), {'k1': KEY})
