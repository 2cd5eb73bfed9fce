# SPDX-License-Identifier: Apache-2.0
"""Metadata engines, one module per product, chosen by the URL's scheme.

An engine's module has ``open_engine(url, **requirements)``. Engines outside
this package register under the entry point group
``glance_geo.metadata_engines``, whose names are URL schemes.
"""

from importlib import metadata
from typing import Any
from urllib.parse import urlsplit

from glance_geo.core import errors
from glance_geo.core.engine import MetadataEngine

NAMESPACE = 'glance_geo.metadata_engines'


def open_engine(url: str, **requirements: Any) -> MetadataEngine:
    """Open the engine at a URL.

    :param requirements: ``node``: the name of the node that opens it
    :raises ConfigurationInvalid: unknown scheme, or the engine refuses
    """
    scheme = urlsplit(url).scheme
    names = {point.name: point
             for point in metadata.entry_points(group=NAMESPACE)}
    if scheme not in names:
        raise errors.ConfigurationInvalid(
            f'metadata_backend: unknown scheme {scheme!r}; use one of '
            + ', '.join(f'{name}://' for name in sorted(names))
            + ', or sql for Glance\'s own SQL database')
    try:
        opener = names[scheme].load()
    except ImportError as error:
        raise errors.ConfigurationInvalid(
            f'metadata_backend: {scheme}:// needs a client library: {error}. '
            f'Install glance_geo[{scheme.partition("+")[0]}]') from error
    return opener(url, **requirements)
