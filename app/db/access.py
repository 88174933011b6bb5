"""Questions about users and keys, and the writes that touch several rows at once."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
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

from app.db.tables import LIMITS, File, Job, Key, TunedModel, UploadSession, User, now


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


def _presented() -> Select[*tuple[Any, ...]]:
    keys, users = Key.__table__.c, User.__table__.c
    is_previous = and_(
        keys.previous_token == bindparam("token"),
        keys.previous_expires_at > bindparam("moment"),
    )
    return (
        select(
            keys.id,
            keys.token,
            keys.key_name,
            keys.owner,
            keys.user_id,
            keys.models,
            keys.blocked,
            keys.expires_at,
            keys.previous_expires_at,
            users.role,
            users.models.label("user_models"),
            users.blocked.label("user_blocked"),
            *(keys[name] for name in LIMITS),
            *(users[name].label(f"user_{name}") for name in LIMITS),
        )
        .select_from(Key.__table__.outerjoin(User.__table__, users.user_id == keys.user_id))
        .where(or_(keys.token == bindparam("token"), is_previous))
    )


# Every request asks this: built once, and of tables, it takes a fifth of the time.
_PRESENTED = _presented()


def presented(
    connection: Connection | Session, token: str, moment: dt.datetime
) -> Row[*tuple[Any, ...]] | None:
    """The key that has this hash, or had it and is in its grace period, with its user's columns.

    One statement over two indexes. The user's columns are None for a key without user.
    """
    return connection.execute(_PRESENTED, {"token": token, "moment": moment}).first()


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
