"""A client that hangs up is noticed while its request waits; nobody else is disturbed."""

import os
import select
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from app.api import hangup
from app.errors import UpstreamError
from app.transfers import Cancellation

pytestmark = pytest.mark.skipif(not hasattr(select, "epoll"), reason="only Linux tells")


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The server's end and the client's."""
    server, client = socket.socketpair()
    yield server, client
    server.close()
    client.close()


def test_a_client_that_closes_is_noticed(pair):
    server, client = pair
    gone = threading.Event()
    stop = hangup.watch(server, gone.set)
    assert not gone.wait(0.05)
    client.close()
    assert gone.wait(2)
    stop()


def test_a_client_that_was_gone_before_is_noticed(pair):
    server, client = pair
    client.close()
    gone = threading.Event()
    stop = hangup.watch(server, gone.set)
    assert gone.wait(2)
    stop()


def test_a_reset_connection_is_noticed():
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    server, _ = listener.accept()
    gone = threading.Event()
    stop = hangup.watch(server, gone.set)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    assert gone.wait(2)
    stop()
    server.close()
    listener.close()


def test_a_client_that_sends_more_is_still_there(pair):
    server, client = pair
    gone = threading.Event()
    stop = hangup.watch(server, gone.set)
    client.sendall(b"GET / HTTP/1.1\r\n\r\n")
    assert not gone.wait(0.1)
    assert server.recv(100) == b"GET / HTTP/1.1\r\n\r\n", "the watch has read it"
    client.close()
    assert gone.wait(2)
    stop()


def test_it_is_said_once(pair):
    server, client = pair
    times: list[float] = []
    stop = hangup.watch(server, lambda: times.append(time.monotonic()))
    client.shutdown(socket.SHUT_WR)
    time.sleep(0.05)
    client.close()
    time.sleep(0.1)
    assert len(times) == 1
    stop()


def test_after_the_end_of_the_watch_nothing_is_said(pair):
    server, client = pair
    gone = threading.Event()
    stop = hangup.watch(server, gone.set)
    stop()
    stop()
    client.close()
    assert not gone.wait(0.1)


def test_one_connection_is_watched_request_after_request(pair):
    server, client = pair
    first, second = threading.Event(), threading.Event()
    stop_first = hangup.watch(server, first.set)
    stop_first()
    stop_second = hangup.watch(server, second.set)
    stop_first()
    client.close()
    assert second.wait(2)
    assert not first.is_set()
    stop_second()


def test_a_watch_that_nobody_ended_does_not_stand_in_the_way_of_the_next(pair):
    server, client = pair
    first, second = threading.Event(), threading.Event()
    hangup.watch(server, first.set)
    stop = hangup.watch(server, second.set)
    client.close()
    assert second.wait(2)
    assert not first.is_set()
    stop()


def test_who_gets_the_number_of_a_gone_connection_is_left_alone():
    """An event is late: its connection's number is another connection's by then."""
    blocked, go_on, disturbed = threading.Event(), threading.Event(), threading.Event()
    pairs = [socket.socketpair() for _ in range(4)]
    (first, _), (second, _), (third, _), (newcomer, _) = pairs

    def stand_still() -> None:
        blocked.set()
        go_on.wait(5)

    def hand_over() -> None:
        # `third` ends its watch and closes, and `newcomer` gets its number and begins one.
        os.dup2(newcomer.fileno(), third.fileno())
        assert hangup._watcher is not None
        hangup._watcher._watched[third.fileno()] = disturbed.set

    stops = [
        hangup.watch(first, stand_still),
        hangup.watch(second, hand_over),
        hangup.watch(third, lambda: None),
    ]
    for _, client in pairs[:1]:
        client.close()
    assert blocked.wait(2)
    # The next look at the sockets tells of both, in this order.
    pairs[1][1].close()
    pairs[2][1].close()
    go_on.set()
    assert not disturbed.wait(0.2)
    for stop in stops:
        stop()
    for server, client in pairs:
        server.close()
        client.close()


def test_a_callback_that_fails_does_not_end_all_watching(pair):
    server, client = pair
    other_server, other_client = socket.socketpair()
    gone = threading.Event()

    def fail() -> None:
        raise ZeroDivisionError

    stop = hangup.watch(server, fail)
    client.close()
    time.sleep(0.05)
    stop_other = hangup.watch(other_server, gone.set)
    other_client.close()
    assert gone.wait(2)
    stop()
    stop_other()
    other_server.close()


def test_a_connection_that_is_closed_here_is_a_gone_client():
    server, client = socket.socketpair()
    server.close()
    client.close()
    gone = threading.Event()
    stop = hangup.watch(server, gone.set)
    assert gone.wait(2)
    stop()


def test_without_a_socket_nothing_is_watched():
    hangup.watch(None, lambda: None)()


def test_many_clients_at_once():
    pairs = [socket.socketpair() for _ in range(100)]
    gone: list[int] = []
    stops = [
        hangup.watch(server, lambda n=n: gone.append(n))  # type: ignore[misc]
        for n, (server, _) in enumerate(pairs)
    ]
    for n, (_, client) in enumerate(pairs):
        if n % 2:
            client.close()
    deadline = time.monotonic() + 2
    while len(gone) < 50 and time.monotonic() < deadline:
        time.sleep(0.01)
    for stop in stops:
        stop()
    for server, client in pairs:
        server.close()
        client.close()
    time.sleep(0.05)
    assert sorted(gone) == list(range(1, 100, 2))


def test_what_a_cancel_does_to_the_chunks_is_the_clients_broken_connection():
    cancellation = Cancellation()

    def chunks() -> Iterator[bytes]:
        yield b"a"
        raise UpstreamError("broken")

    with pytest.raises(UpstreamError):
        list(hangup.relayed(chunks(), cancellation))
    cancellation.cancel()
    with pytest.raises(ConnectionResetError):
        list(hangup.relayed(chunks(), cancellation))
    assert list(hangup.relayed(iter([b"a"]), cancellation)) == [b"a"]
