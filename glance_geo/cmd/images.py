# SPDX-License-Identifier: Apache-2.0
"""Commands that say where images are (P9)."""

from cliff import lister

from glance_geo import assembly
from glance_geo.conf import options
from glance_geo.core import codec, errors
from glance_geo.replication.sources import holdings, image_bits


def _held(bits, holding):
    """Return the store whose bits of an image a holding is of, if any."""
    if holding['image'] != bits.image:
        return None
    for each in bits.files:
        if holding.get('cid') == each.cid and holding['store'] == each.store:
            return each.store
    for each in bits.locations:
        if holding['manifest'] == each.manifest.hex():
            return each.store
    return None


def _rows(conf, records, record, pulling):
    bits = image_bits(record)
    own = conf[options.GROUP].site_name
    known = {r.id for r in records.list('site')} | {own, bits.home}
    known |= {site for site, _, _ in options.peers(conf)}
    held = {(holding['site'], _held(bits, holding)): holding
            for holding in holdings(records.list('holding'))}
    stores = {each.store for each in (*bits.locations, *bits.files)}
    for site in sorted(name for name in known if name):
        decision = bits.decide(site, known)
        for store in sorted(stores or {None}, key=str):
            holding = held.get((site, store)) if store else None
            share = (0.0 if holding is None
                     else 100.0 * holding['here'] / holding['total'])
            state = 'none'
            if holding is not None:
                state = ('whole' if holding['here'] == holding['total']
                         else 'partial')
            elif site == own and bits.image in pulling:
                state = pulling[bits.image]
            yield (site, store, state, round(share, 1),
                   0 if holding is None else holding['here'],
                   None if holding is None else holding['total'],
                   0 if holding is None else holding['stored'],
                   'wanted' if decision.wanted else
                   'allowed' if decision.allowed else 'refused',
                   decision.why)


def _pulling(conf):
    try:
        return assembly.local_agent(conf).call('/status', {})['pulling']
    except errors.Unreachable:
        return {}   # metadata still tells what was held last


class ImageShow(lister.Lister):
    """Show which site holds how much of an image, and why.

    In a geo store, of its chunks; in an ipfs store, of blocks of 1 MiB.
    """

    def get_parser(self, prog_name):
        parser = super().get_parser(prog_name)
        parser.add_argument('image', metavar='ID', help="the image's id")
        return parser

    def take_action(self, parsed_args):
        conf = self.app.configuration()
        records = assembly.records(conf)
        record = records.get('image', parsed_args.image)
        if record is None or image_bits(record).deleted:
            raise errors.ConfigurationInvalid(
                f'no image {parsed_args.image} at site '
                f'{conf[options.GROUP].site_name}')
        unread = codec.not_understood(record)
        if unread:
            self.app.stderr.write(
                f'Image {record.id} holds what this release does not read: '
                f'{", ".join(unread)}\n')
        return (('Site', 'Store', 'Held', 'Percent', 'Chunks', 'Of',
                 'Stored bytes', 'Placement', 'Why'),
                list(_rows(conf, records, record, _pulling(conf))))


class ImageList(lister.Lister):
    """List the images whose bits are in our stores, and where they are."""

    def take_action(self, parsed_args):
        conf = self.app.configuration()
        records = assembly.records(conf)
        whole: dict[str, list[str]] = {}
        for holding in holdings(records.list('holding')):
            if holding['here'] == holding['total']:
                whole.setdefault(holding['image'], []).append(
                    holding['site'])
        rows = []
        for record in records.list('image'):
            bits = image_bits(record)
            if not bits.deleted and (bits.manifests or bits.files):
                rows.append((
                    bits.image, bits.name, bits.size, bits.home,
                    bits.properties.get('geo_policy', 'on-demand'),
                    ','.join(sorted(set(whole.get(bits.image, []))))))
        return ('ID', 'Name', 'Size', 'Home', 'Policy', 'Whole at'), rows
