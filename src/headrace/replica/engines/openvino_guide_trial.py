"""The process in which guides are tried: `python -m headrace.replica.engines.openvino_guide_trial`.

Writes a byte when it is ready. Each line of its input is a JSON object of StructuredOutputConfig's parameters, each
line of its output {"error": why it cannot be used, or ""}. Ends with its input. Whether a guide can be used depends on
the guide, not on the model, so the built-in model stands for all.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

import headrace
from headrace.replica import telemetry

telemetry.forbid()
import numpy as np  # noqa: E402
import openvino  # noqa: E402
import openvino_genai as genai  # noqa: E402

_LIMIT_S = 20
_PLACE = re.compile(r"^.*?\.cc:\d+: (?:Warning: )?(?:Check failed: .*? is (?:false|true): )?")


def main() -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size, scheduler.num_kv_blocks = 0, 4
    folder = Path(headrace.__file__).parent / "data" / "demo"
    pipeline = genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", {"INFERENCE_NUM_THREADS": 1})
    answers.write(" ")
    answers.flush()
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)  # warnings about what is not heeded go there
        for line in sys.stdin:
            signal.alarm(_LIMIT_S)  # which kills us, even if nobody is there any more to do so
            error = why_not(pipeline, json.loads(line), said)
            signal.alarm(0)
            print(json.dumps({"error": error}), file=answers)


def why_not(pipeline: Any, terms: dict[str, str], said: IO[bytes]) -> str:
    """Why the parameters cannot be used; "" if they can."""
    said.seek(0)
    said.truncate()
    config = genai.GenerationConfig()
    config.apply_chat_template, config.max_new_tokens = False, 2
    config.structured_output_config = genai.StructuredOutputConfig(**terms)
    handle = pipeline.add_request(0, openvino.Tensor(np.array([[1]], dtype=np.int64)), config)
    try:
        while pipeline.has_non_finished_requests():
            pipeline.step()
    except RuntimeError as e:
        handle.cancel()
        pipeline.step()
        return _sentence(str(e))
    said.seek(0)
    warnings = [line for line in said.read().decode(errors="replace").splitlines() if "Warning:" in line]
    return _sentence(warnings[0]) if warnings else ""


def _sentence(text: str) -> str:
    """What the compiler has to say, without where in its source it says so."""
    line = next((s for s in text.splitlines() if ".cc:" in s), text.strip())
    return _PLACE.sub("", line).strip()[:300].rstrip(".")


if __name__ == "__main__":
    main()
