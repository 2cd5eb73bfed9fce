# SPDX-License-Identifier: Apache-2.0
"""Glance's own SQL data API, each call repeated where that is safe.

Every public function of ``glance.db.sqlalchemy.api`` is one transaction that
writes, or reads only; four read back what they wrote in a second one. With
commits that are certain (``connection``), what failed before its commit may
be repeated as a whole, and what failed after it needs its answer only.
"""

import copy
import functools
import inspect
import logging
import random
import time
import uuid
from collections.abc import Callable
from types import ModuleType
from typing import Any

import webob.exc
from oslo_db import exception

from glance_geo.db.cockroachdb import faults, filters, scope

LOG = logging.getLogger(__name__)

#: Functions that only read, most with one statement.
READERS = frozenset((
    'image_get', 'image_get_all', 'image_member_find', 'image_member_count',
    'image_tag_get_all', 'user_get_storage_usage', 'user_get_staging_usage',
    'user_get_image_count', 'user_get_uploading_count', 'task_get',
    'metadef_namespace_get_all', 'metadef_namespace_get',
    'metadef_object_get_all', 'metadef_object_get', 'metadef_object_count',
    'metadef_property_get_all', 'metadef_property_get',
    'metadef_property_count', 'metadef_resource_type_get',
    'metadef_resource_type_get_all', 'metadef_resource_type_association_get',
    'metadef_resource_type_association_get_all_by_namespace',
    'metadef_tag_get_all', 'metadef_tag_get', 'metadef_tag_count',
    'node_reference_get_by_url', 'get_hit_count', 'get_cached_images',
    'get_cached_nodes', 'get_least_recently_accessed',
    'is_image_cached_for_node'))
#: Of these, lists that may be some seconds old where the operator says so.
LISTS = frozenset((
    'image_get_all', 'metadef_namespace_get_all', 'metadef_object_get_all',
    'metadef_property_get_all', 'metadef_resource_type_get_all',
    'metadef_tag_get_all'))
# Glance repeats these itself, also after their commit.
_REPEATED_BY_GLANCE = ('image_create', 'image_update', 'image_destroy')
# Not calls of the data API.
_NOT_CALLS = ('configure', 'get_engine', 'clear_db_env', 'session_for_read',
              'session_for_write', 'is_image_mutable', 'is_image_visible',
              'visit_delete_from_select', 'purge_deleted_rows',
              'purge_deleted_rows_from_images')
_RETRYABLE = (exception.DBDeadlock, exception.DBConnectionError,
              exception.RetryRequest)
_REFUSED = (*_RETRYABLE, faults.AmbiguousCommit, faults.Unanswered,
            faults.ServerUnfit)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.004, 1.0
_TRIES = 20
_RETRY_AFTER = '5'


def _read_back(name: str, api: Any, arguments: dict[str, Any]) -> Any:
    """Return what a call that was committed would have answered.

    In one round trip, where Glance's own second transaction takes two.
    """
    context, values = arguments['context'], arguments['values']
    if name.startswith('image'):
        return api.image_get(context, arguments.get('image_id')
                             or values['id'],
                             v1_mode=arguments.get('v1_mode', False))
    return api.task_get(context, arguments.get('task_id') or values['id'])


_READS_BACK = ('image_create', 'image_update', 'task_create', 'task_update')


def unavailable(name: str, error: Exception) -> webob.exc.HTTPException:
    """Return the answer to a user when the database gives none."""
    line = filters.explain(error)
    if isinstance(error, faults.AmbiguousCommit):
        line = f'it is unknown whether the change was stored ({line})'
    LOG.error('%s: %s', name, line)
    refusal = webob.exc.HTTPServiceUnavailable(
        explanation=f'Image metadata is unavailable: {line}')
    refusal.headers['Retry-After'] = _RETRY_AFTER
    return refusal


class _Call:
    """One function of the data API."""

    def __init__(self, name: str, function: Callable[..., Any],
                 api: 'RepeatingAPI', seconds: float, stale: bool):
        self._name, self._api, self._seconds = name, api, seconds
        self._reads_back = name in _READS_BACK
        self._function = (inspect.unwrap(function)
                          if name in _REPEATED_BY_GLANCE else function)
        self._signature = inspect.signature(function)
        self._stale = stale and name in LISTS
        # How often it read with one statement more than with several.
        self._singles = _TRIES if name in READERS else -1

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        deadline = time.monotonic() + self._seconds
        if self._reads_back:
            arguments, options = self._with_id(arguments, options)
        pause, single = _FIRST_PAUSE, True
        while True:
            allowed = scope.Scope(single and self._singles >= 0,
                                  self._reads_back, self._stale)
            try:
                answer = self._attempt(allowed, arguments, options)
                if allowed.single:
                    self._singles = min(self._singles + 1, _TRIES)
                return answer
            except faults.NeedsTransaction:
                single = False
                self._singles -= 1
                continue
            except faults.Committed:
                return self._answer(arguments, options)
            except _RETRYABLE as error:
                if allowed.committed or time.monotonic() > deadline:
                    raise unavailable(self._name, error) from error
                LOG.debug('%s: once more, after %s', self._name,
                          filters.sqlstate(getattr(
                              error, 'inner_exception', error)) or error)
            except _REFUSED as error:
                raise unavailable(self._name, error) from error
            # Full jitter: concurrent writers must not meet again.
            time.sleep(random.random() * pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _attempt(self, allowed: scope.Scope, arguments: tuple[Any, ...],
                 options: dict[str, Any]) -> Any:
        with scope.within(allowed):
            # Some functions take their arguments apart.
            return self._function(
                *(_copied(each) for each in arguments),
                **{key: _copied(each) for key, each in options.items()})

    def _with_id(self, arguments: tuple[Any, ...], options: dict[str, Any],
                 ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Give what is created its id here, so that it can be read back."""
        bound = self._signature.bind(*arguments, **options)
        if self._name.endswith('_create') and not bound.arguments[
                'values'].get('id'):
            bound.arguments['values'] = {**bound.arguments['values'],
                                         'id': str(uuid.uuid4())}
        return bound.args, bound.kwargs

    def _answer(self, arguments: tuple[Any, ...], options: dict[str, Any],
                ) -> Any:
        bound = self._signature.bind(*arguments, **options)
        return _read_back(self._name, self._api, dict(bound.arguments))


def _copied(argument: Any) -> Any:
    return (copy.deepcopy(argument) if isinstance(argument, (dict, list))
            else argument)


class RepeatingAPI:
    """The data API's module, with its calls repeated.

    Calls raise ``HTTPServiceUnavailable`` when the database gives no answer
    within their time, and otherwise what Glance's own would.

    :param api: ``glance.db.sqlalchemy.api``
    :param seconds: for how long a call is repeated
    :param stale_lists: lists may be some seconds old
    """

    def __init__(self, api: ModuleType, seconds: float = 15.0,
                 stale_lists: bool = False):
        self._api = api
        for name, function in inspect.getmembers(api, inspect.isfunction):
            # One of Glance's decorators leaves its own module's name.
            if (function.__module__ in (api.__name__, 'glance.common.utils')
                    and name[0] != '_' and name not in _NOT_CALLS):
                call = _Call(name, function, self, seconds, stale_lists)
                setattr(self, name, functools.wraps(function)(call))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._api, name)
