"""The large files of a hub repository by ranged reads: the hub's own client begins a file again when it was killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from headrace.core.causes import Cause
from headrace.errors import HeadraceError, Unavailable
from headrace.replica.weights import checksums
from headrace.replica.weights.partial import PartialFile
from headrace.replica.weights.parts import Count, Fetch, fetch_all, missing_bytes

_CHUNK = 1024 * 1024
_PARTIAL = "partial"
LARGEST = 50 * 10**9
"""What is larger, the hub serves by its own protocol only: its client fetches it."""


class NoRanges(Exception):
    """The endpoint, or what is between here and there, sends whole files only."""


def partial_of(entry: Path) -> Path:
    """The folder in which files are that are not whole yet."""
    return entry / _PARTIAL


def fetch_blobs(
    repo: str, commit: str, entry: Path, sums: Mapping[str, tuple[str, int]], count: Count, checking: Callable[[], None]
) -> None:
    """Bring files to where the hub's client looks for them: blobs/SHA256, each checked and in one move.

    sums: name -> (SHA-256, size in bytes). Wrong, NoRanges, Unavailable; the client's own errors if it is refused.
    """
    folder = partial_of(entry)
    folder.mkdir(parents=True, exist_ok=True)
    _remove_others(folder, {digest for digest, _ in sums.values()})
    names = {digest: (name, size) for name, (digest, size) in sums.items()}  # two names may be of one file
    with contextlib.ExitStack() as opened:
        fetches = []
        for digest, (name, size) in names.items():
            file = opened.enter_context(PartialFile(folder / digest, folder / f"{digest}.parts", digest, size))
            right = partial(_right, bytes.fromhex(digest))
            fetches.append(Fetch(name, file, _Remote(repo, name, commit).read, right))
        if there := sum(f.file.size for f in fetches) - missing_bytes(fetches):
            count.add(there)
        fetch_all(fetches, count, checking)
    (entry / "blobs").mkdir(exist_ok=True)
    for digest in names:
        os.replace(folder / digest, entry / "blobs" / digest)
    shutil.rmtree(folder)


def _right(digest: bytes, path: Path) -> bool:
    return checksums.of_file("SHA256", path) == digest


def _remove_others(folder: Path, digests: set[str]) -> None:
    """Delete what is not wanted any more, such as of an older commit."""
    for path in folder.iterdir():
        if path.name.removesuffix(".parts") not in digests:
            path.unlink()


class _Remote:
    """A file of a commit. Asked for once where its bytes are, and again when that answer has run out."""

    def __init__(self, repo: str, name: str, commit: str) -> None:
        import huggingface_hub as hub

        self._name, self._url = name, hub.hf_hub_url(repo, name, revision=commit)
        self._lock = threading.Lock()
        self._location = ""

    def read(self, start: int, end: int) -> Iterator[bytes]:
        from huggingface_hub import constants
        from huggingface_hub.errors import HfHubHTTPError
        from huggingface_hub.utils import hf_raise_for_status, http_stream_backoff  # pyright: ignore

        try:
            location, headers = self._look()
            headers |= {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
            with http_stream_backoff(
                "GET", location, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
            ) as answer:
                if answer.status_code in (401, 403) and location != self._url:
                    self._forget(location)
                    text = f"The hub's address of {self._name} is refused ({answer.status_code})."
                    raise Unavailable(text, code=Cause.REMOTE)  # it has run out; a new one may do
                hf_raise_for_status(answer)
                if answer.status_code != 206:
                    raise NoRanges
                if not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-{end - 1}/"):
                    text = f"The hub does not answer with the part of {self._name} that it was asked for."
                    raise Unavailable(text, code=Cause.REMOTE)
                yield from answer.iter_raw(_CHUNK)
        except (HeadraceError, NoRanges, HfHubHTTPError):
            raise
        except Exception as e:  # the client's network errors come from several libraries
            raise Unavailable(
                f"Cannot read {self._name} from {urlsplit(self._url).netloc} ({type(e).__name__}); check the network."
                " What has come is kept.",
                code=Cause.NETWORK,
            ) from e

    def _look(self) -> tuple[str, dict[str, str]]:
        """Where the bytes are, and what is to be sent there: the token to nobody but the hub."""
        import huggingface_hub as hub
        from huggingface_hub.utils import build_hf_headers  # pyright: ignore

        with self._lock:
            if not self._location:
                self._location = hub.get_hf_file_metadata(self._url, retry_on_errors=True).location
            location = self._location
        headers = build_hf_headers()
        if urlsplit(location).netloc != urlsplit(self._url).netloc:
            headers.pop("authorization", None)
        return location, headers

    def _forget(self, location: str) -> None:
        with self._lock:
            if self._location == location:
                self._location = ""
