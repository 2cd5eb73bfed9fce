# SPDX-License-Identifier: Apache-2.0
"""Real sites for tests: the lab, and a plain client of Glance's API."""

import json
import subprocess
import sys
import time
from pathlib import Path

import httpx

TOOLS = Path(__file__).resolve().parents[2] / 'tools'
sys.path.insert(0, str(TOOLS))

from geolab.lab import Lab  # noqa: E402, F401
from geolab.layout import Stores  # noqa: E402, F401
from geolab.processes import LabError  # noqa: E402, F401


def wait(condition, seconds=30, what='not in time'):
    """Return the condition's first true value."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


class Client:
    """A user of one site, by its HTTP API."""

    def __init__(self, lab, site, token='alice:demo:member'):
        self.lab, self.site = lab, site
        self.http = httpx.Client(
            base_url=lab.sites[site]['endpoint'], timeout=120,
            trust_env=False, headers={'X-Auth-Token': token})

    def create(self, name='x', data=None, status=201, **values):
        answer = self.http.post('/v2/images', json={
            'name': name, 'disk_format': 'raw', 'container_format': 'bare',
            **values})
        assert answer.status_code == status, answer.text
        if status != 201:
            return answer
        image = answer.json()['id']
        if data is not None:
            answer = self.upload(image, data)
            assert answer.status_code == 204, answer.text
        return image

    def upload(self, image, data, **headers):
        return self.http.put(
            f'/v2/images/{image}/file', content=data,
            headers={'Content-Type': 'application/octet-stream', **headers})

    def show(self, image):
        answer = self.http.get(f'/v2/images/{image}')
        return answer.json() if answer.status_code == 200 else None

    def listed(self, **query):
        answer = self.http.get('/v2/images', params=query)
        assert answer.status_code == 200, answer.text
        images = answer.json()['images']
        for image in images:
            image['tags'].sort()
            # What another store of one site holds is that site's own.
            for name in ('locations', 'stores', 'direct_url'):
                image.pop(name, None)
        return {image['id']: image for image in images}

    def read(self, image, **headers):
        return self.http.get(f'/v2/images/{image}/file', headers=headers)

    def patch(self, image, *operations):
        return self.http.patch(
            f'/v2/images/{image}', content=json.dumps(operations),
            headers={'Content-Type':
                     'application/openstack-images-v2.1-json-patch'})

    def set(self, image, **values):
        answer = self.patch(image, *(
            {'op': 'add', 'path': f'/{name}', 'value': value}
            for name, value in values.items()))
        assert answer.status_code == 200, answer.text

    def delete(self, image):
        return self.http.delete(f'/v2/images/{image}')

    def wait_active(self, image):
        return wait(lambda: (self.show(image) or {}).get('status')
                    == 'active')


def openstack(lab, site, *arguments, stdin=None, check=True):
    """Run the real openstack client at a site; return its output."""
    return command(lab, site, 'openstack', *arguments, stdin=stdin,
                   check=check)


def command(lab, site, *arguments, stdin=None, check=True):
    argv, environment = lab.command(site, arguments)
    done = subprocess.run(argv, env=environment, capture_output=True,
                          text=True, stdin=stdin or subprocess.DEVNULL)
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
    return done
