"""Real vLLM on the CPU, through the whole replica process. Runs in an environment of its own: make test-vllm."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from model_fixtures import SmallModel
from replica_fixtures import ProxySide, RunningReplica, a_spec, chat, running
from tokenizers import Tokenizer

from headrace.core.phase import Phase
from headrace.core.streams import Resume, Sampling, TokenPrompt
from headrace.core.types import ReplicaSpec, Resources

pytest.importorskip("vllm", reason="runs in an environment of its own: make test-vllm")

pytestmark = pytest.mark.timeout(300)

GREEDY = Sampling(temperature=0.0, ignore_eos=True)
READY_S = 180.0


def vllm_spec(model: SmallModel, **options: object) -> ReplicaSpec:
    options = {"dtype": "float32", "max_num_seqs": 16, "kv_cache_memory_bytes": 2**28, **options}
    return a_spec(engine="vllm", source=str(model["hf"]), cpus=2, options=options)


async def ready(replica: RunningReplica) -> None:
    status = await replica.status_when(lambda s: s.phase in (Phase.READY, Phase.FAILED), READY_S)
    assert status.phase is Phase.READY, status.reason


async def greedy_equals_transformers(p: ProxySide, model: SmallModel) -> None:
    """Token for token, prompts of mixed lengths in one batch, and the text is that of the whole."""
    tokenizer = Tokenizer.from_file(str(model["hf"] / "tokenizer.json"))
    expected = json.loads(model["greedy"].read_text())
    numbers = [
        await p.start(TokenPrompt(e["prompt_ids"]), max_tokens=len(e["ids"]), sampling=Sampling(temperature=0.0))
        for e in expected
    ]
    for number, e in zip(numbers, expected, strict=True):
        seen = await p.end_of(number)
        assert seen.tokens == e["ids"]
        assert seen.text == tokenizer.decode(e["ids"])
        assert len(set(seen.tokens)) > 5, "the answer varies"


@pytest.mark.parametrize("name", ["gpt2", "phi"])
async def test_greedy_equals_transformers(name: str, small_models: dict[str, SmallModel], tmp_path: Path) -> None:
    async with running(vllm_spec(small_models[name]), tmp_path) as replica:
        await ready(replica)
        async with replica.session() as p:
            await greedy_equals_transformers(p, small_models[name])


async def test_one_vllm_replica(small_models: dict[str, SmallModel], tmp_path: Path) -> None:
    """One process for all that does not need its own: starting takes longer than the tests."""
    model = small_models["llama"]
    async with running(vllm_spec(model), tmp_path) as replica:
        await ready(replica)
        async with replica.session() as p:
            await greedy_equals_transformers(p, model)
            await a_greedy_answer_resumes_equally(p)
            await penalties_count_what_was_delivered(p)
            await stop_strings_and_whole_characters(p, model)
            await streams_join_and_leave(p)
            await aborts(p)
            await a_backlog_is_steps(p, replica)
            await sampling_parameters(p)
            await logprobs(p)
            await what_it_refuses(p)
            await the_prefix_cache_is_reported(p)
        await idle_steps_stand_still(replica)


async def a_greedy_answer_resumes_equally(p: ProxySide) -> None:
    whole = await p.ask("The water of the mill", max_tokens=40, sampling=GREEDY)
    for cut in (1, 17, 39):
        sent = "".join(whole.pieces[:cut])
        rest = await p.ask(
            "The water of the mill", max_tokens=40, sampling=GREEDY, resume=Resume(whole.tokens[:cut], len(sent))
        )
        assert rest.tokens == whole.tokens[cut:]
        assert sent + rest.text == whole.text


async def penalties_count_what_was_delivered(p: ProxySide) -> None:
    """Also in a batch whose rows change, with others that are penalised and others that are not."""
    # A few tokens are likely enough to come again and again, so that every count matters.
    likely = Sampling(temperature=0.0, ignore_eos=True, logit_bias={i: 4.0 + i % 3 for i in range(70, 80)})
    told = [
        replace(likely, presence_penalty=0.9, frequency_penalty=0.3),
        replace(likely, presence_penalty=-0.5, repetition_penalty=1.2),
        replace(likely, frequency_penalty=1.1, min_tokens=30),
    ]
    prompt = "The water of the mill and the wheel of the mill"
    plain = await p.ask(prompt, max_tokens=40, sampling=likely)
    wholes = [await p.ask(prompt, max_tokens=40, sampling=s) for s in told]
    assert len({tuple(w.tokens) for w in (plain, *wholes)}) == 4, "each penalty changes the answer"
    cuts = [(s, whole, cut) for s, whole in zip(told, wholes, strict=True) for cut in (1, 9, 24, 39)]
    numbers = [await p.start(prompt, max_tokens=12, sampling=GREEDY)]
    for s, whole, cut in cuts:
        resume = Resume(whole.tokens[:cut], len("".join(whole.pieces[:cut])))
        numbers.append(await p.start(prompt, max_tokens=40, sampling=s, resume=resume))
    for (_, whole, cut), number in zip(cuts, numbers[1:], strict=True):
        assert (await p.end_of(number)).tokens == whole.tokens[cut:]


async def stop_strings_and_whole_characters(p: ProxySide, model: SmallModel) -> None:
    whole = await p.ask("水は水車へ流れる。 🚰🙂 naïve", max_tokens=60, sampling=GREEDY)
    assert whole.text == Tokenizer.from_file(str(model["hf"] / "tokenizer.json")).decode(whole.tokens)
    stop = whole.text[11:17]
    seen = await p.ask("水は水車へ流れる。 🚰🙂 naïve", max_tokens=60, sampling=GREEDY, stop=(stop,))
    assert seen.text == whole.text[: whole.text.index(stop)]
    assert seen.finished is not None
    assert seen.finished.reason == "stop"


async def streams_join_and_leave(p: ProxySide) -> None:
    """Each equals its answer alone, whoever is in the batch; and a step's news are one frame."""
    texts = ["Hello", "Explain about Machine Learning?", "A token is a piece of a word", "0123456789"]
    alone = [await p.ask(t, max_tokens=10 + 7 * n, sampling=GREEDY) for n, t in enumerate(texts)]
    before = len(p.frames)
    numbers = [await p.start(texts[n % 4], max_tokens=10 + 7 * (n % 4), sampling=GREEDY) for n in range(12)]
    for n, number in enumerate(numbers):
        assert (await p.end_of(number)).tokens == alone[n % 4].tokens
    # The short ones may have missed each other.
    longer = await p.start_together(texts, max_tokens=900, sampling=GREEDY)
    await p.until(lambda: any(len(f.streams) == len(longer) for f in p.frames[before:]))
    for number in longer:
        await p.abort(number)
        await p.end_of(number)
    news = [f for f in p.frames[before:] if f.streams]
    steps = [f.load.step for f in news if f.load]
    assert len(set(steps)) == len(news), "a step's news are one frame"


async def aborts(p: ProxySide) -> None:
    for _ in range(5):  # a machine with no core for us may tell of a first token when the last is made
        number = await p.start("Hello", max_tokens=900, sampling=GREEDY)
        await p.until(lambda: p.seen[number].tokens)  # noqa: B023 - waited for here
        await p.abort(number)
        seen = await p.end_of(number)
        assert seen.finished is not None
        if seen.finished.reason == "abort":
            break
    else:
        raise AssertionError("no stream was aborted before its end")
    assert len(seen.tokens) < 900
    at_once = await p.start("Hello", max_tokens=900, sampling=GREEDY)
    await p.abort(at_once)
    await p.end_of(at_once)
    assert (await p.ask("Hello", max_tokens=3, sampling=GREEDY)).tokens
    await p.until(lambda: p.load.running == 0 and p.load.waiting == 0)


async def a_backlog_is_steps(p: ProxySide, replica: RunningReplica) -> None:
    """What a front end finds waiting, when it had no core for a while, is in frames as ever."""
    alone = await p.ask("Hello", max_tokens=900, sampling=GREEDY)
    plain = await p.start("Hello", max_tokens=900, sampling=GREEDY)
    with_logprobs = await p.start("Hello", max_tokens=900, sampling=replace(GREEDY, logprobs=1))
    await p.until(lambda: p.seen[with_logprobs].tokens)
    front_end, engine = psutil.Process(replica.child.pid), _named(replica, "VLLM::EngineCore")
    front_end.suspend()
    try:
        with contextlib.suppress(TimeoutError):  # it may have made all of them already
            async with asyncio.timeout(2):
                before = sum(engine.cpu_times()[:2])
                while sum(engine.cpu_times()[:2]) < before + 0.1:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
    finally:
        front_end.resume()
    assert (await p.end_of(plain)).tokens == alone.tokens  # _take looks at each frame
    seen = await p.end_of(with_logprobs)
    assert seen.tokens == alone.tokens == [x.id for x in seen.logprobs]


async def sampling_parameters(p: ProxySide) -> None:
    hot = Sampling(temperature=1.5, seed=7, ignore_eos=True)
    a, b = [await p.ask("Hello", max_tokens=20, sampling=hot) for _ in range(2)]
    assert a.tokens == b.tokens
    c = await p.ask("Hello", max_tokens=20, sampling=Sampling(temperature=1.5, seed=8, ignore_eos=True))
    assert c.tokens != a.tokens
    forced = await p.ask("Hello", max_tokens=5, sampling=Sampling(temperature=0.0, logit_bias={77: 100.0}))
    assert forced.tokens == [77] * 5
    narrow = Sampling(temperature=1.9, top_k=1, top_p=0.9, min_p=0.1, min_tokens=3, repetition_penalty=1.0)
    greedy = await p.ask("Hello", max_tokens=12, sampling=GREEDY)
    assert (await p.ask("Hello", max_tokens=12, sampling=narrow)).tokens == greedy.tokens
    for penalty in ("presence_penalty", "frequency_penalty"):
        s = Sampling(temperature=0.0, ignore_eos=True, **{penalty: 2.0})  # type: ignore[arg-type]
        assert len(set((await p.ask("Hello", max_tokens=30, sampling=s)).tokens)) > 10


async def logprobs(p: ProxySide) -> None:
    seen = await p.ask("Hello", max_tokens=4, sampling=Sampling(temperature=0.0, logprobs=3))
    assert [x.id for x in seen.logprobs] == seen.tokens
    for x in seen.logprobs:
        assert len(x.top) == 3
        assert x.top[0].id == x.id, "greedy takes the likeliest"
        assert x.logprob == x.top[0].logprob >= x.top[1].logprob >= x.top[2].logprob


async def what_it_refuses(p: ProxySide) -> None:
    seen = await p.ask(TokenPrompt([5] * 1024), max_tokens=1)
    assert seen.rejected is not None
    assert "1024" in seen.rejected.failure.message
    seen = await p.ask(TokenPrompt([5000]), max_tokens=1)
    assert seen.rejected is not None


async def the_prefix_cache_is_reported(p: ProxySide) -> None:
    prompt = TokenPrompt([20 + n % 400 for n in range(500)])
    await p.ask(prompt, max_tokens=2, sampling=GREEDY)
    seen = await p.ask(prompt, max_tokens=2, sampling=GREEDY)
    assert seen.finished is not None
    assert seen.finished.cached_tokens > 300
    assert p.load.prefix_hit_tokens > 300
    assert p.frames[0].keeps_prefixes


async def idle_steps_stand_still(replica: RunningReplica) -> None:
    async with replica.session("p2") as p:
        frames = len(p.frames)
        await p.until(lambda: len(p.frames) >= frames + 3)
        assert p.frames[-1].load == p.frames[-2].load


def _named(replica: RunningReplica, name: str) -> psutil.Process:
    family = psutil.Process(replica.child.pid).children(recursive=True)
    return next(c for c in family if name in " ".join(c.cmdline()))


async def _fails(replica: RunningReplica, hurt: Callable[[], None], said: str) -> None:
    async with replica.session() as p:
        # More than run at a time: some have not ended by then, however late we hear of the first tokens.
        numbers = await p.start_together(["Hello"] * 32, max_tokens=900, sampling=GREEDY)
        await p.until(lambda: len(p.seen[numbers[0]].tokens) > 3)
        hurt()
        ends = [(await p.end_of(n)).finished for n in numbers]
        failures = [end.failure for end in ends if end and end.reason != "length"]
        assert failures
        for failure in failures:
            assert failure is not None
            assert failure.kind == "replica_gone"
            assert said in failure.message
    assert await replica.exit_code() == 1
    assert said in json.loads((replica.directory / "failure.json").read_text())["reason"]


async def test_a_dead_worker_ends_the_replica_with_the_reason(
    small_models: dict[str, SmallModel], tmp_path: Path
) -> None:
    async with running(vllm_spec(small_models["llama"]), tmp_path) as replica:
        await ready(replica)
        await _fails(replica, _named(replica, "VLLM::Worker").kill, "engine process died")


async def test_an_engine_that_does_not_step_ends_the_replica_with_the_reason(
    small_models: dict[str, SmallModel], tmp_path: Path
) -> None:
    async with running(vllm_spec(small_models["llama"], stall_s=2), tmp_path) as replica:
        await ready(replica)
        await _fails(replica, _named(replica, "VLLM::Worker").suspend, "has made no step for")


async def test_kill_9_of_the_replica_leaves_nothing_behind(small_models: dict[str, SmallModel], tmp_path: Path) -> None:
    """Nobody is there to clean up: the kernel does."""
    async with running(vllm_spec(small_models["llama"]), tmp_path) as replica:
        await ready(replica)
        family = psutil.Process(replica.child.pid).children(recursive=True)
        assert len(family) >= 3
        os.kill(replica.child.pid, signal.SIGKILL)
        await asyncio.to_thread(psutil.wait_procs, family, timeout=20)
        assert not [c for c in family if c.is_running() and c.status() != psutil.STATUS_ZOMBIE]


async def test_a_replica_of_some_cpus_is_bound_to_none(small_models: dict[str, SmallModel], tmp_path: Path) -> None:
    """Intel's OpenMP would have all replicas of a machine on its first CPU."""
    spec = replace(vllm_spec(small_models["llama"]), resources=Resources(cpus=1))
    async with running(spec, tmp_path) as replica:
        await ready(replica)
        for name in ("VLLM::EngineCore", "VLLM::Worker"):
            threads = [t.id for t in _named(replica, name).threads()]
            assert {frozenset(os.sched_getaffinity(t)) for t in threads} == {frozenset(os.sched_getaffinity(0))}


async def test_a_wrong_argument_fails_for_good_with_a_sentence(
    small_models: dict[str, SmallModel], tmp_path: Path
) -> None:
    async with running(vllm_spec(small_models["llama"], max_num_seq=4), tmp_path) as replica:
        status = await replica.status_when(lambda s: s.phase is Phase.FAILED, READY_S)
        assert status.reason == "vLLM has no argument 'max_num_seq': did you mean 'max_num_seqs'?"
        assert status.permanent


async def test_an_engine_that_cannot_start_says_why(small_models: dict[str, SmallModel], tmp_path: Path) -> None:
    """vLLM itself only says that its process failed; the cause stands in that process's own words."""
    async with running(vllm_spec(small_models["llama"], kv_cache_memory_bytes=4096), tmp_path) as replica:
        status = await replica.status_when(lambda s: s.phase is Phase.FAILED, READY_S)
        assert status.reason.startswith("vLLM failed to start: ValueError: ")
        assert "cache blocks" in status.reason


async def test_a_full_queue_is_refused(small_models: dict[str, SmallModel], tmp_path: Path) -> None:
    async with running(vllm_spec(small_models["llama"], max_num_queued_reqs=2), tmp_path) as replica:
        await ready(replica)
        async with replica.session() as p:
            numbers = await p.start_together([chat("Hello")] * 3, max_tokens=900, sampling=GREEDY)
            await p.until(lambda: any(p.seen[n].over for n in numbers))
            (refused,) = [s for n in numbers if (s := p.seen[n]).over]
            failure = refused.finished and refused.finished.failure
            assert failure is not None
            assert failure.kind == "overloaded"
            for n in numbers:
                await p.abort(n)
