"""Every test leaves no process behind, also none that was orphaned on the way."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator

import hypothesis
import psutil
import pytest
from authority_fixtures import STATE
from model_fixtures import small_encoders, small_models

__all__ = ["STATE", "small_encoders", "small_models"]  # a fixture for all levels

# No test fails because the machine was busy; what CI finds can be found again.
hypothesis.settings.register_profile(
    "default",
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("default")

_PR_SET_CHILD_SUBREAPER = 36
_GRACE_S = 10.0


def pytest_configure() -> None:
    # Ignored signals are inherited: under nohup, or in the background of a script, nothing here could be interrupted.
    for signum, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(signum) is signal.SIG_IGN:
            signal.signal(signum, handler)
    # Orphans become our children instead of PID 1's, so that the leak check below sees them.
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _living() -> dict[int, str]:
    found: dict[int, str] = {}
    for p in psutil.Process().children(recursive=True):
        try:
            if p.status() != psutil.STATUS_ZOMBIE:
                found[p.pid] = " ".join(p.cmdline())[:200]
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    """Fails a test that ends with processes it did not find; ends them, so that the next test starts clean."""
    before = set(_living())
    yield
    end = time.monotonic() + _GRACE_S
    while (left := {k: v for k, v in _living().items() if k not in before}) and time.monotonic() < end:
        time.sleep(0.02)
    for pid in left:
        try:
            psutil.Process(pid).kill()
        except psutil.NoSuchProcess:
            continue
    assert not left, f"processes left behind: {left}"
