# SPDX-License-Identifier: Apache-2.0
"""TLS with client certificates, and servers that do not fit, as operators
see them. On a PostgreSQL that demands certificates (tests/cockroach.py)."""

import datetime
import ipaddress
import os
import shutil
import signal

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy.engine import make_url

from tests import cockroach
from tests.functional.test_cockroachdb_schema import configuration, run

_DAY = datetime.timedelta(days=1)


class Authority:
    """Signs certificates, as ``cockroach cert`` does."""

    def __init__(self, folder):
        self._folder = folder
        folder.mkdir()
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(
            x509.NameOID.COMMON_NAME, 'authority')])
        self._write('ca', self._signed(
            self._name, self._key, x509.BasicConstraints(True, None)))

    def _signed(self, name, key, *extensions):
        now = datetime.datetime.now(datetime.UTC)
        made = (x509.CertificateBuilder().subject_name(name)
                .issuer_name(self._name).public_key(key.public_key())
                .serial_number(x509.random_serial_number())
                .not_valid_before(now - _DAY).not_valid_after(now + _DAY))
        for extension in extensions:
            made = made.add_extension(extension, critical=False)
        return made.sign(self._key, hashes.SHA256())

    def _write(self, name, certificate, key=None):
        (self._folder / f'{name}.crt').write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM))
        if key is not None:
            path = self._folder / f'{name}.key'
            path.write_bytes(key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption()))
            path.chmod(0o600)

    def issue(self, name, address='127.0.0.1'):
        """Write the certificate and key of a name; return their path."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME,
                                                name)])
        self._write(name, self._signed(
            subject, key, x509.SubjectAlternativeName([x509.IPAddress(
                ipaddress.ip_address(address))])), key)
        return self._folder / name

    @property
    def certificate(self):
        return self._folder / 'ca.crt'


@pytest.fixture(scope='module')
def keys(tmp_path_factory):
    made = Authority(tmp_path_factory.mktemp('keys') / 'ours')
    for name in ('node', 'root'):
        made.issue(name)
    return made


@pytest.fixture(scope='module')
def guarded(keys):
    """The URL of a database that takes certificates only."""
    made = cockroach.PostgreSQL()
    try:
        url = make_url(cockroach.plain(made.database()))
        for name, mode in (('node.crt', 0o644), ('node.key', 0o600)):
            target = made._data / name
            shutil.copy(keys.certificate.with_name(name), target)
            target.chmod(mode)
            if os.getuid() == 0:
                shutil.chown(target, 'postgres', 'postgres')
        shutil.copy(keys.certificate, made._data / 'ca.crt')
        (made._data / 'ca.crt').chmod(0o644)
        with open(made._data / 'postgresql.auto.conf', 'a') as file:
            file.write("ssl = on\nssl_cert_file = 'node.crt'\n"
                       "ssl_key_file = 'node.key'\nssl_ca_file = 'ca.crt'\n")
        (made._data / 'pg_hba.conf').write_text(
            'hostssl all all all cert\n')
        made._process.send_signal(signal.SIGHUP)
        yield url
    finally:
        made.stop()


def with_files(url, **files):
    return url.update_query_dict({
        'sslmode': 'verify-full', **{name: str(path)
                                     for name, path in files.items()}})


def said(tmp_path, url):
    """Return (code, output) of a check; its trouble must be one line."""
    done = run('glance-geo', configuration(
        tmp_path, url.render_as_string(hide_password=False)), 'db', 'check')
    assert len(done.stderr.strip().splitlines()) <= 1, done.stderr
    return done.returncode, done.stdout + done.stderr


def test_p7_a_client_certificate_lets_in(tmp_path, guarded, keys):
    its = keys.certificate.with_name('root')
    code, text = said(tmp_path, with_files(
        guarded, sslrootcert=keys.certificate, sslcert=f'{its}.crt',
        sslkey=f'{its}.key'))
    assert code == 2 and 'db sync' in text


def test_p7_without_one_nobody_gets_in(tmp_path, guarded, keys):
    code, text = said(tmp_path, with_files(
        guarded, sslrootcert=keys.certificate))
    assert code == 1 and 'certificate' in text


def test_p7_anothers_certificate_does_not_do(tmp_path, guarded, keys):
    other = Authority(tmp_path / 'theirs').issue('root')
    code, text = said(tmp_path, with_files(
        guarded, sslrootcert=keys.certificate, sslcert=f'{other}.crt',
        sslkey=f'{other}.key'))
    assert code == 1 and 'sslcert' in text


def test_p7_a_server_of_another_authority_is_refused(tmp_path, guarded,
                                                     keys):
    other = Authority(tmp_path / 'theirs')
    its = keys.certificate.with_name('root')
    code, text = said(tmp_path, with_files(
        guarded, sslrootcert=other.certificate, sslcert=f'{its}.crt',
        sslkey=f'{its}.key'))
    assert code == 1 and 'check sslrootcert' in text


def test_servers_that_do_not_fit_are_said_in_one_line(tmp_path):
    for version, why in (('CockroachDB CCL v21.2.4 (x86_64)', 'too old'),
                         ('PostgreSQL 15.4 on x86_64, compiled', 'is no')):
        server = cockroach.PostgreSQL()
        try:
            url = make_url(server.database())
            server.execute(url.database, f"""
                CREATE OR REPLACE FUNCTION crdb.version() RETURNS text
                LANGUAGE sql IMMUTABLE AS $$ SELECT '{version}' $$""")
            code, text = said(tmp_path, url)
            assert code == 1 and why in text
        finally:
            server.stop()
