# SPDX-License-Identifier: Apache-2.0
"""What oslo.db has no errors for. They are its own kind of errors, so that
every service treats them as the database's."""

from oslo_db import exception


class AmbiguousCommit(exception.DBError):
    """It is unknown whether a transaction was committed; never retried."""


class Unanswered(exception.DBError):
    """The cluster gave no answer in time: no quorum, or overload."""


class NeedsTransaction(exception.DBError):
    """A read that was begun without a transaction has a second statement."""


class Committed(exception.DBError):
    """A call that was committed goes on to read back what it wrote."""


class ServerUnfit(exception.DBError):
    """The server is no CockroachDB, or too old a one."""
