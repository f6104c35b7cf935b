"""LoRA adapters on vLLM: the tokens are those of transformers with the adapter in the weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from adapter_fixtures import Greedy, come_and_go, start, tell, write_adapter
from model_fixtures import SmallModel
from replica_fixtures import a_spec, running

from headrace.core.types import Adapter

pytest.importorskip("vllm", reason="runs in an environment of its own: make test-vllm")

pytestmark = pytest.mark.timeout(300)


async def test_adapters_come_and_go_while_streams_run(small_models: dict[str, SmallModel], tmp_path: Path) -> None:
    model = small_models["llama"]
    a, b = (Adapter(n, str(model["lora"][n])) for n in "ab")
    expected: dict[str, Greedy] = {n: json.loads(model["lora_greedy"][n].read_text()) for n in "ab"}
    expected[""] = json.loads(model["greedy"].read_text())
    options = {"dtype": "float32", "kv_cache_memory_bytes": 2**28}
    spec = replace(a_spec(engine="vllm", source=str(model["hf"]), cpus=2, options=options), adapters=(a,))
    async with running(spec, tmp_path) as replica:
        await replica.status_when(lambda s: s.model or s.reason, 180)
        await come_and_go(replica, a, b, expected)
        async with replica.session() as p:
            bad = Adapter("bad", str(write_adapter(tmp_path / "bad")))
            said = {s.adapter.name: s for s in (await tell(replica, b, bad)).adapters}
            assert said["b"].loaded
            assert not said["bad"].loaded
            assert "vLLM cannot load the adapter bad" in said["bad"].reason
            for number, ids in await start(p, expected["b"], "b"):
                assert (await p.end_of(number)).tokens == ids, number
