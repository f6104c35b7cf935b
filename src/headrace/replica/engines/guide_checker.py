"""Trying forms before the engine gets them: what cannot be compiled, or not soon, ends its own request only.

It happens beside the engine's work, in processes that may die of it (openvino_guide_trial). Each caller has its turn; a
form that nobody waits for any more is not tried, and is given up while it is. Regular expressions and grammars, in
which a few characters can be work for ever, have one process at a time; the other kinds need not wait for them.
"""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from headrace.core.streams import Guide
from headrace.replica.engine import EngineRequest
from headrace.replica.engines.openvino_guides import terms_of

MAX_WAITING = 256
MAX_WAITING_OF_ONE = 64
_START_S = 60.0
_KNOWN = 256
_SLOW = frozenset({"regex", "grammar"})


@dataclass(slots=True)
class _Case:
    """A form, and who waits for what comes of it. `caller`: whose turn it takes."""

    guide: Guide
    caller: str
    requests: list[EngineRequest] = field(default_factory=list[EngineRequest])


class GuideChecker:
    """Tries guides in threads that answer with `done(request, why not, kind of the error)`; "": it can run."""

    def __init__(self, done: Callable[[EngineRequest, str, str], None], trial_s: float) -> None:
        self._done, self._trial_s = done, trial_s
        self._changed = threading.Condition()
        self._known: OrderedDict[Guide, str] = OrderedDict()
        self._cases: dict[Guide, _Case] = {}  # that wait or are tried
        self._waiting: OrderedDict[str, deque[_Case]] = OrderedDict()  # by caller, whose turn is next comes first
        self._tried: dict[int, _Case] = {}  # by lane
        self._trials: dict[int, Trial] = {}
        self._closed = False
        self._threads: list[threading.Thread] = []

    def check(self, request: EngineRequest) -> None:
        """Have `done` called for a request that has a guide, perhaps at once."""
        assert request.guide
        with self._changed:
            why = self._known.get(request.guide)
            if why is None:
                if refusal := self._queue(request, request.guide):
                    why = refusal
                else:
                    return
                kind = "overloaded"
            else:
                kind = "invalid_request"
        self._done(request, why, kind)

    def _queue(self, request: EngineRequest, guide: Guide) -> str:
        """Why there is no room for it. Hold the lock."""
        case = self._cases.get(guide)
        if case is None:
            own = self._waiting.get(request.caller, ())
            if len(own) >= MAX_WAITING_OF_ONE or len(self._cases) >= MAX_WAITING:
                return f"This replica has {len(self._cases)} forms of answers to try already."
            case = self._cases[guide] = _Case(guide, request.caller)
            self._waiting.setdefault(request.caller, deque()).append(case)
            if not self._threads:
                self._threads = [
                    threading.Thread(target=self._run, args=(lane,), name=f"guides-{lane}", daemon=True)
                    for lane in (0, 1)
                ]
                for thread in self._threads:
                    thread.start()
            self._changed.notify_all()
        case.requests.append(request)
        return ""

    def cancel(self, request_id: int) -> None:
        """Nobody waits for that request any more. Idempotent; `done` may be called for it all the same."""
        with self._changed:
            for case in self._cases.values():
                left = [r for r in case.requests if r.id != request_id]
                if len(left) == len(case.requests):
                    continue
                case.requests = left
                if not left:
                    self._drop(case)
                return

    def _drop(self, case: _Case) -> None:
        """Nobody waits for it. Hold the lock."""
        del self._cases[case.guide]
        for lane, tried in self._tried.items():
            if tried is case:
                if trial := self._trials.get(lane):
                    trial.kill()
                return
        own = self._waiting[case.caller]
        own.remove(case)
        if not own:
            del self._waiting[case.caller]

    def close(self) -> None:
        """End the threads and the processes."""
        with self._changed:
            self._closed = True
            for trial in self._trials.values():
                trial.kill()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(1.0)

    def _next(self, lane: int) -> _Case | None:
        """What is to be tried; None: closed. The second lane is for what would wait for a slow kind in the first."""
        with self._changed:
            while not self._closed:
                for caller, own in self._waiting.items():
                    case = next((c for c in own if lane == 0 or (c.guide.kind not in _SLOW and 0 in self._tried)), None)
                    if case is None:
                        continue
                    own.remove(case)
                    if own:
                        self._waiting.move_to_end(caller)
                    else:
                        del self._waiting[caller]
                    self._tried[lane] = case
                    self._changed.notify_all()
                    return case
                self._changed.wait()
        return None

    def _run(self, lane: int) -> None:
        while case := self._next(lane):
            try:
                why = self._why_not(lane, case.guide)
            except Exception as e:  # also this must not leave the requests without an end
                self._end_trial(lane)
                why = f"The engine could not check the {case.guide.kind}: {type(e).__name__}."
            with self._changed:
                del self._tried[lane]
                if case.requests:  # else the trial was given up, and says nothing of the form
                    del self._cases[case.guide]
                    self._known[case.guide] = why
                    if len(self._known) > _KNOWN:
                        self._known.popitem(last=False)
            for request in case.requests:
                self._done(request, why, "invalid_request")
        self._end_trial(lane)

    def _why_not(self, lane: int, guide: Guide) -> str:
        try:
            terms = terms_of(guide)
        except ValueError as e:
            return str(e)
        except RecursionError:
            return f"The {guide.kind} is nested too deeply."
        trial = self._trials.get(lane)
        if trial is None:
            started = Trial()
            with self._changed:
                trial = self._trials[lane] = started
                if self._closed or not self._tried[lane].requests:
                    trial.kill()
        try:
            error = trial.ask(terms, self._trial_s)
        except TimeoutError:
            self._end_trial(lane)
            return f"The {guide.kind} takes too long to compile."
        if error is None:
            self._end_trial(lane)
            return f"The {guide.kind} is more than this engine can compile."
        return f"This engine cannot use the {guide.kind}: {error}." if error else ""

    def _end_trial(self, lane: int) -> None:
        with self._changed:
            trial = self._trials.pop(lane, None)
        if trial is not None:
            trial.end()


class Trial:
    """The process. One thread asks; any may kill."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "headrace.replica.engines.openvino_guide_trial"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self._ready = False

    def ask(self, terms: Mapping[str, str], limit_s: float) -> str | None:
        """What is wrong with a guide, "" if nothing; None: the process has ended. TimeoutError after so long."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin
        assert stdout
        if not self._ready:
            if not (select.select([stdout], [], [], _START_S)[0] and stdout.read(1)):
                raise RuntimeError("the trial process did not start")
            self._ready = True
        with contextlib.suppress(OSError):
            stdin.write(json.dumps(terms).encode() + b"\n")
            stdin.flush()
        if not select.select([stdout], [], [], limit_s)[0]:
            raise TimeoutError
        line = stdout.readline()
        return json.loads(line)["error"] if line else None

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> None:
        """End it and wait for it."""
        self._process.kill()
        with self._process:  # closes its pipes
            pass
