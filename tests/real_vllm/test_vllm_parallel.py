"""Real vLLM with a model over two processes: the same tokens as from one, and nothing left of them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest
from integration.replica_fixtures import running
from model_fixtures import SmallModel
from real_vllm.test_vllm import greedy_equals_transformers, ready, vllm_spec

pytest.importorskip("vllm", reason="runs in an environment of its own: make test-vllm")

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("how", ["tensor_parallel_size", "pipeline_parallel_size"])
async def test_two_workers(how: str, small_models: dict[str, SmallModel], tmp_path: Path) -> None:
    model = small_models["llama"]
    async with running(vllm_spec(model, **{how: 2}), tmp_path) as replica:
        await ready(replica)
        family = psutil.Process(replica.child.pid).children(recursive=True)
        assert len([c for c in family if "Worker" in " ".join(c.cmdline()) + c.name()]) >= 2, [c.name() for c in family]
        async with replica.session() as p:
            await greedy_equals_transformers(p, model)
        os.kill(replica.child.pid, signal.SIGKILL)
        _, left = psutil.wait_procs(family, timeout=20)
        assert not [c for c in left if c.status() != psutil.STATUS_ZOMBIE]
