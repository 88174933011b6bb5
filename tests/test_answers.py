"""What a worker writes to a connection, and when."""

import socket
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http.body import LengthReader

from app import turns
from app.server.answers import Answer
from app.server.bodies import Arriving
from app.server.threads import Client


class Wire:
    """A socket that remembers each write."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []

    def sendall(self, data: bytes) -> None:
        self.writes.append(bytes(data))


def answer(headers: list[tuple[str, str]], method: str = "GET") -> tuple[Answer, Wire]:
    request = SimpleNamespace(method=method, version=(1, 1), headers=[], should_close=lambda: False)
    wire = Wire()
    made = Answer(request, wire, Config())
    made.start_response("200 OK", headers)
    return made, wire


def test_a_small_answer_is_one_write():
    made, wire = answer([("Content-Length", "5")])
    made.write(b"small")
    made.close()
    [only] = wire.writes
    assert only.startswith(b"HTTP/1.1 200 OK\r\n") and only.endswith(b"\r\n\r\nsmall")


def test_a_stream_s_head_goes_out_with_its_first_piece_and_no_later():
    made, wire = answer([])
    made.write(b"one")
    assert wire.writes[0].endswith(b"\r\n\r\n3\r\none\r\n")
    made.write(b"two")
    made.close()
    assert wire.writes[1:] == [b"3\r\ntwo\r\n", b"0\r\n\r\n"]


def test_a_large_piece_is_not_copied():
    large = b"x" * 100_000
    made, wire = answer([("Content-Length", str(len(large)))])
    made.write(large)
    assert [len(write) for write in wire.writes][1:] == [100_000]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_an_answer_without_a_body_has_a_head(method):
    made, wire = answer([("Content-Length", "0")], method)
    if method == "HEAD":
        made.write(b"not to be seen")
    made.close()
    assert b"".join(wire.writes).endswith(b"\r\n\r\n")


@pytest.mark.parametrize(("left", "connection"), [(64 * 1024, "keep-alive"), (10**6, "close")])
def test_who_still_sends_much_is_told_that_the_connection_ends(left, connection):
    made, wire = answer([("Content-Length", "0")])
    made.arriving = Arriving(SimpleNamespace(length=left), wire, False)
    made.close()
    assert f"\r\nConnection: {connection}\r\n".encode() in wire.writes[0]


def test_nobody_waits_for_a_body_that_is_not_there():
    told: list[str] = []
    reader = LengthReader(None, 0)
    watch: Any = SimpleNamespace(hand_over=lambda: told.append("waits"))
    turns.take(watch)
    try:
        assert Arriving(reader, None, False).read(1024) == b""
        assert not told, "another thread would be awakened for each request"
    finally:
        turns.done()
        turns._this_thread.watch = None


def test_what_cannot_be_sent_is_the_application_s_to_know():
    made, wire = answer([("Content-Length", "5")])

    def refuse(_data: Any) -> None:
        raise ConnectionResetError

    wire.sendall = refuse  # type: ignore[method-assign, assignment]
    with pytest.raises(ConnectionResetError):
        made.write(b"small")
    assert made.sock is wire


def test_blocking_is_set_where_it_is_not_so():
    ours, theirs = socket.socketpair()
    with theirs, Client(fileno=ours.detach()) as client:
        client.setblocking(False)
        assert client.gettimeout() == 0
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.setblocking(True)
        client.setblocking(True)
        assert client.gettimeout() is None
        client.settimeout(5)
        client.setblocking(False)
        assert client.gettimeout() == 0
