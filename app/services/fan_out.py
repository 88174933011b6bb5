"""One call at several deployments at the same time: each outcome is kept, none stops the rest."""

from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from typing import TypeVar

from app import signals, turns
from app.errors import GatewayError

T = TypeVar("T")

TOGETHER_SECONDS = 0.02
"""Calls that end within this time of one another have ended together."""


class FanOut:
    """A bounded pool of threads for calls that run side by side.

    `threads` bounds them for the whole process; calls beyond it wait for their turn. The request's
    own thread waits for all.
    """

    def __init__(self, threads: int, together_seconds: float = TOGETHER_SECONDS) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="fan-out")
        self._together_seconds = together_seconds

    def run(
        self, calls: Mapping[str, Callable[[], T]], early: Callable[[str, T], T] | None = None
    ) -> dict[str, T | GatewayError]:
        """What each call returned, or the GatewayError it raised; any other exception is raised.

        What a call has returned goes through `early`, in the request's own thread, unless it has
        come together with the last. All calls have ended when this returns or raises.
        """
        if len(calls) == 1:
            # No second thread for the common case of one target.
            return {key: _outcome(call) for key, call in calls.items()}
        with signals.tell().fanned_out(calls) as told:
            futures = {self._pool.submit(_outcome, call): key for key, call in told.items()}
            try:
                return self._outcomes(futures, early)
            except BaseException:
                wait(futures)
                raise

    def _outcomes(
        self,
        futures: Mapping["Future[T | GatewayError]", str],
        early: Callable[[str, T], T] | None,
    ) -> dict[str, T | GatewayError]:
        found: dict[str, T | GatewayError] = {}
        failures: list[BaseException] = []
        turns.leave()
        # Mostly that is all of them, and this thread wakes up once.
        ended, waiting = wait(futures, self._together_seconds)
        while ended or waiting:
            failures += [error for future in ended if (error := future.exception()) is not None]
            for future in ended:
                if future.exception() is not None:
                    continue
                key, outcome = futures[future], future.result()
                if early is not None and (waiting or failures):
                    outcome = _early(early, key, outcome)
                found[key] = outcome
            if waiting:
                wait(waiting, return_when=FIRST_COMPLETED)
            ended, waiting = wait(waiting, self._together_seconds)
        if failures:
            raise failures[0]
        return {key: found[key] for key in futures.values()}


def _outcome(call: Callable[[], T]) -> T | GatewayError:
    try:
        return call()
    except GatewayError as error:
        return error


def _early(early: Callable[[str, T], T], key: str, outcome: T | GatewayError) -> T | GatewayError:
    return outcome if isinstance(outcome, GatewayError) else _outcome(partial(early, key, outcome))
