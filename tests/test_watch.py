"""Who waits for whose request."""

import socket
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from app import turns
from app.server import limits
from app.server import watch as watch_module
from app.server.threads import Worker
from app.server.watch import Watch
from tests.e2e.gateway import wait_until


class House:
    """A watch with its pool, and what each thread does with the connections that it gets."""

    def __init__(self) -> None:
        self.given_back: list[Any] = []
        self.served: list[tuple[bytes, int]] = []
        self.answered: dict[bytes, bool] = {}
        self.works: list[Future[None]] = []
        self.calls = 0
        self.is_short = False
        self.pool = ThreadPoolExecutor(8)
        self.theirs: list[socket.socket] = []
        self.watch = Watch(self.given_back.append, self.call, lambda: self.is_short)
        self.work: Any = lambda said: None

    def call(self) -> None:
        self.calls += 1
        self.submit(self.follow)

    def submit(self, work: Any, *arguments: Any) -> None:
        self.works.append(self.pool.submit(work, *arguments))

    def follow(self, first: Any = None) -> None:
        Worker._follow(self, first)  # type: ignore[arg-type]  # it has what is needed

    def _serve(self, conn: Any) -> bool:
        said = conn.sock.recv(100)
        self.served.append((said, threading.get_ident()))
        self.work(said)
        if said:
            conn.sock.sendall(said)
        if said in (b"", b"the last"):
            conn.sock.close()
            return False
        self.watch.rest(conn)
        return True

    def client(self) -> socket.socket:
        """A connection that has been answered once, and rests."""
        theirs, ours = socket.socketpair()
        theirs.settimeout(10)
        self.theirs.append(theirs)
        theirs.sendall(b"first")
        self.submit(self.follow, SimpleNamespace(sock=ours))
        assert theirs.recv(100) == b"first"
        return theirs

    def upstream(self) -> tuple[socket.socket, int]:
        """Where an answer will come from, and the descriptor to await it at."""
        theirs, ours = socket.socketpair()
        self.theirs += [theirs, ours]
        return theirs, ours.fileno()

    def awaits(self, theirs: socket.socket, said: bytes, descriptor: int) -> None:
        """Ask for something that waits for an answer at `descriptor`, and return once it does."""

        def work(asked: bytes) -> None:
            before(asked)
            if asked == said:
                self.answered[said] = self.watch.until_readable(descriptor, 30)

        before, self.work = self.work, work
        theirs.sendall(said)
        wait_until(lambda: descriptor in self.watch._awaiting)

    def thread_of(self, said: bytes) -> int:
        return next(thread for one, thread in reversed(self.served) if one == said)

    def ask(self, theirs: socket.socket, said: bytes) -> int:
        """The thread that answered."""
        theirs.sendall(said)
        assert theirs.recv(100) == said
        return self.thread_of(said)


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
    for work in made.works:
        if work.done() and not work.cancelled():
            work.result()


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
    house.submit(house.follow, house.given_back[0])
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


def test_who_awaits_an_answer_leads_until_it_comes(house):
    client = house.client()
    upstream, descriptor = house.upstream()
    for n in range(5):
        said = b"chat %d" % n
        house.awaits(client, said, descriptor)
        upstream.sendall(b"answer")
        assert client.recv(100) == said and house.answered[said]
        assert house.watch._epoll.poll(0) == []
        # It is known by now, and has nothing more to say.
        socket.socket(fileno=socket.dup(descriptor)).recv(100)
    assert house.calls == 0
    assert len({thread for _, thread in house.served[1:]}) == 1


def test_a_request_beside_an_awaited_answer_is_served_by_another(house):
    one, other = house.client(), house.client()
    upstream, descriptor = house.upstream()
    house.awaits(one, b"chat", descriptor)
    threads = {house.ask(other, f"quick {n}".encode()) for n in range(20)}
    upstream.sendall(b"answer")
    assert one.recv(100) == b"chat" and house.answered[b"chat"]
    assert house.thread_of(b"chat") not in threads and len(threads) == 1


def test_each_gets_his_own_answer_in_whatever_order(house):
    clients = [house.client() for _ in range(4)]
    upstreams = [house.upstream() for _ in clients]
    for n, (client, (_, descriptor)) in enumerate(zip(clients, upstreams, strict=True)):
        house.awaits(client, b"chat %d" % n, descriptor)
    for n in (2, 0, 3, 1):
        upstreams[n][0].sendall(b"answer")
        assert clients[n].recv(100) == b"chat %d" % n
    assert all(house.answered.values()) and len(house.answered) == 4
    assert not house.watch._awaiting and not house.watch._ready


@pytest.mark.parametrize("is_error", [False, True])
def test_who_leads_and_serves_no_more_hands_the_watch_over(house, is_error):
    """A new connection's thread has come to lead while it waited, and its connection ends."""
    resting = house.client()
    upstream, descriptor = house.upstream()
    theirs, ours = socket.socketpair()
    house.theirs.append(theirs)
    begun = threading.Event()

    def work(said: bytes) -> None:
        if said == b"the last":
            begun.set()
            assert house.watch.until_readable(descriptor, 30)
            assert house.watch._leader == threading.get_ident()
            if is_error:
                raise ZeroDivisionError

    house.work = work
    theirs.sendall(b"the last")
    house.submit(house.follow, SimpleNamespace(sock=ours))
    assert begun.wait(10)
    upstream.sendall(b"answer")
    if is_error:
        wait_until(house.works[-1].done)
        with pytest.raises(ZeroDivisionError):
            house.works.pop().result()
    else:
        assert theirs.recv(100) == b"the last"
    assert house.ask(resting, b"still here")


def test_an_answer_is_not_awaited_for_ever(house):
    client = house.client()
    upstream, descriptor = house.upstream()
    begun = time.monotonic()

    def work(said: bytes) -> None:
        if said == b"chat":
            house.answered[said] = house.watch.until_readable(descriptor, 0.1)

    house.work = work
    client.sendall(b"chat")
    assert client.recv(100) == b"chat"
    assert not house.answered[b"chat"] and 0.1 <= time.monotonic() - begun < 5
    # Too late: it is nobody's, and confuses nobody.
    upstream.sendall(b"answer")
    assert house.ask(client, b"again") and not house.watch._ready


def test_an_answer_waits_for_nobody_who_works_for_long(house, monkeypatch):
    monkeypatch.setattr(turns, "PATIENCE_SECONDS", 0.01)
    one, other = house.client(), house.client()
    upstream, descriptor = house.upstream()
    go_on = threading.Event()

    def work(said: bytes) -> None:
        if said == b"long":
            assert go_on.wait(10)

    house.work = work
    house.awaits(one, b"chat", descriptor)
    other.sendall(b"long")
    wait_until(lambda: house.served[-1][0] == b"long")
    begun = time.monotonic()
    upstream.sendall(b"answer")
    assert one.recv(100) == b"chat"
    assert time.monotonic() - begun < 5
    go_on.set()
    assert other.recv(100) == b"long"


def test_a_request_goes_before_one_answer_and_not_before_two(house):
    watch = house.watch
    watch._call = lambda: None
    answers = [watch_module._Place(), watch_module._Place()]
    watch._ready.extend([answers[0], "first", "second", answers[1], "third"])
    assert watch._next_ready() == "first"
    assert watch._next_ready() is None and answers[0].chosen.acquire(blocking=False)
    assert [watch._next_ready() for _ in range(3)] == ["second", "third", None]
    assert answers[1].chosen.acquire(blocking=False) and not watch._ready


def test_who_rests_beside_an_awaited_answer_rests_no_longer(house, monkeypatch):
    monkeypatch.setattr(limits, "STAY_SECONDS", 0.02)
    one, other = house.client(), house.client()
    wait_until(lambda: len(house.given_back) == 2)
    upstream, descriptor = house.upstream()
    begin = list(house.given_back)
    house.given_back.clear()
    house.work = lambda said: said == b"chat" and house.watch.until_readable(descriptor, 30)
    one.sendall(b"chat")
    other.sendall(b"quick")
    for conn in begin:
        house.submit(house.follow, conn)
    assert other.recv(100) == b"quick"
    wait_until(lambda: len(house.given_back) == 1)
    upstream.sendall(b"answer")
    assert one.recv(100) == b"chat"


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
                house.submit(house.follow, conn)
            time.sleep(0.0005)

    def work(said: bytes) -> None:
        number = int(said.split()[-1]) if b" " in said else 0
        if number % 3 == 0:
            house.watch.hand_over()
        if number % 4 == 0:
            time.sleep(0.002)
        if number % 5 == 1:
            theirs, ours = socket.socketpair()
            upstream.submit(answer, theirs, number % 3 * 0.001)
            assert house.watch.until_readable(ours.fileno(), 10)
            assert ours.recv(100) == b"answer"
            # The next one may get the same descriptor.
            ours.close()
            theirs.close()

    def answer(theirs: socket.socket, delay: float) -> None:
        time.sleep(delay)
        theirs.sendall(b"answer")

    def ask(client: socket.socket, name: int) -> int:
        for n in range(200):
            house.ask(client, f"{name} {n}".encode())
            if n % 20 == 0:
                time.sleep(0.004)
        return 200

    house.work = work
    upstream = ThreadPoolExecutor(6)
    loop = threading.Thread(target=main_loop)
    loop.start()
    try:
        clients = [house.client() for _ in range(6)]
        with ThreadPoolExecutor(6) as asking, upstream:
            assert sum(asking.map(ask, clients, range(6))) == 1200
    finally:
        over.set()
        loop.join()
