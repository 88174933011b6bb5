"""What the database and the disk know, for monitoring; asked anew every few seconds at most."""

import shutil
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from app.db import census as rows
from app.db.engine import Database
from app.db.tables import now
from app.errors import DatabaseUnavailable
from app.objects import BATCH_FINAL, JOB_FINAL
from app.settings import Settings

KEPT_SECONDS = 10.0
"""How long an answer is given again."""

_STATUSES = BATCH_FINAL | JOB_FINAL
_STATUSES |= {"validating", "in_progress", "finalizing", "cancelling"}
_STATUSES |= {"validating_files", "queued", "running", "paused", "intended", "void"}
OTHER = "other"


@dataclass(frozen=True)
class Counts:
    """One census. `due` is by chore: how many rows, and for how many seconds the first of them.

    `jobs` is by type, provider, model name and status; what is not configured, or no word of
    OpenAI's, is "other". `has_database`: whether it answered; without it the rest is empty.
    """

    has_database: bool
    spool_bytes: int
    free_bytes: int
    files: Mapping[str, int] = field(default_factory=dict)
    copies: Mapping[str, int] = field(default_factory=dict)
    uploads: Mapping[str, int] = field(default_factory=dict)
    jobs: Mapping[tuple[str, str, str, str], int] = field(default_factory=dict)
    due: Mapping[str, tuple[int, float]] = field(default_factory=dict)


class Census:
    """Counts rows and bytes."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._database = database
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: Counts | None = None
        self._counted_at = 0.0
        self._models = {d.model_name for d in settings.deployments}

    def counts(self) -> Counts:
        """What there is, as of the last few seconds. A database that is away is no error here."""
        with self._lock:
            age = self._clock() - self._counted_at
            if self._counts is None or age >= KEPT_SECONDS:
                self._counts = self._count()
                self._counted_at = self._clock()
            return self._counts

    def _count(self) -> Counts:
        data_dir = self._settings.data_dir
        spool = _bytes_below(data_dir / "spool")
        free = 0
        with suppress(OSError):
            free = shutil.disk_usage(data_dir).free
        moment = now()
        try:
            with self._database.read() as session:
                jobs: dict[tuple[str, str, str, str], int] = {}
                for (kind, provider, model, status), count in rows.jobs(session).items():
                    key = (kind, provider, self._named(model), _word(status))
                    jobs[key] = jobs.get(key, 0) + count
                waiting = rows.due(session, moment)
                return Counts(
                    has_database=True,
                    spool_bytes=spool,
                    free_bytes=free,
                    files=rows.files(session),
                    copies=rows.copies(session),
                    uploads=rows.uploads(session),
                    jobs=jobs,
                    due={
                        chore: (count, (moment - first).total_seconds() if first else 0.0)
                        for chore, (count, first) in waiting.items()
                    },
                )
        except DatabaseUnavailable:
            return Counts(has_database=False, spool_bytes=spool, free_bytes=free)

    def _named(self, model: str | None) -> str:
        if model is None:
            return ""
        return model if model in self._models else OTHER


def _word(status: str) -> str:
    return status if status in _STATUSES else OTHER


def _bytes_below(folder: Path) -> int:
    """The bytes of the files in a folder and below; what goes meanwhile does not count."""
    total = 0
    for path in folder.glob("*/*"):
        with suppress(OSError):
            total += path.stat().st_size
    return total
