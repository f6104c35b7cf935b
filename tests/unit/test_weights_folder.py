"""Folders of weights that are not whole, and what of a remote one is wanted."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from headrace.errors import UserError
from headrace.replica.weights import Cache, Weights, inspect_folder, resolve
from headrace.replica.weights.folder import matching, patterns


def safetensors(size: int = 8) -> bytes:
    header = json.dumps({"__metadata__": {"format": "pt"}, "w": {"data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(size)


def a_model(folder: Path, **shards: bytes) -> Path:
    (folder / "config.json").write_text("{}")
    for name, data in shards.items():
        (folder / f"{name}.safetensors").write_bytes(data)
    return folder


def index(folder: Path, *names: object) -> None:
    text = json.dumps({"weight_map": {str(i): n for i, n in enumerate(names)}})
    (folder / "model.safetensors.index.json").write_text(text)


def test_a_whole_one(tmp_path: Path) -> None:
    index(a_model(tmp_path, one=safetensors(), two=safetensors(0)), "one.safetensors", "two.safetensors")
    assert inspect_folder(tmp_path).weights is Weights.SAFETENSORS


@pytest.mark.parametrize(
    "data",
    [b"", b"\x01", safetensors()[:-1], safetensors() + b"x", safetensors()[:20], b"\xff" * 64,
     struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 2) + b"{x", struct.pack("<Q", 8) + b'{"a":{}}'],
)  # fmt: skip
def test_a_file_that_is_cut_off_is_named(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(UserError, match=r"two\.safetensors is damaged: .* again\.$"):
        inspect_folder(a_model(tmp_path, one=safetensors(), two=data))


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    index(a_model(tmp_path, one=safetensors()), "one.safetensors", "two.safetensors")
    with pytest.raises(UserError, match=r"two\.safetensors, which model\.safetensors\.index\.json names, is missing"):
        inspect_folder(tmp_path)


@pytest.mark.parametrize("name", ["../one.safetensors", "/etc/passwd", "", 3])
def test_an_index_that_leads_elsewhere(tmp_path: Path, name: object) -> None:
    index(a_model(tmp_path, one=safetensors()), name)
    with pytest.raises(UserError, match="no file of its folder"):
        inspect_folder(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"weight_map": 3}'])
def test_an_index_that_is_none(tmp_path: Path, text: str) -> None:
    a_model(tmp_path, one=safetensors())
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UserError, match="no weight_map"):
        inspect_folder(tmp_path)


def test_file_urls(tmp_path: Path) -> None:
    folder = tmp_path / "my model"
    folder.mkdir()
    a_model(folder, one=safetensors())
    found = resolve(f"file://{tmp_path}/my%20model", "", Cache(tmp_path / "c"), lambda *_: None)
    assert found.folder == folder
    with pytest.raises(UserError, match="neither"):
        resolve("file://host/model", "", Cache(tmp_path / "c"), lambda *_: None)


def test_a_revision_of_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="for hf:// only"):
        resolve(str(tmp_path), "v1", Cache(tmp_path), lambda *_: None)


def test_code_is_wanted_only_if_it_is_trusted() -> None:
    names = ["config.json", "modeling.py", "model[1].safetensors", "sub/model.safetensors", "x.bin"]
    assert matching(names, patterns("x", names, False, Weights.OPENVINO)) == ["config.json", "model[1].safetensors"]
    assert "modeling.py" in matching(names, patterns("x", names, True, Weights.OPENVINO))
