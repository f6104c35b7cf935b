"""Makes small models of the catalog's architectures, with random weights and a real tokenizer.

    python make_small_models.py OUT

leaves, for gpt2, llama and phi: OUT/hf/NAME (a Hugging Face folder with safetensors), OUT/ov/NAME (the same as OpenVINO
IR, by our own converter) and OUT/greedy/NAME.json (what transformers itself generates, as a reference for engines); and
for each of ADAPTERS OUT/lora/NAME/ADAPTER (a LoRA adapter in PEFT's format) and OUT/greedy/NAME-ADAPTER.json (the same
with the adapter's product added to the weights).

A program of its own, because importing PyTorch and transformers takes seconds and hundreds of megabytes that the tests
do not need. The same seeds make the same weights everywhere.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import torch
from make_small_encoders import make_encoders
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
)

from headrace.replica.convert import convert

VOCAB_SIZE = 512
HIDDEN = 128  # with four heads: the least that all engines have an attention for is 32 each
GREEDY_TOKENS = 48
PROMPTS = ("Explain about Machine Learning?", "Hello", "The water of the mill")
BOS, EOS, UNKNOWN = "<s>", "</s>", "<unk>"
SPECIAL = [EOS, BOS, UNKNOWN]  # ids 0, 1, 2

ADAPTERS = {"a": 11, "b": 12}  # with their seeds
RANK, ALPHA = 4, 8
TARGETS = {
    "gpt2": ("c_attn", "c_proj", "c_fc"),
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "phi": ("q_proj", "v_proj", "dense", "fc1"),
}

TEXT = """
A headrace brings water, under control, to every wheel of a mill. One head, many wheels.
Machine learning finds patterns in data, and a language model predicts the next token of a text.
A token is a piece of a word; a tokenizer cuts text into tokens and a model turns them into numbers.
The quick brown fox jumps over the lazy dog, and the dog does not mind. 0123456789 (and some more: 42, 1066, 2026).
Ein Mühlgraben bringt Wasser. Élève, garçon, œuvre, naïve. Вода идёт к колесу. 水は水車へ流れる。 🚰🙂
def wheel(water): return [turn for turn in water if turn > 0]
"""

# TinyLlama's own template is of this kind; GPT-2 and Phi-2 have none.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def make_tokenizer() -> Tokenizer:
    """A byte-level BPE: every text has tokens, and characters beyond ASCII often take several."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.train_from_iterator(
        TEXT.splitlines(),
        trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    return tokenizer


def make_models() -> dict[str, PreTrainedModel]:
    """One model per architecture. `initializer_range` far above the usual 0.02 makes the next token depend on the
    whole text: with small weights greedy decoding would repeat one token, whatever the prompt."""
    ids = {"bos_token_id": 1, "eos_token_id": 0, "vocab_size": VOCAB_SIZE}
    made: dict[str, PreTrainedModel] = {}
    torch.manual_seed(1)
    made["gpt2"] = GPT2LMHeadModel(
        GPT2Config(**ids, n_embd=HIDDEN, n_layer=2, n_head=4, n_positions=512, initializer_range=0.3)
    )
    torch.manual_seed(2)
    made["llama"] = LlamaForCausalLM(
        LlamaConfig(
            **ids,
            hidden_size=HIDDEN,
            intermediate_size=2 * HIDDEN,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,  # grouped-query attention
            max_position_embeddings=1024,
            initializer_range=0.3,
        )
    )
    torch.manual_seed(3)
    made["phi"] = PhiForCausalLM(
        PhiConfig(
            **ids,
            hidden_size=HIDDEN,
            intermediate_size=2 * HIDDEN,
            num_hidden_layers=2,
            num_attention_heads=4,
            partial_rotary_factor=0.5,
            max_position_embeddings=512,
            initializer_range=0.3,
        )
    )
    return made


def silence(model: PreTrainedModel, tokens: list[int]) -> None:
    """Give `tokens` the logit 0, which in a vocabulary of wide random logits never is the highest."""
    with torch.no_grad():
        head = model.get_output_embeddings()
        head.weight[tokens] = 0.0


def not_text(tokenizer: Tokenizer) -> list[int]:
    """Special tokens, and tokens that are not whole characters: a random model would end early, or write half ones."""
    byte_of = {char: byte for byte, char in _byte_chars().items()}
    bad = list(range(len(SPECIAL)))
    for token, id_ in tokenizer.get_vocab().items():
        if token in SPECIAL:
            continue
        raw = bytes(byte_of[c] for c in token)
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            bad.append(id_)
        else:
            if not text.isprintable():
                bad.append(id_)
    return bad


def _byte_chars() -> dict[int, str]:
    """The character that stands for each byte in a byte-level vocabulary (as GPT-2 chose them)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [b for b in range(256) if b not in shown]
    return {b: chr(b) for b in shown} | {b: chr(256 + i) for i, b in enumerate(hidden)}


def save(name: str, model: PreTrainedModel, tokenizer: Tokenizer, folder: Path) -> None:
    folder.mkdir(parents=True)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "unk_token": UNKNOWN,
        "clean_up_tokenization_spaces": False,
        "model_max_length": model.config.max_position_embeddings,
    }
    if name == "llama":
        config["chat_template"] = CHAT_TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


def greedy(model: PreTrainedModel, tokenizer: Tokenizer) -> list[dict[str, object]]:
    """What transformers generates for each of PROMPTS: prompt, prompt_ids, ids, text."""
    found: list[dict[str, object]] = []
    for prompt in PROMPTS:
        prompt_ids = tokenizer.encode(prompt).ids
        batch = torch.tensor([prompt_ids])
        with torch.no_grad():
            whole = model.generate(
                batch,
                attention_mask=torch.ones_like(batch),
                max_new_tokens=GREEDY_TOKENS,
                do_sample=False,
                pad_token_id=0,
            )
        ids = whole[0, len(prompt_ids) :].tolist()
        found.append({"prompt": prompt, "prompt_ids": prompt_ids, "ids": ids, "text": tokenizer.decode(ids)})
    return found


def adapt(name: str, model: PreTrainedModel, seed: int, folder: Path) -> PreTrainedModel:
    """Write a LoRA adapter, strong enough to change every answer; a copy of `model` with its product in the weights."""
    adapted = copy.deepcopy(model)
    rng = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for path, module in adapted.named_modules():
        if path.rpartition(".")[2] not in TARGETS[name]:
            continue
        weight = module.weight
        turned = name == "gpt2"  # its layers keep their weights as (in, out)
        rows, columns = weight.T.shape if turned else weight.shape
        a = torch.randn((RANK, columns), generator=rng) * 0.2
        b = torch.randn((rows, RANK), generator=rng) * 0.2
        tensors[f"base_model.model.{path}.lora_A.weight"] = a
        tensors[f"base_model.model.{path}.lora_B.weight"] = b
        product = ALPHA / RANK * (b @ a)
        with torch.no_grad():
            weight += product.T if turned else product
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA, "bias": "none",
              "target_modules": list(TARGETS[name]), "fan_in_fan_out": name == "gpt2"}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))
    return adapted


def main(out: Path) -> None:
    tokenizer = make_tokenizer()
    bad = not_text(tokenizer)
    (out / "greedy").mkdir(parents=True)
    for name, model in make_models().items():
        silence(model, bad)
        save(name, model.eval(), tokenizer, out / "hf" / name)
        references = {name: model}
        for adapter, seed in ADAPTERS.items():
            references[f"{name}-{adapter}"] = adapt(name, model, seed, out / "lora" / name / adapter)
        for reference, whole in references.items():
            text = json.dumps(greedy(whole, tokenizer), ensure_ascii=False, indent=1)
            (out / "greedy" / f"{reference}.json").write_text(text)
        convert(out / "hf" / name, out / "ov" / name, "fp32", lambda **_: None)
    make_encoders(out, TEXT)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
