"""Who waits for whose request."""

import socket
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from app import turns
from app.server import limits
from app.server.watch import Watch
from tests.e2e.gateway import wait_until


class House:
    """A watch with its pool, and what each thread does with the connections that it gets."""

    def __init__(self) -> None:
        self.given_back: list[Any] = []
        self.served: list[tuple[bytes, int]] = []
        self.calls = 0
        self.is_short = False
        self.pool = ThreadPoolExecutor(8)
        self.theirs: list[socket.socket] = []
        self.watch = Watch(self.given_back.append, self.call, lambda: self.is_short)
        self.work: Any = lambda said: None

    def call(self) -> None:
        self.calls += 1
        self.pool.submit(self.follow)

    def follow(self) -> None:
        while (conn := self.watch.next()) is not None:
            self.serve(conn)

    def serve(self, conn: Any) -> None:
        said = conn.sock.recv(100)
        self.served.append((said, threading.get_ident()))
        self.work(said)
        if said:
            conn.sock.sendall(said)
            self.watch.rest(conn)
        else:
            conn.sock.close()

    def begin(self, conn: Any) -> None:
        self.serve(conn)
        self.follow()

    def client(self) -> socket.socket:
        """A connection that has been answered once, and rests."""
        theirs, ours = socket.socketpair()
        theirs.settimeout(10)
        self.theirs.append(theirs)
        theirs.sendall(b"first")
        self.pool.submit(self.begin, SimpleNamespace(sock=ours))
        assert theirs.recv(100) == b"first"
        return theirs

    def ask(self, theirs: socket.socket, said: bytes) -> int:
        """The thread that answered."""
        theirs.sendall(said)
        assert theirs.recv(100) == said
        return next(thread for one, thread in reversed(self.served) if one == said)


@pytest.fixture
def house(monkeypatch):
    monkeypatch.setattr(limits, "STAY_SECONDS", 60)
    monkeypatch.setattr(turns, "PATIENCE_SECONDS", 60)
    made = House()
    yield made
    for theirs in made.theirs:
        theirs.close()
    made.is_short = False
    made.work = lambda said: None
    made.pool.shutdown(wait=False, cancel_futures=True)


def test_one_thread_serves_all_who_are_busy(house):
    clients = [house.client() for _ in range(5)]
    asked = [
        house.ask(client, f"{n} {i}".encode())
        for n in range(20)
        for i, client in enumerate(clients)
    ]
    assert len(set(asked)) == 1


def test_who_waits_hands_the_watch_to_another(house):
    one, other = house.client(), house.client()
    go_on = threading.Event()

    def work(said: bytes) -> None:
        if said == b"slow":
            house.watch.hand_over()
            house.watch.hand_over()
            assert go_on.wait(10)

    house.work = work
    one.sendall(b"slow")
    wait_until(lambda: house.served[-1][0] == b"slow")
    threads = {house.ask(other, f"quick {n}".encode()) for n in range(5)}
    go_on.set()
    assert one.recv(100) == b"slow"
    assert len(threads) == 1 and house.served[-6][1] not in threads


def test_nobody_is_awakened_where_there_is_nobody_else(house):
    only = house.client()
    house.work = lambda said: house.watch.hand_over()
    for n in range(5):
        house.ask(only, str(n).encode())
    assert house.calls == 0


def test_who_works_for_long_keeps_nobody_waiting(house, monkeypatch):
    monkeypatch.setattr(turns, "PATIENCE_SECONDS", 0.01)
    one, other = house.client(), house.client()
    go_on = threading.Event()

    def work(said: bytes) -> None:
        if said == b"long":
            assert go_on.wait(10)

    house.work = work
    one.sendall(b"long")
    wait_until(lambda: house.served[-1][0] == b"long")
    begun = time.monotonic()
    house.ask(other, b"quick")
    assert time.monotonic() - begun < 5
    go_on.set()
    assert one.recv(100) == b"long"
    assert house.ask(one, b"again") and house.ask(other, b"again too")


def test_who_says_nothing_for_a_while_is_given_back(house, monkeypatch):
    monkeypatch.setattr(limits, "STAY_SECONDS", 0.02)
    client = house.client()
    wait_until(lambda: len(house.given_back) == 1)
    client.sendall(b"late")
    time.sleep(0.05)
    assert [said for said, _ in house.served] == [b"first"]
    # It may rest again later.
    house.pool.submit(house.begin, house.given_back[0])
    assert client.recv(100) == b"late"
    wait_until(lambda: len(house.given_back) == 2)


def test_a_client_that_leaves_is_noticed(house):
    client = house.client()
    client.close()
    wait_until(lambda: house.served[-1][0] == b"")


def test_all_are_given_back_where_others_wait_for_a_thread(house, monkeypatch):
    monkeypatch.setattr(turns, "PATIENCE_SECONDS", 0.01)
    one, two = house.client(), house.client()
    house.is_short = True
    answered = 0
    end = time.monotonic() + 10
    with suppress(TimeoutError):
        one.settimeout(0.2)
        while time.monotonic() < end:
            house.ask(one, b"more")
            answered += 1
            time.sleep(0.001)
    assert answered and len(house.given_back) == 2
    two.sendall(b"unheard")
    time.sleep(0.02)
    assert house.served[-1][0] == b"more"


def test_many_clients_and_much_waiting_lose_nothing(house, monkeypatch):
    monkeypatch.setattr(limits, "STAY_SECONDS", 0.003)
    monkeypatch.setattr(turns, "PATIENCE_SECONDS", 0.001)
    back: deque[Any] = deque()
    over = threading.Event()
    house.watch._give_back = back.append

    def main_loop() -> None:
        while not over.is_set():
            if back:
                conn = back.popleft()
                conn.sock.setblocking(True)
                house.pool.submit(house.begin, conn)
            time.sleep(0.0005)

    def work(said: bytes) -> None:
        number = int(said.split()[-1]) if b" " in said else 0
        if number % 3 == 0:
            house.watch.hand_over()
        if number % 4 == 0:
            time.sleep(0.002)

    def ask(client: socket.socket, name: int) -> int:
        for n in range(200):
            house.ask(client, f"{name} {n}".encode())
            if n % 20 == 0:
                time.sleep(0.004)
        return 200

    house.work = work
    loop = threading.Thread(target=main_loop)
    loop.start()
    try:
        clients = [house.client() for _ in range(6)]
        with ThreadPoolExecutor(6) as asking:
            assert sum(asking.map(ask, clients, range(6))) == 1200
    finally:
        over.set()
        loop.join()
