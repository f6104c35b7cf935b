"""The cluster's certificate authority: a key in the state folder, made by whichever part comes first.

Whoever can read the key can be any part of the cluster. So it is kept as ssh keeps keys: for one user alone.
"""

from __future__ import annotations

import fcntl
import os
import time
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from headrace.errors import UserError
from headrace.lock import private_folder
from headrace.process import write_atomic
from headrace.rpc import certificates
from headrace.rpc.roles import Role


def authority_dir(state_dir: Path) -> Path:
    return state_dir / "authority"


def has_authority(state_dir: Path) -> bool:
    """Whether the state folder has an authority, as far as this user can see."""
    return os.access(authority_dir(state_dir) / "ca.pem", os.F_OK)


@dataclass(frozen=True, slots=True)
class Authority:
    folder: Path
    pem: bytes  # its certificate
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @staticmethod
    def open(state_dir: Path) -> Authority:
        """That of the state folder; it is made if there is none. UserError if it cannot be used as it should."""
        folder = authority_dir(state_dir)
        try:
            private_folder(state_dir)
            private_folder(folder)
            if not (folder / "ca.pem").exists():
                _make(folder)
            return _load(folder)
        except OSError as e:
            raise UserError(
                f"Cannot use the certificate authority in {folder}: {e.strerror}. It belongs to the user that runs the"
                " head; run this as that user, or choose another folder with --state_dir."
            ) from e

    @property
    def fingerprint(self) -> str:
        return certificates.fingerprint(self.certificate)

    def issue(self, public_key: ec.EllipticCurvePublicKey, role: Role, name: str, life_s: float) -> bytes:
        """A certificate (PEM) from now on."""
        return certificates.sign(
            public_key, role, name, authority=self.certificate, key=self.key, now=time.time(), life_s=life_s
        )


def _make(folder: Path) -> None:
    """Make key and certificate, unless another process does so at this moment: then wait for it."""
    fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        if not (folder / "ca.pem").exists():
            key = certificates.new_key()
            # The key first: a certificate that is there says that all is.
            write_atomic(folder / "ca.key", certificates.key_pem(key).decode(), mode=0o600)
            write_atomic(folder / "ca.pem", certificates.new_authority(key, time.time()).decode(), mode=0o600)
    finally:
        os.close(fd)


def _load(folder: Path) -> Authority:
    path = folder / "ca.key"
    for seen in (folder, path):
        stat = seen.stat()
        if stat.st_mode & 0o077:
            raise UserError(
                f"{seen} can be read by others, who could then command this cluster: run chmod -R go= {folder}; if"
                " somebody may have had it, remove that folder and have every machine join again."
            )
        if stat.st_uid not in (os.geteuid(), 0):
            raise UserError(f"{seen} belongs to another user: run this as the user that runs the head.")
    pem = (folder / "ca.pem").read_bytes()
    try:
        key, certificate = certificates.load_key(path.read_bytes()), x509.load_pem_x509_certificate(pem)
        if certificate.public_key() != key.public_key():
            raise ValueError("they do not belong together")
    except ValueError as e:
        raise UserError(
            f"The certificate authority in {folder} is damaged ({e}): restore ca.pem and ca.key from a backup, or"
            " remove the folder and have every machine join again."
        ) from e
    return Authority(folder, pem, certificate, key)
