# SPDX-License-Identifier: Apache-2.0
"""Imports the ``riak`` client on a current Python.

Its last release (2.7.0) looks for abstract classes in ``collections``, calls
``namedtuple(verbose=…)``, and uses ``distutils`` and ``cgi``, which newer
Pythons dropped. All of that is supplied while it is imported and taken back
afterwards: nothing else in the process sees it.
"""

import collections
import collections.abc
import contextlib
import importlib
import sys
import types
from collections.abc import Iterator
from typing import Any

_MOVED = ('Iterable', 'Iterator', 'Mapping', 'MutableMapping', 'Sequence',
          'Set', 'Sized', 'Callable')


def _namedtuple(*arguments: Any, verbose: bool = False, **options: Any) -> Any:
    return _plain_namedtuple(*arguments, **options)


_plain_namedtuple = collections.namedtuple


class _LooseVersion:
    """As much of distutils' class as the client asks for: comparison."""

    def __init__(self, text: str):
        self.parts = [int(part) for part in str(text).split('.')
                      if part.isdigit()]

    def __lt__(self, other: Any) -> bool:
        return self.parts < other.parts

    def __ge__(self, other: Any) -> bool:
        return self.parts >= other.parts


def _absent_modules() -> dict[str, types.ModuleType]:
    version = types.ModuleType('distutils.version')
    version.LooseVersion = _LooseVersion  # type: ignore
    # Needed by the HTTP transport alone, which is not used.
    cgi = types.ModuleType('cgi')
    cgi.parse_header = None  # type: ignore
    return {'distutils': types.ModuleType('distutils'),
            'distutils.version': version, 'cgi': cgi}


@contextlib.contextmanager
def _supplied() -> Iterator[None]:
    moved = [name for name in _MOVED if not hasattr(collections, name)]
    absent = _absent_modules()
    for name in moved:
        setattr(collections, name, getattr(collections.abc, name))
    collections.namedtuple = _namedtuple  # type: ignore
    present = {name: sys.modules[name] for name in absent
               if name in sys.modules}
    sys.modules.update(absent)
    try:
        yield
    finally:
        collections.namedtuple = _plain_namedtuple
        for name in moved:
            delattr(collections, name)
        for name in absent:
            sys.modules.pop(name, None)
        sys.modules.update(present)


def load() -> Any:
    """Return the ``riak`` module.

    :raises ImportError: it is not installed
    """
    with _supplied():
        return importlib.import_module('riak')
