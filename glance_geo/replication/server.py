# SPDX-License-Identifier: Apache-2.0
"""Answering other nodes: the peers' API, a WebOb application.

The caller's site comes from its certificate. Chunks are given only as parts
of an image that lives, whose record lists their manifest, and whose placement
allows the caller's site to hold it.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import webob
import webob.dec
import webob.exc

from glance_geo.core import codec, errors
from glance_geo.core.interfaces import LocalChunks, RecordLog
from glance_geo.core.records import Record
from glance_geo.core.rules import shown
from glance_geo.replication import audit, identity, membership, wire
from glance_geo.replication.sources import with_manifest
from glance_geo.replication.transfer import Membership

LOG = logging.getLogger(__name__)

PEER_ENVIRON = 'glance_geo.peer_certificate'
_NAMES_MAXIMUM = 4096
# What a retired site may ask, to begin anew.
_OF_BOOTSTRAP = ('/v1/records', '/v1/digest')
_ID_MAXIMUM = 64
# Chunks read at a time while they are sent.
_LOADED = 64


def _text(document: dict[str, Any], name: str) -> str:
    value = document.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= _ID_MAXIMUM:
        raise webob.exc.HTTPBadRequest(f'{name} is missing or malformed')
    return value


def _names(document: dict[str, Any], name: str) -> list[bytes]:
    value = document.get(name)
    if (not isinstance(value, list) or len(value) > _NAMES_MAXIMUM or
            any(not isinstance(n, bytes) or len(n) != 32 for n in value)):
        raise webob.exc.HTTPBadRequest(f'{name} is missing or malformed')
    return value


class PeerServer:
    """The peers' API of one node.

    :param hinted: called with a site's name when it hints
    :param promise: promises (site, image, manifest) to keep a copy
    """

    def __init__(self, site: str, log: RecordLog, store: LocalChunks,
                 hinted: Callable[[str], None],
                 status: Callable[[], dict[str, Any]],
                 promise: Callable[[str, str, bytes], None]):
        self._site = site
        self._log = log
        self._store = store
        self._hinted = hinted
        self._status = status
        self._membership = Membership()
        self._promise = promise
        self._calls = {'/v1/hint': self._hint, '/v1/records': self._records,
                       '/v1/chunks': self._chunks, '/v1/home': self._home,
                       '/v1/status': self._tell_status,
                       '/v1/digest': self._digest, '/v1/known': self._known,
                       '/v1/states': self._states, '/v1/keep': self._keep}
        self.chunks_sent = 0

    @webob.dec.wsgify
    def __call__(self, request: webob.Request) -> webob.Response:
        try:
            peer, _ = identity.peer_name(request.environ.get(PEER_ENVIRON))
            call = self._calls.get(request.path_info)
            if call is None:
                raise webob.exc.HTTPNotFound(f'no call {request.path_info}')
            if request.method != 'POST':
                raise webob.exc.HTTPMethodNotAllowed()
            if (request.content_length is None
                    or request.content_length > wire.REQUEST_MAXIMUM):
                raise webob.exc.HTTPRequestEntityTooLarge()
            document = wire.unpack(request.body)
            if not isinstance(document, dict):
                raise webob.exc.HTTPBadRequest('body is no map')
            if not (document.get('bootstrap') is True
                    and request.path_info in _OF_BOOTSTRAP):
                self._check_member(peer)
            return call(peer, document)
        except errors.PeerMisbehaved as error:
            answer: webob.Response = webob.exc.HTTPBadRequest(str(error))
        except errors.SiteRetired as error:
            answer = webob.exc.HTTPGone(str(error))
        except (errors.PeerRefused, errors.BitsElsewhere) as error:
            answer = webob.exc.HTTPForbidden(str(error))
        except webob.exc.HTTPException as error:
            answer = error
        except errors.GeoError as error:
            LOG.warning('Call %s failed: %s', request.path_info, error)
            answer = webob.exc.HTTPServiceUnavailable(str(error))
        plain = webob.Response(status=answer.status, charset='utf-8',
                               content_type='text/plain')
        plain.text = f'{getattr(answer, "detail", "") or answer.status}\n'
        return plain

    def _check_member(self, peer: str) -> None:
        """Refuse a site that was retired.

        :raises SiteRetired: saying what to do
        """
        since = membership.retired(self._log.get('site', peer))
        if since:
            raise errors.SiteRetired(
                f'site {peer} was retired at site {since["by"]}; run '
                f'"glance-geo site bootstrap --from {self._site}" at {peer}')

    def _digest(self, peer: str, document: dict[str, Any]) -> webob.Response:
        number = document.get('bucket')
        if number is None:
            # The vector first: what is written meanwhile is not in it.
            vector = self._log.vector()
            found = self._log.digests()
            return self._pack({'sums': list(found.sums), 'vector': vector,
                               'counts': list(found.counts)})
        if not isinstance(number, int):
            raise webob.exc.HTTPBadRequest('bucket is malformed')
        return self._pack({'records': self._log.bucket(number)})

    def _known(self, peer: str, document: dict[str, Any]) -> webob.Response:
        self._log.learn(audit.checked(document.get('known')))
        return self._pack({'known': self._log.known()})

    def _states(self, peer: str, document: dict[str, Any]) -> webob.Response:
        keys = document.get('keys')
        if (not isinstance(keys, list) or len(keys) > _NAMES_MAXIMUM
                or not all(isinstance(key, str) for key in keys)):
            raise webob.exc.HTTPBadRequest('keys is malformed')
        return self._stream((codec.encode(record)
                             for record in self._log.states(keys)), b'')

    @staticmethod
    def _pack(document: Any) -> webob.Response:
        return webob.Response(wire.pack(document), charset=None,
                              content_type='application/octet-stream')

    def _hint(self, peer: str, document: dict[str, Any]) -> webob.Response:
        self._hinted(peer)
        return webob.Response(status=204)

    def _records(self, peer: str,
                 document: dict[str, Any]) -> webob.Response:
        vector = document.get('vector')
        if not isinstance(vector, dict) or not all(
                isinstance(k, str) and isinstance(v, int)
                for k, v in vector.items()):
            raise webob.exc.HTTPBadRequest('vector is malformed')
        if document.get('bootstrap') is True:
            membership.readmit(self._log, peer)
        # Read before the records: what is written meanwhile is sent, and
        # then sent once more; the other order would skip it.
        mine = self._log.vector()
        # A replicating engine has brought them already.
        newer = () if self._log.replicates else self._log.newer(vector)
        encoded = (codec.encode(record) for record in newer)
        return self._stream(encoded, wire.pack(mine))

    @staticmethod
    def _stream(items: Iterable[bytes], last: bytes,
                level: int = wire.LEVEL) -> webob.Response:
        response = webob.Response(
            content_type='application/octet-stream', charset=None)
        response.app_iter = wire.frames(items, last, level)
        return response

    def _chunks(self, peer: str,
                document: dict[str, Any]) -> webob.Response:
        image = _text(document, 'image')
        (manifest,) = _names({'m': [document.get('manifest')]}, 'm')
        names = _names(document, 'names')
        bits = with_manifest(self._log.images_of(image), manifest)
        if bits is None:
            raise errors.PeerRefused(
                f'site {self._site} lists no such image data: {image}')
        decision = bits.decide(peer)
        if not decision.allowed:
            raise errors.PeerRefused(
                f'image {image} may not be copied to site {peer}: '
                f'{decision.why}')
        view = self._store.view(bits.names | {image}, manifest)
        strangers = set(self._membership.strangers(view, manifest, names))
        level = document.get('level')
        if not isinstance(level, int) or not 1 <= level <= wire.LEVEL_MAXIMUM:
            level = wire.LEVEL

        def found() -> Iterator[bytes]:
            for start in range(0, len(names), _LOADED):
                batch = names[start:start + _LOADED]
                here, _ = view.load([n for n in batch if n not in strangers])
                self.chunks_sent += len(here)
                yield from (here.get(name, b'') for name in batch)
        return self._stream(found(), b'', level)

    def _keep(self, peer: str, document: dict[str, Any]) -> webob.Response:
        image = _text(document, 'image')
        (manifest,) = _names({'m': [document.get('manifest')]}, 'm')
        self._promise(peer, image, manifest)
        return self._pack({})

    def _home(self, peer: str, document: dict[str, Any]) -> webob.Response:
        image = _text(document, 'image')

        def hand_over(present: Record | None) -> dict[str, Any] | None:
            values = {} if present is None else shown(present)
            if present is None:
                raise errors.PeerRefused(
                    f'site {self._site} knows no image {image}')
            if values.get('home') == peer:
                return None
            state = (values.get('data') or {}).get('status')
            if values.get('home') != self._site or state != 'queued':
                raise errors.PeerRefused(
                    f'image {image} is {state} at site '
                    f'{values.get("home")}, which keeps it')
            return {'home': peer}
        record = self._log.update('image', image, hand_over)
        assert record is not None
        LOG.info('Image %s: site %s is its home now', image, peer)
        return webob.Response(codec.encode(record), charset=None,
                              content_type='application/octet-stream')

    def _tell_status(self, peer: str,
                     document: dict[str, Any]) -> webob.Response:
        return self._pack(self._status())
