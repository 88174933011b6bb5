"""JSON bodies: how deeply they may nest, wherever they are sent."""

import json

import pytest

from tests.api.conftest import error_of

DEEP = "the request body is nested more than 100 levels deep"


def body(levels: int) -> bytes:
    """An object with so many levels; nobody knows its key."""
    return b'{"model": "a", "x": ' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"


CALLS = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/embeddings"),
    ("POST", "/v1/batches"),
    ("POST", "/v1/fine_tuning/jobs"),
    ("POST", "/v1/uploads"),
    ("GET", "/v1/files"),
    ("DELETE", "/v1/files/file-1"),
]


@pytest.mark.parametrize(
    ("method", "path", "encoding"),
    [*((*call, "utf-8") for call in CALLS), ("POST", "/v1/batches", "utf-16")],
)
def test_a_deep_body_is_refused_with_the_limit(alice, method, path, encoding):
    def sent(levels):
        data = body(levels).decode().encode(encoding)
        return alice.open(method, path, data=data, content_type="application/json")

    assert error_of(sent(101), 400, None, "invalid_json")["message"] == DEEP
    assert DEEP not in sent(100).text


def test_deep_metadata_of_a_user_has_its_own_limit(root):
    sent = {"user_id": "u", "metadata": json.loads(body(50))}
    response = root.post("/user/new", json=sent)
    assert response.status_code == 400
    assert "levels deep" in response.text and DEEP not in response.text
