"""Models at full size without a hub: their configurations, and a tokenizer that fits into any vocabulary."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import headrace

# From the models' own config.json (TinyLlama/TinyLlama-1.1B-Chat-v1.0 and microsoft/phi-2).
TINYLLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048, "intermediate_size": 5632,
    "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4, "max_position_embeddings": 2048,
    "vocab_size": 32000, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "hidden_act": "silu", "bos_token_id": 1,
    "eos_token_id": 2, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
PHI2: dict[str, Any] = {
    "architectures": ["PhiForCausalLM"], "model_type": "phi", "hidden_size": 2560, "intermediate_size": 10240,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 2048,
    "vocab_size": 51200, "layer_norm_eps": 1e-05, "rope_theta": 10000.0, "hidden_act": "gelu_new",
    "partial_rotary_factor": 0.4, "bos_token_id": 50256, "eos_token_id": 50256, "tie_word_embeddings": False,
    "torch_dtype": "float16",
}  # fmt: skip
TINY = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}


def make(folder: Path, *, tiny: bool) -> dict[str, Path]:
    """Model folders by name, without weights. `tiny`: two layers, for a machine without a GPU."""
    demo = Path(headrace.__file__).parent / "data" / "demo"
    made: dict[str, Path] = {}
    for name, config in (("tinyllama", TINYLLAMA), ("phi2", PHI2)):
        made[name] = target = folder / name
        target.mkdir(parents=True)
        heads = {"num_key_value_heads": 2 if name == "tinyllama" else 4}
        text = json.dumps(config | (TINY | heads if tiny else {}))
        (target / "config.json").write_text(text)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy2(demo / file, target / file)
        # Headrace wants to see weights; with load_format=dummy nothing reads them.
        (target / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    return made
