"""Text of a stream: whole characters, stop strings, resumed streams; against plain definitions of each."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from headrace.core import simulated
from headrace.replica.text import Answer, Detokenizer, StopFinder
from headrace.replica.tokenizer import FileCodec, SimulatedCodec

TEXTS = ["The model learns. naïve größer 日本語 😀🚰 stream\n\ttwo  spaces", "head of water, turning every wheel"] * 4
SPECIAL = ["<s>", "</s>"]


def byte_level() -> Tokenizer:
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    t.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=SPECIAL))
    t.add_tokens([AddedToken("<tool>", special=False), AddedToken("日本", special=False)])
    return t


def llama() -> Tokenizer:
    """As Llama 2's: a leading space is a mark, unknown characters fall back to byte tokens."""
    byte_tokens = [f"<0x{b:02X}>" for b in range(256)]
    words = ["▁", "▁the", "▁water", "turn", "s", "▁▁", "e", "日", "▁日本", "."]
    vocab = {t: i for i, t in enumerate(["<unk>", *SPECIAL, *byte_tokens, *words])}
    t = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    t.add_special_tokens([*SPECIAL, "<unk>"])
    return t


def metaspace() -> Tokenizer:
    pieces = [
        (w, -float(i)) for i, w in enumerate(["<unk>", "▁", "▁the", "▁water", "turn", "s", "▁▁a", "e", "日", "."])
    ]
    t = Tokenizer(models.Unigram(pieces, unk_id=0))
    t.pre_tokenizer = pre_tokenizers.Metaspace()
    t.decoder = decoders.Metaspace()
    t.add_special_tokens(SPECIAL)
    return t


def wordpiece() -> Tokenizer:
    """A decoder that is not token by token."""
    vocab = {w: i for i, w in enumerate(["[UNK]", "the", "water", "##s", "turn", "##ing", ".", ",", "日"])}
    t = Tokenizer(models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    t.pre_tokenizer = pre_tokenizers.Whitespace()
    t.decoder = decoders.WordPiece(cleanup=False)
    t.add_special_tokens(SPECIAL)
    return t


KINDS = {"byte_level": byte_level, "llama": llama, "metaspace": metaspace, "wordpiece": wordpiece}


@functools.cache
def opened(kind: str, folder: Path) -> tuple[FileCodec, Tokenizer]:
    tokenizer = KINDS[kind]()
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return FileCodec(folder), tokenizer


@pytest.fixture(params=KINDS, scope="module")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[FileCodec, Tokenizer]:
    return opened(request.param, tmp_path_factory.getbasetemp() / request.param)


def streamed(detokenizer: Detokenizer, ids: Sequence[int]) -> list[str]:
    return [*(detokenizer.push(i) for i in ids), detokenizer.finish()]


BYTE_0 = 3  # of the Llama-like tokenizer
LLAMA_SIZE = llama().get_vocab_size()


def _whole_byte_runs(kind_ids: Sequence[int]) -> bool:
    """Whether every run of byte tokens is valid UTF-8, or invalid from its first byte on."""
    run = bytearray()
    for i in (*kind_ids, -1):
        if BYTE_0 <= i < BYTE_0 + 256:
            run.append(i - BYTE_0)
        elif i not in (0, 1, 2) and i < LLAMA_SIZE:  # special and unknown ids vanish before the decoder sees the run
            try:
                bytes(run).decode()
            except UnicodeDecodeError as e:
                if e.start > 0 or bytes(run).decode("utf-8", "headrace-each-byte").strip("\ufffd"):
                    return False
            run.clear()
    return True


@given(st.data())
def test_pieces_join_to_the_whole_decode(pair: tuple[FileCodec, Tokenizer], data: st.DataObject) -> None:
    codec, tokenizer = pair
    texts = st.sampled_from([*TEXTS, "😀", "日本語 😀", " the water.", "é"]).map(
        lambda t: codec.encode(t, special=False)
    )
    random_ids = st.lists(st.integers(0, codec.vocab_size + 1), max_size=12)
    ids = [i for part in data.draw(st.lists(texts | random_ids, max_size=4)) for i in part]
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    got = "".join(streamed(codec.detokenizer(continued=False), ids))
    if "<0x00>" in tokenizer.get_vocab() and not _whole_byte_runs(ids):
        # The library gives up on a whole run for one bad byte; characters that were complete have been sent here.
        assert len(got) <= len(whole)
    else:
        assert got == whole


@given(st.data())
def test_a_continued_text_keeps_its_leading_space(pair: tuple[FileCodec, Tokenizer], data: st.DataObject) -> None:
    codec, tokenizer = pair
    if tokenizer.token_to_id("▁the") is None:
        return
    prompt = [tokenizer.token_to_id("▁water")]
    ordinary = [i for i in range(codec.vocab_size) if (t := tokenizer.id_to_token(i)) and not t.startswith("<")]
    ids = data.draw(st.lists(st.sampled_from(ordinary), max_size=10))
    whole = tokenizer.decode(prompt + ids)[len(tokenizer.decode(prompt)) :]
    assert "".join(streamed(codec.detokenizer(continued=True), ids)) == whole


def test_half_a_character_is_never_sent(pair: tuple[FileCodec, Tokenizer]) -> None:
    codec, tokenizer = pair
    ids = codec.encode("😀日本語é😀", special=False)
    for piece in streamed(codec.detokenizer(continued=False), ids):
        assert "\ufffd" not in piece
    if tokenizer.decode(ids).endswith("😀"):
        cut = streamed(codec.detokenizer(continued=False), ids[:-1])
        assert "\ufffd" not in "".join(cut[:-1])
        assert cut[-1] == "\ufffd" * len(cut[-1]) != ""


def test_token_bytes_are_the_tokens_own(pair: tuple[FileCodec, Tokenizer]) -> None:
    codec, _ = pair
    text = "the water"
    ids = codec.encode(text, special=False)
    assert b"".join(codec.token_bytes(i) for i in ids).decode().replace(" ", "") == "thewater"


@given(st.lists(st.integers(0, simulated.VOCAB_SIZE - 1), max_size=40))
def test_the_simulated_tokenizer_streams_its_whole_decode(ids: list[int]) -> None:
    assert "".join(streamed(SimulatedCodec().detokenizer(continued=True), ids)) == simulated.decode(ids)


# --- stop strings ---


def plainly(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The definition: character by character, cut before the stop string that is complete first, the longest of two."""
    for end in range(1, len(text) + 1):
        complete = [s for s in stops if text[:end].endswith(s)]
        if complete:
            return text[: end - len(max(complete, key=len))], True
    return text, False


few_letters = st.text("ab\n😀", max_size=30)
stop_strings = st.lists(st.text("ab\n😀", min_size=1, max_size=5), min_size=1, max_size=4)


@given(st.lists(few_letters, max_size=8), stop_strings)
def test_stop_strings_do_not_depend_on_the_pieces(pieces: list[str], stops: list[str]) -> None:
    finder = StopFinder(stops)
    sent = ""
    for piece in pieces:
        sent += finder.push(piece)
        whole_so_far, _ = plainly("".join(pieces), stops)
        assert whole_so_far.startswith(sent), "what was sent is never taken back"
    stopped = finder.stopped
    sent += finder.finish()
    assert (sent, stopped) == plainly("".join(pieces), stops)


@given(few_letters, stop_strings)
def test_only_what_may_begin_a_stop_string_waits(text: str, stops: list[str]) -> None:
    finder = StopFinder(stops)
    sent = finder.push(text)
    if not finder.stopped:
        held = text[len(sent) :]
        assert held == "" or any(s.startswith(held) for s in stops)
        longer = [text[n:] for n in range(len(sent))]
        assert not any(s.startswith(end) for s in stops for end in longer if end)


class Characters:
    """Token ids are code points."""

    def push(self, token_id: int) -> str:
        return chr(token_id)

    def finish(self) -> str:
        return ""


@given(few_letters, stop_strings | st.just([]), st.data())
def test_a_resumed_answer_goes_on_where_the_client_is(text: str, stops: list[str], data: st.DataObject) -> None:
    ids = [ord(c) for c in text]
    cut = data.draw(st.integers(0, len(ids)))
    first = Answer(Characters(), stops)
    used, sent = first.push(ids[:cut])
    if first.stopped:
        assert used <= cut
        return
    lost = data.draw(st.integers(0, len(sent)))  # the proxy may have sent less on than the replica knew
    had = sent[: len(sent) - lost]
    second = Answer(Characters(), stops)
    more = second.resume(ids[:cut], len(had))
    _, rest = second.push(ids[cut:])
    tail = "" if second.stopped else second.finish()
    assert had + more + rest + tail == plainly(text, stops)[0]


@given(st.text("abc", min_size=1, max_size=12), st.data())
def test_what_the_client_has_is_skipped_over_many_pieces(text: str, data: st.DataObject) -> None:
    """Also when the replica does not know of all of it yet."""
    delivered = data.draw(st.integers(0, len(text)))
    had = data.draw(st.integers(delivered, len(text)))
    answer = Answer(Characters())
    got = answer.resume([ord(c) for c in text[:delivered]], had)
    for c in text[delivered:]:
        got += answer.push([ord(c)])[1]
    assert got + answer.finish() == text[had:]


@given(few_letters.filter(bool), stop_strings)
def test_tokens_after_a_stop_string_do_not_count(text: str, stops: list[str]) -> None:
    used, sent = Answer(Characters(), stops).push([ord(c) for c in text])
    whole, stopped = plainly(text, stops)
    if stopped:
        assert sent == whole
        assert plainly(text[:used], stops)[1]
        assert not plainly(text[: used - 1], stops)[1]
    else:
        assert used == len(text)


def test_versions_of_the_library_keep_their_shape() -> None:
    """tokenizer.json says what the decoder does; if that changes, the fast path must be looked at again."""
    assert json.loads(llama().to_str())["decoder"]["decoders"][0]["pattern"] == {"String": "▁"}
    assert tokenizers.__version__


def test_special_tokens_are_spelled_out_where_that_is_asked_for(pair: tuple[FileCodec, Tokenizer]) -> None:
    codec, tokenizer = pair
    end = tokenizer.token_to_id("</s>")
    ids = [*codec.encode("the water", special=False), end]
    assert "</s>" not in "".join(streamed(codec.detokenizer(continued=True), ids))
    assert "".join(streamed(codec.detokenizer(continued=True, special=True), ids)).rstrip().endswith("</s>")
    assert codec.decode(ids).endswith("</s>")
    assert [codec.name(i) for i in ids] == [tokenizer.id_to_token(i) for i in ids]


def test_pairs_are_joined_as_the_tokenizer_has_it(tmp_path: Path) -> None:
    tokenizer = byte_level()
    begin, end = (tokenizer.token_to_id(t) for t in SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", begin), ("</s>", end)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    codec = FileCodec(tmp_path)
    a, b = codec.encode("the", special=False), codec.encode("water", special=False)
    assert codec.encode_pair("the", "water")[0] == [begin, *a, end, *b, end]
