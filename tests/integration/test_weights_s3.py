"""Weights from S3: whole, resumed, changed midway, damaged, refused, and shared by two replicas."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from replica_fixtures import a_spec, chat, running
from s3_fixtures import Asked, FakeS3, a_safetensors, fake_s3

import headrace
from headrace.core.streams import Sampling
from headrace.errors import Unavailable, UserError
from headrace.replica.weights import Cache, Weights, fetch, parts, resolve
from headrace.replica.weights.partial import PART_BYTES

SOURCE = "s3://models/m"
BIG = a_safetensors(5 * PART_BYTES)  # and a header: six parts
FILES = {"config.json": b'{"model_type": "llama"}', "tokenizer.json": b"{}", "model.safetensors": BIG}
OTHERS = {"pytorch_model.bin": b"pickle", "README.md": b"words", "modeling.py": b"code", "1_Pooling/config.json": b"{}"}

# As a replica does, in a process that can be killed.
CHILD = """
import sys
from collections.abc import Iterator
from pathlib import Path
from headrace.replica.weights import Cache, resolve
told = lambda activity, progress: print(activity, flush=True)
print("folder", resolve(sys.argv[1], "", Cache(Path(sys.argv[2])), told).folder, flush=True)
"""


def quiet(activity: str, progress: float) -> None: ...


def child(cache: Path, source: str = SOURCE, **how: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, source, str(cache)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **how,  # type: ignore[call-overload]
    )


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeS3]:
    with fake_s3(monkeypatch, tmp_path) as s3:
        yield s3


@pytest.fixture
def whole(s3: FakeS3) -> FakeS3:
    s3.put(FILES | OTHERS)
    return s3


def test_what_is_needed_comes_once(whole: FakeS3, tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    model = resolve(SOURCE + "/", "", Cache(tmp_path), lambda *news: told.append(news))
    assert model.weights is Weights.SAFETENSORS
    assert model.folder
    assert names(model.folder) == ["1_Pooling/config.json", *sorted(FILES)]
    assert (model.folder / "model.safetensors").read_bytes() == BIG
    fractions = [p for a, p in told if a == f"downloading {SOURCE}"]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    assert len(fractions) > 6
    asked = len(whole.ranges)
    assert asked == 6 + 3, "each part once"
    assert resolve(SOURCE, "", Cache(tmp_path), quiet) == model
    assert len(whole.ranges) == asked
    assert list(tmp_path.glob("s3/*.partial")) == []


def test_code_comes_only_if_it_is_trusted(whole: FakeS3, tmp_path: Path) -> None:
    folder = fetch(SOURCE, "", Cache(tmp_path), quiet, remote_code=True)
    assert "modeling.py" in names(folder)


def test_which_weights_come_where_there_are_two_kinds(s3: FakeS3, tmp_path: Path) -> None:
    s3.put(FILES | {"openvino_model.xml": b"x", "openvino_model.bin": b"b", "openvino_tokenizer.xml": b"t"})
    folder = fetch(SOURCE, "", Cache(tmp_path), quiet)
    assert "openvino_tokenizer.xml" in names(folder)
    assert "model.safetensors" not in names(folder)
    folder = fetch(SOURCE, "", Cache(tmp_path), quiet, prefer=Weights.SAFETENSORS)
    assert "openvino_model.bin" not in names(folder)
    assert "model.safetensors" in names(folder)


def test_an_adapter_is_fetched_as_a_folder(s3: FakeS3, tmp_path: Path) -> None:
    files = {"adapter_config.json": b'{"r": 8}', "adapter_model.safetensors": a_safetensors(100)}
    s3.put(files | {"training_args.bin": b"pickle"}, prefix="lora/")
    folder = fetch("s3://models/lora", "", Cache(tmp_path), quiet)
    assert names(folder) == sorted(files)


def test_killed_it_goes_on_where_it_was(whole: FakeS3, tmp_path: Path) -> None:
    killed = threading.Event()
    came = threading.Semaphore(0)

    def hold_back(asked: Asked) -> None:
        if asked.nth > 6:  # three small files' and some of the big one's
            came.release()
            killed.wait(60)

    whole.before = hold_back
    process = child(tmp_path)
    try:
        for _ in range(3):
            assert came.acquire(timeout=60)
        journal = next(tmp_path.glob("s3/*.partial/.parts/model.safetensors"))
        before = wait_for_parts(journal, 1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed.set()
    with journal.open("a") as file:
        file.write("5")  # a line that was not written to its end
    whole.before = lambda asked: None
    whole.ranges.clear()
    model = resolve(SOURCE, "", Cache(tmp_path), quiet)
    assert model.folder
    assert (model.folder / "model.safetensors").read_bytes() == BIG
    asked = [r for path, r in whole.ranges if path.endswith("model.safetensors")]
    assert len(asked) == len(set(asked)) == 6 - len(before)
    assert not {f"bytes={n * PART_BYTES}-" for n in before} & {r[: r.index("-") + 1] for r in asked}


def wait_for_parts(journal: Path, count: int) -> set[int]:
    """The parts that the journal of a live download claims, when they are `count` or more and it is held back."""
    gate = threading.Event()
    for _ in range(3000):
        found = {int(line) for line in journal.read_text().split("\n")[1:-1] if line.isdigit()}
        if len(found) >= count:
            return found
        gate.wait(0.02)
    raise AssertionError("no part was written")


def test_an_object_that_changes_midway_is_fetched_again(whole: FakeS3, tmp_path: Path) -> None:
    new = a_safetensors(5 * PART_BYTES, seed=1)
    changed = threading.Lock()

    def change(asked: Asked) -> None:
        if asked.nth == 6 and changed.acquire(blocking=False):
            whole.put({"model.safetensors": new})

    whole.before = change
    model = resolve(SOURCE, "", Cache(tmp_path), quiet)
    assert changed.locked()
    assert model.folder
    assert (model.folder / "model.safetensors").read_bytes() == new
    small = [path for path, _ in whole.ranges if path.endswith("tokenizer.json")]
    assert len(small) == 1, "what has not changed is kept"


def test_an_object_that_never_stays_is_given_up(whole: FakeS3, tmp_path: Path) -> None:
    def change(asked: Asked) -> None:
        if asked.range:
            whole.put({"config.json": b'{"n": %d}' % asked.nth})

    whole.before = change
    with pytest.raises(Unavailable, match="changes while it is downloaded"):
        resolve(SOURCE, "", Cache(tmp_path), quiet)


@pytest.mark.parametrize("algorithm", ["", "SHA256", "CRC32", "CRC32C"])
@pytest.mark.parametrize("times", [1, 2])
def test_a_wrong_checksum(s3: FakeS3, tmp_path: Path, algorithm: str, times: int) -> None:
    s3.put(FILES | {"model.safetensors": a_safetensors(9)}, **({"ChecksumAlgorithm": algorithm} if algorithm else {}))
    left = [b"\0\0\0\0"] * times
    lock = threading.Lock()

    def damage(asked: Asked) -> bytes | None:
        with lock:
            if asked.path.partition("?")[0].endswith("tokenizer.json") and asked.range and left:
                return left.pop()[:2]
        return None

    s3.before = damage
    if times == 1:
        model = resolve(SOURCE, "", Cache(tmp_path), quiet)
        assert model.folder
        assert (model.folder / "tokenizer.json").read_bytes() == b"{}"
    else:
        with pytest.raises(UserError, match=r"m/tokenizer\.json has not the checksum"):
            resolve(SOURCE, "", Cache(tmp_path), quiet)
        (partial,) = tmp_path.glob("s3/*.partial")
        assert (partial / "tokenizer.json").read_bytes() == b"\0\0", "emptied: it is all hole"
        assert "ok" not in (partial / ".parts" / "tokenizer.json").read_text()
    assert len([1 for path, _ in s3.ranges if path.endswith("tokenizer.json")]) == 2


def test_nothing_there(s3: FakeS3, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no bucket nowhere on http"):
        resolve("s3://nowhere/m", "", Cache(tmp_path), quiet)
    with pytest.raises(UserError, match=r"nothing at s3://models/nothing/"):
        resolve("s3://models/nothing", "", Cache(tmp_path), quiet)
    s3.put({"pytorch_model.bin": b"x", "config.json": b"{}"}, prefix="pickles/")
    with pytest.raises(UserError, match="only pickled weights"):
        resolve("s3://models/pickles", "", Cache(tmp_path), quiet)
    assert s3.ranges == []


@pytest.mark.parametrize("range_only", [True, False])
def test_no_access(whole: FakeS3, tmp_path: Path, range_only: bool) -> None:
    whole.before = lambda asked: 403 if asked.range or not range_only else None
    with pytest.raises(UserError, match=r"refuses access to s3://models/m .*AWS_"):
        resolve(SOURCE, "", Cache(tmp_path), quiet)


def test_no_credentials(s3: FakeS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UserError, match="no credentials for s3://models/m"):
        resolve(SOURCE, "", Cache(tmp_path), quiet)


def test_a_network_that_breaks(whole: FakeS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(parts, "_PAUSE_S", 0.0)
    whole.before = lambda asked: 0 if asked.nth > 4 else None
    with pytest.raises(Unavailable, match="check the network"):
        resolve(SOURCE, "", Cache(tmp_path), quiet)
    assert list(tmp_path.glob("s3/*.partial/.parts/*"))
    before, had = len(whole.ranges), journaled(tmp_path)
    whole.before = lambda asked: None
    assert had > 0
    first = resolve(SOURCE, "", Cache(tmp_path), quiet)
    assert len(whole.ranges) - before == 9 - had
    # What is there is good enough while S3 is away.
    whole.before = lambda asked: 0
    assert resolve(SOURCE, "", Cache(tmp_path), quiet) == first


def journaled(cache: Path) -> int:
    texts = (p.read_text() for p in cache.glob("s3/*.partial/.parts/*"))
    return sum(line.isdigit() for text in texts for line in text.splitlines())


def test_a_missing_shard_is_named(s3: FakeS3, tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    s3.put(
        {
            "config.json": b"{}",
            "model.safetensors.index.json": json.dumps(index).encode(),
            "model-1.safetensors": a_safetensors(10),
        }
    )
    with pytest.raises(UserError, match=r"model-2\.safetensors, which model\.safetensors\.index\.json names"):
        resolve(SOURCE, "", Cache(tmp_path), quiet)


def test_two_processes_download_once(whole: FakeS3, tmp_path: Path) -> None:
    both = threading.Event()
    first_asks = threading.Event()

    def hold_back(asked: Asked) -> None:
        if asked.range:
            first_asks.set()
            both.wait(60)

    whole.before = hold_back
    first = child(tmp_path)
    assert first_asks.wait(60)
    second = child(tmp_path)
    try:
        assert second.stdout
        assert any("waiting for another replica to download" in line for line in second.stdout)
    finally:
        both.set()
        said = [first.communicate()[0], second.communicate()[0]]
    ends = [text.splitlines()[-1] for text in said]
    assert ends[0] == ends[1]
    assert ends[0].startswith("folder ")
    assert len(whole.ranges) == len(set(whole.ranges)) == 9


def test_a_file_that_cannot_be_written_leaves_nothing(whole: FakeS3, tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands for a disk that fills up while it is written to."""
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n" + CHILD
    done = subprocess.run(
        [sys.executable, "-c", code, SOURCE, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Unavailable: The disk is full: s3://models/m needs 40MiB more in" in done.stderr
    assert list(tmp_path.glob("s3/*")) == []


def test_a_disk_that_is_too_small_is_said_before_anything_comes(
    whole: FakeS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(2**20, 0, 2**20))
    with pytest.raises(Unavailable, match=r"needs 40MiB more in .*, and 1MiB are free"):
        resolve(SOURCE, "", Cache(tmp_path), quiet)
    assert whole.ranges == []


async def test_a_replica_from_s3_answers(s3: FakeS3, tmp_path: Path) -> None:
    pytest.importorskip("openvino_genai", reason="needs pip install 'headrace[cpu]'")
    demo = Path(headrace.__file__).parent / "data" / "demo"
    s3.put({p.name: p.read_bytes() for p in demo.iterdir()}, prefix="demo/v1/")
    assert os.environ["AWS_ENDPOINT_URL"] == s3.url, "what the scheduler passes on"
    async with running(a_spec(engine="openvino", source="s3://models/demo/v1"), tmp_path) as replica:
        await replica.ready()
        async with replica.session() as p:
            seen = await p.ask(
                chat("What is machine learning?"), max_tokens=8, sampling=Sampling(temperature=0.0, ignore_eos=True)
            )
            assert len(seen.tokens) == 8
    (folder,) = (tmp_path / "cache" / "s3").iterdir()
    assert "model.safetensors" not in names(folder), "one kind of weights is enough"
