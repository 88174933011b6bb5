"""Files and jobs as people look at them: pages with their copies, and one thing by its row id.

Whose they are is asked here once more: somebody else's thing is not found, whether it exists or
not. What is then done with it goes by its public id through the services that the API uses.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from app.db import browse as rows
from app.db import files as file_rows
from app.db.engine import Database
from app.db.tables import File, Job
from app.errors import NotFound
from app.ids import JobType
from app.services.callers import MASTER_OWNER, MASTER_USER_ID, Caller, owner_of
from app.services.file_objects import copy_object

T = TypeVar("T")


@dataclass(frozen=True)
class Turn:
    """Which page: the things that are older, or newer, than the one with the row id `at`."""

    at: str | None = None
    newer: bool = False
    size: int = 50


@dataclass(frozen=True)
class FileQuery:
    """Which files somebody wants to see. `user_id` is for those who see everything."""

    user_id: str | None = None
    purpose: str | None = None
    status: Literal["processed", "uploaded", "error"] | None = None
    model: str | None = None
    name: str | None = None


@dataclass(frozen=True)
class FileView:
    """A file with its copies as `copy_object` shows them; `uuid` is its row id."""

    uuid: str
    id: str
    owner: str
    filename: str
    mime_type: str
    purpose: str
    bytes: int
    sha256: str | None
    status: str
    status_details: str | None
    is_kept: bool
    expires_at: dt.datetime | None
    created_at: dt.datetime
    copies: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class JobView:
    """A batch or fine-tuning job; `snapshot` is the upstream's last word, with its own ids."""

    uuid: str
    id: str
    type: JobType
    owner: str
    model: str | None
    deployment_id: str
    provider: str
    status: str
    state: str
    last_error: str | None
    request: dict[str, Any]
    snapshot: dict[str, Any]
    created_at: dt.datetime
    updated_at: dt.datetime


@dataclass(frozen=True)
class Shown(Generic[T]):
    """One page, newest first, and whether there is more on either side."""

    items: tuple[T, ...]
    has_newer: bool
    has_older: bool


class Browse:
    """What somebody sees of files and jobs. All methods raise DatabaseUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def files(self, caller: Caller, query: FileQuery, turn: Turn) -> Shown[FileView]:
        """A page of files: the caller's own, of everybody for those who see everything."""
        among = rows.FileFilter(
            _owner(caller, query.user_id), query.purpose, query.status, query.model, query.name
        )
        with self._database.read() as session:
            found = rows.files(session, among, at=turn.at, newer=turn.newer, limit=turn.size + 1)
            shown = found[: turn.size]
            copies = file_rows.copies_of(session, [file.id for file in shown])
        by_file: dict[str, list[dict[str, Any]]] = {}
        for copy in copies:
            shown_copy = copy_object(copy, in_full=caller.sees_everything)
            by_file.setdefault(copy.file_id, []).append(shown_copy)
        views = [_file_view(file, by_file.get(file.id, [])) for file in shown]
        return _page(views, turn, has_more=len(found) > turn.size)

    def file(self, caller: Caller, file_uuid: str) -> FileView:
        """A file. Raises NotFound for one that is not the caller's to see."""
        with self._database.read() as session:
            found = rows.file(session, file_uuid)
            if found is None or not _may_see(caller, found.owner):
                raise NotFound("there is no such file", param="file_id")
            copies = file_rows.copies_of(session, [file_uuid])
        shown = [copy_object(copy, in_full=caller.sees_everything) for copy in copies]
        return _file_view(found, shown)

    def uuid_of(self, public_id: str | None, owner: str) -> str | None:
        """The row id of an owner's file by its public one, None when he has none such."""
        if not public_id:
            return None
        with self._database.read() as session:
            found = rows.file_by_public_id(session, public_id, owner)
        return found.id if found else None

    def jobs(
        self, caller: Caller, type: JobType, user_id: str | None, turn: Turn
    ) -> Shown[JobView]:
        """A page of batches or fine-tuning jobs."""
        among = rows.JobFilter(type, _owner(caller, user_id))
        with self._database.read() as session:
            found = rows.jobs(session, among, at=turn.at, newer=turn.newer, limit=turn.size + 1)
        views = [_job_view(job) for job in found[: turn.size]]
        return _page(views, turn, has_more=len(found) > turn.size)

    def job(self, caller: Caller, type: JobType, job_uuid: str) -> JobView:
        """A job. Raises NotFound for one that is not the caller's to see."""
        with self._database.read() as session:
            found = rows.job(session, job_uuid)
        if found is None or found.type != type or not _may_see(caller, found.owner):
            raise NotFound("there is no such job", param="job_id")
        return _job_view(found)

    def running(self, caller: Caller, type: JobType) -> int:
        """How many jobs run."""
        with self._database.read() as session:
            return rows.unfinished_jobs(session, type, _owner(caller, None))


def _owner(caller: Caller, user_id: str | None) -> str | None:
    """Whose things are asked for; None is everybody's."""
    if not caller.sees_everything:
        return caller.owner
    if not user_id:
        return None
    return MASTER_OWNER if user_id == MASTER_USER_ID else owner_of(user_id)


def _may_see(caller: Caller, owner: str) -> bool:
    return caller.sees_everything or owner == caller.owner


def _page(views: Sequence[T], turn: Turn, *, has_more: bool) -> Shown[T]:
    if turn.newer:
        return Shown(tuple(reversed(views)), has_newer=has_more, has_older=turn.at is not None)
    return Shown(tuple(views), has_newer=turn.at is not None, has_older=has_more)


def _file_view(file: File, copies: Sequence[dict[str, Any]]) -> FileView:
    known = [moment for moment in (file.expires_at, file.copies_expire_at) if moment]
    return FileView(
        uuid=file.id,
        id=file.public_id or "",
        owner=file.owner,
        filename=file.filename,
        mime_type=file.mime_type,
        purpose=file.purpose,
        bytes=file.bytes,
        sha256=file.sha256,
        status=file.status,
        status_details=file.status_details,
        is_kept=file.is_kept,
        expires_at=min(known, default=None),
        created_at=file.created_at,
        copies=tuple(copies),
    )


def _job_view(job: Job) -> JobView:
    return JobView(
        uuid=job.id,
        id=job.public_id or "",
        type=job.type,  # type: ignore[arg-type]  # a row has one of the two
        owner=job.owner,
        model=job.model_name,
        deployment_id=job.deployment_id,
        provider=job.provider,
        status=job.status,
        state=job.state,
        last_error=job.last_error,
        request=job.request,
        snapshot=job.snapshot,
        created_at=job.created_at,
        updated_at=job.updated_at,
    )
