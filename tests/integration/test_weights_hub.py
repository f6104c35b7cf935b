"""The hub's real client against a small server that speaks its API."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from s3_fixtures import a_safetensors

SHA = "c0ffee" * 6 + "c0ff"
FILES = {
    "config.json": b"{}",
    "modeling.py": b"code",
    "model.safetensors": a_safetensors(30_000_000),
    "x.bin": b"pickle",
}

# The client reads HF_* when it is imported, so it gets a process of its own.
CHILD = """
import sys
from pathlib import Path
from headrace.errors import HeadraceError
from headrace.replica.weights import Cache, resolve
try:
    told = lambda activity, progress: print(activity, progress, flush=True)
    print("folder", resolve("hf://org/name", sys.argv[2], Cache(Path(sys.argv[1]), int(sys.argv[3])), told).folder)
except HeadraceError as e:
    print(type(e).__name__, e.message)
"""


@dataclass
class FakeHub:
    url: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    fetched: list[str] = field(default_factory=list)


def etag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    fake = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if "/org/name" in path:  # the client asks for other things of its own, too
                fake.tokens.add(self.headers.get("Authorization", ""))
            if fake.status != 200:
                self.answer(fake.status, b"{}", fake.headers)
            elif path.startswith("/api/models/org/name"):
                self.answer(200, info(), {"Content-Type": "application/json"})
            elif path.startswith(f"/org/name/resolve/{SHA}/"):
                name = path.removeprefix(f"/org/name/resolve/{SHA}/")
                if self.command == "GET":
                    fake.fetched.append(name)
                self.answer(200, FILES[name], {"ETag": f'"{etag(FILES[name])}"', "X-Repo-Commit": SHA})
            else:
                self.answer(404, b"{}", {})

        do_HEAD = do_GET

        def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def info() -> bytes:
    files = [
        {
            "rfilename": n,
            "size": len(d),
            "blobId": etag(d),
            "lfs": {"sha256": etag(d), "size": len(d), "pointerSize": 1},
        }
        for n, d in FILES.items()
    ]
    return json.dumps({"id": "org/name", "modelId": "org/name", "sha": SHA, "siblings": files}).encode()


def ask(hub: FakeHub, cache: Path, revision: str = "", limit: int = 0, **env: str) -> list[str]:
    """What a replica is told, line by line; last the folder or the error."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    said = {"HF_ENDPOINT": hub.url, "HF_HOME": str(cache / "home"), "HF_HUB_DISABLE_XET": "1"} | env
    command = [sys.executable, "-c", CHILD, str(cache), revision, str(limit)]
    done = subprocess.run(command, env=ours | said, capture_output=True, text=True, timeout=100, check=True)
    return done.stdout.splitlines()


def test_downloaded_once_with_progress_and_token(hub: FakeHub, tmp_path: Path) -> None:
    lines = ask(hub, tmp_path, HF_TOKEN="hf_secret")
    folder = Path(lines[-1].removeprefix("folder "))
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert sorted(hub.fetched) == ["config.json", "model.safetensors"], "no pickle, no code"
    assert hub.tokens == {"Bearer hf_secret"}
    fractions = [float(line.split()[-1]) for line in lines if line.startswith("downloading")]
    assert fractions[-1] == 1.0
    assert any(0.0 < f < 1.0 for f in fractions)
    blob = next(tmp_path.glob("hub/*/blobs/*"))
    half = blob.with_name("abc.12345678.incomplete")
    half.write_bytes(b"half")
    assert ask(hub, tmp_path)[-1] == lines[-1]
    assert len(hub.fetched) == 2
    assert not half.exists(), "what a killed client left is cleared away"
    offline = ask(hub, tmp_path, HF_HUB_OFFLINE="1")
    assert offline[-1] == lines[-1]


def test_a_token_file(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hf_filed\n")
    ask(hub, tmp_path, HF_TOKEN_PATH=str(tmp_path / "token"))
    assert hub.tokens == {"Bearer hf_filed"}


def test_offline_without_a_copy(hub: FakeHub, tmp_path: Path) -> None:
    last = ask(hub, tmp_path, HF_HUB_OFFLINE="1")[-1]
    assert last.startswith("Unavailable HF_HUB_OFFLINE is set, and hf://org/name is not in the cache")
    assert hub.tokens == set()


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (401, "RepoNotFound", "UserError hf://org/name (revision v1) does not exist, or needs an access token"),
        (404, "RepoNotFound", "UserError hf://org/name (revision v1) does not exist, or needs an access token"),
        (404, "RevisionNotFound", "UserError hf://org/name has no revision 'v1'"),
        (403, "GatedRepo", "UserError hf://org/name (revision v1) needs permission"),
        (400, "", "Unavailable Cannot download hf://org/name (revision v1)"),
    ],
)
def test_refusals(hub: FakeHub, tmp_path: Path, status: int, code: str, words: str) -> None:
    hub.status, hub.headers = status, {"X-Error-Code": code} if code else {}
    assert ask(hub, tmp_path, "v1")[-1].startswith(words)


def test_what_is_larger_than_the_limit_is_not_begun(hub: FakeHub, tmp_path: Path) -> None:
    last = ask(hub, tmp_path, limit=1 << 20)[-1]
    assert last.startswith("UserError hf://org/name has 28.6MiB, more than --cache_limit=1MiB")
    assert hub.fetched == []
