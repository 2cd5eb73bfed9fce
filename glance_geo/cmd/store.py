# SPDX-License-Identifier: Apache-2.0
"""Commands on this node's chunk store."""

import random
import re

from cliff import lister, show

from glance_geo import assembly
from glance_geo.conf import options
from glance_geo.core import errors

# Chunks that a repair asks the agent for at a time.
_BATCH = 128


def _share(text: str) -> float:
    """Return what "10%" or "all" says, as a share of one."""
    match = re.fullmatch(r'(\d+(?:\.\d+)?)%?', text)
    if match is None or not 0 < float(match[1]) <= 100:
        raise errors.ConfigurationInvalid(
            f'--read-data={text}: say a part such as 10%, or leave it out')
    return float(match[1]) / 100


class _Bars:
    """A progress bar for each thing that is worked through."""

    def __init__(self):
        self._bars = {}

    def __call__(self, what, done, total):
        from tqdm import tqdm
        if what not in self._bars:
            self._bars[what] = tqdm(desc=what, disable=None, leave=False)
        bar = self._bars[what]
        bar.total = total
        bar.update(done - bar.n)
        if done >= total:
            bar.close()


class StoreCollect(show.ShowOne):
    """Remove chunks that no image refers to."""

    def get_parser(self, prog_name):
        parser = super().get_parser(prog_name)
        parser.add_argument('--compact', action='store_true',
                            help='also rewrite the packs that are partly '
                                 'dead now, as fast as the disk goes')
        return parser

    def take_action(self, parsed_args):
        agent = assembly.local_agent(self.app.configuration())
        done = agent.call('/collect', {})
        if not done.pop('ran'):
            raise errors.StoreUnusable(
                'a collection or compaction is running already')
        if parsed_args.compact:
            done |= {f'compacted_{name}': value for name, value
                     in agent.call('/compact', {}).items()}
        return zip(*sorted(done.items()), strict=True)


class StoreShow(show.ShowOne):
    """Show what this node's chunk store holds.

    logical: the sizes of the images; unique: what is left of them without
    zeros and duplicates; stored: that compressed; packs: what the files take
    now; evictable: stored bytes that only copies use which may go.
    """

    def take_action(self, parsed_args):
        conf = self.app.configuration()
        store = assembly.chunk_store(conf)
        try:
            chunks, raw, stored = store.index.totals()
            counted = store.statistics()
            packs = store.pack_files()
            logical = 0
            for image, manifest in store.copies():
                try:
                    logical += store.view([image], manifest).manifest().size
                except errors.ChunkMissing:
                    continue    # a copy of which nothing came yet
            return zip(*(
                ('folder', str(store.path)),
                ('images', len({image for image, _ in store.copies()})),
                ('chunks', chunks), ('logical_bytes', logical),
                ('unique_bytes', raw), ('stored_bytes', stored),
                ('evictable_bytes', counted.get('evictable_bytes', 0)),
                ('packs', len(packs)), ('pack_bytes', store.used_bytes()),
                ('index_bytes', sum(
                    path.stat().st_size for path in store.path.glob(
                        'index.db*') if not path.name.endswith('-shm'))),
                ('limit_bytes', store.limit or None),
                ('leases', len(store.refs.leases())),
                ('damaged_chunks', store.index.query(
                    'SELECT count(*) FROM damaged')[0][0])), strict=True)
        finally:
            store.close()


class StoreCheck(lister.Lister):
    """Check this node's chunk store; list what is wrong.

    May run beside everything else. Damaged chunks are set aside, so that
    they are fetched from another site when they are read, or now with
    --repair. Exits with 2 if anything is wrong, and not repaired.
    """

    def get_parser(self, prog_name):
        parser = super().get_parser(prog_name)
        parser.add_argument('--read-data', nargs='?', const='100%',
                            metavar='PART', help='read and verify the data '
                            'too: all of it, or a part of the chunks, chosen '
                            'at random, such as 10%%')
        parser.add_argument('--seed', type=int, help='of the choice')
        parser.add_argument('--repair', action='store_true',
                            help='fetch what is missing from other sites')
        return parser

    def take_action(self, parsed_args):
        from glance_geo.store import check
        conf = self.app.configuration()
        share = _share(parsed_args.read_data) if parsed_args.read_data else 0
        seed = parsed_args.seed
        if 0 < share < 1:
            seed = random.randrange(2 ** 32) if seed is None else seed
            self.app.stderr.write(f'Chunks chosen with --seed {seed}\n')
        store = assembly.chunk_store(conf)
        found = []
        for problem in check.check(store, share, seed, _Bars()):
            done = 'found'
            if parsed_args.repair and problem.manifest:
                done = self._repair(conf, store, problem)
            found.append((problem.kind, problem.what, problem.text, done))
        if not found:
            self.app.stderr.write('Nothing is wrong.\n')
        left = [row for row in found if row[0] == 'image'
                and row[3] != 'repaired']
        if left or (found and not parsed_args.repair):
            self._failed = True
        return ('Kind', 'What', 'Problem', 'State'), found

    def run(self, parsed_args):
        self._failed = False
        return super().run(parsed_args) or (2 if self._failed else 0)

    @staticmethod
    def _repair(conf, store, problem):
        """Fetch what an image lacks; say how it went."""
        agent = assembly.local_agent(conf)
        view = store.view([problem.what], problem.manifest)
        bars = _Bars()
        try:
            everything, place = False, 0
            while not everything:
                # What comes may be a part that says what else is missing.
                everything, fetched = True, 0
                for names, whole in view.walk():
                    everything &= whole
                    missing = view.missing(names)
                    for start in range(0, len(missing), _BATCH):
                        agent.ensure(problem.what, problem.manifest,
                                     missing[start:start + _BATCH])
                        place += len(missing[start:start + _BATCH])
                        bars(f'image {problem.what}', place, place + 1)
                    fetched += len(missing)
                if not everything and not fetched:
                    return 'not repaired: its manifest is malformed'
            return 'repaired'
        except errors.GeoError as error:
            return f'not repaired: {error}'


class StoreRebuildIndex(show.ShowOne):
    """Make the chunk store's index anew, from its packs and metadata.

    Stop glance-api and the agent of this node before. The old index is kept
    beside.
    """

    def take_action(self, parsed_args):
        import dataclasses

        from glance_geo.store import rebuild
        conf = self.app.configuration()
        assembly.refuse_running_agent(conf)
        name, folder = options.store_folder(conf)
        done = rebuild.rebuild(folder, options.store_owner(conf, name),
                               _listed(conf, name), _Bars())
        if done.unknown:
            self.app.stderr.write(
                f'{done.unknown} images are here that metadata does not '
                f'know. They stay until their records come, or "glance-geo '
                f'store collect" learns that they are deleted.\n')
        self.app.stderr.write('"glance-geo store check --read-data" verifies '
                              'the data that it points to.\n')
        return zip(*sorted(dataclasses.asdict(done).items()), strict=True)


def _listed(conf, store):
    """Return what metadata says of the bits that may be here."""
    from glance_geo.replication.sources import chunk_project, image_bits
    from glance_geo.store.rebuild import Listed
    from glance_geo.store.references import COPY
    if conf[options.GROUP].metadata_backend == options.SQL:
        return []
    own = conf[options.GROUP].site_name
    site_wide = conf[store].geo_dedup_scope == 'site'
    found = []
    for record in assembly.records(conf).list('image'):
        bits = image_bits(record)
        project = chunk_project(bits, site_wide)
        for loc in bits.locations:
            found.append(Listed(loc.image, loc.manifest,
                                loc.nonce if bits.home == own else COPY,
                                project))
    return found
