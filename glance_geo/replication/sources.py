# SPDX-License-Identifier: Apache-2.0
"""What the records say about an image's bits: pure functions.

Which manifests it lists, who may hold them, who does.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from glance_geo.core import errors, location, placement, rules
from glance_geo.core.records import Record
from glance_geo.core.rules import shown


@dataclasses.dataclass(frozen=True)
class ImageBits:
    """An image as far as its bits are concerned.

    :ivar locations: its geo locations
    :ivar files: its ipfs locations
    :ivar removed: ipfs locations that somebody took from it
    :ivar ready: the image is active (or deactivated): its bits may be copied
    """

    image: str
    name: str | None
    home: str | None
    size: int | None
    owner: str | None
    public: bool
    ready: bool
    deleted: bool
    locations: frozenset[location.GeoLocation]
    properties: Mapping[str, str]
    files: frozenset[location.IPFSLocation] = frozenset()
    removed: frozenset[location.IPFSLocation] = frozenset()

    @property
    def listed(self) -> frozenset[tuple[bytes, str]]:
        """(manifest, nonce) of each geo location."""
        return frozenset((each.manifest, each.nonce)
                         for each in self.locations)

    @property
    def names(self) -> frozenset[str]:
        """The image ids that its locations were issued for: another one
        than its own too, if it moved aside."""
        return frozenset({self.image, *(
            each.image for each in (*self.locations, *self.files))})

    @property
    def manifests(self) -> list[bytes]:
        return sorted({each.manifest for each in self.locations})

    def decide(self, site: str, sites: Iterable[str] = (),
               ) -> placement.Decision:
        return placement.decide(self.properties, self.home, site, sites)


_SECOND = 1_000_000
# Glance gives up an image's locations just before the image.
_DELETION_SECONDS = 60


def image_bits(record: Record, trash_since: int | None = None) -> ImageBits:
    """Return what an image's record says of its bits.

    :param trash_since: keep what was deleted after this time (microseconds
        since 1970) and met a change that its deletion had not seen
    """
    values = shown(record)
    deletion = values.get('deletion') or {}
    delayed = deletion.get('status') == 'pending_delete'
    overtaken = rules.overtaken(record)
    in_trash = (trash_since is not None and overtaken is not None
                and overtaken > trash_since)
    deleted = bool(deletion.get('deleted')) and not delayed and not in_trash
    kept: set[location.Location] = set()
    removed: set[location.Location] = set()
    for field, data in values.items():
        if not field.startswith('loc:'):
            continue
        gone = deleted or (
            data['removed'] and data['status'] != 'pending_delete'
            and not (in_trash and (data['deleted_at'] or 0)
                     > (overtaken or 0) - _DELETION_SECONDS * _SECOND))
        try:
            (removed if gone else kept).add(location.parse(data['url']))
        except errors.LocationInvalid:
            continue    # of another store
    data = values.get('data') or {}
    return ImageBits(
        record.id, values.get('name'), values.get('home'), data.get('size'),
        values.get('owner'), values.get('visibility') == 'public',
        data.get('status') == 'active' and not deletion.get('deleted'),
        deleted, frozenset(each for each in kept
                           if isinstance(each, location.GeoLocation)),
        {field[5:]: prop['value'] for field, prop in values.items()
         if field.startswith('prop:') and not prop['removed']},
        _files(kept), _files(removed))


def _files(found: Iterable[location.Location],
           ) -> frozenset[location.IPFSLocation]:
    return frozenset(each for each in found
                     if isinstance(each, location.IPFSLocation))


def chunk_project(bits: ImageBits, site_wide: bool) -> str:
    """Return the project among whose chunks an image's are stored.

    '' for what all projects share: public images, or with ``site_wide`` all.
    """
    return '' if site_wide or bits.public else bits.owner or ''


def listed_under(images: Iterable[ImageBits]) -> frozenset[tuple[bytes, str]]:
    """Return (manifest, nonce) of all locations of some images."""
    return frozenset(pair for bits in images for pair in bits.listed)


def settled(records: Iterable[Record], trash_since: int,
            ) -> tuple[list[ImageBits], bool]:
    """Return the images known under one id, and whether all are deleted.

    An id that metadata has never heard of counts as not deleted: metadata is
    older than the store then, and the record may come by a sync.

    :param trash_since: see ``image_bits``
    """
    found = [image_bits(record, trash_since) for record in records]
    return found, bool(found) and all(bits.deleted for bits in found)


def with_manifest(records: Iterable[Record],
                  manifest: bytes) -> ImageBits | None:
    """Return the image, among some, that lists a manifest."""
    for record in records:
        bits = image_bits(record)
        if manifest in bits.manifests:
            return bits
    return None


def holding_id(image: str, node: str) -> str:
    return f'{image}.{node}'


def holdings(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Return the live holdings of some holding records."""
    found = []
    for record in records:
        holding = shown(record).get('holding')
        if holding and holding['total']:
            found.append(holding)
    return found
