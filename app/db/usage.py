"""What was used in each hour, and what is stored now; one function each, session first."""

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Insert, delete, func, select
from sqlalchemy.orm import Session

from app.db.tables import Copy, File, Job, Key, KeyUse, UsageHour, now
from app.db.upsert import insert

COUNTS = ("requests", "errors", "bytes_in", "bytes_out", "rows_done", "rows_failed")
"""The columns that are added up."""

_AT_ONCE = 100


@dataclass(frozen=True, order=True)
class Place:
    """The row that something is counted in. `hour` is its first moment."""

    hour: dt.datetime
    owner: str
    dimension: str = ""
    name: str = ""


@dataclass(frozen=True)
class Stored:
    """Files and their bytes; `name` is an owner or a model."""

    name: str
    files: int
    bytes: int


@dataclass(frozen=True)
class CopyCount:
    """Copies of one state at a deployment, and the bytes of their files."""

    deployment_id: str
    state: str
    copies: int
    bytes: int


def add(session: Session, counted: Mapping[Place, Mapping[str, int]]) -> None:
    """Add these counts to their rows.

    In one order, so that two processes that do it at the same time cannot wait for one another.
    """
    key = ("hour", "owner", "dimension", "name")
    rows = [
        {**{name: getattr(place, name) for name in key}, **dict.fromkeys(COUNTS, 0), **counts}
        for place, counts in sorted(counted.items())
    ]
    for start in range(0, len(rows), _AT_ONCE):
        statement = insert(session, UsageHour).values(rows[start : start + _AT_ONCE])
        more = {name: getattr(UsageHour, name) + statement.excluded[name] for name in COUNTS}
        added: Insert = statement.on_conflict_do_update(index_elements=list(key), set_=more)
        session.execute(added)


def add_ended(session: Session, job: Job, *, done: int, failed: int) -> None:
    """Count the rows of a batch that has just ended."""
    this = now().replace(minute=0, second=0, microsecond=0)
    counts = {"rows_done": done, "rows_failed": failed}
    places = [("", ""), ("deployment", job.deployment_id)]
    if job.model_name is not None:
        places.append(("model", job.model_name))
    add(session, {Place(this, job.owner, kind, name): counts for kind, name in places})


def note_uses(session: Session, uses: Mapping[str, dt.datetime]) -> None:
    """Write down when keys were used last; those that are gone meanwhile are left out."""
    every = sorted(uses)
    for start in range(0, len(every), _AT_ONCE):
        some = every[start : start + _AT_ONCE]
        # Locked, so that none of them is deleted before the end of the transaction.
        there = select(Key.id).where(Key.id.in_(some)).with_for_update(key_share=True, read=True)
        rows = [{"key_id": key, "used_at": uses[key]} for key in sorted(session.scalars(there))]
        if not rows:
            continue
        statement = insert(session, KeyUse).values(rows)
        later = {"used_at": statement.excluded.used_at}
        session.execute(
            statement.on_conflict_do_update(
                index_elements=["key_id"],
                set_=later,
                where=KeyUse.used_at < statement.excluded.used_at,
            )
        )


def last_uses(session: Session, tokens: Sequence[str]) -> dict[str, dt.datetime]:
    """When the keys with these hashes were used last; those that never were are left out."""
    query = select(Key.token, KeyUse.used_at).join(KeyUse, KeyUse.key_id == Key.id)
    found = session.execute(query.where(Key.token.in_(tokens)))
    return {row.token: row.used_at for row in found}


def by_hour(
    session: Session, since: dt.datetime, *, owner: str | None, dimension: str = ""
) -> list[tuple[dt.datetime, str, dict[str, int]]]:
    """(hour, name, counts) of an owner, or of all for None, oldest first."""
    sums = [func.sum(getattr(UsageHour, name)) for name in COUNTS]
    query = select(UsageHour.hour, UsageHour.name, *sums).where(
        UsageHour.hour >= since, UsageHour.dimension == dimension, *_owned(UsageHour.owner, owner)
    )
    query = query.group_by(UsageHour.hour, UsageHour.name).order_by(UsageHour.hour, UsageHour.name)
    return [
        (hour, name, {count: int(value) for count, value in zip(COUNTS, values, strict=True)})
        for hour, name, *values in session.execute(query)
    ]


def by_name(
    session: Session, since: dt.datetime, *, owner: str | None, dimension: str, limit: int
) -> list[tuple[str, dict[str, int]]]:
    """(name, counts) since then; `dimension` may be `owner`. The busiest first."""
    column = UsageHour.owner if dimension == "owner" else UsageHour.name
    wanted = "" if dimension == "owner" else dimension
    sums = [func.sum(getattr(UsageHour, name)).label(name) for name in COUNTS]
    query = select(column, *sums).where(
        UsageHour.hour >= since, UsageHour.dimension == wanted, *_owned(UsageHour.owner, owner)
    )
    query = query.group_by(column).order_by(sums[0].desc(), column).limit(limit)
    return [
        (name, {count: int(value) for count, value in zip(COUNTS, values, strict=True)})
        for name, *values in session.execute(query)
    ]


def stored_by_owner(session: Session, *, owner: str | None, limit: int) -> list[Stored]:
    """What owners have stored, the most first."""
    total = func.sum(File.bytes)
    query = select(File.owner, func.count(), total).where(
        File.state == "ready", *_owned(File.owner, owner)
    )
    query = query.group_by(File.owner).order_by(total.desc(), File.owner).limit(limit)
    return _stored(session.execute(query))


def stored_by_model(session: Session, *, owner: str | None, limit: int) -> list[Stored]:
    """What is stored for each model, each copy for itself, the most first."""
    total = func.sum(File.bytes)
    query = (
        select(Copy.model_name, func.count(), total)
        .join(File, File.id == Copy.file_id)
        .where(Copy.state == "ready", File.state == "ready", *_owned(File.owner, owner))
        .group_by(Copy.model_name)
        .order_by(total.desc(), Copy.model_name)
    )
    return _stored(session.execute(query.limit(limit)))


def copies_by_deployment(session: Session) -> list[CopyCount]:
    """How many copies of each state there are at each deployment."""
    query = (
        select(Copy.deployment_id, Copy.state, func.count(), func.sum(File.bytes))
        .join(File, File.id == Copy.file_id)
        .group_by(Copy.deployment_id, Copy.state)
        .order_by(Copy.deployment_id, Copy.state)
    )
    return [CopyCount(d, state, n, int(size or 0)) for d, state, n, size in session.execute(query)]


def sweep(session: Session, before: dt.datetime) -> None:
    """Remove the hours before then."""
    session.execute(delete(UsageHour).where(UsageHour.hour < before))


def _owned(column: Any, owner: str | None) -> Iterable[ColumnElement[bool]]:
    return () if owner is None else (column == owner,)


def _stored(rows: Iterable[Any]) -> list[Stored]:
    return [Stored(name or "", files, int(size or 0)) for name, files, size in rows]
