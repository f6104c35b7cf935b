"""What replicas of one model on a machine share: the weights' file is mapped by each, and is in memory once."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import psutil
import pytest
from replica_fixtures import a_spec, chat, running

import headrace
from headrace.core.streams import Sampling

pytest.importorskip("openvino_genai", reason="needs pip install 'headrace[cpu]'")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def mapped(pid: int, path: Path) -> dict[str, int]:
    """kB of a file that a process has mapped, by the names that the kernel gives them."""
    found: dict[str, int] = {}
    ours = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            ours = line.endswith(f" {path}")
        elif ours and line.endswith(" kB"):
            name, _, number = line.partition(":")
            found[name] = found.get(name, 0) + int(number.split()[0])
    return found


async def test_two_replicas_map_the_same_weights(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(Path(headrace.__file__).parent / "data" / "demo", model)
    weights = model / "openvino_model.bin"
    spec = a_spec(engine="openvino", source=str(model))
    async with running(spec, tmp_path / "a") as a, running(spec, tmp_path / "b") as b:
        for replica in (a, b):
            await replica.ready()
            async with replica.session() as p:
                assert (await p.ask(chat("Hi"), max_tokens=8, sampling=Sampling(ignore_eos=True))).tokens
        for replica in (a, b):
            mine = psutil.Process(replica.child.pid).children()
            (engine,) = [p for p in mine if "headrace.replica.engines.host" in p.cmdline()]
            kb = mapped(engine.pid, weights)
            assert kb["Size"] * 1024 >= weights.stat().st_size, "the whole file is mapped"
            assert kb["Private_Dirty"] == kb["Private_Clean"] == kb["Anonymous"] == 0, "and none of it is a copy"
            assert 0 < kb["Pss"] <= kb["Rss"] * 0.6, "what is in memory is there for both"
