"""What gRPC says of a TLS handshake that failed, as a sentence that says what to do."""

from __future__ import annotations

import re
from urllib.parse import unquote

# What the details of UNAVAILABLE hold → what is wrong with the peer's side, as the end of a sentence.
_SAID = (
    ("Hostname Verification Check failed", "{peer} has a certificate that does not name {expected}{name}"),
    ("certificate has expired", "the certificate of {peer} has ended, or this machine's clock is wrong"),
    ("certificate is not yet valid", "the certificate of {peer} is not valid yet; compare the machines' clocks"),
    ("WRONG_VERSION_NUMBER", "{peer} does not speak TLS: something else listens there, or an older version"),
    ("unsupported certificate purpose", "the certificate of {peer} is not one of a server"),
    ("local issuer certificate", "{peer} has a certificate from another authority than this one's. {join}"),
    ("self signed", "{peer} has a certificate from another authority than this one's. {join}"),
    ("self-signed", "{peer} has a certificate from another authority than this one's. {join}"),
    ("certificate signature failure", "{peer} has a certificate from another authority than this one's. {join}"),
    ("CERTIFICATE_VERIFY_FAILED", "the certificate of {peer} does not hold"),
    ("missing selected ALPN", "{peer} speaks TLS, but no gRPC: something else listens there"),
)
_NEVER_CONNECTED = "failed to connect to all addresses"
_JOIN = "To join that cluster, run `headrace token` there and give its line here; for one's own, give its --state_dir"


def told(details: str, peer: str, expected: str) -> str:
    """A sentence, if `details` tells of a handshake that failed; else "". `expected`: the name that was looked for."""
    if _NEVER_CONNECTED not in details:
        return ""
    found = next((text for mark, text in _SAID if mark in details), "")
    if not found and ("Tls handshake failed" in details or "SSL_ERROR" in details):
        found = "{peer} and this process do not agree on it"
    if not found and ("Socket closed" in details or "Handshake read failed" in details):
        # So a server ends it that does not like our certificate; or it has just died.
        found = "{peer} broke it off: it may not take this certificate ({mine})"
    mine = "has it ended, or is it from another authority?"
    # An address was dialled, so the certificates are the user's own.
    name = "" if expected else "; give the name that it has with --tls_name"
    said = found.format(peer=peer, expected=expected or _host(details), name=name, join=_JOIN, mine=mine)
    return f"TLS failed: {said}." if found else ""


def _host(details: str) -> str:
    """The address that was dialled last: "… last error: UNKNOWN: ipv4:127.0.0.1:80: …"."""
    found = re.search(r"ipv[46]:(.+?):\d+: ", unquote(details))
    return found[1] if found else "it"
