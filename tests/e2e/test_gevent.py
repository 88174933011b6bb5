"""The essentials with gevent's workers: greenlets instead of threads, and nobody notices.

What the server itself owes its clients is in tests/test_serving.py, for both classes.
"""

import asyncio
import itertools
import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import openai
import psycopg
import pytest

from tests.e2e import inside
from tests.e2e.batching import QUICK, ended, start, upload
from tests.e2e.conftest import StartGateway
from tests.e2e.gateway import Account, Gateway, Upstream, model, wait_until
from tests.e2e.test_serving import Served, answer, ask, connect, slow_upload, words
from tests.e2e.upstream_jobs import rows

MB = 1024 * 1024
STREAMS = 200


@pytest.fixture(scope="module")
def account(upstream: Upstream) -> Account:
    return upstream.account("gevent", download_any=True, batch_delay_s=0)


def config(account: Account) -> dict[str, Any]:
    kept = {"model_name": "kept", "litellm_params": {"model": "local/store"}}
    return {
        "model_list": [model("gpt", "openai/gpt-4o", account), kept],
        "general_settings": QUICK,
    }


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with inside.scratch_postgres() as url:
        yield url


@pytest.fixture(scope="module")
def gateway(start_gateway: StartGateway, account: Account, database: str) -> Gateway:
    environ = {"MANIFOLD_WORKER_CLASS": "gevent"}
    return start_gateway(config(account), database_url=database, env=environ)


@pytest.fixture
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with closing(gateway.client()) as client:
        yield client


@contextmanager
def answered_at_once(gateway: Gateway, most: float) -> Iterator[None]:
    """While the block runs, each other request is answered within `most` seconds."""
    took: list[float] = []
    is_over = False

    def ask_again_and_again() -> None:
        with ExitStack() as stack:
            # So many that each worker has some of them.
            connections = [stack.enter_context(connect(gateway)) for _ in range(8)]
            for connection in itertools.cycle(connections):
                begun = time.monotonic()
                connection.sendall(b"GET /health/liveness HTTP/1.1\r\nHost: a\r\n\r\n")
                assert answer(connection)[0] == 200
                took.append(time.monotonic() - begun)
                time.sleep(0.005)
                if is_over:
                    return

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask_again_and_again)
        try:
            yield
        finally:
            is_over = True
            asking.result(30)
    print(f"\n{len(took)} others meanwhile, slowest {max(took) * 1000:.0f} ms")
    assert max(took) < most


def test_files_go_up_and_come_down(gateway: Gateway, client: openai.OpenAI, account: Account):
    assert '"Using worker: gevent"' in gateway.log_text()
    content = os.urandom(3 * MB)
    for names in ("gpt", "kept", "gpt, kept"):
        made = client.files.create(
            file=("some.bin", content),
            purpose="user_data",
            extra_body={"target_model_names": names},
        )
        assert client.files.content(made.id).read() == content
        part = gateway.api(
            "GET", f"/v1/files/{made.id}/content", headers={"Range": "bytes=1000000-1000099"}
        )
        assert (part.status_code, part.content) == (206, content[1000000:1000100])
        assert client.files.delete(made.id).deleted
    assert not account.files()


def test_uploads_side_by_side(gateway: Gateway, account: Account):
    def one(number: int) -> tuple[str, bytes]:
        content = os.urandom(MB + number)
        made = gateway.client().files.create(
            file=(f"{number}.bin", content),
            purpose="user_data",
            extra_body={"target_model_names": "gpt, kept"},
        )
        return made.id, content

    with ThreadPoolExecutor(20) as pool:
        made = list(pool.map(one, range(40)))
    assert len({file_id for file_id, _ in made}) == 40
    for file_id, content in made:
        assert gateway.api("GET", f"/v1/files/{file_id}/content").content == content


def test_a_chat_plain_and_streamed(gateway: Gateway, client: openai.OpenAI, account: Account):
    plain = client.chat.completions.create(model="gpt", messages=ask())
    assert plain.choices[0].message.content
    with account.changed(chunks=12):
        assert words(gateway) == 12


def test_a_batch(client: openai.OpenAI):
    file_id = upload(client, rows(500, "gpt"), target_model_names="gpt")
    batch = ended(client, start(client, file_id).id)
    assert batch.status == "completed"
    assert len(client.files.content(batch.output_file_id).text.splitlines()) == 500


def test_hundreds_of_slow_streams_at_once(gateway: Gateway, account: Account):
    async def one(client: openai.AsyncOpenAI) -> int:
        stream = await client.chat.completions.create(model="gpt", messages=ask(), stream=True)
        return len([c async for c in stream if c.choices and c.choices[0].delta.content])

    async def together() -> list[int]:
        async with gateway.async_client() as client:
            return await asyncio.gather(*(one(client) for _ in range(STREAMS)))

    with account.changed(chunk_delay_s=0.2, chunks=15), gateway.peak_memory() as peak:
        begun = time.monotonic()
        assert asyncio.run(together()) == [15] * STREAMS
        took = time.monotonic() - begun
    each = peak.growth / STREAMS / 1024
    print(f"\n{STREAMS} streams of 3 s: {took:.2f} s, {each:.0f} KB each")
    # One after another on 2 x 16 threads they would take 20 seconds.
    assert took < 20
    assert each < 1024


@pytest.mark.parametrize("when", ["before the first word", "in the middle"])
def test_a_client_that_leaves_a_stream_ends_it_upstream(
    gateway: Gateway, account: Account, when: str
):
    body = json.dumps({"model": "gpt", "stream": True, "messages": ask()}).encode()
    if when == "before the first word":
        account.fail(hang=True)
    with account.changed(chunk_delay_s=0.2, chunks=200):
        connection = connect(gateway)
        connection.sendall(
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n"
            "Content-Type: application/json\r\n"
            f"Authorization: Bearer {gateway.master_key}\r\n\r\n".encode()
            + body
        )
        account.upstream.wait_for_requests(1, account=account.name)
        if when == "in the middle":
            received = b""
            while received.count(b"data:") < 3:
                received += connection.recv(65536)
        connection.close()
        left = time.monotonic()
        [seen] = wait_until(lambda: [r for r in account.requests() if r.done], 5)
    assert seen.hung_up
    assert (seen.m_end or 0) - left < 2


def test_a_client_that_leaves_its_upload_leaves_nothing(gateway: Gateway, account: Account):
    before = len(account.files())
    connection = connect(gateway)
    connection.sendall(
        f"POST /v1/files HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {gateway.master_key}\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 50000000\r\n\r\n"
        '--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
        '--b\r\nContent-Disposition: form-data; name="target_model_names"\r\n\r\ngpt\r\n'
        '--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'.encode()
        + b"x" * 4 * MB
    )
    spool = gateway.data_dir / "spool"
    wait_until(lambda: any(spool.glob("*/upload-*")))
    connection.close()
    wait_until(lambda: not any(spool.glob("*/upload-*")), 5)
    assert len(account.files()) == before
    assert "Traceback" not in gateway.log_text()


def test_a_refusal_is_told_to_a_client_that_sends_a_large_body(gateway: Gateway):
    with closing(gateway.client("sk-nobody-has-this-key")) as stranger:
        for _ in range(3):
            with pytest.raises(openai.AuthenticationError):
                stranger.files.create(file=("f", b"x" * 50 * MB), purpose="user_data")


@pytest.mark.parametrize("what", ["a slow upload", "a large file for the store", "many rows"])
def test_nobody_waits_for_what_another_does(gateway: Gateway, client: openai.OpenAI, what: str):
    with answered_at_once(gateway, 1.0):
        if what == "a slow upload":
            slow_upload(gateway, 2)
        elif what == "many rows":
            upload(client, rows(20_000, "gpt"), target_model_names="gpt")
        else:
            upload(client, b"x" * 200 * MB, "user_data", target_model_names="kept")


def test_nobody_waits_for_another_s_place_in_the_database(gateway: Gateway, database: str):
    key = gateway.new_user(user_id="waits")["key"]
    with psycopg.connect(database.replace("+psycopg", "")) as holder, ThreadPoolExecutor(4) as pool:
        holder.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
        waiting = [pool.submit(gateway.api, "GET", "/v1/models", key=key) for _ in range(4)]
        with answered_at_once(gateway, 0.5):
            time.sleep(1)
        assert not any(each.done() for each in waiting)
        holder.rollback()
        assert [each.result(10).status_code for each in waiting] == [200] * 4


@pytest.fixture
def served(tmp_path: Any, account: Account) -> Iterator[Served]:
    """The same by the command, which gives each worker its own socket; on SQLite."""
    gateway = Served(tmp_path, config(account), arguments=["--worker-class", "gevent"])
    yield gateway
    gateway.close_clients()
    if gateway.running:
        gateway.stop()


def test_a_stop_lets_transfers_finish(served: Served, account: Account):
    with (
        ThreadPoolExecutor(2) as pool,
        account.changed(chunk_delay_s=0.2, chunks=15),
        connect(served) as idle,
    ):
        idle.sendall(b"GET /health/liveness HTTP/1.1\r\nHost: a\r\n\r\n")
        assert answer(idle)[0] == 200
        transfers = [pool.submit(words, served), pool.submit(slow_upload, served, 3)]
        account.upstream.wait_for_requests(1, account=account.name)
        wait_until(lambda: any((served.data_dir / "spool").glob("*/upload-*")))
        os.kill(served.pid, signal.SIGTERM)
        time.sleep(1)
        with pytest.raises(OSError, match="refused"), connect(served):
            pass
        streamed, uploaded = (each.result(30) for each in transfers)
        assert (streamed, uploaded["status"]) == (15, "processed")
        process = served._process
        assert process is not None
        served.close_clients()
        assert process.wait(10) == 0
        idle.settimeout(1)
        assert idle.recv(1) == b""
    assert "Traceback" not in served.log_text()


def test_a_client_that_leaves_is_no_error_of_ours(gateway: Gateway):
    # Several have left in the tests above.
    assert "Traceback" not in gateway.log_text()
    assert '"ERROR"' not in gateway.log_text()
