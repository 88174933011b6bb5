"""Who calls: roles, the caller behind a secret, and which models he may use."""

import datetime as dt
import fnmatch
import hashlib
import hmac
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from app.db import access as db
from app.db import files
from app.db.engine import Database
from app.db.tables import Key, User, now
from app.errors import InvalidRequest, NotAuthenticated, NotPermitted
from app.services.limits import UNLIMITED, Limits, Subject
from app.settings import RetiringKey

MASTER_USER_ID = "default_user_id"
MASTER_OWNER = "master"

_MAX_SECRET_LENGTH = 512
_ALL_MODELS = frozenset({"*", "all-proxy-models"})


class Role(StrEnum):
    """What somebody may do; contract, section 2."""

    PROXY_ADMIN = "proxy_admin"
    PROXY_ADMIN_VIEWER = "proxy_admin_viewer"
    INTERNAL_USER = "internal_user"
    INTERNAL_USER_VIEWER = "internal_user_viewer"


@dataclass(frozen=True)
class Origin:
    """Where a request came from: its id, and the client's address as the access log has it."""

    request_id: str | None = None
    address: str | None = None


@dataclass(frozen=True)
class Caller:
    """Who sends a request.

    `owner` is what his files are owned by. `key_hash` is the SHA-256 of the presented secret in
    hex. `key_id` is None for the master key, `user_id` for a key without user. `expires_at` is the
    moment from which the presented secret is refused. `origin` is for the audit trail alone.
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
    key_limits: Limits = UNLIMITED
    user_limits: Limits = UNLIMITED
    origin: Origin = field(default=Origin(), compare=False)

    def sending(self, origin: Origin) -> "Caller":
        """The same, with where this request of his comes from."""
        made = object.__new__(Caller)
        # What `dataclasses.replace` does takes as long as the look-up of the key.
        made.__dict__.update(self.__dict__, origin=origin)
        return made

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

    @property
    def limited(self) -> tuple[Subject, ...]:
        """What his requests are counted for: the user and the key, where they have limits."""
        found = []
        if self.user_limits != UNLIMITED:
            found.append(Subject(owner_of(self.user_id or ""), self.user_limits))
        if self.key_limits != UNLIMITED:
            found.append(Subject(f"key:{self.key_id}", self.key_limits))
        return tuple(found)

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


def operator() -> Caller:
    """The person at the machine's own command line: everything the master key may."""
    return _master("")


class Callers:
    """Who it is that presents a secret.

    Nothing is remembered between calls, so that a key blocked by one process is refused by every
    other at its next request. Raises DatabaseUnavailable.
    """

    def __init__(
        self,
        database: Database,
        master_key: str | None,
        retiring_master_keys: Iterable[RetiringKey] = (),
    ) -> None:
        self._database = database
        self._master_hash = sha256(master_key) if master_key else None
        self._retiring = tuple(retiring_master_keys)

    def authenticate(self, secret: str) -> Caller:
        """Who presents this secret. Raises NotAuthenticated; one statement at most."""
        token = sha256(secret)
        return self._master(secret, token) or self.holder(token)

    def authenticate_beside(
        self, secret: str, file_uuid: str
    ) -> tuple[Caller, files.WithCopies | None]:
        """The same, and the file that he asks for with its copies, in the same statement.

        None when there is no such file, or when no statement was needed. Whether the file may be
        his business is for `Lookup` to say.
        """
        token, moment = sha256(secret), now()
        if master := self._master(secret, token):
            return master, None
        with self._database.ask() as asking:
            row, found = db.presented_beside(asking, token, moment, file_uuid)
        return _holder(row, token, moment), found

    def masters(self) -> Iterator[Caller]:
        """Whoever presents the master key, or one of before that still works."""
        if self._master_hash:
            yield _master(self._master_hash)
        yield from self._retiring_masters()

    def _retiring_masters(self) -> Iterator[Caller]:
        for retiring in self._retiring:
            if now() < retiring.until:
                yield replace(_master(retiring.sha256), expires_at=retiring.until)

    def holder(self, token: str) -> Caller:
        """Who holds the key whose secret has this hash. Raises NotAuthenticated."""
        moment = now()
        with self._database.ask() as asking:
            row = db.presented(asking, token, moment)
        return _holder(row, token, moment)

    def _master(self, secret: str, token: str) -> Caller | None:
        if self._master_hash and hmac.compare_digest(token, self._master_hash):
            return _master(token)
        for master in self._retiring_masters():
            if hmac.compare_digest(token, master.key_hash):
                return master
        if not secret.startswith("sk-") or len(secret) > _MAX_SECRET_LENGTH:
            raise NotAuthenticated("the API key is not valid")
        return None


def _holder(row: Any | None, token: str, moment: dt.datetime) -> Caller:
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
        key_limits=Limits.of(row),
        user_limits=Limits.of(row, "user_"),
    )


def only_admin(caller: Caller) -> None:
    """Raise NotPermitted unless he is a proxy_admin."""
    if not caller.is_admin:
        raise NotPermitted(f"User {caller.display_name} is not a proxy_admin")


def only_writer(caller: Caller) -> None:
    """Raise NotPermitted for those who may look and no more."""
    if not caller.may_write:
        raise NotPermitted(f"User {caller.display_name} may look, but not change anything")


def _allows(models: Sequence[str], model_name: str, qualified: Sequence[str]) -> bool:
    if not is_restricted(models) or _matches(models, model_name):
        return True
    return bool(qualified) and all(_matches(models, name) for name in qualified)


def covers(allowed: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether nothing that `wanted` allows is refused by `allowed`; both may hold wildcards."""
    if not is_restricted(allowed):
        return True
    return is_restricted(wanted) and all(_matches(allowed, name) for name in wanted)


def is_restricted(models: Sequence[str]) -> bool:
    """Whether a list of models leaves anything out."""
    return bool(models) and _ALL_MODELS.isdisjoint(models)


def _matches(patterns: Sequence[str], name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, _only_stars(pattern)) for pattern in patterns)


def _only_stars(pattern: str) -> str:
    # Were `?` and `[` wildcards, "gpt-?" would match the text "gpt-*", which allows more than it.
    return pattern.replace("[", "[[]").replace("?", "[?]")


def refuse_reserved(user_id: str) -> None:
    """Raise InvalidRequest for the id that the master key goes by, in any letter case."""
    if user_id.casefold() == MASTER_USER_ID:
        raise InvalidRequest(f"the user id {user_id!r} is reserved", param="user_id")


def assign(row: User | Key, fields: Mapping[str, Any]) -> None:
    """Set the columns of a row by the names that they have as fields."""
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


def differing(row: User | Key, fields: Mapping[str, Any]) -> list[str]:
    """The names of the fields that say something else than the row does."""
    columns = ((name, "metadata_" if name == "metadata" else name) for name in fields)
    return [name for name, column in columns if getattr(row, column) != fields[name]]


def sha256(secret: str) -> str:
    """The hash by which a secret is stored, in hex."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def owner_of(user_id: str) -> str:
    """What the things of a user are owned by."""
    return f"user:{user_id}"


def _earlier(one: dt.datetime | None, other: dt.datetime | None) -> dt.datetime | None:
    moments = [moment for moment in (one, other) if moment is not None]
    return min(moments, default=None)
