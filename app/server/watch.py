"""Connections whose next request is expected at once, and the one thread that waits for it.

A busy client sends its next request as soon as it has an answer. If each thread waited for its own
connection's, every request would wake another one, and waking costs as much as a tenth of a small
answer. So the thread that is done waits for whichever comes first and serves it itself (leader and
followers: Schmidt and others, Pattern-Oriented Software Architecture 2, 2000). It hands the watch
over before it waits for anything else, and whoever stands by takes it from one that works for long.
"""

import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from app import turns
from app.server import limits

_NEXT = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLONESHOT


class _Follower:
    """A thread that stands by to lead."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.chosen = threading.Lock()
        self.chosen.acquire()


class Watch:
    """Connections that rest for `limits.STAY_SECONDS` at most; safe to use from many threads.

    `give_back` takes a connection that rested in vain, `call` has another thread ask `next`, and
    `is_short` tells whether requests elsewhere wait for a thread. A connection is anything with a
    `sock`; while it rests nobody else may read from it.
    """

    def __init__(
        self,
        give_back: Callable[[Any], None],
        call: Callable[[], None],
        is_short: Callable[[], bool],
    ) -> None:
        self._give_back = give_back
        self._call = call
        self._is_short = is_short
        self._epoll = select.epoll()
        self._lock = threading.Lock()
        # By descriptor, with the end of the rest: the one that began first comes first.
        self._resting: dict[int, tuple[Any, float]] = {}
        self._ready: deque[Any] = deque()
        self._followers: list[_Follower] = []
        self._leader: int | None = None
        self._is_called = False
        # Since when the leader has not been waiting for requests, None while it does.
        self._working_since: float | None = None
        self._short_since: float | None = None

    def rest(self, conn: Any) -> None:
        """Watch this connection; who calls this asks `next` soon."""
        descriptor = conn.sock.fileno()
        with self._lock:
            self._resting[descriptor] = conn, time.monotonic() + limits.STAY_SECONDS
            if getattr(conn, "is_watched", False):
                self._epoll.modify(descriptor, _NEXT)
            else:
                self._epoll.register(descriptor, _NEXT)
                conn.is_watched = True

    def next(self) -> Any:
        """The connection that this thread is to serve now, None if it is needed no longer.

        Who serves it calls `hand_over` before it waits for anything.
        """
        me = threading.get_ident()
        while True:
            if self._leader != me and not self._follow():
                return None
            with self._lock:
                if self._leader != me:
                    # Another one did not wait any longer, just now.
                    continue
                if self._has_kept_others_waiting():
                    self._end(list(self._ready) + [conn for conn, _ in self._resting.values()])
                    self._ready.clear()
                if self._ready:
                    return self._lead_on()
                if not self._resting:
                    self._leader = None
                    self._dismiss()
                    return None
                _, until = next(iter(self._resting.values()))
                self._working_since = None
            events = self._epoll.poll(max(0, until - time.monotonic()))
            with self._lock:
                self._sort(events)

    def hand_over(self) -> None:
        """Let another thread watch, if it was this one."""
        if self._leader != threading.get_ident():
            return
        with self._lock:
            if self._leader != threading.get_ident():
                return
            self._leader = None
            if not self._resting and not self._ready:
                return
            if self._followers:
                follower = self._followers.pop()
                self._leader, self._working_since = follower.thread, time.monotonic()
                follower.chosen.release()
                return
        self._call()

    def _follow(self) -> bool:
        """Stand by while there is something to watch; whether this thread leads now."""
        mine = _Follower()
        until = time.monotonic() + limits.STAY_SECONDS
        with self._lock:
            self._is_called = False
            if not self._resting and not self._ready:
                return False
            if self._leader is None:
                self._begin(mine)
                return True
            self._followers.append(mine)
        while True:
            # The first one looks after the leader; the others are there to be chosen.
            is_first = self._followers[:1] == [mine]
            left = turns.PATIENCE_SECONDS if is_first else until - time.monotonic()
            mine.chosen.acquire(timeout=max(0, left))
            with self._lock:
                if self._leader == mine.thread:
                    return True
                if mine in self._followers:
                    self._followers.remove(mine)
                else:
                    # It was chosen, and so slow that another one did not wait, or dismissed.
                    mine.chosen.acquire(blocking=False)
                if not self._resting and not self._ready:
                    return False
                if self._is_left_alone():
                    self._begin(mine)
                    return True
                if time.monotonic() > until and (self._followers or self._is_short()):
                    return False
                self._followers.insert(0, mine)

    def _dismiss(self) -> None:
        for follower in self._followers:
            follower.chosen.release()
        self._followers.clear()

    def _begin(self, follower: _Follower) -> None:
        self._leader, self._working_since = follower.thread, None

    def _is_left_alone(self) -> bool:
        """Whether nobody watches, or the one who should has been at work for long."""
        if self._leader is None:
            return True
        since = self._working_since
        return since is not None and time.monotonic() - since > turns.PATIENCE_SECONDS

    def _lead_on(self) -> Any:
        """The first that is ready, for the leader, with somebody to stand by meanwhile."""
        conn = self._ready.popleft()
        self._working_since = time.monotonic()
        if (self._ready or self._resting) and not self._followers and not self._is_called:
            self._is_called = True
            self._call()
        return conn

    def _sort(self, events: list[tuple[int, int]]) -> None:
        """Find who has something to say, and who has rested for long enough."""
        for descriptor, _ in events:
            if (found := self._resting.pop(descriptor, None)) is not None:
                self._ready.append(found[0])
        now = time.monotonic()
        over = []
        for conn, until in self._resting.values():
            if until > now:
                break
            over.append(conn)
        self._end(over)

    def _end(self, over: list[Any]) -> None:
        for conn in over:
            descriptor = conn.sock.fileno()
            self._resting.pop(descriptor, None)
            self._epoll.unregister(descriptor)
            conn.is_watched = False
            self._give_back(conn)

    def _has_kept_others_waiting(self) -> bool:
        """Whether requests that are not watched here have waited for a thread for long."""
        if not self._is_short():
            self._short_since = None
        elif self._short_since is None:
            self._short_since = time.monotonic()
        else:
            return time.monotonic() - self._short_since > turns.PATIENCE_SECONDS
        return False
