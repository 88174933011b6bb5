"""Replacing values in JSON text leaves every other byte as it came."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidRequest
from app.json_spans import MAX_DEPTH, is_too_deep, parse

PATHS = [("model",), ("stream",), ("messages", "*", "content", "*", "file", "file_id")]


def test_only_the_named_values_change():
    body = (
        b'{ "big":12345678901234567890, "f":1.50e+03 ,"u":"\\u00e9\\/",\n\t"model" :"a",'
        b' "messages":[{"content":[{"file":{"x":1,"file_id":"one"}},{"type":"text"}]},'
        b'{"content":"plain"}],"stream":true}'
    )
    document = parse(body, PATHS)
    replaced = {span: span.value.upper() for span in document.spans if span.path != ("stream",)}
    out = document.render(replaced)
    assert out == body.replace(b'"a"', b'"A"').replace(b'"one"', b'"ONE"')
    assert document.value("model") == "a"
    assert document.value("stream") is True
    assert [s.value for s in document.at([PATHS[2]])] == ["one"]


@pytest.mark.parametrize(
    ("body", "dropped", "expected"),
    [
        (b'{"a":1, "b":2, "c":3}', ["a"], {"b": 2, "c": 3}),
        (b'{"a":1, "b":2, "c":3}', ["b"], {"a": 1, "c": 3}),
        (b'{"a":1, "b":2, "c":3}', ["c"], {"a": 1, "b": 2}),
        (b'{"a":1, "b":2, "c":3}', ["a", "b"], {"c": 3}),
        (b'{"a":1, "b":2, "c":3}', ["b", "c"], {"a": 1}),
        (b'{"a":1, "b":2, "c":3}', ["a", "c"], {"b": 2}),
        (b'{"a":1 }', ["a"], {}),
        (b'{ "a":1, "b":2}', ["a", "b"], {}),
    ],
)
def test_keys_of_the_root_are_dropped(body, dropped, expected):
    assert json.loads(parse(body, []).render({}, dropped=dropped)) == expected


@pytest.mark.parametrize("body", [b"{}", b' { "a": 1}'])
def test_a_key_is_added(body):
    out = json.loads(parse(body, []).render({}, added={"model": "é"}))
    assert out == {"model": "é", **json.loads(body)}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"1",
        b"{",
        b'{"a"}',
        b'{"a":}',
        b'{"a":1,}',
        b'{"a":1}x',
        b'{"a":NaN}',
        b'{"model":"a","model":"b"}',
        b"\xff{}",
        b'{"messages":' + b"[" * 200_000,
        b'{"x":' + b"[" * 200_000,
    ],
)
def test_bad_bodies_are_refused(body):
    with pytest.raises(InvalidRequest):
        parse(body, PATHS)


# Depth


def nested(levels: int, inner: str = "1") -> str:
    """An object of so many levels, lists and objects in turn."""
    opening = "".join('{"a":' if level % 2 == 0 else "[" for level in range(levels))
    closing = "".join("}" if level % 2 == 0 else "]" for level in reversed(range(levels)))
    return opening + inner + closing


@pytest.mark.parametrize(
    "inner", ["1", '"[[[{{{"', json.dumps('"[\\"[\\\\'), json.dumps("\\"), '"\\\\\\"[["']
)
def test_so_many_levels_and_no_more(inner):
    assert parse(nested(MAX_DEPTH, inner).encode(), PATHS)
    with pytest.raises(InvalidRequest, match=f"nested more than {MAX_DEPTH} levels") as refusal:
        parse(nested(MAX_DEPTH + 1, inner).encode(), PATHS)
    assert refusal.value.code == "invalid_json"


@pytest.mark.parametrize(
    "text",
    ["[" * 500_000, '{"a":' * 500_000, '["' + '\\"' * 500_000, '[["\\' * 200_000, "]" * 500_000],
)
def test_what_does_not_end_is_told_in_no_time(text):
    started = time.monotonic()
    with pytest.raises(InvalidRequest):
        parse(text.encode(), PATHS)
    assert time.monotonic() - started < 1.0


def test_many_brackets_side_by_side_are_not_deep():
    assert not is_too_deep(json.dumps({"x": [[{}]] * 1000, "y": "[" * 1000}).encode())


tricky = st.text(st.sampled_from('[]{}"\\/,: nu\n\u00e9')) | st.integers()


def depth_of(value) -> int:
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return 1 + max(map(depth_of, inner), default=0)
    return 0


@given(
    st.recursive(
        tricky,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
        max_leaves=30,
    ),
    st.integers(0, MAX_DEPTH + 2),
    st.booleans(),
)
def test_the_depth_is_that_of_the_tree(value, levels, is_ascii):
    text = nested(levels, json.dumps(value, ensure_ascii=is_ascii))
    expected = levels + depth_of(value) > MAX_DEPTH
    assert is_too_deep(text.encode("utf-8", "surrogatepass")) is expected


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), json_values), st.sampled_from([None, 1]))
def test_an_unedited_document_is_the_same_text(value, indent):
    body = json.dumps(value, indent=indent, ensure_ascii=False).encode("utf-8", "surrogatepass")
    try:
        body.decode()
    except UnicodeDecodeError:
        return
    assert parse(body, PATHS).render({}) == body


@given(json_values, st.text(min_size=1))
def test_a_replaced_model_reads_back(rest, model):
    body = json.dumps({"rest": rest, "model": "old", "tail": rest}).encode()
    document = parse(body, PATHS)
    out = json.loads(document.render({document.at([("model",)])[0]: model}))
    assert out == {"rest": rest, "model": model, "tail": rest}
