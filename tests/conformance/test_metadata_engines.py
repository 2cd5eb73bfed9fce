# SPDX-License-Identifier: Apache-2.0
"""What every metadata engine must do. Adding an engine adds a line to
``tests/engines.py``; a test is skipped only for a trait that is missing."""

import threading

import pytest

from glance_geo.core import errors
from glance_geo.core.engine import Term, Trait
from glance_geo.db.engines import open_engine
from tests import engines


@pytest.fixture(params=engines.NAMES)
def engine(request, tmp_path):
    made = open_engine(engines.url(request.param, tmp_path))
    yield made
    made.close()


def needs(engine, trait):
    if trait not in engine.traits:
        pytest.skip(f'no {trait.value}')


def test_a_missing_key_is_none(engine):
    assert engine.get('a') is None
    assert engine.get_many(['a', 'b']) == {}


def test_put_and_get(engine):
    engine.put('a', b'1', None, ())
    engine.put('b', b'\0\xff', None, ())
    assert engine.get('a').values == (b'1',)
    assert {k: e.values for k, e in engine.get_many(
        ['a', 'b', 'c']).items()} == {'a': (b'1',), 'b': (b'\0\xff',)}


def test_many_keys_at_once(engine):
    keys = [f'k{n}' for n in range(1200)]
    for key in keys:
        engine.put(key, key.encode(), None, ())
    found = engine.get_many(keys)
    assert [found[key].values[0].decode() for key in keys] == keys


def test_a_new_key_must_be_new(engine):
    needs(engine, Trait.COMPARE_AND_SET)
    engine.put('a', b'1', None, ())
    with pytest.raises(errors.StaleToken):
        engine.put('a', b'2', None, ())


def test_a_stale_token_changes_nothing(engine):
    needs(engine, Trait.COMPARE_AND_SET)
    last = engine.last_number()
    engine.put('a', b'1', None, [Term('i', b'1')])
    token = engine.get('a').token
    engine.put('a', b'2', token, [Term('i', b'2')])
    with pytest.raises(errors.StaleToken):
        engine.put('a', b'3', token, [Term('i', b'3')], numbered=True)
    assert engine.get('a').values == (b'2',)
    assert engine.scan('i') == [(b'2', 'a')]
    assert engine.last_number() == last


def test_a_deleted_key_does_not_take_an_old_token(engine):
    needs(engine, Trait.COMPARE_AND_SET)
    engine.put('a', b'1', None, ())
    token = engine.get('a').token
    engine.delete('a')
    engine.put('a', b'2', None, ())
    with pytest.raises(errors.StaleToken):
        engine.put('a', b'3', token, ())


def test_numbers_rise_and_reach_stamped_terms(engine):
    needs(engine, Trait.COMPARE_AND_SET)
    first = engine.put('a', b'1', None, [Term('s', b'x', True)], True).number
    second = engine.put('b', b'1', None, [Term('s', b'', True)], True).number
    assert second > first > 0
    assert engine.get('a').stamp == first
    assert engine.last_number() == second
    assert set(engine.scan('s')) == {(b'x%016x' % first, 'a'),
                                     (b'%016x' % second, 'b')}


def test_a_put_in_another_life_is_refused(engine):
    needs(engine, Trait.COMPARE_AND_SET)
    life = engine.life()
    engine.put('a', b'1', None, (), True, life)
    engine.renew_life()
    assert engine.life() != life
    with pytest.raises(errors.StaleToken):
        engine.put('a', b'2', engine.get('a').token, (), True, life)
    engine.put('a', b'2', engine.get('a').token, (), True, engine.life())


def test_concurrent_puts_become_siblings(engine):
    needs(engine, Trait.SIBLINGS)
    engine.put('a', b'0', None, [Term('i', b'0')])
    token = engine.get('a').token
    assert engine.put('a', b'1', token, [Term('i', b'1')]).entry is None
    entry = engine.put('a', b'2', token, [Term('i', b'2')]).entry
    assert set(entry.values) == {b'1', b'2'}
    assert set(engine.get('a').values) == {b'1', b'2'}
    assert {term for term, _ in engine.scan('i')} == {b'1', b'2'}
    assert engine.put('a', b'3', entry.token, [Term('i', b'3')]).entry is None
    assert engine.get('a').values == (b'3',)
    assert engine.scan('i') == [(b'3', 'a')]


def test_the_change_feed_tells_of_a_put(engine):
    needs(engine, Trait.CHANGE_FEED)
    before = engine.last_number()
    assert engine.wait(before, 0.05) == before
    found = []
    waiter = threading.Thread(
        target=lambda: found.append(engine.wait(before, 30)))
    waiter.start()
    engine.put('a', b'1', None, (), True)
    waiter.join(timeout=20)
    assert found and found[0] > before


def test_scan_orders_limits_and_reverses(engine):
    for n in (3, 1, 2):
        engine.put(f'k{n}', b'v%d' % n, None,
                   [Term('i', b'%d' % n, descends=True)])
    assert engine.scan('i') == [(b'1', 'k1'), (b'2', 'k2'), (b'3', 'k3')]
    assert engine.scan('i', b'2') == [(b'2', 'k2'), (b'3', 'k3')]
    assert engine.scan('i', None, b'3') == [(b'1', 'k1'), (b'2', 'k2')]
    assert engine.scan('i', reverse=True, limit=2) == [
        (b'3', 'k3'), (b'2', 'k2')]
    assert engine.scan('i', b'2', b'3', reverse=True) == [(b'2', 'k2')]
    assert engine.scan('other') == []
    assert [(term, key, entry.values) for term, key, entry in
            engine.fetch('i', b'2', reverse=True, limit=1)] == [
                (b'3', 'k3', (b'v3',))]


def test_terms_order_bytewise_whatever_bytes_they_hold(engine):
    terms = [b'', b'\0', b'\0\0', b'\0\xff', b'\1', b'a', b'a\0', b'a\0b',
             b'a\xff', b'ab', b'b', b'\x7f', b'\x80', b'\xfe', b'\xff',
             b'\xff\xff']
    for n, term in enumerate(terms):
        engine.put(f'k{n:02}', b'', None, [Term('i', term, descends=True)])
    assert [term for term, _ in engine.scan('i')] == sorted(terms)
    assert [term for term, _ in engine.scan('i', reverse=True)] == sorted(
        terms, reverse=True)
    for start in terms:
        for stop in terms:
            expected = sorted(t for t in terms if start <= t < stop)
            assert [t for t, _ in engine.scan('i', start, stop)] == expected
            assert [t for t, _ in engine.scan(
                'i', start, stop, reverse=True)] == expected[::-1]


def test_one_index_does_not_show_in_another(engine):
    for index in ('i', 'i/', 'i/x', 'i0', 'ii'):
        engine.put(f'k{index}', b'', None, [Term(index, b'1')])
    assert engine.scan('i') == [(b'1', 'ki')]
    assert engine.scan('i/') == [(b'1', 'ki/')]


def test_many_terms_in_pages(engine):
    for n in range(1100):
        engine.put(f'k{n}', b'', None, [Term('i', b'%04d' % n)])
    assert len(engine.scan('i')) == 1100
    assert [k for _, k in engine.scan('i', b'0990', limit=20)] == [
        f'k{n}' for n in range(990, 1010)]


def test_a_put_replaces_the_terms_of_its_key(engine):
    engine.put('a', b'', None, [Term('i', b'1'), Term('i', b'2')])
    engine.put('a', b'', engine.get('a').token, [Term('i', b'2'),
                                                 Term('j', b'3')])
    assert engine.scan('i') == [(b'2', 'a')]
    needs(engine, Trait.COMPARE_AND_SET)
    assert engine.indexes('') == ['i', 'j']
    assert engine.indexes('j') == ['j']


def test_delete_is_idempotent(engine):
    engine.put('a', b'', None, [Term('i', b'1')])
    engine.delete('a')
    engine.delete('a')
    assert engine.get('a') is None and engine.scan('i') == []
    assert engine.fetch('i') == []


def test_delete_with_a_stale_token_is_refused(engine):
    needs(engine, Trait.COMPARE_AND_SET)
    engine.put('a', b'1', None, ())
    token = engine.get('a').token
    engine.put('a', b'2', token, ())
    with pytest.raises(errors.StaleToken):
        engine.delete('a', token)
    engine.delete('a', engine.get('a').token)
    assert engine.get('a') is None


def test_reset_removes_everything(engine):
    engine.put('a', b'', None, [Term('i', b'1')])
    engine.reset()
    assert engine.get('a') is None and engine.scan('i') == []


def test_of_concurrent_writers_one_wins_each_round(engine):
    needs(engine, Trait.COMPARE_AND_SET)
    last = engine.last_number()
    engine.put('n', b'0', None, ())

    def add():
        for _ in range(25):
            while True:
                entry = engine.get('n')
                try:
                    engine.put('n', b'%d' % (int(entry.values[0]) + 1),
                               entry.token, (), True)
                    break
                except errors.StaleToken:
                    continue
    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert engine.get('n').values == (b'100',)
    assert engine.last_number() == last + 100


def test_sqlite_refuses_a_second_node(tmp_path):
    url = f'sqlite:///{tmp_path}/m.db'
    open_engine(url, node='paris/one').close()
    open_engine(url, node='paris/one').close()
    with pytest.raises(errors.ConfigurationInvalid, match='paris/one'):
        open_engine(url, node='paris/two')


@pytest.mark.parametrize('url', ['nosuch://x', 'sqlite://host/x', 'plain'])
def test_a_bad_url_is_one_clear_error(url):
    with pytest.raises(errors.ConfigurationInvalid, match='metadata_backend'):
        open_engine(url)


def test_p1_sqlite_keeps_what_it_acknowledged(tmp_path):
    url = f'sqlite:///{tmp_path}/m.db'
    first = open_engine(url)
    first.put('a', b'1', None, ())
    second = open_engine(url)     # as after a crash: nothing was closed
    assert second.get('a').values == (b'1',)
    (mode,) = second._connection().execute('PRAGMA synchronous').fetchone()
    assert mode == 2    # FULL


@pytest.mark.parametrize('name, turns', [('sqlite', 20), ('cockroachdb', 3)])
def test_many_may_begin_a_new_database_at_once(tmp_path, name, turns):
    """As the processes of a node do when they start for the first time."""
    failures = []

    def begin(url, start):
        start.wait()
        try:
            open_engine(url).close()
        except errors.GeoError as error:
            failures.append(error)
    for _ in range(turns):
        start, url = threading.Barrier(6), engines.url(name, tmp_path)
        threads = [threading.Thread(target=begin, args=(url, start))
                   for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures
