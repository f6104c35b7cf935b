"""Structured answers of the OpenVINO engine: what genai is to be told, and whether it can be told that.

genai (2026.4) reads a guide only in the first step of its request, and an exception from a step is the end of the
pipeline; some guides even end the process (a NUL, thousands of brackets) or compile for ever. So each is tried first
in a process of its own, openvino_guide_trial, which may die of it.
"""

from __future__ import annotations

import json
import queue
import re
import select
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from headrace.core.streams import Guide
from headrace.replica.engine import EngineRequest

FEATURES = frozenset({"json_schema", "json_object", "regex", "grammar", "choices"})

MAX_TRIAL_S = 15.0
"""Below the limit after which the trial process ends itself."""
_START_S = 60.0
_KNOWN = 256

_IGNORED = frozenset(
    {
        "not", "if", "then", "else", "multipleOf", "uniqueItems", "contains", "minContains", "maxContains",
        "dependentRequired", "dependentSchemas", "$dynamicRef",
    }
)  # fmt: skip
_NAMES_WITHIN = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_DATA_WITHIN = frozenset({"enum", "const", "default", "examples"})


def terms_of(guide: Guide) -> Mapping[str, str]:
    """The guide as parameters of genai's StructuredOutputConfig. ValueError, a sentence, if it cannot be one.

    A grammar is in the EBNF that llama.cpp calls GBNF, and begins with the rule `root`.
    """
    if "\0" in guide.value:
        raise ValueError(f"The {guide.kind} contains a NUL character.")
    match guide.kind:
        case "json_schema":
            _check_schema(_json(guide))
            return {"json_schema": guide.value}
        case "json_object":
            return {"json_schema": '{"type": "object"}'}
        case "regex":
            return {"regex": guide.value}
        case "grammar":
            return {"grammar": guide.value}
        case "choices":
            choices = _json(guide)
            if not (isinstance(choices, list) and choices and all(isinstance(c, str) and c for c in choices)):
                raise ValueError("The choices must be a list of texts, none of them empty.")
            if any("\0" in c for c in choices):
                raise ValueError("A choice contains a NUL character.")
            return {"regex": "|".join(map(_literal, choices))}


def _json(guide: Guide) -> Any:
    try:
        return json.loads(guide.value)
    except ValueError as e:
        raise ValueError(f"The {guide.kind} is not JSON: {e}.") from e
    except RecursionError as e:
        raise ValueError(f"The {guide.kind} is nested too deeply.") from e


def _literal(text: str) -> str:
    """A regular expression for exactly `text`."""
    return re.sub(r"[\\^$.|?*+()\[\]{}/-]", r"\\\g<0>", text).replace("\n", r"\n").replace("\r", r"\r")


def _check_schema(schema: Any) -> None:
    """ValueError if the schema says what genai would not heed."""
    if isinstance(schema, list):
        for part in schema:
            _check_schema(part)
    elif isinstance(schema, dict):
        for key, value in schema.items():
            if key in _IGNORED:
                raise ValueError(f"This engine does not support {key!r} in a JSON schema.")
            if key in _NAMES_WITHIN and isinstance(value, dict):
                _check_schema(list(value.values()))
            elif key not in _DATA_WITHIN:
                _check_schema(value)


class GuideChecker:
    """Tries guides, one after the other, in a thread that answers with `done(request, why not)`; "": it can run."""

    def __init__(self, done: Callable[[EngineRequest, str], None], trial_s: float) -> None:
        self._done, self._trial_s = done, trial_s
        self._queue: queue.SimpleQueue[EngineRequest | None] = queue.SimpleQueue()
        self._known: OrderedDict[Guide, str] = OrderedDict()
        self._trial: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None

    def check(self, request: EngineRequest) -> None:
        """Queue a request that has a guide. Call it under a lock of yours: the first call starts the thread."""
        self._queue.put(request)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="openvino-guides", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End the thread and the process."""
        self._queue.put(None)
        if trial := self._trial:
            trial.kill()
        if self._thread is not None:
            self._thread.join(1.0)

    def _run(self) -> None:
        while request := self._queue.get():
            assert request.guide
            try:
                why = self._why_not(request.guide)
            except Exception as e:  # also this must not leave the request without an end
                self._end_trial()
                why = f"The engine could not check the {request.guide.kind}: {type(e).__name__}."
            self._done(request, why)
        self._end_trial()

    def _why_not(self, guide: Guide) -> str:
        if guide in self._known:
            self._known.move_to_end(guide)
            return self._known[guide]
        try:
            why = self._try(guide, terms_of(guide))
        except ValueError as e:
            why = str(e)
        except RecursionError:
            why = f"The {guide.kind} is nested too deeply."
        self._known[guide] = why
        if len(self._known) > _KNOWN:
            self._known.popitem(last=False)
        return why

    def _try(self, guide: Guide, terms: Mapping[str, str]) -> str:
        if self._trial is None:
            self._trial = self._start()
        trial = self._trial
        assert trial.stdin
        assert trial.stdout
        trial.stdin.write(json.dumps(terms).encode() + b"\n")
        trial.stdin.flush()
        if not select.select([trial.stdout], [], [], self._trial_s)[0]:
            self._end_trial()
            return f"The {guide.kind} takes too long to compile."
        line = trial.stdout.readline()
        if not line:
            self._end_trial()
            return f"The {guide.kind} is more than this engine can compile."
        error = json.loads(line)["error"]
        return f"This engine cannot use the {guide.kind}: {error}." if error else ""

    def _start(self) -> subprocess.Popen[bytes]:
        trial = subprocess.Popen(
            [sys.executable, "-m", "headrace.replica.engines.openvino_guide_trial"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        assert trial.stdout
        if select.select([trial.stdout], [], [], _START_S)[0] and trial.stdout.read(1):
            return trial
        trial.kill()
        trial.wait()
        raise RuntimeError("the trial process did not start")

    def _end_trial(self) -> None:
        trial, self._trial = self._trial, None
        if trial is not None:
            trial.kill()
            with trial:  # closes its pipes and waits for it
                pass
