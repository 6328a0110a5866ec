"""Certificates for tests, and a client that takes any of them.

Owns how one is made and which one was shown. Never checks a signature.
"""

from __future__ import annotations

import asyncio
import datetime
import ssl
import warnings

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from trident_gateway.settings import TlsSettings


def write_certificate(files: TlsSettings, name: str, *, is_elliptic: bool = False, days: int = 1) -> None:
    """Write a certificate that its own key has signed."""
    key = ec.generate_private_key(ec.SECP256R1()) if is_elliptic else rsa.generate_private_key(65537, 2048)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=days))
        .sign(key, hashes.SHA256())
    )
    files.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def trusting(maximum: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """Return the context of a client that speaks no later version than this one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if maximum is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
            context.maximum_version = maximum
        context.set_ciphers("ALL:@SECLEVEL=0")
    return context


def name_of(writer: asyncio.StreamWriter) -> str:
    """Return the name on the certificate that a connection was shown."""
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    (attribute,) = x509.load_der_x509_certificate(shown).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(attribute.value)
