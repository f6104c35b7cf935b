"""The replica process with the simulated engine, over real gRPC."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import grpc
import pytest
from replica_fixtures import ProxySide, RunningReplica, a_spec, chat, running, spawned

from headrace.core import simulated
from headrace.core.causes import Cause
from headrace.core.phase import Phase
from headrace.core.streams import Resume, Sampling, TokenPrompt
from headrace.errors import Conflict, Overloaded, Unavailable
from headrace.process import ProcessRecord, group_members
from headrace.rpc.channel import from_rpc
from headrace.rpc.v1 import replica_pb2

FAST = {"step_s": 0.001}
IDS = [1, 2, 3, 260]


def expected(prompt: list[int], count: int, seed: int | None = None) -> list[int]:
    return simulated.answer(prompt, seed, count)


async def drain(replica: RunningReplica, timeout_s: float) -> None:
    replica_id = replica.replica_id
    await replica.stub.Drain(replica_pb2.DrainRequest(timeout_s=timeout_s, replica_id=replica_id))


async def test_from_start_to_end(tmp_path: Path) -> None:
    async with running(a_spec(options=FAST | {"load_s": 0.2}), tmp_path) as replica:
        phases = []
        async for status in replica.statuses():
            if not phases or phases[-1] != status.phase:
                phases.append(status.phase)
            if status.phase is Phase.READY:
                break
        assert phases in ([Phase.LOADING, Phase.READY], [Phase.STARTING, Phase.LOADING, Phase.READY])
        assert status.model is not None
        assert status.model.engine == "simulated"
        assert status.load.tokens_total == 1, "ready means that it has produced a token"
        assert status.address == replica.address
        endpoint = json.loads((tmp_path / "endpoint.json").read_text())
        record = ProcessRecord(endpoint["pid"], endpoint["start_time"])
        assert record == replica.child.record
        async with replica.session() as proxy:
            seen = await proxy.ask(TokenPrompt(IDS), max_tokens=40, sampling=Sampling(ignore_eos=True))
            assert seen.tokens == expected(IDS, 40)
            assert seen.text == simulated.decode(seen.tokens)
            assert seen.started == len(IDS)
            assert seen.finished is not None
            assert seen.finished.reason == "length"
        os.kill(replica.child.pid, signal.SIGTERM)
        assert await replica.exit_code() == 0
        assert not (tmp_path / "failure.json").exists()


async def test_loading_reports_progress(tmp_path: Path) -> None:
    async with running(a_spec(options={"load_s": 0.5}), tmp_path) as replica:
        status = await replica.status_when(lambda s: 0.3 < s.progress < 1.0)
        assert (status.phase, status.activity) == (Phase.LOADING, "loading the model")
        with pytest.raises(grpc.aio.AioRpcError) as e:
            await replica.proxy_stub.Session(iter([_hello(replica.replica_id)])).read()
        assert isinstance(from_rpc(e.value, "it"), Unavailable)


def _hello(replica_id: str) -> replica_pb2.SessionRequest:
    return replica_pb2.SessionRequest(hello=replica_pb2.SessionHello(proxy_id="p", replica_id=replica_id))


async def test_another_replicas_name_is_refused(tmp_path: Path) -> None:
    async with running(a_spec(options=FAST), tmp_path) as replica:
        await replica.ready()
        with pytest.raises(grpc.aio.AioRpcError) as e:
            await replica.proxy_stub.Session(iter([_hello("other-1-000000")])).read()
        assert isinstance(from_rpc(e.value, "it"), Conflict)
        with pytest.raises(grpc.aio.AioRpcError) as e:
            async for _ in replica.statuses("other-1-000000"):
                pass
        assert isinstance(from_rpc(e.value, "it"), Conflict)


async def test_sessions_of_one_replica(tmp_path: Path) -> None:
    """What needs no replica of its own: frames, streams of two proxies, stop, resume, aborts, errors, accounting."""
    async with running(a_spec(options=FAST), tmp_path) as replica:
        await replica.ready()
        async with replica.session("a") as a, replica.session("b") as b:
            await many_streams_of_two_proxies(a, b)
            await a_stop_string(a)
            await a_resumed_stream(a)
            await aborts(a)
            await frames_of_steps_that_took_prompts_in(a)
            await what_is_rejected(a)
            await logprobs(a)
            await heartbeats(a)
        async with replica.session("c") as c:
            await c.until(lambda: c.frames and c.load.running == c.load.waiting == 0)
        await a_broken_session_frees_its_streams(replica)
        await a_proxy_that_does_not_read(replica)


async def many_streams_of_two_proxies(a: ProxySide, b: ProxySide) -> None:
    started = [(p, await p.start(TokenPrompt([*IDS, n]), max_tokens=10 + n)) for n in range(8) for p in (a, b)]
    for n, (proxy, number) in enumerate(started):
        seen = await proxy.end_of(number)
        prompt = [*IDS, n // 2]
        assert seen.tokens == expected(prompt, len(seen.tokens))
        assert seen.text == simulated.decode(seen.tokens)
        natural = simulated.natural_length(simulated.digest(prompt, None))
        assert len(seen.tokens) == min(natural, 10 + n // 2)
    steps = [f.load.step for f in a.frames if f.streams and f.load]
    assert len(steps) == len(set(steps)), "a step has one frame"
    assert max(len(f.streams) for f in a.frames) > 1, "with all its streams"
    await a.until(lambda: a.load.running == a.load.waiting == 0)


async def a_stop_string(p: ProxySide) -> None:
    whole = simulated.decode(expected(IDS, 40))
    stop = whole[20:25]
    seen = await p.ask(TokenPrompt(IDS), stop=(stop, "never"), max_tokens=40)
    assert seen.text == whole[: whole.index(stop)]
    assert seen.finished is not None
    assert seen.finished.reason == "stop"
    await p.until(lambda: p.load.running == 0)


async def a_resumed_stream(p: ProxySide) -> None:
    answer = expected(IDS, 30, seed=7)
    sampling = Sampling(seed=7, ignore_eos=True)
    for cut in (1, 5, 6, 7, 29):
        sent = simulated.decode(answer[:cut]).rstrip("\ufffd")
        resume = Resume(answer[:cut], len(sent))
        seen = await p.ask(TokenPrompt(IDS), max_tokens=30, sampling=sampling, resume=resume)
        assert seen.begin == cut
        assert seen.tokens == answer[cut:]
        assert sent + seen.text == simulated.decode(answer)
    complete = await p.ask(TokenPrompt(IDS), max_tokens=30, resume=Resume(answer, 10))
    assert complete.text == simulated.decode(answer)[10:]
    assert complete.finished is not None
    assert complete.finished.reason == "length"


async def aborts(p: ProxySide) -> None:
    number = await p.start(TokenPrompt(IDS), sampling=Sampling(ignore_eos=True))
    await p.until(lambda: len(p.seen[number].tokens) > 3)
    await p.abort(number)
    seen = await p.end_of(number)
    assert seen.finished is not None
    assert seen.finished.reason == "abort"
    await p.abort(number)  # again
    await p.abort(10**6)  # never seen
    await p.until(lambda: p.load.running == p.load.waiting == 0)


async def frames_of_steps_that_took_prompts_in(p: ProxySide) -> None:
    flowing = await p.start(TokenPrompt(IDS), sampling=Sampling(ignore_eos=True))
    await p.until(lambda: len(p.seen[flowing].tokens) > 5)
    begin = len(p.frames)
    late = await p.start(TokenPrompt([*IDS, 7] * 400), max_tokens=30, sampling=Sampling(ignore_eos=True))
    await p.end_of(late)
    await p.abort(flowing)
    await p.end_of(flowing)
    first = [next(i for i, f in enumerate(p.frames) if number in f.streams) for number in (flowing, late)]
    took = [i for i, f in enumerate(p.frames) if f.took_prompts]
    assert first[0] in took
    assert first[1] in took
    assert not [i for i in took if first[0] < i < begin or i > first[1]]


async def what_is_rejected(p: ProxySide) -> None:
    too_long = await p.ask(TokenPrompt([1] * 9000))
    assert too_long.rejected is not None
    assert too_long.rejected.failure.kind == "context_exceeded"
    assert "9000" in too_long.rejected.failure.message
    assert "8192" in too_long.rejected.failure.message
    outside = await p.ask(TokenPrompt([1, 99_999]))
    assert outside.rejected is not None
    assert outside.rejected.failure.param == "prompt"
    biased = await p.ask("x", sampling=Sampling(logit_bias={99_999: 1.0}))
    assert biased.rejected is not None
    assert biased.rejected.failure.param == "logit_bias"
    for name, value in (("presence_penalty", 1.0), ("frequency_penalty", -1.0), ("repetition_penalty", 1.2)):
        seen = await p.ask("x", sampling=Sampling(**{name: value}))  # type: ignore[arg-type]
        assert seen.rejected is not None, "what would have no effect is not accepted"
        assert seen.rejected.failure.param == name
        assert seen.rejected.failure.kind == "invalid_request"


async def logprobs(p: ProxySide) -> None:
    seen = await p.ask(chat("Hi"), max_tokens=12, sampling=Sampling(logprobs=2))
    assert [x.id for x in seen.logprobs] == seen.tokens
    assert all(len(x.top) == 2 and x.token == simulated.piece(x.id) for x in seen.logprobs)
    assert b"".join(x.token for x in seen.logprobs).decode(errors="replace") == seen.text


async def heartbeats(p: ProxySide) -> None:
    before = len(p.frames)
    await p.until(lambda: len(p.frames) >= before + 2)
    assert all(not f.streams for f in p.frames[before:])


async def a_broken_session_frees_its_streams(replica: RunningReplica) -> None:
    async with replica.session("d") as watcher:
        async with replica.session("e") as dying:
            for _ in range(4):
                await dying.start(TokenPrompt(IDS), sampling=Sampling(ignore_eos=True))
            await watcher.until(lambda: watcher.load.running == 4)
        await watcher.until(lambda: (watcher.load.running, watcher.load.waiting, watcher.load.kv_usage) == (0, 0, 0.0))


async def a_proxy_that_does_not_read(replica: RunningReplica) -> None:
    call = replica.proxy_stub.Session()
    await call.write(_hello(replica.replica_id))
    sampling = {"ignore_eos": True, "logprobs": 200}
    for number in range(200):
        prompt = replica_pb2.TokenIds(ids=[number])
        submit = replica_pb2.Submit(stream=number, token_ids=prompt, sampling=replica_pb2.Sampling(**sampling))
        await call.write(replica_pb2.SessionRequest(submit=submit))
    async with replica.session("f") as watcher:
        await watcher.until(lambda: watcher.load.running > 0)
        await watcher.until(lambda: watcher.load.running == watcher.load.waiting == 0)
    with pytest.raises(grpc.aio.AioRpcError) as e:  # noqa: PT012
        while await call.read():
            pass
    assert isinstance(from_rpc(e.value, "it"), Overloaded)


async def test_drain_lets_streams_end_and_ends_the_process(tmp_path: Path) -> None:
    async with running(a_spec(options={"step_s": 0.01}), tmp_path) as replica:
        await replica.ready()
        async with replica.session() as proxy, asyncio.TaskGroup() as tasks:
            number = await proxy.start(TokenPrompt(IDS), max_tokens=30, sampling=Sampling(ignore_eos=True))
            await proxy.until(lambda: proxy.seen[number].tokens)
            tasks.create_task(drain(replica, 60.0))
            await proxy.until(lambda: proxy.draining)
            late = await proxy.ask("too late")
            assert late.rejected is not None
            assert late.rejected.failure.kind == "draining"
            seen = await proxy.end_of(number)
            assert seen.tokens == expected(IDS, 30)
        assert await replica.exit_code() == 0


async def test_drain_has_an_end(tmp_path: Path) -> None:
    async with running(a_spec(options={"step_s": 0.01}), tmp_path) as replica:
        await replica.ready()
        async with replica.session() as proxy:
            number = await proxy.start(TokenPrompt(IDS), sampling=Sampling(ignore_eos=True))
            await proxy.until(lambda: proxy.seen[number].tokens)
            await drain(replica, 0.1)
            seen = await proxy.end_of(number)
            assert seen.finished is not None
            assert seen.finished.failure is not None
            assert seen.finished.failure.kind == "draining"
        assert await replica.exit_code() == 0


@pytest.mark.parametrize("permanent", [True, False])
async def test_a_failed_load_is_told_twice(tmp_path: Path, permanent: bool) -> None:
    options = {"fail_load": "No luck today.", "permanent": permanent, "load_s": 0.3}
    async with running(a_spec(options=options), tmp_path) as replica:
        status = await replica.status_when(lambda s: s.phase is Phase.FAILED)
        cause = Cause.UNUSABLE if permanent else Cause.CRASH
        assert (status.reason, status.cause, status.permanent) == ("No luck today.", cause, permanent)
        assert await replica.exit_code() == 1
        failure = json.loads((tmp_path / "failure.json").read_text())
        assert failure == {"reason": "No luck today.", "cause": cause}


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"source": "/no/such/folder", "engine": "openvino"}, "no folder /no/such/folder"),
        ({"source": "tinyllama", "engine": "openvino"}, "neither builtin:NAME"),
        ({"engine": "vllm"}, "vLLM is not installed"),
        ({"engine": "abacus"}, "no engine 'abacus'"),
        ({"options": {"speed": 3}}, "no option 'speed'"),
    ],
)
async def test_permanent_failures_are_sentences(tmp_path: Path, model: dict[str, object], words: str) -> None:
    async with spawned(a_spec(**model), tmp_path) as child:  # type: ignore[arg-type]
        async with asyncio.timeout(60):
            assert await child.wait() == 1
        failure = json.loads((tmp_path / "failure.json").read_text())
        assert failure["cause"] == "unusable"
        assert words in failure["reason"]
        assert "Traceback" not in failure["reason"]


async def test_a_spec_that_cannot_be_read(tmp_path: Path) -> None:
    async with spawned(a_spec(), tmp_path) as child:
        (tmp_path / "spec.json").write_text("{")
        async with asyncio.timeout(60):
            await child.wait()
        assert json.loads((tmp_path / "failure.json").read_text())["cause"] == "unusable"


async def test_faults_on_demand(tmp_path: Path) -> None:
    options = FAST | {"crash_at_token": 20, "crash_marker": "boom"}
    for how in ("token", "marker"):
        async with running(a_spec(options=options), tmp_path / how) as replica:
            await replica.ready()
            async with replica.session() as proxy:
                prompt = TokenPrompt(IDS) if how == "token" else "this goes boom"
                number = await proxy.start(prompt, sampling=Sampling(ignore_eos=True))
                await proxy.until(lambda: proxy.closed)
                seen = proxy.seen[number]
                assert not seen.over
                assert seen.tokens == (expected(IDS, len(seen.tokens)) if how == "token" else [])
            assert await replica.exit_code() == -signal.SIGKILL


async def test_a_dead_engine_ends_its_replica(tmp_path: Path) -> None:
    async with running(a_spec(options=FAST | {"die_at_token": 5}), tmp_path) as replica:
        await replica.ready()
        async with replica.session() as proxy:
            number = await proxy.start(TokenPrompt(IDS), sampling=Sampling(ignore_eos=True))
            seen = await proxy.end_of(number)
            assert seen.tokens == expected(IDS, 5)
            assert seen.finished is not None
            assert seen.finished.failure is not None
            assert seen.finished.failure.kind == "replica_gone"
            status = await replica.status_when(lambda s: s.phase is Phase.FAILED)
            assert status.reason == "The simulated engine died at token 5."
        assert await replica.exit_code() == 1
        assert json.loads((tmp_path / "failure.json").read_text())["cause"] == "crash"


async def test_a_hanging_engine_stays_and_stops_stepping(tmp_path: Path) -> None:
    async with running(a_spec(options=FAST | {"hang_at_token": 5}), tmp_path) as replica:
        await replica.ready()
        async with replica.session() as proxy:
            number = await proxy.start(TokenPrompt(IDS), sampling=Sampling(ignore_eos=True))
            await proxy.until(lambda: len(proxy.seen[number].tokens) == 5)
            step, frames = proxy.load.step, len(proxy.frames)
            await proxy.until(lambda: len(proxy.frames) >= frames + 2)
            assert proxy.load.step == step
            assert proxy.load.running == 1


async def test_refusing_to_stop_needs_a_kill(tmp_path: Path) -> None:
    async with running(a_spec(options=FAST | {"refuse_to_stop": True}), tmp_path) as replica:
        await replica.ready()
        os.kill(replica.child.pid, signal.SIGTERM)
        await replica.status_when(lambda s: s.phase is Phase.DRAINING)
        assert await replica.child.stop(term_s=0.5) == -signal.SIGKILL
        assert group_members(replica.child.pid) == []


async def test_term_ends_a_replica_that_loads(tmp_path: Path) -> None:
    async with running(a_spec(options={"load_s": 3600.0}), tmp_path) as replica:
        await replica.status_when(lambda s: s.activity == "loading the model")
        os.kill(replica.child.pid, signal.SIGTERM)
        assert await replica.exit_code() == 0
