# SPDX-License-Identifier: Apache-2.0
"""Metadata in Riak KV: one cluster across sites, which takes every write.

The bucket must keep siblings (``allow_mult``) on a backend with secondary
indexes (leveldb or leveled). Every put carries the causal context of what was
read; what was written concurrently is handed up, and merged by the same
function that merges sites.

An index position is a secondary index entry ``INDEX \\x01 TERM`` of the field
``up_bin``; Riak only walks indexes upwards, so that terms which are walked
down too have a complemented twin in ``down_bin``. Bytes are mapped to code
points from 2 on, whose UTF-8 orders as the bytes do.
"""

import concurrent.futures
import functools
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from glance_geo.core import errors
from glance_geo.core.engine import (
    Entry,
    MetadataEngine,
    Position,
    Range,
    Stored,
    Term,
    Trait,
)
from glance_geo.db.engines import riakimport

try:
    riak = riakimport.load()
except ImportError as error:
    raise ImportError(f'the riak client is missing ({error}); install '
                      f'glance_geo[riak]') from error

_CONCURRENCY = 16
_BAD_SECONDS = 5.0
_WORST_SECONDS = 60.0
_PAGE = 1000
_PROPERTIES_SECONDS = 30.0
_UP, _DOWN = 'up_bin', 'down_bin'
_END = '\x01'                       # ends a term that is walked up …
_END_DOWN, _PAST_DOWN = 'Ą', 'ą'    # … and one that is walked down
_LAST = 'Ć'                         # sorts after every position of an index


def _upwards(term: bytes) -> str:
    return ''.join(chr(byte + 2) for byte in term)


def _downwards(term: bytes) -> str:
    return ''.join(chr(257 - byte) for byte in term)


def position(index: str, term: bytes, down: bool = False) -> str:
    """Return the secondary index value of a term."""
    if down:
        return f'{index}\x01{_downwards(term)}{_END_DOWN}'
    return f'{index}\x01{_upwards(term)}{_END}'


def term_of(index: str, value: str, down: bool) -> bytes:
    """Return the term of a secondary index value."""
    text = value[len(index) + 1:-1]
    return bytes((257 - ord(c)) if down else (ord(c) - 2) for c in text)


def bounds(index: str, start: bytes | None, stop: bytes | None,
           down: bool) -> tuple[str, str]:
    """Return the first and the last value of a range, both inclusive."""
    prefix = f'{index}\x01'
    if down:
        return (prefix + ('' if stop is None
                          else _downwards(stop) + _PAST_DOWN),
                prefix + (_LAST if start is None
                          else _downwards(start) + _END_DOWN))
    return (prefix + ('' if start is None else _upwards(start)),
            prefix + (_LAST if stop is None else _upwards(stop)))


class _Node:
    """One node, with a client of its own, so that a call never waits for
    another node than the one that it was sent to."""

    def __init__(self, host: str, port: int, timeout: float):
        self.name = f'{host}:{port}'
        self.client = riak.RiakClient(
            protocol='pbc', nodes=[{'host': host, 'pb_port': port}],
            transport_options={'timeout': timeout})
        self.bad_until = 0.0
        self._failures = 0

    def failed(self, error: Exception) -> None:
        """Note that a call failed: avoid the node for a while, longer each
        time. One that answers, if with an error, has others' troubles."""
        if isinstance(error, riak.RiakError):
            return
        self._failures += 1
        self.bad_until = time.monotonic() + min(
            _BAD_SECONDS * 2 ** (self._failures - 1), _WORST_SECONDS)

    def answered(self) -> None:
        self._failures = 0


class RiakEngine(MetadataEngine):
    """One bucket of a cluster, through any of its nodes."""

    traits = frozenset((Trait.SIBLINGS, Trait.DURABLE, Trait.REPLICATES,
                        Trait.SHARED))

    def __init__(self, hosts: Sequence[tuple[str, int]], bucket: str,
                 bucket_type: str, timeout: float, quorum: dict[str, Any]):
        self._timeout = timeout
        self._timeout_ms = int(timeout * 1000)
        self._hosts = hosts
        self._bucket = bucket
        self._type = bucket_type
        self._quorum = quorum
        self._lock = threading.Lock()
        self._open()
        self._call(self._prepare)

    def _open(self) -> None:
        self._owner = os.getpid()
        # The server gives up first, and says why.
        self._nodes = [_Node(host, port, self._timeout + 1)
                       for host, port in self._hosts]
        self._turn = itertools.count()
        self._pool = concurrent.futures.ThreadPoolExecutor(
            _CONCURRENCY, thread_name_prefix='riak')

    def _after_fork(self) -> None:
        """Leave connections and threads to the process that made them."""
        if self._owner != os.getpid():
            with self._lock:
                if self._owner != os.getpid():
                    self._open()

    def _prepare(self, node: _Node) -> None:
        """Check that the bucket keeps siblings, or make it."""
        bucket = self._bucket_at(node)
        if bucket.get_property('allow_mult'):
            return
        if self._type != 'default':
            raise errors.ConfigurationInvalid(
                f'metadata_backend: bucket type {self._type!r} does not keep '
                f'siblings. Make one that does: riak admin bucket-type '
                f'create NAME \'{{"props":{{"allow_mult":true}}}}\'')
        bucket.set_properties({'allow_mult': True, 'last_write_wins': False})
        # The nodes tell each other by and by; until then some would let the
        # last write win.
        deadline = time.monotonic() + _PROPERTIES_SECONDS
        for other in self._nodes:
            while not self._keeps_siblings(other):
                if time.monotonic() > deadline:
                    raise errors.EngineUnavailable(
                        f'Riak: {other.name} does not hear that bucket '
                        f'{self._bucket} keeps siblings')
                time.sleep(0.1)

    def _keeps_siblings(self, node: _Node) -> bool:
        """Say whether a node knows it; one that is down will when it is up."""
        try:
            with node.client.retry_count(1):
                return self._bucket_at(node).get_property('allow_mult')
        except Exception as error:  # its client raises all kinds
            node.failed(error)
            return True

    # -- calling ----------------------------------------------------------
    def _bucket_at(self, node: _Node) -> Any:
        return node.client.bucket_type(self._type).bucket(self._bucket)

    def _order(self) -> list[_Node]:
        """Return the nodes to try: in turn, those that failed lately last."""
        first = next(self._turn) % len(self._nodes)
        nodes = self._nodes[first:] + self._nodes[:first]
        now = time.monotonic()
        return sorted(nodes, key=lambda node: node.bad_until > now)

    def _call(self, call: Callable[[_Node], Any]) -> Any:
        """Make a call at one node, then at others until one answers.

        Puts too: the same value with the same causal context twice is one
        sibling more at worst, equal to the first, and merged with it.
        """
        self._after_fork()
        failures = []
        for node in self._order():
            try:
                with node.client.retry_count(1):
                    found = call(node)
                node.answered()
                return found
            except errors.GeoError:
                raise
            except Exception as error:  # its client raises all kinds
                node.failed(error)
                failures.append(f'{node.name}: {error or type(error)}')
        raise errors.EngineUnavailable('Riak: ' + '; '.join(failures))

    # -- the interface ----------------------------------------------------
    def _entry(self, found: Any) -> Entry | None:
        values = tuple(dict.fromkeys(
            bytes(sibling.encoded_data) for sibling in found.siblings
            if sibling.exists))
        if not values or found.vclock is None:
            return None
        # Siblings of equal value are one; the next put unites them.
        return Entry(values, 0, found.vclock.encode('binary'))

    def get(self, key: str) -> Entry | None:
        return self._call(lambda node: self._entry(
            self._bucket_at(node).get(key, timeout=self._timeout_ms,
                                      **self._of('r', 'pr'))))

    def _of(self, *names: str) -> dict[str, Any]:
        return {name: self._quorum[name] for name in names
                if name in self._quorum}

    def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        self._after_fork()
        if len(keys) < 2:
            entries = [self.get(key) for key in keys]
        else:
            entries = list(self._pool.map(self.get, keys))
        return {key: entry for key, entry in zip(keys, entries, strict=True)
                if entry is not None}

    def put(self, key: str, value: bytes, token: Any,
            terms: Iterable[Term], numbered: bool = False,
            life: str | None = None) -> Stored:
        indexes = set()
        for term in terms:
            if term.stamped:
                raise ValueError('Riak numbers no puts')
            indexes.add((_UP, position(term.index, term.value)))
            if term.descends:
                indexes.add((_DOWN, position(term.index, term.value, True)))

        def store(node: _Node) -> Entry | None:
            made = riak.RiakObject(node.client, self._bucket_at(node), key)
            if token is not None:
                made.vclock = riak.riak_object.VClock(token, 'binary')
            made.content_type = 'application/octet-stream'
            made.encoded_data = value
            made.indexes = indexes
            made.store(return_body=True, timeout=self._timeout_ms,
                       **self._of('w', 'dw', 'pw'))
            return self._entry(made)
        now = self._call(store)
        return Stored(0, now if now and now.values != (value,) else None)

    def delete(self, key: str, token: Any = None) -> None:
        def remove(node: _Node) -> None:
            found = self._bucket_at(node).get(key, timeout=self._timeout_ms)
            if found.exists:
                found.delete(timeout=self._timeout_ms)
        self._call(remove)

    def look(self, ranges: Sequence[Range], keys: Sequence[str] = (),
             ) -> tuple[list[list[Position]], dict[str, Entry]]:
        self._after_fork()
        if len(ranges) == 1 and not keys:
            return [self._positions(ranges[0])], {}
        scans = [self._pool.submit(self._positions, range)
                 for range in ranges]
        entries = self.get_many(keys)
        return [scan.result() for scan in scans], entries

    def _positions(self, range: Range) -> list[Position]:
        first, last = bounds(range.index, range.start, range.stop,
                             range.reverse)
        field = _DOWN if range.reverse else _UP
        found: list[Position] = []
        continuation = None
        while range.limit is None or len(found) < range.limit:
            size = _PAGE if range.limit is None else min(
                _PAGE, range.limit - len(found))
            pairs, continuation = self._call(functools.partial(
                self._page, field, first, last, size, continuation))
            found += [(term_of(range.index, value, range.reverse), key)
                      for value, key in pairs]
            if continuation is None:
                break
        return found

    def _page(self, field: str, first: str, last: str, size: int,
              continuation: Any, node: _Node) -> tuple[list, Any]:
        page = node.client.get_index(
            self._bucket_at(node), field, first, last, return_terms=True,
            max_results=size, continuation=continuation,
            timeout=self._timeout_ms)
        return list(page.results or ()), page.continuation

    def indexes(self, prefix: str) -> list[str]:
        return []

    def last_number(self) -> int:
        return 0

    def reset(self) -> None:
        def keys(node: _Node) -> list[str]:
            return list(node.client.get_index(
                self._bucket_at(node), '$bucket', '_',
                timeout=self._timeout_ms).results)
        list(self._pool.map(self.delete, self._call(keys)))

    def close(self) -> None:
        self._pool.shutdown(wait=False)
        for node in self._nodes:
            node.client.close()


_QUORUM = ('r', 'pr', 'w', 'dw', 'pw')


def _invalid(text: str) -> errors.ConfigurationInvalid:
    return errors.ConfigurationInvalid(f'metadata_backend: {text}')


def open_engine(url: str, **requirements: Any) -> RiakEngine:
    """Open ``riak://host[:8087],host…/[bucket][?type=…&timeout=…&pw=…]``.

    :raises ConfigurationInvalid: the URL is wrong, or the bucket's type
        keeps no siblings
    """
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query))
    unknown = sorted(options.keys() - {'type', 'timeout', *_QUORUM})
    if unknown:
        raise _invalid(f'unknown option {unknown[0]!r}; use type, timeout, '
                       + ', '.join(_QUORUM))
    hosts = []
    for part in parts.netloc.split(','):
        try:
            one = urlsplit(f'//{part}')
            if not one.hostname or one.username:
                raise ValueError
            hosts.append((one.hostname, one.port or 8087))
        except ValueError:
            raise _invalid(f'{part!r} is not host[:port]') from None
    try:
        timeout = float(options.get('timeout', '3'))
        quorum = {name: int(text) if text.isdigit() else text
                  for name, text in options.items() if name in _QUORUM}
    except ValueError:
        raise _invalid('timeout is a number of seconds') from None
    return RiakEngine(hosts, parts.path.strip('/') or 'glance_geo',
                      options.get('type', 'default'), timeout, quorum)
