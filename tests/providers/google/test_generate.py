"""Chat and embeddings over HTTP: what is sent, what comes back, streamed and whole."""

import base64
import json
import time
from typing import Any

import pytest
import responses
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from app.errors import InvalidRequest, NotSupported, UpstreamError
from app.providers.google.errors import refusal
from app.providers.google.generate import has_files, infer
from app.providers.protocol import Operation
from app.providers.upstream import Upstream
from app.transfers import Cancellation, Reply
from tests.builders import make_deployment

BASE = "https://google.internal/v1"
MODEL = f"{BASE}/models/gemini-2.5-flash"
HI = [{"role": "user", "content": "hi"}]
FILE_PART = {"type": "file", "file": {"file_id": "f-1"}}
ANSWER = {
    "candidates": [{"content": {"parts": [{"text": "Grüße"}]}, "finishReason": "STOP"}],
    "usageMetadata": {"promptTokenCount": 1, "candidatesTokenCount": 1, "totalTokenCount": 2},
    "responseId": "r1",
}


def make_upstream(**more: Any) -> Upstream:
    return Upstream(
        BASE,
        headers=lambda: {"x-goog-api-key": "secret-key"},
        deployment=make_deployment(provider="gemini", **more),
        pool_size=1,
        refusal=refusal,
    )


@pytest.fixture
def mock():
    with responses.RequestsMock() as mock:
        yield mock


def attach(file_id):
    return f"https://files.internal/{file_id}", "application/pdf"


def ask(
    body: Any,
    operation: Operation = Operation.CHAT,
    model: str = "gemini-2.5-flash",
    **more: Any,
) -> Reply:
    options: dict[str, Any] = {"platform": "ai_studio", "cancellation": Cancellation(), **more}
    return infer(
        make_upstream(),
        lambda method: f"/models/{model}:{method}",
        operation,
        body if isinstance(body, bytes) else json.dumps(body).encode(),
        model=model,
        attach=attach,
        **options,
    )


def read(reply: Reply) -> Any:
    raw = b"".join(reply.chunks)
    reply.close()
    return json.loads(raw)


def sent(mock, index=0):
    return json.loads(mock.calls[index].request.body)


# Chat


def test_a_chat_is_translated_there_and_back(mock):
    mock.add("POST", f"{MODEL}:generateContent", json=ANSWER)
    content = [{"type": "text", "text": "Größe 😀"}, FILE_PART]
    body = {"model": "gpt", "messages": [{"role": "user", "content": content}], "user": "u"}
    reply = ask(body)
    assert (reply.status, reply.headers) == (200, {"Content-Type": "application/json"})
    found = read(reply)
    assert found["model"] == "gemini-2.5-flash"
    assert found["choices"][0]["message"]["content"] == "Grüße"
    assert abs(found["created"] - time.time()) < 60
    ChatCompletion.model_validate(found)
    uri = {"fileUri": "https://files.internal/f-1", "mimeType": "application/pdf"}
    assert sent(mock) == {
        "contents": [{"role": "user", "parts": [{"text": "Größe 😀"}, {"fileData": uri}]}]
    }
    request = mock.calls[0].request
    assert request.headers["x-goog-api-key"] == "secret-key"
    assert request.headers["Content-Type"] == "application/json"
    assert "secret-key" not in request.url


def test_vertex_ai_gets_labels_and_ai_studio_none(mock):
    mock.add("POST", f"{MODEL}:generateContent", json=ANSWER)
    body = {"messages": HI, "metadata": {"team": "blue"}}
    ask(body, platform="vertex_ai")
    ask(body)
    assert sent(mock)["labels"] == {"team": "blue"}
    assert "labels" not in sent(mock, 1)


def test_the_model_in_the_terms_of_its_version_is_the_one_that_is_asked(mock):
    mock.add("POST", f"{BASE}/models/gemini-3-flash:generateContent", json=ANSWER)
    ask({"model": "gpt-5", "messages": HI, "reasoning_effort": "low"}, model="gemini-3-flash")
    assert sent(mock)["generationConfig"] == {"thinkingConfig": {"thinkingLevel": "low"}}


def test_a_stream_is_translated_event_by_event(mock):
    event = "data: " + json.dumps(ANSWER, ensure_ascii=False) + "\r\n\r\n"
    url = f"{MODEL}:streamGenerateContent?alt=sse"
    mock.add("POST", url, body=event.encode(), content_type="text/event-stream")
    body = {"messages": HI, "stream": True, "stream_options": {"include_usage": True}}
    reply = ask(body)
    assert reply.status == 200
    assert reply.is_event_stream
    lines = b"".join(reply.chunks).decode().split("\n\n")
    reply.close()
    for line in lines[:-2]:
        ChatCompletionChunk.model_validate_json(line.removeprefix("data: "))
    assert lines[-2:] == ["data: [DONE]", ""]
    usage = json.loads(lines[-3].removeprefix("data: "))
    assert usage["usage"]["total_tokens"] == 2
    assert json.loads(lines[1].removeprefix("data: "))["choices"][0]["delta"] == {
        "content": "Grüße"
    }


def test_closing_the_reply_closes_the_upstream_answer(mock):
    mock.add("POST", f"{MODEL}:streamGenerateContent?alt=sse", body=b"data: {}\n\n" * 10)
    reply = ask({"messages": HI, "stream": True})
    raw = mock.calls[0].response.raw
    assert not raw.closed
    reply.close()
    assert raw.closed


# Refusals


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_refusal_comes_back_in_openais_envelope(mock, is_stream):
    message = "The input token count (9) exceeds the maximum number of tokens allowed (8)."
    error = {"code": 400, "message": message, "status": "INVALID_ARGUMENT"}
    method = "streamGenerateContent?alt=sse" if is_stream else "generateContent"
    mock.add("POST", f"{MODEL}:{method}", json={"error": error}, status=400)
    reply = ask({"messages": HI, "stream": is_stream})
    assert reply.status == 400
    assert not reply.is_event_stream
    assert read(reply)["error"] == {
        "message": message,
        "type": "invalid_request_error",
        "param": None,
        "code": "context_length_exceeded",
    }


def test_how_long_to_wait_comes_from_the_body_else_from_the_header(mock):
    retry = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "7.5s"}
    error = {"code": 429, "message": "q", "status": "RESOURCE_EXHAUSTED", "details": [retry]}
    headers = {"Retry-After": "3"}
    url = f"{MODEL}:generateContent"
    mock.add("POST", url, json={"error": error}, status=429, headers=headers)
    mock.add("POST", url, body="busy", status=503, headers=headers)
    assert ask({"messages": HI}).headers["Retry-After"] == "8"
    assert ask({"messages": HI}).headers["Retry-After"] == "3"


def test_a_refused_key_is_a_401_which_the_gateway_turns_into_its_own_fault(mock):
    details = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}]
    error = {"code": 400, "message": "API key secret-key not valid", "details": details}
    mock.add("POST", f"{MODEL}:generateContent", json={"error": error}, status=400)
    reply = ask({"messages": HI})
    assert reply.status == 401
    assert "secret-key" not in json.dumps(read(reply))


def test_a_redirect_and_a_page_mean_nothing_to_the_caller(mock):
    for status, shown in ((302, 502), (404, 404)):
        mock.add(
            "POST",
            f"{MODEL}:generateContent",
            body="<html>https://elsewhere.internal</html>",
            status=status,
            headers={"Location": "https://elsewhere.internal"},
        )
        reply = ask({"messages": HI})
        assert reply.status == shown
        assert "elsewhere" not in json.dumps(read(reply))


def test_an_error_in_an_answer_that_says_yes(mock):
    error = {"code": 500, "message": "oh", "status": "INTERNAL"}
    mock.add("POST", f"{MODEL}:generateContent", json={"error": error})
    assert ask({"messages": HI}).status == 500


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"\xff"])
def test_an_answer_that_is_no_object_may_be_asked_elsewhere(mock, body):
    mock.add("POST", f"{MODEL}:generateContent", body=body)
    with pytest.raises(UpstreamError) as failed:
        ask({"messages": HI})
    assert failed.value.retryable
    assert failed.value.deployment == "deployment-1"


def test_a_broken_connection_may_be_asked_elsewhere(mock):
    mock.add("POST", f"{MODEL}:generateContent", body=ConnectionResetError())
    with pytest.raises((UpstreamError, ConnectionResetError)):
        ask({"messages": HI})


def test_a_stream_that_ends_names_its_provider_and_deployment(mock):
    mock.add("POST", f"{MODEL}:streamGenerateContent?alt=sse", body=b"")
    with pytest.raises(UpstreamError) as failed:
        list(ask({"messages": HI, "stream": True}).chunks)
    assert failed.value.message == "gemini ended the stream before the answer was whole"
    assert failed.value.deployment == "deployment-1"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"[]", None),
        (b"\xff", None),
        ({"messages": HI, "stream": "yes"}, "stream"),
        ({"messages": HI, "stream_options": True}, "stream_options"),
        ({"messages": HI, "stream_options": {"include_usage": 1}}, "include_usage"),
        (b'{"messages": [{"role": "user", "content": "a"}], "top_p": 1e999}', "top_p"),
        (
            b'{"messages": [{"role": "user", "content": "a"}], "tools": [{"type": "function", '
            b'"function": {"name": "f", "parameters": {"properties": {"a": 1e999}}}}]}',
            None,
        ),
    ],
)
def test_a_body_that_cannot_be_said_is_refused_before_anything_is_sent(mock, body, param):
    with pytest.raises(InvalidRequest) as refused:
        ask(body)
    assert refused.value.param == param


def test_other_operations_are_not_supported(mock):
    for operation in (Operation.RESPONSES, Operation.COMPLETIONS):
        with pytest.raises(NotSupported, match=operation.value):
            ask({}, operation)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("hi", False),
        ([{"type": "text", "text": "hi"}], False),
        ([{"type": "text", "text": "hi"}, FILE_PART], True),
        ([{"type": "image_file", "image_file": {"file_id": "f-1"}}], True),
        ([1], False),
        ([{"type": "image_url", "image_url": "data:image/png;base64,AAAA"}], False),
        ([{"type": "image_url", "image_url": {"url": "https://e.com/a.png"}}], False),
        ([{"type": "image_url", "image_url": {"url": "gs://bucket/private.png"}}], True),
        (
            [{"type": "image_url", "image_url": "https://generativelanguage.googleapis.com/f"}],
            True,
        ),
    ],
)
def test_whether_a_chat_has_files(content, expected):
    body = {"messages": [1, {"role": "user", "content": content}]}
    assert has_files(json.dumps(body).encode()) is expected
    assert has_files(b'{"input": "a"}') is False


# Embeddings


def test_embeddings_of_many_texts_are_one_list(mock):
    url = f"{BASE}/models/gemini-embedding-001:batchEmbedContents"

    def answer(request):
        texts = [r["content"]["parts"][0]["text"] for r in json.loads(request.body)["requests"]]
        found = [{"values": [float(text)]} for text in texts]
        return 200, {}, json.dumps({"embeddings": found})

    mock.add_callback("POST", url, answer)
    body = {"input": [str(n) for n in range(150)], "encoding_format": "float"}
    found = read(ask(body, Operation.EMBEDDINGS, "gemini-embedding-001"))
    assert len(mock.calls) == 2
    assert [item["embedding"] for item in found["data"]] == [[float(n)] for n in range(150)]
    assert [item["index"] for item in found["data"]] == list(range(150))


def test_the_openai_client_reads_embeddings_in_base64(mock):
    prediction = {"embeddings": {"values": [0.5], "statistics": {"token_count": 2}}}
    mock.add(
        "POST", f"{BASE}/models/text-embedding-005:predict", json={"predictions": [prediction]}
    )
    body = {"input": "a", "encoding_format": "base64"}
    found = read(ask(body, Operation.EMBEDDINGS, "text-embedding-005", platform="vertex_ai"))
    assert found["usage"] == {"prompt_tokens": 2, "total_tokens": 2}
    assert base64.b64decode(found["data"][0]["embedding"]) == b"\x00\x00\x00?"


def test_an_embedding_that_is_missing_may_be_asked_elsewhere(mock):
    url = f"{BASE}/models/gemini-embedding-001:batchEmbedContents"
    mock.add("POST", url, json={"embeddings": []})
    with pytest.raises(UpstreamError) as failed:
        ask({"input": "a"}, Operation.EMBEDDINGS, "gemini-embedding-001")
    assert failed.value.retryable


def test_an_error_in_an_embedding_that_says_yes(mock):
    url = f"{BASE}/models/gemini-embedding-001:batchEmbedContents"
    mock.add("POST", url, json={"error": {"code": 503, "message": "later"}})
    assert ask({"input": "a"}, Operation.EMBEDDINGS, "gemini-embedding-001").status == 503


def test_a_refusal_of_the_second_call_is_the_answer(mock):
    url = f"{BASE}/models/gemini-embedding-001:batchEmbedContents"
    mock.add("POST", url, json={"embeddings": [{"values": [1]}] * 100})
    mock.add("POST", url, json={"error": {"code": 429, "message": "quota"}}, status=429)
    reply = ask({"input": ["a"] * 150}, Operation.EMBEDDINGS, "gemini-embedding-001")
    assert reply.status == 429
    assert read(reply)["error"]["type"] == "rate_limit_error"
