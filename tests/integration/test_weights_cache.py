"""The cache of one node, shared by several processes: what is held stays, what is not goes when room is needed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from s3_fixtures import FakeS3, a_safetensors, fake_s3

from headrace.core.causes import Cause, of_error
from headrace.errors import HeadraceError, Unavailable, UserError
from headrace.replica import conversion
from headrace.replica.conversion import converted
from headrace.replica.weights import Cache, fetch

KIB = 1024

HOLDER = """
import sys
from pathlib import Path
from headrace.replica.weights import Cache
cache = Cache(Path(sys.argv[1]))
cache.hold(Path(sys.argv[1]) / sys.argv[2])
print("held", flush=True)
sys.stdin.read()
"""


def quiet(activity: str, progress: float) -> None: ...


@contextmanager
def held(cache: Path, entry: str) -> Iterator[subprocess.Popen[str]]:
    """A replica that uses `entry`, as far as the cache can see."""
    command = [sys.executable, "-c", HOLDER, str(cache), entry]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield process
        process.communicate()


def put(cache: Path, entry: str, used_at: float, size: int = 10 * KIB) -> Path:
    """An entry that was used at that time, by a process that has ended."""
    folder = cache / entry
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(bytes(size))
    (cache / "locks").mkdir(exist_ok=True)
    lock = cache / "locks" / f"{entry.replace('/', '-')}.lock"
    lock.touch()
    os.utime(lock, (used_at, used_at))
    return folder


def make_room(cache: Path, limit: int, needed: int, name: str = "s3/new") -> None:
    ours = Cache(cache, limit)
    ours.hold(cache / name)
    ours.make_room(cache / name, needed, needed, "the new one")


def left(cache: Path) -> set[str]:
    return {str(p.relative_to(cache)) for kind in ("hub", "s3", "converted") for p in cache.glob(f"{kind}/*")}


def test_the_least_recently_used_of_all_kinds_goes(tmp_path: Path) -> None:
    for number, name in enumerate(("hub/models--a--b", "converted/x", "s3/y", "s3/z.partial")):
        put(tmp_path, name, 1000.0 + number)
    make_room(tmp_path, 40 * KIB, 15 * KIB)
    assert left(tmp_path) == {"s3/y", "s3/z.partial"}
    make_room(tmp_path, 0, 10**6, "s3/other")
    assert left(tmp_path) == {"s3/y", "s3/z.partial"}, "without a limit nothing ever goes"


def test_what_a_replica_uses_stays_until_it_ends(tmp_path: Path) -> None:
    put(tmp_path, "s3/old", 1000.0)
    put(tmp_path, "s3/idle", 2000.0)
    with held(tmp_path, "s3/old"):
        make_room(tmp_path, 25 * KIB, 10 * KIB)
        assert left(tmp_path) == {"s3/old"}
        with pytest.raises(Unavailable, match=r"no room for the new one \(20KiB\): of --cache_limit=25KiB, 10KiB"):
            make_room(tmp_path, 25 * KIB, 20 * KIB)
        assert left(tmp_path) == {"s3/old"}
    make_room(tmp_path, 25 * KIB, 20 * KIB)
    assert left(tmp_path) == set()


def test_a_killed_replica_holds_nothing(tmp_path: Path) -> None:
    put(tmp_path, "s3/old", 1000.0)
    with held(tmp_path, "s3/old") as process:
        process.kill()
        process.wait()
        make_room(tmp_path, 10 * KIB, 5 * KIB)
        assert left(tmp_path) == set()


def test_what_is_larger_than_the_limit_can_never_be(tmp_path: Path) -> None:
    put(tmp_path, "s3/old", 1000.0)
    with pytest.raises(UserError, match=r"the new one has 40KiB, more than --cache_limit=30KiB"):
        make_room(tmp_path, 30 * KIB, 40 * KIB)
    assert left(tmp_path) == {"s3/old"}


def test_what_is_being_fetched_counts_as_what_it_will_be(tmp_path: Path) -> None:
    first = Cache(tmp_path, 100 * KIB)
    first.hold(tmp_path / "s3/first.partial")
    (tmp_path / "s3/first.partial").mkdir(parents=True)
    first.make_room(tmp_path / "s3/first.partial", 60 * KIB, 60 * KIB, "the first")
    with pytest.raises(Unavailable, match="60KiB are in use"):
        make_room(tmp_path, 100 * KIB, 50 * KIB)


def test_half_of_what_was_dropped_is_cleared_away(tmp_path: Path) -> None:
    put(tmp_path, "s3/old.evicted", 1000.0)
    put(tmp_path, "s3/new", 1000.0)
    Cache(tmp_path, 100 * KIB).trim()
    assert left(tmp_path) == {"s3/new"}
    Cache(tmp_path, 1).trim()
    assert left(tmp_path) == set()


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeS3]:
    with fake_s3(monkeypatch, tmp_path) as s3:
        yield s3


def test_downloads_make_room_for_each_other(s3: FakeS3, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        s3.put({"config.json": b"{}", "model.safetensors": a_safetensors(100 * KIB)}, prefix=f"{name}/")
    first = fetch("s3://models/a", "", Cache(tmp_path, 250 * KIB), quiet)
    keeper = Cache(tmp_path, 250 * KIB)
    second = fetch("s3://models/b", "", keeper, quiet)
    assert first.is_dir(), "this process holds both"
    with pytest.raises(Unavailable, match="no room for s3://models/c"):
        fetch("s3://models/c", "", Cache(tmp_path, 250 * KIB), quiet)
    assert first.is_dir()
    assert second.is_dir()
    with pytest.raises(UserError, match="more than --cache_limit=50KiB"):
        fetch("s3://models/c", "", Cache(tmp_path, 50 * KIB), quiet)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(conversion, "find_spec", lambda name: object())
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "config.json").write_text('{"auto_map": {"AutoConfig": "x"}}')
    (folder / "model.safetensors").write_bytes(a_safetensors(20 * KIB))
    return folder


def says(script: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A converter that fails with these words, and this errno."""

    def write(words: str, errno: int = 0) -> None:
        script.write_text(f'#!/bin/sh\necho \'{{"error": "{words}", "errno": {errno}}}\'\nexit 1\n')
        script.chmod(0o755)
        monkeypatch.setattr(conversion.sys, "executable", str(script))

    return write


def test_a_conversion_makes_room_and_tells_of_a_full_disk(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, fail = tmp_path / "cache", says(tmp_path / "converter", monkeypatch)
    put(cache, "s3/old", 1000.0)
    fail("OSError: kein Platz mehr", errno.ENOSPC)
    with pytest.raises(Unavailable, match=r"The disk is full: the conversion of .* needs 20"):
        converted(source, "fp16", Cache(cache, 25 * KIB), quiet)
    assert left(cache) == set(), "the old one gave way, and nothing half made is left"
    with pytest.raises(UserError, match="more than --cache_limit=10KiB"):
        converted(source, "fp16", Cache(cache, 10 * KIB), quiet)


def test_a_converter_that_fails_says_by_number_whether_that_may_pass(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail = says(tmp_path / "converter", monkeypatch)
    for words, number, cause in (
        ("ValueError: a layer called No space left on device", 0, Cause.CRASH),
        ("OSError: too many", errno.EMFILE, Cause.BUSY),
    ):
        fail(words, number)
        with pytest.raises(HeadraceError, match=words) as caught:
            converted(source, "fp16", Cache(tmp_path / "cache"), quiet)
        assert of_error(caught.value) is cause


def test_code_that_is_needed_is_a_sentence(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail = says(tmp_path / "converter", monkeypatch)
    fail("ValueError: Loading this model requires trust_remote_code=True")
    with pytest.raises(UserError, match=r"needs code of its own \(auto_map in config.json\).*--trust_remote_code"):
        converted(source, "fp16", Cache(tmp_path / "cache"), quiet)
