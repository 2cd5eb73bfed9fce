# SPDX-License-Identifier: Apache-2.0
"""Calls of the data API in a process of its own, timed: one per backend,
since Glance's SQL API has one database per process.

``python -m benchlib.worker geo|sql URL`` answers each line on standard input,
a round's number, with a JSON list of [call, nanoseconds].
"""

import json
import random
import sys
import time
import uuid


def load(kind, url):
    if kind == 'geo':
        from glance_geo.db import api
        return api.load(url, site='bench')
    from glance.common import config  # noqa: F401, registers options
    from glance.db.sqlalchemy import api
    from oslo_config import cfg
    from oslo_db import options
    options.set_defaults(cfg.CONF)
    cfg.CONF([], project='glance', prog='bench', default_config_files=[])
    cfg.CONF.set_override('connection', url, group='database')
    return api


class Caller:
    """What the data API looks at in a request's context."""

    is_admin = True
    owner = project_id = '0' * 32
    can_see_deleted = False
    session = None
    read_only = False


def round_of(data_api, number, images, seed):
    """Yield (call, nanoseconds) of one round."""
    from benchlib import population
    rng = random.Random(f'{seed}/api/{number}')
    caller = Caller()
    known = population.image_id(rng.randrange(images))
    fresh = str(uuid.UUID(int=rng.getrandbits(128), version=4))
    live = {'deleted': False, 'os_hidden': False}
    calls = [
        ('image_create', lambda: data_api.image_create(caller, {
            'id': fresh, 'name': 'new', 'status': 'queued',
            'owner': caller.owner, 'visibility': 'shared',
            'disk_format': 'raw', 'container_format': 'bare',
            'properties': {'os_distro': 'new'}})),
        ('image_get', lambda: data_api.image_get(caller, known)),
        ('image_update', lambda: data_api.image_update(
            caller, fresh, {'name': 'newer'})),
        ('image_tag_create', lambda: data_api.image_tag_create(
            caller, fresh, 't')),
        ('image_tag_get_all', lambda: data_api.image_tag_get_all(
            caller, fresh)),
        ('image_tag_delete', lambda: data_api.image_tag_delete(
            caller, fresh, 't')),
        ('image_member_create', lambda: data_api.image_member_create(
            caller, {'image_id': fresh, 'member': 'm'})),
        ('image_member_find', lambda: data_api.image_member_find(
            caller, image_id=fresh)),
        ('image_get_all, 25', lambda: data_api.image_get_all(
            caller, dict(live), limit=25, return_tag=True)),
        ('image_get_all, name', lambda: data_api.image_get_all(
            caller, {**live, 'name': f'image-{rng.randrange(images)}'},
            limit=25, return_tag=True)),
        ('image_destroy', lambda: data_api.image_destroy(caller, fresh)),
        ('metadef_namespace_create',
         lambda: data_api.metadef_namespace_create(caller, {
             'namespace': f'Api{number}', 'owner': 'o',
             'visibility': 'public', 'protected': False})),
        ('metadef_namespace_get', lambda: data_api.metadef_namespace_get(
            caller, f'Api{number}')),
        ('metadef_namespace_delete',
         lambda: data_api.metadef_namespace_delete(caller, f'Api{number}'))]
    for name, call in calls:
        began = time.perf_counter_ns()
        call()
        yield name, time.perf_counter_ns() - began


def main(kind, url):
    data_api = load(kind, url)
    print('ready', flush=True)
    for line in sys.stdin:
        number, images, seed = json.loads(line)
        print(json.dumps(list(round_of(data_api, number, images, seed))),
              flush=True)


if __name__ == '__main__':
    main(*sys.argv[1:])
