"""The headers that every answer carries, whatever it is an answer to."""

import pytest

from app.api.auth import OPEN_ROUTES
from app.api.security_headers import HEADERS
from app.server.refusals import HARDENING

CONTENT_POLICY = "sandbox; default-src 'none'"


def check(response, *, policy=HEADERS["Content-Security-Policy"], is_open=False):
    for name, value in {**HEADERS, "Content-Security-Policy": policy}.items():
        assert response.headers.getlist(name) == [value], name
    assert ("no-store" in response.headers.get("Cache-Control", "")) is not is_open
    assert "Server" not in response.headers
    assert "Access-Control-Allow-Origin" not in response.headers


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/files", 200),
        ("HEAD", "/v1/files", 200),
        ("GET", "/v1/models", 200),
        ("GET", "/health", 200),
        ("GET", "/user/info", 200),
        ("GET", "/v1/files/nothing", 404),
        ("GET", "/nowhere", 404),
        ("OPTIONS", "/v1/files", 405),
        ("PUT", "/v1/files", 405),
        ("POST", "/v1/files", 400),
        ("POST", "/user/new", 403),
        ("GET", "/v1/files?limit=0", 400),
    ],
)
def test_every_answer_is_hardened(reader, method, path, status):
    response = reader.open(method, path)
    assert response.status_code == status, response.text
    check(response)


def test_so_is_the_answer_to_somebody_without_a_key(still):
    response = still.app.test_client().get("/v1/files")
    assert response.status_code == 401
    check(response)


@pytest.mark.parametrize("rule", sorted(OPEN_ROUTES))
def test_the_open_routes_may_be_kept_by_caches(still, rule):
    response = still.app.test_client().get(rule.replace("<asset>", "start.js"))
    # The page of the API reference runs scripts, all of them its own.
    page = {"policy": response.headers["Content-Security-Policy"]} if rule == "/" else {}
    check(response, is_open=True, **page)


def test_so_is_a_failure_of_ours(gateway):
    del gateway.app.extensions["manifold"]
    response = gateway.app.test_client().get("/v1/files", headers={"Authorization": "Bearer sk-x"})
    assert response.status_code == 500
    check(response)


def test_content_is_a_download_that_runs_nowhere(alice):
    page = b"<script>alert(document.domain)</script>"
    file_id = alice.upload(page, name="page.html", type="text/html", target_model_names="a")
    for options in ({}, {"headers": {"Range": "bytes=0-3"}}):
        response = alice.get(f"/v1/files/{file_id}/content", **options)
        assert response.headers["Content-Type"].startswith("text/html")
        assert response.headers["Content-Disposition"].startswith("attachment; ")
        check(response, policy=CONTENT_POLICY)


def test_a_stream_is_not_stored_either(alice):
    response = alice.post(
        "/v1/chat/completions", json={"model": "a", "messages": [], "stream": True}
    )
    assert response.status_code == 200, response.text
    check(response)


def test_what_never_reaches_the_application_is_hardened_alike():
    lines = [line.split(": ", 1) for line in HARDENING.split("\r\n") if line]
    assert dict(lines) == {**HEADERS, "Cache-Control": "no-store"}
