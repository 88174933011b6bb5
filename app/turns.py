"""One thread of a process at work at a time, while there are more that could be.

Python runs one thread at a time anyway, but hands over at each system call: with eight requests at
hand a small one was interrupted ten times, and half of its time was spent on changing threads. So
whoever serves a request takes the turn first, and leaves it before he waits for anything: an
upstream, a client, the database's line of writers. It is a courtesy and no lock: who has waited
PATIENCE_SECONDS goes on without it.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE_SECONDS = 0.01

_turn = threading.Lock()
_this_thread = threading.local()


def take() -> None:
    """Begin to work. Whoever calls this calls `leave` at the end, whatever happens."""
    _this_thread.has_turn = _turn.acquire(timeout=PATIENCE_SECONDS)


def is_mine() -> bool:
    """Whether this thread has the turn."""
    return getattr(_this_thread, "has_turn", False)


@contextmanager
def waiting() -> Iterator[None]:
    """Leave the turn for a wait that is soon over, and take it again, if this thread has it."""
    if not is_mine():
        yield
        return
    leave()
    try:
        yield
    finally:
        take()


def leave() -> None:
    """Let others work, if this thread has the turn."""
    if getattr(_this_thread, "has_turn", False):
        _this_thread.has_turn = False
        _turn.release()
