"""An S3 for tests: moto's, behind a proxy that counts what is asked for and can interfere."""

from __future__ import annotations

import hashlib
import json
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

AWS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
_HOP = ("transfer-encoding", "connection", "content-length", "date", "server")

Interference = Callable[["Asked"], bytes | int | None]
"""Given what is asked: a status to answer instead, or bytes to put at the start of the answer; None: go on."""


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    range: str
    nth: int  # of the ranges asked for


@dataclass
class FakeS3:
    """`url`: AWS_ENDPOINT_URL. `ranges`: (path, range) of every part asked for."""

    url: str
    client: Any
    ranges: list[tuple[str, str]] = field(default_factory=list)
    before: Interference = lambda asked: None

    def put(self, files: dict[str, bytes], bucket: str = "models", prefix: str = "m/", **how: Any) -> None:
        for name, data in files.items():
            self.client.put_object(Bucket=bucket, Key=prefix + name, Body=data, **how)


def a_safetensors(size: int, seed: int = 0) -> bytes:
    """A file of safetensors with `size` bytes of a tensor; different for each seed."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    block = hashlib.sha512(str(seed).encode()).digest()
    return struct.pack("<Q", len(header)) + header + (block * (size // len(block) + 1))[:size]


@contextmanager
def fake_s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeS3]:
    """An empty S3 with the bucket models, and the variables that lead to it."""
    boto3 = pytest.importorskip("boto3", reason="needs pip install 'headrace[s3]'")
    from botocore.config import Config

    moto_server = pytest.importorskip("moto.server", reason="needs pip install 'moto[server]'")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    for name, value in AWS.items():
        monkeypatch.setenv(name, value)
    moto = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    # Checksums only where a test asks for one.
    config = Config(request_checksum_calculation="when_required")
    client = boto3.session.Session().client("s3", endpoint_url=f"http://{host}:{port}", config=config)
    fake = FakeS3("", client)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(fake, host, port))
    fake.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", fake.url)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        HTTPConnectionOnce(host, port).post("/moto-api/reset")
        client.create_bucket(Bucket="models")
        yield fake
    finally:
        client.close()
        server.shutdown()
        thread.join()
        server.server_close()
        moto.stop()
        if moto._server is not None:
            moto._server.server_close()


class HTTPConnectionOnce:
    def __init__(self, host: str, port: int) -> None:
        self._connection = HTTPConnection(host, port)

    def post(self, path: str) -> None:
        self._connection.request("POST", path)
        self._connection.getresponse().read()
        self._connection.close()


def _handler(fake: FakeS3, host: str, port: int) -> type[BaseHTTPRequestHandler]:
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked_range = self.headers.get("Range", "")
            with lock:
                if asked_range:
                    fake.ranges.append((self.path.partition("?")[0], asked_range))
                nth = len(fake.ranges)
            done = fake.before(Asked(self.command, self.path, asked_range, nth))
            if isinstance(done, int):
                if done == 0:  # as a network that breaks
                    self.close_connection = True
                    return
                self.send_response(done)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            connection = HTTPConnection(host, port)
            try:
                connection.request(self.command, self.path, headers=dict(self.headers))
                answer = connection.getresponse()
                body = answer.read()
            finally:
                connection.close()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in _HOP:
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(body))
            self.send_header("Content-Length", length or "0")
            self.end_headers()
            self.wfile.write((done + body[len(done) :]) if done else body)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None: ...

        def handle(self) -> None:
            try:
                super().handle()
            except (ConnectionError, BrokenPipeError):
                pass

    return Handler
