"""The chaos checker on made-up logs: right ones pass, and each invariant, broken, is found."""

from __future__ import annotations

from typing import Any

import pytest
from chaos_harness import (
    check_moves,
    check_processes,
    check_state,
    check_streams,
    checker,
    history,
    oracle,
    real_model,
    report,
)
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import simulated

Event = dict[str, Any]
END = 40
expected = check_streams.simulated({"m": END})


def start(**more: Any) -> Event:
    asked = {"id": "c1", "t": 1.0, "api": "chat", "model": "m", "stream": True, "prompt": "hi", "seed": 3}
    return {"ev": "start", **asked, "max_tokens": 24, "mood": "steady", **more}


def right_text(tokens: int = 24, prompt: str = "hi") -> str:
    ids = simulated.encode(simulated.chat_prompt([{"role": "user", "content": prompt}]))
    return simulated.decode(simulated.answer(ids, 3, tokens))


def end(**more: Any) -> Event:
    text = more.get("text", right_text())
    pieces = [[1.2, 5, 0], [1.4, 9, 0], [2.9, len(text), 1]]
    seen = {"status": "completed", "http": 200, "text": text, "finishes": ["length"], "done": 1, "after_end": 0}
    rest = {"pieces": pieces, "error": None, "tokens": 24, "why": "", "in_order": True}
    return {"ev": "end", "id": "c1", "t": 3.0, **seen, **rest, **more}


def kinds(violations: list[history.Violation]) -> list[str]:
    return [f"{v.invariant} {v.kind}" for v in violations]


def streams(*events: Event, faults: list[Event] | None = None) -> check_streams.Streams:
    return check_streams.check_streams(list(events), faults or [], expected)


@given(
    st.text(max_size=40) | st.sampled_from([" and so on" * 3, "the head of water", "größer naïve"]),
    st.none() | st.integers(0, 2**64 - 1),
)
def test_the_oracle_knows_what_the_engine_says(prompt: str, seed: int | None) -> None:
    ids = simulated.encode(prompt)
    assert oracle.prompt_ids(prompt) == ids
    assert oracle.Oracle(prompt, seed, 99).answer(50).text == simulated.decode(simulated.answer(ids, seed, 50))


def test_a_right_stream_passes_and_its_move_is_counted() -> None:
    assert streams(start(), end()).violations == []
    found = check_moves.check_moves([start(), end()], [])
    assert (found.failed_over, found.gaps) == (1, {"other": [pytest.approx(1.5)]})


def test_an_answer_that_ends_by_itself() -> None:
    whole = end(text=right_text(END), finishes=["stop"], tokens=END)
    assert streams(start(max_tokens=100), whole).violations == []
    assert kinds(streams(start(max_tokens=100), whole | {"finishes": ["length"]}).violations) == ["I2 finish"]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (right_text()[:10] + right_text()[16:], "I2 missing"),
        (right_text()[:-3], "I2 missing"),
        (right_text()[:20] + right_text()[8:], "I2 duplicate"),
        (right_text()[:10] + "no such thing here" + right_text()[10:], "I2 corrupted"),
        (right_text(prompt="another"), "I2 corrupted"),
    ],
)
def test_wrong_text(text: str, kind: str) -> None:
    assert kinds(streams(start(), end(text=text)).violations) == [kind]


@pytest.mark.parametrize(
    ("changed", "kind"),
    [
        ({"done": 2}, "I2 ends twice"),
        ({"finishes": ["length", "length"]}, "I2 ends twice"),
        ({"after_end": 1}, "I2 ends twice"),
        ({"tokens": 23}, "I2 usage"),
        ({"in_order": False}, "I2 ids"),
        ({"status": "broken"}, "I3 lost"),
        ({"status": "stalled"}, "I3 lost"),
        ({"status": "error"}, "I3 untyped"),
        ({"status": "error", "error": {"type": "server_error", "message": "Oh."}}, "I3 error"),
        (
            {"status": "error", "error": {"type": "service_unavailable_error", "code": "replica_gone", "message": "G"}},
            "I3 error",
        ),
    ],
)
def test_wrong_ends(changed: Event, kind: str) -> None:
    assert kind in kinds(streams(start(), end(**changed)).violations)


def test_a_stream_that_was_left_is_checked_as_far_as_it_came() -> None:
    assert streams(start(), end(status="cancelled", text=right_text()[:12], finishes=[], done=0)).violations == []
    wrong = streams(start(), end(status="cancelled", text=right_text()[3:12], finishes=[], done=0))
    assert kinds(wrong.violations) in (["I2 missing"], ["I2 corrupted"])


def test_only_a_proxy_s_death_excuses_a_broken_connection() -> None:
    broken = end(status="broken", text=right_text()[:5])
    killed: Event = {"ev": "begin", "kind": "proxy_kill", "t": 2.5}
    assert streams(start(), broken, faults=[killed]).violations == []
    assert kinds(streams(start(), broken, faults=[killed | {"t": 30.0}]).violations) == ["I3 lost"]
    assert kinds(streams(start(), broken, faults=[killed | {"kind": "replica_kill"}]).violations) == ["I3 lost"]


def fault(kind: str, t: float, **more: Any) -> Event:
    return {"ev": "begin", "kind": kind, "t": t, **more}


def test_a_move_is_put_down_to_the_fault_of_its_model_that_is_nearest() -> None:
    faults = [
        fault("replica_stop", 1.5, replica="m-1-0a"),
        fault("replica_kill", 1.4, replica="other-1-0b"),
        fault("replica_kill", 2.8, replica="m-1-0c"),
        fault("replica_kill", 2.95, replica="m-1-0d"),
        fault("head_kill", 1.4),
    ]
    found = check_moves.check_moves([start(), end()], faults)
    assert found.gaps == {"hung": [pytest.approx(1.5)]}
    assert found.detections == {"hung": [pytest.approx(1.4)]}
    assert dict(found.hits) == {"replica_stop": 1}
    assert not found.alone


def test_the_gaps_of_a_fault_without_others_are_told_apart() -> None:
    faults = [fault("replica_stop", 1.5, replica="m-1-0a"), fault("replica_kill", 1.4, replica="other-1-0b")]
    assert check_moves.check_moves([start(), end()], faults).alone == {"hung": [pytest.approx(1.5)]}
    faults.append(fault("replica_kill", 14.0, replica="m-1-0c"))
    assert not check_moves.check_moves([start(), end()], faults).alone


def returned(answer: int = 200, **more: Any) -> list[Event]:
    return [start(mood="returns"), end(returns=[[2.0, answer]], **more)]


def test_a_client_that_came_back_is_counted_and_held_to_the_same_text() -> None:
    found = check_moves.check_moves(returned(), [])
    assert (found.taken_over, found.gone, found.returns) == (1, 0, [pytest.approx(1.5)])
    assert streams(*returned()).violations == []
    text = right_text()
    assert kinds(streams(*returned(text=text[:9] + text[12:])).violations) == ["I2 missing"]
    assert kinds(streams(*returned(text=text[:20] + text[8:])).violations) == ["I2 duplicate"]
    assert kinds(streams(*returned(done=2)).violations) == ["I2 ends twice"]


def test_a_client_that_comes_back_loses_its_stream_only_with_its_replica() -> None:
    error = {"type": "invalid_request_error", "code": "stream_gone", "message": "No replica keeps it."}
    ended = returned(410, status="error", http=410, error=error, text=right_text()[:9], finishes=[], done=0)
    death = fault("replica_kill", 2.5, replica="m-1-0a")
    assert streams(*ended, faults=[death]).violations == []
    for none in ([], [death | {"replica": "other-1-0a"}], [fault("proxy_kill", 2.5)], [death | {"t": 9.0}]):
        assert kinds(streams(*ended, faults=none).violations) == ["I3 error"]
    never_returned = [start(), ended[1]]
    assert kinds(streams(*never_returned, faults=[death]).violations) == ["I3 error"]
    assert check_moves.check_moves(ended, []).gone == 1


def test_a_proxy_s_death_is_no_excuse_for_who_comes_back() -> None:
    killed = fault("proxy_kill", 2.5)
    broken = end(status="broken", text=right_text()[:5])
    assert kinds(streams(start(mood="returns"), broken, faults=[killed]).violations) == ["I3 lost"]
    nothing_yet = broken | {"pieces": [], "text": ""}
    assert streams(start(mood="returns"), nothing_yet, faults=[killed]).violations == []


def test_each_request_ends_exactly_once() -> None:
    assert kinds(streams(start()).violations) == ["I3 ends"]
    assert kinds(streams(start(), end(), end()).violations) == ["I3 ends"]
    assert kinds(streams(end()).violations) == ["I3 unasked"]


def write(number: int, name: str, value: int | None, answer: str = "ack") -> list[Event]:
    return [{"ev": "try", "t": 0, "number": number, "name": name, "value": value}] + (
        [{"ev": answer, "t": 0, "number": number}] if answer else []
    )


def reads(**values: int) -> Event:
    return {"ev": "read", "t": 1, "epoch": 1, "values": values}


@pytest.mark.parametrize(
    ("events", "lost"),
    [
        ([*write(1, "a", 5), reads(a=5)], 0),
        ([*write(1, "a", 5), *write(2, "a", None), reads()], 0),
        ([*write(1, "a", 5), reads()], 1),
        ([*write(1, "a", 5), *write(2, "a", 6), reads(a=5)], 1),
        ([*write(1, "a", 5), *write(2, "a", None), reads(a=5)], 1),
        ([*write(1, "a", 5), *write(2, "a", 6, "unknown"), reads(a=5)], 0),
        ([*write(1, "a", 5), *write(2, "a", 6, "unknown"), reads(a=6)], 0),
        ([*write(1, "a", 5), *write(2, "a", 6, "unknown"), reads(a=6), reads(a=5)], 1),
        ([*write(1, "a", 5), *write(2, "a", 6, "refused"), reads(a=6)], 1),
        ([*write(1, "a", 5), *write(2, "a", 6, ""), reads(a=6)], 0),
        ([reads(b=1)], 1),
    ],
)
def test_acknowledged_writes(events: list[Event], lost: int) -> None:
    found = check_state.check_state(events)
    assert found.lost == lost == len(found.violations)


def test_stale_commands() -> None:
    found = check_state.check_state([])
    command: Event = {"ev": "stale", "t": 1, "to": "node 1", "epoch": 4, "seen": 5, "accepted": False}
    check_state.check_commands(found, [command])
    assert (found.stale, found.violations) == (1, [])
    check_state.check_commands(found, [command | {"accepted": True}])
    assert kinds(found.violations) == ["I6 stale"]


def row(pid: int, role: str = "replica", **more: Any) -> Event:
    return {"role": role, "pid": pid, "started": 1, "rss": 2**20, "state": "S", **more}


def table(t: float, rows: list[Event], wanted: list[str] | None) -> Event:
    replicas = None if wanted is None else {"replicas": {w: {} for w in wanted}, "deployments": {}}
    return {"ev": "table", "t": t, "at": t, "rows": rows, "wanted": replicas}


def processes(*events: Event, faults: list[Event] | None = None) -> list[str]:
    return kinds(check_processes.check_processes(list(events), faults or []).violations)


def test_an_orphan_is_found_after_ten_seconds() -> None:
    lone = row(7, replica="r1")
    assert processes(*(table(t, [lone], []) for t in range(9))) == []
    assert processes(*(table(t, [lone], ["r1"]) for t in range(30))) == []
    assert processes(*(table(t, [lone], []) for t in range(30))) == ["I4 orphan"]
    assert processes(*(table(t, [lone], None) for t in range(30))) == []  # nobody says what is wanted


def test_what_a_dead_replica_s_engine_leaves_behind_is_an_orphan() -> None:
    leader, child = row(7, replica="r1"), row(8, "child", replica="r1", leader=7)
    after = [row(9, replica="r1"), row(10, "child", replica="r1", leader=9)]
    assert processes(*(table(t, [leader, child], ["r1"]) for t in range(30))) == []
    assert processes(table(0, [leader, child], ["r1"]), *(table(t, after, ["r1"]) for t in range(1, 30))) == []
    assert processes(*(table(t, [*after, child], ["r1"]) for t in range(30))) == ["I4 orphan"]


def test_a_double_is_found() -> None:
    twice = [row(7, replica="r1"), row(8, replica="r1")]
    assert processes(table(1, twice, ["r1"])) == []  # one is about to go
    assert processes(table(1, twice, ["r1"]), table(2, twice, ["r1"])) == ["I4 double"]


def test_replicas_survive_their_scheduler() -> None:
    fault: Event = {"ev": "begin", "kind": "scheduler_kill", "t": 50.0, "node": "n", "adopts": [["r1", 7]]}
    assert processes(table(55, [row(7, replica="r1")], ["r1"]), faults=[fault]) == []
    assert processes(table(55, [row(9, replica="r1")], ["r1"]), faults=[fault]) == ["I4 not adopted"]
    killed: Event = {"ev": "begin", "kind": "replica_kill", "t": 52.0, "replica": "r1"}
    assert processes(table(55, [row(9, replica="r1")], ["r1"]), faults=[fault, killed]) == []


def quiet(**more: Any) -> Event:
    replica = {"phase": "READY", "running": 0, "waiting": 0}
    wanted = {"replicas": {"r1": replica | more.pop("replica", {})}, "deployments": {"m": 1}}
    wanted["proxies"] = {"proxy-1": 21, "proxy-2": 22}
    alive = more.pop("alive", (21, 22))
    roles = {"head": 1, "scheduler": 1, "proxy": 2, "standby": 1, "replica": 1} | more
    rows = [row(pid, "proxy") for pid in alive]
    return {"ev": "quiet", "t": 9, "rows": rows, "wanted": wanted, "roles": roles, "size": {"proxies": 2, "nodes": 1}}


def test_when_it_is_quiet_what_lives_is_what_is_wanted() -> None:
    assert processes(quiet()) == []
    assert processes(quiet(replica={"phase": "LOADING"})) == ["I4 not ready"]
    assert processes(quiet(scheduler=2)) == ["I4 count"]
    assert processes(quiet(proxy=3)) == ["I4 orphan"]
    assert processes(quiet(alive=(21, 23))) == ["I4 count"]
    assert processes(quiet(replica={"running": 1})) == ["I3 load"]
    assert processes(quiet() | {"wanted": None}) == ["I4 head"]
    assert processes({"ev": "stopped", "t": 1, "left": [row(1)]}) == ["I4 left"]


def test_queues_stay_under_their_cap_and_load_is_released() -> None:
    def seen(t: float, in_flight: float, unplaced: float) -> Event:
        counts = {"in_flight": in_flight, "unplaced": unplaced, "failovers": 0.0, "retries": 0.0}
        return {"ev": "metrics", "t": t, "cap": 8, **counts}

    def check(*queues: Event) -> list[str]:
        found = check_processes.Processes()
        check_processes.check_queues(found, list(queues), 20.0)
        return kinds(found.violations)

    assert check(seen(1, 9, 8), seen(30, 0, 0)) == []
    assert check(seen(1, 9, 9), seen(30, 0, 0)) == ["I5 queue"]
    assert check(seen(1, 9, 8), seen(30, 1, 0)) == ["I3 load"]


def test_memory_is_flat() -> None:
    def grown(per_minute: float) -> list[Event]:
        rows = [(t, row(1, "proxy") | {"rss": 2**20 * (50 + per_minute * t / 60)}) for t in range(0, 1300, 10)]
        return [table(t, [r], []) for t, r in rows]

    assert processes(*grown(0.2)) == []
    assert processes(*grown(3.0)) == ["I5 memory"]


def a_run(*events: Event, rate: float = 0.1, faults: tuple[Event, ...] = ()) -> history.History:
    marks = [
        {"ev": "plan", "t": 0, "seed": 5, "rate": rate},
        {"ev": "load_begins", "t": 0},
        *faults,
        {"ev": "load_ends", "t": 10},
    ]
    return history.History(clients=list(events), faults=marks)


def test_a_run_that_shows_nothing_is_void() -> None:
    kill: Event = {"ev": "begin", "t": 1.5, "number": 1, "kind": "replica_kill", "replica": "m-1-0a"}
    assert checker.check(a_run(start(), end(), faults=(kill,)), expected).void == []
    assert checker.check(a_run(start(), end(), rate=9.0), expected).void
    missed = checker.check(a_run(start(), end(), faults=(kill | {"t": 9.0},)), expected)
    assert missed.void == ["no fault hit a stream"]
    assert checker.check(history.History(clients=[start(), end()]), expected).void


def test_a_violation_is_told_with_the_seed_and_the_faults_near_it() -> None:
    near: Event = {"ev": "begin", "t": 2.0, "number": 1, "kind": "replica_kill", "replica": "r9"}
    far = near | {"t": 9.5, "replica": "r1"}
    run = a_run(start(), end(text="wrong"), faults=(near, far))
    verdict = checker.check(run, expected)
    told = report.explain(verdict, run)
    assert "seed 5" in told
    assert "r9" in told
    assert "r1" not in told
    assert "corrupted 1 of 1 failed-over" in report.line(verdict)


def test_a_bystander_of_two_deaths_may_be_quarantined() -> None:
    error = {"type": "invalid_request_error", "code": "request_quarantined", "message": "Two died."}
    ended = end(status="error", error=error, text="", pieces=[], finishes=[], done=0)
    killed: Event = {"ev": "begin", "kind": "replica_kill", "t": 1.5}
    assert kinds(streams(start(), ended, faults=[killed]).violations) == ["I3 error"]
    assert streams(start(), ended, faults=[killed, killed | {"t": 2.0}]).violations == []


def test_an_inexact_end_is_excused_only_where_a_replica_died_in_an_update() -> None:
    error = {"type": "service_unavailable_error", "message": "x", "code": "stream_cannot_continue"}
    stopped = end(status="error", text=right_text(9), finishes=[], done=0, tokens=None, error=error, pieces=[])
    death = {"ev": "begin", "t": 2.0, "number": 1, "kind": "replica_kill", "replica": "m-1-0a"}
    update = {"ev": "begin", "t": 1.5, "number": 2, "kind": "rolling_update", "model": "m"}
    assert kinds(streams(start(), stopped, faults=[death, update]).violations) == []
    for faults in ([death], [update], [death, update | {"model": "other"}], [death | {"t": 9.0}, update]):
        assert kinds(streams(start(), stopped, faults=faults).violations) == ["I3 error"]


def words(text: str) -> list[str]:
    return text.split()


WORDS = words("the dog ran along the sea and found a letter that nobody had read since the war when ships were there")
OTHER = words(
    "bread is made of flour and water which are left to rise for a night in a warm room before they are baked"
)


def asked(number: str = "c1", **more: Any) -> Event:
    return start(id=number, prompt="dog", seed=None, max_tokens=len(WORDS), **more)


def answered(said: list[str], moved_after: int = 10, number: str = "c1", **more: Any) -> Event:
    """One token a word; what comes after so many words comes from another replica."""
    text = "".join(f" {w}" for w in said)
    ends = [len("".join(f" {w}" for w in said[: n + 1])) for n in range(len(said))]
    pieces = [[1.0 + n / 10, sofar, int(n >= moved_after)] for n, sofar in enumerate(ends)]
    return end(**{"id": number, "text": text, "pieces": pieces, "tokens": len(WORDS), **more})


def of_a_real_model(*events: Event) -> check_streams.Streams:
    before = (
        asked("b1", mood="baseline"), answered(WORDS, 99, "b1"),
        start(id="b2", prompt="bread", mood="baseline"), answered(OTHER, 99, "b2", tokens=len(OTHER)),
    )  # fmt: skip
    real = real_model.RealModel(list(before), lambda text: len(text.split()))
    return check_streams.check_streams(list(events), [], real.expected, real.judge)


def test_an_answer_of_a_real_model_may_go_on_otherwise() -> None:
    parted = [*WORDS[:14], *words("every year of his long life"), "again"]
    assert len(parted) == len(WORDS)
    found = of_a_real_model(asked(), answered(parted))
    assert (found.violations, found.otherwise, found.compared) == ([], {"moved": 1}, {"moved": 1})
    a_word_more = [*WORDS[:14], "ever", *WORDS[14:-1]]  # one goes on as the other, and has lost nothing
    found = of_a_real_model(asked(), answered(a_word_more, moved_after=3))
    assert (found.violations, found.otherwise) == ([], {"moved": 1})
    found = of_a_real_model(asked(), answered(parted, moved_after=99))
    assert (found.violations, found.otherwise) == ([], {"not moved": 1})
    found = of_a_real_model(asked(), answered(WORDS))
    assert (found.violations, found.otherwise, found.compared) == ([], {}, {"moved": 1})


@pytest.mark.parametrize(
    ("seen", "kind"),
    [
        ([*WORDS[:10], *WORDS[11:]], "I2 missing"),  # where it moved
        ([*WORDS[:10], *WORDS[9:-1]], "I2 duplicate"),  # where it moved; in all there are as many as there should be
        ([*WORDS[:15], *WORDS[16:]], "I2 missing"),  # anywhere: too few for what was told
        ([*WORDS[:15], *WORDS[14:]], "I2 duplicate"),
        ([*WORDS[:10], *OTHER[:12]], "I2 corrupted"),  # somebody else's
        (WORDS[:-2], "I2 missing"),
    ],
)
def test_what_a_real_model_s_answer_must_not_be(seen: list[str], kind: str) -> None:
    found = of_a_real_model(asked(), answered(seen))
    assert kinds(found.violations) == [kind]
    assert not found.otherwise
