"""The converter's process: `python -m headrace.replica.convert SOURCE TARGET --weight-format FORMAT [--task TASK]`.

Prints one JSON object per line: {"activity", "progress"}, and {"error", "errno"} before it ends with code 1 (errno 0:
the system said nothing). Ends when its standard input does, so that it never outlives who asked for it.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

from headrace.replica import telemetry

_KEPT = ("tokenizer", "modules", "special_tokens_map", "added_tokens", "chat_template", "generation_config")
_POOLING = Path("1_Pooling") / "config.json"
_TASKS = {"generate": "text-generation-with-past", "embed": "feature-extraction", "score": "text-classification"}
_FULL_BYTES = 2**20
_BITS = {"int8": 8, "int4": 4}


def main() -> None:
    """Convert, or print why not."""
    parser = argparse.ArgumentParser(prog="python -m headrace.replica.convert")
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--weight-format", choices=("fp32", "fp16", "int8", "int4"), default="fp16")
    parser.add_argument("--task", choices=tuple(_TASKS), default="generate")
    parser.add_argument("--trust-remote-code", action="store_true")
    args = parser.parse_args()
    threading.Thread(target=_end_with_input, daemon=True).start()
    # Libraries print to standard output; it is ours to speak on.
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(**news: object) -> None:
        print(json.dumps(news), file=lines)

    try:
        convert(args.source, args.target, args.weight_format, say, args.task, args.trust_remote_code)
    except Exception as e:  # top of the process: told to the parent in one line, the trace to its log
        import traceback

        traceback.print_exc()
        say(error=f"{type(e).__name__}: {' '.join(str(e).split())[:300]}", errno=_errno(e, args.target))
        sys.exit(1)


def _errno(error: BaseException | None, target: Path) -> int:
    """What the system said, if that is why it failed; 0: it said nothing."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        error = error.__cause__ or error.__context__
    # Writers that are not Python do not say why they stopped; what they have written still takes its room.
    with contextlib.suppress(OSError):
        if shutil.disk_usage(target if target.exists() else target.parent).free < _FULL_BYTES:
            return errno.ENOSPC
    return 0


def _end_with_input() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


def convert(source: Path, target: Path, form: str, say, task: str = "generate", remote_code: bool = False) -> None:
    telemetry.forbid()
    os.environ["HF_HUB_OFFLINE"] = "1"
    say(activity="starting PyTorch", progress=0.0)
    from optimum.exporters.openvino import main_export  # pyright: ignore[reportMissingImports]
    from optimum.intel import (  # pyright: ignore[reportMissingImports]
        OVConfig,
        OVModelForCausalLM,
        OVModelForFeatureExtraction,
        OVModelForSequenceClassification,
        OVWeightQuantizationConfig,
    )

    say(activity="tracing the model", progress=0.2)
    if form in _BITS:
        # main_export alone would leave the weights as they are.
        bits = OVWeightQuantizationConfig(bits=_BITS[form], sym=form == "int8", group_size_fallback="adjust")
        kinds = {"embed": OVModelForFeatureExtraction, "score": OVModelForSequenceClassification}
        model = kinds.get(task, OVModelForCausalLM).from_pretrained(
            str(source),
            export=True,
            compile=False,
            trust_remote_code=remote_code,
            local_files_only=True,
            quantization_config=bits,
        )
        say(activity="writing the model", progress=0.8)
        model.save_pretrained(str(target))
    else:
        main_export(
            str(source),
            str(target),
            task=_TASKS[task],
            library_name="transformers",
            ov_config=OVConfig(dtype=form),
            trust_remote_code=remote_code,
            local_files_only=True,
            convert_tokenizer=False,
        )
    say(activity="copying the tokenizer", progress=0.9)
    for path in source.iterdir():
        if path.name.startswith(_KEPT) and path.suffix in (".json", ".jinja"):
            shutil.copy2(path, target / path.name)
    if (source / _POOLING).exists():
        (target / _POOLING).parent.mkdir()
        shutil.copy2(source / _POOLING, target / _POOLING)
    if task == "generate":
        _convert_tokenizer(target)
    if not (target / "openvino_model.xml").exists():
        raise RuntimeError("the exporter made no openvino_model.xml")
    say(activity="done", progress=1.0)


def _convert_tokenizer(folder: Path) -> None:
    """Add the OpenVINO tokenizer, which structured answers need. A model without can still generate."""
    import openvino
    from openvino_tokenizers import convert_tokenizer  # pyright: ignore[reportMissingImports]
    from transformers import AutoTokenizer  # pyright: ignore[reportMissingImports]

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        made: Any = convert_tokenizer(tokenizer, with_detokenizer=True)
    except Exception as e:  # OpenVINO does not know all kinds of tokenizers
        print(f"no OpenVINO tokenizer, so no structured answers: {type(e).__name__}: {e}", file=sys.stderr)
        return
    for name, model in zip(("openvino_tokenizer.xml", "openvino_detokenizer.xml"), made, strict=True):
        openvino.save_model(model, str(folder / name), compress_to_fp16=False)


if __name__ == "__main__":
    main()
