# SPDX-License-Identifier: Apache-2.0
"""``geo``: the glance_store driver over the chunk store.

``enabled_backends = geo:geo``, with the same store name at every site, since
locations carry it.
"""

from __future__ import annotations

import logging
import os
import threading
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from glance_store import capabilities, driver
from oslo_config import cfg

from glance_geo.conf import options
from glance_geo.core import errors, location
from glance_geo.core.location import GeoLocation
from glance_geo.store import advice
from glance_geo.store.chunkstore import ChunkStore
from glance_geo.store.download import ImageReader, NoSource
from glance_geo.store.schema import SHARED
from glance_geo.store.signed import (
    SignedLocation,
    SignedStore,
    as_glance_expects,
)
from glance_geo.store.upload import Uploaded, upload

LOG = logging.getLogger(__name__)


class StoreLocation(SignedLocation):
    """``geo://`` locations, for glance_store."""

    KIND = GeoLocation


class Store(SignedStore):
    """Glance's view of the node's chunk store."""

    SCHEME = location.SCHEME
    OPTIONS = options.store_opts

    EXAMPLE_URL = 'geo://<STORE>/<IMAGE>/<MANIFEST>/<NONCE>/<SIGNATURE>'

    def __init__(self, conf: cfg.ConfigOpts, backend: str | None = None):
        super().__init__(conf, backend=backend)
        self._lock = threading.Lock()
        self._opened: tuple[int, ChunkStore] | None = None

    def _configure(self) -> None:
        self._url_prefix = f'{self.SCHEME}://{self.backend_group}/'
        self._chunks()

    def _chunks(self) -> ChunkStore:
        # uWSGI may fork after this was opened: descriptors with a position
        # and SQLite connections must not be shared.
        with self._lock:
            if self._opened is None or self._opened[0] != os.getpid():
                folder = getattr(self.conf,
                                 self.backend_group).geo_store_datadir
                if not folder:
                    raise errors.ConfigurationInvalid(
                        f'[{self.backend_group}] geo_store_datadir is not '
                        f'set')
                self._opened = (os.getpid(), ChunkStore(
                    folder, options.store_owner(self.conf,
                                                self.backend_group),
                    options.store_limit(self.conf, self.backend_group)))
            return self._opened[1]

    def _source(self) -> Any:
        # Imported late: the store must work, and import, without an agent.
        from glance_geo import assembly
        return assembly.chunk_source(self.conf) or NoSource()

    @driver.back_compat_add
    @capabilities.check
    def add(self, image_id: str, image_file: Any, image_size: int,
            hashing_algo: str, context: Any = None, verifier: Any = None,
            ) -> tuple[str, int, str, str, dict[str, Any]]:
        with as_glance_expects(image_id):
            nonce = uuid.uuid4().hex[:16]
            # Signed with nothing yet: a bad image id fails before any byte.
            key_id, key = options.signing_key(self._keys)
            location.issue(self.backend_group, image_id, bytes(32), nonce,
                           key_id, key)
            from glance_geo import assembly
            stored = upload(
                self._chunks(), image_id, nonce, image_file, image_size,
                hashing_algo, verifier, assembly.dedup_project(
                    self.conf, self.backend_group, image_id, context))
            issued = location.issue(self.backend_group, image_id,
                                    stored.manifest, nonce, key_id, key)
        LOG.info('Image %s: stored %d bytes as manifest %s; %d bytes were '
                 'new to this node', image_id, stored.size,
                 stored.manifest.hex()[:16], stored.new_bytes)
        # Nobody waits for it.
        threading.Thread(target=self._advise, args=(image_id, stored),
                         name='geo-advice', daemon=True).start()
        metadata = {'store': self.backend_group,
                    **assembly.location_metadata(self.conf)}
        return (issued.uri, stored.size, stored.checksum, stored.multihash,
                metadata)

    def _advise(self, image_id: str, stored: Uploaded) -> None:
        """Log what could have been saved."""
        chunks = self._chunks()
        reader = ImageReader(chunks, image_id, stored.manifest, NoSource())
        scopes = chunks.refs.scopes([image_id], stored.manifest)
        facts = advice.Facts(stored.size, stored.data_bytes,
                             stored.new_bytes)

        def known(names: Sequence[bytes]) -> set[bytes]:
            return set(chunks.index.places(names, [SHARED, *scopes]))
        try:
            text = advice.advise(facts, lambda start, length: b''.join(
                reader.read(start, length)[0]), known)
        except Exception:   # the upload is done, whatever its bytes are
            LOG.debug('Image %s: no advice', image_id, exc_info=True)
        else:
            if text:
                LOG.info('Image %s: %s', image_id, text)

    @capabilities.check
    def get(self, location: Any, offset: int = 0,
            chunk_size: int | None = None, context: Any = None,
            ) -> tuple[Iterator[bytes], int]:
        geo = location.store_location.parsed
        with as_glance_expects(geo.image):
            geo = self._verified(location)
            reader = ImageReader(self._chunks(), geo.image, geo.manifest,
                                 self._source())
            stream, size = reader.read(offset or 0, chunk_size)
        return stream, chunk_size or size

    def get_size(self, location: Any, context: Any = None) -> int:
        geo = location.store_location.parsed
        with as_glance_expects(geo.image):
            geo = self._verified(location)
            return ImageReader(self._chunks(), geo.image, geo.manifest,
                               self._source()).manifest().size

    @capabilities.check
    def delete(self, location: Any, context: Any = None) -> None:
        """Queue the location for removal.

        Metadata is the authority: the bits go once the image's record no
        longer lists the location, whoever asked for the deletion.
        """
        geo = location.store_location.parsed
        with as_glance_expects(geo.image):
            geo = self._verified(location)
            self._chunks().refs.queue_check(geo.image, geo.manifest,
                                            geo.nonce)
