"""One id on OpenAI's and Google's models: the documentation's example, with the real client."""

import asyncio
import concurrent.futures
import gzip
import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.e2e.conftest import StartGateway
from tests.e2e.gateway import Gateway, Upstream, wait_until
from tests.e2e.google import BUCKET, GoogleUpstream

PDF = b"%PDF-1.7\n" + bytes(range(256)) * 40
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 10
TARGETS = "gpt-4o-mini-openai, gemini-2.0-flash"


@pytest.fixture(scope="module")
def google(tmp_path_factory) -> Iterator[GoogleUpstream]:
    with GoogleUpstream(tmp_path_factory.mktemp("google")) as running:
        yield running


@pytest.fixture(autouse=True)
def _calm(google: GoogleUpstream) -> Iterator[None]:
    yield
    google.control("vertex", clear=True, set={"token_seconds": 3599, "grant_delay": 0.0})
    google.control("studio", clear=True, set={"ahead": 0, "polls_until_active": 0})


def config(upstream: Upstream, google: GoogleUpstream, **general: Any) -> dict[str, Any]:
    account = upstream.account("openai-beside-google")
    return {
        "model_list": [
            {
                "model_name": "gpt-4o-mini-openai",
                "litellm_params": {"model": "openai/gpt-4o-mini", **account.params},
            },
            google.vertex("gemini-2.0-flash"),
            google.studio("studio"),
            google.vertex("gemini-no-bucket", gcs_bucket_name="nobodys-bucket"),
            google.vertex("gemini-embedding", "gemini-embedding-001"),
        ],
        "files_settings": [{"custom_llm_provider": "openai", **account.params}],
        "general_settings": general,
    }


@pytest.fixture(scope="module")
def gateway(upstream, google, start_gateway: StartGateway) -> Gateway:
    return start_gateway(config(upstream, google), worker=True)


@pytest.fixture(scope="module")
def keeping(upstream, google, start_gateway: StartGateway) -> Gateway:
    return start_gateway(config(upstream, google, keep_content=True, renew_ahead_seconds=0))


def upload(
    gateway: Gateway,
    content: bytes,
    *,
    targets: str = TARGETS,
    name: str = "a.pdf",
    kind: str = "application/pdf",
) -> str:
    file = gateway.client().files.create(
        file=(name, content, kind),
        purpose="user_data",
        extra_body={"target_model_names": targets},
    )
    return file.id


def message(file_id: str) -> Any:
    return [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is in it?"},
                {"type": "file", "file": {"file_id": file_id}},
            ],
        }
    ]


def seen(kind: str, content: bytes) -> str:
    """What the fake says that it has seen of a file."""
    return f"{kind}:{hashlib.sha256(content).hexdigest()}"


# The documentation's example


def test_one_id_in_chat_on_both_models(gateway: Gateway, google: GoogleUpstream):
    file_id = upload(gateway, PDF)
    client = gateway.client()
    for model in ("gpt-4o-mini-openai", "gemini-2.0-flash"):
        answer = client.chat.completions.create(model=model, messages=message(file_id))
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage and answer.usage.total_tokens > 0
        if model.startswith("gemini"):
            assert seen("application/pdf", PDF) in (answer.choices[0].message.content or "")
    objects = google.control("vertex")["objects"]
    digests = {o["sha256"]: name for name, o in objects.items()}
    assert digests[hashlib.sha256(PDF).hexdigest()].startswith(f"{BUCKET}/manifold/")


def test_the_same_as_a_stream(gateway: Gateway):
    file_id = upload(gateway, PDF)
    stream = gateway.client().chat.completions.create(
        model="gemini-2.0-flash",
        messages=message(file_id),
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert seen("application/pdf", PDF) in text
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage and chunks[-1].usage.total_tokens == 12
    assert len({c.id for c in chunks}) == 1


def test_the_same_asynchronously(gateway: Gateway):
    async def ask() -> str:
        async with gateway.async_client() as client:
            file = await client.files.create(
                file=("a.pdf", PDF, "application/pdf"),
                purpose="user_data",
                extra_body={"target_model_names": TARGETS},
            )
            answer = await client.chat.completions.create(
                model="gemini-2.0-flash", messages=message(file.id)
            )
            return answer.choices[0].message.content or ""

    assert seen("application/pdf", PDF) in asyncio.run(ask())


def test_a_third_model_at_ai_studio_has_it_too(gateway: Gateway):
    file_id = upload(gateway, PDF, targets=f"{TARGETS}, studio")
    answer = gateway.client().chat.completions.create(model="studio", messages=message(file_id))
    assert seen("application/pdf", PDF) in (answer.choices[0].message.content or "")
    shown = gateway.api("GET", f"/v1/files/{file_id}?include=copies").json()
    ends = {copy["model"]: copy["expires_at"] for copy in shown["copies"]}
    assert ends["studio"] == pytest.approx(time.time() + 48 * 3600, abs=60)
    assert ends["gemini-2.0-flash"] is None
    assert shown["expires_at"] is None, "the others have no end"
    assert gateway.client().files.delete(file_id).deleted


def test_tools_safety_and_errors_speak_openais_words(gateway: Gateway):
    client = gateway.client()
    tool: Any = {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }

    def ask(text: str, **more: Any) -> Any:
        return client.chat.completions.create(
            model="gemini-2.0-flash", messages=[{"role": "user", "content": text}], **more
        ).choices[0]

    called = ask("call it", tools=[tool])
    assert called.finish_reason == "tool_calls"
    [call] = called.message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Köln"}
    assert ask("blocked").finish_reason == "content_filter"
    with pytest.raises(openai.BadRequestError) as refused:
        ask("too long")
    assert "maximum number of tokens" in str(refused.value)
    with pytest.raises(openai.BadRequestError):
        ask("x", n=99)


def test_embeddings(gateway: Gateway):
    found = gateway.client().embeddings.create(model="studio", input=["a", "b"])
    assert len(found.data) == 2


# Bytes


@pytest.mark.parametrize(
    ("name", "kind", "content"),
    [
        ("every.bin", "application/octet-stream", bytes(range(256)) * 64),
        ("a.png", "image/png", PNG),
        ("a.pdf", "application/pdf", PDF),
        ("a.gz", "application/gzip", gzip.compress(PDF)),
        ("big.bin", "application/octet-stream", bytes(range(256)) * 80_000),
    ],
    ids=["every byte", "png", "pdf", "gzip", "several chunks"],
)
def test_every_byte_survives_the_bucket(gateway: Gateway, name: str, kind: str, content: bytes):
    file_id = upload(gateway, content, targets="gemini-2.0-flash", name=name, kind=kind)
    client = gateway.client()
    assert client.files.content(file_id).read() == content
    part = gateway.api("GET", f"/v1/files/{file_id}/content", headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, content[10:20])
    assert client.files.retrieve(file_id).bytes == len(content)
    assert client.files.delete(file_id).deleted


def test_ai_studio_gives_nothing_back_and_says_so(gateway: Gateway, keeping: Gateway):
    file_id = upload(gateway, PDF, targets="studio")
    with pytest.raises(openai.BadRequestError) as refused:
        gateway.client().files.content(file_id)
    assert "keep_content" in str(refused.value)
    kept = upload(keeping, PDF, targets="studio")
    assert keeping.client().files.content(kept).read() == PDF


def test_a_bucket_that_is_not_there_is_said_and_nothing_is_left(gateway: Gateway):
    with pytest.raises(openai.APIStatusError) as refused:
        upload(gateway, PDF, targets="gemini-no-bucket")
    assert refused.value.status_code == 404
    assert "bucket" in str(refused.value)


# AI Studio's own time


def test_a_chat_waits_until_the_file_is_processed(gateway: Gateway, google: GoogleUpstream):
    google.control("studio", set={"polls_until_active": 2})
    file_id = upload(gateway, PDF, targets="studio")
    assert gateway.client().files.retrieve(file_id).status == "uploaded"
    answer = gateway.client().chat.completions.create(model="studio", messages=message(file_id))
    assert seen("application/pdf", PDF) in (answer.choices[0].message.content or "")


def two_days_later(gateway: Gateway, google: GoogleUpstream) -> None:
    """Every copy that has an end is past it, here and at Google."""
    google.control("studio", set={"ahead": 49})
    with sqlite3.connect(gateway.data_dir / "manifold.db", timeout=10) as database:
        database.execute(
            "UPDATE copies SET expires_at = '2026-01-01 00:00:00.000000' "
            "WHERE expires_at IS NOT NULL"
        )
    database.close()


def test_after_48_hours_the_next_chat_works_when_the_content_is_kept(
    keeping: Gateway, google: GoogleUpstream
):
    file_id = upload(keeping, PDF, targets="studio")
    two_days_later(keeping, google)
    google.control("studio", forget=True)

    def ask(_: int) -> str:
        answer = keeping.client().chat.completions.create(model="studio", messages=message(file_id))
        return answer.choices[0].message.content or ""

    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(ask, range(20)))
    assert all(seen("application/pdf", PDF) in answer for answer in answers)
    begun = [r for r in google.control("studio")["requests"] if r[1].startswith("/upload/")]
    assert len(begun) == 1, "twenty chats, one upload"


def test_after_48_hours_it_says_so_when_nobody_has_the_content(
    gateway: Gateway, google: GoogleUpstream
):
    file_id = upload(gateway, PDF, targets="studio")
    two_days_later(gateway, google)
    with pytest.raises(openai.BadRequestError) as refused:
        gateway.client().chat.completions.create(model="studio", messages=message(file_id))
    assert refused.value.code == "file_expired"
    shown = gateway.client().files.retrieve(file_id)
    assert (shown.status, (shown.status_details or "").split(":")[0]) == ("error", "expired")


def test_another_holder_gives_the_content(gateway: Gateway, google: GoogleUpstream):
    file_id = upload(gateway, PDF, targets="gemini-2.0-flash, studio")
    two_days_later(gateway, google)
    answer = gateway.client().chat.completions.create(model="studio", messages=message(file_id))
    assert seen("application/pdf", PDF) in (answer.choices[0].message.content or "")


# Tokens


def test_many_requests_at_once_need_one_token(upstream, google, start_gateway: StartGateway):
    fresh = start_gateway(config(upstream, google), workers=1, threads=32)
    google.control("vertex", set={"grant_delay": 0.3})
    before = google.control("vertex")["grants"]

    def ask(_: int) -> int:
        body = {"model": "gemini-2.0-flash", "messages": [{"role": "user", "content": "hello"}]}
        return fresh.api("POST", "/v1/chat/completions", json=body).status_code

    with concurrent.futures.ThreadPoolExecutor(30) as pool:
        assert set(pool.map(ask, range(30))) == {200}
    assert google.control("vertex")["grants"] == before + 1


def test_a_token_that_ends_during_a_long_upload_is_replaced(
    upstream, google, start_gateway: StartGateway
):
    fresh = start_gateway(config(upstream, google), workers=1)
    # Google's tokens live for an hour; these are over before the next chunk is sent.
    google.control("vertex", set={"token_seconds": 1, "grant_delay": 1.0})
    before = google.control("vertex")["grants"]
    row = {"custom_id": "", "method": "POST", "url": "/v1/chat/completions"}
    body = {"model": "gemini-2.0-flash", "messages": [{"role": "user", "content": "x" * 100_000}]}
    rows = [json.dumps({**row, "custom_id": str(n), "body": body}) for n in range(200)]
    file = fresh.client().files.create(
        file=("in.jsonl", "\n".join(rows).encode()),
        purpose="batch",
        extra_body={"target_model_names": "gemini-2.0-flash"},
    )
    assert file.status == "processed"
    assert google.control("vertex")["grants"] > before + 2


# Batches


def test_a_thousand_rows_in_any_order_come_back_under_their_ids(
    gateway: Gateway, google: GoogleUpstream
):
    client = gateway.client()
    ids = [f"Zeile {n} / ü-{'x' * (n % 90)}" for n in range(1000)]
    bad = set(ids[100:1000:200])
    assert len(bad) == 5
    rows = []
    for custom_id in ids:
        text = "fail" if custom_id in bad else f"row {ids.index(custom_id)}"
        body = {"model": "gemini-2.0-flash", "messages": [{"role": "user", "content": text}]}
        row = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions"}
        rows.append(json.dumps({**row, "body": body}))
    content = "\n".join(rows).encode() + b"\n"
    file = client.files.create(
        file=("in.jsonl", content),
        purpose="batch",
        extra_body={"target_model_names": "gemini-2.0-flash"},
    )
    assert client.files.content(file.id).read() == content
    before = gateway.rss_bytes()
    batch = client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"whose": "ours"},
    )
    assert (batch.input_file_id, batch.metadata) == (file.id, {"whose": "ours"})
    ended = wait_until(
        lambda: (b := client.batches.retrieve(batch.id)).status == "completed" and b, timeout=30
    )
    assert ended and ended.request_counts
    assert (ended.request_counts.total, ended.request_counts.failed) == (1000, 5)
    output = client.files.content(ended.output_file_id or "").read().splitlines()
    errors = client.files.content(ended.error_file_id or "").read().splitlines()
    found = {json.loads(line)["custom_id"]: json.loads(line) for line in output}
    assert set(found) == set(ids) - bad
    first = found[ids[0]]["response"]
    assert first["status_code"] == 200
    assert first["body"]["choices"][0]["message"]["content"] == "saw row 0"
    assert {json.loads(line)["custom_id"] for line in errors} == bad
    shown = client.files.retrieve(ended.output_file_id or "")
    assert (shown.purpose, shown.bytes) == ("batch_output", sum(len(x) + 1 for x in output))
    assert gateway.rss_bytes() - before < 32 * 1024 * 1024


def test_a_batch_at_ai_studio(gateway: Gateway):
    client = gateway.client()
    body = {"model": "studio", "messages": [{"role": "user", "content": "hello"}]}
    row = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    file = client.files.create(
        file=("in.jsonl", json.dumps(row).encode()),
        purpose="batch",
        extra_body={"target_model_names": "studio"},
    )
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    ended = wait_until(
        lambda: (b := client.batches.retrieve(batch.id)).status == "completed" and b, timeout=30
    )
    assert ended
    [line] = client.files.content(ended.output_file_id or "").read().splitlines()
    assert json.loads(line)["response"]["body"]["choices"][0]["message"]["content"] == "saw hello"


def test_a_row_that_google_cannot_do_is_refused_with_its_line_and_nothing_is_sent(
    gateway: Gateway, google: GoogleUpstream
):
    google.control("vertex", forget=True)
    good = {"model": "gemini-2.0-flash", "messages": [{"role": "user", "content": "x"}]}
    row = {"method": "POST", "url": "/v1/chat/completions"}
    rows = [
        {**row, "custom_id": "1", "body": good},
        {**row, "custom_id": "2", "body": {**good, "n": 99}},
    ]
    with pytest.raises(openai.BadRequestError) as refused:
        gateway.client().files.create(
            file=("in.jsonl", "\n".join(map(json.dumps, rows)).encode()),
            purpose="batch",
            extra_body={"target_model_names": "gemini-2.0-flash"},
        )
    assert "line 2" in str(refused.value)
    assert google.control("vertex")["requests"] == []


# Secrets


@pytest.mark.parametrize("model", ["gemini-2.0-flash", "studio"])
def test_no_secret_is_in_a_log_an_error_or_an_answer_whatever_fails(
    upstream, google, start_gateway: StartGateway, model: str
):
    of = "vertex" if model.startswith("gemini") else "studio"
    fresh = start_gateway(config(upstream, google), workers=1, worker=True)
    secrets = [
        google.studio_key,
        *(line for line in google.private_key.splitlines() if len(line) > 40),
        "private_key",
        "ya29.",
    ]
    file_id = upload(fresh, PDF, targets=model)
    said = []

    def everything() -> None:
        body = {"model": model, "messages": message(file_id)}
        said.append(fresh.api("POST", "/v1/chat/completions", json=body).text)
        said.append(fresh.api("POST", "/v1/chat/completions", json={**body, "stream": True}).text)
        said.append(fresh.api("POST", "/v1/embeddings", json={"model": model, "input": "x"}).text)
        said.append(fresh.api("GET", f"/v1/files/{file_id}/content").text)
        said.append(fresh.api("GET", f"/v1/files?model={model}").text)
        form = {"purpose": (None, "user_data"), "target_model_names": (None, model)}
        files = {**form, "file": ("a.pdf", PDF, "application/pdf")}
        said.append(fresh.api("POST", "/v1/files", files=files).text)

    # Some services repeat the credential that they were sent; the other one's they do not have.
    own = google.studio_key if of == "studio" else "none"
    echo = {"error": {"code": 400, "message": f"key {own}", "status": "X"}}
    for failure in (
        {"status": 400, "body": echo},
        {"status": 401, "body": echo},
        {"status": 403, "body": echo},
        {"status": 404, "body": echo},
        {"status": 503, "body": echo},
        {"status": 200, "body": f"<html>{own}</html>"},
        {"status": 302, "headers": {"Location": f"http://127.0.0.1:9/?key={own}"}},
        {"status": 0},
    ):
        google.control(of, fail={**failure, "times": 40})
        everything()
        google.control(of, clear=True)
    google.control("vertex", set={"tokens": {}})
    everything()
    text = "\n".join(said) + fresh.log_text()
    if fresh.worker is not None:
        text += fresh.worker.log_text()
    assert len(said) == 54
    assert [secret[:12] for secret in secrets if secret in text] == []
