"""The hub's real client against a small server that speaks its API."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from s3_fixtures import a_safetensors

from headrace.replica.weights.partial import PART_BYTES

SHA = "c0ffee" * 6 + "c0ff"
BIG = a_safetensors(5 * PART_BYTES)  # and a header: six parts
FILES = {"config.json": b"{}", "modeling.py": b"code", "model.safetensors": BIG, "x.bin": b"pickle"}

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
class Asked:
    """Someone wants bytes of a file; nth: of the ranges."""

    name: str
    range: str
    nth: int
    host: str
    token: str


@dataclass
class FakeHub:
    """`before` is given what is asked, and may answer with a status or with bytes for the answer's start."""

    url: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    ranges: bool = True
    elsewhere: str = ""  # where files are, if not here: a path that holds as long as this does
    looks: int = 0  # at where a large file is
    tokens: set[str] = field(default_factory=set)
    fetched: list[Asked] = field(default_factory=list)
    before: Callable[[Asked], bytes | int | None] = lambda asked: None

    @property
    def names(self) -> list[str]:
        return sorted({f.name for f in self.fetched})

    def parts(self) -> list[int]:
        """The numbers of the parts of the large file that were asked for."""
        starts = [
            f.range.removeprefix("bytes=").partition("-")[0] for f in self.fetched if f.name == "model.safetensors"
        ]
        return sorted(int(s) // PART_BYTES for s in starts)


def etag(name: str) -> str:
    data = FILES[name]
    return sha256(name) if is_large(name) else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def sha256(name: str) -> str:
    return hashlib.sha256(FILES[name]).hexdigest()


def is_large(name: str) -> bool:
    return not name.endswith((".json", ".py"))


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    fake = FakeHub()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path, name = self.path.partition("?")[0], self.path.rpartition("/")[2]
            if "/org/name" in path:  # the client asks for other things of its own, too
                fake.tokens.add(self.headers.get("Authorization", ""))
            if fake.status != 200:
                self.answer(fake.status, b"{}", fake.headers)
            elif path.startswith("/api/models/org/name/tree/"):
                self.answer(200, tree(), {"Content-Type": "application/json"})
            elif path.startswith("/api/models/org/name"):
                self.answer(200, info(), {"Content-Type": "application/json"})
            elif path.startswith(f"/org/name/resolve/{SHA}/"):
                headers = {"ETag": f'"{etag(name)}"', "X-Repo-Commit": SHA}
                if fake.elsewhere and is_large(name):
                    fake.looks += 1
                    linked = {"X-Linked-Etag": headers.pop("ETag"), "X-Linked-Size": str(len(FILES[name]))}
                    self.answer(302, b"", headers | linked | {"Location": f"{fake.elsewhere}/{name}"})
                else:
                    self.send_file(name, headers)
            elif fake.elsewhere and fake.elsewhere.endswith(path.rpartition("/")[0]):
                self.send_file(name, {})
            else:
                self.answer(403 if "signed" in path else 404, b"{}", {})

        do_HEAD = do_GET

        def send_file(self, name: str, headers: dict[str, str]) -> None:
            if self.command == "HEAD":
                return self.answer(200, FILES[name], headers)
            asked_range = self.headers.get("Range", "")
            with lock:
                nth = sum(bool(f.range) for f in fake.fetched) + bool(asked_range)
                asked = Asked(name, asked_range, nth, self.headers["Host"], self.headers.get("Authorization", ""))
                fake.fetched.append(asked)
            done = fake.before(asked)
            if isinstance(done, int):
                return self.answer(done, b"", {})
            data = (done or b"") + FILES[name][len(done or b"") :]
            if not asked_range or not fake.ranges:
                return self.answer(200, data, headers)
            start, end = map(int, asked_range.removeprefix("bytes=").split("-"))
            where = {"Content-Range": f"bytes {start}-{end}/{len(data)}"}
            self.answer(206, data[start : end + 1], headers | where)

        def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):
                super().handle()

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
    files = [{"rfilename": n, "size": len(d), "blobId": etag(n)} | lfs(n) for n, d in FILES.items()]
    return json.dumps({"id": "org/name", "modelId": "org/name", "sha": SHA, "siblings": files}).encode()


def tree() -> bytes:
    """What clients from 2.0 on ask for besides."""
    files = [
        {"type": "file", "path": n, "size": len(d), "oid": etag(n)}
        | {k: v | {"oid": v["sha256"]} for k, v in lfs(n).items()}
        for n, d in FILES.items()
    ]
    return json.dumps(files).encode()


def lfs(name: str) -> dict[str, Any]:
    return {"lfs": {"sha256": sha256(name), "size": len(FILES[name]), "pointerSize": 1}} if is_large(name) else {}


def command(cache: Path, revision: str = "", limit: int = 0) -> list[str]:
    return [sys.executable, "-c", CHILD, str(cache), revision, str(limit)]


def environment(hub: FakeHub, cache: Path, **env: str) -> dict[str, str]:
    ours = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    return ours | {"HF_ENDPOINT": hub.url, "HF_HOME": str(cache / "home"), "HF_HUB_DISABLE_XET": "1"} | env


def ask(hub: FakeHub, cache: Path, revision: str = "", limit: int = 0, **env: str) -> list[str]:
    """What a replica is told, line by line; last the folder or the error."""
    env = environment(hub, cache, **env)
    done = subprocess.run(
        command(cache, revision, limit), env=env, capture_output=True, text=True, timeout=100, check=True
    )
    return done.stdout.splitlines()


def test_downloaded_once_with_progress_and_token(hub: FakeHub, tmp_path: Path) -> None:
    lines = ask(hub, tmp_path, HF_TOKEN="hf_secret")
    folder = Path(lines[-1].removeprefix("folder "))
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert hub.names == ["config.json", "model.safetensors"], "no pickle, no code"
    assert hub.parts() == [0, 1, 2, 3, 4, 5]
    assert not list(tmp_path.glob("hub/*/partial"))
    assert hub.tokens == {"Bearer hf_secret"}
    fractions = [float(line.split()[-1]) for line in lines if line.startswith("downloading")]
    assert fractions[-1] == 1.0
    assert fractions == sorted(fractions)
    assert any(0.0 < f < 1.0 for f in fractions)
    blob = next(tmp_path.glob("hub/*/blobs/*"))
    half = blob.with_name("abc.12345678.incomplete")
    half.write_bytes(b"half")
    assert ask(hub, tmp_path)[-1] == lines[-1]
    assert len(hub.fetched) == 7
    assert not half.exists(), "what a killed client left is cleared away"
    offline = ask(hub, tmp_path, HF_HUB_OFFLINE="1")
    assert offline[-1] == lines[-1]


def test_a_token_file(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hf_filed\n")
    ask(hub, tmp_path, HF_TOKEN_PATH=str(tmp_path / "token"))
    assert hub.tokens == {"Bearer hf_filed"}


def test_offline_without_a_copy(hub: FakeHub, tmp_path: Path) -> None:
    last = ask(hub, tmp_path, HF_HUB_OFFLINE="1")[-1]
    assert last.startswith("UserError HF_HUB_OFFLINE is set, and hf://org/name is not in the cache")
    assert hub.tokens == set()


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (401, "RepoNotFound", "UserError hf://org/name (revision v1) does not exist, or needs an access token"),
        (404, "RepoNotFound", "UserError hf://org/name (revision v1) does not exist, or needs an access token"),
        (404, "RevisionNotFound", "UserError hf://org/name has no revision 'v1'"),
        (403, "GatedRepo", "UserError hf://org/name (revision v1) needs permission"),
        (400, "", "UserError The hub refuses hf://org/name (revision v1) (HTTP 400)"),
        (429, "", "Unavailable Cannot download hf://org/name (revision v1) (HTTP 429)"),
        (501, "", "Unavailable Cannot download hf://org/name (revision v1) (HTTP 501)"),
    ],
)
def test_refusals(hub: FakeHub, tmp_path: Path, status: int, code: str, words: str) -> None:
    hub.status, hub.headers = status, {"X-Error-Code": code} if code else {}
    assert ask(hub, tmp_path, "v1")[-1].startswith(words)


def test_what_is_larger_than_the_limit_is_not_begun(hub: FakeHub, tmp_path: Path) -> None:
    last = ask(hub, tmp_path, limit=1 << 20)[-1]
    assert last.startswith("UserError hf://org/name has 40MiB, more than --cache_limit=1MiB")
    assert hub.fetched == []


def test_killed_it_asks_only_for_the_rest(hub: FakeHub, tmp_path: Path) -> None:
    killed, gate = threading.Event(), threading.Event()

    def hold_back(asked: Asked) -> None:
        if asked.nth > 3:
            killed.wait(60)

    hub.before = hold_back
    process = subprocess.Popen(command(tmp_path), env=environment(hub, tmp_path), stdout=subprocess.PIPE, text=True)
    try:
        before = set[int]()
        for _ in range(3000):
            for journal in tmp_path.glob("hub/*/partial/*.parts"):
                before = {int(line) for line in journal.read_text().split("\n")[1:-1]}
            if len(before) >= 3 and len(hub.parts()) == 6:
                break
            gate.wait(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed.set()
    assert len(before) == 3, "the file was killed in its middle"
    hub.before = lambda asked: None
    hub.fetched.clear()
    lines = ask(hub, tmp_path)
    assert hub.parts() == sorted({0, 1, 2, 3, 4, 5} - before)
    assert (Path(lines[-1].removeprefix("folder ")) / "model.safetensors").read_bytes() == BIG
    first = next(float(line.split()[-1]) for line in lines if line.endswith(tuple("123456789")) and "downl" in line)
    assert first >= 0.4, "progress goes on where it was"


@pytest.mark.parametrize("times", [1, 2])
def test_a_wrong_file_is_fetched_once_more_and_then_refused(hub: FakeHub, tmp_path: Path, times: int) -> None:
    left = [b"\0" * 100] * times
    hub.before = lambda asked: left.pop() if asked.range.startswith("bytes=0-") and left else None
    last = ask(hub, tmp_path)[-1]
    assert hub.parts() == sorted([*range(6)] * 2)
    if times == 1:
        assert (Path(last.removeprefix("folder ")) / "model.safetensors").read_bytes() == BIG
    else:
        assert last.startswith("UserError hf://org/name has a wrong checksum: model.safetensors is not the file")
        assert not list(tmp_path.glob("hub/*/blobs/*"))
        assert not any(p.read_bytes().strip(b"\0") for p in tmp_path.glob("hub/*/partial/*") if p.suffix != ".parts")


@pytest.mark.parametrize("damaged", [False, True])
def test_an_endpoint_without_ranges(hub: FakeHub, tmp_path: Path, damaged: bool) -> None:
    """The hub's client fetches whole files then, and they are checked all the same."""
    hub.ranges = False
    if damaged:
        hub.before = lambda asked: b"\0" * 8 if asked.name == "model.safetensors" else None
    last = ask(hub, tmp_path)[-1]
    assert any(f.name == "model.safetensors" and not f.range for f in hub.fetched)
    if damaged:
        assert last.startswith("UserError hf://org/name has a wrong checksum: model.safetensors")
        assert [p for p in tmp_path.glob("hub/*/blobs/*") if p.stat().st_size > 100] == []
        assert [p.name for p in tmp_path.glob("hub/*/snapshots/*/*")] == ["config.json"]
    else:
        assert (Path(last.removeprefix("folder ")) / "model.safetensors").read_bytes() == BIG


def test_files_that_are_elsewhere_get_no_token_and_a_new_address(hub: FakeHub, tmp_path: Path) -> None:
    port = hub.url.rpartition(":")[2]
    hub.elsewhere = f"http://localhost:{port}/signed1"

    def expire(asked: Asked) -> int | None:
        if asked.nth > 1:
            return None
        hub.elsewhere = f"http://localhost:{port}/signed2"
        return 403

    hub.before = expire
    last = ask(hub, tmp_path, HF_TOKEN="hf_secret")[-1]
    assert (Path(last.removeprefix("folder ")) / "model.safetensors").read_bytes() == BIG
    assert hub.looks == 3, "ours, again when the first was refused, and the client's"
    parts = [f for f in hub.fetched if f.range]
    assert {(f.host, f.token) for f in parts} == {(f"localhost:{port}", "")}
    assert hub.tokens == {"Bearer hf_secret"}


def test_half_a_snapshot_does_not_count_as_downloaded(hub: FakeHub, tmp_path: Path) -> None:
    folder = Path(ask(hub, tmp_path)[-1].removeprefix("folder "))
    (folder / "model.safetensors").resolve().unlink()
    (folder / "model.safetensors").unlink()
    last = ask(hub, tmp_path, HF_HUB_OFFLINE="1")[-1]
    assert last.startswith("UserError HF_HUB_OFFLINE is set, and hf://org/name is not in the cache")


def test_a_full_disk(hub: FakeHub, tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands for a disk that fills up while it is written to."""
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n" + CHILD
    run = [sys.executable, "-c", code, str(tmp_path), "", "0"]
    done = subprocess.run(run, env=environment(hub, tmp_path), capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.splitlines()[-1].startswith("Unavailable The disk is full: hf://org/name needs")
    assert not list(tmp_path.glob("hub/*/partial"))
