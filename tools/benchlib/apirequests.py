# SPDX-License-Identifier: Apache-2.0
"""Every kind of request of Glance's API that touches metadata."""

import http.client
import json
import random
import time
from urllib.parse import urlsplit

from benchlib import population


class Client:
    """One connection to one glance-api."""

    def __init__(self, endpoint):
        self._connection = http.client.HTTPConnection(
            urlsplit(endpoint).netloc, timeout=60)

    def __call__(self, method, path, document=None, user=None,
                 content='application/json'):
        body = None if document is None else json.dumps(document)
        headers = {'Content-Type': content}
        if user is not None:
            headers['X-Auth-Token'] = f'u:{user}:member'
        began = time.perf_counter_ns()
        self._connection.request(method, path, body, headers)
        answer = self._connection.getresponse()
        text = answer.read()
        took = time.perf_counter_ns() - began
        if answer.status >= 300:
            raise RuntimeError(f'{method} {path}: {answer.status} '
                               f'{text[:300]!r}')
        return took, json.loads(text) if text else None


PATCH = 'application/openstack-images-v2.1-json-patch'


def requests(client, number, images, seed):
    """Yield (kind, nanoseconds) of one round of requests.

    :param number: of the round: every backend makes the same requests
    :param images: how many images there are
    """
    rng = random.Random(f'{seed}/{number}')
    known = population.image_id(rng.randrange(images))
    project = rng.choice(population.PROJECTS)
    path = f'/v2/images/{known}'

    took, made = client('POST', '/v2/images', {
        'name': f'new-{number}', 'disk_format': 'raw',
        'container_format': 'bare', 'visibility': 'shared',
        'os_distro': 'new'})
    yield 'image create', took
    fresh = f'/v2/images/{made["id"]}'
    yield 'image show', client('GET', path)[0]
    yield 'image update', client('PATCH', fresh, [
        {'op': 'replace', 'path': '/name', 'value': f'newer-{number}'},
        {'op': 'add', 'path': '/note', 'value': 'x'}], content=PATCH)[0]
    yield 'tag add', client('PUT', f'{fresh}/tags/t')[0]
    yield 'tag delete', client('DELETE', f'{fresh}/tags/t')[0]
    yield 'member add', client('POST', f'{fresh}/members',
                               {'member': project})[0]
    yield 'member show', client('GET', f'{fresh}/members/{project}')[0]
    yield 'member list', client('GET', f'{fresh}/members')[0]
    yield 'member update', client('PUT', f'{fresh}/members/{project}',
                                  {'status': 'accepted'}, user=project)[0]
    yield 'member delete', client('DELETE', f'{fresh}/members/{project}')[0]
    yield 'image delete', client('DELETE', fresh)[0]

    lists = {
        'list': '',
        'list by name, sorted': '&sort=name:asc',
        'list by size, descending': '&sort=size:desc',
        'list next page': f'&marker={known}',
        'list, name =': f'&name=image-{rng.randrange(images)}',
        'list, property =': f'&os_distro={rng.choice(population.DISTROS)}',
        'list, tag =': f'&tag=tag-{rng.randrange(200)}',
        'list, visibility and status': '&visibility=public&status=active',
        'list, size >=': f'&size_min={(1 << 34) - (1 << 24)}',
        'list, two filters': f'&os_distro={rng.choice(population.DISTROS)}'
                             f'&disk_format=raw&sort=created_at:asc',
        'list, nothing matches': '&name=nosuch'}
    for kind, query in lists.items():
        yield kind, client('GET', f'/v2/images?limit=25{query}')[0]
    yield 'list as a project', client('GET', '/v2/images?limit=25',
                                      user=project)[0]
    yield 'list own private', client(
        'GET', '/v2/images?limit=25&visibility=private&sort=name:asc',
        user=project)[0]

    space = f'Bench{number}'
    yield 'namespace create', client('POST', '/v2/metadefs/namespaces', {
        'namespace': space, 'visibility': 'public'})[0]
    at = f'/v2/metadefs/namespaces/{space}'
    yield 'object create', client('POST', f'{at}/objects', {
        'name': 'o', 'properties': {'p': {'title': 'P', 'type': 'string'}},
    })[0]
    yield 'namespace show', client('GET', at)[0]
    yield 'object list', client('GET', f'{at}/objects')[0]
    yield 'namespace list', client('GET', '/v2/metadefs/namespaces')[0]
    yield 'namespace update', client('PUT', at, {
        'namespace': space, 'description': 'd', 'visibility': 'public'})[0]
    yield 'namespace delete', client('DELETE', at)[0]
