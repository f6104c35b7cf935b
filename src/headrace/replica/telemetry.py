"""No telemetry leaves the machine.

`import openvino` reports itself to a web analytics service through the package openvino_telemetry, without a question,
when no consent file exists; so do conversions. OpenVINO falls back to a stub when that package cannot be imported.
"""

from __future__ import annotations

import os
import sys

_SWITCHES = {"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1", "VLLM_NO_USAGE_STATS": "1"}


def forbid() -> None:
    """Make telemetry impossible in this process and its children. Call before any engine is imported."""
    os.environ.update(_SWITCHES)
    # None in sys.modules makes the import fail, which is what selects OpenVINO's stub.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]


def forbidden() -> bool:
    """True if `forbid` has taken effect: the switches are set, and the package is not and will not be imported."""
    switched = all(os.environ.get(k) == v for k, v in _SWITCHES.items())
    return switched and "openvino_telemetry" in sys.modules and sys.modules["openvino_telemetry"] is None
