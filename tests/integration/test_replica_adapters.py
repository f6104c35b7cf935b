"""LoRA adapters of one replica process, with the simulated engine: an adapter's name gives answers of its own."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from adapter_fixtures import write_adapter
from replica_fixtures import RunningReplica, a_spec, running

from headrace.core import simulated
from headrace.core.types import Adapter, AdapterStatus, ReplicaStatus
from headrace.rpc import convert
from headrace.rpc.v1 import replica_pb2

PROMPT = "Hello"
IDS = simulated.encode(PROMPT)


async def tell(replica: RunningReplica, *adapters: Adapter, replica_id: str = "") -> None:
    request = replica_pb2.SetAdaptersRequest(replica_id=replica_id or replica.replica_id)
    request.adapters.extend(convert.adapter_to_pb(a) for a in adapters)
    await replica.stub.SetAdapters(request)


async def loaded(replica: RunningReplica, *adapters: Adapter) -> ReplicaStatus:
    """The status once exactly these are loaded."""
    wanted = tuple(AdapterStatus(a, loaded=True) for a in adapters)
    return await replica.status_when(lambda s: s.adapters == wanted)


async def test_come_and_go_while_the_replica_serves(tmp_path: Path) -> None:
    a = Adapter("a", str(write_adapter(tmp_path / "a")))
    b = Adapter("b", str(write_adapter(tmp_path / "b")))
    spec = replace(a_spec(options={"answer_tokens": 400, "step_s": 0.005}), adapters=(a,))
    async with running(spec, tmp_path / "replica") as replica, replica.channel:
        await replica.ready()
        await loaded(replica, a)
        async with replica.session() as p:
            base = await p.ask(PROMPT, max_tokens=20)
            assert base.tokens == simulated.answer(IDS, None, 20)
            mine = await p.ask(PROMPT, max_tokens=20, adapter="a")
            assert mine.tokens == simulated.answer(IDS, None, 20, "a") != base.tokens

            refused = (await p.ask(PROMPT, adapter="b")).rejected
            assert refused is not None
            assert (refused.failure.kind, "no adapter 'b'" in refused.failure.message) == ("not_loaded", True)

            with_a = await p.start(PROMPT, max_tokens=400, adapter="a")
            await p.until(lambda: p.seen[with_a].tokens)
            await tell(replica, b)
            status = await loaded(replica, b)
            assert status.pid == replica.child.pid
            assert not p.seen[with_a].over, "it runs on while its adapter is told to go"
            assert (await p.ask(PROMPT, adapter="a")).rejected, "which takes nothing new"
            assert (await p.ask(PROMPT, max_tokens=9, adapter="b")).tokens == simulated.answer(IDS, None, 9, "b")
            await tell(replica, b, a)
            await loaded(replica, b, a)
            assert (await p.end_of(with_a)).tokens == simulated.answer(IDS, None, 400, "a"), "and comes to its end"

            other = Adapter("a", str(write_adapter(tmp_path / "other")))
            await tell(replica, other)
            await loaded(replica, other)
            await tell(replica)
            await loaded(replica)
            assert (await p.ask(PROMPT, adapter="a")).rejected


async def test_what_cannot_be_loaded_says_why_and_the_rest_goes_on(tmp_path: Path) -> None:
    good = Adapter("good", str(write_adapter(tmp_path / "good")))
    pickled = write_adapter(tmp_path / "pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    empty = tmp_path / "empty"
    empty.mkdir()
    bad = {
        "pickled": (pickled, "only pickled weights, which can run code"),
        "empty": (empty, "is not an adapter: it has no adapter_config.json"),
        "ia3": (write_adapter(tmp_path / "ia3", peft_type="IA3"), "of the kind 'IA3'; Headrace loads LoRA only"),
        "gone": (tmp_path / "gone", "There is no folder"),
    }
    adapters = (good, *(Adapter(name, str(folder)) for name, (folder, _) in bad.items()))
    async with running(replace(a_spec(), adapters=adapters), tmp_path / "replica") as replica:
        status = await replica.status_when(lambda s: s.adapters and all(a.loaded or a.reason for a in s.adapters))
        said = {a.adapter.name: a for a in status.adapters}
        assert said["good"].loaded
        for name, (_, why) in bad.items():
            assert not said[name].loaded
            assert why in said[name].reason
        write_adapter(tmp_path / "gone")
        await tell(replica, good)
        await tell(replica, *adapters[:1], adapters[-1])
        await loaded(replica, good, adapters[-1])
        assert os.getpid() != status.pid == replica.child.pid


async def test_only_the_replica_that_is_meant_obeys(tmp_path: Path) -> None:
    async with running(a_spec(), tmp_path) as replica:
        await replica.ready()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await tell(replica, replica_id="demo-1-other")
        assert "This is replica demo-1-abcdef, not demo-1-other" in str(caught.value.details())
