# SPDX-License-Identifier: Apache-2.0
"""Ends calls that a silent server keeps waiting.

Timeouts of the server need a server that lives, and TCP's a peer whose kernel
does not: a stopped process, or a proxy that swallows, answers neither.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_LOOK_SECONDS = 0.25


class Watchdog:
    """Shuts the sockets of calls that take too long; one thread a process."""

    def __init__(self) -> None:
        self._calls: dict[object, tuple[float, int]] = {}
        self._lock = threading.Lock()
        self._process = 0

    @contextmanager
    def over(self, descriptor: int, seconds: float) -> Iterator[None]:
        """Watch a call on a socket; 0 seconds: without limit."""
        if not seconds:
            yield
            return
        call = object()
        with self._lock:
            if self._process != os.getpid():    # also after a fork
                self._process = os.getpid()
                self._calls = {}
                threading.Thread(target=self._watch, name='sql-watchdog',
                                 daemon=True).start()
            self._calls[call] = (time.monotonic() + seconds, descriptor)
        try:
            yield
        finally:
            with self._lock:
                self._calls.pop(call, None)

    def _watch(self) -> None:
        while True:
            time.sleep(_LOOK_SECONDS)
            now = time.monotonic()
            with self._lock:
                for call, (deadline, descriptor) in list(
                        self._calls.items()):
                    if now > deadline:
                        del self._calls[call]
                        self._shut(descriptor)

    @staticmethod
    def _shut(descriptor: int) -> None:
        # Under the lock: the call is still waiting, the descriptor its own.
        try:
            with socket.socket(fileno=os.dup(descriptor)) as its:
                its.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
