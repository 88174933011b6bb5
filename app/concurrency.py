"""What is different where gevent's greenlets take the place of threads.

gevent is an extra, and is imported here only where a worker has patched everything already.
"""

import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

T = TypeVar("T")

_TURN_SECONDS = 0.0002
_PAUSE_SECONDS = 0.0005


def has_greenlets() -> bool:
    """Whether what looks like a thread in this process is a greenlet."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


def kernels(module: Any, name: str) -> Any:
    """A function of the standard library as the kernel has it, None where there is none."""
    if has_greenlets():
        from gevent.monkey import get_original  # noqa: PLC0415  # an extra

        with suppress(AttributeError):
            return get_original(module.__name__, name)
    return getattr(module, name, None)


@functools.cache
def threads() -> ThreadPoolExecutor:
    """Threads of the kernel, one for each core, for what computes and does not wait."""
    number = os.cpu_count() or 1
    if has_greenlets():
        from gevent import threadpool  # noqa: PLC0415  # an extra

        pool: ThreadPoolExecutor = threadpool.ThreadPoolExecutor(number)
        return pool
    return ThreadPoolExecutor(number, thread_name_prefix="computing")


def aside(work: Callable[[], T]) -> T:
    """What `work` returns, which keeps a core or the disk busy for longer than a moment.

    A thread does that by itself; a greenlet would keep all others waiting, so a thread does it.
    """
    return threads().submit(work).result() if has_greenlets() else work()


class _Turns:
    """How often threads take turns while at least one of them computes for long."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._computing = 0
        self._usual = sys.getswitchinterval()

    def begin(self) -> None:
        with self._lock:
            if self._computing == 0:
                self._usual = sys.getswitchinterval()
                sys.setswitchinterval(_TURN_SECONDS)
            self._computing += 1

    def end(self) -> None:
        with self._lock:
            self._computing -= 1
            if self._computing == 0:
                sys.setswitchinterval(self._usual)


_turns = _Turns()


@contextmanager
def often_taking_turns() -> Iterator[None]:
    """For long work that computes: nobody else waits for long to go on.

    A request lets go of the interpreter a few dozen times, whenever it asks the database or a
    socket, and each time waits until the one who computes has had his turn: 5 ms by default.
    """
    _turns.begin()
    try:
        yield
    finally:
        _turns.end()


def let_others_run() -> None:
    """In the middle of long work, every millisecond or two: a moment for all the others."""
    # Greenlets are patched: it comes back when each has had its turn. A thread that only lets go
    # of the interpreter takes it back before anybody has woken up.
    time.sleep(0 if has_greenlets() else _PAUSE_SECONDS)
