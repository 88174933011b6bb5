"""One thread of a process at work at a time, while there are more that could be.

Python runs one thread at a time anyway, but hands over at each system call: with eight requests at
hand a small one was interrupted ten times, and half of its time was spent on changing threads. So
whoever serves a request takes the turn first, and leaves it before he waits for anything: an
upstream, a client, the database's line of writers. It is a courtesy and no lock: who has waited
PATIENCE_SECONDS goes on without it.
"""

import threading
from collections.abc import Callable

PATIENCE_SECONDS = 0.01

_turn = threading.Lock()


class _State(threading.local):
    has_turn = False
    before_waiting: Callable[[], None] | None = None


_this_thread = _State()


def take(before_waiting: Callable[[], None] | None = None) -> None:
    """Begin to work. Whoever calls this calls `done` at the end, whatever happens.

    `before_waiting` is called when this thread is about to wait for something, once.
    """
    _this_thread.has_turn = _turn.acquire(timeout=PATIENCE_SECONDS)
    _this_thread.before_waiting = before_waiting


def is_at_work() -> bool:
    """Whether others may wait for this thread."""
    return _this_thread.has_turn or _this_thread.before_waiting is not None


class waiting:
    """Leave the turn for a wait that is soon over, and take it again, if this thread is at work."""

    def __enter__(self) -> None:
        self._was_at_work = is_at_work()
        if self._was_at_work:
            leave()

    def __exit__(self, *_: object) -> None:
        if self._was_at_work:
            take()


def leave() -> None:
    """Let others work before a wait, if this thread keeps them from it."""
    before_waiting = _this_thread.before_waiting
    done()
    if before_waiting is not None:
        before_waiting()


def done() -> None:
    """The end of this thread's work; it waits for nothing, and is at hand for more."""
    _this_thread.before_waiting = None
    if _this_thread.has_turn:
        _this_thread.has_turn = False
        _turn.release()
