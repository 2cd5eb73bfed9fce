# SPDX-License-Identifier: Apache-2.0
"""The central image cache's tables: local to a site, never replicated.

Each node is one document: its id, and its cached images by image id.
"""

import datetime
from collections.abc import Callable
from typing import Any

import msgpack
from glance.common import exception
from oslo_utils import timeutils

from glance_geo.core import errors
from glance_geo.core.engine import Term
from glance_geo.db import rows
from glance_geo.db.calls import Calls, check_4byte
from glance_geo.db.rows import Row

_INDEX = 'local.cache_nodes'
_ATTEMPTS = 100


def _us(value: datetime.datetime | None) -> int:
    return rows.to_us(value or timeutils.utcnow()) or 0


class ImageCacheCalls(Calls):
    """``node_reference_*``, ``*cached_image*``, ``*hit_count*``."""

    def _node(self, url: str) -> tuple[dict[str, Any] | None, Any]:
        entry = self._records.engine.get(f'local/cache/{url}')
        if entry is None:
            return None, None
        # Of siblings any will do: a cache's counters are an estimate.
        return msgpack.unpackb(max(entry.values)), entry.token

    def _store(self, url: str, node: dict[str, Any], token: Any) -> None:
        self._records.engine.put(
            f'local/cache/{url}', msgpack.packb(node), token,
            [Term(_INDEX, url.encode())])

    def _change_node(self, url: str,
                change: Callable[[dict[str, Any]], None]) -> None:
        for _ in range(_ATTEMPTS):
            node, token = self._node(url)
            if node is None:
                return
            change(node['images'])
            try:
                return self._store(url, node, token)
            except errors.StaleToken:
                continue
        raise errors.EngineUnavailable(f'cache of {url} is contended')

    def node_reference_get_by_url(self, context, node_reference_url):
        node, _ = self._node(node_reference_url)
        if node is None:
            raise exception.NotFound(
                f'The node reference {node_reference_url} was not found.')
        return Row(node_reference_id=node['id'],
                   node_reference_url=node_reference_url)

    def node_reference_create(self, context, node_reference_url):
        check_4byte(node_reference_url)
        try:
            self._store(node_reference_url, {
                'id': rows.stable_id('node', node_reference_url),
                'images': {}}, None)
        except errors.StaleToken:
            raise exception.Duplicate() from None
        return self.node_reference_get_by_url(context, node_reference_url)

    def _images(self, url: str) -> dict[str, Any]:
        node, _ = self._node(url)
        return {} if node is None else node['images']

    def get_hit_count(self, context, image_id, node_reference_url):
        return self._images(node_reference_url).get(
            image_id, {}).get('hits', 0)

    def get_cached_images(self, context, node_reference_url):
        return [{'id': image['id'], 'image_id': image_id,
                 'last_accessed': rows.from_us(
                     image['accessed']).timestamp(),
                 'last_modified': rows.from_us(
                     image['modified']).timestamp(),
                 'size': image['size'], 'hits': image['hits'],
                 'checksum': image['checksum']}
                for image_id, image in self._images(
                    node_reference_url).items()]

    def get_cached_nodes(self, context, image_id):
        return [term.decode() for term, _ in
                self._records.engine.scan(_INDEX)
                if image_id in self._images(term.decode())]

    def delete_all_cached_images(self, context, node_reference_url):
        self._change_node(node_reference_url, dict.clear)

    def delete_cached_image(self, context, image_id, node_reference_url):
        self._change_node(node_reference_url,
                     lambda images: images.pop(image_id, None))

    def get_least_recently_accessed(self, context, node_reference_url):
        images = self._images(node_reference_url)
        return min(images, key=lambda image_id: images[image_id]['accessed'],
                   default=None)

    def is_image_cached_for_node(self, context, node_reference_url,
                                 image_id):
        return image_id in self._images(node_reference_url)

    def insert_cache_details(self, context, node_reference_url, image_id,
                             filesize, checksum=None, last_accessed=None,
                             last_modified=None, hits=None):
        self.node_reference_get_by_url(context, node_reference_url)
        details = {'id': rows.stable_id(node_reference_url, image_id),
                   'size': filesize, 'checksum': checksum,
                   'accessed': _us(last_accessed),
                   'modified': _us(last_modified), 'hits': hits or 0}
        self._change_node(node_reference_url,
                     lambda images: images.setdefault(image_id, details))

    def update_hit_count(self, context, image_id, node_reference_url):
        def hit(images: dict[str, Any]) -> None:
            if image_id in images:
                images[image_id]['hits'] += 1
                images[image_id]['accessed'] = _us(None)
        self._change_node(node_reference_url, hit)
