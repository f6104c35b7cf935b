"""What browsers say of the pages that ask."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.origins import foreign, is_local, name_of, same_origin, unusable, valid_host


@pytest.mark.parametrize(
    ("value", "right"),
    [
        (b"localhost", True),
        (b"localhost:8000", True),
        (b"LOCALHOST.:80", True),
        (b"my_service.internal:1", True),
        (b"[::1]:8000", True),
        (b"127.0.0.1", True),
        (b"", False),
        (b"a b", False),
        (b"a/b", False),
        (b"user@a", False),
        (b"a:b", False),
        (b"a:1:2", False),
        (b"::1", False),
        (b"[::1", False),
        (b"a\xff", False),
        (b"a,b", True),  # a sub-delimiter, as RFC 3986 has it
        (b"x" * 256, False),
    ],
)
def test_hosts(value: bytes, right: bool) -> None:
    assert valid_host(value) is right


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("localhost:8000", True),
        ("LocalHost.", True),
        ("127.0.0.1:1", True),
        ("127.9.9.9", True),
        ("[::1]:8000", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("10.0.0.1", False),
        ("0.0.0.0", False),
        ("[::ffff:10.0.0.1]", False),
        ("2130706433", False),
    ],
)
def test_which_names_are_the_machine_itself(host: str, local: bool) -> None:
    assert is_local(name_of(host)) is local


@pytest.mark.parametrize(
    ("origin", "host", "same"),
    [
        ("http://localhost:8000", "localhost:8000", True),
        ("http://LOCALHOST:8000", "localhost:8000", True),
        ("https://llm.example", "llm.example", True),
        ("https://llm.example", "llm.example:443", True),
        ("http://[::1]:8000", "[::1]:8000", True),
        ("http://localhost:3000", "localhost:8000", False),
        ("http://localhost", "localhost:8000", False),
        ("http://evil.example", "localhost", False),
        ("null", "null", False),
        ("file://localhost", "localhost", False),
        ("chrome-extension://localhost", "localhost", False),
        ("", "", False),
    ],
)
def test_a_page_of_the_server_itself(origin: str, host: str, same: bool) -> None:
    assert same_origin(origin, host) is same


@pytest.mark.parametrize(
    ("origin", "site", "allowed", "refused"),
    [
        (None, None, (), False),  # no browser
        (None, "none", (), False),  # what its user typed
        (None, "same-origin", (), False),
        (None, "cross-site", (), True),
        (None, "same-site", (), True),
        ("http://evil.example", None, (), True),
        ("null", None, (), True),
        ("http://evil.example", "same-origin", (), True),
        ("http://a.example", "cross-site", ("http://a.example",), False),
        ("http://a.example:1", "cross-site", ("http://a.example",), True),
        ("http://evil.example", "cross-site", ("*",), False),
        ("http://localhost:8000", "same-origin", (), False),
    ],
)
def test_who_is_foreign(origin: str | None, site: str | None, allowed: tuple[str, ...], refused: bool) -> None:
    assert foreign(origin, site, "localhost:8000", allowed) is refused


def test_origins_that_cannot_be() -> None:
    assert unusable(["http://a.example", "http://b:3000", "app://x"], keys=False) == ""
    assert "--api_keys_file" in unusable(["*"], keys=False)
    assert unusable(["*"], keys=True) == ""
    for wrong in ("a.example", "http://a.example/", "http://a b", "", "http://"):
        assert "is no origin" in unusable([wrong], keys=True)


@given(st.text(max_size=40), st.text(max_size=40))
def test_nothing_that_a_header_holds_is_an_error(origin: str, host: str) -> None:
    name_of(host)
    is_local(name_of(host))
    same_origin(origin, host)
    foreign(origin, host, host, [origin[:3]])
