"""A local S3 (moto's) that counts what it serves and can be made to wait, and a process that fetches from it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from headrace.process import child_env

KIB = 1024

FETCH = """
import sys
from pathlib import Path
from headrace.errors import HeadraceError
from headrace.replica.models import resolve
from headrace.replica.weights import parts
from headrace.replica.weights.cache import Cache
parts.PART_BYTES = 256 * 1024
try:
    cache = Cache(Path(sys.argv[2]), int(sys.argv[3]))
    model = resolve(sys.argv[1], "", cache, lambda *news: print(*news, flush=True))
    print("folder", model.folder, flush=True)
except HeadraceError as e:
    print(type(e).__name__, e, flush=True)
    sys.exit(1)
"""


class S3:
    """`served`: bytes of objects' bodies by path. `open`: while it is clear, at most `allowed` ranges are served."""

    def __init__(self) -> None:
        self.served: dict[str, int] = {}
        self.open = threading.Event()
        self.open.set()
        self.allowed = 0
        self.url = ""
        self._lock = threading.Lock()
        self._serving = 0

    def wrap(self, app: Any) -> Any:
        def serve(environ: dict[str, Any], start: Any) -> Iterator[bytes]:
            ranged = environ["REQUEST_METHOD"] == "GET" and "HTTP_RANGE" in environ
            if ranged:
                with self._lock:
                    self.allowed -= 1
                    self._serving += 1
                    wait = self.allowed < 0
                if wait:
                    self.open.wait()
            try:
                for piece in app(environ, start):
                    if ranged:
                        with self._lock:
                            path = environ["PATH_INFO"]
                            self.served[path] = self.served.get(path, 0) + len(piece)
                    yield piece
            finally:
                if ranged:
                    with self._lock:
                        self._serving -= 1

        return serve

    def settle(self) -> None:
        """Wait until nobody is being served; a client that is gone may have left requests."""
        deadline = time.monotonic() + 60
        while self._serving:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    @property
    def env(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
        }

    def client(self) -> Any:
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
            region_name="us-east-1",
        )

    def fetch(self, source: str, cache: Path, limit: int = 0) -> subprocess.Popen[str]:
        """A process that fetches as a replica does, and prints what it reports."""
        return subprocess.Popen(
            [sys.executable, "-c", FETCH, source, str(cache), str(limit)],
            stdout=subprocess.PIPE,
            text=True,
            env=child_env(self.env),
        )


@contextmanager
def s3_server() -> Iterator[S3]:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    class Quiet(MotoRequestHandler):
        def log(self, type: str, message: str, *args: Any) -> None: ...

    s3 = S3()
    app = s3.wrap(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    server.daemon_threads = True
    s3.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield s3
    finally:
        s3.open.set()
        server.shutdown()
        server.server_close()
        thread.join()
