# SPDX-License-Identifier: Apache-2.0
"""Work that is tried again, and does not stand in the way of other work."""

import threading

from hypothesis import given
from hypothesis import strategies as st

from glance_geo.core import errors
from glance_geo.core.settling import COPY, given_up
from glance_geo.replication.workqueue import WorkQueue


def run(work, wanted, retry=0.01):
    done, finished = [], threading.Event()

    def once(key, value):
        done.append((key, value))
        result = work(key, value)
        if wanted(done):
            finished.set()
        return result
    queue = WorkQueue('test', once, retry)
    return queue, done, finished


def test_what_fails_is_tried_again_and_others_go_on():
    tries = []

    def work(key, value):
        if key == 'bad':
            tries.append(value)
            if len(tries) == 1:
                raise errors.Unreachable('no')
            if len(tries) == 2:
                raise ValueError('a bug')
            return len(tries) > 3
        return True
    queue, done, finished = run(work, lambda done: len(done) == 7)
    queue.put('bad', 1)
    for key in 'abc':
        queue.put(key, 0)
    queue.start()
    assert finished.wait(20)
    queue.stop()
    # The others did not wait for the one that fails.
    assert [key for key, _ in done[:4]] == ['bad', 'a', 'b', 'c']
    assert tries == [1] * 4


def test_the_newest_value_of_a_key_counts():
    queue, done, finished = run(lambda *_: True, lambda done: bool(done))
    queue.put('a', 1)
    queue.put('a', 2)
    queue.start()
    assert finished.wait(20)
    queue.stop()
    assert done == [('a', 2)]


def test_what_was_asked_for_while_it_failed_replaces_it():
    seen = []

    def work(key, value):
        seen.append(value)
        if value == 'old':
            queue.put(key, 'new')
            return False
        return True
    queue, _, finished = run(work, lambda done: ('a', 'new') in done)
    queue.put('a', 'old')
    queue.start()
    assert finished.wait(20)
    queue.stop()
    assert seen == ['old', 'new']


pairs = st.sets(st.tuples(st.sampled_from('xyz'),
                          st.sampled_from(['1', '2', COPY])))


@given(pairs, pairs, pairs, st.booleans())
def test_p8_what_is_listed_stays_and_what_nobody_gave_up_stays(
        kept, listed, asked, deleted):
    gone = set(given_up(kept, listed, asked, deleted))
    assert gone <= kept and not gone & listed
    for content, nonce in kept - gone:
        assert ((content, nonce) in listed or not deleted
                or (nonce == COPY and content in {c for c, _ in listed}))
    if not deleted:
        assert {content for content, _ in gone} <= {
            content for content, _ in asked}
