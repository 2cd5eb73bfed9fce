# SPDX-License-Identifier: Apache-2.0
"""Every public function of Glance's SQL data API at once, on the same rows.

On which database: tests/cockroach.py; its serialization failures are real.
"""

import itertools
import random
import uuid

import pytest
from glance.common import exception

from tests import cockroach
from tests.functional.test_cockroachdb import (  # noqa: F401
    ADMIN,
    api,
    at_once,
    connect,
    database,
    new_image,
    new_task,
    through,
)
from tests.sqlproxy import SQLProxy

_number = itertools.count()


def unique(kind):
    return f'{kind}{next(_number)}'


# Each works on an image, or in a namespace, that all threads share.
def images(api, image, space):  # noqa: F811
    api.image_update(ADMIN, image, {'name': unique('name')})
    api.image_get(ADMIN, image)
    api.image_get_all(ADMIN)
    its = new_image(api, status='pending_delete')
    api.image_restore(ADMIN, its)
    assert api.image_get(ADMIN, its)['status'] == 'active'
    api.image_destroy(ADMIN, its)
    with pytest.raises(exception.Conflict):
        api.image_restore(ADMIN, its)


def properties(api, image, space):  # noqa: F811
    lock, name = unique('lock'), unique('property')
    api.image_set_property_atomic(image, lock, 'v')
    api.image_delete_property_atomic(image, lock, 'v')
    made = api.image_property_create(
        ADMIN, {'image_id': image, 'name': name, 'value': 'v'})
    assert made['name'] == name
    api.image_property_delete(ADMIN, name, image)


def locations(api, image, space):  # noqa: F811
    url = unique('file:///')
    api.image_location_add(ADMIN, image, {
        'url': url, 'metadata': {}, 'status': 'active'})
    (its,) = [each for each in api.image_get(ADMIN, image)['locations']
              if each['url'] == url]
    api.image_location_update(ADMIN, image, {**its, 'metadata': {'a': 'b'}})
    api.image_location_delete(ADMIN, image, its['id'], 'deleted')


def members(api, image, space):  # noqa: F811
    name = unique('member')
    made = api.image_member_create(ADMIN, {
        'image_id': image, 'member': name, 'can_share': False})
    api.image_member_update(ADMIN, made['id'], {'status': 'accepted'})
    (its,) = api.image_member_find(ADMIN, image, name)
    assert its['status'] == 'accepted'
    assert api.image_member_count(ADMIN, image)
    api.image_member_delete(ADMIN, made['id'])


def tags(api, image, space):  # noqa: F811
    its, name = new_image(api), unique('tag')
    api.image_tag_create(ADMIN, image, name)
    assert name in api.image_tag_get_all(ADMIN, image)
    api.image_tag_delete(ADMIN, image, name)
    api.image_tag_set_all(ADMIN, its, ['a', 'b'])
    assert api.image_tag_get_all(ADMIN, its) == ['a', 'b']


def usage(api, image, space):  # noqa: F811
    assert api.user_get_storage_usage(ADMIN, 't') == 0
    assert api.user_get_staging_usage(ADMIN, 't') == 0
    assert api.user_get_image_count(ADMIN, 't')
    api.user_get_uploading_count(ADMIN, 't')


def tasks(api, image, space):  # noqa: F811
    its = new_task(api, image)
    api.task_update(ADMIN, its, {'message': 'm', 'status': 'processing'})
    assert api.task_get(ADMIN, its)['message'] == 'm'
    assert api.task_get_all(ADMIN)
    assert api.tasks_get_by_image(ADMIN, image)
    api.task_delete(ADMIN, its)


def namespaces(api, image, space):  # noqa: F811
    shared = api.metadef_namespace_get(ADMIN, space)
    api.metadef_namespace_update(ADMIN, shared['id'], {
        'namespace': space, 'description': unique('text')})
    own = f'{space}-{unique("own")}'
    api.metadef_namespace_create(ADMIN, {
        'namespace': own, 'visibility': 'public', 'protected': False,
        'owner': 't'})
    assert len(api.metadef_namespace_get_all(ADMIN)) >= 2
    for kind in ('object', 'property', 'tag'):
        getattr(api, f'metadef_{kind}_delete_namespace_content')(ADMIN, own)
    api.metadef_namespace_delete(ADMIN, own)


def contents(api, image, space):  # noqa: F811
    for kind in ('object', 'property', 'tag'):
        name = unique(kind)
        values = {'name': name} if kind == 'tag' else {
            'name': name, 'json_schema': {'type': 'string'}}

        def call(verb, *arguments, kind=kind):
            return getattr(api, f'metadef_{kind}_{verb}')(ADMIN, space,
                                                          *arguments)
        made = call('create', values)
        call('update', made['id'], values)
        assert call('get', name)['id'] == made['id']
        assert call('count') and call('get_all')
        call('delete', name)
    api.metadef_tag_create_tags(ADMIN, space, [{'name': unique('tag')}],
                                can_append=True)


def resource_types(api, image, space):  # noqa: F811
    name = f'{space}{unique("type")}'
    api.metadef_resource_type_create(ADMIN, {'name': name,
                                             'protected': False})
    assert api.metadef_resource_type_get(ADMIN, name)['name'] == name
    assert api.metadef_resource_type_get_all(ADMIN)
    api.metadef_resource_type_association_create(ADMIN, space,
                                                 {'name': name, 'prefix': None,
                                                  'properties_target': None})
    api.metadef_resource_type_association_get(ADMIN, space, name)
    assert api.metadef_resource_type_association_get_all_by_namespace(
        ADMIN, space)
    api.metadef_resource_type_association_delete(ADMIN, space, name)
    # It fails in stock Glance, on any database, in its own look at the row.
    with pytest.raises(AttributeError):
        api.metadef_resource_type_delete(ADMIN, name)


def caches(api, image, space):  # noqa: F811
    node = f'http://{space}.{unique("node")}'
    api.node_reference_create(ADMIN, node)
    assert api.node_reference_get_by_url(ADMIN, node)
    api.insert_cache_details(ADMIN, node, image, 1)
    api.update_hit_count(ADMIN, image, node)
    assert api.get_hit_count(ADMIN, image, node) == 1
    assert api.is_image_cached_for_node(ADMIN, node, image)
    assert len(api.get_cached_images(ADMIN, node)) == 1
    assert node in api.get_cached_nodes(ADMIN, image)
    assert api.get_least_recently_accessed(ADMIN, node) == image
    api.delete_cached_image(ADMIN, image, node)
    api.insert_cache_details(ADMIN, node, image, 1)
    api.delete_all_cached_images(ADMIN, node)


STORIES = (images, properties, locations, members, tags, usage, tasks,
           namespaces, contents, resource_types, caches)


class Noting:
    """The data API, noting which of its functions were called."""

    def __init__(self, api):  # noqa: F811
        self._api, self.called = api, set()

    def __getattr__(self, name):
        self.called.add(name)
        return getattr(self._api, name)


def test_nothing_is_sent_that_cockroachdb_does_otherwise(
        connect, database):  # noqa: F811
    node = SQLProxy(database)
    api = connect(through(database, node))    # noqa: F811
    image = new_image(api)
    space = f'n{uuid.uuid4().hex[:8]}'
    api.metadef_namespace_create(ADMIN, {
        'namespace': space, 'visibility': 'public', 'protected': False,
        'owner': 't'})
    for story in STORIES:
        story(api, image, space)
    node.stop()
    assert len(node.asked) > 100
    assert not [text for text in node.asked if cockroach.different(text)]


def test_p1_every_function_succeeds_under_contention(api):  # noqa: F811
    noting = Noting(api)
    image = new_image(noting)
    space = f'n{uuid.uuid4().hex[:8]}'
    noting.metadef_namespace_create(ADMIN, {
        'namespace': space, 'visibility': 'public', 'protected': False,
        'owner': 't'})
    failed = at_once(6, 3, lambda writer, turn: [
        story(noting, image, space)
        for story in random.sample(STORIES, len(STORIES))])
    assert not failed
    missed = {name for name in vars(api) if name[0] != '_'} - noting.called
    assert not missed
