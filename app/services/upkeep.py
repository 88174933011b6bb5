"""What happens without a request: unfinished jobs are looked at until they end.

Rows alone decide what is left to do. A look holds a lease, so exactly one worker does it; when that
worker dies, the lease runs out and another one takes over.
"""

import datetime as dt
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from app import faults
from app.db import jobs as rows
from app.db.engine import Database
from app.db.tables import Job, now
from app.errors import DatabaseUnavailable, GatewayError, NotFound
from app.services.batches import Batches
from app.services.fine_tuning import FineTuning
from app.services.jobs import GRACE_SECONDS, UNANSWERED, Jobs
from app.settings import Settings

log = logging.getLogger("manifold.worker")

AT_ONCE = 100
_INTENT_LOOKS = 6
"""How often an upstream is asked for a job whose answer was lost before it counts as not begun."""


class Upkeep:
    """The looks at jobs of the background worker."""

    name = "jobs"

    def __init__(
        self,
        settings: Settings,
        database: Database,
        jobs: Jobs,
        batches: Batches,
        fine_tuning: FineTuning,
    ) -> None:
        self._settings = settings
        self._database = database
        self._jobs = jobs
        self._batches = batches
        self._fine_tuning = fine_tuning
        self._lease = dt.timedelta(seconds=settings.lease_seconds)

    def due(self) -> list[str]:
        """The row ids of jobs that somebody should look at now, 100 at most."""
        with self._database.read() as session:
            return rows.due(session, now(), AT_ONCE)

    def look(self, job_uuid: str) -> bool:
        """Look at one job; False when another worker is at it or it is not due any more."""
        moment = now()
        until = moment + self._lease
        with self._database.write() as session:
            if not rows.claim(session, job_uuid, moment, until):
                return False
            job = rows.by_uuid(session, job_uuid)
        faults.point("job look claimed")
        if job is None:
            return False
        was, looks = job.state, job.looks + 1
        # A look counts before it is made; one that finds something new begins to count anew.
        job.looks = looks
        with self._holding(job_uuid, until):
            try:
                self._look(job)
            except GatewayError as error:
                self._postpone(job, was, looks, error)
            except Exception:  # one job's trouble is not that of the others
                log.exception("look broke", extra={"job": job_uuid})
                self._postpone(job, was, looks, GatewayError("internal error"))
        return True

    def _look(self, job: Job) -> None:
        service = self._batches if job.type == "batch" else self._fine_tuning
        if job.state == "intended":
            if not service.find_lost_answer(job):
                self._ask_again(job)
            return
        service.look(job)

    @contextmanager
    def _holding(self, job_uuid: str, until: dt.datetime) -> Iterator[None]:
        """Keep the lease for as long as the look takes: an upstream may be slow."""
        is_over = threading.Event()

        def renew() -> None:
            held = until
            while not is_over.wait(self._lease.total_seconds() / 4):
                later = now() + self._lease
                with suppress(DatabaseUnavailable), self._database.write() as session:
                    if not rows.renew(session, job_uuid, held, later):
                        return
                    held = later

        thread = threading.Thread(target=renew, name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    def _ask_again(self, job: Job) -> None:
        """The upstream has no job of this intent: look again, and in the end let it go."""
        with self._database.write() as session:
            rows.record_if(
                session,
                job.id,
                "intended",
                state="void" if self._is_void(job) else "intended",
                looks=job.looks,
                next_look_at=now() + self._jobs.pause(job.looks),
                lease_until=None,
            )

    def _is_void(self, job: Job) -> bool:
        """Whether nothing will come of an intent any more: while its own request still waits for
        the answer, that may be yes."""
        deployment = self._jobs.route_of(job).deployment
        patience = (deployment.max_retries + 1) * deployment.timeout_seconds + GRACE_SECONDS
        is_over = now() - job.created_at > dt.timedelta(seconds=patience)
        return job.looks >= _INTENT_LOOKS and (is_over or job.status == UNANSWERED)

    def _postpone(self, job: Job, was: str, looks: int, error: GatewayError) -> None:
        age = now() - job.created_at
        is_lost = age > dt.timedelta(days=self._settings.give_up_days)
        given_up = "lost" if was == "active" else "void"
        log.warning(
            "look failed",
            extra={
                "job": job.id,
                "deployment": job.deployment_id,
                "status": error.status,
                "error": error.message,
                "lost": is_lost,
                "missing": isinstance(error, NotFound),
            },
        )
        with self._database.write() as session:
            rows.record_if(
                session,
                job.id,
                was,
                state=given_up if is_lost else was,
                looks=looks,
                next_look_at=now() + self._jobs.pause(looks),
                lease_until=None,
                last_error=error.message,
            )
