"""Any exception becomes OpenAI's envelope, and every response carries its request id."""

import json
import logging
from typing import Any

import pytest
from flask import Flask, Response, abort, request
from flask.testing import FlaskClient
from werkzeug.exceptions import (
    BadRequest,
    ClientDisconnected,
    HTTPException,
    RequestEntityTooLarge,
    TooManyRequests,
    UnprocessableEntity,
    UnsupportedMediaType,
)

from app.api import errors
from app.errors import (
    Conflict,
    DatabaseUnavailable,
    GatewayError,
    InvalidRequest,
    NotAuthenticated,
    UpstreamRejected,
    UpstreamTimeout,
)


class Slip(Exception):
    """Stands for any bug."""


@pytest.fixture
def app() -> Flask:
    app = Flask(__name__)
    errors.install(app)

    @app.get("/fine")
    def fine():
        return {"fine": True}

    @app.post("/posted")
    def posted():
        return request.get_json()

    @app.get("/folder/")
    def folder():
        return "a folder"

    @app.get("/own")
    def own():
        abort(Response("its own", status=418))

    return app


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def answer_to(app: Flask, error: Exception) -> Any:
    """The response of a view that raises this."""

    @app.get("/raises")
    def raises():
        raise error

    return app.test_client().get("/raises")


def log(caplog: pytest.LogCaptureFixture) -> list[Any]:
    """The records, with the fields that `extra` gave them."""
    return list(caplog.records)


def test_a_gateway_error_is_its_own_answer(app: Flask):
    response = answer_to(app, InvalidRequest("no such thing as 'x'", param="x", code="bad_x"))
    assert response.status_code == 400
    assert response.json == {
        "error": {
            "message": "no such thing as 'x'",
            "type": "invalid_request_error",
            "param": "x",
            "code": "bad_x",
        }
    }
    assert response.content_type == "application/json"


def test_the_headers_of_an_error_are_sent(app: Flask):
    assert answer_to(app, Conflict("twice")).headers["x-should-retry"] == "false"


def test_a_missing_key_is_asked_for(app: Flask):
    response = answer_to(app, NotAuthenticated("no key"))
    assert response.status_code == 401
    assert response.headers.getlist("WWW-Authenticate") == ["Bearer"]


def test_an_upstream_is_named_in_a_header_and_its_deployment_in_the_log_only(
    app: Flask, caplog: pytest.LogCaptureFixture
):
    failure = UpstreamTimeout("azure did not answer", provider="azure", deployment="d-1")
    response = answer_to(app, failure)
    assert response.status_code == 504
    assert response.headers["llm-provider"] == "azure"
    assert "d-1" not in response.text + str(response.headers)
    assert [(r.getMessage(), r.deployment) for r in log(caplog)] == [("upstream_failed", "d-1")]


def test_what_an_upstream_said_is_kept(app: Flask):
    response = answer_to(
        app, UpstreamRejected("slow down", status=429, type="tokens", code="rate_limit_exceeded")
    )
    assert response.status_code == 429
    assert response.json == {
        "error": {
            "message": "slow down",
            "type": "tokens",
            "param": None,
            "code": "rate_limit_exceeded",
        }
    }


def test_a_database_outage_is_an_event_of_its_own(app: Flask, caplog: pytest.LogCaptureFixture):
    failure = DatabaseUnavailable()
    failure.__cause__ = OSError("connection refused\nwith parameters sk-secret")
    response = answer_to(app, failure)
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "2"
    (record,) = log(caplog)
    assert (record.levelno, record.getMessage()) == (logging.ERROR, "database_unavailable")
    assert record.reason == "OSError: connection refused"


def test_an_unexpected_error_says_nothing_and_logs_everything(
    app: Flask, caplog: pytest.LogCaptureFixture
):
    response = answer_to(app, Slip("the secret of the house"))
    assert response.status_code == 500
    assert response.json == {
        "error": {
            "message": "internal error",
            "type": "server_error",
            "param": None,
            "code": "internal_error",
        }
    }
    (record,) = log(caplog)
    assert record.name == "manifold"
    assert record.exc_info[0] is Slip
    assert record.request_id == response.headers["x-request-id"]


def test_the_same_while_testing(app: Flask):
    app.config["TESTING"] = True
    assert answer_to(app, Slip()).status_code == 500


def test_an_unknown_path_is_named(client: FlaskClient):
    response: Any = client.get("/nowhere")
    assert response.status_code == 404
    assert response.json["error"] == {
        "message": "no such route: GET /nowhere",
        "type": "not_found_error",
        "param": None,
        "code": "not_found",
    }


def test_a_wrong_verb_is_told_the_right_ones(client: FlaskClient):
    response: Any = client.delete("/posted")
    assert response.status_code == 405
    assert set(response.headers["Allow"].split(", ")) == {"OPTIONS", "POST"}
    assert response.json["error"]["code"] == "method_not_allowed"
    assert response.json["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("body", [b"{", b"\xff", b""])
def test_a_body_that_is_no_json_is_400(client: FlaskClient, body: bytes):
    response: Any = client.post("/posted", data=body, content_type="application/json")
    assert (response.status_code, response.json["error"]["code"]) == (400, "bad_request")


@pytest.mark.parametrize(
    ("error", "status", "type_", "code"),
    [
        (BadRequest(), 400, "invalid_request_error", "bad_request"),
        (UnprocessableEntity(), 400, "invalid_request_error", "bad_request"),
        (RequestEntityTooLarge(), 413, "invalid_request_error", "request_too_large"),
        (UnsupportedMediaType(), 415, "invalid_request_error", "unsupported_media_type"),
        (TooManyRequests(retry_after=3), 429, "rate_limit_error", "too_many_requests"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, HTTPException) else "",
)
def test_werkzeugs_errors(app: Flask, error: HTTPException, status: int, type_: str, code: str):
    response = answer_to(app, error)
    assert response.status_code == status
    assert (response.json["error"]["type"], response.json["error"]["code"]) == (type_, code)
    assert "browser" not in response.text
    assert len(response.headers.getlist("Content-Type")) == 1


def test_werkzeugs_headers_are_kept(app: Flask):
    assert answer_to(app, TooManyRequests(retry_after=3)).headers["Retry-After"] == "3"


def test_words_of_ours_in_a_werkzeug_error_are_kept(app: Flask):
    response = answer_to(app, BadRequest("the field `purpose` is missing"))
    assert response.json["error"]["message"] == "the field `purpose` is missing"


def test_a_client_that_left_is_nothing_to_talk_about(app: Flask, caplog: pytest.LogCaptureFixture):
    assert answer_to(app, ClientDisconnected()).status_code == 400
    assert caplog.records == []


def test_a_redirect_stays_one(client: FlaskClient):
    assert client.get("/folder").status_code == 308


def test_a_response_that_was_raised_is_sent(client: FlaskClient):
    response = client.get("/own")
    assert (response.status_code, response.text) == (418, "its own")
    assert "x-request-id" in response.headers


@pytest.mark.parametrize("path", ["/fine", "/nowhere"])
def test_every_response_has_its_request_id(client: FlaskClient, path: str):
    made = client.get(path).headers["x-request-id"]
    assert made.startswith("req_")
    assert client.get(path).headers["x-request-id"] != made
    sane = client.get(path, headers={"x-request-id": "abc-123"})
    assert sane.headers.getlist("x-request-id") == ["abc-123"]
    odd = client.get(path, headers={"x-request-id": "<script>"})
    assert odd.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize("error", [GatewayError("x"), Slip("x"), BadRequest()], ids=repr)
def test_the_envelope_is_always_complete(app: Flask, error: Exception):
    told = json.loads(answer_to(app, error).data)
    assert set(told) == {"error"}
    assert set(told["error"]) == {"message", "type", "param", "code"}
