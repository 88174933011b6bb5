"""Small changes of several threads, committed in one transaction where they would wait in line.

SQLite has one writer at a time, and each of its commits waits for the disk. While one thread's
changes are being committed, those of the others gather; the first of these takes all of them
into the next transaction. Whoever comes alone is committed alone, at once.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast

from app import turns
from app.db.change import Changing
from app.db.engine import Database
from app.errors import DatabaseUnavailable

T = TypeVar("T")

Work = Callable[[Changing], T]
"""Makes changes, and nothing else that could not be done twice."""


@dataclass(eq=False)
class _Waiting(Generic[T]):
    work: Work[T]
    turn: threading.Lock = field(default_factory=threading.Lock)
    """Held until there is a result, or it is this one's turn to commit for all."""
    is_done: bool = False
    result: T | None = None
    error: Exception | None = field(default_factory=DatabaseUnavailable)
    """None once the changes are committed; until then nobody knows."""


class Together:
    """One for each database and process."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # PostgreSQL has many writers, and commits what they do together by itself.
        self._is_alone = database.engine.dialect.name != "sqlite"
        self._guard = threading.Lock()
        self._waiting: list[_Waiting[Any]] = []
        self._is_led = False

    def do(self, work: Work[T]) -> T:
        """What `work` returns, once its changes are committed.

        Raises what `work` raises, with none of its changes made, and DatabaseUnavailable.
        """
        if self._is_alone:
            return self._by_itself(work)
        mine = _Waiting(work)
        mine.turn.acquire()
        with self._guard:
            self._waiting.append(mine)
            leads, self._is_led = not self._is_led, True
        with turns.waiting():
            if not leads:
                mine.turn.acquire()
            if not mine.is_done:
                self._lead()
        if mine.error is not None:
            raise mine.error
        return cast(T, mine.result)

    def _by_itself(self, work: Work[T]) -> T:
        with self._database.change() as changing:
            return work(changing)

    def _lead(self) -> None:
        """Commit what waits, which the caller's own is the first of, and let the next one lead."""
        with self._guard:
            together, self._waiting = self._waiting, []
        try:
            self._commit(together)
        finally:
            with self._guard:
                following = self._waiting[0] if self._waiting else None
                self._is_led = following is not None
            for waiting in together:
                waiting.is_done = True
                waiting.turn.release()
            if following is not None:
                following.turn.release()

    def _commit(self, together: Sequence[_Waiting[Any]]) -> None:
        if len(together) > 1 and self._is_settled_at_once(together):
            return
        for waiting in together:
            try:
                waiting.result = self._by_itself(waiting.work)
                waiting.error = None
            except Exception as error:  # noqa: BLE001  # raised where it belongs
                waiting.error = error

    def _is_settled_at_once(self, together: Sequence[_Waiting[Any]]) -> bool:
        """Commit all in one transaction; False when one of them has to be kept out of it."""
        is_whole = False
        try:
            with self._database.change() as changing:
                for waiting in together:
                    waiting.result = waiting.work(changing)
                is_whole = True
        except DatabaseUnavailable:
            return True
        except Exception:  # noqa: BLE001  # it will show itself where it belongs
            # Nothing is changed, unless it is the commit that failed.
            return is_whole
        for waiting in together:
            waiting.error = None
        return True
