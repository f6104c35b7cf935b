"""What OpenVINO is told of a guide, and which guides it is never told."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.streams import Guide
from headrace.replica.engines.openvino_guides import terms_of


def choices(*texts: object) -> Guide:
    return Guide("choices", json.dumps(texts))


def test_each_kind_has_its_term() -> None:
    assert terms_of(Guide("json_schema", '{"type": "string"}')) == {"json_schema": '{"type": "string"}'}
    assert json.loads(terms_of(Guide("json_object"))["json_schema"]) == {"type": "object"}
    assert terms_of(Guide("regex", "a|b")) == {"regex": "a|b"}
    assert terms_of(Guide("grammar", 'root ::= "a"')) == {"grammar": 'root ::= "a"'}
    assert terms_of(choices("yes", "no")) == {"regex": "yes|no"}


@given(st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1), min_size=1, max_size=4))
def test_choices_match_themselves_and_nothing_else(texts: list[str]) -> None:
    expression = re.compile(terms_of(choices(*texts))["regex"])
    assert all(expression.fullmatch(text) for text in texts)
    for other in (texts[0] + "x", "x" + texts[0]):
        assert (other in texts) == bool(expression.fullmatch(other))


@pytest.mark.parametrize(
    ("guide", "says"),
    [
        (Guide("json_schema", "{bad"), "not JSON"),
        (Guide("json_schema", "[" * 100_000), "nested too deeply"),
        (Guide("json_schema", '{"properties": {"a": {"not": {}}}}'), "'not'"),
        (Guide("json_schema", '{"allOf": [{"uniqueItems": true}]}'), "'uniqueItems'"),
        (Guide("regex", "a\0b"), "NUL"),
        (choices("a\0b"), "NUL"),
        (choices(), "list of texts"),
        (choices("a", ""), "none of them empty"),
        (choices(1), "list of texts"),
        (Guide("choices", '"yes"'), "list of texts"),
        (Guide("choices", "yes"), "not JSON"),
    ],
)
def test_what_is_refused(guide: Guide, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        terms_of(guide)


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"not": {"type": "string"}, "if": {"type": "string"}}},
        {"enum": [{"not": 1}], "default": {"contains": 1}},
        {"$defs": {"contains": {"type": "string"}}, "$ref": "#/$defs/contains"},
    ],
)
def test_names_of_properties_are_no_keywords(schema: dict[str, object]) -> None:
    assert terms_of(Guide("json_schema", json.dumps(schema)))
