# SPDX-License-Identifier: Apache-2.0
"""Metadata in Redis: one server, Sentinel, or Cluster.

All keys begin with one prefix in braces, so that one Redis serves several
services, and so that in a Cluster an entry, its index terms and the numbers
share a slot: each put is one Lua script there, atomic with its indexes.

Keys, with ``{P}`` the prefix: ``{P}:e:KEY`` an entry (hash: ``v`` value,
``s`` stamp, ``t`` token, ``x`` its terms); ``{P}:i:INDEX`` an index (sorted
set, all scores 0, so that members order bytewise); ``{P}:indexes`` their
names (the same way); ``{P}:n`` the counters.
"""

import functools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgpack
import redis
import redis.exceptions

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
from glance_geo.db.engines import redisaddress, redisscripts
from glance_geo.db.engines.redisaddress import RedisAddress

_DOWN = (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError,
         redis.exceptions.BusyLoadingError, redis.exceptions.ReadOnlyError,
         redis.exceptions.ClusterDownError, redis.exceptions.TryAgainError,
         redis.exceptions.ClusterError)
# Answers of a server that is not, or no longer, the one to ask: it has done
# nothing, so that asking again is safe for puts too.
_ELSEWHERE = (redis.exceptions.MovedError, redis.exceptions.AskError,
              redis.exceptions.ReadOnlyError,
              redis.exceptions.BusyLoadingError)
_TRIES = 3
_KEYS_PER_CALL = 500
_BLOCK_SECONDS = 5.0


def _member(term: bytes, key: str, stamped: bool = False) -> list[Any]:
    """Return a position of an index: a prefix, and what follows a stamp.

    Members order as (term, key): a zero byte within a term is followed by
    0xff, which no key holds, and one alone ends the term.
    """
    head = term.replace(b'\0', b'\0\xff')
    tail = b'\0' + key.encode()
    return [head, tail] if stamped else [head + tail, b'']


def _split(member: bytes) -> tuple[bytes, str]:
    head, _, key = member.rpartition(b'\0')
    return head.replace(b'\0\xff', b'\0'), key.decode()


class RedisEngine(MetadataEngine):
    """One Redis behind an address of any of its three forms."""

    def __init__(self, address: RedisAddress):
        self._address = address
        self._base = f'{{{address.prefix}}}'
        self._client = address.connect()
        traits = {Trait.COMPARE_AND_SET, Trait.CHANGE_FEED, Trait.SHARED}
        if self._is_durable():
            traits.add(Trait.DURABLE)
        if address.shared:
            traits.add(Trait.REPLICATES)
        self.traits = frozenset(traits)

    def _is_durable(self) -> bool:
        """Say whether the server keeps what it acknowledges.

        :raises ConfigurationInvalid: it does not, and nobody allowed that
        """
        try:
            found = self._call(lambda client: client.config_get(
                'append*'), again=True)
            kept = (found.get('appendonly') == 'yes'
                    and found.get('appendfsync') == 'always')
            state = ', '.join(f'{name} {found.get(name)}' for name in (
                'appendonly', 'appendfsync'))
        except errors.EngineRefused as error:
            kept, state = False, f'its settings can not be read ({error})'
        if not kept and not self._address.allow_nondurable:
            raise errors.ConfigurationInvalid(
                f'metadata_backend: Redis at {self._address} may lose writes '
                f'that it acknowledged: {state}. Set "appendonly yes" and '
                f'"appendfsync always" there, or accept the loss with '
                f'?allow_nondurable=true')
        return kept

    # -- calling ----------------------------------------------------------
    def _call(self, call: Callable[[Any], Any], again: bool) -> Any:
        """Call the server that has the data.

        :param again: the call may be repeated when its outcome is unknown
        """
        for attempt in range(1, _TRIES + 1):
            try:
                return call(self._client.server())
            except redis.exceptions.NoScriptError:
                raise
            except _DOWN + _ELSEWHERE as error:
                self._client.lost(error)
                sure = isinstance(error, _ELSEWHERE)
                if attempt == _TRIES or not (again or sure):
                    raise errors.EngineUnavailable(
                        f'Redis at {self._address}: {error}') from error
                time.sleep(0.02 * attempt)
            except redis.exceptions.RedisError as error:
                raise errors.EngineRefused(
                    f'Redis at {self._address}: {error}') from error
        raise AssertionError('unreachable')

    def _run(self, script: redisscripts.Script, *arguments: Any,
             again: bool = True, wait: bool = False) -> Any:
        def by(command: str, text: str) -> Callable[[Any], Any]:
            def call(client: Any) -> Any:
                if not (wait and self._address.wait_replicas):
                    return client.execute_command(
                        command, text, 1, self._base, *arguments)
                # Both in one round trip.
                pipe = client.pipeline(transaction=False)
                pipe.execute_command(command, text, 1, self._base, *arguments)
                pipe.execute_command('WAIT', self._address.wait_replicas,
                                     int(self._address.timeout * 500))
                done, copies = pipe.execute()
                if copies < self._address.wait_replicas:
                    raise errors.EngineUnavailable(
                        f'Redis at {self._address}: stored, but only '
                        f'{copies} of {self._address.wait_replicas} replicas '
                        f'have it')
                return done
            return call
        try:
            return self._call(by('EVALSHA', script.sha), again)
        except redis.exceptions.NoScriptError:
            return self._call(by('EVAL', script.text), again)

    # -- the interface ----------------------------------------------------
    def life(self) -> str:
        return self._run(redisscripts.LIFE).decode()

    def renew_life(self) -> None:
        self._run(redisscripts.RENEW_LIFE, wait=True)

    @staticmethod
    def _entry(fields: list[Any]) -> Entry:
        value, stamp, token = fields
        return Entry((value,), int(stamp), token)

    def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        found: dict[str, Entry] = {}
        for start in range(0, len(keys), _KEYS_PER_CALL):
            part = keys[start:start + _KEYS_PER_CALL]
            entries = self._run(redisscripts.GET, *part)
            found.update((key, self._entry(fields))
                         for key, fields in zip(part, entries, strict=True)
                         if fields)
        return found

    def put(self, key: str, value: bytes, token: Any,
            terms: Iterable[Term], numbered: bool = False,
            life: str | None = None) -> Stored:
        if '\0' in key:
            raise ValueError(f'a key holds a zero byte: {key!r}')
        positions = [
            [f'{self._base}:i:{term.index}', *_member(term.value, key,
                                                      term.stamped)]
            for term in terms]
        number = self._run(
            redisscripts.PUT, key, value, token or b'',
            msgpack.packb(positions, use_bin_type=False), int(numbered),
            life or '', again=False, wait=True)
        if number < 0:
            raise errors.StaleToken(key)
        return Stored(number)

    def delete(self, key: str, token: Any = None) -> None:
        if self._run(redisscripts.DELETE, key, token or b'',
                     wait=True) < 0:
            raise errors.StaleToken(key)

    def _arguments(self, range: Range) -> list[Any]:
        low = (b'-' if range.start is None
               else b'[' + range.start.replace(b'\0', b'\0\xff'))
        high = (b'+' if range.stop is None
                else b'(' + range.stop.replace(b'\0', b'\0\xff'))
        return [f'{self._base}:i:{range.index}', low, high,
                int(range.reverse), -1 if range.limit is None
                else range.limit]

    def look(self, ranges: Sequence[Range], keys: Sequence[str] = (),
             ) -> tuple[list[list[Position]], dict[str, Entry]]:
        ranged = [argument for range in ranges
                  for argument in self._arguments(range)]
        positions, entries = self._run(redisscripts.LOOK, len(ranges),
                                       *ranged, *keys)
        return ([[_split(member) for member in found]
                 for found in positions],
                {key: self._entry(fields)
                 for key, fields in zip(keys, entries, strict=True)
                 if fields})

    def fetch_many(self, ranges: Sequence[Range],
                   ) -> list[list[tuple[bytes, str, Entry]]]:
        ranged = [argument for range in ranges
                  for argument in self._arguments(range)]
        return [[(*_split(member), self._entry(fields))
                 for member, *fields in found]
                for found in self._run(redisscripts.FETCH, *ranged)]

    def indexes(self, prefix: str) -> list[str]:
        cut = len(f'{self._base}:i:')
        return [name.decode()[cut:] for name in self._run(
            redisscripts.INDEXES, f'{self._base}:i:{prefix}')]

    def last_number(self) -> int:
        return self._run(redisscripts.LAST)

    def wait(self, number: int, timeout: float) -> int:
        """Wait for a message of a put; ask again now and then, since Redis
        loses messages when a connection breaks."""
        deadline = time.monotonic() + timeout
        last = self.last_number()
        while last <= number and time.monotonic() < deadline:
            left = min(deadline - time.monotonic(), _BLOCK_SECONDS)
            self._call(functools.partial(self._listen, number, left),
                       again=True)
            last = self.last_number()
        return last

    def _listen(self, number: int, timeout: float, client: Any) -> None:
        deadline = time.monotonic() + timeout
        with client.pubsub() as channel:
            channel.subscribe(f'{self._base}:puts')
            # A put between the last look and the subscription sends nothing.
            if self.last_number() > number:
                return
            while (left := deadline - time.monotonic()) > 0:
                message = channel.get_message(timeout=left)
                if message is not None and message['type'] == 'message':
                    return

    def reset(self) -> None:
        self._run(redisscripts.RESET)

    def close(self) -> None:
        self._client.close()


def open_engine(url: str, **requirements: Any) -> RedisEngine:
    """Open ``redis://``, ``redis+sentinel://`` or ``redis+cluster://``.

    :raises ConfigurationInvalid: the URL is wrong, or the server loses
        writes and nobody allowed that
    """
    address = redisaddress.parse(url)
    try:
        return RedisEngine(address)
    except errors.EngineRefused as error:
        raise errors.ConfigurationInvalid(f'metadata_backend: {error}'
                                          ) from error
