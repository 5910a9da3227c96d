"""X.509 as FLARE 2.9 expects it: RSA of 2048 bits, the role in unstructuredName, the name as CN and as SAN.

FLARE signs its tokens and wraps its message keys with these keys and knows no other kind or length
(``nvflare/fuel/f3/cellnet/cell_cipher.py``: 256-byte blocks). Nothing of ours rests on them: they keep
strangers out of the engine.
"""

from __future__ import annotations

import hashlib
import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

ORGANISATION = "cachefl-secure"
_KEY_BITS, _YEARS, _DAY = 2048, 10, timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Pair:
    """A private key and its certificate, both as PEM."""

    key: bytes
    certificate: bytes


def make_key() -> bytes:
    """A new private key as PEM, without a passphrase: FLARE reads it as it is."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=_KEY_BITS)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )


def make_authority(common_name: str) -> Pair:
    """A certificate authority that signs itself."""
    pem = make_key()
    key, name = _private(pem), _name(common_name)
    usage = _usage(digital_signature=True, key_cert_sign=True, crl_sign=True)
    builder = (
        _begin(name, name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
    )
    return Pair(pem, _pem(builder.sign(key, hashes.SHA256())))


def make_request(common_name: str, key: bytes) -> bytes:
    """A certificate request as PEM, signed with the key: proof that whoever asks holds it."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(_name(common_name))
    return builder.sign(_private(key), hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def public_key_of_request(request: bytes) -> rsa.RSAPublicKey:
    """
    Raises:
        ValueError: not a request, not signed with its own key, or a key that FLARE cannot use.
    """
    parsed = x509.load_pem_x509_csr(request)
    key = parsed.public_key()
    if not parsed.is_signature_valid:
        raise ValueError("not signed with its own key")
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size != _KEY_BITS:
        raise ValueError(f"not an RSA key of {_KEY_BITS} bits")
    return key


def certify(authority: Pair, common_name: str, role: str, key: rsa.RSAPublicKey) -> bytes:
    """A certificate for the key, as PEM. Nothing but the key is taken from whoever asked for it."""
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    purposes = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
    builder = (
        _begin(_name(common_name, role), issuer.subject, key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True, key_encipherment=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectAlternativeName([_alternative(common_name)]), critical=False)
    )
    return _pem(builder.sign(_private(authority.key), hashes.SHA256()))


def certified_pair(authority: Pair, common_name: str, role: str) -> Pair:
    """A new key with its certificate, for a process of the coordinator itself."""
    key = make_key()
    return Pair(key, certify(authority, common_name, role, _private(key).public_key()))


def check_certificate(certificate: bytes, authority: bytes, common_name: str, key: bytes) -> None:
    """That this authority certified this key under this name, and that both hold today.

    Raises:
        ValueError: it did not, or one of them has ended.
    """
    for each in (certificate, authority):
        check_dates(each)
    parsed, issuer = map(x509.load_pem_x509_certificate, (certificate, authority))
    try:
        parsed.verify_directly_issued_by(issuer)
    except (InvalidSignature, TypeError):
        raise ValueError("not signed by the authority that comes with it") from None
    if parsed.public_key() != _private(key).public_key():
        raise ValueError("not for the key that was made here")
    if [each.value for each in parsed.subject.get_attributes_for_oid(NameOID.COMMON_NAME)] != [common_name]:
        raise ValueError("for another name")


def check_dates(certificate: bytes) -> None:
    """That the certificate has begun and has not ended, by this machine's clock: what others' TLS will ask, too.

    Raises:
        ValueError: not a certificate, or not now.
    """
    parsed, now = x509.load_pem_x509_certificate(certificate), datetime.now(UTC)
    if now > parsed.not_valid_after_utc:
        raise ValueError(f"ended on {parsed.not_valid_after_utc:%Y-%m-%d} by this machine's clock")
    if now < parsed.not_valid_before_utc:
        raise ValueError(f"begins on {parsed.not_valid_before_utc:%Y-%m-%d} by this machine's clock")


def certificate_fingerprint(certificate: bytes) -> str:
    """SHA-256 of the certificate, 64 hex digits: the same as `openssl x509 -fingerprint -sha256` prints.

    Raises:
        ValueError: not a certificate.
    """
    parsed = x509.load_pem_x509_certificate(certificate)
    return hashlib.sha256(parsed.public_bytes(serialization.Encoding.DER)).hexdigest()


def _begin(subject: x509.Name, issuer: x509.Name, key: rsa.RSAPublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)  # clocks of institutions differ
        .not_valid_after(now + _YEARS * 365 * _DAY)
    )


def _name(common_name: str, role: str | None = None) -> x509.Name:
    attributes = [
        x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANISATION),
    ]
    if role is not None:
        attributes.append(x509.NameAttribute(NameOID.UNSTRUCTURED_NAME, role))
    return x509.Name(attributes)


def _alternative(common_name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(common_name))
    except ValueError:
        return x509.DNSName(common_name)


def _usage(**set_to: bool) -> x509.KeyUsage:
    nothing = dict.fromkeys(
        (
            *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
            *("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
        ),
        False,
    )
    return x509.KeyUsage(**(nothing | set_to))


def _private(pem: bytes) -> rsa.RSAPrivateKey:
    key = serialization.load_pem_private_key(pem, None)
    if not isinstance(key, rsa.RSAPrivateKey):
        raise ValueError("not an RSA key")
    return key


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
