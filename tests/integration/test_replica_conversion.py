"""Converting a real (small, random) safetensors model in a child process, and serving it. Needs the extra [convert].

That what is served equals what transformers generates is in tests/e2e/test_models_ondemand.py.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from model_fixtures import SmallModel
from replica_fixtures import a_spec, chat, running

from headrace.core.streams import Resume, Sampling
from headrace.process import group_members

pytest.importorskip("openvino_genai", reason="needs pip install 'headrace[cpu]'")

pytestmark = pytest.mark.timeout(300)

GREEDY = Sampling(temperature=0.0, ignore_eos=True)


async def test_converted_once_per_node_and_goes_on_from_delivered_tokens(
    small_models: dict[str, SmallModel], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    spec = a_spec(engine="auto", source=str(small_models["gpt2"]["hf"]), chat_template="{{ messages[0].content }}")
    async with asyncio.timeout(240), running(spec, tmp_path / "a", cache) as replica:
        status = await replica.status_when(lambda s: s.activity.startswith("converting") or s.model)
        assert status.activity.startswith("converting to OpenVINO")
        status = await replica.status_when(lambda s: s.model or s.reason, wait_s=240)
        assert status.model is not None, status.reason
        async with replica.session() as p:
            whole = await p.ask(chat("water"), max_tokens=24, sampling=GREEDY)
            sent = "".join(whole.pieces[:9])
            rest = await p.ask(
                chat("water"), max_tokens=24, sampling=GREEDY, resume=Resume(whole.tokens[:9], len(sent))
            )
            assert rest.tokens == whole.tokens[9:]
    async with running(spec, tmp_path / "b", cache) as replica:
        async for status in replica.statuses():
            assert "converting" not in status.activity, "converted once per node"
            if status.model:
                break


async def test_a_weight_format_makes_the_weights_smaller(small_models: dict[str, SmallModel], tmp_path: Path) -> None:
    sizes: dict[str, int] = {}
    for form in ("fp16", "int8"):
        cache = tmp_path / form / "cache"
        spec = a_spec(engine="auto", source=str(small_models["llama"]["hf"]), weight_format=form)
        async with asyncio.timeout(240), running(spec, tmp_path / form, cache) as replica:
            status = await replica.status_when(lambda s: s.model or s.reason, wait_s=240)
            assert status.model is not None, status.reason
            async with replica.session() as p:
                assert len((await p.ask(chat("water"), max_tokens=8, sampling=GREEDY)).tokens) == 8
        (weights,) = cache.glob("converted/*/openvino_model.bin")
        sizes[form] = weights.stat().st_size
    assert sizes["int8"] < 0.6 * sizes["fp16"]


async def test_a_converter_ends_with_its_replica(small_models: dict[str, SmallModel], tmp_path: Path) -> None:
    async with running(a_spec(engine="openvino", source=str(small_models["llama"]["hf"])), tmp_path / "a") as replica:
        await replica.status_when(lambda s: s.activity.startswith("converting to OpenVINO:"))
        assert len(group_members(replica.child.pid)) > 1
        replica.child._popen.kill()  # type: ignore[union-attr]  # only the leader, as the kernel would
        await replica.exit_code()
        async with asyncio.timeout(30):
            while group_members(replica.child.pid):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
