"""The running server: slow uploads, clean ends, many streams, early refusals, its own size."""

import asyncio
import http.client
import json
import os
import signal
import socket
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import Any

import openai
import psutil
import pytest

from tests.e2e.conftest import StartGateway
from tests.e2e.gateway import (
    MANIFOLD,
    Account,
    Gateway,
    Upstream,
    _environment,
    model,
    wait_until,
)

MB = 1024 * 1024
PIECE = b"x" * MB
SLOW_SECONDS = float(os.environ.get("MANIFOLD_SLOW_SECONDS", "12"))
WORKER_TIMEOUT = 4
"""What gunicorn's `timeout` is here: far less than the slow upload takes."""


class Served(Gateway):
    """The same by `manifold serve`, which listens itself: a socket for each worker."""

    def start(self) -> None:
        with ExitStack() as stack:
            # Kept bound and never listened on: nobody else is given this port.
            held = stack.enter_context(socket.socket())
            for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
                held.setsockopt(socket.SOL_SOCKET, option, 1)
            held.bind(self._address or ("127.0.0.1", 0))
            self._address = held.getsockname()
            port = held.getsockname()[1]
            self.url = f"http://127.0.0.1:{port}"
            self._spawn(
                [
                    *(MANIFOLD, "serve", "--config", str(self.config_path), "--port", str(port)),
                    *self._arguments,
                ],
                _environment(self.env),
                None,
            )
            self._wait_ready("/health/readiness", self._ready_timeout)


@pytest.fixture(scope="module")
def account(upstream: Upstream) -> Account:
    return upstream.account("serving", download_any=True)


def config(account: Account) -> dict[str, Any]:
    return {"model_list": [model("gpt", "openai/gpt-4o", account)]}


@pytest.fixture(scope="module")
def gateway(start_gateway: StartGateway, account: Account) -> Gateway:
    # Threads enough for every story here, even if one worker gets all its connections.
    arguments = ["--timeout", str(WORKER_TIMEOUT)]
    return start_gateway(config(account), threads=64, arguments=arguments)


@contextmanager
def served(tmp_path: Any, account: Account, **options: Any) -> Iterator[Served]:
    gateway = Served(tmp_path, config(account), **options)
    try:
        yield gateway
    finally:
        gateway.close_clients()
        if gateway.running:
            gateway.stop()


def ask() -> Any:
    return [{"role": "user", "content": "hello"}]


def port_of(gateway: Gateway) -> int:
    return int(gateway.url.rpartition(":")[2])


def connect(gateway: Gateway, source: str = "127.0.0.1") -> socket.socket:
    address = ("127.0.0.1", port_of(gateway))
    return socket.create_connection(address, timeout=30, source_address=(source, 0))


def answer(connection: socket.socket) -> tuple[int, http.client.HTTPMessage, bytes]:
    with closing(http.client.HTTPResponse(connection)) as response:
        response.begin()
        return response.status, response.headers, response.read()


def slow_upload(gateway: Gateway, seconds: float, size: int = MB, pieces: int = 40) -> Any:
    """The answer to an upload whose body takes so long to be sent."""
    before = (
        b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
        b'--b\r\nContent-Disposition: form-data; name="target_model_names"\r\n\r\ngpt\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="slow.bin"\r\n\r\n'
    )
    after = b"\r\n--b--\r\n"
    piece = b"x" * (size // pieces)
    with connect(gateway) as connection:
        connection.sendall(
            f"POST /v1/files HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {gateway.master_key}\r\n"
            "Content-Type: multipart/form-data; boundary=b\r\n"
            f"Content-Length: {len(before) + len(piece) * pieces + len(after)}\r\n\r\n".encode()
            + before
        )
        for _ in range(pieces):
            time.sleep(seconds / pieces)
            connection.sendall(piece)
        connection.sendall(after)
        status, _, body = answer(connection)
    told = json.loads(body)
    assert (status, told.get("bytes")) == (200, len(piece) * pieces), told
    return told


def words(gateway: Gateway) -> int:
    """How many words of a stream have arrived, once it has ended well."""
    number, ended = 0, False
    stream = gateway.client().chat.completions.create(model="gpt", messages=ask(), stream=True)
    for chunk in stream:
        for choice in chunk.choices:
            number += bool(choice.delta.content)
            ended = ended or choice.finish_reason is not None
    assert ended
    return number


def workers(gateway: Gateway) -> list[psutil.Process]:
    """gunicorn's own; `manifold serve` has gunicorn and the background worker below itself."""
    every = [p for p in gateway.processes() if not {"gunicorn", "serve"}.isdisjoint(p.cmdline())]
    parents = {each.ppid() for each in every}
    return [each for each in every if each.pid not in parents]


# ---------------------------------------------------------------- slow clients


def test_a_slow_upload_costs_no_worker_its_life(gateway: Gateway, account: Account):
    pids = {each.pid for each in workers(gateway)}
    number, over, slowest = 0, time.monotonic() + SLOW_SECONDS, 0.0
    took: list[float] = []
    with ThreadPoolExecutor(4) as pool:
        uploads = [pool.submit(slow_upload, gateway, SLOW_SECONDS) for _ in range(4)]
        while time.monotonic() < over:
            begun = time.monotonic()
            path = ("/v1/models", "/v1/files?limit=5", "/health/readiness")[number % 3]
            assert gateway.api("GET", path).status_code == 200
            number += 1
            took.append(time.monotonic() - begun)
            time.sleep(0.02)
        for upload in uploads:
            upload.result(30)
    slowest = max(took)
    assert number > SLOW_SECONDS * 20
    assert statistics.median(took) < 0.05
    assert slowest < 1
    assert {each.pid for each in workers(gateway)} == pids
    assert "WORKER TIMEOUT" not in gateway.log_text()
    assert len(account.uploads()) == 4
    print(
        f"\nbeside 4 uploads of {SLOW_SECONDS:.0f} s: {number} requests, "
        f"median {statistics.median(took) * 1000:.1f} ms, slowest {slowest * 1000:.0f} ms"
    )


# ---------------------------------------------------------------- the end


@pytest.mark.parametrize("by", ["gunicorn", "manifold serve"])
def test_a_stop_lets_transfers_finish_and_takes_no_new_ones(
    tmp_path: Any, account: Account, start_gateway: StartGateway, by: str
):
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(4))
        gateway: Gateway
        if by == "gunicorn":
            gateway = start_gateway(config(account))
        else:
            gateway = stack.enter_context(served(tmp_path, account, workers=2, threads=16))
        stack.enter_context(account.changed(chunk_delay_s=0.2, chunks=15))
        large = gateway.client().files.create(
            file=("large.bin", b"x" * 40 * MB),
            purpose="user_data",
            extra_body={"target_model_names": "gpt"},
        )
        account.upstream.forget_requests()
        url = f"/v1/files/{large.id}/content"
        transfers = [
            pool.submit(slow_upload, gateway, 3),
            pool.submit(words, gateway),
            pool.submit(slow_download, gateway, url, 3),
        ]
        # The stream and the download have reached their upstream, the upload our spool.
        account.upstream.wait_for_requests(2, account=account.name)
        spool = gateway.data_dir / "spool"
        wait_until(lambda: any(spool.glob("*/upload-*")))

        os.kill(gateway.pid, signal.SIGTERM)
        told = time.monotonic()
        time.sleep(0.5)
        assert is_answered(gateway, 0.5) is False
        assert gateway.running
        _, number, received = (each.result(30) for each in transfers)
        assert number == 15
        assert received == 40 * MB
        process = gateway._process
        assert process is not None
        gateway.close_clients()
        assert process.wait(10) == 0
        print(f"\nended {time.monotonic() - told:.1f} s after SIGTERM, with transfers of 3 s")
        assert is_answered(gateway, 0.5) is False
        assert "Traceback" not in gateway.log_text()


def slow_download(gateway: Gateway, path: str, seconds: float) -> int:
    """How many bytes have come; half of them after so many seconds."""
    received = 0
    with connect(gateway) as connection:
        connection.sendall(
            f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
            f"Authorization: Bearer {gateway.master_key}\r\n\r\n".encode()
        )
        with closing(http.client.HTTPResponse(connection)) as response:
            response.begin()
            length = response.length or 0
            while received < length // 2:
                received += len(response.read1(65536))
            time.sleep(seconds)
            while piece := response.read1(65536):
                received += len(piece)
    return received


def is_answered(gateway: Gateway, seconds: float) -> bool:
    """Whether a new connection gets an answer within that time."""
    try:
        with connect(gateway) as connection:
            connection.settimeout(seconds)
            connection.sendall(b"GET /health/liveness HTTP/1.1\r\nHost: a\r\n\r\n")
            return connection.recv(1) != b""
    except OSError:
        return False


# ---------------------------------------------------------------- many at once


def test_a_hundred_streams_run_side_by_side(tmp_path: Any, account: Account):
    async def together(gateway: Gateway) -> list[int]:
        async with gateway.async_client() as client:

            async def one() -> int:
                stream = await client.chat.completions.create(
                    model="gpt", messages=ask(), stream=True
                )
                return len([c async for c in stream if c.choices and c.choices[0].delta.content])

            return await asyncio.gather(*(one() for _ in range(100)))

    with (
        served(tmp_path, account, workers=2, threads=64) as gateway,
        # So long that a busy machine's own time, of up to 4.5 s, is not taken for waiting.
        account.changed(chunk_delay_s=0.3, chunks=20),
    ):
        # The kernel throws dice for the worker of each connection: once in 300 times more than 64
        # of them meet in one worker, and the rest waits for a thread.
        took: list[float] = []
        while not took or (took[-1] >= 12 and len(took) < 3):
            begun = time.monotonic()
            assert asyncio.run(together(gateway)) == [20] * 100
            took.append(time.monotonic() - begun)
    print(f"\n100 streams of 6 s: {took[-1]:.2f} s")
    assert took[-1] < 12


def test_idle_connections_keep_nobody_waiting(gateway: Gateway):
    # Many more than there are threads (2 x 64), each used again and again.
    with ExitStack() as stack:
        connections = []
        for _ in range(200):
            connection = http.client.HTTPConnection("127.0.0.1", port_of(gateway), timeout=20)
            connections.append(stack.enter_context(closing(connection)))
        headers = {"Authorization": f"Bearer {gateway.master_key}"}
        for connection in connections:
            connection.connect()
        kept = [connection.sock for connection in connections]
        begun = time.monotonic()
        for _ in range(4):
            for connection in connections:
                connection.request("GET", "/v1/models", headers=headers)
            for connection in connections:
                with connection.getresponse() as response:
                    assert response.status == 200
                    response.read()
        took = time.monotonic() - begun
        assert [connection.sock for connection in connections] == kept
    print(f"\n800 requests over 200 kept connections: {800 / took:.0f} a second")
    assert took < 10


def test_streams_that_are_left_do_not_slow_the_others(gateway: Gateway, account: Account):
    body = json.dumps({"model": "gpt", "stream": True, "messages": ask()}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n"
        f"Content-Type: application/json\r\nAuthorization: Bearer {gateway.master_key}\r\n\r\n"
    ).encode()
    with account.changed(chunk_delay_s=0.05, chunks=400), ExitStack() as stack:
        leaving = [stack.enter_context(connect(gateway)) for _ in range(30)]
        for connection in leaving:
            connection.sendall(head + body)
        for connection in leaving:
            assert connection.recv(9) == b"HTTP/1.1 "
        for connection in leaving:
            connection.close()
        left = time.monotonic()
        took: list[float] = []
        while len(took) < 100:
            begun = time.monotonic()
            assert gateway.api("GET", "/health/readiness").status_code == 200
            took.append(time.monotonic() - begun)
        wait_until(lambda: all(r.done for r in account.requests()))
    seen = account.requests()
    assert len(seen) == 30
    assert all(r.hung_up for r in seen)
    slowest_end = max((r.m_end or 0) - left for r in seen)
    took.sort()
    print(f"\n30 left streams ended in {slowest_end:.2f} s; others' p99 {took[98] * 1000:.0f} ms")
    assert slowest_end < 2
    assert took[98] < 0.1


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        pytest.param(b"rubbish\r\n\r\n", 400, "bad_request", id="rubbish"),
        pytest.param(
            b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414, "uri_too_long", id="line"
        ),
        pytest.param(
            b"GET / HTTP/1.1\r\nHost: a\r\nCookie: " + b"a" * 9000 + b"\r\n\r\n",
            431,
            "headers_too_large",
            id="header",
        ),
        pytest.param(
            b"POST /v1/files HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: zstd, chunked\r\n\r\n",
            501,
            "unsupported_transfer_coding",
            id="transfer coding",
        ),
        pytest.param(
            b"GET /v1/models HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
            400,
            "bad_request",
            id="length",
        ),
    ],
)
def test_the_server_s_own_limits_answer_in_the_envelope(
    gateway: Gateway, sent: bytes, status: int, code: str
):
    with connect(gateway) as connection:
        connection.sendall(sent)
        answered, headers, body = answer(connection)
    assert answered == status
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Request-Id"]
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code


@pytest.mark.parametrize("coding", ["length", "chunked"])
def test_a_bad_key_is_told_to_a_client_that_sends_a_large_body(gateway: Gateway, coding: str):
    stranger = gateway.client("sk-nobody-has-this-key")
    for _ in range(10):
        begun = time.monotonic()
        with pytest.raises(openai.AuthenticationError) as refused:
            if coding == "length":
                stranger.files.create(file=("f", PIECE * 50), purpose="user_data")
            else:
                stranger.post("/files", content=(PIECE for _ in range(50)), cast_to=object)
                stranger.post(
                    "/files",
                    content=(b"x" * MB for _ in range(50)),
                    cast_to=object,
                    options={"headers": {"Content-Type": "multipart/form-data; boundary=b"}},
                )
        assert refused.value.code == "invalid_api_key"
        assert time.monotonic() - begun < 1


def test_an_upload_that_breaks_off_is_the_client_s_fault(gateway: Gateway, account: Account):
    own = f"broken-{time.time_ns()}"
    with connect(gateway) as connection:
        connection.sendall(
            f"POST /v1/files HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {gateway.master_key}\r\n"
            f"Content-Type: multipart/form-data; boundary=b\r\nX-Request-ID: {own}\r\n"
            "Content-Length: 5000000\r\n\r\n"
            '--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'.encode()
            + b"x" * MB
        )
        connection.shutdown(socket.SHUT_WR)
        status, _, body = answer(connection)
    assert status == 400
    assert json.loads(body)["error"]["type"] == "invalid_request_error"
    assert not any((gateway.data_dir / "spool").glob("upload-*"))
    assert account.requests() == []
    assert "Traceback" not in gateway.log_text()


# ---------------------------------------------------------------- who calls


@pytest.mark.parametrize(
    ("source", "named", "logged"),
    [
        pytest.param("127.0.0.7", "6.6.6.6", "127.0.0.7", id="a stranger"),
        pytest.param("127.0.0.1", "6.6.6.6", "6.6.6.6", id="nginx on this host"),
        pytest.param("127.0.0.1", "6.6.6.6, 2001:db8::1", "2001:db8::1", id="the last counts"),
        pytest.param("127.0.0.1", "unix:", "127.0.0.1", id="no address"),
        pytest.param("127.0.0.1", "6.6.6.6\r\nX-Forwarded-For: 7.7.7.7", "7.7.7.7", id="twice"),
    ],
)
def test_only_a_proxy_on_this_host_may_say_who_calls(
    gateway: Gateway, source: str, named: str, logged: str
):
    own = f"who-{time.time_ns()}"
    with connect(gateway, source) as connection:
        for forwarded in (f"X-Forwarded-For: {named}\r\n", ""):
            # The second request of the connection is nobody's but the peer's own.
            connection.sendall(
                f"GET /health/liveness HTTP/1.1\r\nHost: a\r\nX-Request-ID: {own}\r\n"
                f"{forwarded}\r\n".encode()
            )
            assert answer(connection)[0] == 200

    def lines() -> list[dict[str, Any]]:
        found = [line for line in gateway.log_text().splitlines() if own in line]
        return [json.loads(line) for line in found] if len(found) == 2 else []

    assert [line["remote"] for line in wait_until(lines)] == [logged, source]


# ---------------------------------------------------------------- size and start

START_SECONDS = 8.0
WORKER_MB = 120


def test_it_starts_quickly_and_is_small(tmp_path: Any, account: Account):
    took: list[float] = []
    for _ in range(2):
        begun = time.monotonic()
        with served(tmp_path, account, workers=2, threads=64, new=True) as gateway:
            took.append(time.monotonic() - begun)
            # Only one worker has to be up for an answer.
            wait_until(partial(have_all_answered, gateway))
            idle = [each.memory_full_info() for each in workers(gateway)]
            client = gateway.client()
            for _ in range(20):
                client.models.list()
                client.chat.completions.create(model="gpt", messages=ask())
            used = [each.memory_full_info() for each in workers(gateway)]
    print(
        f"\nfirst 200 after {', '.join(f'{each:.2f} s' for each in took)}; the first migrates"
        f"\nan idle worker: {_megabytes(idle)}\nafter 40 requests: {_megabytes(used)}"
    )
    assert min(took) < START_SECONDS
    assert max(each.rss for each in idle) < WORKER_MB * MB


def have_all_answered(gateway: Gateway) -> bool:
    """Whether each worker has answered; another connection comes to another of them."""
    is_answered(gateway, 5)
    lines = gateway.log_text().splitlines()
    said = [json.loads(line) for line in lines if line.startswith("{")]
    answered = {line["pid"] for line in said if "request_id" in line}
    pids = {each.pid for each in workers(gateway)}
    return len(pids) == 2 and pids <= answered


def _megabytes(used: list[Any]) -> str:
    most = max(used, key=lambda each: each.rss)
    return f"{most.rss / MB:.0f} MB resident, {most.uss / MB:.0f} MB of it shared with nobody"
