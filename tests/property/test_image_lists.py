# SPDX-License-Identifier: Apache-2.0
"""The planner finds exactly the images that filtering all of them finds, in
that order, on every kind of engine, in few round trips."""

import datetime
import itertools
import types

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glance_geo.core.engine import MetadataEngine, Trait
from glance_geo.db import api, planner, queries, rows
from glance_geo.db.engines.memory import MemoryEngine
from glance_geo.db.recordstore import RecordStore

OWNERS = ('one', 'two', 'three')
NAMES = ('a', 'ab', 'b', None, 'ä')
STATUSES = ('active', 'queued', 'saving')
TAGS = ('red', 'green')
TIMES = [datetime.datetime(2026, 1, day) for day in (1, 2, 3)]

images = st.fixed_dictionaries({
    'name': st.sampled_from(NAMES), 'status': st.sampled_from(STATUSES),
    'owner': st.sampled_from(OWNERS),
    'visibility': st.sampled_from(
        ('public', 'private', 'shared', 'community')),
    'size': st.sampled_from((None, 0, 5, 10)),
    'disk_format': st.sampled_from(('raw', 'qcow2')),
    'checksum': st.sampled_from((None, 'c1', 'c2')),
    'os_hidden': st.booleans(), 'created_at': st.sampled_from(TIMES),
    'tags': st.sets(st.sampled_from(TAGS)),
    'properties': st.dictionaries(st.sampled_from(('os', 'arch')),
                                  st.sampled_from(('x', 'y'))),
    'members': st.dictionaries(st.sampled_from(OWNERS), st.sampled_from(
        ('pending', 'accepted', 'rejected')))})

filters = st.fixed_dictionaries({'deleted': st.just(False)}, optional={
    'name': st.sampled_from(('a', 'in:a,ab', 'eq:b', 'nosuch')),
    'status': st.sampled_from(('active', 'queued', 'in:active,saving')),
    'visibility': st.sampled_from(
        ('public', 'private', 'shared', 'community', 'all')),
    'size_min': st.sampled_from(('5', '11')), 'size_max': st.just('5'),
    'checksum': st.sampled_from(('c1', 'c3')),
    'os_hidden': st.booleans(), 'owner': st.sampled_from(OWNERS),
    'tags': st.lists(st.sampled_from(TAGS), min_size=1, unique=True),
    'os': st.sampled_from(('x', 'z')),
    'properties': st.just({'arch': 'y'}),
    'created_at': st.sampled_from(
        [f'{op}:2026-01-02T00:00:00Z' for op in
         ('gt', 'gte', 'lt', 'lte', 'eq', 'neq')]),
    'id': st.sampled_from(('in:00000000-0000-4000-8000-000000000000,'
                           '00000000-0000-4000-8000-000000000001',))})

orders = st.lists(st.sampled_from((
    'name', 'status', 'container_format', 'disk_format', 'size', 'id',
    'created_at', 'updated_at')), min_size=1, max_size=3, unique=True)



def caller(owner, is_admin=False):
    """Return what the data API looks at in a request's context."""
    return types.SimpleNamespace(owner=owner, is_admin=is_admin,
                                 can_see_deleted=False)


ADMIN = caller('one', is_admin=True)


def fill(data_api, wanted):
    for number, image in enumerate(wanted):
        values = dict(image)
        tags, members = values.pop('tags'), values.pop('members')
        id = f'00000000-0000-4000-8000-{number:012d}'
        data_api.image_create(ADMIN, {
            **values, 'id': id, 'container_format': 'bare'})
        data_api.image_tag_set_all(ADMIN, id, sorted(tags))
        for member, status in members.items():
            data_api.image_member_create(ADMIN, {
                'image_id': id, 'member': member, 'status': status})


def reference(data_api, context, wanted, keys, directions, member_status):
    """Every image, filtered and sorted: what a list must be."""
    wanted = dict(wanted)
    visibility = wanted.pop('visibility', None)
    checks = queries.compile_filters(wanted, None)
    order = queries.Order.of(keys, directions)
    members = {}
    listed = queries.visibility_check(
        context.owner, not context.is_admin, visibility, member_status,
        lambda row: members[row['id']])
    found = []
    for record in data_api.records.list('image'):
        row = rows.image_row(record, 'local', True, with_tags=True)
        members[record.id] = [m for m in rows.memberships(record)
                              if not m['deleted']]
        if listed(row) and all(check(row) for check in checks):
            found.append(row)
    order.sort(found)
    return [row['id'] for row in found]


@settings(max_examples=150,
          suppress_health_check=[HealthCheck.too_slow,
                                 HealthCheck.data_too_large])
@given(st.lists(images, max_size=12), st.lists(st.tuples(
    filters, orders, st.sampled_from(('asc', 'desc', 'mixed')),
    st.sampled_from((None, *OWNERS)),
    st.sampled_from(('accepted', 'pending', 'all')),
    st.sampled_from((0, 1, 500)), st.sampled_from((1, 2, 5))),
    min_size=1, max_size=5))
def test_pages_add_up_to_the_whole_list(wanted, requests):
    data_api = api.load('memory://')
    fill(data_api, wanted)
    for asked, keys, way, owner, member_status, few, size in requests:
        context = (ADMIN if owner is None else
                   caller(owner))
        ways = ([way] if way != 'mixed' else
                list(itertools.islice(itertools.cycle(('asc', 'desc')),
                                      len(keys))))
        expected = reference(data_api, context, asked, keys, ways,
                             member_status)
        found, marker = [], None
        # However few count as few, the answer is the same.
        planner.FEW, usual = few, planner.FEW
        try:
            while True:
                page = data_api.image_get_all(
                    context, filters=dict(asked), marker=marker, limit=size,
                    sort_key=list(keys), sort_dir=list(ways),
                    member_status=member_status)
                if not page:
                    break
                found += [row['id'] for row in page]
                marker = found[-1]
                assert len(found) <= len(wanted), (found, expected)
            whole = data_api.image_get_all(
                context, filters=dict(asked), sort_key=list(keys),
                sort_dir=list(ways), member_status=member_status)
        finally:
            planner.FEW = usual
        assert found == expected
        assert [row['id'] for row in whole] == expected


class Counted(MetadataEngine):
    """An engine that counts what it is asked."""

    def __init__(self, engine):
        self._engine = engine
        self.traits = engine.traits
        self.calls, self.touched = 0, 0

    def count(self):
        calls, touched = self.calls, self.touched
        self.calls = self.touched = 0
        return calls, touched

    def get_many(self, keys):
        self.calls += 1
        self.touched += len(keys)
        return self._engine.get_many(keys)

    def look(self, ranges, keys=()):
        self.calls += 1
        self.touched += len(keys)
        return self._engine.look(ranges, keys)

    def fetch_many(self, ranges):
        self.calls += 1
        found = self._engine.fetch_many(ranges)
        self.touched += sum(len(part) for part in found)
        return found

    def put(self, *arguments, **options):
        self.calls += 1
        return self._engine.put(*arguments, **options)

    def delete(self, *arguments):
        self.calls += 1
        return self._engine.delete(*arguments)

    def life(self):
        return self._engine.life()

    def indexes(self, prefix):
        self.calls += 1
        return self._engine.indexes(prefix)

    def last_number(self):
        self.calls += 1
        return self._engine.last_number()

    def reset(self):
        self._engine.reset()

    def close(self):
        self._engine.close()


SORT_KEYS = ('name', 'status', 'container_format', 'disk_format', 'size',
             'id', 'created_at', 'updated_at')


@pytest.fixture(scope='module')
def many():
    """An engine of many images: one in a thousand is project one's, the
    others belong to a hundred others."""
    from glance_geo.db.api import Alone, DataAPI
    engine = Counted(MemoryEngine())
    assert Trait.COMPARE_AND_SET in engine.traits
    store = RecordStore(engine, 'local')
    data_api = DataAPI(store, Alone())
    for number in range(20_000):
        mine = number % 1000 == 7
        data_api.image_create(ADMIN, {
            'id': f'00000000-0000-4000-8000-{number:012d}',
            'name': f'image-{number * 7919 % 20_000}', 'status': 'active',
            'owner': 'one' if mine else f'p{number % 100}',
            'visibility': 'public' if number % 50 == 0 else 'private',
            'size': number * 31 % 1000, 'disk_format': 'raw',
            'container_format': 'bare', 'os_hidden': False,
            'properties': {'os': 'rare' if number % 2000 == 3 else 'usual'}})
    return data_api, engine


@pytest.mark.parametrize('context', [
    ADMIN, caller('one')],
    ids=['admin', 'user'])
@pytest.mark.parametrize('way', ['asc', 'desc'])
@pytest.mark.parametrize('key', SORT_KEYS)
def test_a_page_costs_the_page(many, key, way, context):
    data_api, engine = many
    asked = {'deleted': False, 'os_hidden': False}
    marker = None
    for _ in range(3):
        engine.count()
        page = data_api.image_get_all(
            context, filters=asked, marker=marker, limit=25, sort_key=[key],
            sort_dir=[way], return_tag=True)
        calls, touched = engine.count()
        assert len(page) == 25
        assert calls <= 2 and touched <= 200, (calls, touched)
        marker = page[-1]['id']


@pytest.mark.parametrize('asked', [
    {'os': 'rare'}, {'name': 'image-5'}, {'name': 'in:image-5,image-6'},
    {'status': 'queued'}, {'checksum': 'none'}, {'tags': ['none']},
    {'owner': 'one'}, {'visibility': 'public'}, {'size_min': '999'},
    {'id': '00000000-0000-4000-8000-000000000003'},
    {'name': 'image-5', 'os': 'usual'}])
@pytest.mark.parametrize('key', ['created_at', 'name', 'size'])
def test_a_filter_costs_what_it_finds(many, asked, key):
    data_api, engine = many
    engine.count()
    page = data_api.image_get_all(
        ADMIN, filters={'deleted': False, 'os_hidden': False, **asked},
        limit=25, sort_key=[key], sort_dir=['asc'])
    calls, touched = engine.count()
    assert calls <= 2 and touched <= 200, (len(page), calls, touched)


def test_calls_take_few_round_trips(many):
    data_api, engine = many
    id = '00000000-0000-4000-8000-aaaaaaaaaaaa'
    user = caller('one')

    def cost(call, *arguments, **options):
        engine.count()
        found = call(*arguments, **options)
        return found, engine.count()[0]
    _, calls = cost(data_api.image_create, user, {
        'id': id, 'status': 'queued', 'owner': 'one',
        'visibility': 'shared'})
    assert calls <= 2
    assert cost(data_api.image_get, user, id)[1] == 1
    assert cost(data_api.image_update, user, id, {'name': 'x'})[1] <= 2
    assert cost(data_api.image_tag_create, user, id, 't')[1] <= 2
    assert cost(data_api.image_tag_set_all, user, id, ['t', 'u'])[1] <= 2
    assert cost(data_api.image_tag_delete, user, id, 't')[1] <= 2
    assert cost(data_api.image_set_property_atomic, id, 'p', 'v')[1] <= 2
    assert cost(data_api.image_delete_property_atomic, id, 'p', 'v')[1] <= 2
    member, calls = cost(data_api.image_member_create, user, {
        'image_id': id, 'member': 'two'})
    assert calls <= 2
    assert cost(data_api.image_member_update, user, member['id'],
                {'status': 'accepted'})[1] <= 2
    assert cost(data_api.image_member_find, user, image_id=id)[1] == 1
    assert cost(data_api.image_member_delete, user, member['id'])[1] <= 2
    assert cost(data_api.image_destroy, user, id)[1] <= 2
    assert cost(data_api.metadef_namespace_create, ADMIN, {
        'namespace': 'N', 'owner': 'one', 'visibility': 'public'})[1] <= 2
    space, calls = cost(data_api.metadef_namespace_get, ADMIN, 'N')
    assert calls == 1
    assert cost(data_api.metadef_namespace_update, ADMIN, space['id'],
                {'namespace': 'N', 'description': 'd'})[1] <= 2
    assert cost(data_api.metadef_object_create, ADMIN, 'N',
                {'name': 'o'})[1] <= 2
    assert cost(data_api.metadef_object_get, ADMIN, 'N', 'o')[1] == 1
    thing = data_api.metadef_object_get(ADMIN, 'N', 'o')
    assert cost(data_api.metadef_object_update, ADMIN, 'N', thing['id'],
                {'description': 'd'})[1] <= 2
    assert cost(data_api.metadef_object_delete, ADMIN, 'N', 'o')[1] <= 2
    data_api.metadef_resource_type_create(ADMIN, {'name': 'T'})
    assert cost(data_api.metadef_resource_type_association_create, ADMIN,
                'N', {'name': 'T'})[1] <= 2
    assert cost(data_api.metadef_resource_type_association_get, ADMIN, 'N',
                'T')[1] == 1
    assert cost(data_api.metadef_resource_type_association_delete, ADMIN,
                'N', 'T')[1] <= 2
    assert cost(data_api.metadef_namespace_delete, ADMIN, 'N')[1] <= 2
    task, calls = cost(data_api.task_create, user, {
        'type': 'import', 'status': 'pending', 'owner': 'one'})
    assert calls <= 2
    assert cost(data_api.task_get, user, task['id'])[1] == 1
    assert cost(data_api.task_update, user, task['id'],
                {'status': 'success'})[1] <= 2
