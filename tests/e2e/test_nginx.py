"""The gateway behind a real nginx with deploy/nginx.conf, as an operator runs it."""

import hashlib
import http.client
import io
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from itertools import pairwise
from typing import Any

import openai
import pytest

from app.api.security_headers import HEADERS
from tests.e2e.conftest import StartGateway, missing
from tests.e2e.gateway import Account, Gateway, Seen, Upstream, model, wait_until
from tests.e2e.nginx import Nginx, is_installed

MB = 1024 * 1024
BIG = int(os.environ.get("MANIFOLD_BIG_MB", "512")) * MB
LIMIT_MB = max(512, BIG // MB)
PATTERN = os.urandom(MB)

EARLIEST = 10 * MB
"""A client may have sent so much, and no more, when the gateway has its first byte on disk."""


class _Generated(io.RawIOBase):
    """A file of `size` bytes that is nowhere; `reached` is told how far it has been read."""

    def __init__(self, size: int, reached: Callable[[int], None]) -> None:
        self._size, self._at, self._reached = size, 0, reached

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        self._reached(self._at)
        start = self._at % MB
        left = min(self._size - self._at, MB - start)
        piece = PATTERN[start : start + (left if size < 0 else min(size, left))]
        self._at += len(piece)
        return piece

    def sha256(self) -> str:
        digest = hashlib.sha256()
        for at in range(0, self._size, MB):
            digest.update(PATTERN[: self._size - at])
        return digest.hexdigest()


def generated(size: int, reached: Callable[[int], None] = lambda _: None) -> Any:
    """A file as the client takes it; typing knows no class of our own as one."""
    return _Generated(size, reached)


@pytest.fixture(scope="module")
def account(upstream: Upstream) -> Account:
    return upstream.account("behind-nginx", download_any=True)


@pytest.fixture(scope="module")
def gateway(start_gateway: StartGateway, account: Account) -> Gateway:
    return start_gateway(
        {
            "model_list": [model("gpt", "openai/gpt-4o", account)],
            "general_settings": {"max_file_size_mb": LIMIT_MB},
        }
    )


@pytest.fixture(scope="module")
def nginx(gateway: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    if not is_installed():
        missing("nginx is not installed")
    behind = gateway.url.removeprefix("http://")
    with Nginx(tmp_path_factory.mktemp("nginx"), behind) as running:
        yield running


@pytest.fixture
def client(nginx: Nginx, gateway: Gateway) -> Iterator[openai.OpenAI]:
    with closing(nginx.client(gateway.master_key)) as client:
        yield client


def ask(text: str = "hello") -> Any:
    return [{"role": "user", "content": text}]


def head(
    gateway: Gateway, path: str, length: int, kind: str = "application/json", more: str = ""
) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
        f"Authorization: Bearer {gateway.master_key}\r\nContent-Length: {length}\r\n{more}\r\n"
    ).encode()


def chat(gateway: Gateway, *, stream: bool = False) -> bytes:
    body = json.dumps({"model": "gpt", "stream": stream, "messages": ask()}).encode()
    return head(gateway, "/v1/chat/completions", len(body)) + body


def start_of_form(gateway: Gateway, length: int, more: str = "") -> bytes:
    return head(gateway, "/v1/files", length, "multipart/form-data; boundary=b", more) + (
        b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="f.bin"\r\n\r\n'
    )


def answer(connection: socket.socket) -> tuple[int, http.client.HTTPMessage, bytes]:
    with closing(http.client.HTTPResponse(connection)) as response:
        response.begin()
        return response.status, response.headers, response.read()


def assert_envelope(body: bytes, code: str, type: str = "invalid_request_error") -> dict[str, Any]:
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["type"]) == (code, type)
    assert error["message"]
    return dict(error)


def log_line(gateway: Gateway, request_id: str) -> dict[str, Any]:
    def written() -> dict[str, Any] | None:
        for line in gateway.log_text().splitlines():
            if line.startswith("{"):
                told = json.loads(line)
                if (told["event"], told.get("request_id")) == ("request", request_id):
                    return dict(told)
        return None

    found = wait_until(written)
    assert found
    return found


def only(seen: list[Seen]) -> Seen:
    assert len(seen) == 1
    return seen[0]


# ---------------------------------------------------------------- large files


def test_a_large_file_goes_up_and_comes_down_and_nginx_keeps_nothing(
    nginx: Nginx, gateway: Gateway, account: Account, client: openai.OpenAI
):
    spool = gateway.data_dir / "spool"
    spooled_early: list[int] = []

    def reached(at: int) -> None:
        # The rest is sent only after the gateway has begun: whoever buffers it all, fails here.
        if at >= EARLIEST and not spooled_early:
            wait_until(lambda: any(each.stat().st_size for each in spool.glob("*/upload-*")))
            spooled_early.append(at)

    big = generated(BIG, reached)
    kept, begun = nginx.temp_changes(), time.monotonic()
    with gateway.peak_memory() as peak:
        made = client.files.create(
            file=("big.bin", big),
            purpose="user_data",
            extra_body={"target_model_names": "gpt"},
        )
    sent = time.monotonic()

    stored = only(account.uploads()).file
    assert stored is not None
    assert (stored["size"], stored["sha256"]) == (BIG, big.sha256())
    assert made.bytes == BIG
    assert spooled_early
    assert EARLIEST <= spooled_early[0] < BIG
    assert nginx.temp_changes() == kept
    assert peak.growth < 64 * MB

    digest, first = hashlib.sha256(), 0.0
    asked = time.monotonic()
    with (
        gateway.peak_memory() as peak,
        client.files.with_streaming_response.content(made.id) as response,
    ):
        for piece in response.iter_bytes(MB):
            first = first or time.monotonic()
            digest.update(piece)
    ended = time.monotonic()

    assert digest.hexdigest() == big.sha256()
    assert first - asked < 1
    assert nginx.temp_changes() == kept
    assert peak.growth < 64 * MB
    print(f"\n{BIG // MB} MB through nginx: up {sent - begun:.2f} s, down {ended - asked:.2f} s")


def test_a_client_that_leaves_its_upload_leaves_nothing(
    nginx: Nginx, gateway: Gateway, account: Account
):
    spool = gateway.data_dir / "spool"
    own = f"leaver-{time.time_ns()}"
    connection = nginx.connect()
    connection.sendall(start_of_form(gateway, 50 * MB, f"X-Request-ID: {own}\r\n") + PATTERN * 4)
    wait_until(lambda: any(spool.glob("*/upload-*")))
    connection.close()
    wait_until(lambda: not any(spool.glob("*/upload-*")), 3)
    assert account.uploads() == []
    # It is nothing to wake anybody for.
    assert log_line(gateway, own)["status"] == 400
    assert "Traceback" not in gateway.log_text()


# ---------------------------------------------------------------- streams


def test_a_stream_arrives_word_by_word(nginx: Nginx, account: Account, client: openai.OpenAI):
    delay, number = 0.1, 12
    with account.changed(chunk_delay_s=delay, chunks=number):
        begun = time.monotonic()
        arrived = []
        for chunk in client.chat.completions.create(model="gpt", messages=ask(), stream=True):
            if chunk.choices and chunk.choices[0].delta.content:
                arrived.append(time.monotonic())
    seen = only(account.requests())

    assert len(arrived) == number
    assert seen.m_end is not None
    assert arrived[0] < seen.m_end - (number - 2) * delay
    assert arrived[0] - begun < 1
    gaps = [after - before for before, after in pairwise(arrived)]
    assert all(delay / 2 < gap < delay * 2 for gap in gaps), gaps
    print(f"\nstream through nginx: the slowest word came {(max(gaps) - delay) * 1000:.1f} ms late")


def test_a_stream_says_that_it_must_not_be_held_back(
    nginx: Nginx, gateway: Gateway, client: openai.OpenAI
):
    for place in (nginx.url, gateway.url):
        at = client.with_options(base_url=f"{place}/v1").chat.completions.with_streaming_response
        with at.create(model="gpt", messages=ask(), stream=True) as response:
            headers = response.headers
        assert headers["content-type"].startswith("text/event-stream")
        assert headers["cache-control"] == "no-cache, no-store"
        assert "content-encoding" not in headers
        # nginx obeys this one and takes it out.
        assert ("x-accel-buffering" in headers) is (place == gateway.url)


# ---------------------------------------------------------------- a client that leaves


@pytest.mark.parametrize("when", ["before the first word", "in the middle"])
def test_a_client_that_leaves_a_stream_ends_it_upstream(
    nginx: Nginx, gateway: Gateway, account: Account, when: str
):
    in_the_middle = when == "in the middle"
    if not in_the_middle:
        account.fail(hang=True)
    with account.changed(chunk_delay_s=0.2, chunks=200):
        connection = nginx.connect()
        connection.sendall(chat(gateway, stream=True))
        account.upstream.wait_for_requests(1, account=account.name)
        if in_the_middle:
            received = b""
            while received.count(b"data:") < 3:
                received += connection.recv(65536)
        connection.close()
        left = time.monotonic()
        seen = wait_until(lambda: [r for r in account.requests() if r.done], 5)
    assert only(seen).hung_up
    assert seen[0].m_end is not None
    assert seen[0].m_end - left < 2


@pytest.mark.parametrize("upstream_is", ["sending", "stuck in the middle", "silent"])
def test_a_client_that_leaves_a_download_ends_it_upstream(
    nginx: Nginx,
    gateway: Gateway,
    account: Account,
    client: openai.OpenAI,
    upstream_is: str,
):
    made = client.files.create(
        file=("large.bin", generated(64 * MB)),
        purpose="user_data",
        extra_body={"target_model_names": "gpt"},
    )
    if upstream_is == "silent":
        account.fail(method="GET", path_regex="content$", hang=True)
    elif upstream_is != "sending":
        account.fail(method="GET", path_regex="content$", hang="mid_body", after_bytes=MB)
    account.upstream.forget_requests()
    connection = nginx.connect()
    connection.sendall(
        f"GET /v1/files/{made.id}/content HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: Bearer {gateway.master_key}\r\n\r\n".encode()
    )
    account.upstream.wait_for_requests(1, account=account.name)
    received = 0
    while upstream_is != "silent" and received < MB // 2:
        received += len(connection.recv(65536))
    connection.close()
    left = time.monotonic()
    wait_until(lambda: [r for r in account.requests() if r.done], 5)
    time.sleep(1)  # Nobody asks again for him.
    seen = account.requests()
    assert only(seen).hung_up
    assert seen[0].m_end is not None
    assert seen[0].m_end - left < 2


# ---------------------------------------------------------------- refusals


def test_a_file_over_the_limit_is_refused_while_it_is_still_being_sent(
    nginx: Nginx, gateway: Gateway, account: Account
):
    size = (LIMIT_MB + 10) * MB
    with nginx.connect() as connection:
        begun = time.monotonic()
        connection.sendall(start_of_form(gateway, size) + PATTERN)
        status, headers, body = answer(connection)
        took = time.monotonic() - begun
        # The rest may come or not: the answer is here.
        with suppress(OSError):
            connection.sendall(PATTERN)
    assert status == 413
    assert headers["Content-Type"] == "application/json"
    error = assert_envelope(body, "file_too_large")
    assert error["param"] == "file"
    assert str(size) in error["message"]
    assert str(LIMIT_MB * MB) in error["message"]
    assert took < 1
    assert account.requests() == []


def test_the_client_reads_the_refusal_of_a_file_over_the_limit(
    client: openai.OpenAI, account: Account
):
    begun = time.monotonic()
    with pytest.raises(openai.APIStatusError) as refused:
        client.files.create(
            file=("big.bin", generated((LIMIT_MB + 10) * MB)),
            purpose="user_data",
            extra_body={"target_model_names": "gpt"},
        )
    assert (refused.value.status_code, refused.value.code) == (413, "file_too_large")
    assert account.requests() == []
    print(f"\nthe client had its 413 after {time.monotonic() - begun:.2f} s")


def test_the_client_reads_that_its_key_is_bad(nginx: Nginx):
    with closing(nginx.client("sk-nobody-has-this-key")) as stranger:
        for _ in range(3):
            begun = time.monotonic()
            with pytest.raises(openai.AuthenticationError):
                stranger.files.create(file=("f", generated(50 * MB)), purpose="user_data")
            assert time.monotonic() - begun < 2


# ---------------------------------------------------------------- what nginx says itself

SPOKEN = [
    pytest.param(b"rubbish\r\n\r\n", 400, "bad_request", id="rubbish"),
    pytest.param(b"GET / HTTP/1.1\r\n\r\n", 400, "bad_request", id="no host"),
    pytest.param(
        b"GET /" + b"a" * 33_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        414,
        "uri_too_long",
        id="first line beyond nginx",
    ),
    pytest.param(
        b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        414,
        "uri_too_long",
        id="first line beyond the gateway",
    ),
    pytest.param(
        b"GET / HTTP/1.1\r\nHost: a\r\nCookie: " + b"a" * 33_000 + b"\r\n\r\n",
        431,
        "headers_too_large",
        id="header beyond nginx",
    ),
    pytest.param(
        b"GET / HTTP/1.1\r\nHost: a\r\nCookie: " + b"a" * 10_000 + b"\r\n\r\n",
        431,
        "headers_too_large",
        id="header beyond the gateway",
    ),
]


@pytest.mark.parametrize(("sent", "status", "code"), SPOKEN)
def test_what_is_no_request_is_answered_in_the_envelope(
    nginx: Nginx, sent: bytes, status: int, code: str
):
    with nginx.connect() as connection:
        connection.sendall(sent)
        answered, headers, body = answer(connection)
    assert answered == status
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Request-Id"]
    assert len(headers.get_all("X-Request-Id") or []) == 1
    for name, value in {**HEADERS, "Cache-Control": "no-store"}.items():
        assert headers.get_all(name) == [value]
    assert headers["Strict-Transport-Security"]
    assert_envelope(body, code)


def test_http_on_the_tls_port_is_answered_in_the_envelope(nginx: Nginx):
    with socket.create_connection(("127.0.0.1", nginx.port), timeout=10) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
        status, _, body = answer(connection)
    assert status == 400
    assert_envelope(body, "bad_request")


def test_nginx_s_own_page_is_nobody_s_route(nginx: Nginx):
    response = nginx.api("GET", "/.nginx-error")
    assert response.status_code == 404
    assert_envelope(response.content, "not_found", "not_found_error")


def test_the_gateway_s_own_errors_pass_unchanged(nginx: Nginx, gateway: Gateway):
    for path in ("/nowhere", "/v1/models"):
        direct, through = gateway.api("GET", path, key=""), nginx.api("GET", path)
        assert (through.status_code, through.json()) == (direct.status_code, direct.json())
        assert through.headers["x-request-id"].count(",") == 0


def test_http_is_sent_to_https(nginx: Nginx):
    path = "/v1/files?limit=1&after=a%2Fb"
    response = nginx.api("POST", "", data=b"{}", allow_redirects=False)
    assert response.status_code != 308
    port = int(nginx.plain_url.rpartition(":")[2])
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("POST", path, body=b"{}", headers={"Host": "localhost"})
        told = connection.getresponse()
        assert (told.status, told.headers["Location"]) == (308, f"https://localhost{path}")


# ---------------------------------------------------------------- who called, and which request


def test_a_request_id_goes_through(nginx: Nginx, gateway: Gateway, account: Account):
    key = {"Authorization": f"Bearer {gateway.master_key}"}
    own = f"caller-{time.time_ns()}"
    response = nginx.api("GET", "/v1/models", headers={**key, "X-Request-ID": own})
    assert response.headers["x-request-id"] == own
    assert log_line(gateway, own)["status"] == 200

    for insane in ({}, {"X-Request-ID": "no id {}"}, {"X-Request-ID": "x" * 200}):
        response = nginx.api("GET", "/v1/models", headers={**key, **insane})
        made = response.headers["x-request-id"]
        assert re.fullmatch("[0-9a-f]{32}", made)
        assert log_line(gateway, made)["status"] == 200


def test_the_log_names_the_client_and_not_nginx(nginx: Nginx, gateway: Gateway):
    own = f"through-{time.time_ns()}"
    with nginx.connect(source="127.0.0.7") as connection:
        connection.sendall(
            b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 6.6.6.6\r\n"
            + f"X-Request-ID: {own}\r\n\r\n".encode()
        )
        assert answer(connection)[0] == 401
    assert log_line(gateway, own)["remote"] == "127.0.0.7"


# ---------------------------------------------------------------- nothing is sent twice


class Deaf:
    """A server that answers the first request of each connection and hangs up on the next."""

    def __init__(self) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listening.getsockname()[1]}"
        self.requests: list[bytes] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self.listening.accept()
                threading.Thread(target=self._hear, args=[connection], daemon=True).start()

    def _hear(self, connection: socket.socket) -> None:
        with connection:
            for number in range(2):
                request = b""
                while b"\r\n\r\n" not in request:
                    if not (piece := connection.recv(65536)):
                        return
                    request += piece
                self.requests.append(request)
                if number == 0:
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    def close(self) -> None:
        self.listening.close()


@pytest.mark.parametrize("method", ["POST", "DELETE", "GET"])
def test_a_request_is_never_sent_twice(tmp_path: Any, method: str):
    if not is_installed():
        missing("nginx is not installed")
    with closing(Deaf()) as deaf, Nginx(tmp_path, deaf.address) as nginx:
        tunnel = http.client.HTTPSConnection(
            "127.0.0.1", nginx.port, context=nginx.trust(), timeout=10
        )
        with closing(tunnel):
            # One connection to nginx is one worker of it, which keeps its connection to us.
            tunnel.request(method, "/v1/first")
            assert tunnel.getresponse().read() == b"ok"
            tunnel.request(method, "/v1/second")
            response = tunnel.getresponse()
            assert response.status == 502
            assert_envelope(response.read(), "gateway_unreachable", "server_error")
        time.sleep(0.3)
        assert [each.split()[1] for each in deaf.requests] == [b"/v1/first", b"/v1/second"]


def test_a_client_that_leaves_is_no_error_of_ours(gateway: Gateway):
    # Several have left in the tests above.
    assert "Traceback" not in gateway.log_text()
    assert '"ERROR"' not in gateway.log_text()


# Last, for it stops the gateway.
def test_a_gateway_that_is_down_is_told_in_the_envelope(
    nginx: Nginx, gateway: Gateway, client: openai.OpenAI
):
    assert client.models.list().data
    gateway.stop()
    begun = time.monotonic()
    with pytest.raises(openai.InternalServerError) as told:
        client.chat.completions.create(model="gpt", messages=ask())
    assert time.monotonic() - begun < 1
    error = told.value
    assert (error.status_code, error.code, error.type) == (
        502,
        "gateway_unreachable",
        "server_error",
    )
    assert error.request_id
    # A large upload, too, whose body nobody takes.
    with pytest.raises(openai.InternalServerError):
        client.files.create(file=("f", generated(50 * MB)), purpose="user_data")
    gateway.start()
    assert client.models.list().data
