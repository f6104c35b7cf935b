"""Files of a model folder that cannot be read are named, once; and what they say of the end of a text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizer_kinds import folder_of, tokenizer_file

from headrace.core.streams import Sampling
from headrace.errors import UserError
from headrace.replica.adapter_files import read_config
from headrace.replica.config_files import CONFIG_FILES, check_config_files, read_json
from headrace.replica.sampling import read_generation_config
from headrace.replica.template import find_special_tokens, find_template
from headrace.replica.tokenizer import FileCodec


@pytest.mark.parametrize("name", CONFIG_FILES)
@pytest.mark.parametrize("data", [b'{"a": 1', b"", '{"a": "\u00e9"}'.encode("latin-1"), b"[1]", b"null", b"[" * 10**5])
def test_a_file_that_cannot_be_read_is_no_absent_one(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    with pytest.raises(UserError) as e:
        check_config_files(tmp_path)
    assert str(path) in e.value.message
    assert "\n" not in e.value.message


def test_what_is_absent_is_nothing_and_a_byte_order_mark_is_no_damage(tmp_path: Path) -> None:
    check_config_files(tmp_path)
    assert read_json(tmp_path / "config.json") == {}
    assert read_json(tmp_path / "config.json" / "below") == {}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "t"}), encoding="utf-8-sig")
    assert find_template(tmp_path) == "t"
    (tmp_path / "chat_template.jinja").write_text("\u00e9", encoding="utf-8-sig")
    assert find_template(tmp_path) == "\u00e9"
    folder_of("byte-level", tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_file("byte-level")), encoding="utf-8-sig")
    assert FileCodec(tmp_path).encode("a", False)


def test_templates_and_adapters_too(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes("\u00e9".encode("latin-1"))
    with pytest.raises(UserError, match=r"chat_template\.jinja is not text in UTF-8"):
        find_template(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text("{")
    with pytest.raises(UserError, match="special_tokens_map"):
        find_special_tokens(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type"')
    with pytest.raises(UserError, match="adapter_config"):
        read_config(tmp_path)
    (tmp_path / "config.json").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        read_json(tmp_path / "config.json")


def test_the_tokenizers_end_is_an_end_whatever_generation_config_names(tmp_path: Path) -> None:
    folder = folder_of("byte-level", tmp_path)
    ids = {a["content"]: a["id"] for a in tokenizer_file("byte-level")["added_tokens"]}
    own, other = ids["<|im_end|>"], ids["</s>"]
    assert read_generation_config(folder) == (Sampling(), (own,))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": other}))
    assert read_generation_config(folder)[1] == (other, own)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [own, other]}))
    assert read_generation_config(folder)[1] == (own, other)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "</s>"}}))
    (folder / "generation_config.json").write_text("{}")
    (folder / "config.json").write_text(json.dumps({"text_config": {"eos_token_id": own}}))
    assert read_generation_config(folder)[1] == (own, other)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "a"}))  # of the vocabulary, not added
    assert read_generation_config(folder)[1] == (own, tokenizer_file("byte-level")["model"]["vocab"]["a"])
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "nowhere"}))
    assert read_generation_config(folder)[1] == (own,)
