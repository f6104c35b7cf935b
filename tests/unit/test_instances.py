"""Made-up values fit their schemas; what cannot be made up is refused."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.instances import CannotMake, instance, numbers

leaf = st.one_of(
    st.just({"type": "null"}),
    st.just({"type": "boolean"}),
    st.just({}),
    st.builds(lambda v: {"enum": v}, st.lists(st.integers() | st.text(max_size=3), min_size=1, max_size=3)),
    st.builds(lambda v: {"const": v}, st.booleans() | st.text(max_size=3)),
    st.builds(
        lambda a, b: {"type": "string", "minLength": a, "maxLength": a + b}, st.integers(0, 9), st.integers(0, 9)
    ),
    st.builds(lambda a, b: {"type": "integer", "minimum": a, "maximum": a + b}, st.integers(), st.integers(0, 9)),
    st.builds(
        lambda a, b: {"type": "number", "exclusiveMinimum": a, "exclusiveMaximum": a + b},
        st.integers(-9, 9) | st.sampled_from([0.25, -1.5]),
        st.integers(1, 3) | st.just(0.5),
    ),
    st.builds(lambda m: {"type": "integer", "multipleOf": m, "minimum": 1}, st.integers(1, 7)),
)


def _object(properties: dict[str, Any], seed: int) -> dict[str, Any]:
    required = [name for i, name in enumerate(properties) if seed >> i & 1]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


schemas = st.recursive(
    leaf,
    lambda inner: st.one_of(
        st.builds(_object, st.dictionaries(st.text(min_size=1, max_size=4), inner, max_size=3), st.integers(0, 7)),
        st.builds(
            lambda items, low, more: {"type": "array", "items": items, "minItems": low, "maxItems": low + more},
            inner,
            st.integers(0, 3),
            st.integers(0, 2),
        ),
        st.builds(lambda options: {"anyOf": options}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda prefix: {"type": "array", "prefixItems": prefix, "items": False}, st.lists(inner, max_size=2)),
    ),
    max_leaves=8,
)


@given(schemas, st.binary(min_size=16, max_size=16))
def test_an_instance_is_valid_and_always_the_same(schema, key):
    value = instance(schema, numbers(key))
    jsonschema.Draft202012Validator(schema).validate(value)
    assert instance(schema, numbers(key)) == value


NODE = {
    "$defs": {"node": {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                                                        "value": {"type": "integer"}}, "required": ["value"]}},
    "$ref": "#/$defs/node",
}  # fmt: skip


@given(st.binary(min_size=16, max_size=16))
def test_a_schema_may_name_itself(key):
    jsonschema.Draft202012Validator(NODE).validate(instance(NODE, numbers(key)))
    merged = {"allOf": [{"$ref": "#/$defs/a"}, {"properties": {"b": {"type": "string"}}, "required": ["b"]}],
              "$defs": {"a": {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]}}}  # fmt: skip
    value = instance(merged, numbers(key))
    assert set(value) == {"a", "b"}
    jsonschema.Draft202012Validator(merged).validate(value)


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "string", "pattern": "a+"}, "'pattern' is not understood"),
        ({"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 2}, "no number"),
        ({"type": "number", "minimum": 2, "maximum": 1}, "no number"),
        ({"$ref": "https://example.org/x"}, "not a part of it"),
        ({"$ref": "#/$defs/x"}, "does not have"),
        ({"$ref": "#"}, "without end"),
        ({"type": "array", "items": False, "minItems": 1, "prefixItems": []}, "allows nothing"),
        ({"type": "letter"}, "no type 'letter'"),
        (False, "allows nothing"),
        ({"type": "object", "properties": 3}, "no JSON schema"),
        ({"enum": []}, "no JSON schema"),
        ({"type": "integer", "multipleOf": 0}, "no JSON schema"),
        ({"type": "string", "minLength": 10**12}, "too large"),
        ({"type": "array", "minItems": 999, "items": {"type": "array", "minItems": 999}}, "too large"),
    ],
)
def test_what_cannot_be_made_up(schema, why):
    with pytest.raises(CannotMake, match=why):
        instance(schema, numbers(b"0" * 16))
