"""One thread of a process at work at a time, while there are more that could be.

Python runs one thread at a time anyway, but hands over at each system call: with eight requests at
hand a small one was interrupted ten times, and half of its time was spent on changing threads. So
whoever serves a request takes the turn first, and leaves it before he waits for anything: an
upstream, a client, the database's line of writers. It is a courtesy and no lock: who has waited
PATIENCE_SECONDS goes on without it.
"""

import select
import threading
from typing import Any, Protocol

PATIENCE_SECONDS = 0.01

_turn = threading.Lock()


class Watch(Protocol):
    """Who waits for several threads at once."""

    def hand_over(self) -> None:
        """Let another thread watch: this one is about to wait for something else."""

    def until_readable(self, descriptor: int, seconds: float | None) -> bool:
        """Wait until there is something to be read; False if there is nothing for so long."""


class _State(threading.local):
    has_turn = False
    is_at_work = False
    watch: Watch | None = None


_this_thread = _State()


def take(watch: Watch | None = None) -> None:
    """Begin to work. Whoever calls this calls `done` at the end, whatever happens.

    `watch` is told when this thread is about to wait for something, from now on.
    """
    _this_thread.has_turn = _turn.acquire(timeout=PATIENCE_SECONDS)
    _this_thread.is_at_work = True
    if watch is not None:
        _this_thread.watch = watch


def is_at_work() -> bool:
    """Whether others may wait for this thread."""
    return _this_thread.is_at_work


class waiting:
    """Leave the turn for a wait that is soon over, and take it again, if this thread is at work."""

    def __enter__(self) -> None:
        self._was_at_work = is_at_work()
        if self._was_at_work:
            leave()

    def __exit__(self, *_: object) -> None:
        if self._was_at_work:
            take()


def until_readable(sock: Any) -> None:
    """Leave the turn until there is something to be read, if this thread is at work.

    Raises TimeoutError as a read would.
    """
    if not is_at_work():
        return
    seconds = sock.gettimeout()
    wait = _by_itself if _this_thread.watch is None else _this_thread.watch.until_readable
    done()
    try:
        if not wait(sock.fileno(), seconds):
            raise TimeoutError
    finally:
        take()


def _by_itself(descriptor: int, seconds: float | None) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(None if seconds is None else seconds * 1000))


def leave() -> None:
    """Let others work before a wait, if this thread keeps them from it."""
    was_at_work = is_at_work()
    done()
    if was_at_work and _this_thread.watch is not None:
        _this_thread.watch.hand_over()


def done() -> None:
    """The end of this thread's work; it waits for nothing, and is at hand for more."""
    _this_thread.is_at_work = False
    if _this_thread.has_turn:
        _this_thread.has_turn = False
        _turn.release()
