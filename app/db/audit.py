"""The audit trail's rows: read, and swept when their time is over. Triggers refuse the rest."""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import ColumnElement, CursorResult, Table, delete, insert, or_, select
from sqlalchemy.orm import Session

from app.db.change import Changing
from app.db.question import Question
from app.db.tables import AuditEntry, AuditSweep

_AT_ONCE = 500


@dataclass(frozen=True)
class AuditFilter:
    """Which rows are wanted; None does not filter. `action` is whole, or what is before its dot."""

    since: dt.datetime | None = None
    until: dt.datetime | None = None
    actor: str | None = None
    action: str | None = None
    target: str | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        found: list[ColumnElement[bool]] = []
        if self.since is not None:
            found.append(AuditEntry.at >= self.since)
        if self.until is not None:
            found.append(AuditEntry.at < self.until)
        if self.actor is not None:
            found.append(AuditEntry.actor == self.actor)
        if self.action is not None:
            of_kind = AuditEntry.action.startswith(f"{self.action}.", autoescape=True)
            found.append(or_(AuditEntry.action == self.action, of_kind))
        if self.target is not None:
            found.append(AuditEntry.target == self.target)
        return found


def newest(session: Session, among: AuditFilter, limit: int) -> Sequence[AuditEntry]:
    """At most `limit` rows, the newest ones, in the order in which they were written."""
    statement = (
        select(AuditEntry)
        .where(*among.conditions())
        .order_by(AuditEntry.at.desc(), AuditEntry.id.desc())
        .limit(limit)
    )
    return session.scalars(statement).all()[::-1]


_TABLE = cast(Table, AuditEntry.__table__)
_ADD = Question(insert(_TABLE))


def add(session: Session | Changing, facts: Sequence[Mapping[str, Any]]) -> None:
    """Add rows, by their columns."""
    if isinstance(session, Session):
        session.execute(insert(_TABLE), [dict(row) for row in facts])
        return
    for row in facts:
        session.do(_ADD, **row)


def add_new(session: Session, facts: Sequence[Mapping[str, Any]]) -> None:
    """Add rows, leaving out those that are there already."""
    for start in range(0, len(facts), _AT_ONCE):
        some = facts[start : start + _AT_ONCE]
        asked = select(AuditEntry.id).where(AuditEntry.id.in_([row["id"] for row in some]))
        known = set(session.scalars(asked))
        if new := [dict(row) for row in some if row["id"] not in known]:
            session.execute(insert(AuditEntry), new)


def sweep(session: Session, before: dt.datetime, at_most: int) -> int:
    """Remove rows that are older than `before`; how many those were.

    The triggers let go what a row of `audit_sweeps` names, and that row is never committed: only
    this transaction can see it.
    """
    session.add(AuditSweep(before=before))
    session.flush()
    old = select(AuditEntry.id).where(AuditEntry.at < before).order_by(AuditEntry.at).limit(at_most)
    removed = session.execute(delete(AuditEntry).where(AuditEntry.id.in_(old)))
    session.execute(delete(AuditSweep))
    return cast(CursorResult[Any], removed).rowcount
