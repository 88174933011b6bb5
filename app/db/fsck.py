"""Questions of the check: rows page by page, what links an upstream's file, and whole tables."""

import datetime as dt
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import (
    ColumnElement,
    and_,
    column,
    delete,
    literal_column,
    or_,
    select,
    table,
    text,
    update,
)
from sqlalchemy.orm import Session

from app.db.tables import Copy, File, Job, now

_UNFINISHED_JOBS = ("intended", "active", "lost")


@dataclass(frozen=True)
class OpenAttempt:
    """A store whose answer is not known, or is under way."""

    upload_key: str | None
    filename: str
    purpose: str
    bytes: int


@dataclass(frozen=True)
class Orphan:
    """A row of a SQLite file whose parent is gone; `row` is SQLite's own number of it."""

    table: str
    row: int
    parent: str


def files_after(session: Session, after: str, limit: int) -> list[File]:
    """A page of files, tombstones too, by their row ids."""
    query = select(File).where(File.id > after).order_by(File.id)
    return list(session.scalars(query.limit(limit)))


def kept_after(session: Session, after: str, limit: int) -> list[File]:
    """A page of the files whose content is to be on the gateway's disk."""
    query = select(File).where(File.id > after, File.is_kept, File.state == "ready")
    return list(session.scalars(query.order_by(File.id).limit(limit)))


def held_after(
    session: Session, deployment_ids: Collection[str], after: str, limit: int
) -> list[Copy]:
    """A page of the copies that these deployments have, for all that is known."""
    query = select(Copy).where(
        Copy.id > after,
        Copy.deployment_id.in_(deployment_ids),
        Copy.state.in_(("ready", "stored")),
        Copy.deployment_file_id.is_not(None),
    )
    return list(session.scalars(query.order_by(Copy.id).limit(limit)))


def uploading(session: Session, file_uuids: Collection[str]) -> set[str]:
    """Those of these files that are on their way in."""
    query = select(File.id).where(File.id.in_(file_uuids), File.state == "uploading")
    return set(session.scalars(query))


def has_files(session: Session) -> bool:
    """Whether there is any file."""
    return session.scalar(select(File.id).limit(1)) is not None


def has_copies(session: Session, deployment_ids: Collection[str]) -> bool:
    """Whether any copy is, or is to be, at one of these deployments."""
    query = select(Copy.id).where(
        Copy.deployment_id.in_(deployment_ids), Copy.state.not_in(("deleted", "expired"))
    )
    return session.scalar(query.limit(1)) is not None


def linked(session: Session, raws: Collection[str]) -> set[str]:
    """Those of an upstream's ids that a copy has or had, or a job reads.

    At any deployment: two of them may be one account, which only its provider knows.
    """
    found: set[str] = set()
    for of_copy in (Copy.deployment_file_id, Copy.first_file_id):
        query = select(of_copy).where(of_copy.in_(raws), Copy.state != "deleted")
        found.update(raw for raw in session.scalars(query) if raw)
    read = select(Job.upstream_input_id).where(Job.upstream_input_id.in_(raws))
    found.update(session.scalars(read))
    return found


def copies_with(session: Session, deployment_id: str, raw: str) -> list[Copy]:
    """The copies at a deployment that it calls `raw`."""
    query = select(Copy).where(
        Copy.deployment_id == deployment_id,
        Copy.deployment_file_id == raw,
        Copy.state.in_(("ready", "stored")),
    )
    return list(session.scalars(query))


def open_attempts(session: Session, after: str, limit: int) -> list[tuple[str, OpenAttempt]]:
    """A page of the copies that may turn up at an upstream under an id nobody knows yet."""
    is_unanswered = or_(
        Copy.state == "intended",
        and_(Copy.state == "deleting", Copy.deployment_file_id.is_(None)),
        Copy.lease_until.is_not(None),
    )
    query = (
        select(Copy.id, Copy.upload_key, File.filename, File.purpose, File.bytes)
        .join(File, File.id == Copy.file_id)
        .where(Copy.id > after, is_unanswered, Copy.state != "deleted")
        .order_by(Copy.id)
    )
    found = session.execute(query.limit(limit)).all()
    return [(row[0], OpenAttempt(row[1], row[2], row[3], row[4])) for row in found]


def jobs_after(session: Session, after: str, limit: int) -> list[Job]:
    """A page of jobs."""
    query = select(Job).where(Job.id > after).order_by(Job.id)
    return list(session.scalars(query.limit(limit)))


def oldest_unfinished_job(session: Session) -> dt.datetime | None:
    """When the oldest of the jobs began whose outputs may not be known yet."""
    query = select(Job.created_at).where(Job.state.in_(_UNFINISHED_JOBS))
    return session.scalars(query.order_by(Job.created_at).limit(1)).first()


def make_due(session: Session, file_id: str) -> None:
    """Let somebody look at a file's copies now; at those that are gone, when there are no others.

    Copies that somebody is at are left to him.
    """
    moment = now()
    is_free = or_(Copy.lease_until.is_(None), Copy.lease_until <= moment)
    free = update(Copy).where(Copy.file_id == file_id, is_free)
    changed = session.scalars(
        free.where(Copy.state != "deleted").values(next_look_at=moment).returning(Copy.id)
    )
    if not changed.all():
        session.execute(free.values(next_look_at=moment))


# A SQLite file itself; PostgreSQL looks after its own.


def damage(session: Session) -> list[str]:
    """What SQLite finds wrong with its file, a hundred texts at most."""
    if session.get_bind().dialect.name != "sqlite":
        return []
    found = session.execute(text("PRAGMA integrity_check(100)")).scalars()
    return [each for each in found if each != "ok"]


def orphans(session: Session) -> Iterator[Orphan]:
    """Rows whose parent is gone, as no statement of ours leaves them."""
    if session.get_bind().dialect.name != "sqlite":
        return
    for name, row, parent, _ in session.execute(text("PRAGMA foreign_key_check")).all():
        yield Orphan(str(name), int(row), str(parent))


def orphaned_copy(session: Session, orphan: Orphan) -> Copy | None:
    """The copy that is such a row."""
    return session.scalars(select(Copy).where(_is_row(orphan))).one_or_none()


def drop_orphan(session: Session, orphan: Orphan) -> None:
    """Remove such a row, as its parent's end would have done."""
    session.execute(delete(table(orphan.table, column("rowid"))).where(_is_row(orphan)))


def _is_row(orphan: Orphan) -> ColumnElement[bool]:
    return literal_column("rowid") == orphan.row


def file_with_copies(session: Session, file_id: str) -> tuple[File | None, Sequence[Copy]]:
    """A file as it is now, and its copies."""
    copies = select(Copy).where(Copy.file_id == file_id).order_by(Copy.created_at, Copy.id)
    return session.get(File, file_id), list(session.scalars(copies))
