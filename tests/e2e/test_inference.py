"""Chat, completions, embeddings and responses, as the real clients ask for them."""

import base64
import http.client
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
import requests

from app.providers.upstream import CONNECT_TIMEOUT_SECONDS
from tests.e2e.asking import ask, carriers, echo
from tests.e2e.conftest import StartGateway
from tests.e2e.gateway import (
    API_VERSION,
    MASTER_KEY,
    Account,
    Gateway,
    Upstream,
    model,
    wait_until,
)

COOLDOWN = 0.3
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))


@dataclass(frozen=True)
class House:
    gateway: Gateway
    first: Account
    second: Account
    azure: Account
    engine: Account

    def post(self, path: str, body: Any, **more: Any) -> requests.Response:
        return self.gateway.api("POST", path, json=body, **more)


@pytest.fixture(scope="module")
def house(upstream: Upstream, start_gateway: StartGateway) -> House:
    """`pair` is asked at the first account while it is well, for the second one has no weight."""
    first, second = upstream.account("first"), upstream.account("second")
    azure = upstream.account("azure", "azure", models=["blue-4o"])
    engine = upstream.account("engine", "engine")
    config = {
        "model_list": [
            {**model("pair", "openai/gpt-4o", first, timeout=2), "model_info": {"id": "one"}},
            {
                **model("pair", "openai/gpt-4o", second, timeout=2, weight=0),
                "model_info": {"id": "two"},
            },
            model("alone", "openai/gpt-4o", first, timeout=5),
            model("patient", "openai/o3", second),
            model("blue", "azure/blue-4o", azure),
            model("blue-v1", "azure/blue-4o", azure, api_base=f"{azure.api_base}/openai/v1"),
            model("org/llama", "local/llama-3", engine),
            model("vllm", "hosted_vllm/llama-3", engine),
            model("many/*", "openai/*", first),
        ],
        "files_settings": [{"custom_llm_provider": "openai", **second.params}],
        "router_settings": {"cooldown_time": COOLDOWN},
    }
    return House(start_gateway(config, workers=1), first, second, azure, engine)


@pytest.fixture(autouse=True)
def _rested(upstream: Upstream) -> Iterator[None]:
    yield
    assert not upstream.unexpected()


@pytest.fixture(params=[True, False], ids=["v1", "bare"])
def client(request: pytest.FixtureRequest, house: House) -> Iterator[openai.OpenAI]:
    with closing(house.gateway.client(v1=request.param)) as client:
        yield client


def rest(house: House) -> None:
    """Until no deployment is left alone any more."""
    wait_until(lambda: not house.gateway.api("GET", "/health").json()["resting"])


# ------------------------------------------------------- plain and streamed


def test_a_plain_chat(house, client):
    answer = client.chat.completions.with_raw_response.create(model="alone", messages=ask())
    told = echo(answer.parse())
    assert (told["account"], told["model"]) == ("first", "gpt-4o")
    assert answer.headers["llm-provider"] == "openai"
    assert answer.headers["x-request-id"].startswith("req_")


def test_a_streamed_chat(house, client):
    stream = client.chat.completions.create(
        model="alone", messages=ask(), stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert json.loads(text)["model"] == "gpt-4o"
    assert chunks[-1].usage.total_tokens > 0
    [seen] = house.first.requests()
    assert seen.json["stream_options"] == {"include_usage": True}


def test_completions(client):
    answer = client.completions.create(model="alone", prompt="Once upon a time")
    assert json.loads(answer.choices[0].text)["account"] == "first"
    pieces = list(client.completions.create(model="alone", prompt="Once", stream=True))
    text = "".join(piece.choices[0].text for piece in pieces)
    assert json.loads(text)["account"] == "first"


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_embeddings(house, client, encoding):
    answer = client.embeddings.create(model="alone", input=["a", "b"], encoding_format=encoding)
    assert [item.index for item in answer.data] == [0, 1]
    assert len(answer.data[0].embedding) == (4 if encoding == "float" else 24)
    [seen] = house.first.requests()
    assert (seen.json["model"], seen.json["encoding_format"]) == ("gpt-4o", encoding)


def test_responses(house, client):
    answer = client.responses.create(model="alone", input="hello", metadata={"file_id": "mine"})
    assert json.loads(answer.output_text)["account"] == "first"
    # What only looks like a file id in the caller's own fields is the caller's.
    assert house.first.requests()[0].json["metadata"] == {"file_id": "mine"}
    with client.responses.stream(model="alone", input="hello") as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
    assert json.loads(final.output_text)["account"] == "first"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/chat/completions"])
def test_the_body_travels_byte_for_byte(house, path):
    body = (
        b'{ "messages":[ {"role":"user","content":"caf\\u00e9 \xf0\x9f\x92\xa5 1.50"} ],\n'
        b' "temperature": 1.10e0, "model"  :"alone", "x": [1e400, -0.0, 123456789012345678901],'
        b'\n\t"stream":false , "seed": 9007199254740993}\n'
    )
    answer = house.gateway.api(
        "POST", path, data=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 200, answer.text
    [seen] = house.first.requests()
    assert seen.text.encode() == body.replace(b'"alone"', b'"gpt-4o"')


def test_a_stream_arrives_as_it_is_made(house):
    with (
        house.first.changed(chunks=5, chunk_delay_s=0.15),
        house.gateway.client() as client,
    ):
        begun = time.monotonic()
        raw = client.chat.completions.with_streaming_response.create(
            model="alone", messages=ask(), stream=True
        )
        with raw as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.headers["x-accel-buffering"] == "no"
            assert answer.headers["cache-control"] == "no-cache, no-store"
            arrived = [time.monotonic() for line in answer.iter_lines() if line]
    assert arrived[0] - begun < 0.4
    # First, five pieces, last, and [DONE] right behind it in a chunk of its own.
    assert len(arrived) == 8
    waits = [later - sooner for sooner, later in pairwise(arrived)]
    assert min(waits) > 0.05
    assert max(waits) < 0.4


def test_a_plain_answer_is_no_stream(house):
    answer = house.post("/v1/chat/completions", {"model": "alone", "messages": ask()})
    assert "x-accel-buffering" not in answer.headers
    assert answer.headers["content-type"] == "application/json"


# ------------------------------------------------------- Azure's client and older paths


def azure_client(gateway: Gateway, **options: Any) -> openai.AzureOpenAI:
    return openai.AzureOpenAI(
        azure_endpoint=gateway.url,
        api_key=gateway.master_key,
        api_version=API_VERSION,
        max_retries=0,
        http_client=openai.DefaultHttpxClient(trust_env=False),
        **options,
    )


@pytest.mark.parametrize(
    ("name", "account", "upstream_model"),
    [("alone", "first", "gpt-4o"), ("blue", "azure", "blue-4o"), ("blue-v1", "azure", "blue-4o")],
)
def test_the_azure_client_is_served(house, name, account, upstream_model):
    with closing(azure_client(house.gateway)) as client:
        told = echo(client.chat.completions.create(model=name, messages=ask()))
        assert (told["account"], told["model"]) == (account, upstream_model)
        stream = client.chat.completions.create(model=name, messages=ask(), stream=True)
        text = "".join(c.choices[0].delta.content or "" for c in stream if c.choices)
        assert json.loads(text)["account"] == account
        assert client.embeddings.create(model=name, input="a").data
        assert client.completions.create(model=name, prompt="a").choices
        assert json.loads(client.responses.create(model=name, input="a").output_text)[
            "account"
        ] == (account)
    with closing(azure_client(house.gateway, azure_deployment=name)) as client:
        assert (
            echo(client.chat.completions.create(model=name, messages=ask()))["account"] == account
        )
    paths = {seen.path for seen in house.azure.requests() if seen.path.endswith("chat/completions")}
    assert paths == {
        "blue": {"/openai/deployments/blue-4o/chat/completions"},
        "blue-v1": {"/openai/v1/chat/completions"},
    }.get(name, set())


def test_the_azure_client_keeps_files_too(house):
    with closing(azure_client(house.gateway)) as client:
        file = client.files.create(
            file=("rows.jsonl", b"{}\n"),
            purpose="fine-tune",
            extra_body={"target_model_names": "blue"},
        )
        assert [f.id for f in client.files.list()] == [file.id]
        assert client.files.content(file.id).read() == b"{}\n"
        told = echo(client.chat.completions.create(model="blue", messages=ask(file.id)))
        assert told["file_ids"] == [file.id]
        assert client.files.delete(file.id).deleted


@pytest.mark.parametrize("name", ["alone", "org/llama"])
def test_the_model_may_stand_in_the_path(house, name):
    upstream_model = {"alone": "gpt-4o", "org/llama": "llama-3"}[name]
    account = {"alone": house.first, "org/llama": house.engine}[name]
    for place in (
        f"/engines/{name}",
        f"/v1/engines/{name}",
        f"/openai/deployments/{name}",
        f"/engines/{name.replace('/', '%2F')}",
    ):
        for body in ({"messages": ask()}, {"messages": ask(), "model": name}):
            answer = house.post(f"{place}/chat/completions?api-version={API_VERSION}", body)
            assert answer.status_code == 200, answer.text
        assert house.post(f"{place}/completions", {"prompt": "x"}).status_code == 200
        assert house.post(f"{place}/embeddings", {"input": "x"}).status_code == 200
    assert {seen.json["model"] for seen in account.requests()} == {upstream_model}
    answer = house.post(f"/engines/{name}/chat/completions", {"messages": ask(), "model": "blue"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "ambiguous_routing")


def test_names_of_other_kinds(house, client):
    for name, told in (
        ("openai/gpt-4o", ("first", "gpt-4o")),
        ("azure/blue-4o", ("azure", "blue-4o")),
        ("many/gpt-4.1-nano", ("first", "gpt-4.1-nano")),
    ):
        found = echo(client.chat.completions.create(model=name, messages=ask()))
        assert (found["account"], found["model"]) == told
    found = echo(
        client.chat.completions.create(
            model="o9", messages=ask(), extra_body={"custom_llm_provider": "openai"}
        )
    )
    assert (found["account"], found["model"]) == ("second", "o9")
    assert not carriers(house.second.requests(), "custom_llm_provider")


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"messages": []}, "missing_required_parameter", "model"),
        ({"model": "nobody", "messages": []}, "model_not_found", "model"),
        ({"model": "many/*", "messages": []}, "model_not_found", "model"),
        ({"model": "alone", "api_base": "http://evil"}, "forbidden_parameter", "api_base"),
        ({"model": "x", "provider": "vertex_ai"}, "provider_not_found", "custom_llm_provider"),
        ([], "invalid_json", None),
    ],
)
def test_mistakes_are_told_before_anything_is_sent(house, upstream, body, code, param):
    answer = house.post("/v1/chat/completions", body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, code, param)
    assert error["type"] == "invalid_request_error"
    assert upstream.requests() == []


# ------------------------------------------------------- engines without files


@pytest.mark.parametrize("name", ["org/llama", "vllm"])
def test_an_engine_gets_the_files_themselves(house, client, name):
    def keep(filename: str, data: bytes) -> str:
        target = {"target_model_names": name}
        made = client.files.create(file=(filename, data), purpose="user_data", extra_body=target)
        return str(made.id)

    text = keep("notes.txt", "Füße\n".encode())
    pdf = keep("report.pdf", b"%PDF-1.7 x")
    image = keep("photo.png", PNG)
    assert house.engine.requests() == []

    body = echo(client.chat.completions.create(model=name, messages=ask(text, pdf, image)))["body"]

    url = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    shown: dict[str, Any] = {
        "org/llama": {"type": "file", "file": {"filename": "photo.png", "file_data": url}},
        "vllm": {"type": "image_url", "image_url": {"url": url}},
    }
    data = base64.b64encode(b"%PDF-1.7 x").decode()
    assert body["model"] == "llama-3"
    assert body["messages"][0]["content"] == [
        {"type": "text", "text": "What is in this file?"},
        {"type": "text", "text": "File: notes.txt\nFüße\n"},
        {
            "type": "file",
            "file": {"filename": "report.pdf", "file_data": f"data:application/pdf;base64,{data}"},
        },
        shown[name],
    ]
    for file_id, content in ((text, "Füße\n".encode()), (image, PNG)):
        assert client.files.content(file_id).read() == content
        assert client.files.delete(file_id).deleted
    assert client.files.delete(pdf).deleted
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model=name, messages=ask(text))
    # The bytes lie here: the engine has only ever been asked to chat.
    assert {seen.path for seen in house.engine.requests()} == {"/engine/v1/chat/completions"}


def test_an_engine_cannot_take_every_file(house, client):
    target = {"target_model_names": "org/llama"}
    made = client.files.create(
        file=("data.bin", b"\x00\x01"), purpose="user_data", extra_body=target
    )
    with pytest.raises(openai.BadRequestError, match=r"data\.bin.*cannot be put into a message"):
        client.chat.completions.create(model="org/llama", messages=ask(made.id))
    assert house.engine.requests() == []
    client.files.delete(made.id)


# ------------------------------------------------------- failures and the next candidate

FAILURES: dict[str, dict[str, Any]] = {
    "408": {"status": 408},
    "429": {"status": 429},
    "500": {"status": 500},
    "502": {"status": 502},
    "503": {"status": 503},
    "529": {"status": 529},
    "broken": {"close": "before_body"},
    "headers only": {"close": "mid_body", "after_bytes": 0},
    "hanging": {"hang": True},
}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("how", FAILURES)
def test_another_candidate_is_asked_before_the_first_byte(house, how, stream):
    rest(house)
    house.first.fail(path_prefix="/v1/chat", times=1, **FAILURES[how])
    with closing(house.gateway.client()) as client:
        answer: Any = client.chat.completions.create(model="pair", messages=ask(), stream=stream)
        if stream:
            text = "".join(c.choices[0].delta.content or "" for c in answer if c.choices)
            assert json.loads(text)["account"] == "second"
        else:
            assert echo(answer)["account"] == "second"
        assert house.gateway.api("GET", "/health").json()["resting"] == ["one"]
        assert [len(a.requests("/v1/chat")) for a in (house.first, house.second)] == [1, 1]
        # It rests for a while, and comes back.
        assert echo(client.chat.completions.create(model="pair", messages=ask()))["account"] == (
            "second"
        )
        rest(house)
        assert echo(client.chat.completions.create(model="pair", messages=ask()))["account"] == (
            "first"
        )


def test_retry_after_says_how_long_to_rest(house):
    rest(house)
    house.first.fail(path_prefix="/v1/chat", times=1, status=429, headers={"Retry-After": "1"})
    with closing(house.gateway.client()) as client:

        def account() -> str:
            told = echo(client.chat.completions.create(model="pair", messages=ask()))
            return str(told["account"])

        begun = time.monotonic()
        assert account() == "second"
        time.sleep(2 * COOLDOWN)
        assert account() == "second"
        wait_until(lambda: account() == "first", pause=0.1)
        assert 0.9 < time.monotonic() - begun < 1.6


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (429, {"error": {"message": "slow down", "type": "tokens", "param": None, "code": "tpm"}}),
        (503, {"error": {"message": "overloaded", "type": "server_error", "code": None}}),
    ],
)
def test_the_last_candidates_answer_is_shown(house, status, body):
    rest(house)
    for account in (house.first, house.second):
        account.fail(path_prefix="/v1/chat", status=status, body=body, headers={"Retry-After": "0"})
    answer = house.post("/v1/chat/completions", {"model": "pair", "messages": ask()})
    assert answer.status_code == status
    assert answer.json()["error"]["message"] == body["error"]["message"]
    assert answer.json()["error"]["code"] == body["error"]["code"]
    assert answer.headers["retry-after"] == "0"
    assert [len(a.requests()) for a in (house.first, house.second)] == [1, 1]


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (
            400,
            {
                "error": {
                    "message": "caf\u00e9 is bad",
                    "type": "invalid_request_error",
                    "param": "messages[0].content",
                    "code": "bad_thing",
                    "innererror": {"code": "ResponsibleAIPolicyViolation"},
                }
            },
        ),
        (404, {"error": {"message": "no", "type": "x", "param": None, "code": "model_gone"}}),
        (409, {"error": {"message": "busy", "type": "x", "param": None, "code": None}}),
        (413, {"error": {"message": "too long", "type": "x", "param": None, "code": "big"}}),
        (422, {"error": {"message": "odd", "type": "x", "param": "a", "code": "odd"}}),
    ],
)
def test_an_upstreams_refusal_is_handed_on_unchanged(house, status, body):
    house.first.fail(path_prefix="/v1/chat", status=status, body=body)
    for stream in (False, True):
        answer = house.post(
            "/v1/chat/completions", {"model": "pair", "messages": ask(), "stream": stream}
        )
        assert (answer.status_code, answer.json()) == (status, body)
        assert answer.text == json.dumps(body)
    assert house.second.requests() == []


@pytest.mark.parametrize(
    "body", ["<html>Bad Gateway</html>", {"detail": "Not Found"}, {"error": "text"}, ""]
)
def test_a_refusal_in_another_shape_comes_in_the_envelope(house, body):
    house.first.fail(path_prefix="/v1/chat", status=400, body=body)
    answer = house.post("/v1/chat/completions", {"model": "alone", "messages": ask()})
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert set(error) >= {"message", "type", "param", "code"}
    assert error["message"]
    assert "<" not in error["message"]


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_credential_is_ours_not_the_callers(house, status):
    told = {"error": {"message": f"Incorrect API key provided: {house.first.key}"}}
    house.first.fail(path_prefix="/v1", status=status, body=told)
    answer = house.post("/v1/chat/completions", {"model": "alone", "messages": ask()})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (502, "upstream_auth_failed")
    assert house.first.key[:8] not in answer.text


# ------------------------------------------------------- ends in the middle


def test_an_upstream_that_dies_in_the_middle_breaks_the_stream(house):
    house.first.fail(path_prefix="/v1/chat", close="mid_body", after_bytes=700)
    with closing(house.gateway.client()) as client:
        stream = client.chat.completions.create(model="pair", messages=ask(), stream=True)
        received = 0
        with pytest.raises(openai.APIConnectionError):
            for _ in stream:
                received += 1
        assert received >= 1
    # Too late for another candidate, and never an end that looks like one.
    assert house.second.requests() == []
    connection = http.client.HTTPConnection(urlsplit(house.gateway.url).netloc, timeout=10)
    body = json.dumps({"model": "alone", "messages": ask(), "stream": True})
    headers = {"Authorization": f"Bearer {house.gateway.master_key}"}
    connection.request("POST", "/v1/chat/completions", body, headers)
    with pytest.raises(http.client.IncompleteRead) as broken:
        connection.getresponse().read()
    assert b"data: " in broken.value.partial
    assert b"[DONE]" not in broken.value.partial
    connection.close()


def test_a_plain_answer_that_ends_early_is_broken_too(house):
    house.first.fail(path_prefix="/v1/chat", close="mid_body", after_bytes=50)
    with pytest.raises(requests.RequestException):
        house.post("/v1/chat/completions", {"model": "alone", "messages": ask()})


@pytest.mark.parametrize("path", ["chat/completions", "responses", "completions", "embeddings"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
def test_a_client_that_leaves_before_the_first_token_frees_the_upstream(house, path, stream):
    house.first.fail(path_regex=f"/{path}$", hang=True)
    body = {"model": "pair", "messages": ask(), "input": "x", "prompt": "x", "stream": stream}
    connection = http.client.HTTPConnection(urlsplit(house.gateway.url).netloc, timeout=10)
    headers = {"Authorization": f"Bearer {house.gateway.master_key}"}
    connection.request("POST", f"/v1/{path}", json.dumps(body), headers)
    house.first.upstream.wait_for_requests(1)

    begun = time.monotonic()
    connection.close()

    wait_until(lambda: house.first.requests()[0].hung_up, timeout=2)
    assert time.monotonic() - begun < 1.5
    # Nobody waits for another one's answer either.
    time.sleep(0.2)
    assert house.second.requests() == []


@pytest.mark.parametrize("name", ["pair", "blue", "org/llama"])
def test_a_client_that_leaves_in_the_middle_frees_the_upstream(house, name):
    account = {"pair": house.first, "blue": house.azure, "org/llama": house.engine}[name]
    with account.changed(chunks=50, chunk_delay_s=1), closing(house.gateway.client()) as client:
        stream = client.chat.completions.create(model=name, messages=ask(), stream=True)
        next(iter(stream))
        stream.close()
        wait_until(lambda: account.requests()[-1].hung_up, timeout=2)


def test_a_model_may_think_for_longer_than_a_connection_may_take(house, upstream):
    """And so may an upload take; others are served meanwhile, by a worker that waits for both."""
    seconds = CONNECT_TIMEOUT_SECONDS + 1
    account = house.second
    for path in ("/v1/chat/completions", "/v1/files"):
        account.fail(method="POST", path_prefix=path, delay_s=seconds)
    url = f"{house.gateway.url}/v1"
    headers = {"Authorization": f"Bearer {MASTER_KEY}"}
    chat = {"model": "patient", "messages": [{"role": "user", "content": "Think."}]}
    form = {"purpose": "user_data", "target_model_names": "patient"}
    begun = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        answers = [
            pool.submit(requests.post, f"{url}/chat/completions", json=chat, headers=headers),
            pool.submit(
                requests.post, f"{url}/files", data=form, files={"file": b"abc"}, headers=headers
            ),
        ]
        time.sleep(0.5)
        asked = time.monotonic()
        for _ in range(20):
            assert requests.get(f"{url}/models", headers=headers, timeout=5).status_code == 200
        quick = time.monotonic() - asked
        found = [each.result().status_code for each in answers]
    assert (found, quick < seconds / 2) == ([200, 200], True)
    assert time.monotonic() - begun >= seconds


def test_many_that_leave_do_not_hold_the_gateway(house):
    with house.first.changed(chunks=50, chunk_delay_s=1):
        clients = [house.gateway.client() for _ in range(14)]
        for client in clients:
            next(iter(client.chat.completions.create(model="alone", messages=ask(), stream=True)))
        for client in clients:
            client.close()
        begun = time.monotonic()
        assert house.gateway.api("GET", "/health").status_code == 200
        assert time.monotonic() - begun < 1
        wait_until(lambda: all(seen.hung_up for seen in house.first.requests()), timeout=2)
    health = house.gateway.api("GET", "/health").json()
    assert health["status"] == "healthy"
