"""What happens without a request: a task queue whose tick finds due rows and looks at each.

Huey is the queue. Its storage is a SQLite file in the data directory, or Redis or PostgreSQL when
there are several machines. A task that is lost with its process is found again by the next tick,
for the rows decide what is left to do.
"""

import datetime as dt
import logging
from typing import Any

from huey import Huey, PostgresHuey, RedisHuey, SqliteHuey
from huey.consumer import Consumer, Scheduler
from huey.exceptions import ConfigurationError

from app.errors import ConfigError
from app.services.upkeep import Upkeep
from app.settings import Settings

log = logging.getLogger("manifold.worker")

TICK_SECONDS = 2
_NAME = "manifold"


def make_queue(settings: Settings) -> Huey:
    """The task queue that the settings name. Raises ConfigError when its driver is missing."""
    url = settings.task_queue_url
    options: dict[str, Any] = {"results": False, "utc": True}
    if url is None:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        return SqliteHuey(_NAME, filename=str(settings.data_dir / "tasks.db"), **options)
    is_redis = url.startswith(("redis://", "rediss://"))
    try:
        if is_redis:
            return RedisHuey(_NAME, url=url, **options)
        return PostgresHuey(_NAME, dsn=url, **options)
    except ConfigurationError as error:
        extra = "redis" if is_redis else "postgres"
        raise ConfigError(
            [f"task_queue_url: the driver is missing; install manifold-gateway[{extra}]"]
        ) from error


class _Often(Scheduler):  # type: ignore[misc]  # huey has no types
    """A scheduler whose periodic tasks come every few seconds; Huey's own every minute."""

    periodic_task_seconds = TICK_SECONDS


class _Consumer(Consumer):  # type: ignore[misc]  # likewise
    scheduler_class = _Often


def run(queue: Huey, upkeep: Upkeep, *, threads: int = 4) -> None:
    """Work until a signal comes: SIGTERM and SIGINT let running looks finish."""
    consumer = prepare(queue, upkeep, threads=threads)
    consumer.run()


def prepare(queue: Huey, upkeep: Upkeep, *, threads: int = 4) -> Consumer:
    """The consumer with its tasks, not started yet."""

    @queue.task(name="look")  # type: ignore[untyped-decorator]  # likewise
    def look(job_uuid: str) -> None:
        upkeep.look(job_uuid)

    @queue.periodic_task(  # type: ignore[untyped-decorator]  # likewise
        lambda moment: True, name="tick", expires=dt.timedelta(seconds=30)
    )
    def tick() -> None:
        for job_uuid in upkeep.due():
            look(job_uuid)

    return _Consumer(
        queue,
        workers=threads,
        scheduler_interval=1,
        max_delay=1.0,
        graceful_signal="TERM",
    )
