"""Google's results as OpenAI's lines: whose they are, what they say, and always the same bytes."""

import base64
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.providers.google import batch_results
from app.providers.google.batch_results import Job, lines, result, unfinished
from app.providers.google.batch_rows import id_labels, key_of

JOB = Job("123", "gemini-2.5-flash", 1_700_000_000)
ANSWER = {
    "candidates": [
        {"content": {"role": "model", "parts": [{"text": "Grüße"}]}, "finishReason": "STOP"}
    ],
    "usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 7, "totalTokenCount": 12},
    "modelVersion": "gemini-2.5-flash",
    "responseId": "r-1",
}


def make_result(custom_id="1", response=ANSWER, **more):
    """A row of Vertex AI's output. Source: Google Cloud, Batch inference with Gemini, output."""
    row = {
        "status": "",
        "processed_time": "2026-11-01T00:00:00.5+00:00",
        "request": {"contents": [], "labels": id_labels(custom_id)},
        "response": response,
        **more,
    }
    return json.dumps(row).encode()


def line_of(raw, **more):
    found = result(raw, JOB, **more)
    assert found is not None
    return found, json.loads(found.line)


def test_an_answered_row():
    found, line = line_of(make_result("Request #1"))
    assert (found.custom_id, found.is_error) == ("Request #1", False)
    assert set(line) == {"id", "custom_id", "response", "error"}
    assert line["id"].startswith("batch_req_")
    assert (line["custom_id"], line["error"]) == ("Request #1", None)
    assert (line["response"]["status_code"], line["response"]["request_id"]) == (200, "r-1")
    body = line["response"]["body"]
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"]["content"] == "Grüße"
    assert (body["model"], body["created"]) == ("gemini-2.5-flash", 1793491200)
    assert body["usage"]["total_tokens"] == found.usage["total_tokens"] == 12
    assert "Grüße".encode() in found.line


def test_the_same_row_is_always_the_same_bytes_and_no_two_have_one_id():
    first, _ = line_of(make_result("1"))
    assert line_of(make_result("1"))[0].line == first.line
    ids = {line_of(make_result(custom_id))[1]["id"] for custom_id in ("1", "2", "\ud800")}
    other = result(make_result("1"), Job("124", "m", 0))
    assert other is not None
    assert len(ids | {json.loads(other.line)["id"]}) == 4


def test_a_row_of_ai_studio_has_a_key():
    """Source: Gemini API, Batch Mode, results; read 2026-11."""
    raw = json.dumps({"key": "Request #1", "response": ANSWER}).encode()
    found, line = line_of(raw)
    assert (line["custom_id"], found.is_error) == ("Request #1", False)
    assert line["response"]["body"]["created"] == JOB.created_at


@pytest.mark.parametrize(
    ("row", "status", "message"),
    [
        ({"status": 'Bad Request: {"error": {"code": 400, "message": "no"}}'}, 400, "no"),
        ({"status": 'Too many: {"code": 429, "message": "slow down"}'}, 429, "slow down"),
        ({"status": "Bad Request: {no json"}, 400, "Bad Request: {no json"),
        ({"status": "Internal error"}, 500, "Internal error"),
        ({"status": "Something else"}, 400, "Something else"),
        ({"status": "Not Found"}, 404, "Not Found"),
        ({"status": {"code": 8, "message": "quota"}}, 429, "quota"),
        ({"error": {"code": 3, "message": "wrong"}}, 400, "wrong"),
        ({"error": {"code": 13, "message": "broken"}}, 500, "broken"),
        ({"error": {"code": 503, "message": "busy"}}, 503, "busy"),
        ({"error": {"code": "odd", "message": "odd"}}, 500, "odd"),
        ({"error": {"code": 200, "message": "odd"}}, 500, "odd"),
        ({"error": {"message": "no code"}}, 500, "no code"),
        ({"response": {"error": {"code": 400, "message": "inside"}}}, 400, "inside"),
        ({}, 500, "no answer"),
        ({"response": {}}, 500, "no answer"),
        ({"response": "text"}, 500, "no answer"),
        ({"response": {"embedding": {}}}, 500, "no embedding"),
        ({"response": {"embedding": {"values": ["a"]}}}, 500, "no embedding"),
        ({"response": {"embedding": {"values": [1e300]}}}, 500, "no embedding"),
        ({"response": {"embeddings": []}}, 500, "no embedding"),
    ],
)
def test_a_failed_row_has_openais_error(row, status, message):
    found, line = line_of(json.dumps({"key": "1", **row}).encode())
    assert found.is_error
    assert line["error"] is None
    assert line["response"]["status_code"] == status
    error = line["response"]["body"]["error"]
    assert message in error["message"]
    assert set(error) >= {"message", "type", "param", "code"}


def test_a_failed_row_of_vertex_has_an_empty_response():
    text = 'Bad Request: {"error": {"code": 400, "message": "no", "status": "INVALID_ARGUMENT"}}'
    found, line = line_of(make_result("1", {}, status=text))
    assert found.is_error
    assert line["response"]["body"]["error"]["code"] == "invalid_argument"


def test_a_blocked_prompt_is_an_answer():
    found, line = line_of(make_result("1", {"promptFeedback": {"blockReason": "SAFETY"}}))
    assert not found.is_error
    assert line["response"]["body"]["choices"][0]["finish_reason"] == "content_filter"


@pytest.mark.parametrize(
    "response",
    [
        {"embedding": {"values": [0.5, -1]}, "usageMetadata": {"promptTokenCount": 3}},
        {"embedding": {"values": [0.5, -1]}, "tokenCount": "3"},
        {"embeddings": [{"values": [0.5, -1]}], "tokenCount": 3},
    ],
)
def test_an_embedding(response):
    raw = json.dumps({"key": "1", "response": response}).encode()
    _, line = line_of(raw)
    assert line["response"]["body"] == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -1]}],
        "model": "gemini-2.5-flash",
        "usage": {"prompt_tokens": 3, "total_tokens": 3},
    }


def test_an_embedding_in_base64_as_it_was_asked_for():
    response = {"embedding": {"values": [0.5, -1]}}
    row = {"key": key_of("1", "base64"), "response": response}
    _, line = line_of(json.dumps(row).encode())
    assert line["custom_id"] == "1"
    [found] = line["response"]["body"]["data"]
    assert struct.unpack("<2f", base64.b64decode(found["embedding"])) == (0.5, -1.0)


def test_a_request_without_labels_is_looked_up():
    row = {"request": {"contents": [1]}, "response": ANSWER}
    raw = json.dumps(row).encode()
    assert result(raw, JOB) is None
    asked = []

    def lookup(request):
        asked.append(request)
        return "found"

    assert line_of(raw, lookup=lookup)[1]["custom_id"] == "found"
    assert asked == [{"contents": [1]}]
    assert result(raw, JOB, lambda _request: None) is None


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"5", b"\xff", b"{}", b'{"key": 5}', b'{"request": []}', b"[" * 99999]
)
def test_what_is_no_result(raw):
    assert result(raw, JOB) is None
    assert batch_results.custom_id(raw) is None


def test_no_line_holds_what_is_no_json():
    raw = b'{"key": "\\ud800", "response": {"embedding": {"values": [NaN]}}}'
    found, line = line_of(raw)
    assert (line["custom_id"], found.is_error) == ("\ud800", True)
    found.line.decode("utf-8")
    assert b"NaN" not in found.line


def test_a_row_without_a_result():
    found = unfinished("1", JOB, "batch_expired", "too late")
    assert found.is_error
    assert json.loads(found.line) == {
        "id": line_of(make_result("1"))[1]["id"],
        "custom_id": "1",
        "response": None,
        "error": {"code": "batch_expired", "message": "too late"},
    }


@given(st.lists(st.binary(max_size=8)), st.integers(min_value=1, max_value=5))
def test_lines_are_the_same_however_they_arrive(pieces, size):
    content = b"\n".join(piece.replace(b"\n", b"") for piece in pieces)
    chunks = [content[at : at + size] for at in range(0, len(content), size)]
    wanted = content.split(b"\n")
    assert list(lines(chunks)) == (wanted[:-1] if not wanted[-1] else wanted)


def test_a_line_that_is_too_long_is_not_held():
    chunks = iter([b"ab\n", *[b"x" * 10] * 100, b"\nyes\n"])
    found = list(lines(chunks, longest=20))
    assert (found[0], found[2]) == (b"ab", b"yes")
    assert len(found[1]) <= 40
