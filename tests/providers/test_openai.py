"""OpenAI and servers that speak its API: addresses, headers, lists, odd answers, inference."""

import json
import re
import time
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import responses
from marshmallow import ValidationError

from app.errors import ConfigError, NotFound, UpstreamError
from app.providers.openai import OpenAI
from app.providers.protocol import Operation, Provider
from app.transfers import Cancellation, Reply
from tests.builders import make_deployment, make_place, make_upload
from tests.providers.contract import BODY, FilesUpstream, HttpProviderContract, read

API = "https://api.openai.com/v1"
FILE = {"id": "file-1", "object": "file", "bytes": 3, "created_at": 1_700_000_000}


def make_openai(provider: str = "openai", **params: Any) -> OpenAI:
    return OpenAI(
        make_deployment(provider=provider, params={"api_key": "sk-up", **params}), make_place()
    )


@pytest.fixture
def provider() -> Provider:
    return make_openai()


@pytest.fixture
def mock():
    with responses.RequestsMock() as mock:
        yield mock


class TestOpenAI(HttpProviderContract):
    base_url = API


class TestServerWithOpenAIsApi(HttpProviderContract):
    base_url = "http://vllm_1.internal:8000/some/path/v1"

    @pytest.fixture
    def provider(self):
        return make_openai("custom_openai", api_key=None, api_base=self.base_url + "/")


class _Terse(FilesUpstream):
    """Leaves out what OpenAI's documents call optional or deprecated."""

    def answer_of(self, described: dict[str, Any]) -> dict[str, Any]:
        return {key: described[key] for key in described if key not in ("object", "status")}

    def error_of(self, status: int, message: str) -> dict[str, Any]:
        return {"object": "error", "message": message, "code": status}

    def _list(self, request: Any) -> Any:
        status, headers, answer = super()._list(request)
        return status, headers, {"data": answer["data"]}


class TestTerseServer(HttpProviderContract):
    base_url = API
    Upstream = _Terse


# Parameters


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({}, "api_key"),
        ({"api_base": "ftp://host"}, "api_base"),
        ({"api_base": "host:8000"}, "api_base"),
        ({"api_base": "http://"}, "api_base"),
        ({"api_base": "http://host/v1?x=1"}, "api_base"),
        ({"api_base": "http://host/v1#x"}, "api_base"),
        ({"api_base": "http://[::1"}, "api_base"),
        ({"api_key": 5}, "api_key"),
        ({"api_key": "sk-up\n"}, "api_key"),
        ({"api_key": "sk-\u043a"}, "api_key"),
        ({"api_key": "sk-up", "organization": "org\r\nX: 1"}, "organization"),
        ({"api_key": "sk-up", "project": " p"}, "project"),
        ({"api_key": "sk-up", "api_bass": "http://host"}, "api_bass"),
    ],
    ids=repr,
)
def test_wrong_parameters_are_refused_at_the_start(params, field):
    with pytest.raises(ValidationError) as refusal:
        OpenAI(make_deployment(params=params), make_place())
    assert list(refusal.value.messages) == [field]
    assert "sk-" not in str(refusal.value)


@pytest.mark.parametrize("name", OpenAI.aliases)
def test_another_server_needs_its_address(name):
    with pytest.raises(ConfigError, match="api_base: missing"):
        make_openai(name)
    make_openai(name, api_base="http://host_with_underscore:8000/v1")


def test_organisation_and_project_go_with_every_request(mock):
    mock.add("GET", API + "/files/file-1", json=FILE)
    mock.add("POST", API + "/files", json=FILE)
    mock.add("POST", API + "/chat/completions", json={})
    provider = make_openai(organization="org-1", project="proj-1")
    provider.retrieve("file-1")
    provider.upload(make_upload())
    provider.infer(Operation.CHAT, BODY, "m", Cancellation()).close()
    for call in mock.calls:
        headers = call.request.headers
        assert headers["Authorization"] == "Bearer sk-up"
        assert headers["OpenAI-Organization"] == "org-1"
        assert headers["OpenAI-Project"] == "proj-1"


def test_without_a_key_no_credential_is_sent(mock):
    mock.add("GET", "http://host/v1/files/file-1", json=FILE)
    make_openai(api_key=None, api_base="http://host/v1").retrieve("file-1")
    assert "Authorization" not in mock.calls[0].request.headers


@pytest.mark.parametrize(
    ("operation", "method", "path"),
    [
        (lambda p: p.upload(make_upload()), "POST", "/files"),
        (lambda p: p.retrieve("file-1"), "GET", "/files/file-1"),
        (lambda p: p.content("file-1"), "GET", "/files/file-1/content"),
        (lambda p: p.delete("file-1"), "DELETE", "/files/file-1"),
        *(
            (
                lambda p, o=operation: p.infer(o, BODY, "m", Cancellation()),
                "POST",
                f"/{operation.value}",
            )
            for operation in Operation
            if operation is not Operation.FILES
        ),
    ],
)
def test_every_operation_has_its_address(provider, mock, operation, method, path):
    mock.add(method, API + path, json=FILE)
    operation(provider)
    assert mock.calls[0].request.url == API + path


# Lists


def test_a_list_of_several_pages_is_walked_to_its_end(provider, mock):
    everything = [{**FILE, "id": f"file-{n}"} for n in range(2500)]

    def page(request: Any) -> Any:
        query = parse_qs(urlsplit(request.url).query)
        after = query.get("after", [None])[0]
        start = 1 + int(after.removeprefix("file-")) if after else 0
        data = everything[start : start + 1000]
        return 200, {}, json.dumps({"data": data, "has_more": start + 1000 < 2500})

    mock.add_callback("GET", re.compile(re.escape(API) + r"/files(\?.*)?$"), page)
    assert [file.id for file in provider.files("batch")] == [f["id"] for f in everything]
    assert len(mock.calls) == 3
    assert all("purpose=batch" in call.request.url for call in mock.calls)


def test_a_server_that_gives_the_same_page_for_ever_ends_the_list(provider, mock):
    mock.add("GET", API + "/files", json={"data": [FILE, FILE], "has_more": True})
    assert [file.id for file in provider.files()] == ["file-1"]


@pytest.mark.parametrize("data", [None, {}, "x", [1], [{}], [{"id": None}], [None]])
def test_a_list_that_is_none_is_an_upstream_error(provider, mock, data):
    mock.add("GET", API + "/files", json={"data": data})
    with pytest.raises(UpstreamError):
        list(provider.files())


def test_what_is_being_deleted_is_not_listed(provider, mock):
    gone = [{**FILE, "id": f"file-{s}", "status": s} for s in ("deleted", "Deleting")]
    mock.add("GET", API + "/files", json={"data": gone, "has_more": True})
    mock.add("GET", API + "/files", json={"data": [FILE], "has_more": False})
    assert [file.id for file in provider.files()] == ["file-1"]
    assert "after=file-Deleting" in mock.calls[1].request.url


# Odd answers


@pytest.mark.parametrize(
    ("told", "status"),
    [
        ("uploaded", "uploaded"),
        ("processed", "processed"),
        ("error", "error"),
        ("pending", "uploaded"),
        ("running", "uploaded"),
        ("notRunning", "uploaded"),
        ("Succeeded", "processed"),
        ("failed", "error"),
        ("something new", "processed"),
        (None, "processed"),
        (7, "processed"),
    ],
)
def test_a_status_is_one_of_openais_three(provider, mock, told, status):
    mock.add("GET", API + "/files/file-1", json={**FILE, "status": told})
    assert provider.retrieve("file-1").status == status


@pytest.mark.parametrize("status", ["deleted", "Deleting"])
def test_a_file_that_is_being_deleted_is_not_found(provider, mock, status):
    mock.add("GET", API + "/files/file-1", json={**FILE, "status": status})
    with pytest.raises(NotFound):
        provider.retrieve("file-1")


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        (1_700_000_000, 1_700_000_000),
        (1_700_000_000.9, 1_700_000_000),
        ("2023-11-14T22:13:20Z", 1_700_000_000),
        ("2023-11-14T22:13:20", 1_700_000_000),
        ("2023-11-14T23:13:20+01:00", 1_700_000_000),
        ("yesterday", None),
        ("", None),
        (None, None),
        (True, None),
        (float("inf"), None),
        (float("nan"), None),
        (10**30, None),
        (-1, None),
        ([], None),
    ],
)
def test_a_moment_is_unix_seconds(provider, mock, monkeypatch, told, seconds):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    body = json.dumps({**FILE, "expires_at": told, "created_at": told})
    mock.add("GET", API + "/files/file-1", body=body)
    stored = provider.retrieve("file-1")
    monkeypatch.undo()
    time.tzset()
    assert (stored.expires_at, stored.created_at) == (seconds, seconds or 0)


def test_texts_can_be_stored_in_any_database(provider, mock):
    body = {**FILE, "status_details": "a\0b\ud800", "filename": "\ud800", "purpose": "\0"}
    mock.add("GET", API + "/files/file-1", body=json.dumps(body))
    stored = provider.retrieve("file-1")
    assert (stored.status_details, stored.filename, stored.purpose) == ("ab?", "?", "")


@pytest.mark.parametrize("size", [None, "3", 2.5, -1, True])
def test_a_size_that_is_none_is_unknown(provider, mock, size):
    mock.add("GET", API + "/files/file-1", json={**FILE, "bytes": size})
    assert provider.retrieve("file-1").size is None


@pytest.mark.parametrize("file_id", ["", ".", ".."])
def test_an_id_that_is_no_name_is_never_sent(provider, file_id):
    with responses.RequestsMock():
        with pytest.raises(NotFound):
            provider.retrieve(file_id)
        with pytest.raises(NotFound):
            provider.content(file_id)
        provider.delete(file_id)


def test_several_ranges_are_answered_with_the_whole(provider, mock):
    mock.add("GET", API + "/files/file-1/content", body=b"abc")
    download = provider.content("file-1", "bytes=0-0,2-2")
    assert read(download) == b"abc"
    assert "Range" not in mock.calls[0].request.headers


def test_a_part_that_does_not_say_which_is_an_upstream_error(provider, mock):
    mock.add("GET", API + "/files/file-1/content", status=206, body=b"a")
    with pytest.raises(UpstreamError):
        provider.content("file-1", "bytes=0-0")


def test_a_content_without_length_says_so(provider, mock):
    mock.add("GET", API + "/files/file-1/content", body=b"abc", auto_calculate_content_length=False)
    assert provider.content("file-1").length is None


# Inference


def infer(provider: Provider, operation: Operation = Operation.CHAT) -> tuple[Reply, bytes]:
    reply = provider.infer(operation, BODY, "m", Cancellation())
    try:
        return reply, b"".join(reply.chunks)
    finally:
        reply.close()


def test_body_and_answer_pass_through_byte_for_byte(provider, mock):
    answer = b'{ "id" : "chatcmpl-1",\n"n":1.50e0 }\n'
    mock.add(
        "POST",
        API + "/chat/completions",
        body=answer,
        headers={
            "x-request-id": "theirs",
            "set-cookie": "a=b",
            "openai-organization": "secret-org",
            "x-ratelimit-remaining-tokens": "9",
            "openai-processing-ms": "5",
        },
        content_type="application/json",
    )
    reply, body = infer(provider)
    assert (reply.status, body) == (200, answer)
    assert mock.calls[0].request.body == BODY
    assert mock.calls[0].request.headers["Content-Type"] == "application/json"
    assert reply.headers == {
        "Content-Type": "application/json",
        "x-ratelimit-remaining-tokens": "9",
        "openai-processing-ms": "5",
    }


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
def test_an_error_in_openais_envelope_passes_untouched(provider, mock, status):
    raw = b'{ "error": {"message":"no","type":"t","param":null,"code":"c","extra":[1]} }'
    mock.add(
        "POST",
        API + "/chat/completions",
        body=raw,
        status=status,
        headers={"Retry-After": "3"},
        content_type="application/json; charset=utf-8",
    )
    reply, body = infer(provider)
    assert (reply.status, body) == (status, raw)
    assert reply.headers["Retry-After"] == "3"


@pytest.mark.parametrize(
    "raw",
    [
        b"<html>Bad Gateway</html>",
        b'{"object":"error","message":"no","type":"t","param":null,"code":400}',
        b'{"error":{"message":"no","code":"DeploymentNotFound"}}',
        b'{"error":"no"}',
        b'{"error":{"message":"\\ud800"}}',
        b'{"detail":"no"}',
        b"[" * 100_000,
        b"",
        b'{"error":{"message":"no","type":"t","param":null,"code":5}}',
        b'{"error":{"message":"no"},"also":1}',
    ],
)
@pytest.mark.parametrize("status", [400, 502])
def test_any_other_error_is_put_into_openais_envelope(provider, mock, raw, status):
    mock.add("POST", API + "/chat/completions", body=raw, status=status, content_type="text/html")
    reply, body = infer(provider)
    assert reply.status == status
    assert reply.headers["Content-Type"] == "application/json"
    error = json.loads(body)["error"]
    assert isinstance(error["message"], str) and error["message"]
    assert isinstance(error["type"], str)
    for name in ("param", "code"):
        assert error[name] is None or isinstance(error[name], str)


def test_a_redirect_means_nothing_to_the_caller(provider, mock):
    mock.add("POST", API + "/chat/completions", status=307, headers={"Location": "http://thief/"})
    reply, body = infer(provider)
    assert reply.status == 502
    assert "Location" not in reply.headers
    assert json.loads(body)["error"]["type"] == "server_error"


def test_a_stream_is_one(provider, mock):
    events = b'data: {"a":1}\n\ndata: [DONE]\n\n'
    mock.add("POST", API + "/chat/completions", body=events, content_type="text/event-stream; x=y")
    reply, body = infer(provider)
    assert reply.is_event_stream
    assert body == events
