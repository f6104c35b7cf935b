"""Which engines this Python installation can run, found without importing any of them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

_MODULES = {"openvino": "openvino_genai"}

HOW_TO_INSTALL = {
    "openvino": "The OpenVINO engine is not installed: pip install 'headrace[cpu]'",
    "vllm": "The vLLM engine is not supported yet: use --engine openvino, or auto.",
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
        return "vllm", "a GPU is present and vLLM is installed"
    if gpus > 0:
        return "openvino", "there is no vLLM here"
    return "openvino", "no GPU is given to it"
