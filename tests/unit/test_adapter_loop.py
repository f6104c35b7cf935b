"""How a replica comes to have its adapters: the loop against a double of the engine, and what OpenVINO is spared."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from adapter_fixtures import write_adapter

from headrace.core.phase import Phase
from headrace.core.types import Adapter, ReplicaId, ReplicaStatus
from headrace.errors import Unavailable, UserError
from headrace.replica import adapters as module
from headrace.replica.adapters import Adapters
from headrace.replica.status import StatusBoard

A, B = Adapter("a", "/a"), Adapter("b", "/b")


class Engine:
    """Records what it was told; `emptied` when that was to have none."""

    def __init__(self) -> None:
        self.told: list[dict[str, Path]] = []
        self.fails: dict[str, str] = {}
        self.breaks = False
        self.emptied = threading.Event()

    def set_adapters(self, adapters: Mapping[str, Path]) -> Mapping[str, str]:
        before = self.told[-1] if self.told else {}
        assert all(before.get(name, path) == path for name, path in adapters.items()), "a name keeps its folder"
        if self.breaks:
            raise RuntimeError("out of memory")
        self.told.append({n: p for n, p in adapters.items() if n not in self.fails})
        if not adapters:
            self.emptied.set()
        return {n: why for n, why in self.fails.items() if n in adapters}


class Streams:
    def __init__(self) -> None:
        self.adapters: frozenset[str] = frozenset()
        self.busy: set[str] = set()
        self.on_adapter_left: Any = None

    def adapters_in_use(self) -> set[str]:
        return self.busy

    def leave(self, name: str) -> None:
        self.busy.discard(name)
        self.on_adapter_left()


class World:
    def __init__(self) -> None:
        self.engine, self.streams = Engine(), Streams()
        self.board = StatusBoard(ReplicaStatus(ReplicaId("r"), "d", 1, Phase.READY))
        self.adapters = Adapters(self.engine, self.streams, self.board, Path("/cache"), ())  # type: ignore[arg-type]

    async def until(self, said: dict[str, bool | str]) -> None:
        """Wait until the board says of exactly these adapters that they are loaded (True), or why not."""
        async with asyncio.timeout(30):
            async for status in self.board.follow(30):
                if {s.adapter.name: s.loaded or s.reason for s in status.adapters} == said:
                    return


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(module, "adapter_folder", lambda source, *_: Path(source))
    world = World()
    task = asyncio.create_task(world.adapters.run())
    yield world
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled(), task


async def test_what_is_in_use_is_kept_and_taken_by_nobody_new(world: World) -> None:
    world.adapters.set([A])
    await world.until({"a": True})
    world.streams.busy.add("a")
    world.adapters.set([B])
    assert world.streams.adapters == frozenset()
    await world.until({"b": True})
    assert world.engine.told[-1] == {"a": Path("/a"), "b": Path("/b")}
    world.adapters.set([A, B])
    assert world.streams.adapters == {"a", "b"}, "wanted again before it was dropped"
    world.adapters.set([])
    world.streams.leave("a")
    assert await asyncio.to_thread(world.engine.emptied.wait, 30)


async def test_another_source_under_the_same_name_comes_when_the_old_one_has_gone(world: World) -> None:
    world.adapters.set([A])
    await world.until({"a": True})
    world.streams.busy.add("a")
    world.adapters.set([Adapter("a", "/other")])
    await world.until({"a": ""})
    assert world.streams.adapters == frozenset(), "nobody gets the old one under the new one's name"
    world.streams.leave("a")
    await world.until({"a": True})
    assert world.engine.told == [{"a": Path("/a")}, {}, {"a": Path("/other")}]


async def test_what_cannot_be_fetched_now_is_tried_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = iter([Unavailable("The hub is away."), Unavailable("The hub is away."), Path("/a")])

    def fetch(*_: object) -> Path:
        answer = next(tries)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(module, "adapter_folder", fetch)
    monkeypatch.setattr(module, "_AGAIN_S", 0.01)
    monkeypatch.setattr(module, "_AGAIN_MAX_S", 0.01)
    world.adapters.set([A])
    await world.until({"a": "The hub is away. It is tried again."})
    await world.until({"a": True})


async def test_a_slow_source_holds_up_nothing_else(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    there = threading.Event()

    def fetch(source: str, *_: object) -> Path:
        assert source != "/a" or there.wait(30)
        return Path(source)

    monkeypatch.setattr(module, "adapter_folder", fetch)
    world.adapters.set([A, B])
    await world.until({"a": "", "b": True})
    world.adapters.set([A])
    assert await asyncio.to_thread(world.engine.emptied.wait, 30)
    there.set()
    await world.until({"a": True})


async def test_one_that_the_engine_refuses_does_not_keep_others_from_coming(world: World) -> None:
    world.engine.fails = {"a": "For another model."}
    world.adapters.set([A, B])
    await world.until({"a": "For another model.", "b": True})
    assert world.streams.adapters == {"b"}
    world.engine.fails = {}
    world.adapters.set([B])
    world.adapters.set([A, B])  # named again, it is tried again
    await world.until({"a": True, "b": True})


async def test_an_engine_that_fails_says_so(world: World) -> None:
    world.engine.breaks = True
    world.adapters.set([A])
    await world.until({"a": "The engine failed to load it (RuntimeError: out of memory)."})


def test_the_scale_of_an_adapter_is_its_configurations(tmp_path: Path) -> None:
    lora = pytest.importorskip("headrace.replica.engines.openvino_lora")
    assert lora.scale({"r": 4, "lora_alpha": 8}) == 2.0
    assert lora.scale({"r": 4, "lora_alpha": 8, "use_rslora": True, "bias": "none", "alpha_pattern": {}}) == 4.0
    for config in ({}, {"r": 0, "lora_alpha": 1}, {"r": 4, "lora_alpha": 8, "rank_pattern": {"x": 2}}):
        with pytest.raises(UserError):
            lora.scale(config)
    folder = write_adapter(tmp_path / "x")
    assert lora.tensor_names(folder / "adapter_model.safetensors") == []
