"""The catalog: a strict schema with sentences, precedence, and what a deploy request comes to."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources
from typing import Any

import pytest
import yaml

from headrace.core.catalog import check_entry, check_model, merge, name_of, parse, parse_size, resolve
from headrace.core.types import NAME_PATTERN, CatalogEntry, Deployment, DeployRequest, ModelSpec, Resources
from headrace.errors import InvalidRequest, NotFound
from headrace.head.reconciler import new_replica_id
from headrace.rpc import convert

GIB = 2**30


def built_in() -> dict[str, CatalogEntry]:
    text = (resources.files("headrace") / "data" / "catalog.yaml").read_text()
    return parse(yaml.safe_load(text), "catalog.yaml", "built-in")


def test_the_built_in_catalog_is_whole() -> None:
    catalog = built_in()
    assert set(catalog) == {"demo", "gpt2", "tinyllama", "phi2"}
    assert catalog["demo"].model.source == "builtin:demo"
    for name, context in {"gpt2": 1024, "tinyllama": 2048, "phi2": 2048}.items():
        entry = catalog[name]
        assert entry.model.source.startswith("hf://")
        assert len(entry.model.source_revision) == 40
        assert entry.model.context_tokens == context
        assert entry.resources.cpus == 1
        assert entry.resources.memory_bytes >= GIB
        assert entry.origin == "built-in"


def test_the_base_models_templates_make_prompts() -> None:
    import jinja2.sandbox

    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Why?"},
    ]
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

    def render(name: str) -> str:
        template = env.from_string(built_in()[name].model.chat_template)
        return template.render(messages=messages, add_generation_prompt=True)

    assert render("gpt2") == "Be brief.\n\nQuestion: Hi?\nAnswer: Yes.\n\nQuestion: Why?\nAnswer:"
    assert render("phi2") == "Be brief.\nInstruct: Hi?\nOutput: Yes.\nInstruct: Why?\nOutput:"


def entry(name: str = "m", source: str = "/models/m", origin: str = "file", **more: Any) -> CatalogEntry:
    return CatalogEntry(name, ModelSpec(source=source), Resources(1.0), origin=origin, **more)


def test_the_later_layer_wins_as_a_whole() -> None:
    low, high = entry(origin="built-in", description="old"), entry(source="hf://a/b", origin="added")
    assert merge({"m": low, "k": entry("k")}, {}, {"m": high}) == {"k": entry("k"), "m": high}


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ("2GiB", 2 * GIB),
        ("2 GiB", 2 * GIB),
        ("1.5KiB", 1536),
        ("2GB", 2 * 10**9),
        (7, 7),
        ("7", 7),
        ("1tib", 1024 * GIB),
    ],
)
def test_sizes(value: object, size: int) -> None:
    assert parse_size(value) == size


@pytest.mark.parametrize("value", ["", "GiB", "-1", "2 XB", None, True, 1.5, [1]])
def test_what_is_no_size(value: object) -> None:
    with pytest.raises(ValueError, match="is not a size such as 2GiB"):
        parse_size(value)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"model": {}}, "f.yaml: unknown key 'model'; did you mean models?"),
        ({"models": {"m": {"sorce": "/x"}}}, "f.yaml: m: unknown key 'sorce'; did you mean source?"),
        ({"models": {"m": {"source": "/x", "zzz": 1}}}, "f.yaml: m: unknown key 'zzz'; there are source, "),
        ({"models": {"m": {}}}, "f.yaml: m: needs a source"),
        ({"models": {"m": {"source": "models/x"}}}, "f.yaml: m: 'models/x' is not a source"),
        ({"models": {"m": {"source": "hf://only"}}}, "f.yaml: m: 'hf://only' is not a source"),
        ({"models": {"m": {"source": "/x", "resources": {"memry": "1GiB"}}}},
         "f.yaml: m: resources: unknown key 'memry'; did you mean memory?"),
        ({"models": {"m": {"source": "/x", "resources": {"memory": "lots"}}}},
         "f.yaml: m: resources: memory: 'lots' is not a size such as 2GiB."),
        ({"models": {"m": {"source": "/x", "resources": {"gpus": 1.5}}}}, "gpus must be a whole number, not 1.5"),
        ({"models": {"m": {"source": "/x", "resources": {"cpus": "two"}}}}, "cpus must be a number, not 'two'"),
        ({"models": {"m": {"source": "/x", "engine": "vlm"}}}, "f.yaml: m: No engine 'vlm'; there are auto, "),
        ({"models": {"m": {"source": "/x", "revision": 12}}}, "revision must be a string, not 12; put it in quotes."),
        ({"models": {"m": {"source": "/x", "engine_args": [1]}}}, "engine_args must be a mapping, not list."),
        ({"models": {"m": {"source": "/x", "engine_args": {"d": __import__("datetime").date(2026, 1, 1)}}}},
         "f.yaml: m: "),
        ({"models": {"bad name": {"source": "/x"}}}, "f.yaml: bad name: 'bad name' is not a model name"),
        ({"models": {1: {"source": "/x"}}}, "f.yaml: models: the key 1 must be a string"),
        ({"models": ["m"]}, "f.yaml: models must be a mapping, not list."),
        ("hello", "f.yaml must be a mapping, not str."),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_place(data: object, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(data, "f.yaml", "file")
    assert said in caught.value.message
    assert caught.value.message.startswith("f.yaml")


def test_an_empty_file_is_an_empty_catalog() -> None:
    assert parse(None, "f.yaml", "file") == {}


def test_engine_args_become_canonical_json() -> None:
    a = parse({"models": {"m": {"source": "/x", "engine_args": {"b": 1, "a": [2]}}}}, "f", "file")["m"]
    assert a.model.engine_args_json == '{"a":[2],"b":1}'
    again = resolve(DeployRequest("/x", engine_args_json='{ "b": 1, "a": [2] }'), {}).model
    assert again.engine_args_json == a.model.engine_args_json


def test_a_catalogued_model_with_overrides() -> None:
    wanted = resolve(DeployRequest("gpt2", cpus=2.0, weight_format="int8", min_replicas=2), built_in())
    assert wanted.name == "gpt2"
    assert wanted.resources == Resources(2.0, 2 * GIB)
    assert (wanted.model.weight_format, wanted.model.context_tokens) == ("int8", 1024)
    assert (wanted.min_replicas, wanted.max_replicas) == (2, 2)


@pytest.mark.parametrize(
    ("model", "name", "source"),
    [
        ("/models/my-llama/", "my-llama", "/models/my-llama"),
        ("hf://org/Some-7B.v2", "Some-7B.v2", "hf://org/Some-7B.v2"),
        ("builtin:demo", "demo", "builtin:demo"),
    ],
)
def test_folders_and_hub_ids_are_named_by_their_last_part(model: str, name: str, source: str) -> None:
    wanted = resolve(DeployRequest(model), {})
    assert (wanted.name, wanted.model.source) == (name, source)
    assert resolve(DeployRequest(model, name="other"), {}).name == "other"


def test_an_unknown_model_names_what_there_is() -> None:
    with pytest.raises(NotFound) as caught:
        resolve(DeployRequest("tinylama"), built_in())
    assert caught.value.message == (
        "No model 'tinylama' in the catalog; there are demo, gpt2, phi2, tinyllama. Did you mean tinyllama?"
    )


DEPLOYED = Deployment("gpt2", 1, ModelSpec(source="/x"), Resources(), 2, 4, 2, 0)


@pytest.mark.parametrize(
    ("low", "high", "existing", "outcome"),
    [
        (None, None, None, (1, 1)),
        (3, None, None, (3, 3)),
        (None, 3, None, (1, 3)),
        (0, 0, None, (0, 0)),
        (None, None, DEPLOYED, (2, 4)),
        (1, None, DEPLOYED, (1, 1)),
        (None, 8, DEPLOYED, (2, 8)),
        (None, 1, DEPLOYED, (1, 1)),
    ],
)
def test_replica_ranges(
    low: int | None, high: int | None, existing: Deployment | None, outcome: tuple[int, int]
) -> None:
    wanted = resolve(DeployRequest("gpt2", min_replicas=low, max_replicas=high), built_in(), existing)
    assert (wanted.min_replicas, wanted.max_replicas) == outcome


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"min_replicas": 3, "max_replicas": 2}, "max_replicas"),
        ({"max_replicas": 10**6}, "max_replicas"),
        ({"cpus": float("nan")}, "cpus"),
        ({"cpus": -1.0}, "cpus"),
        ({"gpus": 10**6}, "gpus"),
        ({"memory_bytes": 2**62}, "memory_bytes"),
        ({"gpu_memory_bytes": 1}, "gpu_memory_bytes"),
        ({"engine": "llama"}, "engine"),
        ({"weight_format": "int3"}, "weight_format"),
        ({"engine_args_json": "[]"}, "engine_args_json"),
        ({"engine_args_json": "{"}, "engine_args_json"),
        ({"source_revision": "a b"}, "source_revision"),
        ({"chat_template": "x" * 300_000}, "chat_template"),
        ({"context_tokens": 2**32}, "context_tokens"),
        ({"name": "../etc"}, "name"),
        ({"model": "hf://org/name/more"}, "source"),
        ({"model": "/a\0b", "name": "x"}, "source"),
    ],
)
def test_everything_is_bounded(change: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        resolve(replace(DeployRequest("gpt2"), **change), built_in())
    assert caught.value.param == param


def test_names_are_never_paths() -> None:
    with pytest.raises(InvalidRequest):
        name_of(DeployRequest("/"))
    for name in (
        "..",
        "../a",
        "a/..",
        "a/../b",
        "/a",
        "a/",
        "a//b",
        "a/.b",
        "a/b/",
        "./a",
        "a\n",
        "a/b\n",
        "",
        "a" * 97,
    ):
        with pytest.raises(InvalidRequest):
            check_entry(entry(name=name))


def test_names_may_have_an_organisation() -> None:
    assert check_entry(entry(name="org/name")).name == "org/name"
    assert name_of(DeployRequest("org/name")) == "org/name", "of the catalog: its own name"
    assert name_of(DeployRequest("hf://org/name")) == "name"
    assert name_of(DeployRequest("hf://org/name", name="org/name")) == "org/name"
    replica = new_replica_id("org/name", 1)
    assert NAME_PATTERN.fullmatch(replica), "it is a folder's name"


@pytest.mark.parametrize(
    ("args", "asked", "gpus"),
    [
        ({"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, None, 4),
        ({"tensor_parallel_size": 2}, 2, 2),
        ({"tensor_parallel_size": 2}, 0, 0),  # on CPUs, on purpose
        ({}, 1, 1),
        ({}, None, 0),
    ],
)
def test_parallel_sizes_count_as_gpus(args: dict[str, int], asked: int | None, gpus: int) -> None:
    request = DeployRequest(model="/m", engine="vllm", gpus=asked, engine_args_json=json.dumps(args))
    assert resolve(request, {}).resources.gpus == gpus


@pytest.mark.parametrize(
    ("args", "asked", "said"),
    [
        ({"tensor_parallel_size": 4}, 2, "tensor_parallel_size takes 4 GPUs, but gpus is 2."),
        ({"tensor_parallel_size": "two"}, None, "must be a whole number"),
        ({"pipeline_parallel_size": 0}, None, "must be a whole number"),
    ],
)
def test_parallel_sizes_that_cannot_be_are_refused(args: dict[str, Any], asked: int | None, said: str) -> None:
    request = DeployRequest(model="/m", engine="vllm", gpus=asked, engine_args_json=json.dumps(args))
    with pytest.raises(InvalidRequest, match=said):
        resolve(request, {})


def test_ready_made_openvino_models() -> None:
    for name in ("tinyllama", "phi2"):
        model = resolve(DeployRequest(name), built_in()).model
        assert model.openvino_source.startswith("hf://OpenVINO/")
        assert convert.model_from_pb(convert.model_to_pb(model)) == model
        other = resolve(DeployRequest(name, source_revision="main"), built_in()).model
        assert other.openvino_source == "", "it is not made of the revision that was asked for"
    said = {"source": "/x", "openvino": {"source": "/ir", "revision": "v1"}}
    model = parse({"models": {"m": said}}, "f.yaml", "file")["m"].model
    assert (model.openvino_source, model.openvino_revision) == ("/ir", "v1")


@pytest.mark.parametrize(
    ("openvino", "said"),
    [
        ({"sorce": "/x"}, "f.yaml: m: openvino: unknown key 'sorce'; did you mean source?"),
        ({"source": "builtin:demo"}, "'builtin:demo' is not a source of OpenVINO IR"),
        ({"source": "/x", "revision": "a b"}, "'a b' is not a revision"),
        ("/x", "f.yaml: m: openvino must be a mapping"),
    ],
)
def test_what_is_no_ready_made_model(openvino: object, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse({"models": {"m": {"source": "/y", "openvino": openvino}}}, "f.yaml", "file")
    assert said in caught.value.message


@pytest.mark.parametrize(
    "source",
    ["s3://models/llama/v1.2", "s3://models", "s3://my.models/a/b=1/", "file:///models/llama", "file:///a%20b"],
)
def test_sources_that_are_fetched(source: str) -> None:
    assert check_model(ModelSpec(source)).source == source


@pytest.mark.parametrize(
    "source",
    ["s3://", "s3:/models/x", "s3://Models/x", "s3://models//x", "s3://models/../x", "s3://models/a/..", "s3://m/x",
     "s3://models/a b", "s3://models/x?y", "s3://user:pass@models/x", "file://host/x", "file:///x?y", "file:///x\0"],
)  # fmt: skip
def test_sources_that_are_refused(source: str) -> None:
    with pytest.raises(InvalidRequest, match="is not a source"):
        check_model(ModelSpec(source))


@pytest.mark.parametrize("source", ["s3://models/x", "/models/x", "builtin:demo", "file:///models/x"])
def test_a_revision_is_the_hubs_only(source: str) -> None:
    with pytest.raises(InvalidRequest, match="revision is for hf://"):
        check_model(ModelSpec(source, source_revision="v1"))
    check_model(ModelSpec("hf://org/name", source_revision="v1"))
