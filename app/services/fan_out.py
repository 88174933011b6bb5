"""One call at several deployments at the same time: each outcome is kept, none stops the rest."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from app import signals, turns
from app.errors import GatewayError

T = TypeVar("T")


class FanOut:
    """A bounded pool of threads for calls that run side by side.

    `threads` bounds them for the whole process; calls beyond it wait for their turn. The request's
    own thread waits for all.
    """

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="fan-out")

    def run(self, calls: Mapping[str, Callable[[], T]]) -> dict[str, T | GatewayError]:
        """What each call returned, or the GatewayError it raised; any other exception is raised.

        All calls have ended when this returns or raises.
        """
        if len(calls) == 1:
            # No second thread for the common case of one target.
            return {key: _outcome(call) for key, call in calls.items()}
        with signals.tell().fanned_out(calls) as told:
            futures = {key: self._pool.submit(_outcome, call) for key, call in told.items()}
            failures = [error for f in futures.values() if (error := f.exception()) is not None]
        if failures:
            raise failures[0]
        turns.leave()
        return {key: future.result() for key, future in futures.items()}


def _outcome(call: Callable[[], T]) -> T | GatewayError:
    try:
        return call()
    except GatewayError as error:
        return error
