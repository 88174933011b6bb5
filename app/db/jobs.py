"""Questions about batches and fine-tuning jobs, and writes; one function each, session first."""

import datetime as dt
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, case, literal, or_, select, tuple_, update
from sqlalchemy.orm import Session

from app import ids
from app.db.tables import Job, TunedModel, UtcDateTime, now

UNFINISHED = ("intended", "active")
HIDDEN = ("intended", "void")


@dataclass(frozen=True)
class JobFilters:
    """What a list is narrowed to; None and empty mean no narrowing."""

    owner: str
    type: str
    kind: str | None = None
    deployment_ids: tuple[str, ...] = ()


def insert(session: Session, job: Job) -> None:
    """Add a job."""
    session.add(job)


def by_uuid(session: Session, job_uuid: str) -> Job | None:
    """The job with this row id."""
    return session.get(Job, job_uuid)


def by_upstream_id(session: Session, type: str, raw: str) -> list[Job]:
    """The jobs that an upstream calls `raw`, at any account."""
    query = select(Job).where(Job.upstream_id == raw, Job.type == type)
    return list(session.scalars(query))


def meant_by(session: Session, type: str, meaning: ids.JobId, job_id: str) -> list[Job]:
    """The jobs that an id can mean, at any account."""
    if not isinstance(meaning, ids.UnifiedJobId):
        return by_upstream_id(session, type, meaning.raw)
    found = by_uuid(session, meaning.job)
    # LiteLLM's own ids, which imported rows have, name the upstream's.
    jobs = [found] if found else by_upstream_id(session, type, meaning.job)
    return [job for job in jobs if job.type == type and job.public_id == job_id]


def linked(session: Session, deployment_id: str, type: str, raws: Collection[str]) -> set[str]:
    """Which of these upstream ids have a row already."""
    query = select(Job.upstream_id).where(
        Job.deployment_id == deployment_id, Job.type == type, Job.upstream_id.in_(raws)
    )
    return {raw for raw in session.scalars(query) if raw}


def running_on(session: Session, file_uuid: str) -> Job | None:
    """An unfinished job that reads this file, None when there is none."""
    query = select(Job).where(
        or_(Job.input_uuid == file_uuid, Job.validation_uuid == file_uuid),
        Job.state.in_(UNFINISHED),
    )
    return session.scalars(query.limit(1)).first()


def page(
    session: Session,
    filters: JobFilters,
    *,
    after: tuple[dt.datetime, str] | None,
    limit: int,
) -> list[Job]:
    """Up to `limit` jobs behind the cursor, newest first."""
    query = select(Job).where(
        Job.owner == filters.owner, Job.type == filters.type, Job.state.not_in(HIDDEN)
    )
    if filters.kind:
        query = query.where(Job.kind == filters.kind)
    if filters.deployment_ids:
        query = query.where(Job.deployment_id.in_(filters.deployment_ids))
    if after:
        cursor = tuple_(literal(after[0], UtcDateTime()), literal(after[1]))
        query = query.where(tuple_(Job.created_at, Job.id) < cursor)
    return list(session.scalars(query.order_by(Job.created_at.desc(), Job.id.desc()).limit(limit)))


def owner_of(session: Session, job_uuid: str) -> str | None:
    """Whose job it is now; its row is locked until the end of the transaction."""
    return session.scalars(select(Job.owner).where(Job.id == job_uuid).with_for_update()).first()


def record_unless_final(session: Session, job_uuid: str, **values: Any) -> bool:
    """Write what is now known, unless somebody has already seen its end; whether it was written."""
    return _record(session, values, Job.id == job_uuid, Job.state != "final")


def record_if(session: Session, job_uuid: str, was: str, **values: Any) -> bool:
    """Write what is now known, if the job is in state `was` still; whether that was so."""
    return _record(session, values, Job.id == job_uuid, Job.state == was)


def link(session: Session, job_uuid: str, **values: Any) -> bool:
    """Write what was found for an intent, unless its own answer came; whether it was written."""
    is_open = Job.state.in_(HIDDEN), Job.upstream_id.is_(None)
    return _record(session, values, Job.id == job_uuid, *is_open)


def release(session: Session, job: Job) -> bool:
    """Take the job's upstream id from another intent of the same owner for the same input.

    It was found for that one, and is the answer to this one. False when anybody else's has it.
    """
    others = (
        Job.deployment_id == job.deployment_id,
        Job.type == job.type,
        Job.upstream_id == job.upstream_id,
        Job.id != job.id,
    )
    back: dict[str, Any] = {
        "upstream_id": None,
        "public_id": case((Job.kind == "unified", Job.public_id), else_=None),
        "snapshot": {},
        "status": "unanswered",
        "state": "intended",
        "next_look_at": now(),
        "lease_until": None,
    }
    own = Job.owner == job.owner, Job.upstream_input_id == job.upstream_input_id
    _record(session, back, *others, *own)
    return session.scalars(select(Job.id).where(*others)).first() is None


def due(session: Session, moment: dt.datetime, limit: int) -> list[str]:
    """The ids of unfinished jobs that somebody should look at now."""
    query = (
        select(Job.id)
        .where(
            Job.state.in_(UNFINISHED),
            Job.next_look_at <= moment,
            or_(Job.lease_until.is_(None), Job.lease_until <= moment),
        )
        .order_by(Job.next_look_at)
        .limit(limit)
    )
    return list(session.scalars(query))


def claim(session: Session, job_uuid: str, moment: dt.datetime, until: dt.datetime) -> bool:
    """Take the lease of a job that is due; False when somebody else has it."""
    claimed = update(Job).where(
        Job.id == job_uuid,
        Job.state.in_(UNFINISHED),
        Job.next_look_at <= moment,
        or_(Job.lease_until.is_(None), Job.lease_until <= moment),
    )
    return bool(session.scalars(claimed.values(lease_until=until).returning(Job.id)).all())


def renew(session: Session, job_uuid: str, held: dt.datetime, until: dt.datetime) -> bool:
    """Hold a lease for longer; False when it is no longer the one that was held."""
    return _record(session, {"lease_until": until}, Job.id == job_uuid, Job.lease_until == held)


def tuned_model(session: Session, owner: str, model_name: str) -> TunedModel | None:
    """The tuned model of this name, if it is this owner's."""
    query = select(TunedModel).where(TunedModel.owner == owner, TunedModel.model_name == model_name)
    return session.scalars(query).first()


def tuned_models(session: Session, owner: str) -> list[TunedModel]:
    """The tuned models of an owner, oldest first."""
    query = select(TunedModel).where(TunedModel.owner == owner).order_by(TunedModel.created_at)
    return list(session.scalars(query))


def _record(session: Session, values: dict[str, Any], *where: ColumnElement[bool]) -> bool:
    change = update(Job).where(*where).values(updated_at=now(), **values)
    return bool(session.scalars(change.returning(Job.id)).all())
