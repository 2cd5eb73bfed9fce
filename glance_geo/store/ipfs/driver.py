# SPDX-License-Identifier: Apache-2.0
"""``ipfs``: the glance_store driver over a node of IPFS.

``enabled_backends = swarm:ipfs``, with the same store name at every site,
since locations carry it. Each site has a node of its own; which nodes pin an
image follows its placement, and is the agent's work.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from typing import Any

from glance_store import capabilities, driver

from glance_geo.conf import options
from glance_geo.core import cids, errors, location
from glance_geo.core.interfaces import PinReference
from glance_geo.core.location import IPFSLocation
from glance_geo.store.ipfs import writing
from glance_geo.store.ipfs.node import IPFSNode
from glance_geo.store.ipfs.reading import FileReader
from glance_geo.store.ipfs.references import PinReferences
from glance_geo.store.signed import (
    SignedLocation,
    SignedStore,
    as_glance_expects,
    uploading,
)

LOG = logging.getLogger(__name__)


class StoreLocation(SignedLocation):
    """``ipfs://`` locations, for glance_store."""

    KIND = IPFSLocation


class Store(SignedStore):
    """Glance's view of the site's node of IPFS."""

    SCHEME = location.IPFS_SCHEME
    OPTIONS = options.ipfs_opts

    EXAMPLE_URL = ('ipfs://<CID>?store=<STORE>&image=<IMAGE>&nonce=<NONCE>&'
                   'proof=<SIGNATURE>')

    def _configure(self) -> None:
        # Imported late: the driver must import without the assembly.
        from glance_geo.assembly import swarm
        self._url_prefix = f'{self.SCHEME}://'
        # A node that is down now may be up when it is needed.
        self._node: IPFSNode = swarm.node(self.conf, self.backend_group)
        self._refs = PinReferences(self._node, self.backend_group)

    def _reader(self, parsed: IPFSLocation) -> FileReader:
        return FileReader(self._node, parsed.image, cids.parse(parsed.cid))

    @driver.back_compat_add
    @capabilities.check
    def add(self, image_id: str, image_file: Any, image_size: int,
            hashing_algo: str, context: Any = None, verifier: Any = None,
            ) -> tuple[str, int, str, str, dict[str, Any]]:
        from glance_geo import assembly
        with uploading(image_id):
            nonce = uuid.uuid4().hex[:16]
            key_id, key = options.signing_key(self._keys)
            # Signed with nothing yet: a bad image id fails before any byte.
            location.issue_ipfs(self.backend_group, image_id, '', nonce,
                                key_id, key)
            added = writing.write(self._node, self._refs, image_id, nonce,
                                  image_file, image_size, hashing_algo,
                                  verifier)
            issued = location.issue_ipfs(
                self.backend_group, image_id, added.cid, nonce, key_id, key)
        LOG.info('Image %s: stored %d bytes at IPFS node %s as %s', image_id,
                 added.size, self._node.address, added.cid)
        metadata = {'store': self.backend_group,
                    **assembly.location_metadata(self.conf)}
        return (issued.uri, added.size, added.checksum, added.multihash,
                metadata)

    @capabilities.check
    def get(self, location: Any, offset: int = 0,
            chunk_size: int | None = None, context: Any = None,
            ) -> tuple[Iterator[bytes], int]:
        from glance_geo import assembly
        image = location.store_location.parsed.image
        with as_glance_expects(image):
            parsed = self._verified(location)
            assembly.check_placement(self.conf, image, parsed.cid)
            stream, size = self._reader(parsed).read(offset or 0, chunk_size)
        return stream, chunk_size or size

    def get_size(self, location: Any, context: Any = None) -> int:
        with as_glance_expects(location.store_location.parsed.image):
            return self._reader(self._verified(location)).size()

    @capabilities.check
    def delete(self, location: Any, context: Any = None) -> None:
        """Queue the location for removal.

        Metadata is the authority: the agent unpins the file once no image's
        record lists it, whoever asked for the deletion.
        """
        with as_glance_expects(location.store_location.parsed.image):
            parsed = self._verified(location)
        try:
            self._refs.ask(PinReference(parsed.image, parsed.cid,
                                        parsed.nonce))
        except (errors.Unreachable, errors.PeerRefused,
                errors.IPFSFailed) as error:
            # The record says it too, and the agent tries until it is done.
            LOG.warning('Image %s: deletion is not noted at its node: %s',
                        parsed.image, error)
