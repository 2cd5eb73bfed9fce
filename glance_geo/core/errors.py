# SPDX-License-Identifier: Apache-2.0
"""Errors, named as facts.

Callers at the edges (the data API, the store driver, the agent's handlers)
translate them into what their own callers expect.
"""


class GeoError(Exception):
    """Base of everything that glance_geo raises on purpose."""


class ConfigurationInvalid(GeoError):
    """An option is missing or wrong; the text says which and what to do."""


class StaleToken(GeoError):
    """The record changed since it was read; read again and retry."""


class EngineUnavailable(GeoError):
    """The metadata engine does not answer."""


class EngineRefused(GeoError):
    """The metadata engine answered that it will not: rights, or a bug."""


class MigrationIncomplete(GeoError):
    """Both sides of a migration are not equal; the text says where."""


class RecordCorrupt(GeoError):
    """A stored record can't be decoded; only that record is affected."""


class RecordTooNew(GeoError):
    """A record of a version that this release does not read."""


class ChunkMissing(GeoError):
    """A chunk is not in this store."""


class ChunkCorrupt(GeoError):
    """The bytes under a chunk's name do not hash to that name."""


class ManifestInvalid(GeoError):
    """A manifest does not parse, or claims what it does not hold."""


class CIDInvalid(GeoError):
    """Not a CID of a block that this package writes, or not such a block."""


class LocationInvalid(GeoError):
    """A location does not parse or its signature is wrong."""


class StoreFull(GeoError):
    """The disk under the chunk store has no room left."""


class StoreUnusable(GeoError):
    """The chunk store's folder can't be used; the text says why."""


class Unreachable(GeoError):
    """A node did not answer."""


class PeerRefused(GeoError):
    """A node answered that it will not give this."""


class PeerMisbehaved(GeoError):
    """A node's answer breaks the protocol; it is dropped whole."""


class IPFSFailed(GeoError):
    """A node of IPFS could not do what was asked; the text is its own."""


class SiteRetired(PeerRefused):
    """The site was released; it must bootstrap before it takes part again."""


class BitsElsewhere(GeoError):
    """Placement keeps an image's bits at sites that this is not."""


class BitsUnavailable(GeoError):
    """No reachable node has the bytes that a read needs."""


class HomeUnreachable(GeoError):
    """An image's home site, which must agree to a write, is cut off."""
