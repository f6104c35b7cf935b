"""What web pages may do through their readers' browsers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from integration.proxy_fixtures import PATIENCE, World, answer, world
from integration.proxy_requests import CHAT, error

from headrace.errors import UserError
from headrace.proxy.app import serving
from headrace.settings import ProxySettings

EVIL = "http://evil.example"
UI = "http://localhost:3000"
POSTS = ("/v1/chat/demo", "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize", "/nothing")


def keys(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text("secret\n")
    file.chmod(0o600)
    return file


async def text(w: World, **headers: str) -> httpx.Response:
    """What a page can have a browser send without asking before."""
    return await w.client.post("/v1/chat/demo", content="hi", headers={"Content-Type": "text/plain"} | headers)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "localhost.evil.example", "10.0.0.1", "127.0.0.1.x"]
)
async def test_a_name_that_somebody_else_gave_us_is_refused(host: str):
    """DNS rebinding: a page of evil.example asks its own origin, whose name now leads here."""
    async with world() as w:
        headers = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
        for path in ("/v1/models", "/metrics", "/docs", "/openapi.json", "/health", "/ready", "/nothing"):
            message = error(await w.client.get(path, headers=headers), 421, code="host_not_allowed")
            assert "--allowed_hosts" in message
        error(await text(w, **headers), 421)
        assert not w.replicas[0].submits


async def test_names_of_this_machine_and_those_that_were_given():
    async with world(settings={"allowed_hosts": ("llm.example",)}) as w:
        for host in ("localhost", "localhost:1", "127.0.0.1:8000", "127.1.2.3", "[::1]:8000", "LLM.example:443"):
            assert (await w.client.get("/v1/models", headers={"Host": host})).status_code == 200
        error(await w.client.get("/v1/models", headers={"Host": "other.example"}), 421)


async def test_keys_make_names_free_unless_some_are_given(tmp_path: Path):
    key = {"Authorization": "Bearer secret"}
    file = keys(tmp_path)
    async with world(settings={"api_keys_file": file}) as w:
        assert (await w.client.get("/v1/models", headers=key | {"Host": "any.example"})).status_code == 200
        # The key is the page's own: no browser adds it for another's.
        assert (await text(w, Origin=EVIL, **key)).status_code == 200
    async with world(settings={"api_keys_file": file, "allowed_hosts": ("llm.example",)}) as w:
        error(await w.client.get("/v1/models", headers=key | {"Host": "any.example"}), 421)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": EVIL},
        {"Origin": "null"},
        {"Origin": UI},  # another port is another page
        {"Origin": EVIL, "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
async def test_a_page_of_another_site_is_refused(headers: dict[str, str]):
    async with world() as w:
        for path in POSTS:
            for kind in ("text/plain", "application/x-www-form-urlencoded", "application/json"):
                r = await w.client.post(path, content="hi", headers={"Content-Type": kind} | headers)
                error(r, 403, code="cross_site")
                assert not any(k.startswith("access-control") for k in r.headers)
        r = await w.client.options("/v1/chat/completions", headers=headers | {"Access-Control-Request-Method": "POST"})
        assert r.status_code in (403, 405)
        assert not any(k.startswith("access-control") for k in r.headers)
        assert not w.replicas[0].submits


async def test_what_is_no_foreign_page_is_let_in():
    async with world() as w:
        for headers in (
            {},
            {"Sec-Fetch-Site": "none"},
            {"Origin": w.url, "Sec-Fetch-Site": "same-origin"},
            {"Origin": w.url.replace("http:", "https:")},  # TLS ends before us
        ):
            r = await text(w, **headers)
            assert (r.status_code, r.text) == (200, answer(8))
        # A link from another page to ours changes nothing here, and its page cannot read it.
        r = await w.client.get("/docs", headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"})
        assert r.status_code == 200
        error(await w.client.options("/v1/chat/completions"), 405)


async def test_a_page_that_may_can_do_all_that_a_client_can(tmp_path: Path):
    async with world(settings={"cors_origins": (UI,), "max_body_bytes": 1000}) as w:
        ask = {
            "Origin": UI,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
            "Access-Control-Request-Private-Network": "true",
        }
        r = await w.client.options("/v1/chat/completions", headers=ask)
        assert (r.status_code, r.content) == (204, b"")
        assert r.headers["access-control-allow-origin"] == UI
        assert "POST" in r.headers["access-control-allow-methods"]
        assert r.headers["access-control-allow-headers"] == "authorization,content-type,x-stainless-os"
        assert r.headers["access-control-allow-private-network"] == "true"
        assert "access-control-allow-credentials" not in r.headers
        page = {"Origin": UI, "Sec-Fetch-Site": "same-site"}

        def readable(r: httpx.Response, status: int) -> None:
            assert r.status_code == status
            assert r.headers["access-control-allow-origin"] == UI
            assert "x-request-id" in r.headers["access-control-expose-headers"]
            assert "origin" in r.headers["vary"].lower()

        readable(await w.client.post("/v1/chat/completions", json=CHAT | {"stream": True}, headers=page), 200)
        readable(await text(w, **page), 200)
        readable(await w.client.get("/v1/models", headers=page), 200)
        readable(await w.client.post("/v1/chat/completions", json=CHAT | {"n": 0}, headers=page), 400)
        readable(await w.client.get("/nothing", headers=page), 404)
        readable(await w.client.post("/v1/chat/demo", content="x" * 2000, headers=page), 413)
        error(await text(w, Origin=EVIL), 403)
        r = await w.client.get("/v1/models")
        assert "access-control-allow-origin" not in r.headers
        assert "origin" in r.headers["vary"].lower(), "a cache must not give this answer to a page"


async def test_all_pages_may_with_keys(tmp_path: Path):
    async with world(settings={"api_keys_file": keys(tmp_path), "cors_origins": ("*",)}) as w:
        r = await w.client.options("/v1/models", headers={"Origin": EVIL, "Access-Control-Request-Method": "GET"})
        assert (r.status_code, r.headers["access-control-allow-origin"]) == (204, "*")  # without a key: it has none yet
        r = await w.client.get("/v1/models", headers={"Origin": EVIL})
        error(r, 401)
        assert r.headers["access-control-allow-origin"] == "*"
        r = await w.client.get("/v1/models", headers={"Origin": EVIL, "Authorization": "Bearer secret"})
        assert (r.status_code, r.headers["access-control-allow-origin"]) == (200, "*")


@pytest.mark.parametrize("origins", [("*",), ("evil.example",), (UI, "http://a/b")])
async def test_origins_that_cannot_be_are_told_at_the_start(origins: tuple[str, ...]):
    settings: dict[str, Any] = {"http_port": 0, "head_address": "127.0.0.1:1", "cors_origins": origins}
    with pytest.raises(UserError, match="--cors_origins"):
        await serving(ProxySettings(**settings), PATIENCE).__aenter__()
