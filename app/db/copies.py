"""Copies as work to be done: which are due, and who is at it; one function each, session first."""

import datetime as dt
from collections.abc import Collection, Sequence
from typing import Any, cast

from sqlalchemy import (
    ColumnElement,
    Select,
    Table,
    and_,
    bindparam,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.orm import Session

from app.db.change import Changing
from app.db.files import values_of
from app.db.question import Question
from app.db.tables import Copy, File, now

_RENEWED = ("ready", "missing", "expired")
"""States that a copy can be in while it is stored again."""


def due(session: Session, moment: dt.datetime, limit: int) -> list[str]:
    """The ids of copies about which something is to be done now."""
    query = (
        select(Copy.id)
        .where(Copy.next_look_at <= moment, _is_free(moment))
        .order_by(Copy.next_look_at)
        .limit(limit)
    )
    return list(session.scalars(query))


def claim(session: Session, copy_id: str, moment: dt.datetime, until: dt.datetime) -> bool:
    """Take the lease of a copy that is due; False when somebody else has it."""
    return _change(
        session,
        {"lease_until": until},
        Copy.id == copy_id,
        Copy.next_look_at <= moment,
        _is_free(moment),
    )


def claim_renewal(
    session: Session, copy: Copy, moment: dt.datetime, until: dt.datetime, key: str
) -> bool:
    """Take the lease of a copy to store it anew under a key; False when it changed meanwhile."""
    return _change(
        session,
        {
            "lease_until": until,
            "next_look_at": until,
            "upload_key": key,
            "attempts": Copy.attempts + 1,
        },
        Copy.id == copy.id,
        Copy.state == copy.state,
        _same(copy.deployment_file_id),
        _is_free(moment),
    )


def renew(session: Session, copy_ids: Collection[str], until: dt.datetime) -> None:
    """Hold these leases for longer; those that were let go of meanwhile stay free.

    One that is being written at this moment is left to whoever does: two transactions that wait
    for one another's rows would end one of them.
    """
    held = select(Copy.id).where(Copy.id.in_(copy_ids), Copy.lease_until.is_not(None))
    _change(
        session,
        {"lease_until": until, "next_look_at": until},
        Copy.id.in_(held.with_for_update(skip_locked=True)),
    )


def settle(session: Session, copy_id: str, **values: Any) -> bool:
    """Write what became of a copy and let go of it; whether it still has a row."""
    return _change(session, {"lease_until": None, **values}, Copy.id == copy_id)


_COPIES = cast(Table, Copy.__table__)
_ENDS = ("deployment_file_id", "state", "last_error", "expires_at", "next_look_at")
_FINISH = Question(
    update(_COPIES)
    .where(_COPIES.c.id == bindparam("its_id"))
    .values({name: bindparam(name) for name in (*_ENDS, "lease_until", "updated_at")})
)


def finish(changing: Changing, copies: Sequence[Copy]) -> None:
    """Write what became of copies whose upload has ended, and let go of them."""
    moment = now()
    for copy in copies:
        ends = values_of(copy, _ENDS)
        changing.do(_FINISH, its_id=copy.id, lease_until=None, updated_at=moment, **ends)


def record_renewal(session: Session, copy_id: str, key: str, **values: Any) -> bool:
    """Write where a copy is now, if `key` is the latest attempt and its file is still wanted."""
    wanted = select(File.id).where(File.id == Copy.file_id, File.state == "ready")
    return _change(
        session,
        {"lease_until": None, **values},
        Copy.id == copy_id,
        Copy.upload_key == key,
        wanted.exists(),
    )


def note_missing(session: Session, copy: Copy, moment: dt.datetime, **values: Any) -> bool:
    """Write that a copy is gone, unless it is another one by now, or somebody is at it."""
    return _change(
        session,
        {"state": "missing", **values},
        Copy.id == copy.id,
        Copy.state == copy.state,
        _same(copy.deployment_file_id),
        _is_free(moment),
    )


def by_id(session: Session, copy_id: str) -> Copy | None:
    """The copy with this row id."""
    return session.get(Copy, copy_id, populate_existing=True)


def link(session: Session, copy: Copy, raw: str) -> bool:
    """Note that a copy is what an upstream calls `raw`; False when that is another one's.

    Two that look for alike copies wait for one another here, so none takes the other's.
    """
    open_ones = select(Copy.id).where(
        Copy.deployment_id == copy.deployment_id, Copy.deployment_file_id.is_(None)
    )
    session.execute(open_ones.order_by(Copy.id).with_for_update())
    if linked(session, copy.deployment_id, [raw]):
        return False
    return _change(session, {"deployment_file_id": raw}, Copy.id == copy.id)


def unlink(session: Session, copy_id: str, raw: str) -> None:
    """Take a link back that turned out to lead nowhere."""
    _change(
        session,
        {"deployment_file_id": None},
        Copy.id == copy_id,
        Copy.deployment_file_id == raw,
    )


def has_live_twin(session: Session, copy: Copy, file: File, moment: dt.datetime) -> bool:
    """Whether a living process stores another file of this name, size and purpose there now.

    It may be a new one, or one that is stored again.
    """
    is_new = and_(Copy.state == "intended", File.state == "uploading")
    is_renewed = and_(Copy.state.in_(_RENEWED), File.state == "ready")
    twins = _twins(copy, file).where(Copy.lease_until > moment, or_(is_new, is_renewed))
    return session.scalar(twins.limit(1)) is not None


def has_lost_twin(session: Session, copy: Copy, file: File) -> bool:
    """Whether an upload of another content under this name, size and purpose is lost too."""
    lost = _twins(copy, file).where(
        Copy.state.in_(("intended", "deleting")),
        Copy.deployment_file_id.is_(None),
        Copy.next_look_at.is_not(None),
        File.sha256.is_distinct_from(file.sha256),
    )
    return session.scalar(lost.limit(1)) is not None


def _twins(copy: Copy, file: File) -> Select[str]:
    return (
        select(Copy.id)
        .join(File, File.id == Copy.file_id)
        .where(
            Copy.deployment_id == copy.deployment_id,
            Copy.id != copy.id,
            File.filename == file.filename,
            func.coalesce(Copy.sent_bytes, File.bytes) == sent_bytes(copy, file),
            File.purpose == file.purpose,
        )
    )


def linked(session: Session, deployment_id: str, raw_ids: Collection[str]) -> set[str]:
    """Those of an upstream's file ids that some copy at this deployment has."""
    query = select(Copy.deployment_file_id).where(
        Copy.deployment_id == deployment_id, Copy.deployment_file_id.in_(raw_ids)
    )
    return {raw for raw in session.scalars(query) if raw}


def _is_free(moment: dt.datetime) -> ColumnElement[bool]:
    return or_(Copy.lease_until.is_(None), Copy.lease_until <= moment)


def sent_bytes(copy: Copy, file: File) -> int:
    """How many bytes a copy's upstream was sent, for all that is known."""
    return file.bytes if copy.sent_bytes is None else copy.sent_bytes


def _same(raw: str | None) -> ColumnElement[bool]:
    return Copy.deployment_file_id.is_(None) if raw is None else Copy.deployment_file_id == raw


def _change(session: Session, values: dict[str, Any], *where: ColumnElement[bool]) -> bool:
    change = update(Copy).where(*where).values(updated_at=now(), **values)
    return bool(session.scalars(change.returning(Copy.id)).all())
