"""Questions about users and keys, and the writes that touch several rows at once."""

import datetime as dt
from collections import namedtuple
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    and_,
    bindparam,
    case,
    delete,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.orm import Session

from app.db import files
from app.db.question import Asking, Question
from app.db.tables import LIMITS, Copy, File, Job, Key, TunedModel, UploadSession, User, now


@dataclass(frozen=True)
class UserFilter:
    """Which users a list is about. None does not filter; `nobody` matches no row."""

    user_id: str | None = None
    email_folded: str | None = None
    role: str | None = None
    nobody: bool = False

    def conditions(self) -> list[ColumnElement[bool]]:
        found: list[ColumnElement[bool]] = []
        if self.user_id is not None:
            found.append(User.user_id == self.user_id)
        if self.email_folded is not None:
            found.append(User.email_folded == self.email_folded)
        if self.role is not None:
            found.append(User.role == self.role)
        return found


@dataclass(frozen=True)
class KeyFilter:
    """Which keys a list or a look-up is about. None does not filter."""

    user_id: str | None = None
    alias: str | None = None
    key_id: str | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        found: list[ColumnElement[bool]] = []
        if self.user_id is not None:
            found.append(Key.user_id == self.user_id)
        if self.alias is not None:
            found.append(Key.alias == self.alias)
        if self.key_id is not None:
            found.append(Key.id == self.key_id)
        return found


_KEY = Key.__table__.c
_USER = User.__table__.c
_PRESENTED_COLUMNS = (
    _KEY.id,
    _KEY.token,
    _KEY.key_name,
    _KEY.owner,
    _KEY.user_id,
    _KEY.models,
    _KEY.blocked,
    _KEY.expires_at,
    _KEY.previous_expires_at,
    _USER.role,
    _USER.models.label("user_models"),
    _USER.blocked.label("user_blocked"),
    *(_KEY[name] for name in LIMITS),
    *(_USER[name].label(f"user_{name}") for name in LIMITS),
)
_PRESENTED_WIDTH = len(_PRESENTED_COLUMNS)
_Presented = namedtuple("_Presented", [column.name for column in _PRESENTED_COLUMNS])  # type: ignore[misc]  # the names are the columns'


def _presented(*more: Any) -> Select[*tuple[Any, ...]]:
    is_previous = and_(
        _KEY.previous_token == bindparam("token"),
        _KEY.previous_expires_at > bindparam("moment"),
    )
    return select(*_PRESENTED_COLUMNS, *more).where(
        or_(_KEY.token == bindparam("token"), is_previous)
    )


_WITH_USER = Key.__table__.outerjoin(User.__table__, _USER.user_id == _KEY.user_id)
_PRESENTED = Question(_presented().select_from(_WITH_USER))
_PRESENTED_BESIDE = Question(
    _presented(*files.HELD)
    .select_from(
        _WITH_USER.outerjoin(File.__table__, File.__table__.c.id == bindparam("file")).outerjoin(
            Copy.__table__, Copy.__table__.c.file_id == File.__table__.c.id
        )
    )
    .order_by(Copy.__table__.c.created_at, Copy.__table__.c.id)
)


def presented(asking: Asking, token: str, moment: dt.datetime) -> Any | None:
    """The key that has this hash, or had it and is in its grace period, with its user's columns.

    One statement over two indexes. The user's columns are None for a key without user.
    """
    found = asking.all(_PRESENTED, token=token, moment=moment)
    return _Presented._make(found[0]) if found else None


def presented_beside(
    asking: Asking, token: str, moment: dt.datetime, file_uuid: str
) -> tuple[Any | None, files.WithCopies | None]:
    """The same, and what `files.with_copies` says of a file, in the same statement."""
    found = asking.all(_PRESENTED_BESIDE, token=token, moment=moment, file=file_uuid)
    if not found:
        return None, None
    row = _Presented._make(found[0][:_PRESENTED_WIDTH])
    # Column for column: another key that had this hash once would come behind it.
    own = [each[_PRESENTED_WIDTH:] for each in found if each[0] == found[0][0]]
    return row, files.held(own)


def user(session: Session, user_id: str, *, for_update: bool = False) -> User | None:
    """The user with exactly this id; locked until the end of the transaction when asked."""
    return session.get(User, user_id, with_for_update=for_update)


def users_like(session: Session, id_folded: str, email_folded: str | None) -> Sequence[User]:
    """The users who have this id or this e-mail, in whatever letter case."""
    same: ColumnElement[bool] = User.id_folded == id_folded
    if email_folded is not None:
        same = or_(same, User.email_folded == email_folded)
    return session.scalars(select(User).where(same)).all()


def keys_called(
    session: Session,
    tokens: Sequence[str],
    alias: str | None,
    among: KeyFilter,
    *,
    for_update: bool = False,
) -> Sequence[Key]:
    """Up to two keys with one of these hashes, which come first, or with this alias.

    They are locked until the end of the transaction when asked.
    """
    by_token = Key.token.in_(tokens)
    called = by_token if alias is None else or_(by_token, Key.alias == alias)
    statement = select(Key).where(called, *among.conditions())
    statement = statement.order_by(case((by_token, 0), else_=1), Key.id).limit(2)
    if for_update:
        statement = statement.with_for_update()
    return session.scalars(statement).all()


def page_of_users(
    session: Session, among: UserFilter, *, offset: int, limit: int
) -> tuple[Sequence[User], int]:
    """One page, newest first, and how many there are on all pages."""
    if among.nobody:
        return (), 0
    conditions = among.conditions()
    total = _count(session, select(func.count()).select_from(User).where(*conditions))
    newest = (User.created_at.desc(), User.user_id.desc())
    # Skipped rows are skipped in the index alone; only the page's own rows are read.
    page = select(User.user_id).where(*conditions).order_by(*newest).offset(offset).limit(limit)
    ids = page.subquery()
    rows = session.scalars(select(User).join(ids, ids.c.user_id == User.user_id).order_by(*newest))
    return rows.all(), total


def page_of_keys(
    session: Session, among: KeyFilter, *, offset: int, limit: int
) -> tuple[Sequence[Key], int]:
    """One page, newest first, and how many there are on all pages."""
    conditions = among.conditions()
    total = _count(session, select(func.count()).select_from(Key).where(*conditions))
    return newest_keys(session, among, offset=offset, limit=limit), total


def newest_keys(
    session: Session, among: KeyFilter, *, offset: int = 0, limit: int
) -> Sequence[Key]:
    """At most `limit` keys, newest first."""
    newest = (Key.created_at.desc(), Key.id.desc())
    page = select(Key.id).where(*among.conditions()).order_by(*newest).offset(offset).limit(limit)
    ids = page.subquery()
    return session.scalars(select(Key).join(ids, ids.c.id == Key.id).order_by(*newest)).all()


def delete_user(session: Session, user_id: str) -> int:
    """Delete the user and every key of his; how many keys that were."""
    tokens = session.scalars(delete(Key).where(Key.user_id == user_id).returning(Key.token)).all()
    session.execute(delete(User).where(User.user_id == user_id))
    return len(tokens)


def delete_keys(session: Session, ids: Sequence[str]) -> None:
    """Delete these keys."""
    session.execute(delete(Key).where(Key.id.in_(ids)))


def give_files(session: Session, owner: str, new_owner: str) -> None:
    """Make everything that `owner` has `new_owner`'s: files and uploads, jobs and their models.

    A job goes with its files, whoever gets them: what it makes later belongs to its owner.
    """
    # Jobs first: who adopts a job's output holds its row, so no output can slip in between.
    for table in (Job, File, UploadSession):
        session.execute(update(table).where(table.owner == owner).values(owner=new_owner))
    twins = select(TunedModel.model_name).where(TunedModel.owner == new_owner)
    session.execute(
        delete(TunedModel).where(TunedModel.owner == owner, TunedModel.model_name.in_(twins))
    )
    session.execute(update(TunedModel).where(TunedModel.owner == owner).values(owner=new_owner))


def give_up_files(session: Session, owner: str) -> list[str]:
    """Set the owner's files to be deleted; the ids of those whose copies are to be removed.

    A failed upload is being taken back already, and what is deleted stays deleted.
    """
    statement = (
        update(File)
        .where(File.owner == owner, File.state.in_(("uploading", "ready")))
        .values(state="deleting", updated_at=now())
        .returning(File.id)
    )
    return list(session.scalars(statement).all())


def _count(session: Session, statement: Select[int]) -> int:
    return session.scalars(statement).one()
