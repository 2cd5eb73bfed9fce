# SPDX-License-Identifier: Apache-2.0
"""Commands on images whose deletion met a change that it had not seen."""

import datetime
import time
import uuid

from cliff import command, lister

from glance_geo import assembly
from glance_geo.assembly import swarm
from glance_geo.conf import options
from glance_geo.core import clock, errors, location, rules
from glance_geo.core.interfaces import PinReference
from glance_geo.core.rules import shown
from glance_geo.db import rows
from glance_geo.replication.sources import image_bits

_DELETION_MS = 60_000


def _in_trash(conf, record):
    """Return when an image goes for good, in s since 1970; None: it is not
    in the trash."""
    deleted_us = rules.overtaken(record)
    if deleted_us is None:
        return None
    due = deleted_us / 1e6 + conf[options.GROUP].geo_trash_days * 86400
    return due if due > time.time() else None


class TrashList(lister.Lister):
    """List images that were deleted at one site while another changed them.

    Their bits stay for geo_trash_days; "trash restore" gives one back.
    """

    def take_action(self, parsed_args):
        conf = self.app.configuration()
        records = assembly.records(conf)
        found = []
        for record in records.walk('image.deleted'):
            due = _in_trash(conf, record)
            if due is not None:
                values = shown(record)
                found.append((
                    record.id, values.get('name'), values.get('owner'),
                    (values.get('data') or {}).get('size'),
                    datetime.datetime.fromtimestamp(
                        due, datetime.UTC).isoformat(timespec='seconds')))
        return ('ID', 'Name', 'Owner', 'Size', 'Goes at'), found


class TrashRestore(command.Command):
    """Give a deleted image back, under a new id."""

    def get_parser(self, prog_name):
        parser = super().get_parser(prog_name)
        parser.add_argument('image', metavar='ID', help="the image's old id")
        return parser

    def take_action(self, parsed_args):
        conf = self.app.configuration()
        data_api = assembly.installed_data_api(conf)
        record = data_api.records.get('image', parsed_args.image)
        if record is None or _in_trash(conf, record) is None:
            raise errors.ConfigurationInvalid(
                f'no image {parsed_args.image} is in the trash; "trash list" '
                f'shows those that are')
        since = rules.overtaken(record) - 1
        bits = image_bits(record, since)
        if not bits.manifests and not bits.files:
            raise errors.ConfigurationInvalid(
                f'image {parsed_args.image} has no bits in a store of ours')
        self.app.stdout.write(_restore(conf, data_api, record,
                                       bits) + '\n')


def _properties(record):
    """Return an image's properties as they were before its deletion: Glance
    takes them away just before the image."""
    since_ms = rules.overtaken(record) / 1000 - _DELETION_MS
    found = {}
    for field, siblings in record.fields.items():
        if not field.startswith('prop:'):
            continue
        last = max(siblings.values(), key=lambda sibling: sibling.hlc)
        if not last.data['removed'] or (
                clock.milliseconds(last.hlc) >= since_ms):
            found[field[5:]] = last.data['value']
    return found


def _kept_chunks(conf, bits, fresh, signing):
    """Keep an image's chunks for another one too; return its location."""
    store, _ = options.store_folder(conf)
    manifest = bits.manifests[0]
    issued = location.issue(store, fresh, manifest, uuid.uuid4().hex[:16],
                            *signing)
    chunks = assembly.chunk_store(conf)
    try:
        chunks.keep_beside(fresh, bits.names, manifest)
    finally:
        chunks.close()
    return issued


def _kept_file(conf, bits, fresh, signing):
    """Keep an image's file in IPFS for another one too; return its location.
    """
    store = options.ipfs_store(conf)
    if store is None:
        raise errors.ConfigurationInvalid(
            'the image is in IPFS, and enabled_backends of this site names no '
            'store of type ipfs')
    node = swarm.node(conf, store)
    from glance_geo.store.ipfs.references import PinReferences
    cid, nonce = min(bits.files, key=lambda its: its.uri).cid, \
        uuid.uuid4().hex[:16]
    PinReferences(node, store).keep(PinReference(fresh, cid, nonce))
    return location.issue_ipfs(store, fresh, cid, nonce, *signing)


def _restore(conf, data_api, record, bits):
    """Create the image anew; return its id."""
    from glance.context import RequestContext
    values = shown(record)
    fresh = str(uuid.uuid4())
    # Before the record: a collection in between must not free the bits.
    issued = (_kept_chunks if bits.manifests else _kept_file)(
        conf, bits, fresh, options.signing_key(options.location_keys(conf)))
    columns = rows.image_columns(record.id, values)
    wanted = {name: columns[name] for name in (*rows.PLAIN, *rows.DATA)}
    context = RequestContext(is_admin=True)
    data_api.image_create(context, {
        **wanted, 'id': fresh, 'status': 'active', 'visibility': 'private',
        'protected': False,
        'properties': _properties(record),
        'locations': [{'url': issued.uri, 'metadata': {'store': issued.store},
                       'status': 'active'}]})
    data_api.image_tag_set_all(context, fresh, rows.tags(values))
    return fresh
