"""Limits of keys and users, kept exactly by all processes and nodes on one database.

Whoever has no limits costs nothing here. A minute begins with the first request that is counted in
it. Requests that are being answered are rows with a lease: when a process dies, they count until
the lease is over.
"""

import logging
import math
from contextlib import ExitStack

from sqlalchemy.orm import Session

from app import ids
from app.db import limits as rows
from app.db.engine import Database
from app.db.tables import now
from app.errors import (
    DatabaseUnavailable,
    FileLimitExceeded,
    RateLimited,
    StorageLimitExceeded,
)
from app.services.callers import Caller
from app.services.leases import LEASE_SECONDS, Leases
from app.services.limits import Subject

log = logging.getLogger("manifold.limits")


class Meter:
    """Counts what callers with limits do, and refuses what is over them."""

    def __init__(self, database: Database, lease_seconds: float = LEASE_SECONDS) -> None:
        self._database = database
        self._leases = Leases(database, lease_seconds, rows.renew)

    def begin(self, caller: Caller, *, is_upload: bool) -> ExitStack:
        """Count a request, as one that runs until what this returns is closed.

        Raises RateLimited, with Retry-After, when there are as many as the key or its user may
        send in a minute or at a time; nothing is counted then. Raises DatabaseUnavailable.
        """
        running = ExitStack()
        if not caller.limited:
            return running
        request, is_bounded = ids.new_uuid(), False
        # A refusal rolls back what was counted for another limit.
        with self._database.write() as session:
            _lock(session, caller)
            for subject in caller.limited:
                self._count(session, subject, is_upload=is_upload)
                if subject.limits.max_parallel_requests is not None:
                    self._run(session, subject, request)
                    is_bounded = True
        if is_bounded:
            running.callback(self._end, request)
            running.enter_context(self._leases.held([request]))
        return running

    @staticmethod
    def _count(session: Session, subject: Subject, *, is_upload: bool) -> None:
        moment, limits = now(), subject.limits
        counted = [("any", limits.rpm_limit, "requests")]
        if is_upload:
            counted.append(("upload", limits.upload_rpm_limit, "uploads"))
        for kind, most, what in counted:
            if most is None or rows.count(session, subject.name, kind, most, moment):
                continue
            began = rows.minute_began_at(session, subject.name, kind) or moment
            left = (began + rows.WINDOW - moment).total_seconds()
            raise RateLimited(
                f"{_called(subject)} may send {most} {what} a minute",
                headers={"Retry-After": str(max(1, math.ceil(left)))},
            )

    def _run(self, session: Session, subject: Subject, request: str) -> None:
        most = subject.limits.max_parallel_requests or 0
        if rows.running(session, subject.name, now()) >= most:
            raise RateLimited(
                f"{_called(subject)} may have {most} requests answered at a time",
                headers={"Retry-After": "1"},
            )
        rows.begin(session, request, subject.name, self._leases.until())

    def _end(self, request: str) -> None:
        try:
            with self._database.write() as session:
                rows.end(session, request)
        except DatabaseUnavailable as error:
            log.warning("a request counts for longer", extra={"error": error.message})

    def require_room(self, caller: Caller, size: int, *, is_announced: bool = False) -> None:
        """Return when there is room for a file of so many bytes. Raises as `admit`."""
        if caller.limited:
            with self._database.read() as session:
                self._require_room(session, caller, size, is_announced=is_announced)

    def admit(
        self, session: Session, caller: Caller, size: int, *, is_announced: bool = False
    ) -> None:
        """Let the transaction that adds a file go on; no other adds one for him until its end.

        `size` is in bytes. An announced file, one to be sent in parts, is added to others that
        are. Raises FileLimitExceeded, StorageLimitExceeded.
        """
        if caller.limited:
            _lock(session, caller)
            self._require_room(session, caller, size, is_announced=is_announced)

    @staticmethod
    def _require_room(session: Session, caller: Caller, size: int, *, is_announced: bool) -> None:
        for subject in caller.limited:
            most_files, most_bytes = subject.limits.max_files, subject.limits.max_bytes_stored
            if most_files is None and most_bytes is None:
                continue
            whose = {"user": subject.name} if subject.is_user else {"key_id": subject.id}
            has = rows.stored(session, **whose)
            files, used = has.files, has.bytes
            if is_announced:
                more = rows.announced(session, now(), **whose)
                files, used = files + more.files, used + more.bytes
            if most_files is not None and files >= most_files:
                raise FileLimitExceeded(
                    f"{_called(subject)} may have {most_files} files and has {files}; delete some"
                )
            if most_bytes is not None and used + size > most_bytes:
                raise StorageLimitExceeded(
                    f"{_called(subject)} may have {most_bytes} bytes stored and has {used}; "
                    f"{size} more were sent",
                    param="file",
                )

    def sweep(self) -> None:
        """Remove counts that are over."""
        with self._database.write() as session:
            rows.forget(session, now())


def _lock(session: Session, caller: Caller) -> None:
    for name in sorted(subject.name for subject in caller.limited):
        rows.lock(session, name)


def _called(subject: Subject) -> str:
    return f"User {subject.id}" if subject.is_user else "This key"
