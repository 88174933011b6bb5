"""Batch rows for Google: every row says whose it is, and what cannot be said names its line."""

import json
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.errors import InvalidRequest
from app.providers.google import batch_rows
from app.providers.google.batch_rows import studio_rows, vertex_rows
from app.providers.wire import jsonl

CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"
HELLO = {"messages": [{"role": "user", "content": "hello"}]}


def make_row(custom_id="1", url=CHAT, body=None, **more):
    row = {"custom_id": custom_id, "method": "POST", "url": url, "body": body or HELLO, **more}
    return json.dumps(row).encode() + b"\n"


def written(content, write=vertex_rows, model="gemini-2.5-flash", read=jsonl.rows):
    lines = content.splitlines(keepends=True)
    # An empty line is a row that is left out.
    made = list(filter(None, write(read(lines), model)))
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in made)
    return [json.loads(line) for line in made]


def refusal(content, **more):
    with pytest.raises(InvalidRequest) as refused:
        written(content, **more)
    assert refused.value.param == "file"
    assert refused.value.status == 400
    return refused.value.message


# Whose row it is

texts = st.text(max_size=80) | st.text(min_size=500, max_size=512)


@given(texts)
@example("request-1")
@example("")
@example("\ud800")
@example("\0 \r\n\u2028")
@example("\U0001f600" * 512)
@example("manifold:base64:x")
@example("A" * 512)
def test_any_custom_id_comes_back(custom_id):
    labels = batch_rows.id_labels(custom_id)
    assert batch_rows.labelled_id(labels) == custom_id
    assert len(labels) <= 64
    for key, value in labels.items():
        # Source: Google Cloud, Requirements for labels; read 2026-11.
        assert re.fullmatch("[a-z][a-z0-9_-]{0,62}", key)
        assert re.fullmatch("[a-z0-9_-]{1,63}", value)
    for form in ("float", "base64"):
        key = batch_rows.key_of(custom_id, form)
        assert batch_rows.keyed_id(key) == (custom_id, form)
        key.encode()


@given(st.lists(st.text(max_size=12), unique=True, max_size=20))
def test_no_two_ids_have_the_same_labels(ids):
    labels = {json.dumps(batch_rows.id_labels(custom_id)) for custom_id in ids}
    assert len(labels) == len(ids) == len({batch_rows.key_of(custom_id) for custom_id in ids})


def test_labels_are_put_together_in_their_own_order():
    custom_id = "x" * 700
    labels = batch_rows.id_labels(custom_id)
    assert len(labels) > 10
    assert batch_rows.labelled_id(dict(reversed(labels.items()))) == custom_id
    assert batch_rows.labelled_id({**labels, "team": "red"}) == custom_id


@pytest.mark.parametrize(
    "labels",
    [
        None,
        [],
        {},
        {"team": "red"},
        {"manifold_custom_id_0": "no mark"},
        {"manifold_custom_id_1": "cabc"},
        {"manifold_custom_id_0": "c1"},
        {"manifold_custom_id_0": 5},
        {"manifold_custom_id_0": "cge", "manifold_custom_id_2": "cge"},
    ],
)
def test_labels_that_say_no_id(labels):
    assert batch_rows.labelled_id(labels) is None


def test_an_id_that_no_labels_can_say_names_its_line():
    longest = "x" * 2480
    assert written(make_row(longest))
    content = make_row() + make_row(longest + "x")
    assert refusal(content).startswith("line 2: custom_id is too long: 2480 bytes are allowed")
    assert written(content, write=studio_rows)[1]["key"] == longest + "x"


def test_a_plain_custom_id_is_the_key_itself():
    assert batch_rows.key_of("request-1 ü") == "request-1 ü"


def test_the_mark_of_a_request_does_not_see_its_labels():
    request = {"contents": [{"role": "user", "parts": [{"text": "a"}]}]}
    other = {"contents": [{"parts": [{"text": "a"}], "role": "user"}], "labels": {"a": "b"}}
    assert batch_rows.mark_of(request) == batch_rows.mark_of(other)
    assert batch_rows.mark_of({"contents": []}) != batch_rows.mark_of(request)


# Rows


def test_a_chat_row_for_vertex():
    """Source: Google Cloud, Batch inference with Gemini, input; read 2026-11."""
    [row] = written(make_row("Request #1", body={**HELLO, "model": "public", "temperature": 0.5}))
    assert set(row) == {"request"}
    assert row["request"]["contents"] == [{"role": "user", "parts": [{"text": "hello"}]}]
    assert row["request"]["generationConfig"]["temperature"] == 0.5
    assert batch_rows.row_id(row) == ("Request #1", "float")
    assert "public" not in json.dumps(row)


def test_a_chat_row_for_ai_studio():
    """Source: Gemini API, Batch Mode, input file; read 2026-11."""
    [row] = written(make_row("Request #1"), write=studio_rows)
    assert row == {
        "key": "Request #1",
        "request": {"contents": [{"role": "user", "parts": [{"text": "hello"}]}]},
    }


@pytest.mark.parametrize("text", ["hello", ["hello"]])
@pytest.mark.parametrize(
    ("write", "options"),
    [
        (vertex_rows, {"output_dimensionality": 256, "task_type": "RETRIEVAL_QUERY"}),
        (studio_rows, {"outputDimensionality": 256, "taskType": "RETRIEVAL_QUERY"}),
    ],
)
def test_a_row_of_embeddings(write, options, text):
    """Source: Google Cloud, Get batch embeddings; Gemini API, Batch Mode; read 2026-11."""
    body = {"input": text, "dimensions": 256, "task_type": "RETRIEVAL_QUERY"}
    [row] = written(make_row("1", EMBEDDINGS, body), write=write, model="gemini-embedding-001")
    assert row == {
        "key": "1",
        "request": {"content": {"parts": [{"text": "hello"}]}, **options},
    }


def test_a_row_of_embeddings_says_in_which_form_it_is_answered():
    body = {"input": "hello", "encoding_format": "base64"}
    [row] = written(make_row("é", EMBEDDINGS, body), model="gemini-embedding-001")
    assert batch_rows.row_id(row) == ("é", "base64")


def test_the_callers_own_labels_stay_as_far_as_there_is_room():
    body = {**HELLO, "metadata": {f"k{number}": "v" for number in range(16)}}
    [short] = written(make_row("1", body=body))
    [long] = written(make_row("x" * 2400, body=body))
    assert len(short["request"]["labels"]) == 17
    assert len(long["request"]["labels"]) == 64
    assert batch_rows.row_id(long) == ("x" * 2400, "float")


def test_no_label_of_the_callers_is_taken_for_the_rows_id():
    body = {**HELLO, "metadata": {"manifold_custom_id_7": "cge", "manifold_custom_id_0": "cge"}}
    [row] = written(make_row("Mine", body=body))
    assert batch_rows.row_id(row) == ("Mine", "float")


@pytest.mark.parametrize("write", [vertex_rows, studio_rows])
def test_a_file_with_a_mark_blank_ends_and_short_urls(write):
    content = b"\xef\xbb\xbf" + make_row("1", url="/chat/completions") + make_row("2") + b"\n\n"
    assert len(written(content, write=write)) == 2
    assert len(written(content, write=write, read=jsonl.readable)) == 2


def test_rows_name_their_own_model_when_the_file_has_none():
    body = {"model": "gemini-embedding-001", "input": "hello"}
    assert written(make_row("1", EMBEDDINGS, body), model="")
    body["model"] = "text-embedding-005"
    assert "'text-embedding-005'" in refusal(make_row("1", EMBEDDINGS, body), model="")


@pytest.mark.parametrize(
    ("row", "what"),
    [
        (make_row(url="/v1/responses"), "url is '/v1/responses'; batches of this provider take"),
        (make_row(url="/v1/completions"), "url is '/v1/completions'"),
        (make_row(url=None), "url is None"),
        (make_row(url=EMBEDDINGS), "url is '/v1/embeddings', the rows before say"),
        (make_row(None), "custom_id must be a string"),
        (make_row(body=[1]), "body must be a JSON object"),
        (make_row(body={"messages": "hello"}), "messages"),
        (make_row(body={**HELLO, "n": 9}), "n"),
        (make_row(body={**HELLO, "temperature": 5}).replace(b": 5}", b": 1e999}"), ""),
        (
            make_row(
                body={
                    "messages": [
                        {
                            "role": "user",
                            "content": [{"type": "file", "file": {"file_id": "file-1"}}],
                        }
                    ]
                }
            ),
            "the file 'file-1' cannot be used in a batch row",
        ),
    ],
    ids=[
        "responses", "completions", "no url", "another url", "no id", "list", "messages", "n",
        "number", "file",
    ],
)  # fmt: skip
@pytest.mark.parametrize("write", [vertex_rows, studio_rows])
def test_what_cannot_be_said_names_its_line(write, row, what):
    message = refusal(make_row("0") + row, write=write)
    assert message.startswith("line 2: ")
    assert what in message


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ({"input": ["a", "b"]}, "input must be one text"),
        ({"input": []}, "input must be"),
        ({"input": ""}, "input must be"),
        ({"input": [1, 2]}, "token numbers"),
        ({"input": [[1, 2]]}, "token numbers"),
        ({}, "input must be"),
        ({"input": "a", "dimensions": "many"}, "dimensions must be"),
        ({"input": "a", "dimensions": True}, "dimensions must be"),
        ({"input": "a", "dimensions": 0}, "dimensions must be"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format is 'hex'"),
    ],
)
@pytest.mark.parametrize("write", [vertex_rows, studio_rows])
def test_embeddings_that_cannot_be_asked_for(write, body, what):
    body = body or {"other": 1}
    message = refusal(make_row("1", EMBEDDINGS, body), write=write, model="gemini-embedding-001")
    assert message.startswith("line 1: ")
    assert what in message


@pytest.mark.parametrize("line", [b"no json\n", b"[]\n", b'{"body":{},"body":{}}\n', b"\xff\n"])
@pytest.mark.parametrize("write", [vertex_rows, studio_rows])
def test_a_line_that_nobody_can_read_is_named(write, line):
    content = make_row() + b"\n" + line + make_row()
    assert "line 3: is not a JSON object" in refusal(content, write=write, read=jsonl.readable)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=6,
    ),
    st.sampled_from(["messages", "input", "n", "metadata", "tools", "model", "dimensions"]),
    st.sampled_from([CHAT, EMBEDDINGS]),
    st.sampled_from([vertex_rows, studio_rows]),
)
def test_a_body_that_is_anything_at_all_is_written_or_refused(value, key, url, write):
    line = make_row("1", url, {**HELLO, "input": "a", key: value})
    rows = list(jsonl.readable([line]))
    try:
        made = b"".join(write(rows, "gemini-embedding-001"))
    except InvalidRequest as error:
        assert error.message.startswith("line 1")
    else:
        assert batch_rows.row_id(json.loads(made)) == ("1", "float")
