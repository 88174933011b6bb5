"""Notices that a client has hung up while its request waits for an upstream.

A worker's thread that waits for a byte from upstream does not see its own client go. One watcher
thread per process looks at the sockets of all waiting requests. Linux only, where the kernel
reports a peer's half-close without a read; elsewhere a gone client is noticed at the next write.
"""

import errno
import logging
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

from app import concurrency
from app.errors import GatewayError
from app.transfers import Cancellation, nothing

log = logging.getLogger("manifold")

_HANG_UP = getattr(select, "EPOLLRDHUP", 0) | getattr(select, "EPOLLHUP", 0)
_epoll = concurrency.kernels(select, "epoll")
_poll = concurrency.kernels(select, "poll")


class _Watcher:
    def __init__(self) -> None:
        self._poll = _epoll()
        self._lock = threading.Lock()
        self._watched: dict[int, Callable[[], None]] = {}
        threading.Thread(target=self._run, name="hangup", daemon=True).start()

    def add(self, sock: socket.socket, gone: Callable[[], None]) -> Callable[[], None]:
        number = sock.fileno()
        if number < 0:
            gone()
            return nothing
        with self._lock:
            self._watched[number] = gone
            once = _HANG_UP | select.EPOLLONESHOT
            try:
                self._poll.register(number, once)
            except FileExistsError:
                self._poll.modify(number, once)

        def remove() -> None:
            with self._lock:
                if self._watched.get(number) is gone:
                    del self._watched[number]
                    with suppress(OSError, ValueError):
                        self._poll.unregister(number)

        return remove

    def _run(self) -> None:
        # Asked like this, and not by a wait of its own, a greenlet lets the others go on.
        news = select.poll()
        news.register(self._poll.fileno(), select.POLLIN)
        while True:
            news.poll()
            for number, _ in self._poll.poll(0):
                with self._lock:
                    gone = self._watched.get(number)
                    # Called inside the lock: after `remove` has returned nothing is called. The
                    # number may be another connection's by now: then that one is still there.
                    if gone is not None and _has_hung_up(number):
                        try:
                            gone()
                        except Exception:  # the thread's border
                            log.exception("hangup")


def _has_hung_up(number: int) -> bool:
    look = _poll()
    look.register(number, select.POLLRDHUP)
    return bool(look.poll(0))


_watcher: _Watcher | None = None
_start = threading.Lock()


def watch(sock: socket.socket | None, gone: Callable[[], None]) -> Callable[[], None]:
    """Call `gone` from another thread when the client hangs up; returns what ends the watch."""
    global _watcher  # noqa: PLW0603  # one per process, made by the first request after the fork
    if sock is None or _epoll is None:
        return nothing
    with _start:
        if _watcher is None:
            _watcher = _Watcher()
    return _watcher.add(sock, gone)


def relayed(chunks: Iterator[bytes], cancellation: Cancellation) -> Iterator[bytes]:
    """The chunks; what a cancel does to them is the client's broken connection, no failure."""
    try:
        yield from chunks
    except GatewayError as error:
        if not cancellation.is_cancelled:
            raise
        raise ConnectionResetError(errno.ECONNRESET, "the client has gone") from error
