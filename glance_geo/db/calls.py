# SPDX-License-Identifier: Apache-2.0
"""What the parts of the data API share: the records and a few checks."""

from typing import Any

from glance.common import exception, utils
from oslo_utils import timeutils

from glance_geo.core.interfaces import Neighbour
from glance_geo.db import rows
from glance_geo.db.recordstore import RecordStore

# MySQL's utf8 can't hold 4-byte characters, so Glance's API refuses them; the
# same requests are refused here, or moving to SQL would lose images.
check_4byte = utils.no_4byte_params(lambda *arguments: None)


def not_found(image_id: str) -> exception.ImageNotFound:
    return exception.ImageNotFound(f'No image found with ID {image_id}')


def now_us() -> int:
    """Return the time in microseconds since 1970."""
    now = rows.to_us(timeutils.utcnow())
    assert now is not None
    return now


class Calls:
    """Base of the classes that make up the data API."""

    def __init__(self, records: RecordStore, neighbour: Neighbour,
                 **arguments: Any):
        self._records = records
        self._neighbour = neighbour
