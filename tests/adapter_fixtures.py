"""LoRA adapters in PEFT's format, written by hand; telling a replica of them, and asking it with them."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from replica_fixtures import ProxySide, RunningReplica

from headrace.core.streams import Sampling, TokenPrompt
from headrace.core.types import Adapter, AdapterStatus, ReplicaStatus
from headrace.rpc import convert
from headrace.rpc.v1 import replica_pb2


def write_safetensors(path: Path, tensors: Mapping[str, Any]) -> None:
    """NumPy arrays of float32 as a safetensors file: the header's length, the header, the numbers."""
    header: dict[str, object] = {}
    at = 0
    for name, array in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(a.tobytes() for a in tensors.values()))


def write_adapter(folder: Path, tensors: Mapping[str, Any] | None = None, **config: object) -> Path:
    """An adapter's folder; without tensors one that only the simulated engine takes."""
    folder.mkdir(parents=True)
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    write_safetensors(folder / "adapter_model.safetensors", tensors or {})
    return folder


GREEDY = Sampling(temperature=0.0, ignore_eos=True)
Greedy = list[dict[str, list[int]]]


async def tell(replica: RunningReplica, *adapters: Adapter) -> ReplicaStatus:
    """Tell the replica which adapters to have; the status when each is loaded or refused."""
    request = replica_pb2.SetAdaptersRequest(replica_id=replica.replica_id)
    request.adapters.extend(convert.adapter_to_pb(a) for a in adapters)
    await replica.stub.SetAdapters(request)
    return await settled(replica, *adapters)


async def settled(replica: RunningReplica, *adapters: Adapter) -> ReplicaStatus:
    def decided(s: ReplicaStatus) -> bool:
        return tuple(a.adapter for a in s.adapters) == adapters and all(a.loaded or a.reason for a in s.adapters)

    return await replica.status_when(decided)


async def start(p: ProxySide, expected: Greedy, adapter: str) -> list[tuple[int, list[int]]]:
    """Start every prompt of `expected`, each of another length: (stream, the tokens it is to bring)."""
    streams: list[tuple[int, list[int]]] = []
    for n, e in enumerate(expected):
        ids = e["ids"][: 48 - 11 * n]
        prompt = TokenPrompt(e["prompt_ids"])
        streams.append((await p.start(prompt, max_tokens=len(ids), sampling=GREEDY, adapter=adapter), ids))
    return streams


async def come_and_go(replica: RunningReplica, a: Adapter, b: Adapter, expected: Mapping[str, Greedy]) -> None:
    """`a` is there; `b` comes while streams run, then `a` goes: every answer is that of the merged weights."""
    assert (await settled(replica, a)).adapters == (AdapterStatus(a, loaded=True),)
    async with replica.session() as p:
        streams = [s for n in ("", "a", "") for s in await start(p, expected[n], n)]
        status = await tell(replica, a, b)  # while they run
        assert all(s.loaded for s in status.adapters), status.adapters
        streams += [s for n in ("a", "b", "") for s in await start(p, expected[n], n)]
        for number, ids in streams:
            assert (await p.end_of(number)).tokens == ids, number
        assert (await tell(replica, b)).pid == replica.child.pid
        for number, ids in await start(p, expected["b"], "b"):
            assert (await p.end_of(number)).tokens == ids, number
        refused = (await p.ask("x", adapter="a")).rejected
        assert refused is not None
        assert refused.failure.kind == "not_loaded"
