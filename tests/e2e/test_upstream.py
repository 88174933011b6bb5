"""The fake upstream itself, asked by the real clients as a provider would be."""

import asyncio
import concurrent.futures
import hashlib
import json
import re
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import msal
import openai
import pytest
import requests

from tests.e2e.gateway import API_VERSION, Account, Upstream, seeds, wait_until

TXT = b"what a file holds\n" * 1000


def openai_client(account: Account, key: str | None = None, **options) -> Any:
    return openai.OpenAI(
        base_url=account.api_base,
        api_key=key or account.key,
        max_retries=0,
        http_client=openai.DefaultHttpxClient(trust_env=False),
        **options,
    )


def azure_client(account: Account, **options) -> Any:
    return openai.AzureOpenAI(
        azure_endpoint=account.upstream.url,
        api_version=API_VERSION,
        max_retries=0,
        http_client=openai.DefaultHttpxClient(trust_env=False),
        **{"api_key": account.key, **options},
    )


@pytest.fixture
def alpha(upstream: Upstream) -> Account:
    return upstream.account("alpha")


@pytest.fixture
def client(alpha: Account) -> Iterator[openai.OpenAI]:
    with closing(openai_client(alpha)) as client:
        yield client


@pytest.fixture
def azure(upstream: Upstream) -> Account:
    return upstream.account("blue", "azure")


def ask(file_id: str | None = None, text: str = "hello") -> Any:
    content: list[dict] = [{"type": "text", "text": text}]
    if file_id:
        content.append({"type": "file", "file": {"file_id": file_id}})
    return [{"role": "user", "content": content}]


def test_a_file_is_kept_listed_given_back_and_deleted(alpha, client):
    made = client.files.create(
        file=("a b.jsonl", TXT),
        purpose="batch",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )

    assert re.fullmatch("file-[0-9a-f]+", made.id)
    assert (made.filename, made.bytes, made.purpose) == ("a b.jsonl", len(TXT), "batch")
    assert (made.status, made.expires_at) == ("processed", made.created_at + 3600)
    assert [f.id for f in client.files.list()] == [made.id]
    assert client.files.retrieve(made.id) == made
    assert client.files.content(made.id).read() == TXT
    part = client.files.content(made.id, extra_headers={"Range": "bytes=5-9"})
    assert (part.response.status_code, part.read()) == (206, TXT[5:10])
    [stored] = alpha.files()
    assert stored["sha256"] == hashlib.sha256(TXT).hexdigest()
    assert client.files.delete(made.id).deleted
    assert alpha.files() == []
    with pytest.raises(openai.NotFoundError, match=f"No such File object: {made.id}") as error:
        client.files.retrieve(made.id)
    assert (error.value.param, error.value.type) == ("id", "invalid_request_error")


def test_every_request_is_remembered(alpha, client):
    client.files.create(file=("a.txt", b"12345", "text/x-own"), purpose="user_data")
    client.chat.completions.create(model="gpt-4o", messages=ask(), extra_headers={"X-Own": "a"})

    upload, chat = alpha.requests()
    assert (upload.method, upload.path, upload.status) == ("POST", "/v1/files", 200)
    assert upload.form == {"purpose": "user_data"}
    assert upload.fields == [["purpose", "user_data"], ["file", None]]
    assert upload.file == {
        "field": "file",
        "filename": "a.txt",
        "content_type": "text/x-own",
        "size": 5,
        "sha256": hashlib.sha256(b"12345").hexdigest(),
    }
    assert upload.headers["authorization"] == f"Bearer {alpha.key}"
    assert (chat.json["model"], json.loads(chat.text)) == ("gpt-4o", chat.json)
    assert chat.headers["x-own"] == "a"
    assert chat.done
    assert upload.m_end < chat.m_start
    assert not (upload.hung_up or chat.hung_up or chat.unexpected)
    assert chat.connection == upload.connection


def test_accounts_know_nothing_of_each_other(upstream, alpha, client):
    beta = upstream.account("beta")
    made = client.files.create(file=("a.txt", b"x"), purpose="user_data")

    with closing(openai_client(beta)) as other:
        assert list(other.files.list()) == []
        for call in (other.files.retrieve, other.files.content, other.files.delete):
            with pytest.raises(openai.NotFoundError):
                call(made.id)
        with pytest.raises(openai.BadRequestError, match="No such File object") as error:
            other.chat.completions.create(model="gpt-4o", messages=ask(made.id))
        assert error.value.param == "messages[0].content[1].file.file_id"
    with closing(openai_client(alpha, key="sk-wrong")) as stranger:
        with pytest.raises(openai.AuthenticationError) as refused:
            stranger.files.list()
        assert refused.value.code == "invalid_api_key"
    assert [r.account for r in upstream.requests()][-1] is None


def test_lists_come_in_pages(alpha, client):
    ids = [client.files.create(file=(f"{n}", b"x"), purpose="user_data").id for n in range(5)]

    page = client.files.list(limit=2)
    assert (page.has_more, [f.id for f in page.data]) == (True, ids[:2:-1])
    assert [f.id for f in client.files.list(limit=2)] == ids[::-1]
    assert [f.id for f in client.files.list(order="asc", after=ids[1])] == ids[2:]
    assert list(client.files.list(purpose="batch")) == []
    with alpha.changed(page_size=3):
        assert len(client.files.list().data) == 3


def test_uploads_are_refused_as_openai_does(client):
    with pytest.raises(openai.BadRequestError, match=r"Must be \.jsonl"):
        client.files.create(file=("a.txt", b"x"), purpose="batch")
    with pytest.raises(openai.BadRequestError) as error:
        client.files.create(file=("a.txt", b"x"), purpose="nonsense")
    assert error.value.param == "purpose"
    made = client.files.create(file=("a.txt", b"x"), purpose="user_data")
    with pytest.raises(openai.BadRequestError, match="Not allowed to download"):
        client.files.content(made.id)


def test_chat_echoes_what_it_was_sent(alpha, client):
    made = client.files.create(file=("a.pdf", b"x"), purpose="user_data")

    whole = client.chat.completions.create(model="gpt-4o", messages=ask(made.id))
    events = list(
        client.chat.completions.create(
            model="gpt-4o",
            messages=ask(made.id),
            stream=True,
            stream_options={"include_usage": True},
        )
    )

    echo = {
        "account": "alpha",
        "kind": "openai",
        "model": "gpt-4o",
        "deployment": None,
        "file_ids": [made.id],
        "filenames": ["a.pdf"],
    }
    assert json.loads(whole.choices[0].message.content) == echo
    text = "".join(e.choices[0].delta.content or "" for e in events if e.choices)
    assert json.loads(text) == echo
    assert events[-1].usage.total_tokens > 0
    assert len({e.id for e in events}) == 1


def test_a_stream_takes_the_time_it_was_told(alpha, client):
    with alpha.changed(chunks=5, chunk_delay_s=0.02):
        begun = time.monotonic()
        events = list(client.chat.completions.create(model="gpt-4o", messages=ask(), stream=True))
    assert len(events) == 7
    assert time.monotonic() - begun > 0.1


def test_responses_completions_and_embeddings(alpha, client):
    made = client.files.create(file=("a.pdf", b"x"), purpose="user_data")
    told = [{"role": "user", "content": [{"type": "input_file", "file_id": made.id}]}]

    whole = client.responses.create(model="gpt-4o", input=told)
    assert json.loads(whole.output_text)["file_ids"] == [made.id]
    events = list(client.responses.create(model="gpt-4o", input=told, stream=True))
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    assert json.loads(events[-1].response.output_text)["file_ids"] == [made.id]
    with pytest.raises(openai.NotFoundError, match="No such File object: file-none"):
        client.responses.create(
            model="gpt-4o",
            input="x",
            tools=[
                {
                    "type": "code_interpreter",
                    "container": {"type": "auto", "file_ids": ["file-none"]},
                }
            ],
        )
    done = client.completions.create(model="gpt-4o", prompt="x")
    assert json.loads(done.choices[0].text)["account"] == "alpha"
    pieces = client.completions.create(model="gpt-4o", prompt="x", stream=True)
    assert json.loads("".join(p.choices[0].text for p in pieces))["account"] == "alpha"
    vectors = client.embeddings.create(model="e", input=["a", "b"])
    floats = client.embeddings.create(model="e", input="a", encoding_format="float")
    assert vectors.data[0].embedding == floats.data[0].embedding
    assert "gpt-4o" in [m.id for m in client.models.list()]


def test_faults_come_when_told_and_go(alpha, client):
    alpha.fail(
        path_prefix="/v1/files",
        method="POST",
        skip=1,
        times=1,
        status=429,
        body={"error": {"message": "slow down", "code": "rate_limit_exceeded"}},
        headers={"Retry-After": "7"},
    )

    client.files.create(file=("a", b"x"), purpose="user_data")
    with pytest.raises(openai.RateLimitError) as error:
        client.files.create(file=("a", b"x"), purpose="user_data")
    client.files.create(file=("a", b"x"), purpose="user_data")

    assert error.value.response.headers["retry-after"] == "7"
    assert error.value.code == "rate_limit_exceeded"
    assert len(alpha.files()) == 2
    assert [r.fault for r in alpha.uploads()] == [False, True, False]


def test_a_stored_file_can_lose_its_answer(alpha, client):
    alpha.fail(close="before_body", handle=True, times=1)
    with pytest.raises(openai.APIConnectionError):
        client.files.create(file=("a", b"x"), purpose="user_data")
    alpha.fail(close="before_body", times=1)
    with pytest.raises(openai.APIConnectionError):
        client.files.create(file=("b", b"x"), purpose="user_data")
    assert [f["filename"] for f in alpha.files()] == ["a"]


def test_connections_break_where_told(alpha, client):
    made = client.files.create(file=("a.jsonl", TXT), purpose="batch")
    url, headers = f"{alpha.api_base}/files", {"Authorization": f"Bearer {alpha.key}"}
    alpha.fail(close="mid_body", after_bytes=100, times=1, method="GET")
    with requests.get(f"{url}/{made.id}/content", headers=headers, stream=True) as answer:
        assert answer.headers["Content-Length"] == str(len(TXT))
        assert answer.raw.read(100) == TXT[:100]
        with pytest.raises(Exception, match=r"IncompleteRead|broken"):
            answer.raw.read(1)
    alpha.fail(close="mid_body", after_bytes=300, times=1)
    with pytest.raises(openai.APIConnectionError):
        list(client.chat.completions.create(model="gpt-4o", messages=ask(), stream=True))
    alpha.fail(close="mid_request", after_bytes=1000, times=1)
    with pytest.raises(openai.APIConnectionError):
        client.files.create(file=("b.jsonl", TXT * 1000), purpose="batch")
    alpha.fail(early=True, status=413, body="<html>too large</html>", times=1)
    assert requests.post(url, headers=headers, data=b"x" * 10).status_code == 413
    assert len(alpha.files()) == 1


def test_delays_and_hanging_end_when_the_client_gives_up(alpha, client):
    alpha.fail(hang=True, times=1)
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.1).models.list()
    wait_until(lambda: alpha.requests()[0].hung_up)

    alpha.fail(delay_s=0.1, times=1)
    begun = time.monotonic()
    client.models.list()
    assert time.monotonic() - begun > 0.1

    with (
        alpha.changed(chunk_delay_s=5),
        client.chat.completions.create(model="gpt-4o", messages=ask(), stream=True) as stream,
    ):
        next(stream)
    wait_until(lambda: alpha.requests("/v1/chat")[0].hung_up)


def test_uploads_at_the_same_time_are_seen_to_overlap(alpha, client):
    with (
        alpha.changed(upload_delay_s=0.1),
        concurrent.futures.ThreadPoolExecutor(2) as pool,
    ):
        for upload in [
            pool.submit(client.files.create, file=("a", b"x"), purpose="user_data")
            for _ in range(2)
        ]:
            upload.result()
    first, second = alpha.uploads()
    assert first.overlaps(second)


def test_a_chunked_upload_without_known_length_arrives(alpha):
    async def upload() -> None:
        async with openai.AsyncOpenAI(
            base_url=alpha.api_base,
            api_key=alpha.key,
            http_client=openai.DefaultAsyncHttpxClient(trust_env=False),
        ) as client:
            await client.files.create(file=("a", TXT), purpose="user_data")

    asyncio.run(upload())

    def form() -> Iterator[bytes]:
        yield b'--B\r\nContent-Disposition: form-data; name="file"; filename="c"\r\n\r\n'
        for n in range(0, len(TXT), 100):
            yield TXT[n : n + 100]
        yield b'\r\n--B\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nvision'
        yield b"\r\n--B--\r\n"

    answer = requests.post(
        f"{alpha.api_base}/files",
        data=form(),
        headers={
            "Authorization": f"Bearer {alpha.key}",
            "Content-Type": "multipart/form-data; boundary=B",
        },
    )
    assert answer.status_code == 200
    assert alpha.requests()[1].headers["transfer-encoding"] == "chunked"
    assert [f["size"] for f in alpha.files()] == [len(TXT)] * 2


def test_azure_files_wait_before_they_are_ready(upstream, azure):
    with azure.changed(polls_until_processed=1), closing(azure_client(azure)) as client:
        raw = client.files.with_raw_response.create(file=("a.jsonl", TXT), purpose="batch")
        made = raw.parse()
        assert raw.status_code == 201
        assert raw.headers["location"] == (
            f"{upstream.url}/openai/files/{made.id}?api-version={API_VERSION}"
        )
        assert (made.status, made.bytes) == ("pending", None)
        assert client.files.retrieve(made.id).status == "pending"
        assert client.files.retrieve(made.id).status == "processed"
        page = client.files.with_raw_response.list(limit=1).http_response.json()
        assert set(page) == {"object", "data"}
        assert client.files.content(made.id).read() == TXT
        with pytest.raises(openai.BadRequestError) as error:
            client.files.create(file=("a", b"x"), purpose="user_data")
        assert error.value.body == {
            "code": "invalidPayload",
            "message": "Invalid value for purpose.",
        }
        assert client.files.delete(made.id).deleted
    with azure.changed(delete_status=204), closing(azure_client(azure)) as client:
        made = client.files.create(file=("a.jsonl", TXT), purpose="batch")
        assert client.files.with_raw_response.delete(made.id).status_code == 204
    assert not upstream.unexpected()


def test_azure_wants_a_version_and_knows_its_deployments(azure):
    with azure.changed(models=["here"]), closing(azure_client(azure)) as client:
        events = list(client.chat.completions.create(model="here", messages=ask(), stream=True))
        assert events[0].choices == []
        text = "".join(e.choices[0].delta.content or "" for e in events if e.choices)
        assert json.loads(text)["deployment"] == "here"
        with pytest.raises(openai.NotFoundError) as error:
            client.chat.completions.create(model="elsewhere", messages=ask())
        assert error.value.code == "DeploymentNotFound"
    url = f"{azure.upstream.url}/openai"
    for path, status in [("/files", 404), ("/v1/files", 200), ("/files?api-version=x", 200)]:
        assert requests.get(url + path, headers={"api-key": azure.key}).status_code == status
    v1: Any = openai.OpenAI(base_url=f"{url}/v1", api_key=azure.key)
    with closing(v1) as client:
        made = client.files.create(file=("a.jsonl", b"x"), purpose="batch")
        echo = client.chat.completions.create(model="any", messages=ask(made.id))
    assert json.loads(echo.choices[0].message.content)["file_ids"] == [made.id]


def test_entra_tokens_open_their_own_azure_account(upstream, azure):
    with azure.changed(tenant_id="t-1", client_id="c-1", client_secret="s3cret"):
        form = {
            "grant_type": "client_credentials",
            "client_id": "c-1",
            "client_secret": "s3cret",
            "scope": "https://cognitiveservices.azure.com/.default",
        }
        url = f"{upstream.url}/t-1/oauth2/v2.0/token"
        token = requests.post(url, data=form).json()
        refused = requests.post(url, data={**form, "client_secret": "guess"})
    assert (token["token_type"], token["expires_in"]) == ("Bearer", 3599)
    assert (refused.status_code, refused.json()["error"]) == (401, "invalid_client")
    with closing(azure_client(azure, api_key=None, azure_ad_token=token["access_token"])) as client:
        assert list(client.files.list()) == []
        upstream.expire_tokens()
        with pytest.raises(openai.AuthenticationError):
            client.files.list()


def test_an_engine_has_no_files(upstream):
    engine = upstream.account("engine", "engine", key="")
    assert requests.get(f"{engine.api_base}/models").status_code == 200
    with closing(openai_client(engine, key="sk-x")) as client, pytest.raises(openai.APIStatusError):
        client.models.list()
    engine = upstream.account("engine", "engine")
    with closing(openai_client(engine)) as client:
        echo = client.chat.completions.create(model="llama", messages=ask(text="hi"))
        body = json.loads(echo.choices[0].message.content)["body"]
        assert body["messages"] == ask(text="hi")
        with pytest.raises(openai.BadRequestError, match="not supported"):
            client.chat.completions.create(model="llama", messages=ask("file-1"))
        with pytest.raises(openai.NotFoundError):
            client.files.list()
    assert [r.path for r in upstream.unexpected()] == ["/engine/v1/files"]


def test_the_secure_one_gives_tokens_to_microsofts_own_client(secure_upstream, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(secure_upstream.ca))
    account = secure_upstream.account(
        "a", "azure", tenant_id="t", client_id="c", client_secret="s", token_ttl_s=600
    )
    params = account.entra_params
    client = msal.ConfidentialClientApplication(
        params["client_id"],
        client_credential=params["client_secret"],
        authority=f"{params['azure_authority_host']}/{params['tenant_id']}",
        instance_discovery=False,
    )
    token = client.acquire_token_for_client(["https://cognitiveservices.azure.com/.default"])
    files = requests.get(
        f"{params['api_base']}/openai/files?api-version={params['api_version']}",
        headers={"Authorization": f"Bearer {token['access_token']}"},
    )
    assert files.json() == {"object": "list", "data": []}
    assert files.url.startswith("https://")


def test_the_seeds_configuration_points_at_the_fake(upstream):
    made = seeds(upstream)
    names = [entry["model_name"] for entry in made.config["model_list"]]
    assert names[:3] == ["gpt-4o-litellm", "gpt-4o-free", "gpt-4o-mini-openai"]
    assert names[3:] == ["azure-gpt-4o", "local-llama"]
    assert {e["custom_llm_provider"] for e in made.config["files_settings"]} == {"azure", "openai"}
    assert len({e["litellm_params"]["api_key"] for e in made.config["model_list"]}) == 5
