"""Gemini through AI Studio: the provider contract, resumed uploads, expiry, batches, secrets."""

import datetime as dt
import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import responses
from marshmallow import ValidationError

from app.errors import (
    ContentNotAvailable,
    InvalidRequest,
    NotFound,
    NotSupported,
    UpstreamAuthFailed,
    UpstreamError,
    UpstreamRejected,
)
from app.providers.gemini import Gemini, GeminiParams
from app.providers.protocol import Attempt, BatchRequest, Operation
from app.providers.wire import jsonl
from app.transfers import AttachedFile, Cancellation
from tests.builders import make_deployment, make_place, make_upload
from tests.google_fake.studio import HOST, Studio
from tests.providers.contract import EVERY_BYTE, FilesContract, read

KEY = "AIza-a-secret-key"
NAME = "0123456789abcdef0123456789abcdef"


def make(**params: Any) -> Gemini:
    deployment = make_deployment(
        provider="gemini",
        upstream_model="gemini-2.0-flash",
        params={"api_key": KEY, **params},
        max_retries=1,
    )
    return Gemini(deployment, make_place())


@pytest.fixture
def studio() -> Iterator[Studio]:
    """AI Studio behind the library `responses`."""
    fake = Studio(KEY)

    def answer(request):
        where = urlsplit(request.url)
        body = request.body
        content = body if isinstance(body, bytes) else (body.read() if body else b"")
        headers = dict(request.headers)
        return fake.handle(request.method, where.path, where.query, headers, content)

    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        for method in ("GET", "POST", "DELETE"):
            mock.add_callback(method, re.compile(re.escape(HOST) + "/.*"), answer)
        yield fake


@pytest.fixture
def provider(studio) -> Gemini:
    return make()


class TestContract(FilesContract):
    unknown_id = NAME
    gives_content = False
    keeps_purposes = False
    expires = True
    gives_ranges = False


def chat(provider: Gemini, *parts: dict[str, Any], files=None, stream=False) -> bytes:
    content = [{"type": "text", "text": "look"}, *parts]
    body = {
        "model": "gemini-2.0-flash",
        "messages": [{"role": "user", "content": content}],
        **({"stream": True} if stream else {}),
    }
    reply = provider.infer(
        Operation.CHAT,
        json.dumps(body).encode(),
        "gemini-2.0-flash",
        Cancellation(),
        files or {},
    )
    text = b"".join(reply.chunks)
    reply.close()
    return text


# Files


def test_a_file_of_several_pieces_arrives_byte_for_byte(provider, studio):
    content = EVERY_BYTE * 15_000
    stored = provider.upload(make_upload(content))
    assert studio.files[stored.id].content == content
    pieces = [said for _, path, said in studio.requests if path.startswith("/session/")]
    assert [said["x-goog-upload-offset"] for said in pieces] == ["0", "8388608", "16777216"]


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_an_upload_whose_piece_failed_goes_on_where_it_stood(provider, studio, status):
    studio.fail((status, {}, b"{}"), path="/session/", times=2)
    content = EVERY_BYTE * 8_000
    stored = provider.upload(make_upload(content))
    assert studio.files[stored.id].content == content


def test_an_upload_that_google_refuses_says_so(provider, studio):
    quota = {"error": {"code": 429, "message": "quota", "status": "RESOURCE_EXHAUSTED"}}
    studio.fail((429, {}, json.dumps(quota).encode()), path="/upload/", times=9)
    with pytest.raises(UpstreamRejected, match="quota") as refused:
        provider.upload(make_upload())
    assert refused.value.status == 429


def test_what_an_attempt_has_stored_is_known_by_its_key(provider):
    upload = make_upload(b"content")
    keyed = upload.__class__(**{**vars(upload), "key": NAME})
    assert list(provider.attempted(Attempt(NAME, "f", "user_data", 7, 0))) == []
    stored = provider.upload(keyed)
    assert stored.id == NAME
    [found] = provider.attempted(Attempt(NAME, "f", "user_data", 7, 0))
    assert found.id == NAME
    assert provider.upload(keyed).id == NAME, "its answer was lost: it is ours"
    other = make_upload(b"other")
    with pytest.raises(UpstreamError):
        provider.upload(other.__class__(**{**vars(other), "key": NAME}))


def test_the_state_is_told_in_openais_words(provider, studio):
    studio.polls_until_active = 1
    stored = provider.upload(make_upload())
    assert stored.status == "uploaded"
    assert provider.retrieve(stored.id).status == "uploaded"
    assert provider.retrieve(stored.id).status == "processed"
    studio.fails = True
    failed = provider.retrieve(provider.upload(make_upload()).id)
    failed = provider.retrieve(failed.id)
    assert (failed.status, failed.status_details) == ("error", "the video has no frames")


def test_a_file_ends_after_48_hours(provider, studio):
    stored = provider.upload(make_upload())
    assert stored.expires_at == pytest.approx(stored.created_at + 48 * 3600, abs=2)
    studio.ahead = dt.timedelta(hours=49)
    with pytest.raises(NotFound):
        provider.retrieve(stored.id)
    provider.delete(stored.id)


@pytest.mark.parametrize("form", ["files/{}", HOST + "/v1beta/files/{}"])
def test_an_admins_address_of_a_file_is_understood(provider, form):
    stored = provider.upload(make_upload())
    assert provider.retrieve(form.format(stored.id)).id == stored.id


@pytest.mark.parametrize(
    "address",
    ["https://evil.example/v1beta/files/a", "files/../x", "a/b", "", HOST + "/v1beta/models/x"],
)
def test_any_other_address_is_nobodys_file(provider, studio, address):
    with pytest.raises(NotFound):
        provider.retrieve(address)
    assert [path for _, path, _ in studio.requests if "batches" not in path] == []


def test_a_download_is_refused_with_what_to_do(provider):
    stored = provider.upload(make_upload())
    with pytest.raises(ContentNotAvailable, match="keep_content") as refused:
        provider.content(stored.id)
    assert refused.value.status == 400


# Chat


def test_a_chat_names_the_file_and_its_type(provider):
    stored = provider.upload(make_upload(b"%PDF", mime_type="application/pdf"))
    part = {"type": "file", "file": {"file_id": stored.id}}
    known = {stored.id: AttachedFile("a.pdf", "application/pdf")}
    assert b"application/pdf:" in chat(provider, part, files=known)
    events = chat(provider, part, files=known, stream=True)
    assert events.rstrip().endswith(b"data: [DONE]")
    assert b"application/pdf:" in chat(provider, part, files={stored.id: AttachedFile("", "")})


def test_a_file_that_is_nobodys_here_is_refused_before_google_is_asked(provider, studio):
    stored = provider.upload(make_upload(mime_type="application/pdf"))
    before = len(studio.requests)
    for file_id in (stored.id, f"{HOST}/v1beta/files/{stored.id}"):
        with pytest.raises(InvalidRequest):
            chat(provider, {"type": "file", "file": {"file_id": file_id}})
    assert len(studio.requests) == before


def test_the_surface_for_openais_clients_is_used_where_it_is_wanted(studio):
    provider = make(openai_compatible=True)
    assert b"by the OpenAI surface" in chat(provider)
    stored = provider.upload(make_upload(b"%PDF", mime_type="application/pdf"))
    part = {"type": "file", "file": {"file_id": stored.id}}
    known = {stored.id: AttachedFile("a.pdf", "application/pdf")}
    assert b"application/pdf:" in chat(provider, part, files=known), "natively, for it has a file"


def test_embeddings(provider):
    body = json.dumps({"model": "m", "input": ["a", "b"]}).encode()
    reply = provider.infer(Operation.EMBEDDINGS, body, "gemini-embedding-001", Cancellation())
    found = json.loads(b"".join(reply.chunks))
    assert [each["embedding"] for each in found["data"]] == [[0.0, 1.0], [1.0, 1.0]]


# Secrets


def test_the_key_is_in_a_header_and_in_no_address_and_no_error(studio, caplog):
    provider = make()
    stored = provider.upload(make_upload())
    chat(provider)
    assert all(KEY not in path for _, path, _ in studio.requests)
    wrong = make(api_key="AIza-another-secret")
    for call in (
        lambda: wrong.upload(make_upload()),
        lambda: list(wrong.files()),
        lambda: wrong.create_batch(
            BatchRequest(stored.id, "/v1/chat/completions", "24h", model="m")
        ),
    ):
        with pytest.raises(UpstreamAuthFailed) as refused:
            call()
        assert "another-secret" not in str(refused.value)
    reply = wrong.infer(
        Operation.CHAT,
        json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}]}).encode(),
        "m",
        Cancellation(),
    )
    assert reply.status == 401
    assert b"another-secret" not in b"".join(reply.chunks)
    assert "secret" not in caplog.text


def test_a_key_comes_from_the_environment_too(monkeypatch):
    for name in ("GEMINI_API_KEY", "GOOGLE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValidationError):
        GeminiParams().load({})
    monkeypatch.setenv("GOOGLE_API_KEY", KEY)
    GeminiParams().load({})


@pytest.mark.parametrize(
    "base", [HOST, HOST + "/", HOST + "/v1beta", HOST + "/v1beta/openai", HOST + "/v1"]
)
def test_an_address_may_be_written_in_any_of_its_forms(studio, base):
    assert list(make(api_base=base).files()) == []


# Batches


def rows(*texts: str) -> bytes:
    lines = []
    for number, text in enumerate(texts):
        body = {"model": "m", "messages": [{"role": "user", "content": text}]}
        row = {"method": "POST", "url": "/v1/chat/completions", "body": body}
        lines.append(json.dumps({"custom_id": f"ü/{number}", **row}))
    return "\n".join(lines).encode()


def batch(provider: Gemini, studio: Studio, *texts: str):
    found = jsonl.rows(rows(*texts).splitlines(keepends=True))
    content = b"".join(provider.batch_rows(found, "gemini-2.0-flash"))
    stored = provider.upload(make_upload(content, purpose="batch"))
    request = BatchRequest(stored.id, "/v1/chat/completions", "24h", model="gemini-2.0-flash")
    return stored, provider.create_batch(request)


@pytest.mark.parametrize("inlined", [False, True], ids=["a file", "inlined"])
def test_a_batch_from_its_rows_to_its_two_files(provider, studio, inlined):
    studio.inlined = inlined
    studio.batch_polls = 2
    stored, made = batch(provider, studio, "a", "fail", "b")
    assert (made["status"], made["input_file_id"]) == ("validating", stored.id)
    assert provider.retrieve_batch(made["id"])["status"] == "in_progress"
    ended = provider.retrieve_batch(made["id"])
    assert ended["status"] == "completed"
    assert ended["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    for file_id, count in ((ended["output_file_id"], 2), (ended["error_file_id"], 1)):
        told = provider.retrieve(file_id)
        content = read(provider.content(file_id))
        assert (told.size, told.purpose) == (len(content), "batch_output")
        assert len(content.splitlines()) == count
    lines = [
        json.loads(line) for line in read(provider.content(ended["output_file_id"])).splitlines()
    ]
    assert [line["custom_id"] for line in lines] == ["ü/0", "ü/2"]
    assert lines[0]["response"]["body"]["choices"][0]["message"]["content"] == "saw a"
    [error] = read(provider.content(ended["error_file_id"])).splitlines()
    assert json.loads(error)["response"]["status_code"] == 400


def test_a_batch_is_listed_and_cancelled(provider, studio):
    studio.batch_polls = 5
    _, first = batch(provider, studio, "a")
    _, second = batch(provider, studio, "a")
    assert {each["id"] for each in provider.batches()} == {first["id"], second["id"]}
    assert provider.cancel_batch(first["id"])["status"] == "cancelled"
    assert provider.cancel_batch(first["id"])["status"] == "cancelled"
    for call in (provider.retrieve_batch, provider.cancel_batch):
        with pytest.raises(NotFound):
            call("unknown")
        with pytest.raises(NotFound):
            call("../x")


def test_a_batchs_files_that_are_not_there(provider, studio):
    _, made = batch(provider, studio, "a")
    ended = provider.retrieve_batch(made["id"])
    assert ended["error_file_id"] is None
    for file_id in (f"batch-{made['id']}-errors", "batch-unknown-output"):
        with pytest.raises(NotFound):
            provider.retrieve(file_id)
        with pytest.raises(NotFound):
            read(provider.content(file_id))
    provider.delete(ended["output_file_id"])
    provider.delete("batch-unknown-output")
    with pytest.raises(NotFound):
        read(provider.content(ended["output_file_id"]))


@pytest.mark.parametrize(
    "changes",
    [{"endpoint": "/v1/responses"}, {"model": ""}],
)
def test_what_it_cannot_do_is_refused_before_it_begins(provider, studio, changes):
    given = {"input_file_id": NAME, "endpoint": "/v1/chat/completions", "model": "m", **changes}
    with pytest.raises(NotSupported):
        provider.create_batch(BatchRequest(completion_window="24h", **given))
    assert studio.requests == []
