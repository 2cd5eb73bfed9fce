# SPDX-License-Identifier: Apache-2.0
"""What is sent to a CockroachDB, against what its documentation allows; how
its errors are understood. Nothing here needs a server."""

import itertools
import re

import psycopg2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oslo_db import exception
from sqlalchemy import exc as sa_exc
from sqlalchemy.engine import make_url

from glance_geo.core import errors
from glance_geo.db.cockroachdb import (
    calls,
    commits,
    connection,
    faults,
    filters,
    locality,
    plugin,
    scope,
)
from tests import cockroach


# -- errors ----------------------------------------------------------------
class Diagnosis:
    def __init__(self, **fields):
        self.__dict__.update(dict.fromkeys((
            'message_detail', 'constraint_name', 'table_name')), **fields)


def failed(state, text='it failed', **fields):
    original = type('Error', (psycopg2.OperationalError,), {
        'pgcode': state, 'diag': Diagnosis(**fields)})(text)
    return sa_exc.OperationalError('SELECT 1', {}, original)


@pytest.mark.parametrize('state, expected', [
    ('40001', exception.DBDeadlock), ('40P01', exception.DBDeadlock),
    ('40003', faults.AmbiguousCommit), ('57014', faults.Unanswered),
    ('58C00', faults.Unanswered), ('57P01', exception.DBConnectionError),
    ('08006', exception.DBConnectionError)])
def test_each_state_has_its_error(state, expected):
    with pytest.raises(expected):
        filters.translate(failed(state), None, 'cockroachdb', False)


def test_a_restart_is_known_by_its_text_too():
    with pytest.raises(exception.DBDeadlock):
        filters.translate(failed(
            'XXUUU', 'restart transaction: TransactionRetryWithProtoRefresh'
            'Error'), None, 'cockroachdb', False)


def test_other_states_are_left_to_oslo_db():
    assert filters.translate(failed('42601'), None, 'cockroachdb',
                             False) is None


def test_a_duplicate_names_its_columns():
    with pytest.raises(exception.DBDuplicateEntry) as raised:
        filters.translate(failed(
            '23505', constraint_name='ix_image_properties_image_id_name',
            message_detail="Key (image_id, name)=('a', 'b') already "
                           'exists.'), None, 'cockroachdb', False)
    assert raised.value.columns == ['image_id', 'name']
    with pytest.raises(exception.DBDuplicateEntry) as raised:
        filters.translate(failed('23505', constraint_name='primary'), None,
                          'cockroachdb', False)
    assert raised.value.columns == ['primary']


def test_a_reference_names_both_tables():
    with pytest.raises(exception.DBReferenceError) as raised:
        filters.translate(failed(
            '23503', table_name='image_tags', constraint_name='fk',
            message_detail='Key (image_id)=(x) is not present in table '
                           '"images".'), None, 'cockroachdb', False)
    assert (raised.value.table, raised.value.key,
            raised.value.key_table) == ('image_tags', 'image_id', 'images')


def test_what_is_explained_is_one_line_with_advice():
    error = exception.DBConnectionError(failed(
        None, 'connection to server failed: certificate verify failed\nmore'))
    line = filters.explain(error)
    assert '\n' not in line and 'sslrootcert' in line


# -- servers and URLs ------------------------------------------------------
def test_servers_that_do_not_fit_are_refused():
    plugin.check_server('CockroachDB CCL v23.1.11 (x86_64, built 2023)')
    plugin.check_server('CockroachDB OSS v24.3.0-beta.1 (linux)')
    with pytest.raises(faults.ServerUnfit, match='PostgreSQL 15.1'):
        plugin.check_server('PostgreSQL 15.1, compiled by gcc')
    with pytest.raises(faults.ServerUnfit, match='21.2 is too old'):
        plugin.check_server('CockroachDB CCL v21.2.4 (x86_64)')


def arguments(text):
    kwargs = {}
    made = plugin.CockroachDBPlugin(make_url(text), kwargs)
    return kwargs['connect_args'], made


def test_tls_is_demanded_but_on_this_machine():
    base = 'cockroachdb://glance@{}/glance?plugin=glance_geo'
    assert arguments(base.format('db.paris'))[0]['sslmode'] == 'verify-full'
    assert 'sslmode' not in arguments(base.format('127.0.0.1'))[0]
    several = 'cockroachdb://u@/g?plugin=glance_geo&host=localhost:1&host={}'
    assert 'sslmode' not in arguments(several.format('127.0.0.1:2'))[0]
    assert arguments(several.format('far:2'))[0]['sslmode'] == 'verify-full'
    given_mode = arguments(base.format('db') + '&sslmode=require')[0]
    assert 'sslmode' not in given_mode


def test_a_url_without_a_port_means_cockroachdbs():
    assert arguments('cockroachdb://u@h/d')[0]['port'] == '26257'
    assert 'port' not in arguments('cockroachdb://u@h:1/d')[0]
    assert 'port' not in arguments('cockroachdb://u@/d?host=a:1&host=b:2')[0]


def test_the_plugins_arguments_do_not_reach_the_server():
    given_arguments, made = arguments(
        'cockroachdb://u@h/d?plugin=glance_geo&geo_statement_timeout=3'
        '&geo_certain_commits=0&options=-c%20a%3Db&sslcert=c')
    left = made.update_url(made.url)
    assert dict(left.query) == {'sslcert': 'c'}
    assert given_arguments['options'] == (
        '-c a=b -c default_transaction_isolation=serializable '
        '-c statement_timeout=3000')


def test_other_dialects_are_refused():
    with pytest.raises(sa_exc.ArgumentError, match='cockroachdb://'):
        arguments('postgresql://u@h/d?plugin=glance_geo')


@pytest.mark.parametrize('present, expected', [
    ('', 'plugin=glance_geo&geo_statement_timeout=10'),
    ('plugin=glance_geo', 'plugin=glance_geo&geo_statement_timeout=10'),
    ('a=b&geo_statement_timeout=2', 'a=b&geo_statement_timeout=2'
                                    '&plugin=glance_geo')])
def test_parameters_that_the_operator_gave_stay(present, expected):
    assert plugin.parameters('cockroachdb://h/d', present, 10.0) == expected


def test_what_the_url_says_is_not_said_twice():
    url = 'cockroachdb://h/d?plugin=glance_geo&geo_statement_timeout=2'
    assert plugin.parameters(url, '', 10.0) == ''


@pytest.mark.parametrize('given', [
    'geo_statement_timeout=soon', 'geo_statement_timeout=-1',
    'geo_statement_timeout=1&geo_statement_timeout=2'])
def test_a_limit_that_is_none_is_refused(given):
    with pytest.raises(sa_exc.ArgumentError, match='geo_statement_timeout'):
        arguments(f'cockroachdb://u@h/d?{given}')


# -- statements ------------------------------------------------------------
@pytest.mark.parametrize('text, word', [
    ('SELECT 1', 'SELECT'), ('  (select 1)', 'SELECT'), ('COMMIT;', 'COMMIT'),
    ('\nCREATE TABLE x ()', 'CREATE'), ('', '')])
def test_the_verb_of_a_statement(text, word):
    assert connection.verb(text) == word


class Idle(connection.Connection):
    """Without a server: what would be sent before a statement."""

    def __init__(self):
        self._autocommit = self._wrote = False
        self._changed_schema = True
        self._level = None

    def _idle(self):
        return True


@pytest.mark.parametrize('allowed, word, sent', [
    (scope.Scope(), 'SELECT', 'BEGIN; '),
    (scope.Scope(), 'UPDATE', 'BEGIN; '),
    (scope.Scope(single=True), 'SELECT', ''),
    (scope.Scope(reads_back=True), 'SELECT', 'BEGIN; '),
    (scope.Scope(single=True, stale=True), 'SELECT',
     'BEGIN AS OF SYSTEM TIME follower_read_timestamp(); '),
    (scope.Scope(), 'CREATE', '')])
def test_what_travels_before_a_statement(allowed, word, sent):
    with scope.within(allowed):
        assert before(word) == sent


def before(word):
    made = Idle.__new__(Idle)
    Idle.__init__(made)
    return made.before(word)


def test_a_second_statement_without_a_transaction_is_refused():
    with scope.within(scope.Scope(single=True)):
        assert before('SELECT') == ''
        with pytest.raises(faults.NeedsTransaction):
            before('SELECT')


def test_what_was_committed_is_not_read_back_twice():
    with scope.within(scope.Scope(reads_back=True, committed=True)), \
            pytest.raises(faults.Committed):
        before('SELECT')
    with scope.within(scope.Scope(committed=True)):
        assert before('SELECT') == 'BEGIN; '


def test_only_lists_may_be_old():
    assert calls.LISTS < calls.READERS
    assert not any(name.startswith(('task', 'user', 'image_member'))
                   for name in calls.LISTS)


def test_readers_are_those_functions_that_only_read():
    """A Glance that changes what a function does shows here."""
    import inspect

    import glance.db.sqlalchemy.api as api
    found = {name for name, function in inspect.getmembers(
        api, inspect.isfunction) if name[0] != '_'
        and 'session_for_read()' in (
            text := inspect.getsource(inspect.unwrap(function)))
        and 'session_for_write()' not in text
        and name not in ('session_for_read', 'session_for_write')}
    assert found == calls.READERS


def test_of_those_that_write_four_read_back():
    import inspect

    import glance.db.sqlalchemy.api as api
    for name, function in inspect.getmembers(api, inspect.isfunction):
        text = inspect.getsource(inspect.unwrap(function))
        writes = text.count('session_for_write()')
        if name[0] != '_' and name not in calls._NOT_CALLS and writes:
            assert writes == 1, name
            assert (('session_for_read()' in text)
                    == (name in calls._READS_BACK)), name


def test_statements_keep_to_what_cockroachdb_documents():
    """What Glance sends is looked at in test_cockroachdb_contention, changes
    of the schema in test_cockroachdb_schema."""
    for text in (commits.CREATE, commits.enter(commits.new_marker()),
                 commits.forget([commits.new_marker()] * 2)):
        assert not cockroach.different(text), text
    assert cockroach.different("x; LOCK TABLE images IN y MODE")
    assert not cockroach.different("SELECT 'LOCK TABLE it''s'")


# -- locality --------------------------------------------------------------
names = st.lists(st.from_regex(r'[a-z][a-z0-9-]{0,8}', fullmatch=True),
                 min_size=1, max_size=8, unique=True)


@given(names, st.booleans(), st.data())
def test_no_region_is_asked_for_more_than_there_is(regions, near, data):
    primary = data.draw(st.sampled_from(regions))
    steps = locality.plan('glance', regions, primary, near)
    (zone,) = [step.statement for step in steps if not step.licensed]
    replicas = int(re.search(r'num_replicas = (\d+)', zone)[1])
    voters = re.search(r'num_voters = (\d+)', zone)
    voters = int(voters[1]) if voters else replicas
    assert voters in (3, 5) and voters <= replicas
    listed = re.search(r"(?<!voter_)constraints = '\{(.*?)\}'", zone)[1]
    asked = dict(re.findall(r'\+region=([a-z0-9-]+): (\d+)', listed))
    assert sum(map(int, asked.values())) <= replicas
    assert f"lease_preferences = '[[+region={primary}]]'" in zone
    if near:
        assert set(asked) == set(regions)
    # Any one region may be lost without losing the majority.
    if 3 <= len(regions) <= voters:
        assert max(map(int, asked.values())) <= voters // 2


def test_what_needs_a_licence_is_marked():
    steps = locality.plan('glance', ['paris', 'rennes', 'nantes'])
    for step in steps:
        assert step.licensed != ('CONFIGURE ZONE' in step.statement)
    assert [step.licensed for step in steps].count(False) == 1


def test_every_table_of_glance_has_its_place():
    from glance.db.sqlalchemy import models, models_metadef
    tables = {table.name for base in (models.BASE, models_metadef.BASE_DICT)
              for table in base.metadata.sorted_tables}
    placed = {*locality.GLOBAL_TABLES, *locality.ROW_TABLES}
    assert tables <= placed
    assert len(placed) == len(locality.GLOBAL_TABLES) + len(
        locality.ROW_TABLES)


@pytest.mark.parametrize('regions, primary', [
    ([], None), (['paris'], 'rennes'), (["a'b"], None), (['x: 1}'], None)])
def test_regions_that_cannot_be(regions, primary):
    with pytest.raises(errors.ConfigurationInvalid):
        locality.plan('glance', regions, primary)


def test_names_are_quoted():
    statements = [step.statement for step in locality.plan(
        'gl"ance', ['eu-west'])]
    assert all('gl"ance' not in text for text in statements)
    assert 'ALTER DATABASE "gl""ance" CONFIGURE ZONE' in statements[0]
    assert not set(itertools.chain(*statements)) & {'\n', '\0'}


def test_a_call_that_needs_a_transaction_now_and_then_stays_fast():
    class Sometimes(calls._Call):
        def _attempt(self, allowed, arguments, options):
            tried.append(allowed.single)
            if allowed.single and arguments[0]:
                raise faults.NeedsTransaction('second')
            return arguments[0]
    call = Sometimes('image_get', lambda rare: rare, None, 1.0, False)
    for number in range(200):
        tried = []
        call(number % 10 == 0)
        assert tried == ([True, False] if number % 10 == 0 else [True])
    for _ in range(50):     # always: it is not tried for ever
        tried = []
        call(True)
    assert tried == [False]
