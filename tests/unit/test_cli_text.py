"""Tables, sizes, progress and what a waiting person is told: pure functions of values."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.cli.deploy import engine_args_json, replica_range
from headrace.cli.endpoint import HeadEndpoint, callable_address, read_endpoint, with_port
from headrace.cli.loading import PlainProgress
from headrace.cli.part import backoff_s
from headrace.cli.sources import resolve, resolve_source
from headrace.cli.tables import Row, adapter_lines, model_lines, node_lines, revision_lines, status_lines, table
from headrace.cli.waiting import Outcome, Standing, adapter_standing, doing, standing
from headrace.cli.welcome import welcome_lines
from headrace.cli.words import number, one_line, size, wrapped
from headrace.core.phase import Phase
from headrace.core.state import Revision
from headrace.core.types import (
    Adapter,
    AdapterStatus,
    CatalogEntry,
    ClusterStatus,
    Deployment,
    DeploymentStatus,
    Gpu,
    Load,
    ModelInfo,
    ModelSpec,
    NodeId,
    NodeInfo,
    NodeStatus,
    PlacedReplica,
    ProxyStatus,
    ReplicaId,
    ReplicaStatus,
    Resources,
    RouteState,
)
from headrace.errors import UserError
from headrace.settings import UpSettings

SPEC = ModelSpec("builtin:demo", engine="openvino")


def deployment(
    name: str = "demo", revision: int = 1, replicas: int = 1, state: RouteState = RouteState.READY, reason: str = ""
) -> DeploymentStatus:
    return DeploymentStatus(
        Deployment(name, revision, SPEC, Resources(), replicas, replicas, replicas, 0), 0, state, reason
    )


def replica(
    phase: Phase, name: str = "demo", revision: int = 1, reason: str = "", activity: str = "", progress: float = -1.0
) -> PlacedReplica:
    status = ReplicaStatus(ReplicaId(f"{name}-{revision}-abc123"), name, revision, phase, reason, activity, progress)
    return PlacedReplica(NodeId("1"), status)


def cluster(deployments: list[DeploymentStatus], replicas: list[PlacedReplica]) -> ClusterStatus:
    return ClusterStatus(3, "0.1.0", "127.0.0.1:8000", tuple(deployments), tuple(replicas), (), ())


# --- waiting ---


@pytest.mark.parametrize(
    ("replicas", "outcome", "text"),
    [
        ([], Outcome.WAITING, "waiting for a place"),
        ([replica(Phase.PENDING)], Outcome.WAITING, "pending"),
        ([replica(Phase.LOADING, activity="loading", progress=0.4)], Outcome.WAITING, "loading 40 %"),
        ([replica(Phase.PENDING, reason="was killed by SIGKILL")], Outcome.WAITING, "pending: was killed by SIGKILL"),
        ([replica(Phase.READY)], Outcome.READY, "ready"),
        ([replica(Phase.FAILED, reason="No such folder.")], Outcome.FAILED, "No such folder."),
        ([replica(Phase.FAILED, reason="x"), replica(Phase.LOADING)], Outcome.WAITING, "loading"),
    ],
)
def test_standing_of_one_replica(replicas: list[PlacedReplica], outcome: Outcome, text: str) -> None:
    now = standing(cluster([deployment(state=RouteState.STARTING)], replicas), "demo", 1)
    assert (now.outcome, now.text) == (outcome, text)


def test_the_time_of_the_next_try_is_told_with_the_reason() -> None:
    waits = replace(replica(Phase.PENDING, reason="No room on the disk.").status, next_try=1000.0)
    assert doing(waits, now=957.6) == "pending: No room on the disk; again in 42 s"
    assert doing(waits, now=1001.0) == "pending: No room on the disk; again in 0 s"


def test_what_was_given_up_says_how_to_try_it_again() -> None:
    failed = replica(Phase.FAILED, reason="No such folder.")
    shown = "\n".join(status_lines(cluster([deployment(state=RouteState.FAILED, reason="No such folder.")], [failed])))
    assert "To try it again, say: headrace scale demo 1" in shown
    starting = cluster([deployment(state=RouteState.STARTING)], [replica(Phase.LOADING)])
    assert "try it again" not in "\n".join(status_lines(starting))


def test_only_the_asked_revision_counts() -> None:
    old_serves = [replica(Phase.READY, revision=1), replica(Phase.LOADING, revision=2)]
    status = cluster([deployment(revision=2)], old_serves)
    assert standing(status, "demo", 2).outcome is Outcome.WAITING
    failed = cluster([deployment(revision=2)], [old_serves[0], replica(Phase.FAILED, revision=2, reason="bad")])
    assert standing(failed, "demo", 2) == Standing("demo", Outcome.FAILED, "bad")
    not_yet_seen = cluster([deployment(revision=1)], [old_serves[0]])
    assert standing(not_yet_seen, "demo", 2).outcome is Outcome.WAITING


def test_all_wanted_replicas_count() -> None:
    status = cluster([deployment(replicas=2)], [replica(Phase.READY), replica(Phase.STARTING)])
    assert standing(status, "demo", 1, 2).text == "1 of 2 ready; starting"
    assert standing(status, "demo", 1, 1).outcome is Outcome.READY


def test_reason_of_the_deployment_is_told_while_nothing_is_placed() -> None:
    status = cluster([deployment(state=RouteState.STARTING, reason="needs 1 GPU; node 1 has 0")], [])
    assert standing(status, "demo", 1).text == "needs 1 GPU; node 1 has 0"


def test_a_deployment_that_goes_away_is_deleted_and_an_empty_answer_is_not() -> None:
    assert standing(cluster([deployment("other")], []), "demo", 1).outcome is Outcome.DELETED
    assert standing(cluster([], []), "demo", 1).outcome is Outcome.WAITING


def test_plain_progress_says_each_change_once() -> None:
    said: list[str] = []
    progress = PlainProgress(said.append)
    for percent in (0.40, 0.41, 0.42, 0.55):
        progress.show([Standing("demo", Outcome.WAITING, f"loading {percent:.0%}", percent)])
    progress.show([Standing("demo", Outcome.READY, "ready", 1.0)])
    assert said == ["demo: loading 40%", "demo: loading 55%", "demo: ready"]


A = Adapter("a", "/lora/" + "a" * 200)


@pytest.mark.parametrize(
    ("said", "outcome", "text"),
    [
        ([AdapterStatus(A, loaded=True)], Outcome.READY, "ready"),
        ([AdapterStatus(A, loaded=True), AdapterStatus(A)], Outcome.WAITING, "loading"),
        ([AdapterStatus(A, loaded=True), AdapterStatus(A, False, "Too big.")], Outcome.FAILED, "Too big."),
        ([], Outcome.WAITING, "waiting for demo"),
    ],
)
def test_standing_of_an_adapter(said: list[AdapterStatus], outcome: Outcome, text: str) -> None:
    replicas = [with_adapter(replica(Phase.READY), s) for s in said]
    now = adapter_standing(cluster([adapted()], replicas), "demo", A)
    assert (now.name, now.outcome, now.text) == ("demo:a", outcome, text)
    other = replace(A, source="/other")
    assert adapter_standing(cluster([adapted()], replicas), "demo", other).outcome is Outcome.DELETED


def adapted(name: str = "demo") -> DeploymentStatus:
    d = deployment(name)
    return replace(d, deployment=replace(d.deployment, adapters=(A,)))


def with_adapter(r: PlacedReplica, said: AdapterStatus) -> PlacedReplica:
    return replace(r, status=replace(r.status, adapters=(said,)))


def test_tables_show_adapters_that_are_missing_and_why() -> None:
    ready = replica(Phase.READY)
    for said, shown in [
        (AdapterStatus(A), "    adapter a: loading"),
        (AdapterStatus(A, False, REASON), "    adapter a: The folder /models/x holds no config.json."),
    ]:
        lines = status_lines(cluster([adapted()], [with_adapter(ready, said)]))
        assert any(line.startswith(shown) for line in lines), lines
        assert max(map(len, [*lines, *adapter_lines(adapted(), [with_adapter(ready, said)])])) <= 100
    fine = [with_adapter(ready, AdapterStatus(A, loaded=True))]
    assert "adapter" not in "\n".join(status_lines(cluster([adapted()], fine)))
    long = adapter_lines(adapted(LONG), [with_adapter(replica(Phase.READY, LONG), AdapterStatus(A))])
    assert max(map(len, long)) <= 100


# --- tables ---

LONG = "n" * 96
REASON = "The folder /models/x holds no config.json. " * 8


def big_status() -> ClusterStatus:
    load = Load(running=12345, waiting=99999, kv_usage=0.5)
    placed = [
        PlacedReplica(
            NodeId("node-" + "x" * 60),
            ReplicaStatus(
                ReplicaId(f"{n}-12-abc123"), n, 12, Phase.DRAINING, REASON, pid=4194304, restarts=99, load=load
            ),
        )
        for n in ("demo", LONG)
    ]
    spec = replace(SPEC, source="/very/long" * 30)
    ds = [
        DeploymentStatus(Deployment(n, 12, spec, Resources(), 0, 1000, 1000, 0), 1000, RouteState.STARTING, REASON)
        for n in ("demo", LONG)
    ]
    total = Resources(128.5, 2**41, 8, 0)
    info = NodeInfo(
        NodeId("n" * 90), 1, "host." * 40, "0.1.0", total, (Gpu(0, "NVIDIA H100 " * 12, 2**36, 5),), ("a",) * 80
    )
    nodes = (NodeStatus(info, False, 12.3, total),)
    return ClusterStatus(
        1, "0.1.0", "h" * 200, tuple(ds), tuple(placed), nodes, (ProxyStatus("p" * 150, 1, "running"),)
    )


@pytest.mark.parametrize("columns", [60, 80, 100])
def test_nothing_is_wider_than_asked(columns: int) -> None:
    status = big_status()
    entries = [CatalogEntry(LONG, replace(SPEC, source="s" * 300), Resources(), REASON)]
    for lines in (status_lines(status, columns), node_lines(status.nodes, columns), model_lines(entries, columns)):
        assert max(map(len, lines)) <= columns


def test_long_names_stay_whole_and_reasons_are_wrapped_below() -> None:
    lines = status_lines(big_status())
    assert LONG in lines  # copyable, on a line of its own
    assert f"{LONG}-12"[:100] in "".join(lines)
    reason_lines = [x for x in lines if x.startswith("    ")]
    assert " ".join(REASON.split()) in " ".join(" ".join(reason_lines).split())


def test_a_usual_status_reads_well() -> None:
    demo = deployment()
    status = cluster(
        [replace(demo, ready=1)], [replica(Phase.READY), replica(Phase.LOADING, "b", 2, "", "loading", 0.5)]
    )
    stood = ProxyStatus("proxy-2", 78, "running", 1, "stood still for 6 s and was killed", 3)
    status = replace(status, proxies=(ProxyStatus("proxy-1", 77, "running", 2), stood))
    assert status_lines(status) == [
        "Headrace 0.1.0, http://127.0.0.1:8000, 0 nodes",
        "",
        "DEPLOYMENT  STATE  READY  REPLICAS  REV  ENGINE    SOURCE",
        "demo        READY    1/1         1    1  openvino  builtin:demo",
        "",
        "REPLICA        PHASE    PID  RESTARTS  RUNNING  WAITING   KV  NODE",
        "demo-1-abc123  READY                0        0        0  0 %  1",
        "b-2-abc123     LOADING              0                         1",
        "    loading 50 %",
        "",
        "PROXY    STATE    PID  RESTARTS",
        "proxy-1  running   77         2",
        "proxy-2  running   78         1",
        "    stood still for 6 s and was killed",
    ]


def test_ready_is_said_of_all_that_are_wanted() -> None:
    d = deployment()
    for ready, wanted, said in ((2, 999, "PARTIAL"), (1, 1, "READY"), (2, 1, "READY"), (0, 0, "READY")):
        many = replace(d, state=RouteState.READY, ready=ready, deployment=replace(d.deployment, replicas=wanted))
        assert f"demo        {said} " in status_lines(cluster([many], []))[3]


def test_the_engine_that_was_chosen_is_shown() -> None:
    auto = deployment()
    auto = replace(auto, deployment=replace(auto.deployment, model=ModelSpec("builtin:demo")))
    placed = replica(Phase.READY)
    known = replace(placed, status=replace(placed.status, model=ModelInfo("openvino", "2026.4", 1024, 4096)))
    for replicas, engine in (([placed], "auto"), ([known], "openvino")):
        assert f" {engine} " in status_lines(cluster([auto], replicas))[3]


def test_empty_tables_say_what_to_do() -> None:
    assert "headrace deploy" in "\n".join(status_lines(cluster([], [])))
    assert "headrace scheduler" in node_lines([])[0]


def test_a_reason_cannot_steer_the_terminal() -> None:
    lines = table(("A", "B"), [Row(("a\x1b[2J", "b\nc"), ("x\r\x1b]0;title\x07y",))])
    assert all(c.isprintable() for line in lines for c in line)


@given(st.lists(st.lists(st.text(max_size=150), min_size=3, max_size=3), max_size=5), st.text(max_size=300))
def test_any_text_fits(cells: list[list[str]], note: str) -> None:
    assert all(len(x) <= 100 for x in table(("A", ">B", "C"), [Row([*c[:1], "7", *c[2:]], (note,)) for c in cells]))


# --- words ---


def test_numbers_for_people() -> None:
    assert [size(n) for n in (0, 1023, 1536, 2**30, 200 * 2**30)] == ["0 B", "1023 B", "1.5 KiB", "1 GiB", "200 GiB"]
    assert [number(x) for x in (2.0, 1.5, 0.25)] == ["2", "1.5", "0.25"]
    assert one_line(" a\n\tb\x00") == "a b "
    assert wrapped("aaa bbb", 6) == ["  aaa", "  bbb"]


# --- what is meant by MODEL ---


def test_models_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    good = tmp_path / "good"
    good.mkdir()
    (good / "config.json").touch()
    (tmp_path / "empty").mkdir()
    assert resolve("demo", must_exist=True) == "demo"
    assert resolve("hf://org/name", must_exist=True) == "hf://org/name"
    assert resolve("./good", must_exist=True) == str(good)
    assert resolve("/elsewhere/model", must_exist=False) == "/elsewhere/model"
    assert resolve_source("good") == str(good)
    assert resolve_source("builtin:demo") == "builtin:demo"
    for model, says in (
        ("./empty", "is not a model: it holds neither config.json nor openvino_model.xml"),
        ("./good/config.json", "it is a file"),
        ("org/name", "or write hf://org/name"),
        ("/elsewhere/model", "There is no folder /elsewhere/model"),
    ):
        with pytest.raises(UserError, match=says):
            resolve(model, must_exist=True)
    with pytest.raises(UserError, match="There is no folder"):
        resolve("./nope", must_exist=False)


def test_engine_args_and_replica_numbers() -> None:
    assert engine_args_json(["a=1", "b=x=y", "c=[1, 2]"]) == '{"a": 1, "b": "x=y", "c": [1, 2]}'
    assert engine_args_json([]) is None
    with pytest.raises(UserError, match="KEY=VALUE"):
        engine_args_json(["nonsense"])
    assert replica_range(3, None, None) == (3, 3)
    assert replica_range(None, 1, None) == (1, None)
    with pytest.raises(UserError, match="not both"):
        replica_range(3, 1, None)
    with pytest.raises(UserError, match="more than --max"):
        replica_range(None, 3, 1)


# --- where things are ---


def test_endpoint_file(tmp_path: Path) -> None:
    assert read_endpoint(tmp_path) is None
    (tmp_path / "head").mkdir()
    path = tmp_path / "head/endpoint.json"
    path.write_text('{"http": "0.0.0.0:8000", "node"')
    assert read_endpoint(tmp_path) is None
    path.write_text('{"http": "0.0.0.0:8000", "node": "a:1", "grpc": "b:2", "pid": 5}')
    endpoint = read_endpoint(tmp_path)
    assert endpoint == HeadEndpoint("0.0.0.0:8000", "a:1", "b:2", 5)
    assert endpoint.url == "http://127.0.0.1:8000"
    assert callable_address("[::]:80") == "[::1]:80"
    assert [with_port(a, 9) for a in ("h", "h:1", "::1", "[::1]", "[::1]:2")] == [
        "h:9",
        "h:1",
        "[::1]:9",
        "[::1]:9",
        "[::1]:2",
    ]


def test_welcome_names_the_real_port_and_the_state_dir(tmp_path: Path) -> None:
    endpoint = HeadEndpoint("127.0.0.1:8123", "a:1", "b:2", 5)
    lines = welcome_lines(endpoint, ["demo"], UpSettings(state_dir=tmp_path / "a b"))
    text = "\n".join(lines)
    assert "http://127.0.0.1:8123/v1/chat/demo" in text
    assert f"headrace status --state_dir='{tmp_path}/a b'" in text
    assert "Authorization" not in text
    assert "--state_dir" not in "\n".join(welcome_lines(endpoint, ["demo"], UpSettings()))
    assert "Authorization" in "\n".join(welcome_lines(endpoint, ["demo"], UpSettings(api_keys_file=tmp_path)))


# --- supervision ---


def test_back_off_grows_to_a_bound() -> None:
    assert [backoff_s(n) for n in (1, 2, 3, 4, 5, 50)] == [0.2, 0.5, 1.0, 2.0, 5.0, 5.0]


def test_an_update_that_fits_nowhere_is_not_waited_for() -> None:
    """The old revision goes on serving, so the deployment is READY."""
    stuck = replace(deployment(revision=2, reason="updating to revision 2: needs the engine vllm"), stuck=True)
    old = replica(Phase.READY, revision=1)
    now = standing(cluster([stuck], [old]), "demo", 2)
    assert now == Standing("demo", Outcome.FAILED, "updating to revision 2: needs the engine vllm")
    assert standing(cluster([replace(stuck, stuck=False)], [old]), "demo", 2).outcome is Outcome.WAITING


def test_revisions_tell_enough_to_choose_one() -> None:
    old = Revision("m", 1, ModelSpec("/m", engine="simulated", context_tokens=99), Resources(2.0, 2**30), 1000)
    new = replace(old, revision=2, model=ModelSpec("/m2", engine="simulated"), created_unix_s=4000)
    back = replace(old, revision=3, created_unix_s=4590, repeats=1)
    bad = ReplicaStatus(ReplicaId("m-2-a"), "m", 2, Phase.FAILED, "no such folder")
    good = replace(bad, replica_id=ReplicaId("m-3-a"), revision=3, phase=Phase.READY, reason="")
    replicas = [PlacedReplica(NodeId("1"), s) for s in (bad, good)]
    assert (
        "\n".join(revision_lines([back, new, old], replicas, 4600.0))
        == """\
REV  READY  MADE        ENGINE     SOURCE
  3    1/1  10 s ago    simulated  /m
    current, the same as revision 1
    needs 2 CPUs, 1 GiB of memory
    context_tokens: 99
  2    0/1  10 min ago  simulated  /m2
    failed: no such folder
    needs 2 CPUs, 1 GiB of memory
  1         1 h ago     simulated  /m
    needs 2 CPUs, 1 GiB of memory
    context_tokens: 99"""
    )
