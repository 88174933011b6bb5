"""How a thread waits for an upstream's answer: beside others, and for as long as it may."""

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import trustme

from app import turns
from app.providers.lines import Line, repeated

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Upstream:
    """It answers each request on one connection after another as `answer` does."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.context = context
        self.asked = threading.Event()
        self.go_on = threading.Event()
        self.pieces = [ANSWER]
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http{'s' if self.context else ''}://127.0.0.1:{self.listener.getsockname()[1]}"

    def _serve(self) -> None:
        connection, _ = self.listener.accept()
        if self.context:
            # With TLS 1.3 tickets follow the handshake: something to read that is no answer.
            connection = self.context.wrap_socket(connection, server_side=True)
        with connection:
            while connection.recv(65536):
                self.asked.set()
                assert self.go_on.wait(20)
                for piece in self.pieces:
                    connection.sendall(piece)
                    time.sleep(0.01)


@pytest.fixture(params=["http", "https"])
def upstream(request: Any, tmp_path: Any, monkeypatch: Any) -> Iterator[Upstream]:
    context = None
    if request.param == "https":
        authority = trustme.CA()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    made = Upstream(context)
    yield made
    made.go_on.set()
    made.listener.close()


def ask(upstream: Upstream, line: Line, seconds: float = 10) -> Any:
    return line.send("GET", "/", params=None, data=None, headers={}, timeout=(0.2, seconds))


class Asking(threading.Thread):
    """A request of a thread that is at work."""

    def __init__(self, upstream: Upstream, line: Line, **more: float) -> None:
        super().__init__(daemon=True)
        self.upstream, self.line, self.more = upstream, line, more
        self.answer: Any = None
        self.start()

    def run(self) -> None:
        turns.take()
        try:
            self.answer = ask(self.upstream, self.line, **self.more)
        except Exception as error:
            self.answer = error
        self.is_at_work = turns.is_at_work()
        turns.done()


def test_nobody_has_the_turn_while_an_answer_is_waited_for(upstream):
    line = Line(upstream.url, 1, repeated(0))
    for _ in range(2):
        upstream.asked.clear()
        upstream.go_on.clear()
        asking = Asking(upstream, line)
        assert upstream.asked.wait(10)
        # Longer than a connection may take to be made.
        for _ in range(6):
            time.sleep(0.1)
            assert not turns._turn.locked()
        upstream.go_on.set()
        asking.join(10)
        assert asking.answer.content == b"ok"
        assert asking.is_at_work


def test_an_answer_in_pieces_is_one(upstream):
    upstream.pieces = [ANSWER[n : n + 7] for n in range(0, len(ANSWER), 7)]
    upstream.go_on.set()
    asking = Asking(upstream, Line(upstream.url, 1, repeated(0)))
    asking.join(10)
    assert asking.answer.content == b"ok"


def test_what_a_server_says_before_its_answer_is_no_answer(upstream):
    upstream.pieces = [b"HTTP/1.1 100 Continue\r\n\r\n" + ANSWER]
    upstream.go_on.set()
    asking = Asking(upstream, Line(upstream.url, 1, repeated(0)))
    asking.join(10)
    assert asking.answer.content == b"ok"


def test_no_answer_in_time_is_an_error(upstream):
    begun = time.monotonic()
    asking = Asking(upstream, Line(upstream.url, 1, repeated(0)), seconds=0.4)
    asking.join(10)
    assert "Read timed out" in str(asking.answer)
    assert 0.4 <= time.monotonic() - begun < 5
    assert not turns._turn.locked()
