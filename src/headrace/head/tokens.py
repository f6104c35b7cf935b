"""Tokens to join with, and who has joined: files in the authority's folder, which only the head's user can read.

A token is kept as its SHA-256. `headrace token` writes it, the head redeems it.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from headrace.errors import Forbidden, NotFound, Unauthorized
from headrace.lock import private_folder
from headrace.process import write_atomic
from headrace.rpc.authority import authority_dir
from headrace.rpc.roles import Role


@dataclass(frozen=True, slots=True)
class Token:
    """`name`: the one that it is for; "": any that nobody has. `uses`: by so many keys; 0: by any number."""

    role: str
    name: str
    ends_at: float
    uses: int = 1
    used_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Member:
    """Who has joined. `key`: fingerprint of its newest certificate's key."""

    role: str
    name: str
    key: str
    joined_at: float
    ends_at: float


class Tokens:
    def __init__(self, state_dir: Path) -> None:
        self._tokens = authority_dir(state_dir) / "tokens"
        self._members = authority_dir(state_dir) / "members"

    def make(self, role: Role, name: str, life_s: float, uses: int) -> str:
        """A new token's text. OSError if it cannot be written."""
        for key, token in self.tokens():
            if token.ends_at < time.time():
                self._path(key).unlink(missing_ok=True)
        text = secrets.token_hex(16)
        private_folder(self._tokens)
        self._write(_digest(text), Token(role, name, time.time() + life_s, uses))
        return text

    def tokens(self) -> Iterator[tuple[str, Token]]:
        """Those that there are, each with its id, also those that have ended."""
        for path in sorted(self._tokens.glob("*.json")):
            if (token := self._token(path.stem)) is not None:
                yield path.stem, token

    def check(self, text: str, role: str, name: str, key: str) -> Token:
        """The token, if it lets this key join so. Unauthorized or Forbidden, in one sentence, if it does not."""
        token = self._token(_digest(text))
        if token is None or token.ends_at < time.time():
            raise Unauthorized("This token is not valid, or its time is over: run `headrace token` at the head again.")
        if token.role != role:
            raise Forbidden(
                f"This token is for the role {token.role}, not for {role[:20]!r}: see `headrace token --help`."
            )
        if token.name and token.name != name:
            raise Forbidden(f"This token is for {token.role} {token.name}, not for {name[:100]!r}.")
        if token.uses and key not in token.used_by and len(token.used_by) >= token.uses:
            raise Unauthorized("This token has been used: run `headrace token` at the head again.")
        return token

    def used(self, text: str, token: Token, member: Member) -> None:
        """Write down that somebody has joined. OSError if that cannot be done."""
        private_folder(self._members)
        self.put(member)
        self._write(_digest(text), replace(token, used_by=tuple({*token.used_by, member.key})))

    def members(self) -> Iterator[Member]:
        for path in sorted(self._members.glob("*.json")):
            if (found := _read(path)) is not None:
                yield Member(**found)

    def member(self, role: str, name: str) -> Member | None:
        found = _read(self._member(role, name))
        return Member(**found) if found else None

    def put(self, member: Member) -> None:
        write_atomic(self._member(member.role, member.name), json.dumps(asdict(member)), mode=0o600)

    def revoke(self, what: str) -> str:
        """Take back a token, by the beginning of its id, or a member, by (role and) name; what that was.

        NotFound if there is neither, or more than one.
        """
        found = [self._path(key) for key, _ in self.tokens() if what and key.startswith(what)]
        found += [self._member(m.role, m.name) for m in self.members() if what in (f"{m.role}/{m.name}", m.name)]
        if len(found) != 1:
            raise NotFound(f"There is {'no' if not found else 'more than one'} token or member {what[:100]!r}.")
        found[0].unlink(missing_ok=True)
        return "token" if found[0].parent == self._tokens else "member"

    def _token(self, key: str) -> Token | None:
        found = _read(self._path(key))
        return replace(Token(**found), used_by=tuple(found["used_by"])) if found else None

    def _write(self, key: str, token: Token) -> None:
        write_atomic(self._path(key), json.dumps(asdict(token)), mode=0o600)

    def _path(self, key: str) -> Path:
        return self._tokens / f"{key}.json"

    def _member(self, role: str, name: str) -> Path:
        return self._members / f"{role}-{quote(name, safe='')}.json"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
