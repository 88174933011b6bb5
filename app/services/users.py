"""Users: make, change, delete, show."""

import secrets
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy.exc import IntegrityError

from app.db import access as db
from app.db.engine import Database
from app.db.tables import User, now
from app.errors import Conflict, InvalidRequest, NotFound, NotPermitted
from app.services import audit
from app.services.callers import (
    MASTER_USER_ID,
    Caller,
    Role,
    assign,
    differing,
    only_admin,
    owner_of,
    refuse_reserved,
)
from app.services.keys import KeyFields, KeyObject, blank_user, key_object, key_row, new_secret
from app.services.limits import UNLIMITED, LimitFields, Limits, LimitValues

KEYS_IN_USER_INFO = 100

FilesPolicy = Literal["keep", "transfer", "delete"]


class UserFields(LimitFields, total=False):
    """What can be said of a user. A field that is left out is not changed."""

    email: str | None
    alias: str | None
    role: str
    models: list[str]
    metadata: dict[str, Any]
    blocked: bool


class UserObject(LimitValues):
    """A user as clients see one. Timestamps are ISO 8601."""

    user_id: str
    user_email: str | None
    user_alias: str | None
    user_role: str
    models: list[str]
    metadata: dict[str, Any]
    blocked: bool
    created_at: str | None
    updated_at: str | None


@dataclass(frozen=True)
class DeletedUsers:
    """What became of a call of `delete_users`."""

    user_ids: tuple[str, ...]
    keys: int
    file_ids: tuple[str, ...]


class Users:
    """Those who own keys and files.

    `on_files_deleted` is called after the commit with the ids of the files that went with their
    user. All methods raise DatabaseUnavailable.
    """

    def __init__(
        self, database: Database, on_files_deleted: Callable[[list[str]], None] | None = None
    ) -> None:
        self._database = database
        self._on_files_deleted = on_files_deleted

    def new_user(
        self,
        caller: Caller,
        user_id: str | None,
        fields: UserFields,
        key: KeyFields | None,
    ) -> tuple[UserObject, KeyObject | None]:
        """The new user, and his first key with its secret unless `key` is None.

        Raises Conflict when the id or the e-mail exists in any letter case; there is no key then.
        """
        only_admin(caller)
        user_id = user_id or str(uuid.uuid4())
        refuse_reserved(user_id)
        user = _user_row(user_id, fields)
        secret = new_secret()
        row = None if key is None else key_row(caller, secret, {**key, "user_id": user_id})
        try:
            with self._database.write() as session:
                session.add(user)
                session.flush()
                audit.record(session, caller, "user.new", user_id, fields=fields)
                if key is not None and row is not None:
                    session.add(row)
                    audit.record(session, caller, "key.generate", row.token, fields=key)
        except IntegrityError as error:
            raise self._user_conflict(user) from error
        return _user_object(user), None if row is None else key_object(row, secret)

    def update_user(self, caller: Caller, user_id: str, changes: UserFields) -> UserObject:
        """The user as changed. Raises NotFound, Conflict for an e-mail that exists."""
        only_admin(caller)
        user = None
        try:
            with self._database.write() as session:
                user = _found_user(db.user(session, user_id, for_update=True), user_id)
                changed = differing(user, changes)
                _change_user(user, changes)
                audit.record(session, caller, "user.update", user_id, fields=changed)
        except IntegrityError as error:
            email = changes.get("email")
            raise Conflict(f"the e-mail {email!r} is another user's", param="user_email") from error
        return _user_object(user)

    def delete_users(
        self,
        caller: Caller,
        user_ids: Sequence[str],
        files: FilesPolicy = "keep",
        transfer_to: str | None = None,
    ) -> DeletedUsers:
        """Delete users and their keys, all of them or none, in one transaction.

        Their files stay without an owner (`keep`), become another user's (`transfer`), or go too
        (`delete`). Raises NotFound naming the user, InvalidRequest for a bad `transfer_to`.
        """
        only_admin(caller)
        doomed = tuple(dict.fromkeys(user_ids))
        if (files == "transfer") != (transfer_to is not None) or transfer_to in doomed:
            raise InvalidRequest(
                "transfer_to names the user who gets the files when files is 'transfer'; "
                "he is not one of those who are deleted",
                param="transfer_to",
            )
        keys = 0
        file_ids: list[str] = []
        with self._database.write() as session:
            if transfer_to is not None and db.user(session, transfer_to, for_update=True) is None:
                raise NotFound(f"there is no user {transfer_to!r}", param="transfer_to")
            # In one order, so that two such calls cannot wait for one another.
            for user_id in sorted(doomed):
                _found_user(db.user(session, user_id, for_update=True), user_id)
                owner = owner_of(user_id)
                if files == "delete":
                    file_ids += db.give_up_files(session, owner)
                # A later user of the same id inherits nothing: no row keeps the old owner's name.
                heir = owner_of(transfer_to) if transfer_to else _nobody(user_id)
                db.give_files(session, owner, heir)
                keys += db.delete_user(session, user_id)
                gone = ["keys"] if files == "keep" else ["keys", "files"]
                audit.record(session, caller, "user.delete", user_id, fields=gone)
        if file_ids and self._on_files_deleted is not None:
            self._on_files_deleted(file_ids)
        return DeletedUsers(doomed, keys, tuple(file_ids))

    def user_info(
        self, caller: Caller, user_id: str | None = None
    ) -> tuple[UserObject, list[KeyObject]]:
        """A user, the caller himself without `user_id`, and the newest keys, 100 at most.

        Raises NotPermitted for somebody else unless the caller sees everything, NotFound.
        """
        wanted = user_id if user_id is not None else caller.user_id
        if wanted is None:
            raise NotFound("this key belongs to no user", param="user_id")
        if wanted != caller.user_id and not caller.sees_everything:
            raise NotPermitted(
                f"User {caller.display_name} does not have access to the user {wanted}",
                param="user_id",
            )
        if wanted == MASTER_USER_ID:
            return _master_object(), []
        with self._database.read() as session:
            user = _found_user(db.user(session, wanted), wanted)
            keys = db.newest_keys(session, db.KeyFilter(user_id=wanted), limit=KEYS_IN_USER_INFO)
        return _user_object(user), [key_object(key) for key in keys]

    def list_users(
        self,
        caller: Caller,
        *,
        page: int = 1,
        size: int = 25,
        user_id: str | None = None,
        email: str | None = None,
        role: str | None = None,
    ) -> tuple[list[UserObject], int]:
        """One page of users, newest first, and the number of all; only himself for most callers."""
        nobody = False
        if not caller.sees_everything:
            nobody = caller.user_id is None or user_id not in (None, caller.user_id)
            user_id = caller.user_id
        among = db.UserFilter(user_id, _folded(email), role, nobody)
        with self._database.read() as session:
            rows, total = db.page_of_users(session, among, offset=(page - 1) * size, limit=size)
        return [_user_object(row) for row in rows], total

    def _user_conflict(self, user: User) -> Conflict:
        with self._database.read() as session:
            others = db.users_like(session, user.id_folded, user.email_folded)
        if user.email_folded in {other.email_folded for other in others if other.email_folded}:
            return Conflict(f"the e-mail {user.email!r} is another user's", param="user_email")
        return Conflict(f"the user {user.user_id!r} exists already", param="user_id")


def _found_user(user: User | None, user_id: str) -> User:
    if user is None:
        raise NotFound(f"there is no user {user_id!r}", param="user_id")
    return user


def _user_row(user_id: str, fields: UserFields) -> User:
    user = blank_user(user_id)
    _change_user(user, fields)
    return user


def _change_user(user: User, changes: UserFields) -> None:
    assign(user, changes)
    if "email" in changes:
        user.email_folded = _folded(changes["email"])
    user.updated_at = now()


def _master_object() -> UserObject:
    return {
        "user_id": MASTER_USER_ID,
        "user_email": None,
        "user_alias": None,
        "user_role": Role.PROXY_ADMIN.value,
        "models": [],
        "metadata": {},
        "blocked": False,
        **UNLIMITED.as_fields(),
        "created_at": None,
        "updated_at": None,
    }


def _user_object(user: User) -> UserObject:
    return {
        "user_id": user.user_id,
        "user_email": user.email,
        "user_alias": user.alias,
        "user_role": user.role,
        "models": user.models,
        "metadata": user.metadata_,
        "blocked": user.blocked,
        **Limits.of(user).as_fields(),
        "created_at": user.created_at.isoformat(),
        "updated_at": user.updated_at.isoformat(),
    }


def _nobody(user_id: str) -> str:
    return f"deleted-user:{user_id}:{secrets.token_hex(8)}"


def _folded(email: str | None) -> str | None:
    return None if email is None else email.casefold()
