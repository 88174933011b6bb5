"""The header fields of an upstream's answer, read by us and by http.client."""

import http.client
import io

import pytest

from app.providers import lines

PLAIN = b"Content-Type: application/json\r\nX-Empty:\r\nX-Two: a\r\nx-two:\t b c\r\n\r\n"
OTHERS = (
    b"X-Folded: one\r\n two\r\nX-Last: 1\r\n\r\n",
    b"X-Text: caf\xe9\r\n\r\n",
    b"X-Bare: 1\nX-Last: 2\r\n\r\n",
    b"no field at all\r\nX-Last: 1\r\n\r\n",
    b"\r\n",
    b"X-Cut: off",
    b"".join(b"X-%d: %d\r\n" % (n, n) for n in range(99)) + b"\r\n",
)


def read(head: bytes, body: bytes = b"{}") -> tuple[list[tuple[str, str]], bytes]:
    file = io.BufferedReader(io.BytesIO(head + body))
    return lines._fields(file).items(), file.read()


@pytest.mark.parametrize("head", [PLAIN, *OTHERS])
def test_they_are_what_http_client_says(head):
    file = io.BufferedReader(io.BytesIO(head + b"{}"))
    assert read(head) == (http.client.parse_headers(file).items(), file.read())


def test_plain_ones_need_no_parser_for_e_mail(monkeypatch):
    monkeypatch.delattr(http.client, "parse_headers")
    assert read(PLAIN)[0][2:] == [("X-Two", "a"), ("x-two", "b c")]
    for head in OTHERS[:4]:
        with pytest.raises(AttributeError):
            read(head)


def test_too_many_are_refused():
    with pytest.raises(http.client.HTTPException, match="more than 100"):
        read(b"X: 1\r\n" * 101 + b"\r\n")


def test_answers_are_read_so():
    globals_of = lines._Response.begin.__globals__
    assert globals_of["parse_headers"] is lines._fields
    assert "parse_headers" in http.client.HTTPResponse.begin.__code__.co_names
    assert lines._Connection.response_class is lines._Response
