# SPDX-License-Identifier: Apache-2.0
"""P4 on an engine that takes every write: no value is lost, whatever replica
a writer reads from. Run on the Riak of ``GLANCE_GEO_TEST_RIAK``, or on a
stand-in for its interface."""

import random

import pytest

from glance_geo.core.engine import MetadataEngine
from glance_geo.db.engines import open_engine
from glance_geo.db.recordstore import RecordStore
from tests import engines

SITES = ('paris', 'rennes', 'nantes')


class Stale(MetadataEngine):
    """A replica that may answer with what was there before."""

    def __init__(self, engine, rng):
        self._engine, self._rng = engine, rng
        self.traits = engine.traits
        self._before = {}

    def get_many(self, keys):
        found = self._engine.get_many(keys)
        for key in keys:
            history = self._before.setdefault(key, [None])
            history.append(found.get(key))
            chosen = self._rng.choice(history[-3:])
            if chosen is None:
                found.pop(key, None)
            else:
                found[key] = chosen
        return found

    def put(self, *arguments, **options):
        return self._engine.put(*arguments, **options)

    def delete(self, key, token=None):
        self._engine.delete(key, token)

    def look(self, ranges, keys=()):
        return self._engine.look(ranges)[0], self.get_many(keys)

    def indexes(self, prefix):
        return []

    def last_number(self):
        return 0

    def reset(self):
        self._engine.reset()

    def close(self):
        self._engine.close()


@pytest.mark.parametrize('seed', range(20))
def test_p4_siblings_keep_every_value_whatever_replicas_answer(seed):
    """Writers on one Riak, each reading from replicas that are behind."""
    rng = random.Random(seed)
    url = engines.url('riak', None)
    plain = RecordStore(open_engine(url), 'judge')
    writers = [RecordStore(Stale(open_engine(url), rng), site)
               for site in SITES]
    for store in writers:
        store._writer.remember = rng.choice((1, 2, 50))
    writers[0].update('image', 'i', lambda present: {'name': 'first'})
    told, superseded = {}, set()
    for number in range(40):
        store = rng.choice(writers)
        field = rng.choice(('prop:a', 'prop:b'))
        seen = []

        def change(present, field=field, number=number, seen=seen):
            seen[:] = ([] if present is None
                       else present.fields.get(field, {}))
            return {field: {'value': number, 'removed': False}}
        store.update('image', 'i', change)
        superseded.update(seen)
        told[store.incarnation, store._writer._counter] = (field, number)
    found = {}
    for _ in range(3):      # reads unite siblings, and what moved aside
        records_now = list(plain.everything())
    for record in records_now:
        for siblings in record.fields.values():
            found.update(siblings)
    lost = {dot: value for dot, value in told.items()
            if dot not in found and dot not in superseded}
    assert not lost, (seed, lost)
    plain.engine.close()
