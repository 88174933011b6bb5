"""Inference through the whole app: bodies and answers pass, ids are swapped, errors keep form."""

import io
import json
import socket
import threading
from typing import Any

import pytest

from app.errors import UpstreamError, UpstreamTimeout
from app.providers.protocol import Operation
from app.transfers import Cancellation, Reply
from tests.api.conftest import error_of, make_gateway
from tests.fakes import FakeProvider, json_reply, stream_reply

PREFIXES = ("", "/v1", "/openai")
CHAT = {"model": "a", "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("operation", ["chat/completions", "completions", "embeddings"])
def test_every_address_of_an_operation(alice, gateway, prefix, operation):
    for path in (f"{prefix}/{operation}", f"{prefix}/engines/a/{operation}"):
        assert alice.post(path, json={"model": "a"}).status_code == 200
    for sent, body, upstream_model in gateway.fakes["a-1"].called("infer"):
        assert (sent, upstream_model) == (Operation(operation), "up-a")
        assert json.loads(body) == {"model": "up-a"}
    assert len(gateway.fakes["a-1"].called("infer")) == 2


@pytest.mark.parametrize("operation", ["chat/completions", "completions", "embeddings"])
def test_the_address_of_azures_client(alice, gateway, operation):
    path = f"/openai/deployments/a/{operation}?api-version=2024-10-21"
    response = alice.post(path, json={"messages": []}, headers={"api-key": alice.secret})
    assert response.status_code == 200, response.text
    _, sent, model = gateway.fakes["a-1"].called("infer")[0]
    assert (json.loads(sent), model) == ({"model": "up-a", "messages": []}, "up-a")
    error_of(alice.post(path, json={"model": "b"}), 400, "model", "ambiguous_routing")


def test_the_body_passes_but_for_the_model(alice, gateway):
    raw = '{ "messages" : [ ], "n": 1.50e0,\n "x": "\\u00e4ä", "model" :\t"a" , "seed": 1 }'
    assert alice.post("/v1/chat/completions", data=raw.encode()).status_code == 200
    sent = gateway.fakes["a-1"].called("infer")[0][1]
    assert sent.decode() == raw.replace('"a"', '"up-a"')


def test_the_answer_passes(alice, gateway):
    raw = b'{ "id":"x",\n "usage":null }\n'
    headers = {
        "Content-Type": "application/json; charset=utf-8",
        "x-ratelimit-remaining-tokens": "9",
    }
    gateway.fakes["a-1"].replies.append(Reply(200, headers, iter((raw[:5], raw[5:]))))
    response = alice.post("/v1/chat/completions", json=CHAT, headers={"x-request-id": "mine"})
    assert response.data == raw
    assert response.headers["Content-Type"] == "application/json; charset=utf-8"
    assert response.headers["x-ratelimit-remaining-tokens"] == "9"
    assert response.headers["llm-provider"] == "openai"
    assert response.headers["x-request-id"] == "mine"


@pytest.mark.parametrize("status", [400, 404, 409, 413, 422, 429, 500, 503])
def test_an_upstreams_error_passes_unchanged(alice, gateway, status):
    raw = b'{"error": {"message":"no","type":"t","param":"p","code":"c","innererror":{}}}'
    headers = {"Content-Type": "application/json", "Retry-After": "3"}
    gateway.fakes["a-1"].replies.append(Reply(status, headers, iter((raw,))))
    response = alice.post("/v1/chat/completions", json=CHAT)
    assert (response.status_code, response.data) == (status, raw)
    assert response.headers["Retry-After"] == "3"


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_credential_is_ours(alice, gateway, status):
    reply = json_reply({"error": {"message": "Incorrect API key: sk-up"}}, status)
    gateway.fakes["a-1"].replies.append(reply)
    response = alice.post("/v1/chat/completions", json=CHAT)
    error_of(response, 502, None, "upstream_auth_failed")
    assert "sk-up" not in response.text


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (UpstreamError("gone", provider="openai"), 502, "upstream_error"),
        (UpstreamTimeout("slow", provider="openai"), 504, "upstream_timeout"),
    ],
)
def test_no_answer_is_an_error_of_ours(alice, gateway, failure, status, code):
    failure.retryable = True
    gateway.fakes["a-1"].fail_next(failure)
    response = alice.post("/v1/chat/completions", json=CHAT)
    error_of(response, status, None, code)
    assert response.headers["llm-provider"] == "openai"


def test_a_stream_is_relayed_piece_by_piece_and_closed(alice, gateway):
    closed: list[bool] = []
    pieces = [b'data: {"a":1}\n', b"\n", b"data: [DONE]\n\n"]
    gateway.fakes["a-1"].replies.append(
        Reply(
            200,
            {"Content-Type": "text/event-stream"},
            iter(pieces),
            lambda: closed.append(True),
        )
    )
    response = alice.post("/v1/chat/completions", json={**CHAT, "stream": True}, buffered=False)
    assert response.headers["X-Accel-Buffering"] == "no"
    assert response.headers["Cache-Control"] == "no-cache, no-store"
    assert "Content-Length" not in response.headers
    assert list(response.response) == pieces
    assert not closed
    response.close()
    assert closed == [True]


def test_the_length_of_an_answer_is_said_where_it_is_known(alice, gateway):
    kind = {"Content-Type": "application/json"}
    gateway.fakes["a-1"].replies.append(Reply(200, kind, iter([b'{"a"', b":1}"]), length=7))
    response = alice.post("/v1/chat/completions", json=CHAT, buffered=False)
    assert response.headers["Content-Length"] == "7"
    assert response.json == {"a": 1}


def test_a_stream_that_breaks_is_not_ended_as_if_it_were_whole(alice, gateway):
    def pieces() -> Any:
        yield b'data: {"a":1}\n\n'
        yield b'data: {"a":2}\n\n'
        raise UpstreamError("broken")

    reply = Reply(200, {"Content-Type": "text/event-stream"}, pieces())
    gateway.fakes["a-1"].replies.append(reply)
    response = alice.post("/v1/chat/completions", json={**CHAT, "stream": True}, buffered=False)
    got = b""
    with pytest.raises(UpstreamError):
        for piece in response.response:
            got += piece
    assert b"[DONE]" not in got


def test_file_ids_are_swapped_there_and_back(alice, gateway):
    file_id = alice.upload(target_model_names="a,b")
    (raw,) = gateway.fakes["a-1"].stored
    gateway.fakes["a-1"].replies.append(stream_reply({"annotation": {"file_id": raw}}))
    part = {"type": "file", "file": {"file_id": file_id}}
    body = {**CHAT, "messages": [{"role": "user", "content": [part]}], "stream": True}
    response = alice.post("/v1/chat/completions", json=body)
    sent = json.loads(gateway.fakes["a-1"].called("infer")[0][1])
    assert sent["messages"][0]["content"][0]["file"]["file_id"] == raw
    assert raw not in response.text and file_id in response.text


def test_the_providers_own_model(alice, gateway):
    body = {**CHAT, "model": "gpt-x", "custom_llm_provider": "azure"}
    assert alice.post("/v1/chat/completions", json=body).status_code == 200
    operation, sent, model = gateway.fakes["azure-account"].called("infer")[0]
    assert (operation, model) == (Operation.CHAT, "gpt-x")
    assert json.loads(sent) == {**CHAT, "model": "gpt-x"}


BROKEN = [
    (b"", "invalid_json", None),
    (b"{", "invalid_json", None),
    (b"[]", "invalid_json", None),
    (b'"x"', "invalid_json", None),
    (b"null", "invalid_json", None),
    (b"\xff\xfe{}", "invalid_json", None),
    (b"{} {}", "invalid_json", None),
    (b'{"model": NaN}', "invalid_json", None),
    (b'{"model": "a",}', "invalid_json", None),
    (b"[" * 200_000, "invalid_json", None),
    (b'{"messages":' + b"[" * 200_000, "invalid_json", None),
    (b'{"messages":' + b'{"a":' * 200_000, "invalid_json", None),
    (b'{"model": "a", "model": "b"}', "invalid_value", "model"),
    (b'{"\\ud800": 1, "\\ud800": 2}', "invalid_value", "\\ud800"),
    (b"{}", "missing_required_parameter", "model"),
    (b'{"model": null}', "missing_required_parameter", "model"),
    (b'{"model": ""}', "missing_required_parameter", "model"),
    (b'{"model": 5}', "invalid_value", "model"),
    (b'{"model": {}}', "invalid_value", "model"),
    (b'{"model": "nope"}', "model_not_found", "model"),
    (b'{"model": "\\ud800"}', "model_not_found", "model"),
    (b'{"model": "\\u0000"}', "model_not_found", "model"),
    (b'{"model": "*"}', "model_not_found", "model"),
    (b'{"model": "a", "api_base": "http://evil"}', "forbidden_parameter", "api_base"),
    (b'{"model": "a", "extra_body": {}}', "forbidden_parameter", "extra_body"),
    (b'{"model": "a", "aws_region": "x"}', "forbidden_parameter", "aws_region"),
    (b'{"model": "a", "target_model_names": "a"}', "ambiguous_routing", "target_model_names"),
    (b'{"model": "a", "custom_llm_provider": "x"}', "provider_not_found", "custom_llm_provider"),
]


@pytest.mark.parametrize(("body", "code", "param"), BROKEN, ids=lambda v: str(v)[:50])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_broken_body_goes_nowhere(reader, body, code, param, chunked):
    options: dict[str, Any] = {"data": body}
    if chunked:
        options = {
            "environ_overrides": {
                "wsgi.input": io.BytesIO(body),
                "wsgi.input_terminated": True,
                "HTTP_TRANSFER_ENCODING": "chunked",
            }
        }
    response = reader.post("/v1/chat/completions", **options)
    error = error_of(response, 400, param, code)
    assert len(error["message"]) < 400


def test_a_large_body_is_413_with_both_sizes(tmp_path, api_database):
    gateway = make_gateway(tmp_path, api_database, max_request_size_mb=1, max_file_size_mb=5)
    person = gateway.person()
    body = json.dumps({**CHAT, "x": "x" * 1024 * 1024}).encode()
    error = error_of(person.post("/v1/chat/completions", data=body), 413)
    assert "1048576" in error["message"] and str(len(body)) in error["message"]
    chunked = {
        "wsgi.input": io.BytesIO(body),
        "wsgi.input_terminated": True,
        "HTTP_TRANSFER_ENCODING": "chunked",
    }
    error = error_of(person.post("/v1/chat/completions", environ_overrides=chunked), 413)
    assert "1048576" in error["message"]
    assert not gateway.calls()
    assert person.send(b"x" * 3_000_000, model="a").status_code == 200


@pytest.mark.parametrize(
    "content_type", ["application/json", "text/plain", "", "multipart/form-data; boundary=x", ";"]
)
def test_the_content_type_does_not_matter(alice, content_type):
    body = json.dumps(CHAT).encode()
    response = alice.post("/v1/chat/completions", data=body, content_type=content_type)
    assert response.status_code == 200, response.text


def test_what_a_provider_cannot_do_is_said(alice):
    response = alice.post("/v1/responses", json={"model": "a", "input": "x"})
    error_of(response, 400, None, "unsupported_operation")


def test_another_models_key_may_not(gateway):
    person = gateway.person("carol", key={"models": ["b"]})
    error = error_of(
        person.post("/v1/chat/completions", json=CHAT), 403, "model", "model_access_denied"
    )
    assert "'a'" in error["message"]
    assert not gateway.calls()


def test_a_client_that_hangs_up_ends_the_wait(alice, gateway, monkeypatch):
    """The socket that gunicorn names is watched from before the upstream is asked."""
    server, client = socket.socketpair()
    cancelled: list[bool] = []

    def infer(self: Any, *arguments: Any) -> Reply:
        cancellation = next(a for a in arguments if isinstance(a, Cancellation))
        done = threading.Event()
        cancellation.then(done.set)
        client.close()
        cancelled.append(done.wait(2))
        raise UpstreamError("broken", retryable=True)

    monkeypatch.setattr(FakeProvider, "infer", infer)
    response = alice.post(
        "/v1/chat/completions", json=CHAT, environ_overrides={"gunicorn.socket": server}
    )
    assert response.status_code == 502
    assert cancelled == [True]
    server.close()
