# SPDX-License-Identifier: Apache-2.0
"""P4: sites that exchange records in any order converge, and no value that a
client was told is stored disappears but by a later write that saw it, or by a
named rule: a backup was restored before the write reached anyone, a site was
retired by force, or the record was deleted, by all known or to be made anew.

The real sync, audit, tombstone collection and bootstrap run, on real engines;
only the wire between the sites is short.
"""

import contextlib
import copy
import itertools
import os
import shutil
import tempfile
import uuid

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

from glance_geo.core import codec, errors
from glance_geo.core.clock import HybridClock
from glance_geo.core.records import NO_SITE, REMOVED
from glance_geo.db.engines import open_engine
from glance_geo.db.recordstore import RecordStore
from glance_geo.replication import (
    audit,
    bootstrap,
    membership,
    tombstones,
    wire,
)
from glance_geo.replication.sync import pull
from tests import engines
from tests.property.test_merge import changes

SITES = ('paris', 'rennes', 'nantes')
IDS = ('i', 'j')
site_names = st.sampled_from(SITES)


class Wire:
    """What one site asks another, without a network between them.

    :ivar twice: records come twice and in another order
    :ivar cut: the answer ends after so many records
    """

    def __init__(self, here, origin, twice=False, cut=None):
        self.here, self.origin = here, origin
        self.site = origin.site
        self.twice, self.cut = twice, cut

    def _check(self):
        if membership.retired(self.origin.get('site', self.here.site)):
            raise errors.SiteRetired(self.here.site)

    @contextlib.contextmanager
    def records(self, vector, bootstrap=False):
        if bootstrap:
            membership.readmit(self.origin, self.here.site)
        self._check()
        mine = self.origin.vector()
        found = [codec.encode(r) for r in self.origin.newer(vector)]
        if self.twice:
            found = found[::-1] + found
        answer = Frames(found, self.cut)
        answer.last = wire.pack(mine)
        yield answer

    @contextlib.contextmanager
    def states(self, keys):
        yield Frames([codec.encode(r) for r in self.origin.states(keys)])

    def digest(self, document):
        if 'bucket' in document:
            return {'records': self.origin.bucket(document['bucket'])}
        vector = self.origin.vector()
        found = self.origin.digests()
        return {'sums': found.sums, 'counts': found.counts,
                'vector': vector}

    def known(self, document):
        self.origin.learn(document['known'])
        return {'known': self.origin.known()}


class Frames(list):
    def __init__(self, found, cut=None):
        super().__init__(found)
        self.cut = cut

    def __iter__(self):
        for number, frame in enumerate(super().__iter__()):
            if number == self.cut:
                raise errors.Unreachable('cut off')
            yield frame


class Convergence(RuleBasedStateMachine):
    """Sites with an engine each."""

    engine_name = 'memory'

    @initialize()
    def start(self):
        self.folder = tempfile.mkdtemp(prefix='geo-converge-')
        self.wall = 1_000_000
        self.skew = {site: n * 4000 for n, site in enumerate(SITES)}
        self.urls, self.sites, self.backups = {}, {}, {}
        #: (id, birth, field, dot) of every write that was acknowledged
        self.told = set()
        self.superseded = set()
        #: births of records that were deleted and created anew
        self.replaced = set()
        for site in SITES:
            self.urls[site] = engines.url(self.engine_name, self.folder)
            self.open(site, open_engine(self.urls[site]))
            self.sites[site].update('site', site, lambda present: {
                'site': {'name': 'x'}})
        for to, source in itertools.permutations(SITES, 2):
            self.pull(to, source)

    def open(self, site, engine):
        self.sites[site] = RecordStore(engine, site, clock=HybridClock(
            lambda: self.wall + self.skew[site]))

    def retired(self, at, site):
        return membership.retired(self.sites[at].get('site', site))

    def pull(self, to, source, **options):
        if self.retired(to, source):
            return
        with contextlib.suppress(errors.SiteRetired, errors.Unreachable):
            pull(self.sites[to], Wire(self.sites[to], self.sites[source],
                                      **options))

    # -- what happens ------------------------------------------------------
    @rule(site=site_names, id=st.sampled_from(IDS), change=changes())
    def write(self, site, id, change):
        self.wall += 7
        before = self.sites[site].get('image', id)
        # Deletions say what they have seen, as the data API's do.
        if change.get('deletion') not in (None, REMOVED):
            change = {**change, 'deletion': {
                **change['deletion'], 'deleted_at': 1,
                'seen': dict(before.context) if before else {}}}
        after = self.sites[site].update('image', id, lambda present: change)
        birth = after.birth.nonce
        for field, value in change.items():
            if before is not None:
                self.superseded |= {
                    (birth, field, dot)
                    for dot in before.fields.get(field, {})}
            if value is not REMOVED:
                self.told |= {(birth, field, dot)
                              for dot in after.fields[field]}

    @rule(site=site_names, id=st.sampled_from(IDS))
    def create_anew(self, site, id):
        """As a namespace is, after its deletion."""
        self.wall += 7
        before = self.sites[site].get('image', id)
        if before is None:
            return
        self.sites[site].create('image', id, lambda present: {'name': 'new'})
        self.replaced.add(before.birth.nonce)

    @rule(to=site_names, source=site_names, twice=st.booleans(),
          cut=st.sampled_from((None, None, 0, 1)))
    def exchange(self, to, source, twice, cut):
        if to != source:
            self.pull(to, source, twice=twice, cut=cut)

    @rule(site=site_names, skew=st.integers(-10_000, 100_000_000))
    def scramble_clock(self, site, skew):
        self.skew[site] = skew

    @rule(site=site_names)
    def back_up(self, site):
        self.backups[site] = snapshot(self.sites[site].engine,
                                      self.urls[site])

    @rule(site=site_names)
    def restore(self, site):
        if site not in self.backups:
            return
        self.lost_with(site)
        self.open(site, restored(self.sites[site].engine, self.urls[site],
                                 self.backups[site]))

    def lost_with(self, site):
        """Give up what no other site has of what was told."""
        held = {fact for other, store in self.sites.items() if other != site
                for fact in facts(store)}
        self.told &= held

    @rule(by=site_names, site=site_names)
    def retire(self, by, site):
        if by != site and not any(self.retired(other, name)
                                  for other in SITES for name in SITES):
            membership.retire(self.sites[by], site, by, force=True)

    @rule(site=site_names, source=site_names)
    def begin_anew(self, site, source):
        if site == source or not self.retired(source, site):
            return
        self.lost_with(site)
        store = self.sites[site]
        self.backups.pop(site, None)
        store.engine.reset()
        store.renew_incarnation()
        with contextlib.suppress(errors.SiteRetired):
            bootstrap.run(store, Wire(store, self.sites[source]))

    @rule(site=site_names)
    def forget(self, site):
        store = self.sites[site]
        for other in SITES:
            if other != site and not self.retired(site, other) \
                    and not self.retired(other, site):
                audit.gossip(store, Wire(store, self.sites[other]))
        gone = membership.retired_sites(store.list('site'))
        before = set(facts(store))
        tombstones.collect(store, [s for s in SITES if s not in gone], 0,
                           tombstones.Tombstones())
        # A deletion that everybody has passed is a write that saw it.
        self.told -= before - set(facts(store))

    # -- what must hold in the end ------------------------------------------
    def teardown(self):
        if not hasattr(self, 'sites'):
            return
        try:
            self.heal()
            self.check()
        finally:
            for store in self.sites.values():
                store.engine.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    def heal(self):
        for site, source in itertools.permutations(SITES, 2):
            if self.retired(source, site):
                self.begin_anew(site, source)
        for _ in range(3):
            for to, source in itertools.permutations(SITES, 2):
                self.pull(to, source)
        for _ in range(2):
            for to in SITES:
                others = [site for site in SITES if site != to]
                votes = audit.Votes(lambda others=others: others)
                for source in others:
                    audit.audit(self.sites[to], Wire(
                        self.sites[to], self.sites[source]), votes)
            for to, source in itertools.permutations(SITES, 2):
                self.pull(to, source)

    def check(self):
        shows = [{record.key: codec.encode(record)
                  for record in store.everything()}
                 for store in self.sites.values()]
        assert shows[0] == shows[1] == shows[2], [
            [codec.decode(s[key]) if key in s else None for s in shows]
            for key in set().union(*shows)
            if len({s.get(key) for s in shows}) > 1]
        held = set(facts(self.sites['paris']))
        missing = {fact for fact in self.told - self.superseded - held
                   if fact[0] not in self.replaced}
        assert not missing, missing


def facts(store):
    """Yield (birth, field, dot) of every value that a site has."""
    for record in store.everything():
        if record.kind == 'image':
            for field, siblings in record.fields.items():
                for dot in siblings:
                    if not dot[0].startswith(NO_SITE):
                        yield (record.birth.nonce, field, dot)


def snapshot(engine, url):
    """Return a backup of an engine's data."""
    if url == 'memory://':
        return copy.deepcopy({name: value for name, value in
                              vars(engine).items() if name != '_lock'})
    if url.startswith('sqlite:'):
        path = f'{url.removeprefix("sqlite:///")}.{uuid.uuid4().hex}'
        engine._connection().execute(f"VACUUM INTO '{path}'")
        return path
    return dump(engine)


def dump(engine):
    client = engine._client.server()
    return {key: client.dump(key)
            for key in client.scan_iter(f'{engine._base}:*')}


def restored(engine, url, backup):
    """Put a backup in the place of the data; return the engine over it."""
    if url == 'memory://':
        vars(engine).update(copy.deepcopy(backup))
        engine.renew_life()     # a process that restarts has a new one
        return engine
    if url.startswith('sqlite:'):
        path = url.removeprefix('sqlite:///')
        engine.close()
        for end in ('-wal', '-shm'):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path + end)
        shutil.copy(backup, f'{path}.new')
        os.replace(f'{path}.new', path)
        return open_engine(url)
    client = engine._client.server()
    client.delete(*client.scan_iter(f'{engine._base}:*'))
    for key, value in backup.items():
        client.restore(key, 0, value)
    engine.renew_life()     # as the restart does with which it is restored
    return engine


EXAMPLES = {'memory': 150, 'sqlite': 15, 'redis': 15}


@pytest.mark.parametrize('name', EXAMPLES)
def test_p4_sites_converge(name):
    machine = type(f'ConvergenceOn{name}', (Convergence,),
                   {'engine_name': name})
    run_state_machine_as_test(machine, settings=settings(
        max_examples=EXAMPLES[name], stateful_step_count=25, deadline=None))


@pytest.mark.long
def test_p4_sites_converge_for_long():
    run_state_machine_as_test(Convergence, settings=settings(
        max_examples=3000, stateful_step_count=40, deadline=None))
