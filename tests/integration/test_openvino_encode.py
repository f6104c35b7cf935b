"""Embeddings and scores of the OpenVINO engine, compared with transformers' own numbers."""

from __future__ import annotations

import json
import queue
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from replica_fixtures import Phase, a_spec, running
from tokenizers import Tokenizer

from headrace.core.streams import Task
from headrace.core.types import Resources
from headrace.errors import UserError
from headrace.replica.engine import EncodeRequest, EngineRequest, Row, Step

if TYPE_CHECKING:
    from model_fixtures import SmallEncoder

pytest.importorskip("openvino_genai", reason="needs pip install 'headrace[cpu]'")
from headrace.replica.engines.openvino_encode import EncodeOptions, OpenVinoEncoder, pooling_of

NEAR = 1e-3


def cases(encoder: SmallEncoder) -> list[dict[str, object]]:
    return json.loads(encoder["reference"].read_text())


def answers(engine: OpenVinoEncoder, *requests: EncodeRequest) -> dict[int, Row]:
    """All queued before the engine starts, so that they are one batch."""
    steps: queue.Queue[Step] = queue.Queue()
    for request in requests:
        engine.encode(request)
    engine.start(steps.put, lambda why: steps.put(Step([Row(-1, (), "error", error=why)])))
    found: dict[int, Row] = {}
    try:
        while len(found) < len(requests):
            found |= {row.id: row for row in steps.get(timeout=60).rows}
    finally:
        engine.close()
    return found


def test_vectors_equal_transformers_in_one_batch(small_encoders: dict[str, SmallEncoder]) -> None:
    encoder = small_encoders["embed"]
    tokenizer = Tokenizer.from_file(str(encoder["ov"] / "tokenizer.json"))
    assert pooling_of(encoder["ov"]) == "mean", "the conversion keeps it"
    for pooling, name in (("", "mean"), ("cls", "cls"), ("last", "last")):
        engine = OpenVinoEncoder(encoder["ov"], Task.EMBED, EncodeOptions(pooling=pooling), Resources(cpus=1), 0)
        assert (engine.info.tasks, engine.info.context_tokens) == (("embed",), 128)
        given = cases(encoder)
        texts = [str(c["text"]) for c in given]
        rows = answers(engine, *(EncodeRequest(n, Task.EMBED, tokenizer.encode(t).ids, t) for n, t in enumerate(texts)))
        for n, case in enumerate(given):
            assert rows[n].finish == "stop"
            assert list(rows[n].values) == pytest.approx(case[name], abs=NEAR)


def test_what_the_encoder_ends_with_an_error(small_encoders: dict[str, SmallEncoder]) -> None:
    engine = OpenVinoEncoder(small_encoders["embed"]["ov"], Task.EMBED, EncodeOptions(), Resources(cpus=1), 0)
    engine.submit(EngineRequest(9, [5], 1, engine.defaults))
    engine.encode(EncodeRequest(7, Task.EMBED, [5]))
    engine.abort(7)
    assert engine.load().waiting == 0
    assert engine.load().cpu_s > 0
    rows = answers(engine, EncodeRequest(8, Task.EMBED, [5], dimensions=3), EncodeRequest(6, Task.EMBED, [5]))
    assert rows[6].finish == "stop"
    assert rows[7].finish == "abort"
    for n, says in ((8, "dimensions"), (9, "no text")):
        assert (rows[n].finish, rows[n].kind) == ("error", "invalid_request")
        assert says in rows[n].error


def test_options(small_encoders: dict[str, SmallEncoder], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pooling must be one of"):
        EncodeOptions.parse({"pooling": "max"})
    with pytest.raises(UserError, match="max_batch"):
        EncodeOptions.parse({"max_batch": 0})
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(UserError, match="pooling_mode_max_tokens"):
        pooling_of(tmp_path)


async def test_vectors_through_the_replica(small_encoders: dict[str, SmallEncoder], tmp_path: Path) -> None:
    """From safetensors: the replica converts them for their task."""
    encoder = small_encoders["embed"]
    spec = a_spec(engine="openvino", source=str(encoder["hf"]), task="embed")
    async with running(spec, tmp_path) as replica:
        status = await replica.ready()
        assert status.model is not None
        assert status.model.tasks == ("embed",)
        async with replica.session() as p:
            numbers = [(c, await p.start(str(c["text"]), task=Task.EMBED)) for c in cases(encoder)]
            for case, number in numbers:
                seen = await p.end_of(number)
                assert seen.finished is not None
                assert seen.finished.reason == "stop"
                assert seen.result is not None
                assert list(seen.result.values) == pytest.approx(case["mean"], abs=NEAR)
            refused = await p.ask("a " * 200, task=Task.EMBED)
            assert refused.rejected is not None
            assert "tokens" in refused.rejected.failure.message


async def test_scores_through_the_replica(small_encoders: dict[str, SmallEncoder], tmp_path: Path) -> None:
    encoder = small_encoders["score"]
    spec = a_spec(engine="openvino", source=str(encoder["ov"]), task="score")
    async with running(spec, tmp_path) as replica:
        await replica.ready()
        async with replica.session() as p:
            numbers = [
                (c, await p.start(str(c["text"]), task=Task.SCORE, document=str(c["document"]))) for c in cases(encoder)
            ]
            for case, number in numbers:
                seen = await p.end_of(number)
                assert seen.result is not None
                assert list(seen.result.values) == pytest.approx([case["score"]], abs=NEAR)


async def test_a_model_of_another_task_fails_the_load(small_models: dict, tmp_path: Path) -> None:
    spec = a_spec(engine="openvino", source=str(small_models["gpt2"]["ov"]), task="embed")
    async with running(spec, tmp_path) as replica:
        status = await replica.status_when(lambda s: s.phase is Phase.FAILED)
        assert status.permanent
        assert "no model of task embed" in status.reason
