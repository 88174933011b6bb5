"""The real client repeats what it got no answer to, and gets the first file."""

import secrets
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import httpx2
import openai
import pytest

from tests.e2e.batching import QUICK
from tests.e2e.batching import upload as upload_rows
from tests.e2e.conftest import StartGateway
from tests.e2e.gateway import Account, Gateway, Upstream, model, wait_until
from tests.e2e.upstream_jobs import rows


class Lossy(openai.DefaultHttpxClient):
    """A network that loses the answers of the first POSTs when these have been sent whole."""

    def __init__(self, losses: int = 0) -> None:
        super().__init__(trust_env=False)
        self.left = losses
        self.lost: list[bytes] = []

    def send(self, request: Any, **more: Any) -> Any:
        response = super().send(request, **more)
        if request.method == "POST" and self.left:
            self.left -= 1
            self.lost.append(response.read())
            response.close()
            raise httpx2.ReadError("the connection broke", request=request)
        return response


@pytest.fixture(scope="module")
def account(upstream: Upstream) -> Account:
    return upstream.account("once", download_any=True)


@pytest.fixture(scope="module")
def gateway(account: Account, start_gateway: StartGateway) -> Gateway:
    config = {
        "model_list": [model("a", "openai/gpt-4o", account)],
        "general_settings": {**QUICK, "lease_seconds": 2},
    }
    return start_gateway(config, workers=2)


@contextmanager
def client_over(gateway: Gateway, network: Lossy, **more: Any) -> Iterator[openai.OpenAI]:
    """A new user's client with the library's own way to repeat."""
    key = gateway.new_user()["key"]
    with openai.OpenAI(
        base_url=f"{gateway.url}/v1", api_key=key, max_retries=2, http_client=network, **more
    ) as client:
        yield client


def stored(account: Account) -> list[str]:
    """The content hashes of what was uploaded here; outputs of batches come when they come."""
    return [file["sha256"] for file in account.files() if file["purpose"] == "user_data"]


def create(client: openai.OpenAI, content: bytes, **headers: str):
    return client.files.create(
        file=("a.bin", content),
        purpose="user_data",
        extra_body={"target_model_names": "a"},
        extra_headers=headers,
    )


@pytest.mark.parametrize("losses", [1, 2])
def test_an_upload_whose_answer_is_lost_is_stored_once(gateway, account, losses):
    before, content = len(stored(account)), secrets.token_bytes(1000)
    network = Lossy(losses)
    with client_over(gateway, network) as client:
        made = create(client, content)
        assert [file.id for file in client.files.list()] == [made.id]
        assert client.files.content(made.id).read() == content
    assert len(network.lost) == losses
    assert all(made.id.encode() in answer for answer in network.lost)
    assert len(stored(account)) - before == 1


def test_a_client_that_gives_up_waiting_gets_the_file_that_was_under_way(gateway, account):
    before, content = len(stored(account)), secrets.token_bytes(1000)
    with (
        account.changed(upload_delay_s=1.5),
        client_over(gateway, Lossy(), timeout=1) as client,
    ):
        made = create(client, content)
        assert [file.id for file in client.files.list()] == [made.id]
    assert len(stored(account)) - before == 1


def test_uploads_that_somebody_means_twice_are_two(gateway):
    with client_over(gateway, Lossy()) as client:
        assert create(client, b"same").id != create(client, b"same").id


def test_a_batch_whose_answer_is_lost_is_started_once(gateway, account):
    before = len(account.batches())
    network = Lossy()
    with client_over(gateway, network) as client:
        file_id = upload_rows(client, rows(2, "a"), target_model_names="a")
        network.left = 2
        made = client.batches.create(
            input_file_id=file_id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            extra_headers={"Idempotency-Key": secrets.token_hex(16)},
        )
        assert [batch.id for batch in client.batches.list()] == [made.id]
    assert len(account.batches()) - before == 1


def test_at_the_same_time_one_does_it_and_the_other_is_told(gateway, account):
    content = secrets.token_bytes(1000)
    made: list[str] = []
    with account.changed(upload_delay_s=0.5), closing(gateway.client()) as client:
        headers = {"Idempotency-Key": secrets.token_hex(16)}
        first = threading.Thread(target=lambda: made.append(create(client, content, **headers).id))
        first.start()
        wait_until(account.uploads)
        with pytest.raises(openai.ConflictError) as refused:
            create(client, content, **headers)
        assert refused.value.code == "idempotency_in_progress"
        first.join()
        assert create(client, content, **headers).id == made[0]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_gateway_that_dies_makes_no_twin(gateway, account, moment):
    """Killed while the upstream stores the file, or when its answer is ready and not yet sent."""
    before, content = len(stored(account)), secrets.token_bytes(1000)
    headers = {"Idempotency-Key": secrets.token_hex(16)}
    key = gateway.new_user()["key"]
    with closing(gateway.client(key)) as client:
        if moment == "before":
            with account.changed(upload_delay_s=1):
                sending = threading.Thread(target=_quietly, args=(client, content, headers))
                sending.start()
                wait_until(lambda: account.uploads() and not account.uploads()[-1].done)
                gateway.kill()
                sending.join()
        else:
            create(client, content, **headers)
            gateway.kill()
    gateway.start()
    with closing(gateway.client(key)) as client:

        def made() -> str | None:
            try:
                return str(create(client, content, **headers).id)
            except openai.ConflictError:
                return None

        file_id = wait_until(made)
        assert create(client, content, **headers).id == file_id
        assert [file.id for file in client.files.list()] == [file_id]
        with gateway.start_worker():
            wait_until(lambda: len(stored(account)) - before == 1)


def _quietly(client: openai.OpenAI, content: bytes, headers: dict[str, str]) -> None:
    with suppress(openai.APIError):
        create(client, content, **headers)
