"""Training rows for Gemini: what a person has written, and a line named for what cannot be said."""

import json

import pytest

from app.errors import InvalidRequest
from app.providers.google.tuning_rows import tuning_rows

HELLO = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hi"},
]


def make_row(messages=HELLO, **more):
    return json.dumps({"messages": messages, **more}).encode() + b"\n"


def written(*lines):
    return [json.loads(line) for line in tuning_rows(lines, "gemini-2.5-flash")]


def refusal(*lines):
    with pytest.raises(InvalidRequest) as refused:
        written(*lines)
    assert (refused.value.param, refused.value.status) == ("training_file", 400)
    return refused.value.message


def test_a_row():
    """Source: Google Cloud, Prepare supervised fine-tuning data for Gemini; read 2026-11."""
    [row] = written(make_row())
    assert row == {
        "systemInstruction": {"parts": [{"text": "Be short."}]},
        "contents": [
            {"role": "user", "parts": [{"text": "hello"}]},
            {"role": "model", "parts": [{"text": "hi"}]},
        ],
    }


def test_a_conversation_of_several_turns_stays_whole():
    turns = [*HELLO, {"role": "user", "content": "and?"}, {"role": "assistant", "content": "no"}]
    [row] = written(make_row(turns))
    assert [content["role"] for content in row["contents"]] == ["user", "model", "user", "model"]


def test_a_call_of_a_function_has_no_signature():
    """Source: OpenAI API reference, Fine-tuning, chat training data, tools; read 2026-11."""
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "look", "arguments": '{"at": "x"}'},
    }
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    messages = [HELLO[1], {"role": "assistant", "content": None, "tool_calls": [call]}]
    [row] = written(make_row(messages, tools=tools, parallel_tool_calls=False))
    [part] = row["contents"][-1]["parts"]
    assert part["functionCall"]["name"] == "look"
    assert part["functionCall"]["args"] == {"at": "x"}
    assert "thoughtSignature" not in part
    assert row["tools"][0]["functionDeclarations"][0]["name"] == "look"


def test_a_weight_of_one_says_nothing():
    [row] = written(make_row([HELLO[1], {**HELLO[2], "weight": 1}]))
    assert row["contents"][-1]["parts"] == [{"text": "hi"}]


def test_a_mark_and_blank_lines_are_passed_over():
    assert len(written(b"\xef\xbb\xbf" + make_row(), b"\n", make_row(), b" \r\n")) == 2


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b"no json\n", "is not a JSON object"),
        (b"[]\n", "is not a JSON object"),
        (b'{"messages": [NaN]}\n', "is not a JSON object"),
        (b"[" * 99999, "is not a JSON object"),
        (b"{}\n", "messages is missing"),
        (b'{"prompt": "a", "completion": "b"}\n', "messages is missing"),
        (b'{"input": {}, "preferred_output": []}\n', "messages is missing"),
        (make_row([]), "messages is missing"),
        (make_row("hello"), "messages is missing"),
        (make_row(HELLO[:2]), "the last message must be the assistant's"),
        (make_row([5]), "the last message must be the assistant's"),
        (make_row([5, HELLO[2]]), ""),
        (make_row([HELLO[1], {**HELLO[2], "weight": 0}]), "weight is 0"),
        (make_row(seed=5), "the key 'seed' means nothing"),
        (
            make_row([
                {"role": "user", "content": [{"type": "file", "file": {"file_id": "f-1"}}]},
                HELLO[2],
            ]),
            "the file 'f-1' cannot be used in a training row",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_said_names_its_line(line, what):
    message = refusal(make_row(), b"\n", line)
    assert message.startswith("line 3 of the training file: ")
    assert what in message


@pytest.mark.parametrize("lines", [(), (b"\n",), (b"\xef\xbb\xbf",)])
def test_a_file_without_rows_is_refused(lines):
    assert refusal(*lines) == "the training file has no rows"
