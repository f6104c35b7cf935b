"""Train the embedded `demo` model and export it to `src/headrace/data/demo/`.

    pip install torch==2.13.0 "transformers==4.57.*" "optimum-intel==1.27.*" "openvino==2026.4.*" \
        "openvino-tokenizers==2026.4.*" nncf
    python scripts/train_demo_model.py

The corpus is `scripts/demo_corpus/` (its README has the format). The seed is fixed and nothing is downloaded.
The result is one folder that vLLM and transformers (safetensors) and OpenVINO (IR) can all load.

DURATION_AND_LOSS
"""

import argparse
import json
import math
import os
import random
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OPENVINO_TELEMETRY_OPT_OUT="1")

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / "scripts" / "demo_corpus"
TARGET = ROOT / "src" / "headrace" / "data" / "demo"

SEED = 20261123
VOCAB_SIZE = 2048
CONTEXT = 1024
BATCH_TOKENS = 4096
PEAK_LEARNING_RATE = 3e-3
USER_WEIGHT = 0.1
MAX_BYTES = 7_600_000

PAD, BOS, END, SYSTEM, USER, ASSISTANT = SPECIAL_TOKENS = (
    "<|pad|>",
    "<|bos|>",
    "<|end|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
)
CHAT_TEMPLATE = (
    "{{ '<|bos|>' }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '<|assistant|>' }}"
    "{% elif message['role'] == 'system' %}{{ '<|system|>' }}"
    "{% else %}{{ '<|user|>' }}{% endif %}"
    "{{ message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True)
class Turn:
    """One answer, the topics it explains and the whole questions that ask for it."""

    topics: tuple[str, ...]
    questions: tuple[str, ...]
    answer: str


Dialogue = tuple[Turn, ...]


@dataclass(frozen=True)
class Corpus:
    """All that the model learns from."""

    dialogues: list[Dialogue]
    templates: list[str]
    systems: list[str]

    def texts(self) -> Iterator[str]:
        """Every text once, for the tokenizer."""
        yield from self.systems
        yield from self.templates
        for turn in (turn for dialogue in self.dialogues for turn in dialogue):
            yield from turn.topics
            yield from turn.questions
            yield turn.answer


# --- the corpus ---------------------------------------------------------------------------------------------------


def parse_dialogue(block: str) -> Dialogue:
    """Read one block of a corpus file."""
    turns: list[Turn] = []
    topics: list[str] = []
    questions: list[str] = []
    answer: list[str] = []

    def finish_turn() -> None:
        if not answer or not topics + questions:
            raise ValueError(f"a turn needs a question and an answer: {block[:80]!r}")
        turns.append(Turn(tuple(topics), tuple(questions), "\n".join(answer)))
        topics.clear(), questions.clear(), answer.clear()

    for line in block.splitlines():
        tag, _, rest = line.partition(" ")
        if tag in ("T:", "Q:") and answer:
            finish_turn()
        if tag == "T:":
            topics += [topic.strip() for topic in rest.split(";")]
        elif tag == "Q:":
            questions.append(rest.strip())
        elif tag == "A:":
            answer.append(rest.strip())
        else:
            answer[-1] += " " + line.strip()
    finish_turn()
    return tuple(turns)


def read_corpus(folder: Path) -> Corpus:
    """Read every text file of the corpus, in the order of their names."""
    special = {"templates": [], "systems": []}
    dialogues = []
    for path in sorted(folder.glob("*.txt")):
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
        if path.stem in special:
            special[path.stem] += [line for line in lines if line]
        else:
            blocks = re.split(r"\n\s*\n", "\n".join(lines).strip())
            dialogues += [parse_dialogue(block.strip()) for block in blocks]
    return Corpus(dialogues, **special)


def loosen(question: str, rng: random.Random) -> str:
    """Vary a question as people do: case, punctuation, politeness, a typing mistake."""
    if rng.random() < 0.06:
        question = rng.choice(("Please ", "Hi, ", "Hello, ", "Hey! ", "So, ", "ok, ", "Quick question: ")) + question
    if rng.random() < 0.06:
        extra = (" please", " Thanks!", " Keep it short.", " In detail.", " Answer in one paragraph.", " in short")
        question = question.rstrip("?.") + rng.choice(extra)
    if rng.random() < 0.35:
        question = question.lower()
    if rng.random() < 0.35:
        question = question.rstrip("?.! ") or question
    if rng.random() < 0.10:
        question = question.rstrip("?. ") + rng.choice("?.!") if question.strip("?. ") else question
    if rng.random() < 0.08 and len(question) > 8:
        at = rng.randrange(1, len(question) - 1)
        kept = rng.choice(("", question[at] * 2, question[at + 1] + question[at]))
        question = question[:at] + kept + question[at + (2 if len(kept) == 2 and kept[0] != kept[1] else 1) :]
    if rng.random() < 0.05 and question.count(" ") > 2:
        words = question.split(" ")
        del words[rng.randrange(len(words))]
        question = " ".join(words)
    if rng.random() < 0.02:
        question = question.upper()
    return question


def ask(turn: Turn, templates: list[str], rng: random.Random) -> str:
    """One wording of a turn's question."""
    if turn.topics and (not turn.questions or rng.random() < 0.65):
        question = rng.choice(templates).replace("{x}", rng.choice(turn.topics))
        question = question[0].upper() + question[1:]
    else:
        question = rng.choice(turn.questions)
    return loosen(question, rng)


# --- the tokenizer ------------------------------------------------------------------------------------------------


def train_tokenizer(corpus: Corpus) -> Tokenizer:
    """A byte-level BPE: any text can be encoded, and decoding gives it back unchanged."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus.texts(), trainer)
    bos = (BOS, tokenizer.token_to_id(BOS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[bos]
    )
    for text in corpus.texts():
        if tokenizer.decode(tokenizer.encode(text).ids) != text:
            raise ValueError(f"does not round trip: {text!r}")
    return tokenizer


def as_pretrained(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """The tokenizer with its chat template, ready to be saved."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


# --- the training data --------------------------------------------------------------------------------------------


class Sampler:
    """Makes batches of token ids and of the weight of each id in the loss."""

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer, rng: random.Random) -> None:
        self.corpus, self.tokenizer, self.rng = corpus, tokenizer, rng
        self.special = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
        self.deck: list[Dialogue] = []
        self.passes = 0
        self.waiting: tuple[list[int], list[float]] | None = None

    def batch(self, rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """`rows` x `length` ids and weights; each row is packed with whole chats, the rest is padding."""
        ids = torch.full((rows, length), self.special[PAD])
        weights = torch.zeros(rows, length)
        for row in range(rows):
            used = 0
            while True:
                chat = self.waiting or self.chat(length)
                if used + len(chat[0]) > length:
                    self.waiting = chat if len(chat[0]) <= 512 else None
                    break
                self.waiting = None
                end = used + len(chat[0])
                ids[row, used:end] = torch.tensor(chat[0])
                weights[row, used:end] = torch.tensor(chat[1])
                used = end
        return ids, weights

    def draw(self) -> Dialogue:
        """The next dialogue of a shuffled deck, so that each one is seen equally often."""
        if not self.deck:
            self.deck = self.rng.sample(self.corpus.dialogues, len(self.corpus.dialogues))
            self.passes += 1
        return self.deck.pop()

    def chat(self, length: int) -> tuple[list[int], list[float]]:
        """One chat: mostly a single dialogue, sometimes several in a row, sometimes a bare text."""
        ids, weights = [self.special[BOS]], [0.0]

        def add(role: str | None, text: str, weight: float, closed: bool = True) -> None:
            if role:
                ids.append(self.special[role])
                weights.append(0.0)
            piece = self.tokenizer.encode(text, add_special_tokens=False).ids
            piece += [self.special[END]] if closed else []
            ids.extend(piece)
            weights.extend([weight] * len(piece))

        if self.rng.random() < 0.04:
            add(None, self.draw()[-1].answer, 1.0)
            return ids, weights
        if self.rng.random() < 0.25:
            add(SYSTEM, self.rng.choice(self.corpus.systems), USER_WEIGHT)
        wanted = 1 if self.rng.random() < 0.75 else self.rng.randint(2, 8)
        for _ in range(wanted):
            for turn in self.draw():
                add(USER, ask(turn, self.corpus.templates, self.rng), USER_WEIGHT)
                add(ASSISTANT, turn.answer, 1.0)
            if len(ids) > length // 2:
                break
        return ids[:length], weights[:length]


# --- the model ----------------------------------------------------------------------------------------------------


def new_model(tokenizer: Tokenizer) -> LlamaForCausalLM:
    """A small Llama with grouped-query attention and tied embeddings."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=192,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=CONTEXT,
            rope_theta=10_000.0,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.token_to_id(PAD),
            bos_token_id=tokenizer.token_to_id(BOS),
            eos_token_id=tokenizer.token_to_id(END),
            attn_implementation="sdpa",
        )
    )


def learning_rate(done: float) -> float:
    """Warm-up, then a cosine down to nearly nothing; `done` runs from 0 to 1."""
    return PEAK_LEARNING_RATE * min(1.0, done / 0.03) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def train(model: LlamaForCausalLM, sampler: Sampler, steps: int) -> float:
    """Train in place; the mean loss over the last fiftieth of the answers' tokens."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_LEARNING_RATE, betas=(0.9, 0.97))
    started_s = time.monotonic()
    recent: list[float] = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate((step + 1) / steps)
        length = CONTEXT if step % 6 == 5 else CONTEXT // 2
        ids, weights = sampler.batch(BATCH_TOKENS // length, length)
        targets, weights = ids[:, 1:], weights[:, 1:]
        counted = weights > 0
        hidden = model.model(ids[:, :-1]).last_hidden_state[counted]
        losses = torch.nn.functional.cross_entropy(model.lm_head(hidden), targets[counted], reduction="none")
        weights = weights[counted]
        loss = (losses * weights).sum() / weights.sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent = [*recent[-(steps // 50) :], losses[weights == 1.0].mean().item()]
        if step % 50 == 49 or step + 1 == steps:
            took_s = time.monotonic() - started_s
            mean = sum(recent[-50:]) / len(recent[-50:])
            print(f"step {step + 1}/{steps} pass {sampler.passes} loss {mean:.4f} {took_s:.0f} s", flush=True)
    return sum(recent) / len(recent)


# --- the export ---------------------------------------------------------------------------------------------------


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, target: Path) -> int:
    """Write all forms of the model to a new folder, swap it with `target`; the size in bytes."""
    import openvino
    from openvino_tokenizers import convert_tokenizer
    from optimum.exporters.openvino import main_export
    from optimum.intel import OVConfig

    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.3,
        top_p=0.9,
        top_k=20,
        max_new_tokens=512,
        pad_token_id=model.config.pad_token_id,
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".demo-") as scratch:
        fresh = Path(scratch) / "demo"
        model.half().save_pretrained(fresh)
        tokenizer.save_pretrained(fresh, save_jinja_files=False)
        ir = Path(scratch) / "ir"
        main_export(str(fresh), ir, task="text-generation-with-past", ov_config=OVConfig(dtype="fp16"))
        for path in sorted(ir.glob("openvino_*")):
            shutil.copy(path, fresh / path.name)
        converted = convert_tokenizer(tokenizer, with_detokenizer=True)
        for name, part in zip(("openvino_tokenizer", "openvino_detokenizer"), converted, strict=True):
            openvino.save_model(part, fresh / f"{name}.xml")
        for path in fresh.iterdir():
            path.chmod(0o644)
        size = sum(path.stat().st_size for path in fresh.iterdir())
        if size > MAX_BYTES:
            raise ValueError(f"{size} bytes are more than {MAX_BYTES}")
        if target.exists():
            target.rename(Path(scratch) / "old")
        fresh.rename(target)
    return size


def answer(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, question: str) -> str:
    """The greedy answer to one question."""
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt"
    )
    output = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=512)
    return tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)


def main() -> None:
    """Read, train, show, export."""
    parser = argparse.ArgumentParser(description="Train and export the embedded demo model.")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--target", type=Path, default=TARGET)
    args = parser.parse_args()

    torch.manual_seed(SEED)
    torch.set_num_threads(2)
    corpus = read_corpus(CORPUS)
    tokenizer = train_tokenizer(corpus)
    answers = [turn.answer for dialogue in corpus.dialogues for turn in dialogue]
    print(f"{len(answers)} answers, {sum(len(tokenizer.encode(text).ids) for text in answers)} tokens")
    model = new_model(tokenizer)
    print(f"{model.num_parameters():,} parameters, vocabulary {tokenizer.get_vocab_size()}")

    started_s = time.monotonic()
    loss = train(model, Sampler(corpus, tokenizer, random.Random(SEED)), args.steps)
    print(f"trained in {(time.monotonic() - started_s) / 60:.1f} minutes, final loss {loss:.4f}")

    pretrained = as_pretrained(tokenizer)
    model.eval()
    for question in ("Explain about Machine Learning?", "what is a token", "How do I deploy a model?", "Hi"):
        print(json.dumps({"question": question, "answer": answer(model, pretrained, question)}, indent=1))
    size = export(model, pretrained, args.target)
    print(f"{args.target.name}: {size:,} bytes")


if __name__ == "__main__":
    main()
