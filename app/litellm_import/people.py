"""LiteLLM's users, teams and keys as ours.

Nobody may more afterwards than before: what LiteLLM held a key to and Manifold cannot hold it to
leaves the key out, or blocked. A team is a user here, who owns what its keys without a user own.
"""

import datetime as dt
import re
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.db.tables import now
from app.litellm_import.source import Row, as_json, moment
from app.services.callers import (
    MASTER_OWNER,
    MASTER_USER_ID,
    Role,
    covers,
    is_restricted,
    owner_of,
    sha256,
)

DEFAULT_USER = "litellm-default-user"
"""Who LiteLLM's `default_user_id` is here, where that name is the master key's own."""

USER_COLUMNS = [
    "user_id",
    "user_alias",
    "user_email",
    "user_role",
    "models",
    "metadata",
    "teams",
    "max_parallel_requests",
    "rpm_limit",
    "tpm_limit",
    "max_budget",
    "spend",
    "created_at",
    "updated_at",
]
KEY_COLUMNS = [
    "token",
    "key_name",
    "key_alias",
    "expires",
    "models",
    "user_id",
    "team_id",
    "metadata",
    "blocked",
    "max_parallel_requests",
    "rpm_limit",
    "tpm_limit",
    "max_budget",
    "spend",
    "allowed_routes",
    "budget_id",
    "created_at",
    "updated_at",
    "object_permission_id",
    "permissions",
]
TEAM_COLUMNS = [
    "team_id",
    "team_alias",
    "models",
    "blocked",
    "max_parallel_requests",
    "rpm_limit",
    "tpm_limit",
    "max_budget",
    "spend",
    "created_at",
]
BUDGET_COLUMNS = ["budget_id", "max_parallel_requests", "rpm_limit", "tpm_limit", "max_budget"]

_KEYS = uuid.UUID("2f1a7f64-0d0b-4e55-9d5e-6f6f6f1f0a01")
"""Namespace of the row ids of keys, which outlive their secrets: one key, one id, every time."""
_HASH = re.compile(r"[0-9a-f]{64}")
_KEY_OWNER = re.compile(r"key:[0-9a-f]{64}")
_NOTHING = "no-default-models"
_OF_TEAM = "all-team-models"
_SESSIONS = "litellm-dashboard"
_ALL_ROUTES = frozenset({"*", "llm_api_routes"})
_OTHER_ROLES = frozenset({None, "", "org_admin", "team", "customer", "app_owner", "demo_app_owner"})
_MOST = 2**31 - 1
_LONGEST_METADATA = 64 * 1024


class Left(Exception):
    """A row that is not taken, and why; `about` is what is this row's own."""

    def __init__(self, reason: str, about: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.about = about


@dataclass
class Taken:
    """Columns of a row of ours, and what of it is not as it was."""

    columns: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def team_user(team_id: str) -> str:
    """The user that a team is here."""
    return f"team:{team_id}"


def user_of(user_id: str | None, team_id: str | None) -> str | None:
    """Who here is LiteLLM's user, or the team of what has none; None for nobody."""
    if user_id is None:
        return team_user(team_id) if team_id is not None else None
    return DEFAULT_USER if user_id == MASTER_USER_ID else user_id


def owner(created_by: str | None, team_id: str | None) -> str:
    """Who owns what LiteLLM's `created_by` and `team_id` say. Raises Left for nobody's."""
    if created_by == MASTER_USER_ID:
        return MASTER_OWNER
    if created_by is not None and _KEY_OWNER.fullmatch(created_by):
        return created_by
    user = user_of(created_by, team_id)
    if user is None:
        raise Left("it belongs to nobody: neither user nor team is written down")
    return owner_of(user)


# Users


def user(row: Row, teams: Mapping[str, Row]) -> Taken:
    """A row of LiteLLM_UserTable. Raises Left."""
    notes: list[str] = []
    if row["user_id"] == DEFAULT_USER or _is_of_team(row["user_id"], teams):
        raise Left("its id is one that the import gives to somebody else")
    user_id = user_of(row["user_id"], None) or ""
    _require_id(user_id)
    role = row["user_role"]
    if role not in {role.value for role in Role}:
        if role not in _OTHER_ROLES:
            notes.append("a role that Manifold does not have: internal_user here")
        role = Role.INTERNAL_USER.value
    models = _plain(row["models"])
    if _NOTHING in models:
        # Nothing of his own, but what his teams may; his own keys are held to nothing, below.
        of_teams = [teams[team]["models"] or [] for team in row["teams"] or [] if team in teams]
        if any(not is_restricted(_plain(each)) for each in of_teams):
            models = []
        else:
            models = sorted({m for each in of_teams for m in _plain(each)}) or [_NOTHING]
    metadata = as_json(row["metadata"])
    return Taken(
        {
            "user_id": user_id,
            "id_folded": user_id.casefold(),
            "email": _email(row["user_email"], notes),
            "alias": _text(row["user_alias"]),
            "role": role,
            "models": models,
            "metadata_": _metadata(metadata, notes),
            "blocked": metadata.get("scim_active") is False,
            **_limits(row, notes),
            "created_at": moment(row["created_at"]) or now(),
            "updated_at": moment(row["updated_at"]) or now(),
        },
        notes,
    )


def _is_of_team(user_id: str, teams: Mapping[str, Row]) -> bool:
    return any(user_id == team_user(team) for team in teams) if ":" in user_id else False


def team(row: Row) -> Taken:
    """A team as the user who owns what its keys without a user own. Raises Left."""
    notes: list[str] = []
    user_id = team_user(row["team_id"])
    _require_id(user_id)
    return Taken(
        {
            "user_id": user_id,
            "id_folded": user_id.casefold(),
            "email": None,
            "alias": _text(row["team_alias"]),
            "role": Role.INTERNAL_USER.value,
            "models": _plain(row["models"]),
            "metadata_": {"litellm_team_id": row["team_id"]},
            "blocked": bool(row["blocked"]),
            **_limits(row, notes),
            "created_at": moment(row["created_at"]) or now(),
            "updated_at": now(),
        },
        notes,
    )


def blank_user(user_id: str) -> dict[str, Any]:
    """Columns of a user of whom LiteLLM has no row, but a key."""
    _require_id(user_id)
    return {
        "user_id": user_id,
        "id_folded": user_id.casefold(),
        "email": None,
        "alias": None,
        "role": Role.INTERNAL_USER.value,
        "models": [],
        "metadata_": {},
        "blocked": False,
        **dict.fromkeys(("rpm_limit", "max_parallel_requests")),
        "created_at": now(),
        "updated_at": now(),
    }


# Keys


@dataclass(frozen=True)
class Around:
    """What LiteLLM holds a key to besides its own row: its user, its team, its budget."""

    user: Row | None
    team: Row | None
    budget: Row | None
    previous: Row | None


def key(row: Row, around: Around) -> Taken:
    """A row of LiteLLM_VerificationToken. Raises Left."""
    notes: list[str] = []
    token = _token(row["token"])
    _refuse_narrow(row)
    user_id = user_of(row["user_id"], row["team_id"])
    if row["team_id"] is not None and around.team is None:
        raise Left("its team does not exist any more, and what the team may is not known")
    limited = _with_budget(row, around.budget)
    is_personal = row["team_id"] is None
    over = [row | {"max_budget": limited["max_budget"]}]
    over += [around.user] if is_personal and around.user else []
    over += [around.team] if around.team else []
    is_spent = any(map(_is_spent, over))
    if is_spent:
        notes.append("its budget is spent, which nobody counts here: taken as blocked")
    elif any(each["max_budget"] is not None for each in over):
        notes.append("had a budget in money, which nobody counts here")
    blocked = bool(row["blocked"]) or bool(around.team and around.team["blocked"]) or is_spent
    previous = around.previous
    return Taken(
        {
            "id": key_id(token),
            "token": token,
            "previous_token": _token(previous["token"]) if previous else None,
            "previous_expires_at": moment(previous["revoke_at"]) if previous else None,
            "key_name": _key_name(row["key_name"]),
            "alias": _alias(row["key_alias"], notes),
            "alias_scope": user_id or "",
            "user_id": user_id,
            "owner": f"key:{token}" if user_id is None else owner_of(user_id),
            "models": _models(row, around),
            "metadata_": _metadata(as_json(row["metadata"]), notes),
            "blocked": blocked,
            "expires_at": moment(row["expires"]),
            **_limits(limited, notes),
            "created_at": moment(row["created_at"]) or now(),
            "updated_at": moment(row["updated_at"]) or now(),
            "created_by": MASTER_OWNER,
        },
        notes,
    )


def key_id(token: str) -> str:
    """The row id of a key that came from LiteLLM."""
    return str(uuid.uuid5(_KEYS, token))


def _token(value: Any) -> str:
    text = str(value)
    if _HASH.fullmatch(text):
        return text
    if text.startswith("sk-"):
        # Very old versions have stored the secret itself.
        return sha256(text)
    raise Left("its token is no SHA-256")


def _refuse_narrow(row: Row) -> None:
    if row["team_id"] == _SESSIONS:
        raise Left("a session of LiteLLM's own console")
    routes = set(row["allowed_routes"] or ())
    if routes and not routes & _ALL_ROUTES:
        raise Left("it may use some routes only, which Manifold cannot hold it to")
    ends = moment(row["expires"])
    if ends is not None and ends < dt.datetime.now(dt.UTC):
        raise Left("it has expired")


def _models(row: Row, around: Around) -> list[str]:
    """What the key may use: nothing that its team, or its own list, does not allow."""
    own = _plain(row["models"])
    if around.team is None:
        of_user = _plain(around.user["models"]) if around.user else []
        return [_NOTHING] if _NOTHING in of_user else own
    of_team = _plain(around.team["models"])
    if not own or _OF_TEAM in own or not is_restricted(own):
        return of_team
    return [name for name in own if covers(of_team, [name])] or [_NOTHING]


def _with_budget(row: Row, budget: Row | None) -> Row:
    """The key's limits; those it does not have itself are its budget's."""
    if budget is None:
        return row
    names = ("max_parallel_requests", "rpm_limit", "tpm_limit", "max_budget")
    return row | {n: budget[n] for n in names if row[n] is None}


def _is_spent(row: Row) -> bool:
    most = row["max_budget"]
    return most is not None and (row["spend"] or 0.0) >= most


def _limits(row: Row, notes: list[str]) -> dict[str, int | None]:
    if row["tpm_limit"] is not None:
        notes.append("had a limit of tokens a minute, which nobody counts here")
    found: dict[str, int | None] = {}
    for name in ("rpm_limit", "max_parallel_requests"):
        value = row[name]
        found[name] = None if value is None else max(0, min(int(value), _MOST))
    return found


def _alias(value: Any, notes: list[str]) -> str | None:
    text = _text(value)
    if text is not None and (text.startswith("sk-") or _HASH.fullmatch(text)):
        notes.append("its alias looks like a key or a hash: none here")
        return None
    return text


def _key_name(value: Any) -> str:
    text = str(value or "")
    return text if re.fullmatch(r"sk-\.\.\.[ -~]{1,8}", text) else "sk-..."


def _email(value: Any, notes: list[str]) -> str | None:
    text = _text(value, 320)
    if text is not None and not re.fullmatch(r"[^@\s]+@[^@\s]+", text):
        notes.append("its e-mail is none: left out")
        return None
    return text


def _metadata(value: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    # Callbacks of a team or a key have their credentials in there.
    kept = {name: item for name, item in value.items() if name != "logging"}
    if len(str(kept)) > _LONGEST_METADATA:
        notes.append("its metadata are larger than 64 KB: left out")
        return {}
    return kept


def _text(value: Any, longest: int = 255) -> str | None:
    if not isinstance(value, str):
        return None
    kept = "".join(char for char in value if char.isprintable()).strip()
    return kept[:longest] or None


def _plain(models: Sequence[str] | None) -> list[str]:
    return [str(name) for name in models or ()]


def _require_id(user_id: str) -> None:
    if not user_id or len(user_id) > 255 or not user_id.isprintable() or user_id != user_id.strip():
        raise Left("its id is longer than 255 characters, or holds what no id holds")


def second_ones(alike: Iterable[str]) -> Collection[str]:
    """Of values that differ in letter case at most, all but the first of each."""
    met: set[str] = set()
    later: set[str] = set()
    for value in alike:
        folded = value.casefold()
        if folded in met:
            later.add(value)
        met.add(folded)
    return later
