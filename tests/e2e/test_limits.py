"""Limits on real processes: four of them count as one, and a killed one gives its places back."""

import secrets
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import openai
import pytest

from tests.e2e.asking import ask
from tests.e2e.conftest import StartGateway
from tests.e2e.gateway import Account, Gateway, Upstream, model, wait_until

LEASE_S = 2


@pytest.fixture(scope="module")
def account(upstream: Upstream) -> Account:
    return upstream.account("limits", download_any=True)


@pytest.fixture(scope="module")
def gateway(account: Account, start_gateway: StartGateway) -> Gateway:
    config = {
        "model_list": [model("a", "openai/gpt-4o", account)],
        "general_settings": {"lease_seconds": LEASE_S},
    }
    return start_gateway(config, workers=4)


@pytest.fixture
def limited(gateway: Gateway) -> Iterator[Any]:
    """`limited(rpm_limit=1)`: the client of a new user whose key has these limits."""
    made: list[openai.OpenAI] = []

    def make(**limits: int) -> openai.OpenAI:
        user = gateway.new_user(auto_create_key=False)["user_id"]
        body = {"user_id": user, **limits}
        made.append(gateway.client(gateway.api("POST", "/key/generate", json=body).json()["key"]))
        return made[-1]

    yield make
    for client in made:
        client.close()


def upload(client: openai.OpenAI, content: bytes) -> str:
    more = {"target_model_names": "a"}
    file = client.files.create(file=("a.bin", content), purpose="user_data", extra_body=more)
    return file.id


def statuses(number: int, call: Any) -> Counter[str]:
    """How many of so many calls at once were answered, or raised what."""

    def one(_number: int) -> str:
        try:
            call()
        except openai.APIStatusError as error:
            return type(error).__name__
        return "ok"

    with ThreadPoolExecutor(16) as pool:
        return Counter(pool.map(one, range(number)))


def test_requests_are_counted_over_all_processes(gateway, limited):
    client = limited(rpm_limit=25)
    assert statuses(80, client.models.list) == {"ok": 25, "RateLimitError": 55}
    with pytest.raises(openai.RateLimitError) as refused:
        client.models.list()
    assert refused.value.code == "rate_limit_exceeded"
    assert 1 <= int(refused.value.response.headers["retry-after"]) <= 60


def test_files_and_bytes_are_counted_over_all_processes(gateway, account, limited):
    before = len(account.files())
    client = limited(max_files=5)
    assert statuses(20, lambda: upload(client, b"x")) == {"ok": 5, "RateLimitError": 15}
    small = limited(max_bytes_stored=5000)
    found = statuses(20, lambda: upload(small, secrets.token_bytes(1000)))
    assert found == {"ok": 5, "APIStatusError": 15}
    with pytest.raises(openai.APIStatusError) as refused:
        upload(small, b"x")
    assert (refused.value.status_code, refused.value.code) == (413, "storage_limit_exceeded")
    assert len(account.files()) - before == len(list(client.files.list())) * 2 == 10


def test_a_file_that_is_deleted_makes_room(limited):
    client = limited(max_files=1)
    for _ in range(3):
        client.files.delete(upload(client, b"x"))


def test_streams_hold_their_places_until_they_end(gateway, account, limited):
    client = limited(max_parallel_requests=2)
    file_id = upload(client, b"x")
    with account.changed(chunk_delay_s=0.2):
        streams = [
            client.chat.completions.create(model="a", messages=ask(file_id), stream=True)
            for _ in range(2)
        ]
        with pytest.raises(openai.RateLimitError, match="2 requests answered at a time"):
            client.models.list()
        for stream in streams:
            assert len(list(stream)) > 1
    wait_until(lambda: statuses(1, client.models.list) == {"ok": 1})


def test_a_client_that_leaves_gives_its_place_back(gateway, account, limited):
    client = limited(max_parallel_requests=1)
    file_id = upload(client, b"x")
    with account.changed(chunk_delay_s=0.5):
        with closing(
            client.chat.completions.create(model="a", messages=ask(file_id), stream=True)
        ) as stream:
            next(stream)
        wait_until(lambda: statuses(1, client.models.list) == {"ok": 1})


def test_a_process_that_is_killed_gives_its_places_back(gateway, account, limited):
    client = limited(max_parallel_requests=1)
    file_id = upload(client, b"x")
    with account.changed(chunk_delay_s=1):
        stream = client.chat.completions.create(model="a", messages=ask(file_id), stream=True)
        next(stream)
        with pytest.raises(openai.RateLimitError):
            client.models.list()
        gateway.kill()
        stream.close()
    gateway.start()
    again = gateway.client(client.api_key)
    wait_until(lambda: statuses(1, again.models.list) == {"ok": 1}, 10 * LEASE_S)
