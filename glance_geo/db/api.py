# SPDX-License-Identifier: Apache-2.0
"""Glance's data API over a metadata engine.

``load(url)`` returns an object with every function of
``glance.db.sqlalchemy.api`` that Glance's services and its data-API tests
call, with the same signatures.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

import webob.exc

from glance_geo.core import errors
from glance_geo.core.interfaces import Neighbour
from glance_geo.db.engines import open_engine
from glance_geo.db.imagecache import ImageCacheCalls
from glance_geo.db.imagelists import ImageListCalls, TagCalls
from glance_geo.db.imagelocations import LocationCalls
from glance_geo.db.images import ImageCalls
from glance_geo.db.imageusage import UsageCalls
from glance_geo.db.members import MemberCalls
from glance_geo.db.metadefcontents import (
    LabelCalls,
    ObjectCalls,
    PropertyCalls,
    ResourceTypeCalls,
)
from glance_geo.db.metadefs import NamespaceCalls
from glance_geo.db.recordstore import RecordStore
from glance_geo.db.tasks import TaskCalls

LOG = logging.getLogger(__name__)


class Alone:
    """The neighbour of a data API that no agent serves."""

    def changed(self) -> None:
        pass

    def claim_home(self, image_id: str) -> None:
        raise errors.HomeUnreachable('no agent is configured at this site')


_RETRY_AFTER_SECONDS = '5'


def _answering(call: Callable[..., Any]) -> Callable[..., Any]:
    """Make an engine that does not answer a 503 for Glance's callers, and a
    record that can't be read an error that names it."""
    @functools.wraps(call)
    def answer(*arguments: Any, **options: Any) -> Any:
        try:
            return call(*arguments, **options)
        except errors.EngineUnavailable as error:
            LOG.error('%s: %s', call.__name__, error)
            refusal = webob.exc.HTTPServiceUnavailable(
                explanation=f'Image metadata is unavailable: {error}')
            refusal.headers['Retry-After'] = _RETRY_AFTER_SECONDS
            raise refusal from error
        except (errors.RecordCorrupt, errors.RecordTooNew) as error:
            LOG.error('%s: %s', call.__name__, error)
            raise webob.exc.HTTPInternalServerError(
                explanation=f'Metadata can not be read: {error}') from error
    return answer


_PARTS = (ImageCalls, LocationCalls, ImageListCalls, UsageCalls, TagCalls,
          MemberCalls, TaskCalls, NamespaceCalls, ObjectCalls, PropertyCalls,
          LabelCalls, ResourceTypeCalls, ImageCacheCalls)


class DataAPI:
    """Every function of the data API, bound to one engine.

    :ivar records: the site's records
    """

    def __init__(self, records: RecordStore, neighbour: Neighbour):
        self.records = records
        for part in _PARTS:
            calls = part(records, neighbour)
            # A part's own public methods; what it inherits belongs to the
            # part that defines it.
            for name in vars(part):
                if not name.startswith('_'):
                    setattr(self, name, _answering(getattr(calls, name)))

    def configure(self) -> None:
        """Nothing to do: Glance calls it on the module that it expects."""

    def clear_db_env(self) -> None:
        """Nothing is kept that a test would have to clear."""

    def get_engine(self) -> 'DataAPI':
        """Return what ``metadeffiles`` loads into; there is no SQL engine."""
        return self

    def reset(self) -> None:
        """Remove everything that the engine holds (for tests)."""
        self.records.engine.reset()

    def close(self) -> None:
        """Release the engine."""
        self.records.engine.close()


def load(url: str, site: str = 'local', node: str | None = None,
         neighbour: Neighbour | None = None, **options: Any) -> DataAPI:
    """Return the data API over the engine at a URL.

    :param url: ``sqlite:////path``, ``memory://``, …
    :param site: the name of the site whose writes these are
    :param node: the node's name; engines for one node refuse a second
    :raises ConfigurationInvalid: the URL or the engine behind it is unusable
    """
    neighbour = neighbour or Alone()
    engine = open_engine(url, node=node, **options)
    records = RecordStore(engine, site, neighbour.changed)
    return DataAPI(records, neighbour)
