"""Small tokenizers of the kinds that models have, trained here."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXT = [
    "A headrace brings water, under control, to every wheel of a mill. One head, many wheels.",
    "Machine learning finds patterns in data, and a language model predicts the next token of a text.",
    "Ein Mühlgraben bringt Wasser. Élève, garçon, œuvre. Вода идёт к колесу. 水は水車へ流れる。 🚰",
    "def wheel(water): return [turn for turn in water if turn > 0]    # <b> |x| end system user assistant",
]
CONTROL = ["<|im_start|>", "<|im_end|>", "<|end|>", "<|system|>", "</s>", "<s>"]
THINK = ["<think>", "</think>"]
_GPT4 = r"'s|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"


def _byte_level() -> Tokenizer:
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    t.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False))
    t.add_special_tokens(CONTROL)
    t.add_tokens(THINK)
    t.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", t.token_to_id("<s>"))])
    return t


def _llama3() -> Tokenizer:
    t = Tokenizer(models.BPE(ignore_merges=True))
    t.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_GPT4), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    t.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=alphabet, show_progress=False, special_tokens=["</s>", "<s>"]
    )
    t.train_from_iterator(TEXT, trainer)
    t.add_special_tokens([AddedToken(c, normalized=False) for c in CONTROL])
    t.add_tokens(THINK)
    return t


def _llama2(legacy: bool) -> Tokenizer:
    t = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if legacy:
        t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    t.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    first = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=700, show_progress=False, special_tokens=first)
    t.train_from_iterator(TEXT, trainer)
    data = json.loads(t.to_str())
    data["added_tokens"] = [a for a in data["added_tokens"] if not a["content"].startswith("<0x")]
    t = Tokenizer.from_str(json.dumps(data))
    t.add_special_tokens([AddedToken(c, normalized=False) for c in CONTROL])
    t.add_tokens([AddedToken(c, normalized=False) for c in THINK])
    return t


def _unigram() -> Tokenizer:
    t = Tokenizer(models.Unigram())
    t.normalizer = normalizers.NFKC()
    t.pre_tokenizer = pre_tokenizers.Metaspace()
    t.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, show_progress=False, unk_token="<unk>", special_tokens=["<s>", "<unk>", "</s>"]
    )
    t.train_from_iterator(TEXT, trainer)
    t.add_special_tokens(CONTROL)
    t.add_tokens(THINK)
    return t


def _phi2() -> Tokenizer:
    t = _byte_level()
    t.add_tokens([AddedToken(" " * n, normalized=True) for n in range(8, 1, -1)])
    t.add_special_tokens([AddedToken("<|pad|>", rstrip=True, lstrip=True)])
    return t


def _bert() -> Tokenizer:
    t = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    t.normalizer = normalizers.BertNormalizer(lowercase=True)
    t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    t.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    t.train_from_iterator(TEXT, trainers.WordPieceTrainer(vocab_size=300, show_progress=False, special_tokens=special))
    t.post_processor = processors.BertProcessing(("[SEP]", t.token_to_id("[SEP]")), ("[CLS]", t.token_to_id("[CLS]")))
    t.add_special_tokens(CONTROL)
    t.add_tokens(THINK)
    return t


KINDS = {
    "byte-level": _byte_level,
    "llama3": _llama3,
    "llama2": lambda: _llama2(legacy=False),
    "llama2-legacy": lambda: _llama2(legacy=True),
    "unigram": _unigram,
    "phi2": _phi2,
    "bert": _bert,
}


@functools.cache
def tokenizer_file(kind: str) -> dict[str, Any]:
    """What its tokenizer.json holds."""
    return json.loads(KINDS[kind]().to_str())


def folder_of(kind: str, folder: Path, **config: Any) -> Path:
    """A model folder with the tokenizer, and tokenizer_config.json."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_file(kind)), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "<|im_end|>", **config}))
    return folder
