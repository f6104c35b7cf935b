"""The OpenVINO engine with the built-in model, through the whole replica process."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest
from replica_fixtures import ProxySide, RunningReplica, a_spec, chat, running
from tokenizers import Tokenizer

import headrace
from headrace.core.phase import Phase
from headrace.core.streams import Resume, Sampling, TokenPrompt
from headrace.core.types import Load

pytest.importorskip("openvino_genai", reason="needs pip install 'headrace[cpu]'")

DEMO = Path(headrace.__file__).parent / "data" / "demo"
GREEDY = Sampling(temperature=0.0, ignore_eos=True)
QUESTION = chat("Explain about Machine Learning?")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(DEMO / "tokenizer.json"))


async def test_one_openvino_replica(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """One process for all that does not need its own: starting takes longer than the tests."""
    async with running(a_spec(engine="openvino", cpus=2), tmp_path) as replica:
        status = await replica.ready()
        assert status.model is not None
        assert status.model.vocab_size == tokenizer.get_vocab_size()
        async with replica.session() as p:
            await p.until(lambda: p.frames)
            assert p.frames[0].keeps_prefixes
            await an_answer(p, tokenizer)
            await a_greedy_answer_resumes_equally(p)
            await stop_strings(p)
            await sixteen_streams_join_and_leave(p)
            await a_long_prompt_does_not_stop_the_others(p)
            await aborts_at_every_stage(p)
            await sampling_parameters(p)
            await what_it_refuses(p)
            await multi_byte_text_streams_whole(p, tokenizer)
            await the_shortest_requests(p)
        await idle_costs_nothing(replica)


async def an_answer(p: ProxySide, tokenizer: Tokenizer) -> None:
    seen = await p.ask(QUESTION, max_tokens=200)
    assert seen.finished is not None
    assert seen.finished.reason == "stop", "the model ends its answer itself"
    assert seen.text == tokenizer.decode(seen.tokens)
    assert len(seen.pieces) > 10
    assert "learn" in seen.text.lower()
    assert tokenizer.token_to_id("<|end|>") not in seen.tokens


async def a_greedy_answer_resumes_equally(p: ProxySide) -> None:
    whole = await p.ask(QUESTION, max_tokens=60, sampling=GREEDY)
    assert len(whole.tokens) == 60
    for cut in (1, 7, 23, 59):
        sent = "".join(whole.pieces[:cut])
        rest = await p.ask(QUESTION, max_tokens=60, sampling=GREEDY, resume=Resume(whole.tokens[:cut], len(sent)))
        assert rest.begin == cut
        assert rest.tokens == whole.tokens[cut:]
        assert sent + rest.text == whole.text


async def stop_strings(p: ProxySide) -> None:
    whole = await p.ask(QUESTION, max_tokens=60, sampling=GREEDY)
    stop = whole.text[31:39]
    seen = await p.ask(QUESTION, max_tokens=60, sampling=GREEDY, stop=(stop,))
    assert seen.text == whole.text[: whole.text.index(stop)]
    assert seen.finished is not None
    assert seen.finished.reason == "stop"
    assert seen.tokens == whole.tokens[: len(seen.tokens)]


async def sixteen_streams_join_and_leave(p: ProxySide) -> None:
    """Each equals its answer alone, whoever is in the batch."""
    texts = [
        f"What is {w}?" for w in ("a token", "a model", "loss", "attention", "a GPU", "data", "a layer", "a proxy")
    ]
    alone = [await p.ask(chat(t), max_tokens=20 + 5 * n, sampling=GREEDY) for n, t in enumerate(texts)]
    numbers: list[int] = []
    for n in range(16):
        numbers.append(await p.start(chat(texts[n % 8]), max_tokens=20 + 5 * (n % 8), sampling=GREEDY))
        if n == 8:
            await p.until(lambda: p.seen[numbers[0]].tokens)
    for number in numbers:
        await p.end_of(number)
    for n, number in enumerate(numbers):
        assert p.seen[number].tokens == alone[n % 8].tokens


async def a_long_prompt_does_not_stop_the_others(p: ProxySide) -> None:
    """On a busy machine the others may have ended before it joins: then once more."""
    for again in range(10):
        others = [await p.start(QUESTION, max_tokens=980, sampling=GREEDY) for _ in range(3)]
        await p.until(lambda numbers=others: all(p.seen[n].tokens for n in numbers))
        long = await p.start(TokenPrompt([10 + again + i % 2000 for i in range(900)]), max_tokens=2)
        await p.end_of(long)
        flowing = not any(p.seen[n].over for n in others)
        for number in others:
            await p.abort(number)
            await p.end_of(number)
        if flowing:
            break
    else:
        raise AssertionError("the others always ended first")
    joined = next(i for i, f in enumerate(p.frames) for s in f.started if s.stream == long)
    first = next(i for i, f in enumerate(p.frames) if long in f.streams)
    between = [f for f in p.frames[joined:first] if set(others) <= set(f.streams)]
    assert len(between) >= 3, "900 tokens take four steps of 256, in each of which the others go on"


async def aborts_at_every_stage(p: ProxySide) -> None:
    """Every aborted request ends. On a busy machine one may end by itself before the abort comes: then once more."""

    async def all_aborted(*numbers: int) -> bool:
        for number in numbers:
            await p.abort(number)
        ends = [(await p.end_of(number)).finished for number in numbers]
        assert all(end and end.reason in ("abort", "length") for end in ends)
        return all(end and end.reason == "abort" for end in ends)

    for first in range(10):  # some wait, one is in prefill
        long = TokenPrompt([20 + first + i % 1500 for i in range(800)])
        if await all_aborted(*[await p.start(long, sampling=GREEDY) for _ in range(4)]):
            break
    else:
        raise AssertionError("no abort came in time")
    for _ in range(10):
        decoding = await p.start(QUESTION, sampling=GREEDY)
        await p.until(lambda n=decoding: p.seen[n].tokens)
        if await all_aborted(decoding):
            break
    else:
        raise AssertionError("no abort came in time")
    await p.until(lambda: p.load.running == p.load.waiting == 0)
    again = await p.ask(QUESTION, max_tokens=5, sampling=GREEDY)
    assert len(again.tokens) == 5


async def sampling_parameters(p: ProxySide) -> None:
    hot = {"temperature": 4.0, "top_p": 1.0, "top_k": 0}  # the demo model is very sure of itself

    async def tokens(count: int = 16, **sampling: object) -> list[int]:
        how = Sampling(**{"ignore_eos": True, **sampling})  # type: ignore[arg-type]
        return (await p.ask(QUESTION, max_tokens=count, sampling=how)).tokens

    greedy = await tokens(temperature=0.0)
    assert await tokens(temperature=0.0) == greedy
    assert await tokens(**hot, seed=1) == await tokens(**hot, seed=1) != await tokens(**hot, seed=2)
    assert await tokens(**hot) != await tokens(**hot), "without a seed answers differ"
    assert await tokens(**(hot | {"top_k": 1})) == greedy
    assert await tokens(**(hot | {"top_p": 0.0})) == greedy
    assert await tokens(**hot, min_p=1.0) == greedy
    for penalty in ("repetition_penalty", "presence_penalty", "frequency_penalty"):
        assert await tokens(99, **hot, seed=1, **{penalty: 2.0}) != await tokens(99, **hot, seed=1), penalty
    seen = await p.ask(QUESTION, max_tokens=8, sampling=Sampling(temperature=0.0, logprobs=0))
    assert len(seen.logprobs) == len(seen.tokens) == 8
    assert all(x.logprob < 0 and x.id == t for x, t in zip(seen.logprobs, seen.tokens, strict=True))
    assert b"".join(x.token for x in seen.logprobs).decode() == seen.text
    natural = await p.ask(QUESTION, max_tokens=300, sampling=Sampling(temperature=0.0))
    more = len(natural.tokens) + 5
    longer = await p.ask(QUESTION, max_tokens=300, sampling=Sampling(temperature=0.0, min_tokens=more))
    assert len(longer.tokens) >= more


async def what_it_refuses(p: ProxySide) -> None:
    for sampling, param in (
        (Sampling(logit_bias={5: 1.0}), "logit_bias"),
        (Sampling(logprobs=3), "top_logprobs"),
    ):
        seen = await p.ask(QUESTION, sampling=sampling)
        assert seen.rejected is not None
        assert seen.rejected.failure.param == param
    # Not possible exactly, so not at all.
    penalized = Sampling(temperature=0.0, presence_penalty=1.0)
    resumed = await p.ask(QUESTION, max_tokens=9, sampling=penalized, resume=Resume([300, 301], 0))
    assert resumed.rejected is not None
    assert resumed.rejected.failure.kind == "cannot_resume"
    # A seed goes on, though with draws of its own.
    hot = Sampling(temperature=4.0, seed=1, ignore_eos=True)
    for _ in range(2):
        seen = await p.ask(QUESTION, max_tokens=9, sampling=hot, resume=Resume([300, 301], 0))
        assert len(seen.tokens) == 7


async def multi_byte_text_streams_whole(p: ProxySide, tokenizer: Tokenizer) -> None:
    """With hot sampling the model makes bytes at random: what is sent is the library's whole decode, whatever it is."""
    sampling = Sampling(temperature=4.0, top_k=0, top_p=1.0, ignore_eos=True, seed=5)
    for begin in ("日本語 😀 größer 😀", "Grüße 日本 🌊"):
        seen = await p.ask(begin, max_tokens=200, sampling=sampling)
        assert seen.text == tokenizer.decode(seen.tokens)
        assert any(len(x.encode()) > len(x) for x in seen.pieces)


async def the_shortest_requests(p: ProxySide) -> None:
    one = await p.ask(TokenPrompt([50]), max_tokens=1)
    assert len(one.tokens) == 1
    full = await p.ask(TokenPrompt([50 + i % 99 for i in range(1023)]), sampling=GREEDY)
    assert len(full.tokens) == 1
    assert full.finished is not None
    assert full.finished.reason == "length"


async def idle_costs_nothing(replica: RunningReplica) -> None:
    async with replica.session() as p:
        await p.until(lambda: p.frames and p.load.running == 0)
        step = p.load.step
        frames = len(p.frames)
        await p.until(lambda: len(p.frames) >= frames + 2)
        idle = Load(0, 0, 0.0, step, p.load.tokens_total, max_running=256, cpu_s=p.load.cpu_s)
        assert p.load == idle, "an idle engine does not step"


_EXACT = {"dynamic_quantization": False}
_ROUNDING = 2e-4  # ten times what is seen; a 16-bit KV cache makes 1e-3, dynamic quantization 5e-2


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("weights", "options"), [("", {}), ("int8", _EXACT)])
async def test_a_continuation_has_the_log_probabilities_of_the_whole(
    weights: str, options: dict[str, object], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A model that is sure of itself says the same tokens in spite of more; a real one, with near ties, does not."""
    source = str(request.getfixturevalue("small_models")["llama"]["hf"]) if weights else "builtin:demo"
    spec = a_spec(engine="openvino", source=source, weight_format=weights, cpus=2, options=options)
    how = Sampling(temperature=0.0, ignore_eos=True, logprobs=0)
    async with running(spec, tmp_path) as replica:
        status = await replica.status_when(lambda s: s.model or s.reason, wait_s=240)  # the weights are converted
        assert status.model is not None, status.reason
        async with replica.session() as p:
            for prompt in ([20 + 7 * n + i for i in range(9 + n)] for n in range(6)):
                whole = await p.ask(TokenPrompt(prompt), max_tokens=60, sampling=how)
                for cut in (1, 7, 23, 40):
                    resume = Resume(whole.tokens[:cut], 0)
                    rest = await p.ask(TokenPrompt(prompt), max_tokens=60, sampling=how, resume=resume)
                    pairs = zip(whole.logprobs[cut:], rest.logprobs, strict=True)
                    assert rest.tokens == whole.tokens[cut:]
                    assert max(abs(a.logprob - b.logprob) for a, b in pairs) < _ROUNDING


async def test_a_small_cache_still_serves_everybody(tmp_path: Path) -> None:
    """With less cache than the streams need together they are put off and taken up again, and each is whole."""
    options: dict[str, object] = {"kv_cache_mib": 1}
    async with running(a_spec(engine="openvino", cpus=2, options=options), tmp_path) as replica:
        await replica.ready()
        async with replica.session() as p, asyncio.timeout(100):
            prompts = [TokenPrompt([100 * n + i for i in range(60)]) for n in range(1, 9)]
            numbers = [await p.start(x, max_tokens=300, sampling=GREEDY) for x in prompts]
            for number in numbers:
                seen = await p.end_of(number)
                assert seen.finished is not None
                assert (len(seen.tokens), seen.finished.reason) == (300, "length")


async def test_ready_made_ir_instead_of_the_source(tmp_path: Path) -> None:
    """Unless a weight format is asked for, which only the source can be converted to."""
    how = {"engine": "openvino", "source": "/nowhere", "openvino_source": str(DEMO)}
    async with running(a_spec(**how), tmp_path / "ready-made") as replica:  # type: ignore[arg-type]
        await replica.ready()
    async with running(a_spec(**how, weight_format="int8"), tmp_path / "converted") as replica:  # type: ignore[arg-type]
        status = await replica.status_when(lambda s: s.phase is Phase.FAILED)
        assert "/nowhere" in status.reason


def engine_of(replica: RunningReplica) -> psutil.Process:
    """The process that computes; there is one for chat templates too."""
    mine = psutil.Process(replica.child.pid).children()
    (process,) = [p for p in mine if "headrace.replica.engines.host" in p.cmdline()]
    return process


async def test_a_long_step_does_not_silence_the_replica(tmp_path: Path) -> None:
    """OpenVINO holds Python's interpreter for as long as a step takes."""
    options = {"step_tokens": 16_000, "kv_cache_mib": 256}
    async with running(a_spec(engine="openvino", cpus=1, options=options), tmp_path) as replica:
        await replica.ready()
        async with replica.session() as p:
            prompts = [TokenPrompt([10 + n + i % 2000 for i in range(1000)]) for n in range(16)]
            numbers = [await p.start(prompt, max_tokens=1, sampling=GREEDY) for prompt in prompts]
            async with replica.session("another") as other:
                await other.until(lambda: other.frames)
                assert not any(p.seen[n].tokens for n in numbers[1:])
            for number in numbers:
                await p.end_of(number)
            before = p.frames[0].load
        async with replica.session("later") as later:
            await later.until(lambda: later.frames)
            assert before
            assert 0 < before.cpu_s < later.load.cpu_s


@pytest.mark.parametrize(("what", "said"), [("kill", "was killed by SIGKILL"), ("suspend", "has made no step for 2 s")])
async def test_an_engine_that_dies_or_hangs_ends_its_replica(what: str, said: str, tmp_path: Path) -> None:
    async with running(a_spec(engine="openvino", options={"stall_s": 2}), tmp_path) as replica:
        await replica.ready()
        async with replica.session() as p:
            number = await p.start(QUESTION, sampling=GREEDY)
            await p.until(lambda: p.seen[number].tokens)
            getattr(engine_of(replica), what)()
            seen = await p.end_of(number)
            assert seen.finished is not None
            assert seen.finished.failure is not None
            assert (seen.finished.failure.kind, said in seen.finished.failure.message) == ("replica_gone", True)
        assert await replica.exit_code() == 1


async def test_an_engine_ends_with_its_replica(tmp_path: Path) -> None:
    async with running(a_spec(engine="openvino"), tmp_path) as replica:
        await replica.ready()
        engine = engine_of(replica)
        os.kill(replica.child.pid, signal.SIGKILL)
        await asyncio.to_thread(psutil.wait_procs, [engine], timeout=20)
        assert not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE


def test_no_telemetry(tmp_path: Path) -> None:
    """`import openvino` would report itself: the package that does is not loaded, and OpenVINO uses its stub."""
    import subprocess

    program = """
import sys
from headrace.replica import telemetry
import headrace.replica.engines.host
from openvino.tools.ovc import telemetry_utils
assert telemetry.forbidden()
assert telemetry_utils.tm.__name__ == "openvino.tools.ovc.telemetry_stub", telemetry_utils.tm
assert not [m for m in sys.modules if m.startswith("openvino_telemetry.")]
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env={"HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir()), "no consent or client id file was written"
