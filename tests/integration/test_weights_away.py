"""Where weights come from is away for a while: it is tried again for as long as that lasts, and then it serves."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path

import pytest
from integration.node_fixtures import Head, head_double, spawn_scheduler

from headrace.core.causes import Cause
from headrace.core.phase import Phase
from headrace.core.types import ModelSpec, ReplicaId, ReplicaSpec, ReplicaStatus, Resources

pytest.importorskip("openvino_genai", reason="needs pip install 'headrace[cpu]'")

SHA = "c0ffee" * 6 + "c0ff"
DEMO = Path(str(resources.files("headrace"))) / "data" / "demo"
FILES = {p.name: p.read_bytes() for p in DEMO.iterdir() if p.is_file()}
WANTED = ReplicaSpec(ReplicaId("r-1"), "m", 1, ModelSpec("hf://org/name", engine="openvino"), Resources(1.0), drain_s=1)


@contextmanager
def hub(port: int, status: int = 200) -> Iterator[list[int]]:
    """A hub with the demo model, or one that answers everything with `status[0]`."""
    answers = [status]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path, name = self.path.partition("?")[0], self.path.rpartition("/")[2].partition("?")[0]
            if answers[0] != 200:
                self.reply(answers[0], b"{}", {})
            elif path.startswith("/api/models/org/name"):
                siblings = [{"rfilename": n, "size": len(d), "blobId": git_sha(d)} for n, d in FILES.items()]
                entries = [{"type": "file", "path": n, "size": len(d), "oid": git_sha(d)} for n, d in FILES.items()]
                told = entries if "/tree/" in path else {"id": "org/name", "sha": SHA, "siblings": siblings}
                self.reply(200, json.dumps(told).encode(), {"Content-Type": "application/json"})
            elif name in FILES:
                self.reply(200, FILES[name], {"ETag": f'"{git_sha(FILES[name])}"', "X-Repo-Commit": SHA})
            else:
                self.reply(404, b"{}", {})

        do_HEAD = do_GET

        def reply(self, code: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(code)
            for k, v in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(k, v)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield answers
        finally:
            server.shutdown()
            thread.join()


def git_sha(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


async def waits(head: Head, failures: int) -> ReplicaStatus:
    """How it stands while it waits for another try, after so many that failed."""
    await head.until(lambda: (s := head.seen.get("r-1")) and s.failures >= failures and s.next_try)
    status = head.seen["r-1"]
    assert status.phase is Phase.PENDING
    assert Phase.FAILED not in head.story("r-1")
    return status


@pytest.mark.timeout(300)
async def test_a_hub_that_refuses_then_fails_then_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    async with head_double() as head:
        scheduler = spawn_scheduler(head, tmp_path, "real")
        try:
            head.want(WANTED)
            refused = await waits(head, 3)
            assert refused.cause is Cause.NETWORK
            assert "Cannot download hf://org/name (ConnectError)" in refused.reason
            with hub(port, status=503) as answers:
                await head.until(lambda: head.seen["r-1"].cause is Cause.REMOTE)
                assert "(HTTP 503)" in (await waits(head, 4)).reason
                answers[0] = 200
                await head.phase("r-1", Phase.READY)
        finally:
            await scheduler.stop(term_s=30)


@pytest.mark.timeout(300)
async def test_a_name_that_does_not_resolve_is_tried_again_and_a_refusal_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with head_double() as head:
        monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
        scheduler = spawn_scheduler(head, tmp_path, "real")
        try:
            head.want(WANTED)
            assert (await waits(head, 3)).cause is Cause.NETWORK
        finally:
            await scheduler.stop(term_s=30)
        port = free_port()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
        with hub(port, status=403):
            scheduler = spawn_scheduler(head, tmp_path / "other", "real")
            try:
                failed = await head.phase("r-1", Phase.FAILED)
                assert (failed.cause, failed.restarts) == (Cause.REFUSED, 0)
            finally:
                await scheduler.stop(term_s=30)
