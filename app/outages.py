"""What the log says while something the worker needs is away: one line a minute, no traceback."""

import logging
import threading
import time
from collections.abc import Callable, Mapping

AGAIN_SECONDS = 60.0
"""How long the same trouble goes on before the log says it again."""


class OneLine(logging.Filter):
    """Makes one line of each outage that a logger tells of with a traceback at every attempt.

    `events` names the event for each class of exception; what is of none of them passes as it is,
    with its traceback, for that is a fault of ours.
    """

    def __init__(
        self,
        events: Mapping[type[Exception], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._events = events
        self._clock = clock
        self._lock = threading.Lock()
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        event = next((e for cls, e in self._events.items() if isinstance(error, cls)), None)
        if error is None or event is None:
            return True
        if not self._is_news(event):
            return False
        record.msg, record.args = event, ()
        record.exc_info = record.exc_text = None
        record.reason = reason(error)
        return True

    def _is_news(self, event: str) -> bool:
        now = self._clock()
        with self._lock:
            if now - self._said.get(event, float("-inf")) < AGAIN_SECONDS:
                return False
            self._said[event] = now
            return True


def reason(error: BaseException) -> str:
    """What happened, as one line, without a statement and what users sent in it."""
    cause = error.__cause__ or error
    told = getattr(cause, "orig", None) or cause
    return f"{type(told).__name__}: {told}".partition("\n")[0]
