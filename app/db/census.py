"""How many rows there are of each kind, for monitoring.

An index answers each question, but for jobs, of which there are few. With 100,000 files, 200,000
copies and 20,000 jobs all of them together take 50 ms on SQLite.
"""

import datetime as dt
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from app.db.jobs import UNFINISHED
from app.db.tables import Copy, File, Job, UploadSession


def by_value(session: Session, column: InstrumentedAttribute[str]) -> dict[str, int]:
    """How many rows have each value of a column."""
    query = select(column, func.count()).group_by(column)
    return {row[0]: row[1] for row in session.execute(query)}


def files(session: Session) -> dict[str, int]:
    """Files by state."""
    return by_value(session, File.state)


def copies(session: Session) -> dict[str, int]:
    """Copies by state."""
    return by_value(session, Copy.state)


def uploads(session: Session) -> dict[str, int]:
    """Uploads in parts by status."""
    return by_value(session, UploadSession.status)


def jobs(session: Session) -> dict[tuple[str, str, str | None, str], int]:
    """Batches and fine-tuning jobs by type, provider, model name and OpenAI's status."""
    kinds = (Job.type, Job.provider, Job.model_name, Job.status)
    query = select(*kinds, func.count()).group_by(*kinds)
    return {(t, p, m, s): count for t, p, m, s, count in session.execute(query)}


def due(session: Session, moment: dt.datetime) -> dict[str, tuple[int, dt.datetime | None]]:
    """By chore: how many rows the worker should have looked at by now, and since when the first."""
    waiting: dict[str, Any] = {
        "copies": select(func.count(), func.min(Copy.next_look_at)).where(
            Copy.next_look_at <= moment
        ),
        "jobs": select(func.count(), func.min(Job.next_look_at)).where(
            Job.state.in_(UNFINISHED), Job.next_look_at <= moment
        ),
    }
    found = {}
    for chore, query in waiting.items():
        count, first = session.execute(query).one()
        found[chore] = (count, first)
    return found
