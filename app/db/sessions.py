"""Sessions of the console; one function each, session first."""

import datetime as dt

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from app.db.tables import ConsoleSession


def add(session: Session, row: ConsoleSession) -> None:
    """Begin a session."""
    session.add(row)


def by_id(session: Session, session_id: str) -> ConsoleSession | None:
    """The session with this id, over or not."""
    return session.get(ConsoleSession, session_id)


def seen(session: Session, session_id: str, moment: dt.datetime) -> None:
    """Write down that somebody is at work in this session."""
    change = update(ConsoleSession).where(ConsoleSession.id == session_id)
    session.execute(change.values(seen_at=moment))


def drop(session: Session, session_id: str) -> None:
    """End a session."""
    session.execute(delete(ConsoleSession).where(ConsoleSession.id == session_id))


def sweep(session: Session, moment: dt.datetime, idle_since: dt.datetime, limit: int) -> None:
    """Remove some sessions that are over, or in which nobody has done anything since then."""
    ended = (ConsoleSession.expires_at <= moment) | (ConsoleSession.seen_at <= idle_since)
    old = select(ConsoleSession.id).where(ended).limit(limit)
    session.execute(delete(ConsoleSession).where(ConsoleSession.id.in_(old)))
