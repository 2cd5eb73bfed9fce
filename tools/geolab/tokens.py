# SPDX-License-Identifier: Apache-2.0
"""A paste filter that takes the place of Keystone in the lab.

The token *is* the identity: ``user:project:role``. Without a token the caller
is ``admin:demo:admin``, so that ``openstack --os-auth-type none`` works. It
authenticates nobody: never use it outside the lab.
"""

import hashlib
import uuid

_IMPLIED = {'admin': 'admin,manager,member,reader',
            'manager': 'manager,member,reader',
            'member': 'member,reader', 'reader': 'reader',
            'service': 'service'}
_NONE = 'notused'    # what clients send with --os-auth-type none
_NAMESPACE = uuid.UUID('6a3b9f0e-57d8-4f5c-9d0e-1f3d5c7b9a11')


def project_id(name):
    """Return the id of a project: its name, if that is an id already."""
    try:
        return uuid.UUID(name).hex
    except ValueError:
        return uuid.uuid5(_NAMESPACE, name).hex


class LabToken:
    def __init__(self, app):
        self.app = app

    def __call__(self, environ, start_response):
        token = environ.get('HTTP_X_AUTH_TOKEN') or _NONE
        if token == _NONE:
            token = 'admin:demo:admin'
        user, _, rest = token.partition(':')
        project, _, role = rest.partition(':')
        if not user or not project or role not in _IMPLIED:
            start_response('401 Unauthorized',
                           [('Content-Type', 'text/plain')])
            return [b'lab tokens are user:project:role with role one of '
                    b'admin, manager, member, reader, service\n']
        environ.update({
            'HTTP_X_IDENTITY_STATUS': 'Confirmed',
            'HTTP_X_AUTH_TOKEN': token,
            'HTTP_X_USER_ID': hashlib.md5(
                user.encode(), usedforsecurity=False).hexdigest(),
            'HTTP_X_USER_NAME': user,
            'HTTP_X_PROJECT_ID': project_id(project),
            'HTTP_X_PROJECT_NAME': project,
            'HTTP_X_TENANT_ID': project_id(project),
            'HTTP_X_ROLES': _IMPLIED[role],
            'HTTP_X_DOMAIN_ID': ''})
        return self.app(environ, start_response)


def filter_factory(global_conf, **local_conf):
    return LabToken
