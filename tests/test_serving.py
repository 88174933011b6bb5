"""What gunicorn itself answers: refusals in the envelope, early answers that arrive, clean ends."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent

APPLICATION = """
import time

def app(environ, start_response):
    path = environ["PATH_INFO"]
    status, headers = "200 OK", [("Content-Type", "text/plain")]
    if path == "/refuse":
        status, answer = "401 Unauthorized", b"no"
    elif path == "/read":
        try:
            answer = str(len(environ["wsgi.input"].read())).encode()
        except OSError as error:
            status, answer = "400 Bad Request", str(error).encode()
    elif path == "/slow":
        time.sleep(1)
        answer = b"slow"
    elif path == "/large":
        answer = b"x" * 50_000_000
    elif path == "/break":
        raise KeyError("sk-secret")
    elif path == "/bad-header":
        headers.append(("X-Bad", "one\\ntwo"))
        answer = b""
    else:
        answer = b"hello"
    headers.append(("Content-Length", str(len(answer))))
    start_response(status, headers)
    return [answer]
"""


class Server:
    """A running gunicorn: its port, its process, what it has logged."""

    def __init__(self, folder: Path, *options: str, settings: str = "python:app.serving") -> None:
        (folder / "trivial.py").write_text(APPLICATION)
        self._log = folder / "log"
        with socket.create_server(("127.0.0.1", 0)) as listener, self._log.open("wb") as log:
            self.port = listener.getsockname()[1]
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "gunicorn", "-c", settings),
                    *("--bind", f"fd://{listener.fileno()}"),
                    *("--pythonpath", str(folder)),
                    *options,
                    "trivial:app",
                ],
                cwd=ROOT,
                env={**os.environ, "WEB_CONCURRENCY": "1"},
                pass_fds=[listener.fileno()],
                stderr=log,
            )

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def log(self) -> str:
        return self._log.read_text()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def send(self, data: bytes) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Status, headers and body of the answer to these bytes."""
        with self.connect() as connection:
            connection.sendall(data)
            return read(connection)


def read(connection: socket.socket) -> tuple[int, http.client.HTTPMessage, bytes]:
    with closing(http.client.HTTPResponse(connection)) as response:
        response.begin()
        return response.status, response.headers, response.read()


@pytest.fixture(scope="module", params=["gthread", "gevent"])
def kind(request: pytest.FixtureRequest) -> str:
    """The class of the workers: what a client sees must not tell which one it is."""
    return str(request.param)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, kind: str) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("serving"), "-k", kind)
    yield server
    assert server.stop() == 0, server.log()


@pytest.fixture
def start(tmp_path: Path, kind: str) -> Iterator[Callable[..., Server]]:
    servers = []

    def start(*options: str, **more: str) -> Server:
        servers.append(Server(tmp_path, "-k", kind, *options, **more))
        return servers[-1]

    yield start
    for server in servers:
        server.process.kill()
        server.process.wait()


REFUSALS = [
    pytest.param(b"rubbish\r\n\r\n", 400, "bad_request", id="rubbish"),
    pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", 400, "bad_request", id="tls"),
    pytest.param(b"GET / HTTP/9.9\r\n\r\n", 400, "bad_request", id="version"),
    pytest.param(b"GET / HTTP/1.1\r\nBad header\r\n\r\n", 400, "bad_request", id="no colon"),
    pytest.param(b"GET / HTTP/1.1\r\nA: b\r\n folded\r\n\r\n", 400, "bad_request", id="folded"),
    pytest.param(
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n", 414, "uri_too_long", id="100 KB address"
    ),
    pytest.param(
        b"GET / HTTP/1.1\r\nCookie: " + b"a" * 20_000 + b"\r\n\r\n",
        431,
        "headers_too_large",
        id="20 KB header",
    ),
    pytest.param(
        b"GET / HTTP/1.1\r\n" + b"X-Y: z\r\n" * 101 + b"\r\n",
        431,
        "headers_too_large",
        id="101 headers",
    ),
    pytest.param(
        b"POST / HTTP/1.1\r\nTransfer-Encoding: zstd, chunked\r\n\r\n",
        501,
        "unsupported_transfer_coding",
        id="transfer coding",
    ),
    pytest.param(
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        400,
        "bad_request",
        id="two lengths",
    ),
    pytest.param(
        b"GET / HTTP/1.1\r\nExpect: miracles\r\n\r\n", 417, "expectation_failed", id="expectation"
    ),
    pytest.param(b"GET /break HTTP/1.1\r\n\r\n", 500, "internal_error", id="broken application"),
    pytest.param(b"GET /bad-header HTTP/1.1\r\n\r\n", 500, "internal_error", id="bad answer"),
]


@pytest.mark.parametrize(("sent", "status", "code"), REFUSALS)
def test_what_gunicorn_refuses_comes_in_the_envelope(
    server: Server, sent: bytes, status: int, code: str
):
    answered, headers, body = server.send(sent)
    assert answered == status
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Request-Id"].startswith("req_")
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    assert "sk-secret" not in error["message"]


def test_a_refused_header_is_not_logged(server: Server):
    server.send(b"GET / HTTP/1.1\r\nAuthorization Bearer sk-do-not-log-me\r\n\r\n")
    assert "sk-do-not-log-me" not in server.log()


def test_everything_that_is_logged_is_json(server: Server):
    server.send(b"rubbish\r\n\r\n")
    lines = [json.loads(line) for line in server.log().splitlines()]
    assert {"time", "level", "event"} <= set(lines[0])


def test_an_early_answer_reaches_a_client_that_sends_a_large_body(server: Server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    with closing(connection):
        connection.request("POST", "/refuse", body=b"x" * 50_000_000)
        response = connection.getresponse()
        assert (response.status, response.read()) == (401, b"no")


def test_an_early_answer_to_a_small_body_keeps_the_connection(server: Server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    with closing(connection):
        for _ in range(2):
            connection.request("POST", "/refuse", body=b"x" * 1000)
            assert connection.getresponse().read() == b"no"
            assert connection.sock is not None


def test_a_body_is_only_asked_for_when_it_is_wanted(server: Server):
    head = b"POST %s HTTP/1.1\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
    with server.connect() as connection:
        connection.sendall(head % b"/refuse")
        assert read(connection)[0] == 401
    with server.connect() as connection:
        connection.sendall(head % b"/read")
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"hello")
        assert read(connection)[2] == b"5"


def test_a_chunked_body_arrives(server: Server):
    sent = b"POST /read HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    assert server.send(sent)[2] == b"5"


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"Content-Length: 100\r\n\r\nhello", id="ends early"),
        pytest.param(b"Transfer-Encoding: chunked\r\n\r\nxyz\r\nhello", id="bad chunk size"),
        pytest.param(b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello", id="chunks end early"),
    ],
)
def test_a_body_that_breaks_is_an_error_and_never_a_shorter_body(server: Server, sent: bytes):
    with server.connect() as connection:
        connection.sendall(b"POST /read HTTP/1.1\r\n" + sent)
        connection.shutdown(socket.SHUT_WR)
        assert read(connection)[0] == 400


def test_clients_that_say_nothing_hold_no_thread(start: Callable[..., Server]):
    server = start("--threads", "2")
    silent = [server.connect() for _ in range(8)]
    began = time.monotonic()
    assert server.send(b"GET / HTTP/1.1\r\n\r\n")[0] == 200
    for _ in range(8):
        # Neither does the end of a connection that the client leaves open.
        assert server.send(b"rubbish\r\n\r\n")[0] == 400
    assert time.monotonic() - began < 4
    for connection in silent:
        connection.close()


@pytest.fixture
def impatient(start: Callable[..., Server], tmp_path: Path) -> Server:
    """A server with short limits and one thread."""
    settings = tmp_path / "impatient.py"
    settings.write_text(
        "from app.serving import *\nlimits.HEAD_SECONDS = 0.5\nlimits.IDLE_SECONDS = 1\n"
    )
    return start("--threads", "1", settings=str(settings))


def test_a_client_that_stops_reading_is_left(impatient: Server):
    with impatient.connect() as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\n\r\n")
        assert connection.recv(10) == b"HTTP/1.1 2"
        assert impatient.send(b"GET / HTTP/1.1\r\n\r\n")[0] == 200
    assert "Traceback" not in impatient.log()


def test_a_request_that_drips_is_ended(impatient: Server):
    server = impatient
    with server.connect() as connection:
        for byte in b"GET / HTTP":
            connection.sendall(bytes([byte]))
            time.sleep(0.1)
        status, _, body = read(connection)
        assert (status, json.loads(body)["error"]["code"]) == (408, "request_timeout")
    # A body has no deadline, but may not stand still.
    with server.connect() as connection:
        connection.sendall(b"POST /read HTTP/1.1\r\nContent-Length: 20\r\n\r\n")
        for _ in range(10):
            connection.sendall(b"x")
            time.sleep(0.15)
        assert read(connection)[0] == 400
    with server.connect() as connection:
        connection.sendall(b"POST /read HTTP/1.1\r\nContent-Length: 10\r\n\r\n")
        for _ in range(10):
            connection.sendall(b"x")
            time.sleep(0.15)
        assert read(connection)[2] == b"10"


def test_a_stopping_server_answers_the_request_at_hand_and_ends_well(
    start: Callable[..., Server],
):
    server = start()
    assert server.send(b"GET / HTTP/1.1\r\n\r\n")[0] == 200
    with server.connect() as idle, server.connect() as connection:
        connection.sendall(b"GET /slow HTTP/1.1\r\n\r\n")
        time.sleep(0.3)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert read(connection)[2] == b"slow"
        assert server.process.wait(30) == 0
        assert time.monotonic() - began < 6
        idle.close()


def test_an_address_in_use_is_refused_at_once(server: Server):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "gunicorn", "-c", "python:app.serving"),
            *("--bind", f"127.0.0.1:{server.port}", "wsgi:app"),
        ],
        cwd=ROOT,
        capture_output=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{server.port}".encode() in done.stderr


CONFIGURATION = """
model_list:
  - model_name: gpt
    litellm_params: {model: openai/gpt-4o, api_key: sk-upstream}
"""

MISTAKES = """
model_list:
  - model_name: gpt
    litellm_params: {model: openai/gpt-4o, api_kee: sk-upstream}
nonsense: true
"""


def run(folder: Path, *command: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_mistakes_stop_gunicorn_with_all_of_them_and_no_traceback(tmp_path: Path):
    (tmp_path / "config.yaml").write_text(MISTAKES)
    gunicorn = ("-m", "gunicorn", "-c", "python:app.serving", "--bind", "127.0.0.1:0", "wsgi:app")
    done = run(tmp_path, *gunicorn, WEB_CONCURRENCY="1")
    assert done.returncode == 3
    assert "api_kee" in done.stderr
    assert "nonsense" in done.stderr
    assert "Traceback" not in done.stderr


def test_mistakes_stop_the_command_before_gunicorn(tmp_path: Path):
    (tmp_path / "config.yaml").write_text(MISTAKES)
    done = run(tmp_path, "-m", "app.cli", "serve", "--port", "0")
    assert done.returncode == 2
    assert "api_kee" in done.stderr
    assert "nonsense" in done.stderr
    assert "gunicorn" not in done.stderr


def test_a_missing_configuration_is_named(tmp_path: Path):
    done = run(tmp_path, "-m", "app.cli", "serve")
    assert done.returncode == 2
    assert "config.yaml: no such file" in done.stderr


def test_the_command_serves_from_any_folder_and_stops_on_sigterm(tmp_path: Path):
    (tmp_path / "settings.yaml").write_text(CONFIGURATION)
    # What lies in the current folder is not what is served.
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__init__.py").write_text("raise SystemExit('the wrong app')")
    (tmp_path / "wsgi.py").write_text("raise SystemExit('the wrong wsgi')")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "app.cli", "serve", "--no-worker"),
                *("--config", "settings.yaml", "--port", str(port), "--workers", "2"),
            ],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    try:
        assert process.stdout is not None
        with process.stdout as said:
            assert f"http://127.0.0.1:{port}" in said.readline()
        assert eventually(port, "/health/readiness") == {"status": "healthy", "db": "connected"}
        assert (tmp_path / "data" / "manifold.db").exists()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
    written = log.read_text()
    assert written.count("No master key is configured") == 1
    assert "Traceback" not in written


def eventually(port: int, path: str) -> Any:
    """The JSON at this path, as soon as somebody answers."""
    for _ in range(200):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        with closing(connection):
            try:
                connection.request("GET", path)
                return json.load(connection.getresponse())
            except ConnectionRefusedError:
                time.sleep(0.1)
    raise AssertionError("nobody answers")


def test_the_tables_can_be_looked_at_and_upgraded(tmp_path: Path):
    (tmp_path / "config.yaml").write_text(CONFIGURATION)
    assert run(tmp_path, "-m", "app.cli", "db", "current").stdout.startswith("database None")
    assert run(tmp_path, "-m", "app.cli", "db", "upgrade").stdout.startswith("from None to ")
    assert run(tmp_path, "-m", "app.cli", "db", "upgrade").stdout.startswith("already ")


def test_no_other_parser_than_the_strict_one_is_used(tmp_path, start):
    (tmp_path / "gunicorn_h1c.py").write_text(
        "class LimitRequestLine(Exception): ...\n"
        "def parse_request(*_, **__): raise SystemExit('not as strict')\n"
    )
    server = start()
    status, _, body = server.send(b"GET / HTTP/1.1\r\n\r\n")
    assert (status, body) == (200, b"hello")
    asked_for = start("--http-parser", "fast")
    assert asked_for.process.wait(30) != 0
    assert "the others are not as strict" in asked_for.log()
