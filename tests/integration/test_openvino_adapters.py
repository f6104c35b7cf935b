"""LoRA adapters on the OpenVINO engine: the tokens are those of transformers with the adapter in the weights."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
from adapter_fixtures import Greedy, come_and_go, tell, write_adapter
from model_fixtures import SmallModel
from replica_fixtures import a_spec, running

from headrace.core.types import Adapter, AdapterStatus

pytest.importorskip("openvino_genai", reason="needs pip install 'headrace[cpu]'")

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("name", ["gpt2", "llama", "phi"])
async def test_tokens_are_those_of_the_merged_weights(
    small_models: dict[str, SmallModel], tmp_path: Path, name: str
) -> None:
    model = small_models[name]
    a, b = (Adapter(n, str(model["lora"][n])) for n in "ab")
    expected: dict[str, Greedy] = {n: json.loads(model["lora_greedy"][n].read_text()) for n in "ab"}
    expected[""] = json.loads(model["greedy"].read_text())
    first = [[e["ids"] for e in expected[n]] for n in ("", "a", "b")]
    assert all(len({tuple(ids) for ids in told}) == 3 for told in zip(*first, strict=True)), "each answers otherwise"

    options = {"kv_cache_precision": "f32"}
    spec = replace(a_spec(engine="openvino", source=str(model["ov"]), options=options, cpus=2), adapters=(a,))
    async with running(spec, tmp_path) as replica:
        await replica.ready()
        await come_and_go(replica, a, b, expected)


async def test_what_openvino_would_ignore_or_get_wrong_is_refused(
    small_models: dict[str, SmallModel], tmp_path: Path
) -> None:
    np = pytest.importorskip("numpy")
    module = "base_model.model.model.layers.0.self_attn.q_proj"

    def tensors(columns: int, rest: str = "") -> dict[str, object]:
        a, b = np.ones((4, columns), np.float32), np.ones((64, 4), np.float32)
        more = {f"{module}.{rest}": b} if rest else {}
        return {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b, **more}

    garbage = write_adapter(tmp_path / "garbage")
    (garbage / "adapter_model.safetensors").write_bytes(b"not tensors at all")
    cases = {
        "other": (small_models["gpt2"]["lora"]["a"], "is for another model: it changes transformer.h.0.attn.c_attn"),
        "shape": (write_adapter(tmp_path / "shape", tensors(32)), "OpenVINO cannot load the adapter: "),
        "dora": (write_adapter(tmp_path / "dora", tensors(64), use_dora=True), "with use_dora"),
        "bias": (write_adapter(tmp_path / "bias", tensors(64), bias="all"), "that changes biases"),
        "more": (write_adapter(tmp_path / "more", tensors(64, "lora_magnitude_vector")), "lora_magnitude_vector."),
        "scale": (write_adapter(tmp_path / "scale", tensors(64), lora_alpha=None), "no rank (r) and lora_alpha"),
        "empty": (write_adapter(tmp_path / "empty"), "has no tensors"),
        "garbage": (garbage, "is not a safetensors file"),
    }
    adapters = [Adapter(name, str(folder)) for name, (folder, _) in cases.items()]
    good = Adapter("good", str(small_models["llama"]["lora"]["a"]))
    spec = a_spec(engine="openvino", source=str(small_models["llama"]["ov"]), cpus=2)
    async with asyncio.timeout(240), running(spec, tmp_path / "replica") as replica:
        await replica.ready()
        status = await tell(replica, *adapters, good)
        for said in status.adapters[:-1]:
            assert not said.loaded, said
            assert cases[said.adapter.name][1] in said.reason
        assert status.adapters[-1] == AdapterStatus(good, loaded=True)
