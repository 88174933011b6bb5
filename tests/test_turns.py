"""One thread at work at a time, and nobody who waits for long."""

import threading
import time

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


def test_who_is_about_to_wait_is_told_so_once(monkeypatch):
    monkeypatch.setattr(turns, "PATIENCE_SECONDS", 0.001)
    told = []
    turns.take(before_waiting=lambda: told.append(turns._turn.locked()))
    turns.leave()
    turns.leave()
    assert told == [False]
    turns.take(before_waiting=lambda: told.append(True))
    turns.done()
    assert (told, turns.is_at_work()) == ([False], False)
    in_other_hands = threading.Event()

    def other():
        turns.take()
        in_other_hands.wait(10)
        turns.leave()

    thread = in_thread(other)
    try:
        turns.take(before_waiting=lambda: told.append(True))
        assert turns.is_at_work(), "somebody may wait for it, with the turn or without"
        with turns.waiting():
            assert told == [False, True]
    finally:
        in_other_hands.set()
        thread.join()
        turns.leave()
    assert told == [False, True]
