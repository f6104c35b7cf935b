"""Makes a Llama of a few layers with random weights, whose prompts cost something: python make_llama.py OUT

A program of its own, because importing PyTorch takes long. The tokenizer is that of the tests' small models.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "models"))

import torch
from make_small_models import make_tokenizer, save
from transformers import LlamaConfig, LlamaForCausalLM

CONTEXT_TOKENS = 4096
KV_TOKEN_VALUES = 2 * 4 * 4 * 32  # keys and values, layers, heads, and each one's size


def main(out: Path) -> None:
    tokenizer = make_tokenizer()
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT_TOKENS,
        bos_token_id=1,
        eos_token_id=0,
        initializer_range=0.1,
    )
    save("llama", LlamaForCausalLM(config), tokenizer, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
