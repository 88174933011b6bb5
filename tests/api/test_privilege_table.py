"""Every role but the administrator's x every field of every schema x every route of users and keys.

The table is made from the schemas, so that a field which is added is tried by everybody too.
"""

import datetime as dt
import hashlib
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import func, select

from app.api import admin_schemas as schemas
from app.db.engine import Database, connect
from app.db.tables import AuditEntry, Base, now
from app.services.callers import Role
from tests.access_builders import issue
from tests.api.conftest import Gateway, Person, make_gateway
from tests.tables import make_tables

BODIES = {
    "/user/new": schemas.NewUser,
    "/user/update": schemas.UserChanges,
    "/user/delete": schemas.UserDeletion,
    "/key/generate": schemas.NewKey,
    "/key/update": schemas.KeyChanges,
    "/key/delete": schemas.KeyDeletion,
    "/key/block": schemas.KeyReference,
    "/key/unblock": schemas.KeyReference,
    "/key/regenerate": schemas.Renewal,
}
QUERIES = {
    "/user/info": schemas.UserQuery,
    "/user/list": schemas.UserListQuery,
    "/key/info": schemas.KeyQuery,
    "/key/list": schemas.KeyListQuery,
}
ROLES = ("internal_user", "internal_user_viewer", "proxy_admin_viewer", "without a user")
MODELS = ["gpt"]
VALUES: dict[str, Any] = {
    "user_id": "victim",
    "user_ids": ["victim"],
    "user_email": "raised@example.com",
    "user_alias": "raised",
    "user_role": "proxy_admin",
    "models": ["gpt", "secret-model"],
    "metadata": {"raised": True},
    "blocked": False,
    "auto_create_key": True,
    "files": "transfer",
    "transfer_to": "somebody",
    "key": "victims",
    "keys": ["victims"],
    "key_alias": "victims",
    "key_aliases": ["victims"],
    "duration": "365d",
    "grace_period": "365d",
    "rpm_limit": 1_000_000,
    "max_parallel_requests": 1_000_000,
    "max_bytes_stored": 1 << 60,
    "max_files": 1_000_000,
    "upload_rpm_limit": 1_000_000,
}
"""What each field would raise, or whom it would hit."""

RAISING = {
    "user_id", "models", "blocked", "duration", "rpm_limit", "max_parallel_requests",
    "max_bytes_stored", "max_files", "upload_rpm_limit",
}  # fmt: skip
"""What nobody changes about his own key; the rest is his to say."""


@dataclass
class People:
    """Somebody of each role, with a limited and blocked second key; and a victim."""

    gateway: Gateway
    persons: dict[str, Person] = field(default_factory=dict)
    second: dict[str, str] = field(default_factory=dict)

    def digest(self) -> str:
        """A hash of every row of every table, but the trail of what was refused."""
        found = hashlib.sha256()
        with self.gateway.database.read() as session:
            for table in Base.metadata.sorted_tables:
                if table.name != "audit":
                    rows = sorted(repr(tuple(row)) for row in session.execute(select(table)))
                    found.update(repr((table.name, rows)).encode())
        return found.hexdigest()

    def refusals(self) -> int:
        with self.gateway.database.read() as session:
            refused = select(func.count()).where(AuditEntry.status == 403)
            return session.scalar(refused) or 0


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory):
    database: Database = connect("sqlite://")
    make_tables(database)
    made = People(make_gateway(tmp_path_factory.mktemp("privileges"), database))
    access = made.gateway.access
    soon = now() + dt.timedelta(days=1)
    limits = {"models": MODELS, "expires_at": soon}
    root = made.gateway.person("root", role=Role.PROXY_ADMIN)
    for role in ROLES:
        user_id = None if role == "without a user" else role
        user: dict[str, Any] = {"role": Role(role), "user": {"models": MODELS}} if user_id else {}
        secret = issue(access, user_id, key=limits, **user)
        made.persons[role] = Person(made.gateway.app, secret)
        # For a key without user there is no second one of its own.
        body = {"user_id": user_id, "models": MODELS, "duration": "1h", "blocked": True}
        second = None if user_id is None else root.post("/key/generate", json=body).get_json()
        made.second[role] = secret if second is None else second["token"]
    issue(access, "victim", key={"alias": "victims"})
    yield made
    database.engine.dispose()


def required(path: str, whose: str, people: People, role: str) -> dict[str, Any]:
    """The smallest body that is about the victim, or about the caller himself."""
    key = "victims" if whose == "victim" else people.second[role]
    user_id = "victim" if whose == "victim" else role
    smallest: dict[str, dict[str, Any]] = {
        "/user/new": {"user_id": "brand-new"},
        "/user/update": {"user_id": user_id},
        "/user/delete": {"user_ids": [user_id]},
        "/key/generate": {"user_id": user_id} if whose == "victim" else {},
        "/key/delete": {"keys": [key]},
    }
    return smallest.get(path, {"key": key})


def test_every_field_of_every_schema_is_tried():
    known = {name for schema in (*BODIES.values(),) for name in schema().fields}
    assert known <= set(VALUES)


def test_every_route_of_users_and_keys_is_tried(people: People):
    rules = {rule.rule for rule in people.gateway.app.url_map.iter_rules()}
    ours = {rule for rule in rules if rule.startswith(("/user/", "/key/"))}
    assert ours == {*BODIES, *QUERIES}


@pytest.mark.parametrize("whose", ["own", "victim"])
@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("role", ROLES)
def test_nobody_raises_anybody_by_any_field(people: People, role: str, path: str, whose: str):
    person, before = people.persons[role], people.digest()
    tried = 0
    for name in BODIES[path]().fields:
        is_his = whose == "own" and path.startswith("/key/") and path != "/key/unblock"
        may_write = role in ("internal_user", "without a user")
        if is_his and may_write and (name not in RAISING or path not in _CHANGING):
            continue
        is_new = path == "/key/generate" and role == "internal_user"
        if name == "blocked" and (is_new or (whose == "own" and role == "without a user")):
            # A new key is not blocked anyway, and neither is the one that is calling.
            continue
        body = {**required(path, whose, people, role), name: VALUES[name]}
        if name == "key_alias" and path in ("/key/block", "/key/unblock", "/key/regenerate"):
            del body["key"]
        if whose == "victim" and path == "/key/generate":
            body["user_id"] = "victim"
        noted = people.refusals()
        response = person.post(path, json=body)
        assert response.status_code == 403, (name, response.text)
        assert response.get_json()["error"]["type"] == "permission_error"
        assert people.digest() == before, name
        assert people.refusals() == noted + 1, "who tried is in the audit trail"
        tried += 1
    assert tried or is_his


_CHANGING = ("/key/generate", "/key/update")


@pytest.mark.parametrize("role", ["internal_user", "internal_user_viewer", "without a user"])
@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/user/info", {"user_id": "victim"}),
        ("/user/list", {"user_id": "victim"}),
        ("/user/list", {"user_email": "victim@example.com"}),
        ("/user/list", {"role": "internal_user"}),
        ("/key/info", {"key": "victims"}),
        ("/key/info", {"key_alias": "victims"}),
        ("/key/list", {"user_id": "victim"}),
        ("/key/list", {"key_alias": "victims"}),
    ],
)
def test_nobody_sees_somebody_else(people: People, role: str, path: str, query: dict[str, str]):
    assert set(query) <= set(QUERIES[path]().fields)
    before = people.digest()
    response = people.persons[role].get(path, query_string=query)
    assert response.status_code in (200, 403), response.text
    if response.status_code == 200:
        assert "victim" not in response.text
    assert people.digest() == before
