"""Weights from S3: what is fetched, what survives a kill, and what every failure says."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("boto3", reason="needs pip install 'headrace[s3]'")
pytest.importorskip("moto", reason="needs the extra [dev]")

from s3_fixtures import KIB, S3, s3_server

SHARD_BYTES = 4096 * KIB
PART = 256 * KIB
BIG = "/weights/org/model/model.safetensors"


def safetensors(seed: int, size: int = SHARD_BYTES) -> bytes:
    header = json.dumps({"w": {"dtype": "U8", "shape": [size - 100], "data_offsets": [0, size - 100]}}).ljust(92)
    return len(header).to_bytes(8, "little") + header.encode() + random.Random(seed).randbytes(size - 100)


@pytest.fixture
def s3() -> Iterator[S3]:
    with s3_server() as s3:
        client = s3.client()
        client.create_bucket(Bucket="weights")
        for name, body in {
            "config.json": b"{}",
            "model.safetensors": safetensors(1),
            "pytorch_model.bin": b"x",
        }.items():
            client.put_object(Bucket="weights", Key=f"org/model/{name}", Body=body)
        yield s3
        client.delete_object(Bucket="weights", Key="org/model/model.safetensors")


def run(s3: S3, cache: Path, source: str = "s3://weights/org/model", limit: int = 0) -> tuple[int, str]:
    """(exit code, the last line)."""
    with s3.fetch(source, cache, limit) as child:
        out, _ = child.communicate(timeout=60)
    return child.returncode, out.strip().splitlines()[-1]


def test_a_model_is_fetched_in_parts_once(s3: S3, tmp_path: Path) -> None:
    code, said = run(s3, tmp_path)
    assert code == 0, said
    folder = Path(said.removeprefix("folder "))
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == safetensors(1)
    assert s3.served[BIG] == SHARD_BYTES
    assert run(s3, tmp_path) == (0, said)
    assert s3.served[BIG] == SHARD_BYTES, "what is there is not fetched again"


def test_a_killed_download_goes_on_where_it_was(s3: S3, tmp_path: Path) -> None:
    s3.allowed = 7  # config.json's and six parts
    s3.open.clear()
    with s3.fetch("s3://weights/org/model", tmp_path) as child:
        deadline = time.monotonic() + 60
        journal = None
        while journal is None or len(journal.read_text().splitlines()) < 6:
            assert time.monotonic() < deadline
            assert child.poll() is None
            journal = next(iter(tmp_path.glob("partial/*/.model.safetensors.parts")), None)
            time.sleep(0.01)
        child.kill()
    kept = (len(journal.read_text().splitlines()) - 1) * PART
    assert kept >= 5 * PART
    s3.open.set()
    s3.settle()
    s3.served = {}
    code, said = run(s3, tmp_path)
    assert code == 0, said
    assert (Path(said.removeprefix("folder ")) / "model.safetensors").read_bytes() == safetensors(1)
    assert s3.served[BIG] == SHARD_BYTES - kept, "only what was missing is read again"


def test_an_object_that_changes_midway_is_noticed(s3: S3, tmp_path: Path) -> None:
    s3.allowed = 5
    s3.open.clear()
    with s3.fetch("s3://weights/org/model", tmp_path) as child:
        deadline = time.monotonic() + 60
        while s3.allowed > -2:
            assert time.monotonic() < deadline
            assert child.poll() is None
            time.sleep(0.01)
        s3.client().put_object(Bucket="weights", Key="org/model/model.safetensors", Body=safetensors(2))
        s3.open.set()
        out, _ = child.communicate(timeout=60)
    assert child.returncode == 0, out
    folder = Path(out.strip().splitlines()[-1].removeprefix("folder "))
    assert (folder / "model.safetensors").read_bytes() == safetensors(2)


def test_two_processes_download_once(s3: S3, tmp_path: Path) -> None:
    s3.allowed = 3
    s3.open.clear()
    with s3.fetch("s3://weights/org/model", tmp_path) as one, s3.fetch("s3://weights/org/model", tmp_path) as two:
        deadline = time.monotonic() + 60
        while s3.allowed > -4:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        s3.open.set()
        said = [p.communicate(timeout=60)[0] for p in (one, two)]
    assert (one.returncode, two.returncode) == (0, 0), said
    assert s3.served[BIG] == SHARD_BYTES


def test_a_missing_shard_is_named_before_anything_is_fetched(s3: S3, tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    client = s3.client()
    key = "org/model/model.safetensors.index.json"
    client.put_object(Bucket="weights", Key=key, Body=json.dumps(index).encode())
    code, said = run(s3, tmp_path)
    client.delete_object(Bucket="weights", Key=key)
    assert (code, "lacks model-2.safetensors" in said) == (1, True), said
    assert BIG not in s3.served


def test_a_shard_that_is_cut_off_is_named(s3: S3, tmp_path: Path) -> None:
    s3.client().put_object(Bucket="weights", Key="org/model/model.safetensors", Body=safetensors(1)[:-1])
    code, said = run(s3, tmp_path)
    assert code == 1
    assert said.startswith("UserError")
    assert "model.safetensors is cut off" in said


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("s3://nowhere/org/model", "There is no bucket 'nowhere'"),
        ("s3://weights/other", "There is nothing at s3://weights/other"),
    ],
)
def test_what_is_not_there(s3: S3, tmp_path: Path, source: str, says: str) -> None:
    code, said = run(s3, tmp_path, source)
    assert code == 1
    assert said.startswith(f"UserError {says}")


def test_no_access(s3: S3, tmp_path: Path) -> None:
    deny = {"Effect": "Deny", "Principal": "*", "Action": "s3:*", "Resource": "arn:aws:s3:::weights/*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [deny]})
    client = s3.client()
    client.put_bucket_policy(Bucket="weights", Policy=policy)
    code, said = run(s3, tmp_path)
    client.delete_bucket_policy(Bucket="weights")
    assert code == 1
    assert said.startswith("UserError No access to s3://weights/org/model/config.json"), said


def test_more_than_the_limit_and_what_makes_room(s3: S3, tmp_path: Path) -> None:
    code, said = run(s3, tmp_path, limit=1000)
    assert code == 1
    assert said.startswith("UserError")
    assert "raise --cache_limit" in said
    client = s3.client()
    for name, body in {"config.json": b"{}", "model.safetensors": safetensors(3)}.items():
        client.put_object(Bucket="weights", Key=f"second/{name}", Body=body)
    limit = SHARD_BYTES + SHARD_BYTES // 2
    first, second = run(s3, tmp_path, limit=limit)[1], run(s3, tmp_path, "s3://weights/second", limit=limit)[1]
    assert not Path(first.removeprefix("folder ")).exists()
    assert Path(second.removeprefix("folder ")).is_dir()


def test_without_the_network_the_last_copy_is_used(s3: S3, tmp_path: Path) -> None:
    _, said = run(s3, tmp_path)
    s3.url = "http://127.0.0.1:9"
    assert run(s3, tmp_path) == (0, said)
    code, said = run(s3, tmp_path / "empty")
    assert code == 1
    assert said.startswith("Unavailable Cannot reach S3 for s3://weights/org/model")
