"""Questions about files and their copies, and writes; one function each, session first.

A transaction that writes both writes the file first: two that did it in different orders would
wait for one another, and PostgreSQL would end one of them.
"""

import datetime as dt
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar, cast

from sqlalchemy import (
    Table,
    and_,
    bindparam,
    delete,
    inspect,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy import insert as inserting
from sqlalchemy.orm import Session

from app.db.change import Changing
from app.db.question import Asking, Question, Row
from app.db.tables import Copy, File, UtcDateTime, now

T = TypeVar("T", File, Copy)

VISIBLE = ("ready",)
GONE = ("deleted",)
_IDS_AT_ONCE = 500


@dataclass(frozen=True)
class Filters:
    """What a list is narrowed to; None and empty mean no narrowing."""

    owner: str
    kind: str | None = None
    purpose: str | None = None
    deployment_ids: tuple[str, ...] = ()


def insert(session: Session, file: File, copies: Sequence[Copy]) -> None:
    """Add a file and its copies."""
    session.add(file)
    session.flush()
    session.add_all(copies)


_FILES, _COPIES = cast(Table, File.__table__), cast(Table, Copy.__table__)
_PLAN_FILE, _PLAN_COPY = Question(inserting(_FILES)), Question(inserting(_COPIES))
_ENDS = ("public_id", "state", "status", "status_details", "copies_expire_at", "is_kept")
_FINISH = Question(
    update(_FILES)
    .where(_FILES.c.id == bindparam("its_id"), _FILES.c.state == bindparam("was"))
    .values({name: bindparam(name) for name in (*_ENDS, "updated_at")})
)


def draft(table: type[T], **values: Any) -> T:
    """An object of no session, with a value for each of its columns."""
    # As loading does it: the constructor would tell of each value that it is new, which takes
    # ten times as long.
    made: T = inspect(table).class_manager.new_instance()
    made.__dict__.update(values)
    return made


def know(of: T, **values: Any) -> None:
    """Set what is known of an object of no session; nothing is written."""
    of.__dict__.update(values)


def plan(changing: Changing, file: File, copies: Sequence[Copy]) -> None:
    """Add a file that is about to be uploaded, and its copies, all of which are drafts."""
    changing.do(_PLAN_FILE, **values_of(file, _FILE_NAMES))
    for copy in copies:
        changing.do(_PLAN_COPY, **values_of(copy, _COPY_NAMES))


def values_of(of: File | Copy, names: Sequence[str]) -> dict[str, Any]:
    """Some of what is known of an object of no session."""
    found = vars(of)
    return {name: found[name] for name in names}


def finish(changing: Changing, file: File) -> bool:
    """Write what became of a file that is being uploaded; False when it no longer is."""
    ends = values_of(file, _ENDS)
    return changing.do(_FINISH, its_id=file.id, was="uploading", updated_at=now(), **ends) == 1


def by_uuid(session: Session, file_uuid: str) -> File | None:
    """The file with this row id, in whatever state."""
    return session.get(File, file_uuid)


_WIDTH = len(File.__table__.c)

HELD = (*File.__table__.c, *Copy.__table__.c)
"""What `held` makes a file and its copies of: one row for each copy."""

_ONE = Question(
    select(*HELD)
    .select_from(File.__table__.outerjoin(Copy.__table__))
    .where(File.__table__.c.id == bindparam("id"))
    .order_by(Copy.__table__.c.created_at, Copy.__table__.c.id)
)


WithCopies = tuple[File, list[Copy]]
"""A file and its copies, as objects of no session: what is set on them is written nowhere."""


def with_copies(asking: Asking, file_uuid: str) -> WithCopies | None:
    """The file with this row id, in whatever state, and its copies as they were planned."""
    return held(asking.all(_ONE, id=file_uuid))


def held(found: Sequence[Row]) -> WithCopies | None:
    """The file and its copies from rows of HELD, None for none."""
    if not found or found[0][0] is None:
        return None
    file = _object(File, _FILE_NAMES, found[0][:_WIDTH])
    copies = [_object(Copy, _COPY_NAMES, row[_WIDTH:]) for row in found]
    return file, [copy for copy in copies if copy.id is not None]


_FILE_NAMES, _COPY_NAMES = (
    tuple(column.name for column in table.__table__.c) for table in (File, Copy)
)


def _object(table: type[T], names: Sequence[str], values: Row) -> T:
    return draft(table, **dict(zip(names, values, strict=True)))


def alike(
    session: Session, *, owner: str, key_id: str | None, sha256: str, since: dt.datetime
) -> list[File]:
    """The files of this content that a key has uploaded since then, newest first.

    Those that are being stored are among them, unless their process is dead.
    """
    abandoned = select(Copy.id).where(
        Copy.file_id == File.id, Copy.state == "intended", Copy.lease_until <= now()
    )
    query = select(File).where(
        File.owner == owner,
        File.created_at >= since,
        File.sha256 == sha256,
        File.key_id.is_(None) if key_id is None else File.key_id == key_id,
        or_(File.state == "ready", and_(File.state == "uploading", ~abandoned.exists())),
    )
    return list(session.scalars(query.order_by(File.created_at.desc(), File.id.desc())))


def by_deployment_file_id(
    session: Session, raw: str, deployment_ids: Collection[str] | None = None
) -> list[File]:
    """The files with a copy that an upstream calls `raw`, at these deployments or at any."""
    # No join with DISTINCT: PostgreSQL cannot compare the JSON column.
    # What a copy was called before its renewal still names it.
    held = select(Copy.file_id).where(
        or_(Copy.deployment_file_id == raw, Copy.first_file_id == raw)
    )
    if deployment_ids is not None:
        held = held.where(Copy.deployment_id.in_(deployment_ids))
    query = select(File).where(File.id.in_(held)).order_by(File.created_at, File.id)
    return list(session.scalars(query))


def copies_of(session: Session, file_ids: Collection[str]) -> list[Copy]:
    """All copies of these files, in the order in which they were planned."""
    return list(
        session.scalars(
            select(Copy).where(Copy.file_id.in_(file_ids)).order_by(Copy.created_at, Copy.id)
        )
    )


_PLACE = Question(
    select(*(File.__table__.c[name] for name in ("owner", "public_id", "created_at"))).where(
        File.__table__.c.id == bindparam("id")
    )
)


def place(asking: Asking, file_uuid: str) -> tuple[str, str | None, dt.datetime] | None:
    """Owner, public id and creation of the file with this row id, in whatever state."""
    found = asking.all(_PLACE, id=file_uuid)
    return (found[0][0], found[0][1], found[0][2]) if found else None


class Listed(NamedTuple):
    """What a list shows of a file: columns of its row."""

    id: str
    public_id: str | None
    bytes: int
    created_at: dt.datetime
    expires_at: dt.datetime | None
    copies_expire_at: dt.datetime | None
    filename: str
    purpose: str
    status: str
    status_details: str | None


def page(
    asking: Asking,
    filters: Filters,
    *,
    after: tuple[dt.datetime, str] | None,
    descending: bool,
    limit: int,
) -> list[Listed]:
    """Up to `limit` visible files behind the cursor, ordered by creation and then by id."""
    values: dict[str, Any] = {"owner": filters.owner, "moment": now(), "limit": limit}
    if filters.kind:
        values["kind"] = filters.kind
    if filters.purpose:
        values["purpose"] = filters.purpose
    if after:
        values["after"], values["after_id"] = after
    values |= {f"deployment_{n}": name for n, name in enumerate(filters.deployment_ids)}
    found = asking.all(_page(frozenset(values), descending), **values)
    return [Listed._make(row) for row in found]


@lru_cache(maxsize=256)
def _page(given: frozenset[str], descending: bool) -> Question:
    """The question that has these parameters."""
    query = select(*(File.__table__.c[name] for name in Listed._fields)).where(
        File.owner == bindparam("owner"),
        or_(*(File.state == state for state in VISIBLE)),
        or_(File.expires_at.is_(None), File.expires_at > bindparam("moment")),
    )
    for name in given & {"kind", "purpose"}:
        query = query.where(File.__table__.c[name] == bindparam(name))
    deployments = sorted(name for name in given if name.startswith("deployment_"))
    if deployments:
        among = or_(*(Copy.deployment_id == bindparam(name) for name in deployments))
        query = query.where(select(Copy.file_id).where(among, Copy.file_id == File.id).exists())
    if "after" in given:
        # One row comparison, which both databases answer from the (owner, created_at, id) index.
        key = tuple_(File.created_at, File.id)
        cursor = tuple_(bindparam("after", type_=UtcDateTime()), bindparam("after_id"))
        query = query.where(key < cursor if descending else key > cursor)
    if descending:
        query = query.order_by(File.created_at.desc(), File.id.desc())
    else:
        query = query.order_by(File.created_at, File.id)
    return Question(query.limit(bindparam("limit")))


def expired(session: Session, moment: dt.datetime, limit: int) -> list[File]:
    """Some files that their owners have, past the time that these set."""
    query = select(File).where(File.expires_at <= moment, File.state == "ready")
    return list(session.scalars(query.order_by(File.expires_at).limit(limit)))


def kept(session: Session, file_uuids: Collection[str]) -> set[str]:
    """Those of these files whose content is to stay on the gateway's disk."""
    found: set[str] = set()
    every = sorted(file_uuids)
    for start in range(0, len(every), _IDS_AT_ONCE):
        some = every[start : start + _IDS_AT_ONCE]
        query = select(File.id).where(File.id.in_(some), File.is_kept, File.state.not_in(GONE))
        found.update(session.scalars(query))
    return found


def record_copy(session: Session, copy_id: str, *, was: str | None = None, **values: Any) -> bool:
    """Write what is now known of a copy, if it is in state `was` still; whether that was so."""
    return _record(session, Copy, copy_id, was, values)


def record_file(session: Session, file_uuid: str, *, was: str | None = None, **values: Any) -> bool:
    """Write what is now known of a file, if it is in state `was` still; whether that was so."""
    return _record(session, File, file_uuid, was, values)


def drop_copies(session: Session, copy_ids: Collection[str]) -> None:
    """Remove the rows of copies that are gone upstream or never were there."""
    session.execute(delete(Copy).where(Copy.id.in_(copy_ids)))


def drop_file(session: Session, file_uuid: str) -> None:
    """Remove a file that nobody has seen."""
    session.execute(delete(File).where(File.id == file_uuid))


def drop_tombstones(session: Session, before: dt.datetime, limit: int) -> None:
    """Remove some files that were deleted before then and can have nothing left upstream."""
    unsure = select(Copy.id).where(Copy.file_id == File.id, Copy.state == "intended")
    old = select(File.id).where(File.state.in_(GONE), File.updated_at < before, ~unsure.exists())
    # What another process sweeps just now is left to it.
    free = old.limit(limit).with_for_update(skip_locked=True)
    session.execute(delete(File).where(File.id.in_(free)))


def _record(
    session: Session, table: type[File | Copy], id: str, was: str | None, values: dict[str, Any]
) -> bool:
    change = update(table).where(table.id == id).values(updated_at=now(), **values)
    if was is not None:
        change = change.where(table.state == was)
    return session.scalars(change.returning(table.id)).one_or_none() is not None
