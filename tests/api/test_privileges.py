"""Nobody gets in without a key, and nobody raises what he or somebody else may do."""

import io
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from flask import Flask, request

from app.api import auth
from app.api.auth import OPEN_ROUTES, Guard, guard
from app.errors import DatabaseUnavailable, GatewayError
from app.services.access import Access
from app.services.callers import Role
from app.settings import Settings
from tests.access_builders import (
    MASTER_KEY,
    Client,
    everything,
    issue,
    make_app,
    scratch_database,
)

POSTS = (
    "/user/new", "/user/update", "/user/delete", "/key/generate", "/key/update", "/key/delete",
    "/key/block", "/key/unblock", "/key/regenerate",
)  # fmt: skip
GETS = ("/user/info", "/user/list", "/key/info", "/key/list")
NON_ADMINS = ("internal_user", "internal_user_viewer", "proxy_admin_viewer", "without a user")


@pytest.fixture
def database():
    with scratch_database("sqlite") as database:
        yield database


@pytest.fixture
def access(database):
    return Access(database, MASTER_KEY)


@pytest.fixture
def root(database, access):
    return Client(make_app(database, access).test_client(), MASTER_KEY)


# P-01: each role x each route x each field

RAISING = {
    "user_role": "proxy_admin",
    "allowed_routes": ["/*"],
    "permissions": {"all": True},
    "models": ["gpt", "secret-model"],
    "max_budget": 1e9,
    "tpm_limit": 1_000_000,
    "rpm_limit": 1_000_000,
    "team_id": "admins",
    "organization_id": "admins",
    "user_id": "victim",
    "metadata": {"user_role": "proxy_admin"},
    "spend": 0,
    "blocked": False,
    "duration": "365d",
    "expires": "2099-01-01",
    "owner": "master",
    "role": "proxy_admin",
    "token": "0" * 64,
    "created_by": "default_user_id",
    "key_models": [],
    "metadata_": {},
}


@pytest.fixture
def people(access):
    """Somebody of each role, each with a limited key; and a victim with one that is not."""
    soon = datetime.now(UTC) + timedelta(days=1)
    limits = {"models": ["gpt"], "expires_at": soon}
    secrets = {
        role: issue(access, role, role=Role(role), user={"models": ["gpt"]}, key=limits)
        for role in NON_ADMINS
        if role != "without a user"
    }
    secrets["without a user"] = issue(access, None, key=limits)
    secrets["victim"] = issue(access, "victim", key={"alias": "victims"})
    return SimpleNamespace(secrets=secrets)


@pytest.mark.parametrize("whose", ["own", "victim"])
@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("role", NON_ADMINS)
def test_no_field_of_no_route_raises_anybody(root, database, people, role, path, whose):
    client = root.acting_as(people.secrets[role])
    before = everything(database)
    for field, value in RAISING.items():
        response = client.post(path, _body(people, path, role, whose, {field: value}))
        if _is_harmless(role, path, whose, field):
            assert response.status_code == 200, field
            made = response.get_json()
            assert made["models"] == ["gpt"] and made["expires"]
            assert made["user_id"] == (None if role == "without a user" else role)
            before = everything(database)
        else:
            assert response.status_code in (400, 403), (field, response.text)
            assert everything(database) == before, field


def _body(people, path, role, whose, field):
    target = people.secrets[role if whose == "own" else whose]
    if path.startswith("/user/"):
        return {"user_id": role if whose == "own" else whose, **field}
    if path == "/key/delete":
        return {"keys": [target], **field}
    return field if path == "/key/generate" else {"key": target, **field}


def _is_harmless(role, path, whose, field):
    """A user may say what he likes about his own keys' metadata, and make keys like his own."""
    if field not in ("metadata", "blocked"):
        return False
    if path == "/key/generate":
        return role == "internal_user"
    return path == "/key/update" and whose == "own" and role in ("internal_user", "without a user")


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("role", ["internal_user_viewer", "proxy_admin_viewer"])
def test_viewers_are_refused_before_their_body_is_read(root, people, role, path):
    response = root.acting_as(people.secrets[role]).post(path, data=b"{")
    assert response.status_code == 403
    assert response.get_json()["error"]["type"] == "permission_error"


@pytest.mark.parametrize("path", ["/user/new", "/user/update", "/user/delete", "/key/unblock"])
def test_users_are_the_administrators_business(root, people, path):
    assert root.acting_as(people.secrets["internal_user"]).post(path).status_code == 403


def test_a_real_user_with_the_role_is_an_administrator(root, access):
    admin = root.acting_as(issue(access, "boss", role=Role.PROXY_ADMIN))
    assert admin.post("/user/new", {"user_id": "x"}).status_code == 200
    assert admin.post("/user/update", {"user_id": "x", "user_role": "proxy_admin"}).status_code
    made = admin.post("/key/generate", {"models": ["any"]}).get_json()
    assert (made["user_id"], made["created_by"]) == (None, "boss")
    assert admin.post("/user/delete", {"user_id": "boss"}).status_code == 200
    assert admin.get("/user/info").status_code == 401


def test_an_admin_viewer_sees_everything(root, people):
    viewer = root.acting_as(people.secrets["proxy_admin_viewer"])
    assert viewer.get("/user/info", user_id="victim").status_code == 200
    assert viewer.get("/user/list").get_json()["total"] == 4
    assert viewer.get("/key/list").get_json()["total_count"] == 5
    assert viewer.get("/key/info", key="victims").status_code == 200


# The door


@pytest.mark.parametrize("path", [*POSTS, *GETS])
@pytest.mark.parametrize("method", ["get", "post", "head", "options", "put"])
def test_nothing_opens_without_a_key(root, method, path):
    client = root._client
    folded = path.replace("/", "/%2e%2e/", 1)
    dressed = (path, f"/{path}", f"{path}/", f"/v1/..{path}", f"{path};a=b", path.upper(), folded)
    for variant in dressed:
        for headers in (
            {},
            {"Host": "health"},
            {"X-Original-URL": "/health/liveness"},
            {"X-Forwarded-Prefix": "/health"},
            {"X-HTTP-Method-Override": "GET"},
        ):
            response = getattr(client, method)(variant, headers=headers)
            assert response.status_code in (308, 401, 404, 405), (variant, headers)


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {MASTER_KEY}"},
        {"Authorization": f"bearer  {MASTER_KEY} "},
        {"x-litellm-api-key": MASTER_KEY},
        {"x-litellm-api-key": f"Bearer {MASTER_KEY}"},
        {"api-key": MASTER_KEY},
        {"x-api-key": MASTER_KEY},
        {"Authorization": "Basic dTpw", "api-key": MASTER_KEY},
        {"x-litellm-api-key": MASTER_KEY, "Authorization": "Bearer sk-wrong"},
        {"Authorization": f"Bearer {MASTER_KEY}", "api-key": "sk-wrong", "x-api-key": "sk-wrong"},
    ],
    ids=str,
)
def test_where_a_key_is_read_from(root, headers):
    assert root._client.get("/user/info", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": MASTER_KEY},
        {"Authorization": f"Basic {MASTER_KEY}"},
        {"Authorization": "Bearer ' OR 1=1--"},
        {"Authorization": 'Bearer ";'},
        {"Authorization": "Bearer sk-" + "a" * 1_000_000},
        {"Authorization": "Bearer sk-\u00fc"},
        {"Authorization": f"Bearer {MASTER_KEY}x"},
        {"Authorization": "Bearer sk-wrong", "api-key": MASTER_KEY},
        {"x-litellm-api-key": "sk-wrong", "Authorization": f"Bearer {MASTER_KEY}"},
    ],
    ids=range(12),
)
def test_no_good_key_is_401_in_the_envelope(root, database, headers):
    before = everything(database)
    response = root._client.get("/user/info", headers=headers)
    assert response.status_code == 401
    error = response.get_json()["error"]
    assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
    assert "sk-wrong" not in response.text and MASTER_KEY not in response.text
    assert everything(database) == before


def test_the_key_is_checked_before_the_body_is_read():
    read = []

    class Body(io.BytesIO):
        def read(self, *sizes):
            read.append(sizes)
            return super().read(*sizes)

    with scratch_database("sqlite") as database:
        response = (
            make_app(database)
            .test_client()
            .post("/user/new", input_stream=Body(b"{}"), content_length=2)
        )
    assert response.status_code == 401
    assert not read


def test_a_database_that_is_away_is_503(root, access):
    class Away:
        def ask(self):
            raise DatabaseUnavailable

    access._database = Away()
    response = root.acting_as("sk-unknown").get("/user/info")
    assert response.status_code == 503
    assert response.headers["Retry-After"]


# The guards


def _app(access):
    app = Flask("guards", static_folder=None)
    app.extensions["manifold"] = SimpleNamespace(access=access, settings=Settings())
    auth.install(app)
    app.register_error_handler(GatewayError, lambda error: (error.body(), error.status))
    for name in Guard.__members__:
        view = guard(Guard[name])(lambda: request.path)
        app.add_url_rule(f"/{name}", name, view)
    app.add_url_rule("/bare", "bare", lambda: "never seen")
    for rule in OPEN_ROUTES:
        app.add_url_rule(rule, rule, guard(Guard.OPEN)(lambda **_: "ok"))
    return app


SERVED = {
    Role.PROXY_ADMIN: {"ANY_KEY", "WRITE", "ADMIN_READ", "ADMIN", "METRICS"},
    Role.PROXY_ADMIN_VIEWER: {"ANY_KEY", "ADMIN_READ", "METRICS"},
    Role.INTERNAL_USER: {"ANY_KEY", "WRITE"},
    Role.INTERNAL_USER_VIEWER: {"ANY_KEY"},
}


@pytest.mark.parametrize("role", Role)
def test_whom_each_guard_serves(access, role):
    client = Client(_app(access).test_client(), issue(access, "x", role=role))
    served = {name for name in Guard.__members__ if client.get(f"/{name}").status_code == 200}
    assert served == SERVED[role]


def test_a_view_without_guard_serves_nobody(access):
    app = _app(access)
    assert Client(app.test_client(), MASTER_KEY).get("/bare").status_code == 403
    assert app.test_client().get("/bare").status_code == 401
    assert auth.unguarded(app) == ["/OPEN", "/bare"]


def test_only_the_listed_routes_are_open(access):
    client = _app(access).test_client()
    for rule in OPEN_ROUTES:
        assert client.get(rule.replace("<asset>", "x")).status_code == 200
    assert client.get("/nowhere").status_code == 404
    assert client.post("/ANY_KEY").status_code == 405


def test_all_routes_of_users_and_keys_are_guarded(database):
    app = make_app(database)
    assert auth.unguarded(app) == ["/static/<path:filename>"]
    rules = {rule.rule for rule in app.url_map.iter_rules()}
    assert rules == {*POSTS, *GETS, "/static/<path:filename>"}
