"""What happens without a request: a task queue whose tick finds due rows and looks at each.

Huey is the queue. Its storage is a SQLite file in the data directory, or Redis or PostgreSQL when
there are several machines. A task that is lost with its process is found again by the next tick,
for the rows decide what is left to do.
"""

import datetime as dt
import logging
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from app import signals
from app.db.engine import PATIENCE
from app.errors import ConfigError, DatabaseUnavailable
from app.outages import OneLine
from app.services.sweeper import Sweeper
from app.settings import Settings

if TYPE_CHECKING:
    from huey import Huey
    from huey.consumer import Consumer

log = logging.getLogger("manifold.worker")

TICK_SECONDS = 2
_SWEEP_SECONDS = 60
_NAME = "manifold"
_RETRY_SECONDS = (0.5, 10.0)
_TELLING = ("manifold.worker", "huey", "huey.consumer.Worker", "huey.consumer.Scheduler")
"""The loggers that tell of the queue and of tasks, each attempt with a traceback."""


def make_queue(settings: Settings) -> "Huey":
    """The task queue that the settings name, which need not answer yet.

    Raises ConfigError when its driver is missing.
    """
    url = settings.task_queue_url
    options: dict[str, Any] = {"results": False, "utc": True}
    if url is None:
        with _without("redis", "psycopg", "gevent"):
            from huey import SqliteHuey  # noqa: PLC0415  # once the drivers are left out
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = str(settings.data_dir / "tasks.db")
        return SqliteHuey(_NAME, filename=path, create_tables=False, **options)
    is_redis = url.startswith(("redis://", "rediss://"))
    with _without("psycopg" if is_redis else "redis", "gevent"):
        from huey import PostgresHuey, RedisHuey  # noqa: PLC0415  # likewise
        from huey.exceptions import ConfigurationError  # noqa: PLC0415  # likewise
    try:
        if is_redis:
            return RedisHuey(_NAME, url=url, **options)
        patience = {name: said for name, said in PATIENCE.items() if name not in url}
        return PostgresHuey(_NAME, dsn=url, create_tables=False, **patience, **options)
    except ConfigurationError as error:
        extra = "redis" if is_redis else "postgres"
        raise ConfigError(
            [f"task_queue_url: the driver is missing; install manifold-gateway[{extra}]"]
        ) from error


@contextmanager
def _without(*packages: str) -> Iterator[None]:
    """Nobody imports these meanwhile. Huey does so with all that are installed, 20 MB of them."""
    left_out = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(left_out))  # type: ignore[arg-type]  # None: not to be had
    try:
        yield
    finally:
        for name in left_out:
            del sys.modules[name]


class Chore(Protocol):
    """Something with rows that are due: each is looked at, by whichever worker comes first."""

    name: str

    def due(self) -> list[str]:
        """The ids of the rows that are due now."""

    def look(self, row_id: str) -> bool:
        """Look at one; False when somebody else does."""


def run(
    queue: "Huey",
    chores: Sequence[Chore],
    sweeper: Sweeper,
    sweeps: Sequence[Callable[[], object]] = (),
    *,
    threads: int = 4,
) -> None:
    """Work until a signal comes: SIGTERM and SIGINT let running looks finish.

    A queue or a database that does not answer is waited for, however long, before and meanwhile.
    """
    consumer = prepare(queue, chores, sweeper, sweeps, threads=threads)
    one_line = OneLine({DatabaseUnavailable: "database_unavailable", _driver(queue): "queue_away"})
    for name in _TELLING:
        logging.getLogger(name).addFilter(one_line)
    if _has_tables(queue):
        consumer.run()


def prepare(
    queue: "Huey",
    chores: Sequence[Chore],
    sweeper: Sweeper,
    sweeps: Sequence[Callable[[], object]] = (),
    *,
    threads: int = 4,
) -> "Consumer":
    """The consumer with its tasks, not started yet. Each of `sweeps` is called at every tick."""
    by_name = {chore.name: chore for chore in chores}
    last_sweep = float("-inf")

    @queue.task(name="look")  # type: ignore[untyped-decorator]  # huey has no types
    def look(name: str, row_id: str) -> None:
        with _told(name):
            by_name[name].look(row_id)

    @queue.task(name="sweep", expires=_SWEEP_SECONDS)  # type: ignore[untyped-decorator]  # likewise
    def sweep() -> None:
        with _told("sweep"):
            sweeper.run()

    @queue.periodic_task(  # type: ignore[untyped-decorator]  # likewise
        lambda moment: True, name="tick", expires=dt.timedelta(seconds=30)
    )
    def tick() -> None:
        nonlocal last_sweep
        begun, is_well = time.perf_counter(), False
        try:
            for chore in chores:
                for row_id in chore.due():
                    look(chore.name, row_id)
            for each in sweeps:
                each()
            is_well = True
        finally:
            signals.tell().passed(time.perf_counter() - begun, well=is_well)
        if time.monotonic() - last_sweep >= _SWEEP_SECONDS:
            last_sweep = time.monotonic()
            sweep()

    return _consumer_class()(
        queue,
        workers=threads,
        scheduler_interval=1,
        max_delay=1.0,
        graceful_signal="TERM",
    )


def _consumer_class() -> "type[Consumer]":
    """Huey's consumer, whose periodic tasks come every few seconds and not every minute."""
    from huey.consumer import Consumer, Scheduler  # noqa: PLC0415  # as `make_queue` has left it

    class OftenScheduler(Scheduler):  # type: ignore[misc]  # huey has no types
        periodic_task_seconds = TICK_SECONDS

    class OftenConsumer(Consumer):  # type: ignore[misc]  # likewise
        scheduler_class = OftenScheduler

    return OftenConsumer


@contextmanager
def _told(chore: str) -> Iterator[None]:
    """Tell how a look ended."""
    is_well = False
    try:
        yield
        is_well = True
    finally:
        signals.tell().looked(chore, well=is_well)


def _driver(queue: "Huey") -> type[Exception]:
    """What the queue's driver raises when there is trouble with its server or its file."""
    from huey import PostgresHuey, SqliteHuey  # noqa: PLC0415  # as `make_queue` has left it

    if isinstance(queue, SqliteHuey):
        return sqlite3.Error
    if isinstance(queue, PostgresHuey):
        import psycopg  # noqa: PLC0415  # an extra

        return psycopg.Error
    import redis  # noqa: PLC0415  # likewise

    return redis.RedisError


def _has_tables(queue: "Huey") -> bool:
    """Make the queue's tables, however often it takes; False when a signal came before."""
    from huey import RedisHuey  # noqa: PLC0415  # as `make_queue` has left it

    if isinstance(queue, RedisHuey):
        return True
    driver, pause, is_over = _driver(queue), _RETRY_SECONDS[0], threading.Event()
    before = {
        number: signal.signal(number, lambda *_: is_over.set())
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        while not is_over.is_set():
            try:
                queue.storage.initialize_schema()
            except driver:
                log.exception("the queue does not answer")
                is_over.wait(pause)
                pause = min(pause * 2, _RETRY_SECONDS[1])
            else:
                return True
        return False
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
