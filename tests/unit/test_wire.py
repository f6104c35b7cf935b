"""What comes over the wire has bounds: values that cannot be are refused by name, text for people is cut."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.catalog import check_model
from headrace.core.types import NAME_PATTERN, Load, ModelSpec, NodeId, NodeInfo, ReplicaId, ReplicaStatus, Resources
from headrace.errors import InvalidRequest
from headrace.rpc import convert, convert_head, convert_story, convert_streams, wire
from headrace.rpc.v1 import head_pb2, node_pb2, replica_pb2, types_pb2

NAN, INF = math.nan, math.inf
HELLO = NodeInfo(NodeId("1"), 1, "host", "0", Resources(2.0, 2**30), (), ("simulated",))
STATUS = ReplicaStatus(ReplicaId("sim-1-aaaaaa"), "sim", 1, convert.Phase.READY, address="127.0.0.1:1", load=Load())


def refused(what: Any, *args: Any) -> str:
    with pytest.raises(InvalidRequest) as e:
        what(*args)
    assert len(e.value.message) < 500, "the sentence does not bring back what was sent"
    return e.value.message


@pytest.mark.parametrize("node_id", ["", "a\nb", "x" * 1_000_000, "../up", "ü", "-a", "a/b"])
def test_node_ids(node_id: str) -> None:
    hello = convert.node_info_to_pb(HELLO)
    hello.node_id = node_id
    assert "node id" in refused(convert.node_info_from_pb, hello)


@pytest.mark.parametrize("cpus", [NAN, INF, -INF, -1.0, 1e9])
def test_what_a_node_has(cpus: float) -> None:
    hello = convert.node_info_to_pb(HELLO)
    hello.resources.cpus = cpus
    assert "cpus" in refused(convert.node_info_from_pb, hello)


@pytest.mark.parametrize(
    "change",
    [
        lambda h: setattr(h.resources, "memory_bytes", 2**63),
        lambda h: setattr(h.resources, "gpus", 2**31),
        lambda h: h.gpus.extend([types_pb2.Gpu()] * 5000),
        lambda h: h.gpus.extend([types_pb2.Gpu(index=2**31)]),
        lambda h: h.engines.extend(["x"] * 1000),
        lambda h: h.engines.extend(["x" * 1000]),
        lambda h: h.engines.extend(["\x1b[2J"]),
        lambda h: setattr(h, "hostname", "h" * 1000),
        lambda h: setattr(h, "hostname", "\x1b]0;owned\x07"),
        lambda h: setattr(h, "version", "v" * 1000),
    ],
)
def test_the_rest_of_a_hello(change: Any) -> None:
    hello = convert.node_info_to_pb(HELLO)
    assert convert.node_info_from_pb(hello) == HELLO
    change(hello)
    refused(convert.node_info_from_pb, hello)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: setattr(s, "replica_id", "../../etc"),
        lambda s: setattr(s, "replica_id", ""),
        lambda s: setattr(s, "deployment", "d" * 1000),
        lambda s: setattr(s, "phase", 0),
        lambda s: setattr(s, "phase", 99),
        lambda s: setattr(s, "address", "not an address"),
        lambda s: setattr(s, "address", "a" * 2000 + ":1"),
        lambda s: setattr(s, "address", "unix:/run/x"),
        lambda s: setattr(s, "started_at", NAN),
        lambda s: setattr(s, "started_at", INF),
        lambda s: setattr(s.load, "kv_usage", NAN),
        lambda s: setattr(s.load, "cpu_s", INF),
        lambda s: s.gpu_indices.extend([0] * 5000),
        lambda s: s.adapters.extend([types_pb2.AdapterStatus()] * 1000),
        lambda s: s.model.features.extend(["f"] * 1000),
    ],
)
def test_a_replicas_status(change: Any) -> None:
    status = convert.replica_status_to_pb(STATUS)
    assert convert.replica_status_from_pb(status) == STATUS
    change(status)
    refused(convert.node_report_from_pb, node_pb2.NodeReport(replicas=[status]))


def test_too_many_replicas() -> None:
    refused(convert.node_report_from_pb, node_pb2.NodeReport(replicas=[types_pb2.ReplicaStatus()] * 20_000))
    refused(convert.node_report_from_pb, node_pb2.NodeReport(gone=["a"] * 20_000, changes=True))


def test_text_for_people_is_cut_and_harmless() -> None:
    status = convert.replica_status_to_pb(STATUS)
    status.reason, status.activity, status.progress = "no room\n\x1b[2J" * 10_000, "loading " * 1000, NAN
    seen = convert.replica_status_from_pb(status)
    assert len(seen.reason) <= wire.MAX_TEXT
    assert seen.reason.isprintable()
    assert seen.reason.endswith("…")
    assert len(seen.activity) <= wire.MAX_WORD
    assert seen.progress == -1.0


@pytest.mark.parametrize(
    "options",
    ["[" * 100_000, '{"a":' * 100_000, '{"a":' * 900 + "1" + "}" * 900, "[]", "1", "{", "{" + " " * 100_000 + "}",
     json.dumps({"a": [[[[]]]] * 20_000})],
)  # fmt: skip
def test_engine_args(options: str) -> None:
    assert "engine_args must be a JSON object" in refused(
        check_model, ModelSpec("builtin:demo", engine_args_json=options)
    )


def test_engine_args_that_are_fine() -> None:
    deep: Any = 1
    for _ in range(30):
        deep = [deep]
    text = json.dumps({"b": 1, "a": deep})
    assert json.loads(check_model(ModelSpec("builtin:demo", engine_args_json=text)).engine_args_json) == {
        "a": deep,
        "b": 1,
    }


@pytest.mark.parametrize(
    "request_",
    [
        head_pb2.DeployRequest(model="m" * 1_000_000),
        head_pb2.DeployRequest(model="demo\n"),
        head_pb2.DeployRequest(model="demo", name="n" * 1000),
        head_pb2.DeployRequest(model="demo", chat_template="x" * 1_000_000),
        head_pb2.DeployRequest(model="demo", engine_args_json="x" * 1_000_000),
        head_pb2.DeployRequest(model="demo", engine="e" * 1000),
        head_pb2.DeployRequest(
            model="demo", adapters=types_pb2.Adapters(adapters=[types_pb2.Adapter(name="a", source="/a")] * 1000)
        ),
    ],
)
def test_deploy_requests(request_: head_pb2.DeployRequest) -> None:
    refused(convert_head.deploy_request_from_pb, request_)


@pytest.mark.parametrize(
    "story",
    [
        head_pb2.Story(received_unix_s=NAN),
        head_pb2.Story(first_token_s=-1.0),
        head_pb2.Story(request_id="r" * 1000),
        head_pb2.Story(proxy_id="\n"),
        head_pb2.Story(choices=[head_pb2.Choice()] * 10_000),
        head_pb2.Story(moves=[head_pb2.Move()] * 10_000),
        head_pb2.Story(choices=[head_pb2.Choice(seen=[head_pb2.Seen()] * 100)]),
        head_pb2.Story(choices=[head_pb2.Choice(seen=[head_pb2.Seen(busyness=NAN)])]),
    ],
)
def test_stories(story: head_pb2.Story) -> None:
    refused(convert_story.story_from_pb, story)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: setattr(s.sampling, "temperature", NAN),
        lambda s: setattr(s.sampling, "top_p", INF),
        lambda s: s.sampling.logit_bias.update({1: NAN}),
        lambda s: setattr(s, "keep_s", NAN),
        lambda s: setattr(s, "keep_s", -1.0),
        lambda s: setattr(s, "task", 99),
        lambda s: setattr(s, "request_id", "r" * 1000),
    ],
)
def test_submits(change: Any) -> None:
    submit = replica_pb2.Submit(stream=1, request_id="r", text="x")
    convert_streams.submit_from_pb(submit)
    change(submit)
    refused(convert_streams.submit_from_pb, submit)


@given(st.text(), st.integers(1, 50))
def test_a_sentence_is_short_and_printable_whatever_it_was(text: str, most: int) -> None:
    said = wire.sentence(text, most)
    assert len(said) <= most
    assert said.isprintable()
    if len(text) <= most and text.isprintable():
        assert said == text


@given(st.text(max_size=120))
def test_names_are_those_of_the_pattern(text: str) -> None:
    if NAME_PATTERN.fullmatch(text):
        assert wire.name(text, "node id") == text
    else:
        refused(wire.name, text, "node id")


@given(st.floats(), st.floats(0, 1e6))
def test_amounts(value: float, most: float) -> None:
    if 0.0 <= value <= most:
        assert wire.amount(value, "cpus", most) == value
    else:
        refused(wire.amount, value, "cpus", most)


@pytest.mark.parametrize(
    "address", ["", "10.0.0.1:80", "[::1]:80", "[fe80::1%eth0]:80", "host-1.example:65535", "a_b:1"]
)
def test_addresses(address: str) -> None:
    assert wire.address(address, "address") == address
