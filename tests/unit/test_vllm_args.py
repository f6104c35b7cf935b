"""What a deployment says to vLLM, tested without vLLM: names, our own argument, the defaults where there is no GPU."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from headrace.core.types import ModelSpec, Resources
from headrace.errors import UserError
from headrace.replica.engines.vllm_args import (
    check_names,
    cpu_defaults,
    cpu_environment,
    engine_args,
    split_off_ours,
    workers_of,
)


@dataclass
class Known:
    """Stands for vLLM's dataclass of arguments."""

    model: str = ""
    trust_remote_code: bool = False
    disable_log_stats: bool = False
    max_model_len: int | None = None
    runner: str = "auto"
    reasoning_parser: str = ""
    max_num_seqs: int | None = None
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1

    def __post_init__(self) -> None:
        if self.max_num_seqs == 0:
            raise ValueError("first line\nmax_num_seqs must be positive")


SPEC = ModelSpec(source="/m", engine="vllm", context_tokens=512)


def made(given: dict[str, Any], resources: Resources | None = None, spec: ModelSpec = SPEC) -> Known:
    return engine_args(Known, Path("/m"), spec, given, resources or Resources())


def test_a_typo_names_the_nearest_argument() -> None:
    with pytest.raises(UserError, match="vLLM has no argument 'max_num_seq': did you mean 'max_num_seqs'"):
        made({"max_num_seq": 4})
    with pytest.raises(UserError, match="did you mean 'stall_s'"):
        made({"stal_s": 4})
    with pytest.raises(UserError, match="vllm serve --help=all"):
        made({"qqqqqqqq": 1})


def test_what_headrace_sets_is_not_for_the_deployment() -> None:
    with pytest.raises(UserError, match="'model' is set by Headrace"):
        made({"model": "/elsewhere"})
    check_names(["max_num_seqs"], ["max_num_seqs", "model", "_hidden"])
    with pytest.raises(UserError):
        check_names(["_hidden"], ["max_num_seqs", "_hidden"])


def test_fields_of_the_deployment_become_arguments() -> None:
    args = made({"max_num_seqs": 4}, Resources(gpus=2))
    assert (args.model, args.max_model_len, args.max_num_seqs, args.tensor_parallel_size) == ("/m", 512, 4, 2)
    assert args.disable_log_stats
    assert made({"pipeline_parallel_size": 2}, Resources(gpus=2)).tensor_parallel_size == 1
    assert made({}, spec=ModelSpec(source="/m", task="embed")).runner == "pooling"
    assert made({}, spec=ModelSpec(source="/m", reasoning_parser="r1")).reasoning_parser == "r1"


def test_what_vllm_refuses_is_a_sentence() -> None:
    with pytest.raises(UserError, match=r"^vLLM refuses its arguments: max_num_seqs must be positive\.$"):
        made({"max_num_seqs": 0})


def test_our_own_argument_is_taken_out() -> None:
    assert split_off_ours({"max_num_seqs": 4}) == ({"max_num_seqs": 4}, 60.0)
    assert split_off_ours({"stall_s": 5}) == ({}, 5.0)
    for bad in (0, -1, "5", True):
        with pytest.raises(UserError, match="stall_s"):
            split_off_ours({"stall_s": bad})


def test_defaults_without_a_gpu_give_way_to_the_deployment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    found = cpu_defaults({}, Resources(memory_bytes=2**30), own_float32=True)
    assert found == {"enforce_eager": True, "dtype": "float32", "kv_cache_memory_bytes": 2**29}
    given = {"enforce_eager": False, "dtype": "bfloat16", "kv_cache_memory_bytes": 1}
    assert cpu_defaults(given, Resources(), own_float32=True) == {}
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    assert cpu_defaults({}, Resources(), own_float32=False) == {"enforce_eager": True}


def test_the_environment_without_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("VLLM_CPU_OMP_THREADS_BIND", "LD_PRELOAD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {1, 0, 3}, raising=False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert cpu_environment(Resources(cpus=3)) == {"VLLM_CPU_OMP_THREADS_BIND": "0,1,3"}
    assert cpu_environment(Resources()) == {"VLLM_CPU_OMP_THREADS_BIND": "0,1,3"}
    assert cpu_environment(Resources(), 2) == {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}, "a list for each worker"
    assert cpu_environment(Resources(), 4)["VLLM_CPU_OMP_THREADS_BIND"] == "nobind", "fewer CPUs than workers"
    shared = cpu_environment(Resources(cpus=1.5))
    assert (shared["VLLM_CPU_OMP_THREADS_BIND"], shared["OMP_NUM_THREADS"]) == ("nobind", "1")

    library = tmp_path / "lib" / "libiomp5.so"
    library.parent.mkdir()
    library.touch()
    assert cpu_environment(Resources())["LD_PRELOAD"] == str(library)
    monkeypatch.setenv("LD_PRELOAD", "/x/libtcmalloc.so")
    assert cpu_environment(Resources())["LD_PRELOAD"] == f"{library}:/x/libtcmalloc.so"
    monkeypatch.setenv("LD_PRELOAD", "/x/libgomp.so")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0")
    assert cpu_environment(Resources()) == {}


def test_workers_are_the_product_of_the_parallel_sizes() -> None:
    assert workers_of({}) == 1
    assert workers_of({"tensor_parallel_size": 2, "pipeline_parallel_size": 3, "max_num_seqs": 9}) == 6
    assert workers_of({"tensor_parallel_size": "2", "data_parallel_size": True}) == 1


def test_a_pipeline_on_a_cpu_is_compiled() -> None:
    assert cpu_defaults({"pipeline_parallel_size": 2}, Resources(), False)["enforce_eager"] is False
    assert cpu_defaults({"tensor_parallel_size": 2}, Resources(), False)["enforce_eager"] is True
    with pytest.raises(UserError, match="pipeline_parallel_size needs enforce_eager=false"):
        cpu_defaults({"pipeline_parallel_size": 2, "enforce_eager": True}, Resources(), False)
