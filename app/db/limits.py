"""What is counted for limits; one function each, session first.

Whoever adds to a count first locks its subject (a key or a user), so that two who do it at the same
moment count one another.
"""

import datetime as dt
from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import ColumnElement, case, delete, func, or_, select, update
from sqlalchemy.orm import Session

from app.db.tables import File, RequestCount, RunningRequest, UploadSession
from app.db.upsert import insert

WINDOW = dt.timedelta(minutes=1)
_STORED = ("uploading", "ready")
_ANNOUNCED = ("pending", "completing")


@dataclass(frozen=True)
class Stored:
    """How much somebody has: files, and their bytes."""

    files: int
    bytes: int


def lock(session: Session, subject: str) -> None:
    """Let nobody else count for this subject until the end of the transaction.

    Those who take several take them in one order, or they would wait for one another.
    """
    # SQLite has one writer at a time, as it is.
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(subject, 0))))


def count(session: Session, subject: str, kind: str, most: int, moment: dt.datetime) -> bool:
    """Count one more request in this minute; False when there were as many already."""
    is_over = RequestCount.began_at <= moment - WINDOW
    statement = insert(session, RequestCount).values(
        subject=subject, kind=kind, began_at=moment, count=1
    )
    counted = statement.on_conflict_do_update(
        index_elements=["subject", "kind"],
        set_={
            "count": case((is_over, 1), else_=RequestCount.count + 1),
            "began_at": case((is_over, moment), else_=RequestCount.began_at),
        },
        where=or_(is_over, RequestCount.count < most),
    ).returning(RequestCount.count)
    return most > 0 and session.execute(counted).first() is not None


def minute_began_at(session: Session, subject: str, kind: str) -> dt.datetime | None:
    """When the minute began in which requests are being counted."""
    return session.scalar(
        select(RequestCount.began_at).where(
            RequestCount.subject == subject, RequestCount.kind == kind
        )
    )


def running(session: Session, subject: str, moment: dt.datetime) -> int:
    """How many requests are being answered now."""
    query = select(func.count()).where(
        RunningRequest.subject == subject, RunningRequest.lease_until > moment
    )
    return session.scalar(query) or 0


def begin(session: Session, request: str, subject: str, lease_until: dt.datetime) -> None:
    """Add a request that is being answered."""
    session.add(RunningRequest(id=request, subject=subject, lease_until=lease_until))


def end(session: Session, request: str) -> None:
    """Remove a request that has been answered."""
    session.execute(delete(RunningRequest).where(RunningRequest.id == request))


def renew(session: Session, requests: Collection[str], until: dt.datetime) -> None:
    """Count these requests for longer."""
    still = RunningRequest.id.in_(requests)
    session.execute(update(RunningRequest).where(still).values(lease_until=until))


def stored(session: Session, *, user: str | None = None, key_id: str | None = None) -> Stored:
    """What the owner `user`, or a key of whatever owner, has stored or is storing."""
    whose: ColumnElement[bool] = File.owner == user if user else File.key_id == key_id
    query = select(func.count(), func.coalesce(func.sum(File.bytes), 0)).where(
        whose, File.state.in_(_STORED)
    )
    files, size = session.execute(query).one()
    return Stored(files, int(size))


def announced(
    session: Session, moment: dt.datetime, *, user: str | None = None, key_id: str | None = None
) -> Stored:
    """What is announced as uploads in parts and not yet a file."""
    whose: ColumnElement[bool] = (
        UploadSession.owner == user if user else UploadSession.key_id == key_id
    )
    query = select(func.count(), func.coalesce(func.sum(UploadSession.bytes), 0)).where(
        whose, UploadSession.status.in_(_ANNOUNCED), UploadSession.expires_at > moment
    )
    files, size = session.execute(query).one()
    return Stored(files, int(size))


def forget(session: Session, moment: dt.datetime) -> None:
    """Remove counts whose minute is over and requests whose process died."""
    session.execute(delete(RequestCount).where(RequestCount.began_at <= moment - WINDOW))
    session.execute(delete(RunningRequest).where(RunningRequest.lease_until <= moment - WINDOW))
