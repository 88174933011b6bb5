"""Pages of files and jobs for people who look at them; one function each, session first."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, func, literal, or_, select, tuple_
from sqlalchemy.orm import Session, defer

from app.db.files import VISIBLE
from app.db.jobs import HIDDEN
from app.db.tables import Copy, File, Job, UtcDateTime, now


@dataclass(frozen=True)
class FileFilter:
    """Which files are shown; None and empty do not filter. `name` is a part of the file name."""

    owner: str | None = None
    purpose: str | None = None
    status: str | None = None
    model: str | None = None
    name: str | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        found: list[ColumnElement[bool]] = [
            # Not as it stands: SQLite would read all that is visible by its index, and sort it.
            (File.state + "").in_(VISIBLE),
            or_(File.expires_at.is_(None), File.expires_at > now()),
        ]
        if self.owner is not None:
            found.append(File.owner == self.owner)
        if self.purpose:
            found.append(File.purpose == self.purpose)
        if self.status:
            found.append(File.status == self.status)
        if self.model:
            held = select(Copy.file_id).where(
                Copy.model_name == self.model, Copy.file_id == File.id
            )
            found.append(held.exists())
        if self.name:
            found.append(File.filename.icontains(self.name, autoescape=True))
        return found


@dataclass(frozen=True)
class JobFilter:
    """Which jobs are shown; None does not filter."""

    type: str
    owner: str | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        found: list[ColumnElement[bool]] = [Job.type == self.type, Job.state.not_in(HIDDEN)]
        if self.owner is not None:
            found.append(Job.owner == self.owner)
        return found


def files(
    session: Session, among: FileFilter, *, at: str | None, newer: bool, limit: int
) -> Sequence[File]:
    """Up to `limit` files beyond the one with the row id `at`, those next to it first.

    They are older ones, or newer ones when asked; without `at` the newest of all.
    """
    query = select(File).where(*among.conditions())
    query = _beyond(session, query, File, at, newer=newer)
    query = query.options(defer(File.target_model_names, raiseload=True))
    return session.scalars(query.limit(limit)).all()


def jobs(
    session: Session, among: JobFilter, *, at: str | None, newer: bool, limit: int
) -> Sequence[Job]:
    """The same of jobs."""
    query = select(Job).where(*among.conditions())
    return session.scalars(_beyond(session, query, Job, at, newer=newer).limit(limit)).all()


def file(session: Session, file_uuid: str) -> File | None:
    """A file that its owner can see."""
    found = session.get(File, file_uuid)
    if found is None or found.state not in VISIBLE:
        return None
    return None if found.expires_at is not None and found.expires_at <= now() else found


def job(session: Session, job_uuid: str) -> Job | None:
    """A job that its owner can see."""
    found = session.get(Job, job_uuid)
    return None if found is None or found.state in HIDDEN else found


def file_by_public_id(session: Session, public_id: str, owner: str) -> File | None:
    """An owner's file that was handed out under this id."""
    query = select(File).where(File.owner == owner, File.public_id == public_id)
    return session.scalars(query.where(File.state.in_(VISIBLE)).limit(1)).first()


def unfinished_jobs(session: Session, type: str, owner: str | None) -> int:
    """How many jobs run."""
    among = JobFilter(type, owner)
    query = select(func.count()).select_from(Job).where(*among.conditions(), Job.state == "active")
    return session.scalars(query).one()


def _beyond(
    session: Session, query: Select[Any], table: type[File | Job], at: str | None, *, newer: bool
) -> Select[Any]:
    key = tuple_(table.created_at, table.id)
    place: tuple[Any, ...] | None = None
    if at is not None:
        there = select(table.created_at, table.id).where(table.id == at)
        place = next((tuple(row) for row in session.execute(there)), None)
    if place is not None:
        # One row comparison, which both databases answer from an index.
        cursor = tuple_(literal(place[0], UtcDateTime()), literal(place[1]))
        query = query.where(key > cursor if newer else key < cursor)
    if newer:
        return query.order_by(table.created_at, table.id)
    return query.order_by(table.created_at.desc(), table.id.desc())
