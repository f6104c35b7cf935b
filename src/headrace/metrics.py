"""Prometheus metrics, named as vLLM names them where they mean the same.

Tokens and requests are counted in plain integers (`Tally`, `Metrics.count`) and carried over once a second, so that
they cost no metric call.
With a folder that the proxies of one port share, any of them answers /metrics for all.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import structlog

from headrace.core.types import Load

log = structlog.get_logger()

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_FILES = ("counter", "histogram", "gauge_livesum")  # as the Prometheus client calls them
_FILE_BYTES = 2**18  # about a thousand series each
_GAPS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0)


def _room_in(folder: Path) -> bool:
    """Take the room for this process's files before they are mapped: a page of a mapped file that the disk has no room
    for kills the process which touches it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for kind in _FILES:
            with (folder / f"{kind}_{os.getpid()}.db").open("ab") as f:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(f.fileno(), 0, _FILE_BYTES)
    except OSError:
        for kind in _FILES:
            with suppress(OSError):
                (folder / f"{kind}_{os.getpid()}.db").unlink(missing_ok=True)
        return False
    return True


class Seconds:
    """Times seen since they were last carried over, by the buckets of _SECONDS."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(_SECONDS) + 1)
        self.sum_s = 0.0

    def saw(self, seconds: float) -> None:
        self.counts[bisect_left(_SECONDS, seconds)] += 1
        self.sum_s += seconds


class Tally:
    """What the requests and streams of one model have done since the last `Metrics.flush`."""

    __slots__ = (
        "_bucket",
        "_each_s",
        "cached_tokens",
        "e2e",
        "gap_sum",
        "gaps",
        "moved",
        "prompt_tokens",
        "retries",
        "tokens",
        "ttft",
    )

    def __init__(self) -> None:
        self._each_s, self._bucket = 0.0, 0
        self.tokens = 0
        self.retries = 0
        self.prompt_tokens = self.cached_tokens = 0
        self.ttft, self.e2e = Seconds(), Seconds()
        self.gaps = [0] * (len(_GAPS) + 1)
        self.gap_sum = 0.0
        self.moved: list[float] = []  # seconds without a token, of each stream that went on at another replica

    def gap(self, seconds: float, count: int) -> None:
        """`count` tokens came together, `seconds` after the ones before them."""
        if count:
            each_s = seconds if count == 1 else seconds / count
            if each_s != self._each_s:  # the rows of a frame mostly have the same
                self._each_s, self._bucket = each_s, bisect_left(_GAPS, each_s)
            self.tokens += count
            self.gaps[self._bucket] += count
            self.gap_sum += seconds


class Metrics:
    """All metrics of one proxy process. `folder`: shared with the other proxies of the port; None: on our own."""

    def __init__(self, folder: Path | None = None) -> None:
        if folder is not None and not _room_in(folder):
            log.warning("metrics_not_shared", folder=str(folder), reason="no room on its disk")
            folder = None
        if folder is not None:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
        # The client decides between one process and several when it is imported, hence late and once more.
        import prometheus_client as p
        from prometheus_client import values

        if folder is not None:
            values.ValueClass = values.get_value_class()
        self._folder = folder
        self._p = p
        self._own = p.CollectorRegistry()
        self._tallies: dict[str, Tally] = {}
        self._counts: Counter[tuple[Any, tuple[str, ...]]] = Counter()
        self.running_now = 0  # requests being answered

        def histogram(name: str, text: str, labels: list[str], buckets: tuple[float, ...]) -> Any:
            return p.Histogram(name, text, labels, buckets=buckets, registry=self._own)

        def counter(name: str, text: str, labels: list[str]) -> Any:
            return p.Counter(name, text, labels, registry=self._own)

        def gauge(name: str, text: str, labels: list[str], mode: Any) -> Any:
            return p.Gauge(name, text, labels, registry=self._own, multiprocess_mode=mode)

        m = ["model_name"]
        self.ttft = histogram("vllm:time_to_first_token_seconds", "Request received to first token.", m, _SECONDS)
        self.itl = histogram("vllm:inter_token_latency_seconds", "Time between tokens of a stream.", m, _GAPS)
        self.e2e = histogram("vllm:e2e_request_latency_seconds", "Request received to last word.", m, _SECONDS)
        self.success = counter("vllm:request_success", "Finished requests.", [*m, "finished_reason"])
        self.prompt_tokens = counter("vllm:prompt_tokens", "Prompt tokens.", m)
        self.generation_tokens = counter("vllm:generation_tokens", "Tokens generated.", m)
        self._replicas = _Replicas()
        self._own.register(self._replicas)
        self.in_flight = gauge("headrace_requests_in_flight", "Requests being answered.", [], "livesum")
        self.unplaced = gauge("headrace_requests_unplaced", "Requests that wait for a replica.", m, "livesum")
        self.failed = counter("headrace_requests_failed", "Requests ended by an error.", [*m, "kind"])
        self.cancelled = counter("headrace_requests_cancelled", "Requests whose client left.", m)
        self.routed = counter("headrace_routed", "Choices of a replica, and why.", [*m, "reason"])
        self.prefix_queries = counter("vllm:prefix_cache_queries", "Prompt tokens that a prefix cache may have had.", m)
        self.prefix_hits = counter("vllm:prefix_cache_hits", "Prompt tokens that a prefix cache had.", m)
        self.retries = counter("headrace_retries", "Streams tried on another replica.", m)
        self.moved = histogram(
            "headrace_failover_gap_seconds", "Last token of a replica that is gone to the next one.", m, _SECONDS
        )
        self.responses = counter("headrace_http_responses", "Responses begun.", ["path", "status"])
        text = "Connections closed for what their client did or did not do, or to make room."
        self.connections_closed = counter("headrace_connections_closed", text, ["reason"])

    def count(self, counter: Any, *labels: str) -> None:
        """One more of one of the counters here."""
        self._counts[counter, labels] += 1

    def tally(self, model: str) -> Tally:
        """The running count of a model's tokens."""
        tally = self._tallies.get(model)
        if tally is None:
            tally = self._tallies[model] = Tally()
        return tally

    def show(self, replicas: Mapping[str, Mapping[str, tuple[Load, float]]], waiting: Mapping[str, int]) -> None:
        """From now on show exactly these: by model the load of each replica and its weight, and the requests that wait.

        What is gone is shown no more; what is there is shown from its beginning, with 0 if there is nothing to count.
        """
        gone = self._replicas.now.keys() - replicas.keys()
        self._replicas.now = replicas
        for model in replicas:
            self.unplaced.labels(model).set(waiting.get(model, 0))
        for model in gone:
            self.unplaced.labels(model).set(0)
            if self._folder is None:
                self.unplaced.remove(model)

    def flush(self) -> None:
        """Carry over what was counted."""
        counts, self._counts = self._counts, Counter()
        for (counter, labels), n in counts.items():
            (counter.labels(*labels) if labels else counter).inc(n)
        self.in_flight.set(self.running_now)
        for model, t in self._tallies.items():
            if t.tokens:
                self.generation_tokens.labels(model).inc(t.tokens)
                t.tokens = 0
            if t.retries:
                self.retries.labels(model).inc(t.retries)
                t.retries = 0
            for seconds in t.moved:
                self.moved.labels(model).observe(seconds)
            t.moved.clear()
            if t.prompt_tokens:
                self.prompt_tokens.labels(model).inc(t.prompt_tokens)
                self.prefix_queries.labels(model).inc(t.prompt_tokens)
                self.prefix_hits.labels(model).inc(t.cached_tokens)
                t.prompt_tokens = t.cached_tokens = 0
            for histogram, seen in ((self.ttft, t.ttft), (self.e2e, t.e2e)):
                _add(histogram.labels, model, seen.counts, seen.sum_s)
                seen.sum_s = 0.0
            _add(self.itl.labels, model, t.gaps, t.gap_sum)
            t.gap_sum = 0.0

    def render(self) -> tuple[bytes, str]:
        """The page that /metrics answers with, and its content type."""
        self.flush()
        registry = self._own
        if self._folder is not None:
            from prometheus_client import multiprocess

            self._forget_dead()
            registry = self._p.CollectorRegistry()
            shared = multiprocess.MultiProcessCollector(None, path=str(self._folder))
            registry.register(_OfModels(shared, self.unplaced.describe()[0].name, self._replicas.now.keys()))
            # Every proxy hears from every replica, so these need not be shared; and a file forgets nothing.
            registry.register(self._replicas)
        return self._p.generate_latest(registry), self._p.CONTENT_TYPE_LATEST

    def _forget_dead(self) -> None:
        """A process that was killed leaves its live gauges behind. Its counters stay: sums never fall."""
        assert self._folder is not None
        for file in self._folder.glob("gauge_live*_*.db"):
            pid = file.stem.rpartition("_")[2]
            if pid.isdigit() and not _lives(int(pid)):
                file.unlink(missing_ok=True)


class _Replicas:
    """The gauges of replicas, of those in `now`: model → replica → load and weight."""

    def __init__(self) -> None:
        self.now: Mapping[str, Mapping[str, tuple[Load, float]]] = {}

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import GaugeMetricFamily

        share = "Its share of traffic beside sound replicas, 0..1; 0: only what others have no room for, or nothing."
        shown: tuple[tuple[str, str, Callable[[Load, float], float]], ...] = (
            ("vllm:num_requests_running", "Running in a replica.", lambda load, _: load.running),
            ("vllm:num_requests_waiting", "Queued in a replica.", lambda load, _: load.waiting),
            ("vllm:kv_cache_usage_perc", "KV cache in use, 0..1.", lambda load, _: load.kv_usage),
            ("headrace_replica_weight", share, lambda _, weight: weight),
        )
        for name, text, value in shown:
            family = GaugeMetricFamily(name, text, labels=["model_name", "replica"])
            for model, replicas in self.now.items():
                for replica, (load, weight) in replicas.items():
                    family.add_metric([model, replica], value(load, weight))
            yield family


class _OfModels:
    """What another collector has, without the zeros of a gauge for models that are gone, which its files keep."""

    def __init__(self, inner: Any, gauge: str, models: Collection[str]) -> None:
        self._inner, self._gauge, self._models = inner, gauge, models

    def collect(self) -> Iterator[Any]:
        for family in self._inner.collect():
            if family.name == self._gauge:
                family.samples = [s for s in family.samples if s.value or s.labels["model_name"] in self._models]
            yield family


def _add(labels: Any, model: str, counts: list[int], total: float) -> None:
    """Many observations at once, for which the client has no public way; `counts` become zero."""
    if any(counts):
        child = labels(model)
        child._sum.inc(total)
        for i, n in enumerate(counts):
            if n:
                child._buckets[i].inc(n)
                counts[i] = 0


def _lives(pid: int) -> bool:
    """A zombie does not: whose parent died first has one that nobody may care to bury, as in many a container."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
