# SPDX-License-Identifier: Apache-2.0
"""Things to do one by one, tried again until they are done."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from glance_geo.core import errors

LOG = logging.getLogger(__name__)

Key = TypeVar('Key')
Value = TypeVar('Value')


class WorkQueue(Generic[Key, Value]):
    """Does one thing at a time, in a thread of its own.

    :param work: does one; False asks for another try later
    :param retry: seconds until then
    """

    def __init__(self, name: str, work: Callable[[Key, Value], bool],
                 retry: float):
        self._name = name
        self._work = work
        self._retry = retry
        self._changed = threading.Condition()
        self._waiting: dict[Key, tuple[Value, float]] = {}
        self._stopping = False
        self._said = ''
        self._thread = threading.Thread(target=self._run, name=name,
                                        daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    @property
    def stopping(self) -> bool:
        return self._stopping

    def put(self, key: Key, value: Value, delay: float = 0.0) -> None:
        """Ask for something; what waits under the key is replaced."""
        with self._changed:
            self._waiting[key] = (value, time.monotonic() + delay)
            self._changed.notify_all()

    def _next(self) -> tuple[Key, Value] | None:
        with self._changed:
            while not self._stopping:
                now = time.monotonic()
                for key, (value, due) in self._waiting.items():
                    if due <= now:
                        del self._waiting[key]
                        return key, value
                due = min((due for _, due in self._waiting.values()),
                          default=now + 60.0)
                self._changed.wait(due - now)
            return None

    def _run(self) -> None:
        while (found := self._next()) is not None:
            if self._done(*found):
                continue
            with self._changed:
                # What was asked for meanwhile is newer.
                self._waiting.setdefault(found[0], (
                    found[1], time.monotonic() + self._retry))

    def _done(self, key: Key, value: Value) -> bool:
        try:
            done = self._work(key, value)
            self._said = ''
            return done
        except errors.GeoError as error:
            # A node that is down is one line, not one for each image.
            if str(error) != self._said:
                LOG.warning('%s %s: %s; trying again', self._name, key,
                            error)
            self._said = str(error)
        except Exception:
            LOG.exception('%s %s failed', self._name, key)
        return False
