# SPDX-License-Identifier: Apache-2.0
"""Keys and certificates: who a node is, and how others know (P7).

An authority that the operator holds signs one certificate per node. The
node's site and name are in it as the URI ``glance-geo://<site>/<node>``;
nothing that a node says of itself outside its certificate counts.
"""

import datetime
import ipaddress
import os
import secrets
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from glance_geo.core import errors

SCHEME = 'glance-geo'
_CA_YEARS = 20
_NODE_YEARS = 2


def _write(path: Path, data: bytes, mode: int) -> None:
    """Write a new file that others never see half-written or readable."""
    temporary = path.with_name(f'.{path.name}.{os.getpid()}')
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL,
                         mode)
    with os.fdopen(descriptor, 'wb') as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def _key_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption())


def _builder(subject: str, issuer: x509.Name, key: Any, years: int,
             ) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (x509.CertificateBuilder()
            .subject_name(x509.Name([
                x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
            .issuer_name(issuer).public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            # Sites' clocks may be behind: valid from a day ago.
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=365 * years)))


def create_authority(folder: Path) -> None:
    """Make the operator's authority and the sites' location key.

    :raises ConfigurationInvalid: there is one in the folder already
    """
    if (folder / 'ca.key').exists():
        raise errors.ConfigurationInvalid(
            f'{folder} holds an authority already; it is not replaced')
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME,
                                         'glance-geo authority')])
    certificate = (
        _builder('glance-geo authority', name, key, _CA_YEARS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .add_extension(x509.KeyUsage(
            digital_signature=False, content_commitment=False,
            key_encipherment=False, data_encipherment=False,
            key_agreement=False, key_cert_sign=True, crl_sign=True,
            encipher_only=False, decipher_only=False), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(
            key.public_key()), False)
        .sign(key, hashes.SHA256()))
    _write(folder / 'location.keys',
           f'k1 {secrets.token_hex(32)}\n'.encode(), 0o600)
    _write(folder / 'ca.crt',
           certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    _write(folder / 'ca.key', _key_bytes(key), 0o600)


def create_node(authority: Path, folder: Path, site: str, node: str,
                addresses: Sequence[str], overwrite: bool = False) -> None:
    """Make a node's key and certificate, and copy what all nodes share.

    :param addresses: host names and IP addresses at which others reach it
    :raises ConfigurationInvalid: no authority there, or keys here already
    """
    try:
        ca = x509.load_pem_x509_certificate(
            (authority / 'ca.crt').read_bytes())
        ca_key: Any = serialization.load_pem_private_key(
            (authority / 'ca.key').read_bytes(), None)
        location_keys = (authority / 'location.keys').read_bytes()
    except (OSError, ValueError) as error:
        raise errors.ConfigurationInvalid(
            f'{authority} holds no usable authority ({error}); make one '
            f'with "glance-geo ca init"') from error
    if (folder / 'site.key').exists() and not overwrite:
        raise errors.ConfigurationInvalid(
            f'{folder} holds keys already; --overwrite replaces them')
    folder.mkdir(mode=0o750, parents=True, exist_ok=True)
    names: list[x509.GeneralName] = [
        x509.UniformResourceIdentifier(f'{SCHEME}://{site}/{node}')]
    for address in addresses:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(address)))
        except ValueError:
            names.append(x509.DNSName(address))
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _builder(f'{site}/{node}', ca.subject, key, _NODE_YEARS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None),
                       True)
        .add_extension(x509.SubjectAlternativeName(names), False)
        .add_extension(x509.ExtendedKeyUsage(
            [ExtendedKeyUsageOID.SERVER_AUTH,
             ExtendedKeyUsageOID.CLIENT_AUTH]), False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(
                ca_key.public_key()), False)
        .sign(ca_key, hashes.SHA256()))
    _write(folder / 'ca.crt', ca.public_bytes(serialization.Encoding.PEM),
           0o644)
    _write(folder / 'location.keys', location_keys, 0o640)
    _write(folder / 'site.crt',
           certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    _write(folder / 'site.key', _key_bytes(key), 0o640)


def context(purpose: ssl.Purpose, ca_file: str, cert_file: str,
            key_file: str) -> ssl.SSLContext:
    """Return a TLS context that demands and shows a certificate.

    :raises ConfigurationInvalid: a file is missing or does not fit
    """
    for option, path in (('ca_file', ca_file), ('cert_file', cert_file),
                         ('key_file', key_file)):
        if not os.access(path, os.R_OK):
            raise errors.ConfigurationInvalid(
                f'[glance_geo] {option}: {path} can not be read; '
                f'"glance-geo site init" makes it')
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER
                          if purpose is ssl.Purpose.CLIENT_AUTH
                          else ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        made.load_verify_locations(ca_file)
        made.load_cert_chain(cert_file, key_file)
    except (ssl.SSLError, OSError) as error:
        raise errors.ConfigurationInvalid(
            f'[glance_geo] {cert_file}, {key_file}: {error}') from error
    made.verify_mode = ssl.CERT_REQUIRED
    return made


def peer_name(certificate: Mapping[str, Any] | None) -> tuple[str, str]:
    """Return (site, node) of a verified certificate.

    :raises PeerRefused: it names no glance_geo node
    """
    for kind, value in (certificate or {}).get('subjectAltName', ()):
        parts = urlsplit(value) if kind == 'URI' else None
        if parts is not None and parts.scheme == SCHEME:
            return parts.netloc, parts.path.lstrip('/')
    raise errors.PeerRefused('certificate names no glance_geo node')
