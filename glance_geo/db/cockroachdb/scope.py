# SPDX-License-Identifier: Apache-2.0
"""What a thread's present data-API call lets its connection do.

The connection sees statements only; the call around it knows more: whether
it is safe to read without a transaction, and whether old data will do.
"""

import dataclasses
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_local = threading.local()


@dataclasses.dataclass
class Scope:
    """One attempt of one call.

    :ivar single: it reads with one statement, which needs no transaction
    :ivar reads_back: somebody else reads what it wrote, once committed
    :ivar stale: data that is some seconds old will do
    :ivar resuming: changes of the schema may have been made before
    :ivar statements: sent so far
    :ivar committed: a transaction that wrote was committed
    """

    single: bool = False
    reads_back: bool = False
    stale: bool = False
    resuming: bool = False
    statements: int = 0
    committed: bool = False


def current() -> Scope:
    """Return the thread's scope; outside of calls, one that allows nothing."""
    return getattr(_local, 'scope', None) or Scope()


@contextmanager
def within(scope: Scope) -> Iterator[Scope]:
    """Make a scope the thread's, for as long as the context lasts."""
    outer = getattr(_local, 'scope', None)
    _local.scope = scope
    try:
        yield scope
    finally:
        _local.scope = outer
