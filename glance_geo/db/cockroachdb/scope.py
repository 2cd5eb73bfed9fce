# SPDX-License-Identifier: Apache-2.0
"""What a thread's present data-API call lets its connection do.

The connection sees statements only; the call around it knows more: whether
it is safe to read without a transaction, and whether old data will do.
"""

import dataclasses
import threading

_local = threading.local()


@dataclasses.dataclass
class Scope:
    """One attempt of one call.

    :ivar single: it reads with one statement, which needs no transaction
    :ivar stale: data that is some seconds old will do
    :ivar statements: sent so far
    :ivar committed: a transaction that wrote was committed
    """

    single: bool = False
    stale: bool = False
    statements: int = 0
    committed: bool = False


def current() -> Scope:
    """Return the thread's scope; outside of calls, one that allows nothing."""
    return getattr(_local, 'scope', None) or Scope()


def enter(scope: Scope | None) -> None:
    """Make a scope the thread's; None ends it."""
    _local.scope = scope
