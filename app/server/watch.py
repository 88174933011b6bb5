"""What a worker's threads wait for: the clients' next requests, and the upstreams' answers.

If each thread waited for its own connection, every request and every answer would wake another
thread while one is at work, and the two would change places at each system call: twenty times for
a chat. So one thread waits for all of them (leader and followers: Schmidt and others,
Pattern-Oriented Software Architecture 2, 2000). What has come is its own to go on with, or a
request to serve; or it is another thread's, which leads from then on. The leader hands the watch
over before it waits for anything else, and whoever stands by takes it from one that works for long.
"""

import math
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from app import turns
from app.server import limits

_NEXT = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLONESHOT
_LOOK_SECONDS = 0.25
"""How often who waits for an answer looks whether anybody watches, and who has rested for long. The
first of them looks more often."""


class _Place:
    """A thread that stands by to lead, or that waits for an answer."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.chosen = threading.Lock()
        self.chosen.acquire()
        # Whether there is an answer.
        self.has_come = False


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
        self._awaiting: dict[int, _Place] = {}
        # Connections with a request, and places with an answer.
        self._ready: deque[Any] = deque()
        self._followers: list[_Place] = []
        self._leader: int | None = None
        self._is_called = False
        self._has_let_pass = False
        # Since when the leader has not been waiting here, None while it does.
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

        Who serves it calls `hand_over` before it waits for anything, or `until_readable`.
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
                    self._end_all()
                if self._ready:
                    if (conn := self._next_ready()) is not None:
                        return conn
                    continue
                if not self._resting:
                    self._leader = None
                    self._dismiss()
                    return None
                self._working_since = None
                _, first = next(iter(self._resting.values()))
            self._look(first)

    def until_readable(self, descriptor: int, seconds: float | None) -> bool:
        """Wait until there is something to be read; False if there is nothing for so long.

        None waits for ever. For a thread that `next` or `hand_over` know; nobody else may read.
        """
        place = _Place()
        until = math.inf if seconds is None else time.monotonic() + seconds
        with self._lock:
            self._expect(descriptor)
            self._awaiting[descriptor] = place
            if self._leader is None:
                self._begin(place)
        while place.has_come or time.monotonic() < until:
            if self._leader != place.thread:
                if not self._stand_by(place, until) and place.has_come:
                    # The leader takes long: go on beside it.
                    break
            elif place.has_come:
                break
            elif self._leads_on_waiting():
                self._look(min(until, time.monotonic() + _LOOK_SECONDS))
        with self._lock:
            if not place.has_come:
                del self._awaiting[descriptor]
            elif place in self._ready:
                # It was not chosen: it leads already, or has seen the answer by itself.
                self._ready.remove(place)
        return place.has_come

    def hand_over(self) -> None:
        """Let another thread watch, if it was this one."""
        if self._leader != threading.get_ident():
            return
        with self._lock:
            if self._leader == threading.get_ident():
                self._leave_the_lead()

    def _leave_the_lead(self) -> None:
        self._leader = None
        if self._ready and isinstance(self._ready[0], _Place):
            self._choose(self._ready.popleft())
        elif self._followers and (self._resting or self._ready or self._awaiting):
            self._choose(self._followers.pop())
        elif self._ready or (self._resting and not self._awaiting):
            self._summon()
        elif self._awaiting:
            # It leads while it waits.
            self._choose(next(iter(self._awaiting.values())))

    def _leads_on_waiting(self) -> bool:
        """Whether the leader, who waits for an answer, is the one to look for what comes."""
        with self._lock:
            if self._leader != threading.get_ident():
                return False
            if self._ready and not self._followers and self._has_kept_others_waiting():
                # No thread will come for them here.
                self._end_all()
            if self._ready:
                self._leave_the_lead()
                return False
            self._working_since = None
            return True

    def _look(self, until: float) -> None:
        """Wait until something comes, for so long at most."""
        events = self._epoll.poll(max(0, until - time.monotonic()))
        with self._lock:
            self._working_since = time.monotonic()
            self._sort(events)

    def _stand_by(self, place: _Place, until: float) -> bool:
        """Wait to be chosen, or for a moment in which nobody watches; whether one has come."""
        with self._lock:
            is_first = next(iter(self._awaiting.values()), place) is place
            looks_itself = is_first or place.has_come or self._leader is None
        left = turns.PATIENCE_SECONDS if looks_itself else _LOOK_SECONDS
        if not place.has_come:
            left = min(left, until - time.monotonic())
        if place.chosen.acquire(timeout=max(0, left)):
            return True
        with self._lock:
            if self._leader == place.thread:
                return True
            if not place.has_come and self._is_left_alone():
                self._begin(place)
                return True
        return False

    def _follow(self) -> bool:
        """Stand by while there is something to watch; whether this thread leads now."""
        mine = _Place()
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
        """Nobody is needed to serve; who waits for an answer watches by itself."""
        for follower in self._followers:
            follower.chosen.release()
        self._followers.clear()
        if self._awaiting:
            self._choose(next(iter(self._awaiting.values())))

    def _begin(self, place: _Place) -> None:
        self._leader, self._working_since = place.thread, None

    def _choose(self, place: _Place) -> None:
        self._leader, self._working_since = place.thread, time.monotonic()
        # It may have been chosen before, and so slow that another one did not wait.
        if place.chosen.locked():
            place.chosen.release()

    def _is_left_alone(self) -> bool:
        """Whether nobody watches, or the one who should has been at work for long."""
        if self._leader is None:
            return True
        since = self._working_since
        return since is not None and time.monotonic() - since > turns.PATIENCE_SECONDS

    def _next_ready(self) -> Any:
        """The next connection for the leader to serve; None if another thread leads from now on.

        A request may go before one answer, for it costs no change of threads; not before two.
        """
        if isinstance(self._ready[0], _Place):
            after = next(
                (n for n, each in enumerate(self._ready) if not isinstance(each, _Place)), 0
            )
            if not after or self._has_let_pass:
                self._has_let_pass = False
                self._choose(self._ready.popleft())
                return None
            self._has_let_pass = True
            conn = self._ready[after]
            del self._ready[after]
            return self._lead_on(conn)
        return self._lead_on(self._ready.popleft())

    def _lead_on(self, conn: Any) -> Any:
        """What the leader serves, with somebody to stand by meanwhile."""
        self._working_since = time.monotonic()
        if (self._ready or self._resting) and not (self._followers or self._awaiting):
            self._summon()
        return conn

    def _summon(self) -> None:
        if not self._is_called:
            self._is_called = True
            self._call()

    def _expect(self, descriptor: int) -> None:
        try:
            self._epoll.modify(descriptor, _NEXT)
        except FileNotFoundError:
            # Connections are kept: it is known from the second time on.
            self._epoll.register(descriptor, _NEXT)

    def _sort(self, events: Iterable[tuple[int, int]]) -> None:
        """Find who has something to say, and who has rested for long enough."""
        for descriptor, _ in events:
            if (found := self._resting.pop(descriptor, None)) is not None:
                self._ready.append(found[0])
            elif (place := self._awaiting.pop(descriptor, None)) is not None:
                place.has_come = True
                self._ready.append(place)
        now = time.monotonic()
        over = []
        for conn, until in self._resting.values():
            if until > now:
                break
            over.append(conn)
        self._end(over)

    def _end_all(self) -> None:
        """Give back every connection; who waits for an answer goes on waiting."""
        self._end([each for each in self._ready if not isinstance(each, _Place)])
        self._end([conn for conn, _ in self._resting.values()])
        self._ready = deque(each for each in self._ready if isinstance(each, _Place))

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
