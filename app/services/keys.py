"""Keys: issue, change, block, renew, show."""

import datetime as dt
import re
import secrets
import uuid
from collections.abc import Sequence
from typing import Any, NotRequired, cast

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.db import access as db
from app.db.engine import Database
from app.db.tables import Key, User, now
from app.errors import Conflict, InvalidRequest, NotFound, NotPermitted
from app.services import audit
from app.services.callers import (
    Caller,
    Role,
    assign,
    covers,
    differing,
    is_restricted,
    only_admin,
    only_writer,
    owner_of,
    refuse_reserved,
    sha256,
)
from app.services.limits import LimitFields, Limits, LimitValues

_TOKEN = re.compile(r"[0-9a-f]{64}")


class KeyFields(LimitFields, total=False):
    """What can be said of a key. A field that is left out is inherited, or not changed."""

    user_id: str | None
    alias: str | None
    models: list[str]
    metadata: dict[str, Any]
    blocked: bool
    expires_at: dt.datetime | None


class KeyObject(LimitValues):
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


class Keys:
    """The keys of users, and those of nobody. All methods raise DatabaseUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def generate_key(self, caller: Caller, fields: KeyFields) -> KeyObject:
        """A new key with its secret, shown this once.

        An administrator makes keys for anybody (a user who is not there yet is made) and, without
        `user_id`, for nobody. Everybody else makes keys for himself that may no more and live no
        longer than the calling one. Raises NotPermitted, Conflict for an alias that exists.
        """
        only_writer(caller)
        granted = fields if caller.is_admin else _within_own_rights(caller, fields)
        user_id = granted.get("user_id")
        secret = new_secret()
        row = key_row(caller, secret, granted)
        try:
            with self._database.write() as session:
                _ensure_user(session, caller, user_id)
                _add_key(session, caller, row, granted)
        except IntegrityError:
            # Perhaps somebody else has made the same new user at the same moment: he is there now.
            row = key_row(caller, secret, granted)
            try:
                with self._database.write() as session:
                    _ensure_user(session, caller, user_id)
                    _add_key(session, caller, row, granted)
            except IntegrityError as error:
                raise self._key_conflict(user_id, granted.get("alias")) from error
        return key_object(row, secret)

    def update_key(self, caller: Caller, reference: str, changes: KeyFields) -> KeyObject:
        """The key as changed. Only an administrator widens a key or gives it to somebody else.

        Raises NotFound, NotPermitted, InvalidRequest for an alias of several keys, Conflict.
        """
        only_writer(caller)
        user_id, alias = None, changes.get("alias")
        try:
            with self._database.write() as session:
                key = _called(session, caller, reference, for_update=True)
                user_id = changes.get("user_id", key.user_id)
                if not caller.is_admin:
                    _refuse_widening(caller, key, changes)
                elif user_id != key.user_id:
                    _ensure_user(session, caller, user_id)
                changed = differing(key, changes)
                _change_key(key, changes)
                audit.record(session, caller, "key.update", key.token, fields=changed)
        except IntegrityError as error:
            raise self._key_conflict(user_id, alias) from error
        return key_object(key)

    def delete_keys(
        self, caller: Caller, references: Sequence[str], aliases: Sequence[str] = ()
    ) -> list[str]:
        """Delete keys, all or none, and answer with their hashes."""
        only_writer(caller)
        with self._database.write() as session:
            keys = [_called(session, caller, name) for name in references]
            keys += [_called(session, caller, name, alias_only=True) for name in aliases]
            doomed = {key.id: key.token for key in keys}
            db.delete_keys(session, list(doomed))
            for token in doomed.values():
                audit.record(session, caller, "key.delete", token)
        return list(doomed.values())

    def block_key(self, caller: Caller, reference: str, *, alias_only: bool = False) -> KeyObject:
        """Refuse the key from its next request on."""
        return self._set_blocked(caller, reference, True, alias_only)

    def unblock_key(self, caller: Caller, reference: str, *, alias_only: bool = False) -> KeyObject:
        """Accept the key again. For administrators, since one of them may have blocked it."""
        only_admin(caller)
        return self._set_blocked(caller, reference, False, alias_only)

    def _set_blocked(
        self, caller: Caller, reference: str, blocked: bool, alias_only: bool
    ) -> KeyObject:
        only_writer(caller)
        with self._database.write() as session:
            key = _called(session, caller, reference, alias_only=alias_only, for_update=True)
            changed = differing(key, {"blocked": blocked})
            key.blocked = blocked
            key.updated_at = now()
            action = "key.block" if blocked else "key.unblock"
            audit.record(session, caller, action, key.token, fields=changed)
        return key_object(key)

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
        only_writer(caller)
        secret = new_secret()
        with self._database.write() as session:
            key = _called(session, caller, reference, alias_only=alias_only, for_update=True)
            if not caller.is_admin:
                _refuse_gain(caller, key)
            # Under both names, for what was done with the one belongs to the other.
            changed = ["key", *(["grace_period"] if grace_until else [])]
            for token in (key.token, sha256(secret)):
                audit.record(session, caller, "key.regenerate", token, fields=changed)
            key.previous_token = key.token if grace_until else None
            key.previous_expires_at = grace_until
            key.token = sha256(secret)
            key.key_name = _key_name(secret)
            key.updated_at = now()
        return key_object(key, secret)

    def key_info(
        self, caller: Caller, reference: str | None = None, *, alias_only: bool = False
    ) -> KeyObject:
        """A key, the calling one without `reference`. Raises NotFound, NotPermitted."""
        with self._database.read() as session:
            if reference is not None:
                return key_object(_called(session, caller, reference, alias_only=alias_only))
            if caller.key_id is None:
                raise InvalidRequest("name a key: its secret, hash or alias", param="key")
            keys = db.newest_keys(session, db.KeyFilter(key_id=caller.key_id), limit=1)
        if not keys:
            raise NotFound("there is no such key", param="key")
        return key_object(keys[0])

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
        return [key_object(row) for row in rows], total

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
        tokens = [sha256(name), name] if _TOKEN.fullmatch(name) else [sha256(name)]
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
    _refuse_limits(caller.key_limits, fields)
    inherited: KeyFields = {"models": list(caller.key_models), "expires_at": caller.expires_at}
    of_limits = cast(KeyFields, caller.key_limits.as_fields())
    return {**inherited, **of_limits, **fields, "user_id": caller.user_id}


def _refuse_widening(caller: Caller, key: Key, changes: KeyFields) -> None:
    if changes.get("user_id", key.user_id) != key.user_id:
        raise NotPermitted("a key stays its owner's", param="user_id")
    if key.blocked and not changes.get("blocked", True):
        raise NotPermitted("only a proxy_admin unblocks keys", param="blocked")
    if "models" in changes:
        _refuse_more_models(caller, key.models, changes["models"])
    if "expires_at" in changes:
        _refuse_later_end(key.expires_at, changes["expires_at"])
    _refuse_limits(Limits.of(key), changes)


def _refuse_limits(own: Limits, wanted: KeyFields) -> None:
    """Limits are the administrator's to set: what a key is to have must be what it has."""
    for name, most in own.as_fields().items():
        if wanted.get(name, most) != most:
            raise NotPermitted("only a proxy_admin sets limits", param=name)


def _refuse_gain(caller: Caller, key: Key) -> None:
    """Whoever gets a key's new secret gets its rights, so the calling key must have them all."""
    is_longer = caller.expires_at and (not key.expires_at or key.expires_at > caller.expires_at)
    is_freer = not Limits.of(key).within(caller.key_limits)
    if is_longer or is_freer or not covers(caller.key_models, key.models):
        raise NotPermitted("a key cannot renew one that may more, or works longer, than itself")


def _refuse_more_models(caller: Caller, allowed: Sequence[str], wanted: Sequence[str]) -> None:
    is_within_user = not is_restricted(wanted) or covers(caller.user_models, wanted)
    if not covers(allowed, wanted) or not is_within_user:
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


def _add_key(session: Session, caller: Caller, row: Key, fields: KeyFields) -> None:
    session.add(row)
    audit.record(session, caller, "key.generate", row.token, fields=fields)


def _ensure_user(session: Session, caller: Caller, user_id: str | None) -> None:
    """Make the user if there is none: LiteLLM issues keys for ids that it has never seen."""
    if user_id is None:
        return
    refuse_reserved(user_id)
    if db.user(session, user_id) is None:
        session.add(blank_user(user_id))
        session.flush()
        audit.record(session, caller, "user.new", user_id)


def blank_user(user_id: str) -> User:
    """A user of whom nothing is known but the id."""
    moment = now()
    return User(
        user_id=user_id,
        id_folded=user_id.casefold(),
        role=Role.INTERNAL_USER.value,
        models=[],
        metadata_={},
        blocked=False,
        created_at=moment,
        updated_at=moment,
    )


def key_row(caller: Caller, secret: str, fields: KeyFields) -> Key:
    """The row of a new key; only the hash of its secret is in it."""
    moment = now()
    token = sha256(secret)
    user_id = fields.get("user_id")
    key = Key(
        id=str(uuid.uuid4()),
        token=token,
        key_name=_key_name(secret),
        owner=f"key:{token}" if user_id is None else owner_of(user_id),
        alias_scope=user_id or "",
        models=[],
        metadata_={},
        blocked=False,
        created_at=moment,
        created_by=caller.user_id or caller.owner,
    )
    assign(key, fields)
    key.updated_at = moment
    return key


def _change_key(key: Key, changes: KeyFields) -> None:
    if "user_id" in changes and changes["user_id"] != key.user_id:
        user_id = changes["user_id"]
        key.owner = f"key:{key.token}" if user_id is None else owner_of(user_id)
        key.alias_scope = user_id or ""
    assign(key, changes)
    key.updated_at = now()


def key_object(key: Key, secret: str | None = None) -> KeyObject:
    """A key as clients see it, with its secret when it is new."""
    fields = {
        "token": key.token,
        "key_name": key.key_name,
        "key_alias": key.alias,
        "user_id": key.user_id,
        "models": key.models,
        "metadata": key.metadata_,
        "blocked": key.blocked,
        "expires": None if key.expires_at is None else key.expires_at.isoformat(),
        **Limits.of(key).as_fields(),
        "created_at": key.created_at.isoformat(),
        "updated_at": key.updated_at.isoformat(),
        "created_by": key.created_by,
    }
    if secret is not None:
        fields["key"] = secret
    return cast(KeyObject, fields)


def new_secret() -> str:
    """A secret of 256 random bits."""
    return f"sk-{secrets.token_urlsafe(32)}"


def _key_name(secret: str) -> str:
    return f"sk-...{secret[-4:]}"
