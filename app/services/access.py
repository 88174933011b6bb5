"""Users and keys: issue, authenticate, change, and which models a key may use."""

import datetime as dt
import fnmatch
import hashlib
import hmac
import re
import secrets
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, NotRequired, TypedDict

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.db import access as db
from app.db.engine import Database
from app.db.tables import Key, User, now
from app.errors import Conflict, InvalidRequest, NotAuthenticated, NotFound, NotPermitted

MASTER_USER_ID = "default_user_id"
MASTER_OWNER = "master"
KEYS_IN_USER_INFO = 100

_MAX_SECRET_LENGTH = 512
_TOKEN = re.compile(r"[0-9a-f]{64}")
_ALL_MODELS = frozenset({"*", "all-proxy-models"})

FilesPolicy = Literal["keep", "transfer", "delete"]


class Role(StrEnum):
    """What somebody may do; contract, section 2."""

    PROXY_ADMIN = "proxy_admin"
    PROXY_ADMIN_VIEWER = "proxy_admin_viewer"
    INTERNAL_USER = "internal_user"
    INTERNAL_USER_VIEWER = "internal_user_viewer"


@dataclass(frozen=True)
class Caller:
    """Who sends a request.

    `owner` is what his files are owned by. `key_hash` is the SHA-256 of the presented secret in
    hex. `key_id` is None for the master key, `user_id` for a key without user. `expires_at` is the
    moment from which the presented secret is refused.
    """

    owner: str
    user_id: str | None
    key_hash: str
    key_id: str | None
    role: Role
    key_models: tuple[str, ...] = ()
    user_models: tuple[str, ...] = ()
    expires_at: dt.datetime | None = None
    key_name: str = ""

    @property
    def is_admin(self) -> bool:
        return self.role is Role.PROXY_ADMIN

    @property
    def sees_everything(self) -> bool:
        return self.role in (Role.PROXY_ADMIN, Role.PROXY_ADMIN_VIEWER)

    @property
    def may_write(self) -> bool:
        return self.role in (Role.PROXY_ADMIN, Role.INTERNAL_USER)

    @property
    def display_name(self) -> str:
        """What error messages call him: the user's id, or `key sk-...abcd`."""
        return self.user_id if self.user_id is not None else f"key {self.key_name}"

    def may_use(self, model_name: str, qualified: Iterable[str] = ()) -> bool:
        """Whether the key and its user both allow the model.

        `qualified` is `<provider>/<upstream model>` of all deployments of that name: a list that
        does not name the model allows it when it covers every one of them.
        """
        if self.is_admin:
            return True
        others = tuple(qualified)
        return all(
            _allows(models, model_name, others) for models in (self.key_models, self.user_models)
        )


class UserFields(TypedDict, total=False):
    """What can be said of a user. A field that is left out is not changed."""

    email: str | None
    alias: str | None
    role: str
    models: list[str]
    metadata: dict[str, Any]
    blocked: bool


class KeyFields(TypedDict, total=False):
    """What can be said of a key. A field that is left out is inherited, or not changed."""

    user_id: str | None
    alias: str | None
    models: list[str]
    metadata: dict[str, Any]
    blocked: bool
    expires_at: dt.datetime | None


class UserObject(TypedDict):
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


class KeyObject(TypedDict):
    """A key as clients see one. `token` is the hash; `key`, the secret, stands there only once."""

    key: NotRequired[str]
    token: str
    key_name: str
    key_alias: str | None
    user_id: str | None
    models: list[str]
    metadata: dict[str, Any]
    blocked: bool
    expires: str | None
    created_at: str
    updated_at: str
    created_by: str


@dataclass(frozen=True)
class DeletedUsers:
    """What became of a call of `delete_users`."""

    user_ids: tuple[str, ...]
    keys: int
    file_ids: tuple[str, ...]


def operator() -> Caller:
    """The person at the machine's own command line: everything the master key may."""
    return _master("")


class Access:
    """Users and keys, and who it is that presents a secret.

    Nothing is remembered between calls, so that a key blocked by one process is refused by every
    other at its next request. `on_files_deleted` is called after the commit with the ids of the
    files that went with their user. All methods raise DatabaseUnavailable.
    """

    def __init__(
        self,
        database: Database,
        master_key: str | None,
        on_files_deleted: Callable[[list[str]], None] | None = None,
    ) -> None:
        self._database = database
        self._master_hash = _sha256(master_key) if master_key else None
        self._on_files_deleted = on_files_deleted

    def authenticate(self, secret: str) -> Caller:
        """Who presents this secret. Raises NotAuthenticated; one statement at most."""
        token = _sha256(secret)
        if self._master_hash and hmac.compare_digest(token, self._master_hash):
            return _master(token)
        if not secret.startswith("sk-") or len(secret) > _MAX_SECRET_LENGTH:
            raise NotAuthenticated("the API key is not valid")
        moment = now()
        with self._database.read() as session:
            row = db.presented(session, token, moment)
        if row is None:
            raise NotAuthenticated("the API key is not valid")
        # A secret in its grace period gives nothing, a new key for example, that outlives it.
        previous_end = None if row.token == token else row.previous_expires_at
        expires_at = _earlier(row.expires_at, previous_end)
        if row.blocked:
            raise NotAuthenticated("the API key is blocked")
        if row.user_blocked:
            raise NotAuthenticated("the user of the API key is blocked")
        if expires_at is not None and expires_at <= moment:
            raise NotAuthenticated("the API key has expired")
        return Caller(
            owner=row.owner,
            user_id=row.user_id,
            key_hash=token,
            key_id=row.id,
            role=Role(row.role) if row.role else Role.INTERNAL_USER,
            key_models=tuple(row.models),
            user_models=tuple(row.user_models or ()),
            expires_at=expires_at,
            key_name=row.key_name,
        )

    # Users

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
        _only_admin(caller)
        user_id = user_id or str(uuid.uuid4())
        _refuse_reserved(user_id)
        user = _user_row(user_id, fields)
        secret = _new_secret()
        row = None if key is None else _key_row(caller, secret, {**key, "user_id": user_id})
        try:
            with self._database.write() as session:
                session.add(user)
                session.flush()
                if row is not None:
                    session.add(row)
        except IntegrityError as error:
            raise self._user_conflict(user) from error
        return _user_object(user), None if row is None else _key_object(row, secret)

    def update_user(self, caller: Caller, user_id: str, changes: UserFields) -> UserObject:
        """The user as changed. Raises NotFound, Conflict for an e-mail that exists."""
        _only_admin(caller)
        user = None
        try:
            with self._database.write() as session:
                user = _found_user(db.user(session, user_id, for_update=True), user_id)
                _change_user(user, changes)
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
        _only_admin(caller)
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
                owner = _owner_of(user_id)
                if files == "delete":
                    file_ids += db.give_up_files(session, owner)
                # A later user of the same id inherits nothing: no row keeps the old owner's name.
                heir = _owner_of(transfer_to) if transfer_to else _nobody(user_id)
                db.give_files(session, owner, heir)
                keys += db.delete_user(session, user_id)
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
        return _user_object(user), [_key_object(key) for key in keys]

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

    # Keys

    def generate_key(self, caller: Caller, fields: KeyFields) -> KeyObject:
        """A new key with its secret, shown this once.

        An administrator makes keys for anybody (a user who is not there yet is made) and, without
        `user_id`, for nobody. Everybody else makes keys for himself that may no more and live no
        longer than the calling one. Raises NotPermitted, Conflict for an alias that exists.
        """
        _only_writer(caller)
        granted = fields if caller.is_admin else _within_own_rights(caller, fields)
        user_id = granted.get("user_id")
        secret = _new_secret()
        row = _key_row(caller, secret, granted)
        try:
            with self._database.write() as session:
                _ensure_user(session, user_id)
                session.add(row)
        except IntegrityError:
            # Perhaps somebody else has made the same new user at the same moment: he is there now.
            row = _key_row(caller, secret, granted)
            try:
                with self._database.write() as session:
                    _ensure_user(session, user_id)
                    session.add(row)
            except IntegrityError as error:
                raise self._key_conflict(user_id, granted.get("alias")) from error
        return _key_object(row, secret)

    def update_key(self, caller: Caller, reference: str, changes: KeyFields) -> KeyObject:
        """The key as changed. Only an administrator widens a key or gives it to somebody else.

        Raises NotFound, NotPermitted, InvalidRequest for an alias of several keys, Conflict.
        """
        _only_writer(caller)
        user_id, alias = None, changes.get("alias")
        try:
            with self._database.write() as session:
                key = _called(session, caller, reference, for_update=True)
                user_id = changes.get("user_id", key.user_id)
                if not caller.is_admin:
                    _refuse_widening(caller, key, changes)
                elif user_id != key.user_id:
                    _ensure_user(session, user_id)
                _change_key(key, changes)
        except IntegrityError as error:
            raise self._key_conflict(user_id, alias) from error
        return _key_object(key)

    def delete_keys(
        self, caller: Caller, references: Sequence[str], aliases: Sequence[str] = ()
    ) -> list[str]:
        """Delete keys, all or none, and answer with their hashes."""
        _only_writer(caller)
        with self._database.write() as session:
            keys = [_called(session, caller, name) for name in references]
            keys += [_called(session, caller, name, alias_only=True) for name in aliases]
            doomed = {key.id: key.token for key in keys}
            db.delete_keys(session, list(doomed))
        return list(doomed.values())

    def block_key(self, caller: Caller, reference: str, *, alias_only: bool = False) -> KeyObject:
        """Refuse the key from its next request on."""
        return self._set_blocked(caller, reference, True, alias_only)

    def unblock_key(self, caller: Caller, reference: str, *, alias_only: bool = False) -> KeyObject:
        """Accept the key again. For administrators, since one of them may have blocked it."""
        _only_admin(caller)
        return self._set_blocked(caller, reference, False, alias_only)

    def _set_blocked(
        self, caller: Caller, reference: str, blocked: bool, alias_only: bool
    ) -> KeyObject:
        _only_writer(caller)
        with self._database.write() as session:
            key = _called(session, caller, reference, alias_only=alias_only, for_update=True)
            key.blocked = blocked
            key.updated_at = now()
        return _key_object(key)

    def regenerate_key(
        self,
        caller: Caller,
        reference: str,
        grace_until: dt.datetime | None = None,
        *,
        alias_only: bool = False,
    ) -> KeyObject:
        """The key with a new secret; everything else about it stays.

        The old secret works until `grace_until`, or no longer. One that was still in its grace
        period dies at once. Raises NotPermitted also when the caller's own key may less than this
        one or ends before it, for it would gain rights.
        """
        _only_writer(caller)
        secret = _new_secret()
        with self._database.write() as session:
            key = _called(session, caller, reference, alias_only=alias_only, for_update=True)
            if not caller.is_admin:
                _refuse_gain(caller, key)
            key.previous_token = key.token if grace_until else None
            key.previous_expires_at = grace_until
            key.token = _sha256(secret)
            key.key_name = _key_name(secret)
            key.updated_at = now()
        return _key_object(key, secret)

    def key_info(
        self, caller: Caller, reference: str | None = None, *, alias_only: bool = False
    ) -> KeyObject:
        """A key, the calling one without `reference`. Raises NotFound, NotPermitted."""
        with self._database.read() as session:
            if reference is not None:
                return _key_object(_called(session, caller, reference, alias_only=alias_only))
            if caller.key_id is None:
                raise InvalidRequest("name a key: its secret, hash or alias", param="key")
            keys = db.newest_keys(session, db.KeyFilter(key_id=caller.key_id), limit=1)
        if not keys:
            raise NotFound("there is no such key", param="key")
        return _key_object(keys[0])

    def list_keys(
        self,
        caller: Caller,
        *,
        page: int = 1,
        size: int = 25,
        user_id: str | None = None,
        alias: str | None = None,
    ) -> tuple[list[KeyObject], int]:
        """One page of keys, newest first, and the number of all; only his own for most callers."""
        among = db.KeyFilter(user_id, alias)
        if not caller.sees_everything:
            if user_id not in (None, caller.user_id):
                raise NotPermitted(
                    f"User {caller.display_name} does not have access to the keys of {user_id}",
                    param="user_id",
                )
            among = db.KeyFilter(caller.user_id, alias, _only_key(caller))
        with self._database.read() as session:
            rows, total = db.page_of_keys(session, among, offset=(page - 1) * size, limit=size)
        return [_key_object(row) for row in rows], total

    def _user_conflict(self, user: User) -> Conflict:
        with self._database.read() as session:
            others = db.users_like(session, user.id_folded, user.email_folded)
        if user.email_folded in {other.email_folded for other in others if other.email_folded}:
            return Conflict(f"the e-mail {user.email!r} is another user's", param="user_email")
        return Conflict(f"the user {user.user_id!r} exists already", param="user_id")

    def _key_conflict(self, user_id: str | None, alias: str | None) -> Conflict:
        with self._database.read() as session:
            known = user_id is None or db.user(session, user_id) is not None
        if known and alias is not None:
            return Conflict(
                f"the alias {alias!r} is another key's of the same owner", param="key_alias"
            )
        return Conflict(
            f"the user {user_id!r} exists in another letter case, or was deleted just now",
            param="user_id",
        )


def _called(
    session: Session,
    caller: Caller,
    name: str,
    *,
    alias_only: bool = False,
    for_update: bool = False,
) -> Key:
    """The one key with this secret, hash or alias, if it is the caller's to handle."""
    tokens: list[str] = []
    if not alias_only:
        tokens = [_sha256(name), name] if _TOKEN.fullmatch(name) else [_sha256(name)]
    alias = None if name.startswith("sk-") else name
    among = db.KeyFilter()
    if not caller.sees_everything:
        among = db.KeyFilter(user_id=caller.user_id, key_id=_only_key(caller))
    found = db.keys_called(session, tokens, alias, among, for_update=for_update)
    if not found:
        if not caller.sees_everything and db.keys_called(session, tokens, alias, db.KeyFilter()):
            raise NotPermitted(f"User {caller.display_name} does not have access to this key")
        raise NotFound("there is no such key", param="key")
    if found[0].token not in tokens and len(found) > 1:
        raise InvalidRequest(
            "several keys have this alias; name the one you mean by its hash", param="key_alias"
        )
    return found[0]


def _only_key(caller: Caller) -> str | None:
    """The id that narrows a query to the calling key when there is no user to narrow it to."""
    return caller.key_id if caller.user_id is None else None


def _only_admin(caller: Caller) -> None:
    if not caller.is_admin:
        raise NotPermitted(f"User {caller.display_name} is not a proxy_admin")


def _only_writer(caller: Caller) -> None:
    if not caller.may_write:
        raise NotPermitted(f"User {caller.display_name} may look, but not change anything")


def _within_own_rights(caller: Caller, fields: KeyFields) -> KeyFields:
    """The fields of a key that a caller makes for himself, what he left out being inherited."""
    if caller.user_id is None:
        raise NotPermitted("a key without a user cannot make other keys")
    if fields.get("user_id") not in (None, caller.user_id):
        raise NotPermitted(
            f"User {caller.display_name} can make keys for himself only", param="user_id"
        )
    if "models" in fields:
        _refuse_more_models(caller, caller.key_models, fields["models"])
    if "expires_at" in fields:
        _refuse_later_end(caller.expires_at, fields["expires_at"])
    inherited: KeyFields = {"models": list(caller.key_models), "expires_at": caller.expires_at}
    return {**inherited, **fields, "user_id": caller.user_id}


def _refuse_widening(caller: Caller, key: Key, changes: KeyFields) -> None:
    if changes.get("user_id", key.user_id) != key.user_id:
        raise NotPermitted("a key stays its owner's", param="user_id")
    if key.blocked and not changes.get("blocked", True):
        raise NotPermitted("only a proxy_admin unblocks keys", param="blocked")
    if "models" in changes:
        _refuse_more_models(caller, key.models, changes["models"])
    if "expires_at" in changes:
        _refuse_later_end(key.expires_at, changes["expires_at"])


def _refuse_gain(caller: Caller, key: Key) -> None:
    """Whoever gets a key's new secret gets its rights, so the calling key must have them all."""
    is_longer = caller.expires_at and (not key.expires_at or key.expires_at > caller.expires_at)
    if is_longer or not _covers(caller.key_models, key.models):
        raise NotPermitted("a key cannot renew one that may more, or works longer, than itself")


def _refuse_more_models(caller: Caller, allowed: Sequence[str], wanted: Sequence[str]) -> None:
    is_within_user = not _is_restricted(wanted) or _covers(caller.user_models, wanted)
    if not _covers(allowed, wanted) or not is_within_user:
        raise NotPermitted(
            "models can only be narrowed; allowed: "
            + (", ".join(allowed) or ", ".join(caller.user_models)),
            param="models",
        )


def _refuse_later_end(allowed: dt.datetime | None, wanted: dt.datetime | None) -> None:
    if allowed is not None and (wanted is None or wanted > allowed):
        raise NotPermitted(
            f"this key can end at {allowed.isoformat()} or earlier, not later", param="duration"
        )


def _allows(models: Sequence[str], model_name: str, qualified: Sequence[str]) -> bool:
    if not _is_restricted(models) or _matches(models, model_name):
        return True
    return bool(qualified) and all(_matches(models, name) for name in qualified)


def _covers(allowed: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether nothing that `wanted` allows is refused by `allowed`; both may hold wildcards."""
    if not _is_restricted(allowed):
        return True
    return _is_restricted(wanted) and all(_matches(allowed, name) for name in wanted)


def _is_restricted(models: Sequence[str]) -> bool:
    return bool(models) and _ALL_MODELS.isdisjoint(models)


def _matches(patterns: Sequence[str], name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, _only_stars(pattern)) for pattern in patterns)


def _only_stars(pattern: str) -> str:
    # Were `?` and `[` wildcards, "gpt-?" would match the text "gpt-*", which allows more than it.
    return pattern.replace("[", "[[]").replace("?", "[?]")


def _ensure_user(session: Session, user_id: str | None) -> None:
    """Make the user if there is none: LiteLLM issues keys for ids that it has never seen."""
    if user_id is None:
        return
    _refuse_reserved(user_id)
    if db.user(session, user_id) is None:
        session.add(_user_row(user_id, {}))
        session.flush()


def _refuse_reserved(user_id: str) -> None:
    if user_id.casefold() == MASTER_USER_ID:
        raise InvalidRequest(f"the user id {user_id!r} is reserved", param="user_id")


def _found_user(user: User | None, user_id: str) -> User:
    if user is None:
        raise NotFound(f"there is no user {user_id!r}", param="user_id")
    return user


def _user_row(user_id: str, fields: UserFields) -> User:
    moment = now()
    user = User(
        user_id=user_id,
        id_folded=user_id.casefold(),
        role=Role.INTERNAL_USER.value,
        models=[],
        metadata_={},
        blocked=False,
        created_at=moment,
    )
    _change_user(user, fields)
    return user


def _change_user(user: User, changes: UserFields) -> None:
    _assign(user, changes)
    if "email" in changes:
        user.email_folded = _folded(changes["email"])
    user.updated_at = now()


def _key_row(caller: Caller, secret: str, fields: KeyFields) -> Key:
    moment = now()
    token = _sha256(secret)
    user_id = fields.get("user_id")
    key = Key(
        id=str(uuid.uuid4()),
        token=token,
        key_name=_key_name(secret),
        owner=f"key:{token}" if user_id is None else _owner_of(user_id),
        alias_scope=user_id or "",
        models=[],
        metadata_={},
        blocked=False,
        created_at=moment,
        created_by=caller.user_id or caller.owner,
    )
    _assign(key, fields)
    key.updated_at = moment
    return key


def _change_key(key: Key, changes: KeyFields) -> None:
    if "user_id" in changes and changes["user_id"] != key.user_id:
        user_id = changes["user_id"]
        key.owner = f"key:{key.token}" if user_id is None else _owner_of(user_id)
        key.alias_scope = user_id or ""
    _assign(key, changes)
    key.updated_at = now()


def _assign(row: User | Key, fields: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        setattr(row, "metadata_" if name == "metadata" else name, value)


def _master(token: str) -> Caller:
    return Caller(
        owner=MASTER_OWNER,
        user_id=MASTER_USER_ID,
        key_hash=token,
        key_id=None,
        role=Role.PROXY_ADMIN,
    )


def _master_object() -> UserObject:
    return {
        "user_id": MASTER_USER_ID,
        "user_email": None,
        "user_alias": None,
        "user_role": Role.PROXY_ADMIN.value,
        "models": [],
        "metadata": {},
        "blocked": False,
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
        "created_at": user.created_at.isoformat(),
        "updated_at": user.updated_at.isoformat(),
    }


def _key_object(key: Key, secret: str | None = None) -> KeyObject:
    shown: KeyObject = {
        "token": key.token,
        "key_name": key.key_name,
        "key_alias": key.alias,
        "user_id": key.user_id,
        "models": key.models,
        "metadata": key.metadata_,
        "blocked": key.blocked,
        "expires": None if key.expires_at is None else key.expires_at.isoformat(),
        "created_at": key.created_at.isoformat(),
        "updated_at": key.updated_at.isoformat(),
        "created_by": key.created_by,
    }
    if secret is not None:
        shown["key"] = secret
    return shown


def _new_secret() -> str:
    return f"sk-{secrets.token_urlsafe(32)}"


def _key_name(secret: str) -> str:
    return f"sk-...{secret[-4:]}"


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _owner_of(user_id: str) -> str:
    return f"user:{user_id}"


def _nobody(user_id: str) -> str:
    return f"deleted-user:{user_id}:{secrets.token_hex(8)}"


def _folded(email: str | None) -> str | None:
    return None if email is None else email.casefold()


def _earlier(one: dt.datetime | None, other: dt.datetime | None) -> dt.datetime | None:
    moments = [moment for moment in (one, other) if moment is not None]
    return min(moments, default=None)
