"""Small BERTs with random weights and a real tokenizer, and what transformers makes of texts with them.

OUT/hf/embed and OUT/hf/score, the same under OUT/ov by our own converter, OUT/encoded/embed.json (text, cls, mean,
last: unit vectors) and OUT/encoded/score.json (text, document, score).
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedModel

from headrace.replica.convert import convert

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS = ("Hello water", "The quick brown fox jumps over the lazy dog, and the dog does not mind.", "a", "日本 é")
QUERIES = ("water", "Which animal does not mind?")


def make_tokenizer(text: str) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(text.splitlines(), trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def make_encoders(out: Path, text: str) -> None:
    tokenizer = make_tokenizer(text)
    config = {
        "vocab_size": tokenizer.get_vocab_size(), "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 128, "max_position_embeddings": 128, "initializer_range": 0.3,
    }  # fmt: skip
    torch.manual_seed(4)
    embed = BertModel(BertConfig(**config)).eval()
    torch.manual_seed(5)
    score = BertForSequenceClassification(BertConfig(**config, num_labels=1)).eval()
    for name, model in (("embed", embed), ("score", score)):
        _save(model, tokenizer, out / "hf" / name)
        if name == "embed":
            pooling = out / "hf" / name / "1_Pooling" / "config.json"
            pooling.parent.mkdir()
            pooling.write_text(json.dumps({"word_embedding_dimension": 64, "pooling_mode_mean_tokens": True}))
            parts = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
            modules = [
                {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
                for i, (path, kind) in enumerate(parts)
            ]
            (out / "hf" / name / "modules.json").write_text(json.dumps(modules))
        convert(out / "hf" / name, out / "ov" / name, "fp32", lambda **_: None, name)
    vectors = [{"text": t, **_vectors(embed, tokenizer.encode(t).ids)} for t in TEXTS]
    scores = [
        {"text": q, "document": d, "score": _score(score, tokenizer.encode(q, d))} for q in QUERIES for d in TEXTS
    ]
    (out / "encoded").mkdir()
    (out / "encoded" / "embed.json").write_text(json.dumps(vectors))
    (out / "encoded" / "score.json").write_text(json.dumps(scores))


def _save(model: PreTrainedModel, tokenizer: Tokenizer, folder: Path) -> None:
    folder.mkdir(parents=True)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 128, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


def _vectors(model: BertModel, ids: list[int]) -> dict[str, list[float]]:
    with torch.no_grad():
        hidden = model(torch.tensor([ids])).last_hidden_state[0]
    found = {"cls": hidden[0], "mean": hidden.mean(0), "last": hidden[-1]}
    return {how: (v / v.norm()).tolist() for how, v in found.items()}


def _score(model: BertForSequenceClassification, pair) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([pair.ids]), token_type_ids=torch.tensor([pair.type_ids])).logits
    return float(torch.sigmoid(logits[0, 0]))
