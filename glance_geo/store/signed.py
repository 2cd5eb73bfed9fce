# SPDX-License-Identifier: Apache-2.0
"""What our glance_store drivers have in common.

Locations that are signed, and errors that Glance turns into statuses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import glance_store
from glance.common import exception as glance_exception
from glance_store import capabilities, driver, exceptions
from glance_store import location as store_location
from oslo_config import cfg

from glance_geo.conf import options
from glance_geo.core import errors, location
from glance_geo.core.location import Location
from glance_geo.store.body import SizeMismatch


@contextmanager
def as_glance_expects(image: str) -> Iterator[None]:
    """Translate our errors into those that Glance turns into statuses."""
    try:
        yield
    except errors.BitsElsewhere as error:
        raise glance_exception.Forbidden(message=str(error)) from error
    except (errors.BitsUnavailable, errors.Unreachable, errors.ChunkMissing,
            errors.PeerRefused) as error:
        raise exceptions.RemoteServiceUnavailable(
            message=str(error)) from error
    except (errors.ManifestInvalid, errors.CIDInvalid,
            errors.IPFSFailed) as error:
        raise exceptions.RemoteServiceUnavailable(
            message=f'image {image}: {error}') from error
    except errors.StoreFull as error:
        raise exceptions.StorageFull(message=str(error)) from error
    except errors.StoreUnusable as error:
        raise exceptions.StorageWriteDenied(message=str(error)) from error
    except SizeMismatch as error:
        raise glance_store.Invalid(message=str(error)) from error
    except errors.LocationInvalid as error:
        raise exceptions.BadStoreUri(message=str(error)) from error


@contextmanager
def uploading(image: str) -> Iterator[None]:
    """Translate our errors in an upload.

    What is 503 in a download would be 500 there: Glance knows one error of a
    store that has it answer 503 with the text.
    """
    try:
        with as_glance_expects(image):
            yield
    except exceptions.RemoteServiceUnavailable as error:
        raise exceptions.TimeoutError(message=str(error)) from error


class SignedLocation(store_location.StoreLocation):
    """A location of ours, for glance_store.

    :cvar KIND: the locations that the store issues
    """

    KIND: type[Location] = Location
    parsed: Any

    def process_specs(self) -> None:
        self.scheme = self.specs.get('scheme')

    def get_uri(self) -> str:
        return self.parsed.uri

    def parse_uri(self, uri: str) -> None:
        """Take a location apart.

        :raises BadStoreUri: not of this store's form
        """
        try:
            self.parsed = location.parse(uri)
            if not isinstance(self.parsed, self.KIND):
                raise errors.LocationInvalid('a location of another store')
        except errors.LocationInvalid as error:
            raise exceptions.BadStoreUri(message=str(error)) from error
        self.scheme = uri.partition(':')[0]


class SignedStore(driver.Store):
    """A driver whose locations are signed.

    :cvar SCHEME: of its locations, and the name of its entry point
    """

    SCHEME = ''
    _CAPABILITIES = (capabilities.BitMasks.READ_RANDOM
                     | capabilities.BitMasks.WRITE_ACCESS
                     | capabilities.BitMasks.DRIVER_REUSABLE)

    def __init__(self, conf: cfg.ConfigOpts, backend: str | None = None):
        super().__init__(conf, backend=backend)
        options.register(conf)

    def get_schemes(self) -> tuple[str, ...]:
        return (self.SCHEME,)

    def configure_add(self) -> None:
        """Check the options, and what they name.

        :raises BadStoreConfiguration: and the store then refuses uploads
        """
        try:
            if not self.backend_group:
                raise errors.ConfigurationInvalid(
                    f'the {self.SCHEME} store needs enabled_backends = '
                    f'<name>:{self.SCHEME}')
            self._keys = options.location_keys(self.conf)
            self._configure()
        except errors.GeoError as error:
            raise exceptions.BadStoreConfiguration(
                store_name=self.backend_group or self.SCHEME,
                reason=str(error)) from error

    def _configure(self) -> None:
        """Check the store's own options; raises any GeoError."""
        raise NotImplementedError

    def _verified(self, loc: Any) -> Any:
        """Return the parts of a location that this store issued.

        :raises LocationInvalid: it did not
        """
        parsed: Location = loc.store_location.parsed
        if parsed.store != self.backend_group:
            raise errors.LocationInvalid(
                f'location is of store {parsed.store!r}')
        location.verify(parsed, self._keys)
        return parsed
