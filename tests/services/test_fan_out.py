"""One call at several places: side by side, every outcome kept, none stops the rest."""

import threading
import time

import pytest

from app.errors import NotFound, UpstreamError
from app.services.fan_out import FanOut


def test_every_call_gets_its_own_outcome():
    error = UpstreamError("no")

    def fail():
        raise error

    found = FanOut(4).run({"a": lambda: 1, "b": fail, "c": lambda: None})
    assert found == {"a": 1, "b": error, "c": None}
    assert list(found) == ["a", "b", "c"]


def test_nothing_to_do_is_done_at_once():
    assert FanOut(1).run({}) == {}


def test_the_calls_run_at_the_same_time():
    together = threading.Barrier(8)
    found = FanOut(8).run({str(n): lambda: together.wait(5) for n in range(8)})
    assert set(found.values()) == set(range(8))


def test_one_call_needs_no_thread():
    assert FanOut(1).run({"a": threading.current_thread}) == {"a": threading.current_thread()}


def test_more_calls_than_threads_wait_for_their_turn():
    busy = []
    most = []
    lock = threading.Lock()

    def work():
        with lock:
            busy.append(1)
            most.append(len(busy))
        time.sleep(0.01)
        with lock:
            busy.pop()
        return True

    assert all(FanOut(2).run({str(n): work for n in range(9)}).values())
    assert max(most) == 2


def test_two_requests_share_the_pool_without_a_deadlock():
    fan_out = FanOut(2)
    found = []
    calls = {str(n): lambda: time.sleep(0.005) for n in range(5)}
    threads = [threading.Thread(target=lambda: found.append(fan_out.run(calls))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert found == [dict.fromkeys(calls)] * 6


def test_what_came_long_before_the_others_is_told_of_at_once():
    told: list[tuple[str, int, str]] = []
    last = threading.Event()

    def early(key: str, found: int) -> int:
        told.append((key, found, threading.current_thread().name))
        if len(told) == 2:
            last.set()
        return found * 10

    def wait() -> int:
        return 3 if last.wait(5) else 0

    found = FanOut(4).run({"a": lambda: 1, "b": lambda: 2, "c": wait}, early)
    assert found == {"a": 10, "b": 20, "c": 3}
    here = threading.current_thread().name
    assert sorted(told) == [("a", 1, here), ("b", 2, here)]


def test_what_came_together_is_not_told_of_before():
    told: list[str] = []
    found = FanOut(4, together_seconds=5).run(
        {"a": lambda: 1, "b": lambda: time.sleep(0.05)}, lambda key, _: told.append(key)
    )
    assert found == {"a": 1, "b": None}
    assert told == []


def test_an_error_is_not_told_of_and_one_in_telling_is_the_calls_own():
    told: list[str] = []
    errors = NotFound("gone"), UpstreamError("no")

    def fail():
        raise errors[0]

    def early(key: str, _: object) -> None:
        told.append(key)
        raise errors[1]

    calls = {"a": fail, "b": lambda: 1, "c": lambda: time.sleep(0.1)}
    assert FanOut(4).run(calls, early) == {"a": errors[0], "b": errors[1], "c": None}
    assert told == ["b"]


@pytest.mark.parametrize("count", [1, 3])
def test_a_bug_is_raised_once_all_calls_have_ended(count):
    ended = []

    def explode():
        raise RuntimeError("a bug")

    def slow():
        time.sleep(0.05)
        ended.append(True)

    def refuse():
        raise NotFound("no")

    calls = {"bug": explode, "slow": slow, "refused": refuse}
    with pytest.raises(RuntimeError, match="a bug"):
        FanOut(4).run(dict(list(calls.items())[:count]))
    assert len(ended) == (count > 1)
