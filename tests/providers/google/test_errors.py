"""Google's error bodies: what they mean for us, and what the client is shown."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import NotFound, UpstreamAuthFailed, UpstreamError, UpstreamRejected
from app.providers.google.errors import envelope, refusal

RPC = "type.googleapis.com/google.rpc."
TOO_LONG = "The input token count (1200293) exceeds the maximum number of tokens allowed (1048576)."
BAD_KEY = {
    "code": 400,
    "message": "API key not valid. Please pass a valid API key.",
    "status": "INVALID_ARGUMENT",
    "details": [{"@type": f"{RPC}ErrorInfo", "reason": "API_KEY_INVALID"}],
}


def body(code=400, message="no", status="INVALID_ARGUMENT", **more):
    return json.dumps(
        {"error": {"code": code, "message": message, "status": status, **more}}
    ).encode()


def shown(status, raw):
    status, sent, headers = envelope(status, raw)
    assert headers["Content-Type"] == "application/json"
    return status, json.loads(sent)["error"], headers.get("Retry-After")


@pytest.mark.parametrize(
    ("status", "name", "kind"),
    [
        (400, "INVALID_ARGUMENT", "invalid_request_error"),
        (400, "FAILED_PRECONDITION", "invalid_request_error"),
        (400, "OUT_OF_RANGE", "invalid_request_error"),
        (401, "UNAUTHENTICATED", "authentication_error"),
        (403, "PERMISSION_DENIED", "permission_error"),
        (404, "NOT_FOUND", "invalid_request_error"),
        (409, "ABORTED", "conflict_error"),
        (409, "ALREADY_EXISTS", "conflict_error"),
        (429, "RESOURCE_EXHAUSTED", "rate_limit_error"),
        (500, "INTERNAL", "server_error"),
        (501, "UNIMPLEMENTED", "server_error"),
        (503, "UNAVAILABLE", "server_error"),
        (504, "DEADLINE_EXCEEDED", "server_error"),
    ],
)
def test_every_status_has_openais_type_and_its_own_word_as_code(status, name, kind):
    """Source: Google Cloud APIs, Errors; OpenAI API reference, errors; read 2026-11."""
    assert shown(status, body(status, "why", name)) == (
        status,
        {"message": "why", "type": kind, "param": None, "code": name.lower()},
        None,
    )


def test_a_request_that_google_gave_up_is_no_499():
    """Source: Google Cloud APIs, Errors, CANCELLED; read 2026-11."""
    assert shown(499, body(499, "cancelled", "CANCELLED"))[0] == 500


@pytest.mark.parametrize(
    "message",
    [
        TOO_LONG,
        "Unable to submit request because the input token count is 40000 but model only supports "
        "up to 32768. Reduce the input token count and try again.",
    ],
)
def test_a_conversation_that_is_too_long_has_openais_code(message):
    """Source: google-gemini/gemini-cli issue 6678; OpenAI API reference, errors; read 2026-11."""
    assert shown(400, body(message=message))[1]["code"] == "context_length_exceeded"
    found = refusal(400, body(message=message))
    assert isinstance(found, UpstreamRejected)
    assert (found.code, found.status, found.message) == ("context_length_exceeded", 400, message)


@pytest.mark.parametrize(
    ("delay", "seconds"),
    [("23s", "23"), ("0.4s", "1"), ("3600s", "120"), ("soon", None), (7, None), ("", None)],
)
def test_how_long_to_wait_is_said_in_a_header(delay, seconds):
    """Source: google.rpc.RetryInfo; read 2026-11."""
    details = [{"@type": f"{RPC}QuotaFailure"}, {"@type": f"{RPC}RetryInfo", "retryDelay": delay}]
    raw = body(429, "quota", "RESOURCE_EXHAUSTED", details=details)
    assert shown(429, raw)[2] == seconds
    found = refusal(429, raw)
    assert isinstance(found, UpstreamRejected)
    assert found.headers.get("Retry-After") == seconds
    assert found.retryable


def test_an_error_in_a_list():
    """Source: Gemini API, OpenAI compatibility, errors; streams without alt=sse; read 2026-11."""
    raw = b"[" + body(404, "gone", "NOT_FOUND") + b"]"
    assert shown(404, raw)[1]["message"] == "gone"
    assert isinstance(refusal(404, raw), NotFound)


@pytest.mark.parametrize(
    "raw",
    [
        b"<html>Error 404</html>",
        b"",
        b"[]",
        b'"x"',
        b"null",
        b"\xff",
        b"[" * 100_000,
        b'{"error": 1}',
    ],
    ids=["page", "nothing", "empty list", "text", "null", "no UTF-8", "too deep", "number"],
)
def test_what_is_no_error_of_googles_still_gets_an_envelope(raw):
    status, error, _ = shown(502, raw)
    assert (status, error["type"], error["code"]) == (502, "server_error", "502")
    assert error["message"] == "the upstream answered with status 502"


def test_an_error_inside_of_an_answer_that_had_begun_well_has_its_own_status():
    assert shown(200, body(503, "overloaded", "UNAVAILABLE"))[0] == 503
    assert shown(200, body("x", "odd", "ODD"))[0] == 502
    assert shown(302, b"<html>")[0] == 502


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_credential_is_ours(status):
    """Source: contract, errors: an upstream's 401 and 403 are our credential's fault."""
    found = refusal(status, body(status, "secret-token is wrong", "UNAUTHENTICATED"))
    assert isinstance(found, UpstreamAuthFailed)
    assert "secret-token" not in found.message


def test_ai_studio_refuses_a_key_with_a_400():
    """Source: Gemini API, troubleshooting, API_KEY_INVALID; read 2026-11."""
    raw = json.dumps({"error": BAD_KEY}).encode()
    assert isinstance(refusal(400, raw), UpstreamAuthFailed)
    assert shown(400, raw)[0] == 401, "whoever relays it knows that it is our credential"
    assert not isinstance(refusal(400, body()), UpstreamAuthFailed)


def test_an_error_of_cloud_storage():
    """Source: Cloud Storage JSON API, error responses; read 2026-11."""
    older = {"errors": [{"message": "no", "domain": "global", "reason": "conditionNotMet"}]}
    raw = json.dumps({"error": {"code": 412, "message": "no", **older}}).encode()
    found = refusal(412, raw)
    assert isinstance(found, UpstreamRejected)
    assert (found.status, found.code, found.message) == (412, "412", "no")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["error", "code", "message", "status", "details", "retryDelay", "reason"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)


@given(
    st.integers(200, 599), json_values.map(lambda value: json.dumps(value).encode()) | st.binary()
)
def test_any_body_is_understood(status, raw):
    code, error, _ = shown(status, raw)
    assert 400 <= code <= 599
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    found = refusal(code, raw)
    assert isinstance(found, UpstreamError | NotFound)
    json.dumps(found.body()).encode()
