# SPDX-License-Identifier: Apache-2.0
"""A conflict is shown on the image to those who may settle it, and the
commands settle it."""

import json

import pytest

from glance_geo.core.rules import conflicts, overtaken, shown
from glance_geo.db import api, rows
from glance_geo.replication.sources import image_bits
from tests.functional.test_moving import command, configure
from tests.property.test_image_lists import ADMIN, caller

ID = '00000000-0000-4000-8000-000000000000'


@pytest.fixture
def sites(tmp_path):
    """Two sites that changed one image without each other."""
    made = []
    for name in ('paris', 'rennes'):
        made.append(api.load(f'sqlite:///{tmp_path}/{name}.db', site=name))
    paris, rennes = made
    paris.image_create(ADMIN, {
        'id': ID, 'name': 'first', 'status': 'queued', 'owner': 'one',
        'visibility': 'public', 'properties': {'os': 'linux'}})
    meet(paris, rennes)
    paris.image_update(ADMIN, ID, {'name': 'by-paris',
                                   'properties': {'os': 'a'}})
    rennes.image_update(ADMIN, ID, {'name': 'by-rennes',
                                    'properties': {'os': 'b'}})
    meet(paris, rennes)
    yield made
    for data_api in made:
        data_api.close()


def meet(*data_apis):
    for to in data_apis:
        for source in data_apis:
            for record in list(source.records.everything()):
                to.records.absorb(record)


def conflict_of(data_api, context):
    image = data_api.image_get(context, ID)
    listed = data_api.image_get_all(context, {'deleted': False})[0]
    found = [p.value for p in image['properties']
             if p.name == rows.CONFLICTS]
    assert found == [p.value for p in listed['properties']
                     if p.name == rows.CONFLICTS]
    return json.loads(found[0]) if found else None


def test_owner_and_admin_see_the_conflict_and_others_do_not(sites):
    for data_api in sites:
        for context in (ADMIN, caller('one')):
            found = conflict_of(data_api, context)
            assert {value['site']: value['value']
                    for value in found['name']} == {
                        'paris': 'by-paris', 'rennes': 'by-rennes'}
            assert sorted(v['value'] for v in found['os']) == ['a', 'b']
            assert [v['shown'] for v in found['name']] == [True, False]
        assert conflict_of(data_api, caller('two')) is None


def test_what_a_client_writes_back_is_not_stored(sites):
    paris, _ = sites
    image = paris.image_get(ADMIN, ID)
    paris.image_update(ADMIN, ID, {'properties': {
        p.name: p.value for p in image['properties']}}, purge_props=True)
    assert 'prop:geo_conflicts' not in paris.records.get('image', ID).fields
    assert conflict_of(paris, ADMIN)['name']


def test_the_commands_list_show_and_resolve(sites, tmp_path):
    paris, rennes = sites
    config = configure(tmp_path, f'sqlite:///{tmp_path}/paris.db')
    listed = json.loads(command(config, 'conflicts', 'list', '-f', 'json'))
    assert {(row['Field'], row['Site'], row['Value']) for row in listed} == {
        ('name', 'paris', 'by-paris'), ('name', 'rennes', 'by-rennes'),
        ('os', 'paris', 'a'), ('os', 'rennes', 'b')}
    assert json.loads(command(config, 'conflicts', 'show', ID, '-f',
                              'json')) == [
        {k: v for k, v in row.items() if k not in ('Kind', 'ID')}
        for row in listed]
    command(config, 'conflicts', 'resolve', ID, 'name', '--keep', 'paris')
    command(config, 'conflicts', 'resolve', ID, 'os', '--value', '"c"')
    text = command(config, 'conflicts', 'resolve', ID, 'os', '--keep',
                   'paris', ok=False)
    assert 'no conflict' in text
    meet(paris, rennes)
    for data_api in sites:
        image = data_api.image_get(ADMIN, ID)
        assert image['name'] == 'by-paris'
        assert [(p.name, p.value) for p in image['properties']] == [
            ('os', 'c')]
        assert not conflicts(data_api.records.get('image', ID))


def test_an_image_that_moved_aside_says_so_until_it_is_seen_to(tmp_path):
    made = [api.load(f'sqlite:///{tmp_path}/{name}.db', site=name)
            for name in ('paris', 'rennes')]
    for data_api in made:
        data_api.image_create(ADMIN, {
            'id': ID, 'name': data_api.records.site, 'status': 'queued',
            'owner': 'one', 'visibility': 'public'})
    meet(*made)
    config = configure(tmp_path, f'sqlite:///{tmp_path}/paris.db')
    (row,) = json.loads(command(config, 'conflicts', 'list', '-f', 'json'))
    assert (row['Field'], row['Value'], row['State']) == ('id', ID,
                                                          'moved aside')
    command(config, 'conflicts', 'resolve', row['ID'], 'id', '--keep-shown')
    assert json.loads(command(config, 'conflicts', 'list', '-f',
                              'json')) == []
    for data_api in made:
        data_api.close()


def test_a_deletion_that_met_a_change_leaves_the_bits_in_the_trash(sites):
    paris, rennes = sites
    url = f'geo://geo/{ID}/{"a" * 64}/{"0" * 16}/k1.{"b" * 64}'
    paris.image_location_add(ADMIN, ID, {
        'url': url, 'metadata': {}, 'status': 'active'})
    meet(paris, rennes)
    (location,) = paris.image_get(ADMIN, ID)['locations']
    paris.image_location_delete(ADMIN, ID, location['id'], 'deleted')
    paris.image_destroy(ADMIN, ID)
    assert overtaken(paris.records.get('image', ID)) is None
    rennes.image_update(ADMIN, ID, {'name': 'still in use'})
    meet(paris, rennes)
    for data_api in sites:
        record = data_api.records.get('image', ID)
        assert shown(record)['deletion']['deleted']     # deletion wins
        at = overtaken(record)
        assert at is not None
        assert image_bits(record, at - 1).manifests
        assert not image_bits(record, at - 1).deleted
        assert image_bits(record, at + 1).deleted
        assert image_bits(record).deleted
