"""X.509 as Headrace uses it: an authority's certificate, and those of parts that it signs. Times are Unix times."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from headrace.errors import InvalidRequest
from headrace.rpc.roles import JOIN_NAME, Role, uri_of

AUTHORITY_S = 10 * 365 * 86400.0
SKEW_S = 600.0  # clocks of machines differ
_AUTHORITY_SKEW_S = 365 * 86400.0  # one that is made before the clock is set must hold afterwards
_SERVERS = (Role.HEAD, Role.NODE)
_MAX_CSR_BYTES = 8192


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """ValueError if `pem` is no private key of an elliptic curve."""
    key = serialization.load_pem_private_key(pem, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("not an ECDSA key")
    return key


def new_authority(key: ec.EllipticCurvePrivateKey, now: float) -> bytes:
    """A certificate (PEM) that may sign others, and with which the join port answers."""
    # Its own name: an authority that takes another's place must not be mistaken for it.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Headrace {x509.random_serial_number():040x}"[:48])])
    usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    builder = (
        _builder(key.public_key(), name, now, AUTHORITY_S, _AUTHORITY_SKEW_S)
        .issuer_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(JOIN_NAME)]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def request_for(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A signing request (PEM). It names nobody: the signer decides whom the certificate names."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def requested_key(request: bytes) -> ec.EllipticCurvePublicKey:
    """The key of a signing request whose sender has shown to hold it. InvalidRequest for anything else."""
    try:
        if len(request) > _MAX_CSR_BYTES:
            raise ValueError("too long")
        csr = x509.load_pem_x509_csr(request)
        key = csr.public_key()
        if csr.is_signature_valid and isinstance(key, ec.EllipticCurvePublicKey):
            return key
    except (ValueError, InvalidSignature, UnsupportedAlgorithm):
        pass
    raise InvalidRequest("This is no certificate signing request with an ECDSA key.")


def sign(
    public_key: ec.EllipticCurvePublicKey,
    role: Role,
    name: str,
    *,
    authority: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    now: float,
    life_s: float,
) -> bytes:
    """A certificate (PEM) for `role` and its holder's `name`, good for `life_s` from `now`."""
    purposes = [ExtendedKeyUsageOID.CLIENT_AUTH] + ([ExtendedKeyUsageOID.SERVER_AUTH] if role in _SERVERS else [])
    names = [x509.DNSName(role.dns_name), x509.UniformResourceIdentifier(uri_of(role, name))]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Headrace {role}")])
    builder = (
        _builder(public_key, subject, now, life_s)
        .issuer_name(authority.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(True, False, False, False, False, False, False, False, False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _builder(
    public_key: ec.EllipticCurvePublicKey, subject: x509.Name, now: float, life_s: float, skew_s: float = SKEW_S
) -> x509.CertificateBuilder:
    begin = datetime.fromtimestamp(now - skew_s, UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(seconds=skew_s + life_s))
    )


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of a certificate, in hex."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def fingerprint_of(pem: bytes) -> str:
    """SHA-256 of a certificate in PEM, in hex. ValueError if it is none."""
    return fingerprint(x509.load_pem_x509_certificate(pem))


def key_fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """SHA-256 of a public key, in hex."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    digest = hashes.Hash(hashes.SHA256())
    digest.update(der)
    return digest.finalize().hex()


def ends_at(pem: bytes) -> float:
    """When a certificate ends. ValueError if it is none."""
    return x509.load_pem_x509_certificate(pem).not_valid_after_utc.timestamp()


def life(pem: bytes) -> tuple[float, float]:
    """From when a certificate counts, leaving out what makes up for clocks, and when it ends."""
    certificate = x509.load_pem_x509_certificate(pem)
    return certificate.not_valid_before_utc.timestamp() + SKEW_S, certificate.not_valid_after_utc.timestamp()


def belongs(pem: bytes, authority: bytes) -> bool:
    """Whether the authority's certificate has signed this one. ValueError if either is none."""
    certificate, ca = x509.load_pem_x509_certificate(pem), x509.load_pem_x509_certificate(authority)
    try:
        certificate.verify_directly_issued_by(ca)
        return True
    except (ValueError, TypeError, InvalidSignature):
        return False
