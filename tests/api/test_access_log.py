"""One line a request: what stands in it, when it is written, and what never does."""

import logging
from typing import Any

import pytest

from app.errors import UpstreamError
from app.transfers import Download, Reply
from tests.access_builders import MASTER_KEY
from tests.fakes import FakeProvider


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.DEBUG)

    def read() -> list[Any]:
        return [record for record in caplog.records if record.name == "manifold.request"]

    return read


def test_a_line_tells_what_was_asked_and_answered(alice, lines):
    response = alice.get("/v1/models?secret=x", headers={"x-request-id": "mine-1"})
    response.close()
    (line,) = lines()
    assert line.getMessage() == "request"
    assert (line.method, line.route, line.status) == ("GET", "/v1/models", 200)
    assert line.request_id == "mine-1" == response.headers["x-request-id"]
    assert line.bytes_out == len(response.data)
    assert line.ms >= 0
    assert len(line.key) == 12 and line.key not in alice.secret
    assert not hasattr(line, "cut_off")


@pytest.mark.parametrize(
    ("method", "path", "status", "route"),
    [
        ("GET", "/nowhere/x", 404, None),
        ("PUT", "/v1/files", 405, None),
        ("GET", "/v1/files", 401, "/v1/files"),
        ("GET", "/health/liveness", 200, "/health/liveness"),
    ],
)
def test_a_request_that_comes_to_no_view_has_its_line(client, lines, method, path, status, route):
    client.open(path, method=method).close()
    (line,) = lines()
    assert (line.status, line.route, line.key) == (status, route, None)


def test_an_upload_says_how_much_came_in_and_where_it_went(alice, lines):
    alice.send(b"12345", model="a").close()
    (line,) = lines()
    assert (line.bytes_in, line.deployment) == (5, "a-1")


def test_a_downloads_line_is_written_after_its_last_byte(alice, gateway, lines):
    file_id = alice.upload(b"12345", model="a")
    before = len(lines())
    response = alice.get(f"/v1/files/{file_id}/content", buffered=False)
    assert len(lines()) == before
    assert response.data == b"12345"
    response.close()
    line = lines()[-1]
    assert (line.bytes_out, line.deployment, line.status) == (5, "a-1", 200)
    assert not hasattr(line, "cut_off")


def test_a_download_that_breaks_is_cut_off(alice, gateway, lines, monkeypatch):
    def chunks() -> Any:
        yield b"12"
        yield b"3"
        raise UpstreamError("broken")

    monkeypatch.setattr(FakeProvider, "content", lambda *_: Download(chunks(), 5))
    file_id = alice.upload(b"12345", model="a")
    response = alice.get(f"/v1/files/{file_id}/content", buffered=False)
    with pytest.raises(UpstreamError):
        response.get_data()
    response.close()
    line = lines()[-1]
    assert (line.bytes_out, line.cut_off) == (3, True)


def test_a_client_that_leaves_is_cut_off(alice, gateway, lines):
    closed: list[bool] = []
    gateway.fakes["a-1"].replies.append(
        Reply(
            200,
            {"Content-Type": "text/event-stream"},
            iter([b"data: 1\n\n", b"data: 2\n\n"]),
            lambda: closed.append(True),
        )
    )
    response = alice.post("/v1/chat/completions", json={"model": "a"}, buffered=False)
    assert next(response.response) == b"data: 1\n\n"
    response.close()
    line = lines()[-1]
    assert line.cut_off and closed == [True]


def test_no_secret_stands_in_any_line(alice, root, client, gateway, caplog):
    caplog.set_level(logging.DEBUG)
    alice.upload(b"secret-content", model="a")
    alice.get("/v1/files?purpose=nonsense")
    root.get("/key/list")
    root.post("/key/generate", json={})
    client.get("/v1/models", headers={"api-key": "sk-wrong-secret"})
    client.get("/v1/models?api_key=sk-in-query")
    for record in caplog.records:
        shown = f"{record.getMessage()} {record.__dict__}"
        for secret in (alice.secret, MASTER_KEY, "secret-content", "sk-wrong", "sk-in-query"):
            assert secret not in shown
