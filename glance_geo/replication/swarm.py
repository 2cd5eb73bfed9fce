# SPDX-License-Identifier: Apache-2.0
"""The agent's part in IPFS: pins, publications, and how the nodes are."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from glance_geo.core import errors
from glance_geo.core.interfaces import ChunkProvider
from glance_geo.replication.pins import Pinner
from glance_geo.replication.publishing import Publications
from glance_geo.replication.sources import ImageBits

LOG = logging.getLogger(__name__)

_PROBE_SECONDS = 10.0

Probe = Callable[[], dict[str, Any]]


class Swarm:
    """What a node's agent does with IPFS.

    :param pinner: for an ``ipfs`` store, if there is one
    :param publications: for a ``geo`` store that offers its chunks
    :param chunks: for a ``geo`` store, where chunks may come from
    :param prefer: whether they are asked for there first
    :param probes: store -> tells how its node of IPFS is
    """

    def __init__(self, pinner: Pinner | None = None,
                 publications: Publications | None = None,
                 chunks: ChunkProvider | None = None, prefer: bool = False,
                 probes: Mapping[str, Probe] | None = None):
        self._pinner = pinner
        self._publications = publications
        self._chunks = chunks
        self._prefer = prefer
        self._probes = probes or {}
        self._nodes: dict[str, dict[str, Any]] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name='swarm',
                                        daemon=True)

    def start(self) -> None:
        for part in (self._pinner, self._publications):
            if part is not None:
                part.start()
        if self._probes:
            self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for part in (self._pinner, self._publications):
            if part is not None:
                part.stop()

    # -- news -------------------------------------------------------------
    def look(self, bits: ImageBits) -> None:
        """An image's record changed."""
        if self._pinner is not None:
            self._pinner.look(bits)
        self.held(bits.image)

    def held(self, image: str) -> None:
        """What is here of an image's chunks changed."""
        if self._publications is not None:
            self._publications.look(image)

    def tidy_soon(self) -> None:
        for part in (self._pinner, self._publications):
            if part is not None:
                part.tidy_soon()

    def tidy(self) -> None:
        """Give up, now, what no image refers to any more."""
        if self._pinner is not None:
            self._pinner.tidy()
        self.tidy_soon()

    # -- chunks -----------------------------------------------------------
    def with_peers(self, peers: Sequence[ChunkProvider],
                   ) -> Sequence[ChunkProvider]:
        """Return whom to ask for chunks, best first."""
        if self._chunks is None:
            return peers
        return ([self._chunks, *peers] if self._prefer
                else [*peers, self._chunks])

    # -- telling ----------------------------------------------------------
    def _watch(self) -> None:
        while not self._stopping.is_set():
            for store, probe in self._probes.items():
                self._nodes[store] = _probed(probe, self._nodes.get(store))
            self._stopping.wait(_PROBE_SECONDS)

    @property
    def pinning(self) -> dict[str, str]:
        """What is being pinned, or why that failed last."""
        return {} if self._pinner is None else dict(
            self._pinner.state.pinning)

    def status(self) -> dict[str, Any]:
        """Return what ``glance-geo status`` shows of IPFS."""
        found: dict[str, Any] = {}
        if self._probes:
            found['traffic'] = 'unmetered'
            found['nodes'] = dict(self._nodes)
        if self._pinner is not None:
            found['pins'] = {'store': self._pinner.store,
                             **dataclasses.asdict(self._pinner.state)}
        if self._publications is not None:
            found.update(self._publications.state())
        return found


def _probed(probe: Probe, before: dict[str, Any] | None) -> dict[str, Any]:
    try:
        found = {'reachable': True, 'error': None, **probe()}
    except Exception as error:
        # Whatever it is, the other nodes are looked after.
        if before is None or before['reachable']:
            LOG.warning('%s', error,
                        exc_info=not isinstance(error, errors.GeoError))
        return {'reachable': False,
                'error': str(error) or type(error).__name__}
    if before is not None and not before['reachable']:
        LOG.info('IPFS node %s answers again', found.get('address'))
    return {**found, 'probed': int(time.time())}
