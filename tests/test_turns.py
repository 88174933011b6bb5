"""One thread at work at a time, and nobody who waits for long."""

import socket
import threading
import time
from typing import Any

import pytest

from app import turns


def in_thread(do):
    thread = threading.Thread(target=do)
    thread.start()
    return thread


def test_others_wait_for_who_is_at_work_and_go_on_without_the_turn(monkeypatch):
    monkeypatch.setattr(turns, "PATIENCE_SECONDS", 0.05)
    begun = time.monotonic()
    waited = []

    def second():
        turns.take()
        waited.append(time.monotonic() - begun)
        turns.leave()

    turns.take()
    in_thread(second).join()
    turns.leave()
    assert waited[0] >= 0.05


def test_who_leaves_the_turn_lets_the_next_one_begin(monkeypatch):
    monkeypatch.setattr(turns, "PATIENCE_SECONDS", 60)
    turns.take()
    begun = threading.Event()

    def second():
        turns.take()
        begun.set()
        turns.leave()

    thread = in_thread(second)
    assert not begun.wait(0.05)
    turns.leave()
    assert begun.wait(10)
    thread.join()


def test_who_did_not_get_it_cannot_leave_it(monkeypatch):
    monkeypatch.setattr(turns, "PATIENCE_SECONDS", 0.001)

    def impatient():
        turns.take()
        turns.leave()

    turns.take()
    in_thread(impatient).join()
    assert turns._turn.locked()
    turns.leave()
    turns.leave()
    assert not turns._turn.locked()


def test_who_waits_leaves_the_turn_and_takes_it_again(monkeypatch):
    monkeypatch.setattr(turns, "PATIENCE_SECONDS", 60)
    turns.take()

    def other():
        turns.take()
        turns.leave()

    with turns.waiting():
        assert not turns.is_at_work()
        in_thread(other).join(10)
    assert turns.is_at_work()
    with pytest.raises(ZeroDivisionError), turns.waiting():
        raise ZeroDivisionError
    assert turns.is_at_work()
    turns.leave()


def test_who_has_no_turn_waits_without_one():
    with turns.waiting():
        assert not turns._turn.locked()
    assert not turns._turn.locked()


class Told:
    """A watch that notes what it is told, and whether somebody had the turn then."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []
        self.is_readable = True

    def hand_over(self) -> None:
        self.heard.append(("hand over", turns._turn.locked()))

    def until_readable(self, descriptor: int, seconds: float | None) -> bool:
        self.heard.append((descriptor, seconds, turns._turn.locked()))
        return self.is_readable


@pytest.fixture
def told(monkeypatch):
    monkeypatch.setattr(turns, "PATIENCE_SECONDS", 0.001)
    yield Told()
    turns.done()
    turns._this_thread.watch = None


def test_the_watch_is_told_before_a_wait_and_not_at_the_end(told):
    turns.take(told)
    turns.leave()
    turns.leave()
    assert told.heard == [("hand over", False)]
    turns.take(told)
    turns.done()
    assert (len(told.heard), turns.is_at_work()) == (1, False)


def test_the_watch_is_told_by_one_who_goes_on_without_the_turn(told):
    in_other_hands, over = threading.Event(), threading.Event()

    def other():
        turns.take()
        in_other_hands.set()
        over.wait(10)
        turns.leave()

    thread = in_thread(other)
    try:
        assert in_other_hands.wait(10)
        turns.take(told)
        assert turns.is_at_work(), "somebody may wait for it, with the turn or without"
        with turns.waiting():
            assert told.heard == [("hand over", True)]
        with turns.waiting():
            assert len(told.heard) == 2
    finally:
        over.set()
        thread.join()


def test_an_answer_is_awaited_at_the_watch(told):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(7)
        turns.take(told)
        turns.until_readable(ours)
        assert told.heard == [(ours.fileno(), 7.0, False)]
        assert turns.is_at_work() and turns._turn.locked()
        told.is_readable = False
        with pytest.raises(TimeoutError):
            turns.until_readable(ours)
        assert turns.is_at_work()
        turns.leave()
        # Who is not at work waits where he reads.
        turns.until_readable(ours)
        assert len([heard for heard in told.heard if heard[0] == ours.fileno()]) == 2


def test_an_answer_is_awaited_without_a_watch_too():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        turns.take()
        ours.settimeout(0.05)
        with pytest.raises(TimeoutError):
            turns.until_readable(ours)
        ours.settimeout(None)
        theirs.sendall(b"answer")
        turns.until_readable(ours)
        assert turns.is_at_work() and turns._turn.locked()
        turns.done()
