"""Questions about uploads in parts, and writes; one function each, session first."""

import datetime as dt
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import CursorResult, delete, func, select, update
from sqlalchemy.orm import Session

from app.db.tables import UploadPart, UploadSession, now

OVER = ("completed", "cancelled", "expired")
"""Statuses that an upload never leaves again."""


@dataclass(frozen=True)
class Sent:
    """What the parts of an upload hold together; `distinct_bytes` counts equal parts once."""

    parts: int
    bytes: int
    distinct_bytes: int


def insert(session: Session, upload: UploadSession) -> None:
    """Add an upload."""
    session.add(upload)


def by_id(session: Session, row_id: str, *, lock: bool = False) -> UploadSession | None:
    """The upload with this row id. `lock`: nobody else changes it before the transaction ends."""
    return session.get(UploadSession, row_id, with_for_update=lock or None)


def change_status(session: Session, row_id: str, before: str, after: str, **values: Any) -> bool:
    """Whether the upload was in `before`, and so is in `after` now.

    One that has expired is not pending, written down or not.
    """
    changes = update(UploadSession).where(
        UploadSession.id == row_id, UploadSession.status == before
    )
    moment = now()
    if before == "pending":
        changes = changes.where(UploadSession.expires_at > moment)
    result = session.execute(changes.values(status=after, updated_at=moment, **values))
    assert isinstance(result, CursorResult)  # noqa: S101  # for mypy: an UPDATE has a row count
    return bool(result.rowcount)


def known(session: Session, row_ids: Collection[str]) -> set[str]:
    """Those of these row ids that have a row."""
    return set(session.scalars(select(UploadSession.id).where(UploadSession.id.in_(row_ids))))


def parts_of(session: Session, row_id: str) -> list[UploadPart]:
    """All parts of an upload."""
    return list(session.scalars(select(UploadPart).where(UploadPart.upload_id == row_id)))


def add_part(session: Session, part: UploadPart) -> None:
    """Add a part."""
    session.add(part)


def sent(session: Session, row_id: str) -> Sent:
    """What the parts of an upload hold together."""
    ours = UploadPart.upload_id == row_id
    parts, total = session.execute(
        select(func.count(), func.coalesce(func.sum(UploadPart.bytes), 0)).where(ours)
    ).one()
    different = select(UploadPart.sha256, UploadPart.bytes).where(ours).distinct().subquery()
    distinct = session.scalar(select(func.coalesce(func.sum(different.c.bytes), 0)))
    return Sent(parts, int(total), int(distinct or 0))


def has_content(session: Session, row_id: str, sha256: str, size: int) -> bool:
    """Whether the upload has a part with these bytes already."""
    same = select(UploadPart.id).where(
        UploadPart.upload_id == row_id, UploadPart.sha256 == sha256, UploadPart.bytes == size
    )
    return session.scalar(same.limit(1)) is not None


def expire(session: Session, moment: dt.datetime, limit: int) -> list[str]:
    """Mark some uploads whose hour is over; their row ids."""
    # Two gateways that sweep at once take different rows: neither waits, and none can deadlock.
    found = (
        select(UploadSession.id)
        .where(UploadSession.status == "pending", UploadSession.expires_at <= moment)
        .order_by(UploadSession.expires_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    row_ids = list(session.scalars(found))
    if row_ids:
        expired = update(UploadSession).where(UploadSession.id.in_(row_ids))
        session.execute(expired.values(status="expired", updated_at=moment))
    return row_ids


def over_since(session: Session, before: dt.datetime, limit: int) -> list[str]:
    """The row ids of some uploads that are over and whose hour ended before then."""
    return list(
        session.scalars(
            select(UploadSession.id)
            .where(UploadSession.status.in_(OVER), UploadSession.expires_at < before)
            .limit(limit)
        )
    )


def completing_since(session: Session, before: dt.datetime, limit: int) -> list[UploadSession]:
    """Some uploads whose completing began before then and has not ended."""
    query = select(UploadSession).where(
        UploadSession.status == "completing", UploadSession.updated_at < before
    )
    return list(session.scalars(query.limit(limit)))


def drop(session: Session, row_ids: Collection[str]) -> None:
    """Remove uploads and the rows of their parts, but those that somebody else removes now."""
    if not row_ids:
        return
    found = select(UploadSession.id).where(UploadSession.id.in_(row_ids))
    free = list(session.scalars(found.with_for_update(skip_locked=True)))
    session.execute(delete(UploadSession).where(UploadSession.id.in_(free)))
