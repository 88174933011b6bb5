"""Azure OpenAI: addresses and versions, the kinds of credentials, and Azure's own answers."""

import datetime as dt
import json
import threading
import time
from typing import Any
from urllib.parse import parse_qs

import pytest
import requests
import responses
from marshmallow import ValidationError

from app.errors import InvalidRequest, NotFound, UpstreamAuthFailed, UpstreamRejected
from app.providers.azure import Azure
from app.providers.protocol import Operation
from app.transfers import Cancellation
from tests.builders import make_deployment, make_place, make_upload
from tests.providers.contract import BODY, FilesUpstream, HttpProviderContract

HOST = "https://res.openai.azure.com"
TENANT = "11111111-2222-3333-4444-555555555555"
AUTHORITY = f"https://login.microsoftonline.com/{TENANT}"
CLIENT = {"tenant_id": TENANT, "client_id": "client-1", "client_secret": "entra-secret"}
FILE = {"id": "file-1", "object": "file", "bytes": 3, "created_at": 1, "status": "processed"}
DAY = 24 * 3600


def make_azure(**params: Any) -> Azure:
    params = {"api_base": HOST, **({} if params.keys() & _CREDENTIALS else KEY), **params}
    return Azure(make_deployment(provider="azure", params=params), make_place())


_CREDENTIALS = {"api_key", "azure_ad_token", "tenant_id"}
KEY = {"api_key": "azure-key"}


@pytest.fixture
def mock():
    with responses.RequestsMock() as mock:
        yield mock


class AzureUpstream(FilesUpstream):
    """Answers as 2024-10-21 documents: 201 with Location, no cursor, errors without type."""

    def error_of(self, status: int, message: str) -> dict[str, Any]:
        return {"error": {"code": "notFound", "message": message, "innererror": None}}

    def job_of(self, job: dict[str, Any]) -> dict[str, Any]:
        when = dt.datetime.fromtimestamp(job["created_at"], dt.UTC).isoformat()
        status = {"validating_files": "created", "queued": "pending"}.get(job["status"])
        return {**job, "created_at": when, "status": status or job["status"].capitalize()}

    def _create(self, request: requests.PreparedRequest) -> tuple[int, dict[str, str], Any]:
        _, _, body = super()._create(request)
        return 201, {"Location": f"{self.base_url}/files/{body['id']}"}, body

    def _list(self, request: requests.PreparedRequest) -> tuple[int, dict[str, str], Any]:
        status, headers, answer = super()._list(request)
        return status, headers, {"object": "list", "data": answer["data"]}

    def _delete(
        self, request: requests.PreparedRequest, id: str
    ) -> tuple[int, dict[str, str], Any]:
        status, headers, answer = super()._delete(request, id)
        return (204, {}, b"") if status == 200 else (status, headers, answer)


class TestClassic(HttpProviderContract):
    base_url = HOST + "/openai"
    Upstream = AzureUpstream

    @pytest.fixture
    def provider(self):
        return make_azure()


class TestV1(HttpProviderContract):
    base_url = HOST + "/openai/v1"
    Upstream = AzureUpstream

    @pytest.fixture
    def provider(self):
        return make_azure(api_base=self.base_url + "/", azure_ad_token="entra-token")


class TestClientCredentials(HttpProviderContract):
    base_url = HOST + "/openai"
    Upstream = AzureUpstream

    @pytest.fixture
    def provider(self, upstream):
        with responses.RequestsMock() as entra:
            mock_entra(entra)
            provider = make_azure(**CLIENT)
            # The library keeps the token from here on.
            provider._credential()
        return provider


# Addresses


def infer(operation: Operation) -> Any:
    return lambda azure: azure.infer(operation, BODY, "m", Cancellation()).close()


OPERATIONS = {
    "upload": (lambda a: a.upload(make_upload()), "POST", "/files"),
    "retrieve": (lambda a: a.retrieve("file-1"), "GET", "/files/file-1"),
    "content": (lambda a: a.content("file-1").close(), "GET", "/files/file-1/content"),
    "delete": (lambda a: a.delete("file-1"), "DELETE", "/files/file-1"),
    "files": (lambda a: list(a.files()), "GET", "/files"),
    "responses": (infer(Operation.RESPONSES), "POST", "/responses"),
    "chat": (infer(Operation.CHAT), "POST", "/chat/completions"),
    "completions": (infer(Operation.COMPLETIONS), "POST", "/completions"),
    "embeddings": (infer(Operation.EMBEDDINGS), "POST", "/embeddings"),
}
IN_DEPLOYMENT = {"chat", "completions", "embeddings"}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    ("base", "version", "sent_base", "sent_version"),
    [
        ("", None, "/openai", "2024-10-21"),
        ("/", "2024-10-21", "/openai", "2024-10-21"),
        ("/openai", "2025-04-01-preview", "/openai", "2025-04-01-preview"),
        ("/openai/", "a&b", "/openai", "a&b"),
        ("/openai/v1", None, "/openai/v1", None),
        ("/openai/v1/", "2024-10-21", "/openai/v1", None),
        ("/openai/v1", "preview", "/openai/v1", "preview"),
        ("/openai/v1", "v1", "/openai/v1", "v1"),
        ("/apim/team-a/openai/v1", None, "/apim/team-a/openai/v1", None),
        ("/apim/team-a", None, "/apim/team-a/openai", "2024-10-21"),
    ],
)
def test_method_path_and_version(mock, operation, base, version, sent_base, sent_version):
    call, method, path = OPERATIONS[operation]
    if operation in IN_DEPLOYMENT and not sent_base.endswith("/v1"):
        path = f"/deployments/m{path}"
    mock.add(method, HOST + sent_base + path, json={**FILE, "data": []})
    call(make_azure(api_base=HOST + base, api_version=version))
    sent = mock.calls[0].request
    found, _, query = (sent.url or "").partition("?")
    assert (sent.method, found) == (method, HOST + sent_base + path)
    assert parse_qs(query).get("api-version") == ([sent_version] if sent_version else None)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("gpt-4o", "gpt-4o"),
        ("a/b", "a%2Fb"),
        ("../../files", "..%2F..%2Ffiles"),
        ("a?b#c", "a%3Fb%23c"),
        ("ä b", "%C3%A4%20b"),
    ],
)
def test_a_deployments_name_stays_in_its_place(mock, name, path):
    url = f"{HOST}/openai/deployments/{path}/chat/completions"
    mock.add("POST", url, json={})
    make_azure().infer(Operation.CHAT, BODY, name, Cancellation()).close()
    assert (mock.calls[0].request.url or "").partition("?")[0] == url


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_a_deployments_name_that_is_no_name_is_never_sent(name):
    with responses.RequestsMock(), pytest.raises(InvalidRequest):
        make_azure().infer(Operation.CHAT, BODY, name, Cancellation())


# Credentials


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    ("params", "header", "value", "absent"),
    [
        (KEY, "api-key", "azure-key", "Authorization"),
        ({"azure_ad_token": "entra-token"}, "Authorization", "Bearer entra-token", "api-key"),
        (CLIENT, "Authorization", "Bearer token-1", "api-key"),
        ({**CLIENT, **KEY}, "api-key", "azure-key", "Authorization"),
    ],
    ids=["key", "token", "client", "key wins"],
)
def test_every_operation_has_the_credential(operation, params, header, value, absent):
    call, method, path = OPERATIONS[operation]
    if operation in IN_DEPLOYMENT:
        path = f"/deployments/m{path}"
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        mock_entra(mock)
        mock.add(method, HOST + "/openai" + path, json={**FILE, "data": []})
        call(make_azure(**params))
        sent = mock.calls[len(mock.calls) - 1].request
    assert sent.headers[header] == value
    assert absent not in sent.headers


def mock_entra(mock: responses.RequestsMock, *tokens: dict[str, Any]) -> None:
    mock.add(
        "GET",
        f"{AUTHORITY}/v2.0/.well-known/openid-configuration",
        json={
            "token_endpoint": f"{AUTHORITY}/oauth2/v2.0/token",
            "authorization_endpoint": f"{AUTHORITY}/oauth2/v2.0/authorize",
            "issuer": f"{AUTHORITY}/v2.0",
        },
    )
    for token in tokens or ({"access_token": "token-1", "expires_in": 3600},):
        mock.add(
            "POST",
            f"{AUTHORITY}/oauth2/v2.0/token",
            json={"token_type": "Bearer", **token},
            status=400 if "error" in token else 200,
        )


def token_requests(mock: responses.RequestsMock) -> list[dict[str, list[str]]]:
    return [
        parse_qs(str(call.request.body))
        for call in mock.calls
        if (call.request.url or "").endswith("/oauth2/v2.0/token")
    ]


def test_a_token_is_asked_for_once_and_kept(mock):
    mock_entra(mock)
    mock.add("GET", HOST + "/openai/files/file-1", json=FILE)
    azure = make_azure(**CLIENT)
    azure.retrieve("file-1")
    azure.retrieve("file-1")
    (asked,) = token_requests(mock)
    assert asked["grant_type"] == ["client_credentials"]
    assert asked["client_id"] == ["client-1"]
    assert asked["client_secret"] == ["entra-secret"]
    assert asked["scope"] == ["https://cognitiveservices.azure.com/.default"]


def test_a_token_that_runs_out_is_renewed(mock):
    mock_entra(
        mock,
        {"access_token": "old", "expires_in": 1},
        {"access_token": "new", "expires_in": 3600},
    )
    mock.add("GET", HOST + "/openai/files/file-1", json=FILE)
    azure = make_azure(**CLIENT)
    azure.retrieve("file-1")
    azure.retrieve("file-1")
    azure.retrieve("file-1")
    sent = [c.request.headers["Authorization"] for c in mock.calls if "/files/" in c.request.url]
    assert sent == ["Bearer old", "Bearer new", "Bearer new"]


def test_threads_that_start_together_ask_for_one_token(mock):
    mock_entra(mock)
    azure = make_azure(**CLIENT)
    seen: list[str] = []
    threads = [
        threading.Thread(target=lambda: seen.append(azure._credential()["Authorization"]))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == ["Bearer token-1"] * 8
    assert len(token_requests(mock)) == 1


@pytest.mark.parametrize(
    "refusal",
    [
        {"error": "invalid_client", "error_description": "AADSTS7000215: entra-secret is wrong"},
        {"error": "unauthorized_client"},
        {},
    ],
    ids=["wrong secret", "unknown client", "no token"],
)
def test_a_refusal_of_entra_is_our_own_fault(refusal):
    with responses.RequestsMock() as mock:
        mock_entra(mock, refusal)
        azure = make_azure(**CLIENT)
        with pytest.raises(UpstreamAuthFailed) as failure:
            azure.retrieve("file-1")
    assert failure.value.status == 502
    assert failure.value.deployment == "deployment-1"
    assert "entra-secret" not in failure.value.message


@pytest.mark.parametrize(
    "answer",
    [
        {"status": 500},
        {"status": 400, "json": {"error": "invalid_tenant"}},
        {"status": 200, "body": "<html>"},
        {"status": 200, "json": []},
        {"body": requests.ConnectionError("gone")},
        {"body": requests.ReadTimeout("slow")},
    ],
    ids=["500", "no such tenant", "html", "list", "broken", "slow"],
)
@pytest.mark.parametrize("where", ["discovery", "token"])
def test_an_entra_that_does_not_work_is_our_own_fault(answer, where):
    discovery = f"{AUTHORITY}/v2.0/.well-known/openid-configuration"
    with responses.RequestsMock() as mock:
        if where == "discovery":
            mock.add("GET", discovery, **answer)
        else:
            mock.add("GET", discovery, json=DISCOVERED)
            mock.add("POST", f"{AUTHORITY}/oauth2/v2.0/token", **answer)
        azure = make_azure(**CLIENT)
        for call in (
            lambda: azure.retrieve("file-1"),
            lambda: azure.upload(make_upload()),
            lambda: azure.infer(Operation.CHAT, BODY, "m", Cancellation()),
        ):
            with pytest.raises(UpstreamAuthFailed):
                call()


DISCOVERED = {
    "token_endpoint": f"{AUTHORITY}/oauth2/v2.0/token",
    "authorization_endpoint": f"{AUTHORITY}/oauth2/v2.0/authorize",
    "issuer": f"{AUTHORITY}/v2.0",
}


def test_a_silent_entra_does_not_stop_everybody(monkeypatch):
    timeouts: list[Any] = []

    def request(self: Any, method: str, url: str, **options: Any) -> Any:
        timeouts.append(options.get("timeout"))
        raise requests.ReadTimeout("slow")

    monkeypatch.setattr(requests.Session, "request", request)
    with pytest.raises(UpstreamAuthFailed):
        make_azure(**CLIENT).retrieve("file-1")
    assert timeouts and all(timeout and timeout <= 60 for timeout in timeouts)


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"api_key": "k"}, "api_base"),
        ({"api_base": HOST}, "api_key"),
        ({"api_base": "res.openai.azure.com", "api_key": "k"}, "api_base"),
        ({"api_base": "https://evil#.openai.azure.com", "api_key": "k"}, "api_base"),
        ({"api_base": HOST, "api_key": "k\n"}, "api_key"),
        ({"api_base": HOST, "azure_ad_token": "t\n"}, "azure_ad_token"),
        ({"api_base": HOST, "tenant_id": "t", "client_id": "c"}, "tenant_id"),
        ({"api_base": HOST, "api_key": "k", "client_secret": "c"}, "tenant_id"),
        (
            {"api_base": HOST, "api_key": "k", "azure_authority_host": "login"},
            "azure_authority_host",
        ),
        ({"api_base": HOST, "api_key": "k", "organization": "o"}, "organization"),
    ],
    ids=repr,
)
def test_wrong_parameters_are_refused_at_the_start(params, field):
    with pytest.raises(ValidationError) as refusal:
        Azure(make_deployment(provider="azure", params=params), make_place())
    assert list(refusal.value.messages) == [field]


# Answers


def test_a_created_file_is_described_by_its_answer(mock):
    mock.add(
        "POST",
        HOST + "/openai/files",
        status=201,
        headers={"Location": HOST + "/openai/files/file-1"},
        json={**FILE, "bytes": None, "status": "pending", "created_at": "2023-11-14T22:13:20Z"},
    )
    stored = make_azure().upload(make_upload())
    assert (stored.id, stored.status, stored.size) == ("file-1", "uploaded", None)
    assert stored.created_at == 1_700_000_000


@pytest.mark.parametrize("answer", [{"status": 204}, {"json": {"deleted": True}}, {"status": 404}])
def test_any_answer_to_a_delete_is_taken(mock, answer):
    mock.add("DELETE", HOST + "/openai/files/file-1", **answer)
    make_azure().delete("file-1")


def test_a_list_without_pages_is_whole(mock):
    data = [{**FILE, "id": f"file-{n}"} for n in range(3)]
    mock.add("GET", HOST + "/openai/files", json={"object": "list", "data": data})
    assert [file.id for file in make_azure().files()] == ["file-0", "file-1", "file-2"]
    assert len(mock.calls) == 1


def test_an_error_has_a_type_and_keeps_its_code(mock):
    error = {"error": {"code": "invalidPayload", "message": "Invalid value for purpose."}}
    mock.add("POST", HOST + "/openai/files", status=400, json=error)
    with pytest.raises(UpstreamRejected) as failure:
        make_azure().upload(make_upload())
    assert failure.value.body()["error"] == {
        "message": "Invalid value for purpose.",
        "type": "invalid_request_error",
        "param": None,
        "code": "invalidPayload",
    }


def test_a_wrong_address_is_not_found(mock):
    error = {"error": {"code": "404", "message": "Resource not found"}}
    mock.add("GET", HOST + "/openai/files/file-1", status=404, json=error)
    with pytest.raises(NotFound, match="Resource not found"):
        make_azure().retrieve("file-1")


def test_a_content_filters_refusal_passes_untouched(mock):
    refusal = {
        "error": {
            "message": "filtered",
            "type": None,
            "param": "prompt",
            "code": "content_filter",
            "status": 400,
            "innererror": {"code": "ResponsibleAIPolicyViolation"},
        }
    }
    url = HOST + "/openai/deployments/m/chat/completions"
    mock.add("POST", url, status=400, json=refusal)
    reply = make_azure().infer(Operation.CHAT, BODY, "m", Cancellation())
    error = json.loads(b"".join(reply.chunks))["error"]
    assert error == {**refusal["error"], "type": "invalid_request_error"}


@pytest.mark.parametrize(
    ("seconds", "is_taken"),
    [(14 * DAY - 1, False), (14 * DAY, True), (30 * DAY, True), (30 * DAY + 1, False)],
)
def test_azures_bounds_of_an_expiry(seconds, is_taken):
    with responses.RequestsMock(assert_all_requests_are_fired=is_taken) as mock:
        mock.add("POST", HOST + "/openai/files", json=FILE)
        azure = make_azure()
        if is_taken:
            azure.upload(make_upload(expires_after_seconds=seconds))
            return
        with pytest.raises(InvalidRequest, match="1209600 to 2592000") as refusal:
            azure.upload(make_upload(expires_after_seconds=seconds))
        assert refusal.value.param == "expires_after[seconds]"
        assert not mock.calls


def test_opening_it_asks_nobody():
    with responses.RequestsMock():
        begun = time.monotonic()
        make_azure(**CLIENT)
    assert time.monotonic() - begun < 1
