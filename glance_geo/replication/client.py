# SPDX-License-Identifier: Apache-2.0
"""Asking another node's agent."""

import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx

from glance_geo.core import errors
from glance_geo.replication import identity, wire

# Weight of the newest measurement in the smoothed round-trip time.
_SMOOTHING = 0.3
# A handshake costs round trips and kilobytes: keep connections between
# exchanges. Less than the server waits (serving.IDLE_SECONDS).
_KEEPALIVE_SECONDS = 60.0
# What may follow the last frame: the end of the transfer coding.
_TRAILER_MAXIMUM = 4096
# A transfer says something of a link's speed from so many bytes on.
_MEASURABLE = 256 * 1024


class PeerClient:
    """One other node, over mutual TLS. Safe for several threads.

    Every call may be repeated. Calls raise ``Unreachable`` when the node does
    not answer, ``PeerRefused`` when it declines, ``PeerMisbehaved`` when the
    answer breaks the protocol.

    :ivar rtt: smoothed seconds to a first answer; None before the first
    :ivar rate: smoothed bytes per second of transfers; None before the first
    """

    def __init__(self, site: str, host: str, port: int, tls: ssl.SSLContext,
                 timeout: float):
        self.site = site
        self.rtt: float | None = None
        self.rate: float | None = None
        self.last_error: str | None = None
        self.bytes_received = 0
        self._lock = threading.Lock()
        shown = f'[{host}]' if ':' in host else host
        self.address = f'{shown}:{port}'
        self.label = f'site {site}'
        self._http = httpx.Client(
            base_url=f'https://{self.address}', verify=tls, trust_env=False,
            timeout=httpx.Timeout(timeout, pool=60.0),
            limits=httpx.Limits(max_connections=16,
                                max_keepalive_connections=8,
                                keepalive_expiry=_KEEPALIVE_SECONDS))

    def close(self) -> None:
        self._http.close()

    @contextmanager
    def _request(self, path: str, document: Any) -> Iterator[httpx.Response]:
        began = time.monotonic()
        try:
            with self._http.stream('POST', path,
                                   content=wire.pack(document)) as answer:
                self._check(answer)
                elapsed = time.monotonic() - began
                with self._lock:
                    self.rtt = elapsed if self.rtt is None else (
                        (1 - _SMOOTHING) * self.rtt + _SMOOTHING * elapsed)
                    self.last_error = None
                yield answer
        except (httpx.TransportError, OSError) as error:
            text = str(error) or type(error).__name__
            self.last_error = text
            raise errors.Unreachable(
                f'site {self.site} ({self.address}): {text}') from error

    def _check(self, answer: httpx.Response) -> None:
        network = answer.extensions.get('network_stream')
        tls = network.get_extra_info('ssl_object') if network else None
        site, _ = identity.peer_name(tls.getpeercert() if tls else None)
        if site != self.site:
            raise errors.PeerRefused(
                f'{self.address} is site {site}, not {self.site}: check '
                f'[glance_geo] peers')
        if answer.status_code >= 400:
            text = answer.read()[:500].decode(errors='replace').strip()
            if answer.status_code >= 500:
                raise errors.Unreachable(
                    f'site {self.site}: {answer.status_code} {text}')
            kind = (errors.SiteRetired if answer.status_code == 410
                    else errors.PeerRefused)
            raise kind(f'site {self.site}: {text}')

    @contextmanager
    def _frames(self, path: str, document: Any,
                maximum: int) -> Iterator[wire.FrameReader]:
        with self._request(path, document) as answer:
            pieces = self._pieces(answer)
            reader = wire.FrameReader(pieces, maximum)
            yield reader
            if reader.last is not None:
                # Read to the end, or the connection can't be used again.
                extra = 0
                for piece in pieces:
                    extra += len(piece)
                    if extra > _TRAILER_MAXIMUM:
                        raise errors.PeerMisbehaved('bytes after the end')

    def _pieces(self, answer: httpx.Response) -> Iterator[bytes]:
        for piece in answer.iter_raw():
            self.bytes_received += len(piece)
            yield piece

    def hint(self) -> None:
        """Tell the node that there is something new here."""
        with self._request('/v1/hint', {}) as answer:
            answer.read()   # or the connection can't be used again

    @contextmanager
    def records(self, vector: dict[str, int], bootstrap: bool = False,
                ) -> Iterator[wire.FrameReader]:
        """Ask for the records that are newer than a vector.

        The frames are encoded records; the last one is the node's vector.

        :param bootstrap: this site begins anew, retired or not
        """
        with self._frames('/v1/records', {
                'vector': vector, 'bootstrap': bootstrap},
                wire.RECORD_MAXIMUM) as frames:
            yield frames

    @contextmanager
    def states(self, keys: Sequence[str]) -> Iterator[wire.FrameReader]:
        """Ask for records by their keys; the frames are encoded records."""
        with self._frames('/v1/states', {'keys': list(keys)},
                          wire.RECORD_MAXIMUM) as frames:
            yield frames

    def digest(self, document: dict[str, Any]) -> dict[str, Any]:
        """Ask for digests over all records, or over one bucket's."""
        return self._map('/v1/digest', document)

    def known(self, document: dict[str, Any]) -> dict[str, Any]:
        """Exchange what is known of how far the sites are."""
        return self._map('/v1/known', document)

    def _map(self, path: str, document: Any) -> dict[str, Any]:
        with self._request(path, document) as answer:
            found = wire.unpack(answer.read(), wire.RECORD_MAXIMUM)
        if not isinstance(found, dict):
            raise errors.PeerMisbehaved(f'{path}: the answer is no map')
        return found

    @contextmanager
    def chunks(self, image: str, manifest: bytes, names: Sequence[bytes],
               ) -> Iterator[wire.FrameReader]:
        """Ask for chunks of an image.

        There is one frame per name, in order; an empty one says that the
        node does not have it.
        """
        with self._frames('/v1/chunks', {
                'image': image, 'manifest': manifest,
                'names': list(names), 'level': wire.level_for(self.rate)},
                wire.BLOB_MAXIMUM) as frames:
            began, before = time.monotonic(), self.bytes_received
            yield frames
            self._measure(self.bytes_received - before,
                          time.monotonic() - began)

    def _measure(self, received: int, seconds: float) -> None:
        """Learn from a transfer how many bytes a second the link carries."""
        if received >= _MEASURABLE and seconds > 0:
            with self._lock:
                rate = received / seconds
                self.rate = rate if self.rate is None else (
                    (1 - _SMOOTHING) * self.rate + _SMOOTHING * rate)

    def keep(self, image: str, manifest: bytes) -> None:
        """Ask the node to promise that it keeps an image's copy."""
        self._map('/v1/keep', {'image': image, 'manifest': manifest})

    def claim_home(self, image: str) -> bytes:
        """Ask an image's home to hand over; return the encoded record."""
        with self._request('/v1/home', {'image': image}) as answer:
            return answer.read()
