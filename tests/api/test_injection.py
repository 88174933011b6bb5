"""Text that would break out of a header, a log line or a terminal, wherever text is taken."""

import io
import json
import logging
from urllib.parse import quote

import pytest

from app.logs import JsonLines
from tests.api.conftest import multipart

HOSTILE = {
    "line end": "a\r\nX-Injected: 1",
    "line feed": "a\nX-Injected: 1",
    "carriage return": "a\rX-Injected: 1",
    "null byte": "a\0b",
    "terminal colours": "a\x1b[31mred\x1b[0m",
    "terminal title": "a\x1b]0;owned\x07",
    "next line": "a\u0085X-Injected: 1",
    "line separator": "a\u2028X-Injected: 1",
    "text direction": "a\u202egpj.exe",
    "one-byte escape": "a\x9b31m",
    "delete": "a\x7f\x08\x08",
    "a line of a log": 'a\n{"event": "request", "status": 200}',
    "a template": "{{7*7}} ${7*7} %s%n {0.__class__}",
}
every = pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)


@pytest.fixture
def lines():
    """What the process writes to its log, byte for byte."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)


def check_log(stream):
    written = stream.getvalue()
    assert written.endswith("\n")
    for line in written[:-1].split("\n"):
        json.loads(line)
        assert line.isascii() and line.isprintable(), line


def check_headers(response):
    response.close()
    assert response.status_code < 500, response.text
    assert "X-Injected" not in response.headers
    for name, value in response.headers.items():
        assert value.isascii() and value.isprintable(), (name, value)


@every
def test_a_file_name(gateway, alice, lines, text):
    body, kind = multipart(
        ("purpose", "user_data"),
        ("model", "a"),
        ("file", (quote(text, safe=" {}$%*;:[]"), "text/plain", b"x")),
    )
    for name in (text, text.replace("\r", "%0D").replace("\n", "%0A")):
        raw, raw_kind = multipart(
            ("purpose", "user_data"), ("model", "a"), ("file", (name, "text/plain", b"x"))
        )
        for content, content_type in ((body, kind), (raw, raw_kind)):
            made = alice.post("/v1/files", data=content, content_type=content_type)
            check_headers(made)
            if made.status_code == 200:
                shown = made.get_json()
                assert not set(shown["filename"]) & set("\r\n\0\x1b\x07\x7f\x9b\u0085\u2028\u202e")
                check_headers(alice.get(f"/v1/files/{shown['id']}/content"))
    check_log(lines)


@every
def test_an_id_in_a_path(gateway, alice, lines, text):
    escaped = quote(text, safe="")
    for path in (
        f"/v1/files/{escaped}",
        f"/v1/files/{escaped}/content",
        f"/v1/batches/{escaped}",
        f"/v1/fine_tuning/jobs/{escaped}",
        f"/v1/uploads/{escaped}/cancel",
        f"/v1/models/{escaped}",
        f"/{escaped}/v1/files",
        f"/{escaped}",
    ):
        for method in ("GET", "DELETE", "POST"):
            check_headers(alice.open(method, path))
    check_log(lines)


@every
def test_a_query_and_a_body(gateway, alice, root, lines, text):
    names = ("model", "target_model_names", "custom_llm_provider", "after", "order", "purpose")
    for name in (*names, text):
        check_headers(alice.get("/v1/files", query_string={name: text}))
        check_headers(alice.post("/v1/chat/completions", json={"messages": [], name: text}))
        check_headers(alice.post("/v1/batches", json={"input_file_id": text, name: text}))
    for name in ("user_id", "user_alias", "user_email", "key_alias", "models", "user_role", text):
        value = [text] if name == "models" else text
        for path in ("/user/new", "/user/update", "/key/generate", "/key/update"):
            response = root.post(path, json={"user_id": "u", "key": "k", name: value})
            check_headers(response)
            is_plain = text == HOSTILE["a template"]
            if name == text or (not is_plain and not text.isprintable() and _is_control(text)):
                assert response.status_code == 400, (path, name, response.text)
    check_log(lines)


def _is_control(text: str) -> bool:
    return any(ord(c) < 32 or 127 <= ord(c) < 160 for c in text)


@every
def test_a_request_id_and_other_headers(gateway, alice, lines, text):
    # No server lets these through; Werkzeug's own client refuses line ends, so they go round it.
    for name in ("x-request-id", "x-litellm-model", "custom-llm-provider", "Range", "User-Agent"):
        environ = {f"HTTP_{name.upper().replace('-', '_')}": text.encode().decode("latin-1")}
        for path in ("/v1/files", "/v1/files/file-x/content", "/nowhere"):
            response = alice.get(path, environ_overrides=environ)
            check_headers(response)
            assert text not in response.headers["x-request-id"]
    check_log(lines)


@every
def test_metadata_comes_back_as_it_was_and_nowhere_else(gateway, root, lines, text):
    made = root.post("/user/new", json={"user_id": "u", "metadata": {text: text}})
    check_headers(made)
    if made.status_code == 200:
        seen = root.get("/user/info?user_id=u").get_json()["user_info"]
        assert seen["metadata"] == {text: text}
    check_log(lines)
