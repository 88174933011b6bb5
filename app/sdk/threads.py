"""The asyncio form of a call: the call itself, in a thread beside the event loop.

The provider classes speak HTTP with blocking sockets. A second client with asyncio's would have to
learn every provider's time-outs, retries and errors once more, and would go its own way with the
first repair; in a thread there is one of each, and the event loop never waits.
"""

import asyncio
import contextvars
import os
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial, wraps
from typing import Any, ParamSpec, TypeVar

THREADS = 64
"""Most calls at a time; more of them wait. asyncio's own threads, six on two cores, also look up
host names for everybody else and must not all be filled with uploads."""

P = ParamSpec("P")
T = TypeVar("T")


def off_the_loop(call: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]:
    """The same call as a coroutine function, its name with an `a` in front.

    When its task is cancelled nobody waits for the call any more, and it goes on to its end.
    """

    @wraps(call)
    async def run(*args: P.args, **kwargs: P.kwargs) -> T:
        work = partial(call, *args, **kwargs)
        context = contextvars.copy_context()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(_threads(os.getpid()), context.run, work)

    run.__name__ = run.__qualname__ = f"a{call.__name__}"
    return run


@lru_cache(maxsize=1)
def _threads(_pid: int) -> ThreadPoolExecutor:
    # Threads do not live on in a child of a fork, hence one executor for each process.
    return ThreadPoolExecutor(THREADS, thread_name_prefix="manifold-sdk")
