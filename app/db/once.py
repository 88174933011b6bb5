"""Requests that are done once; one function each, session first."""

import datetime as dt
from collections.abc import Collection
from typing import Any

from sqlalchemy import delete, update
from sqlalchemy.orm import Session

from app.db.tables import SingleRequest


def by_id(session: Session, request_id: str, *, lock: bool = False) -> SingleRequest | None:
    """The request; with `lock` nobody else changes it before the end of the transaction."""
    return session.get(SingleRequest, request_id, with_for_update=lock or None)


def renew(session: Session, request_ids: Collection[str], until: dt.datetime) -> None:
    """Hold these, as far as they are still running, for longer."""
    running = SingleRequest.id.in_(request_ids), SingleRequest.answer.is_(None)
    session.execute(update(SingleRequest).where(*running).values(lease_until=until))


def change(session: Session, request_id: str, **values: Any) -> None:
    """Set columns of the request."""
    session.execute(update(SingleRequest).where(SingleRequest.id == request_id).values(**values))


def drop(session: Session, request_id: str) -> None:
    """Forget the request."""
    session.execute(delete(SingleRequest).where(SingleRequest.id == request_id))


def drop_expired(session: Session, request_id: str, moment: dt.datetime) -> None:
    """Forget the request if its time is over."""
    which = SingleRequest.id == request_id, SingleRequest.expires_at <= moment
    session.execute(delete(SingleRequest).where(*which))


def drop_all_expired(session: Session, moment: dt.datetime) -> None:
    """Forget every request whose time is over."""
    session.execute(delete(SingleRequest).where(SingleRequest.expires_at <= moment))
