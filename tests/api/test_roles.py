"""Every route x every role: what comes of it. A route without a decision fails."""

import datetime as dt
import io
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest

from app import ids
from app.api.auth import OPEN_ROUTES
from app.db.engine import connect
from app.db.tables import now
from app.factory import create_app
from app.providers.protocol import Operation
from app.services.access import Access
from app.services.callers import Role, operator
from app.settings import Settings
from tests.access_builders import MASTER_KEY
from tests.api.conftest import ACCOUNTS, DEPLOYMENTS, Gateway, Person, multipart
from tests.fakes import FakeProvider
from tests.tables import make_tables

# Roles in the order of the columns below. "own": the caller's thing, else it is somebody else's.
ROLES = ("own", "foreign", "viewer own", "admin viewer", "admin", "no user")
ROW = b'{"custom_id":"1","method":"POST","url":"/v1/chat/completions","body":{"model":"a"}}'
REFUSED = ("no key", "wrong key", "blocked key", "expired key", "blocked user")

FREE = (200, 200, 200, 200, 200, 200)  # shows everybody his own, administrators more
LOOK = (200, 403, 200, 200, 200, 403)
CHANGE = (200, 403, 403, 403, 200, 403)
MAKE = (200, 200, 403, 403, 200, 200)
ADMIN = (403, 403, 403, 403, 200, 403)


@dataclass(frozen=True)
class Scene:
    """Somebody's things, and who wants to do something with them."""

    owner_id: str
    key: str
    file_id: str
    upload_id: str
    batch_file_id: str
    training_id: str
    batch_id: str
    job_id: str
    caller: Person


Request = Callable[[Scene], dict[str, Any]]


def plain(_: Scene) -> dict[str, Any]:
    return {}


def upload(_: Scene) -> dict[str, Any]:
    body, content_type = multipart(
        ("purpose", "user_data"), ("file", ("a.txt", "text/plain", b"x"))
    )
    return {"data": body, "content_type": content_type}


def chat(scene: Scene) -> dict[str, Any]:
    part = {"type": "file", "file": {"file_id": scene.file_id}}
    return {"json": {"model": "a", "messages": [{"role": "user", "content": [part]}]}}


def respond(scene: Scene) -> dict[str, Any]:
    part = {"type": "input_file", "file_id": scene.file_id}
    return {"json": {"model": "a", "input": [{"role": "user", "content": [part]}]}}


def infer(_: Scene) -> dict[str, Any]:
    return {"json": {"model": "a", "input": "x"}}


def announce(_: Scene) -> dict[str, Any]:
    return {
        "json": {
            "purpose": "user_data",
            "filename": "a.txt",
            "bytes": 1,
            "mime_type": "text/plain",
            "model": "a",
        }
    }


def add_part(_: Scene) -> dict[str, Any]:
    return {"data": {"data": (io.BytesIO(b"x"), "upload")}}


def start_batch(scene: Scene) -> dict[str, Any]:
    return {
        "json": {
            "input_file_id": scene.batch_file_id,
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        }
    }


def tune(scene: Scene) -> dict[str, Any]:
    return {"json": {"model": "a", "training_file": scene.training_id}}


def of_user(**more: Any) -> Request:
    return lambda scene: {"json": {"user_id": scene.owner_id, **more}}


def of_key(scene: Scene) -> dict[str, Any]:
    return {"json": {"key": scene.key}}


class Nobody(Person):
    """Somebody who sends no key."""

    def open(self, method: str, path: str, **options: Any) -> Any:
        return self.client.open(path, method=method, **options)


DECISIONS: dict[str, tuple[tuple[int, ...], Request]] = {
    "POST /files": (MAKE, upload),
    "GET /files": (FREE, plain),
    "GET /files/<file_id>": (LOOK, plain),
    "GET /files/<file_id>/content": (LOOK, plain),
    "DELETE /files/<file_id>": (CHANGE, plain),
    "POST /files/<file_id>/delete": (CHANGE, plain),
    "POST /uploads": (MAKE, announce),
    "POST /uploads/<upload_id>/parts": (CHANGE, add_part),
    "POST /uploads/<upload_id>/cancel": (CHANGE, plain),
    # Nothing was sent yet: whose it is comes before what is wrong with it.
    "POST /uploads/<upload_id>/complete": (
        (400, 403, 403, 403, 400, 403),
        lambda _: {"json": {"part_ids": ["part_x"]}},
    ),
    "POST /chat/completions": (CHANGE, chat),
    "POST /responses": (CHANGE, respond),
    "POST /completions": (MAKE, infer),
    "POST /embeddings": (MAKE, infer),
    "POST /engines/<path:model>/chat/completions": (CHANGE, chat),
    "POST /engines/<path:model>/completions": (MAKE, infer),
    "POST /engines/<path:model>/embeddings": (MAKE, infer),
    "POST /batches": (CHANGE, start_batch),
    "GET /batches": (FREE, plain),
    "GET /batches/<batch_id>": (LOOK, plain),
    "POST /batches/<batch_id>/cancel": (CHANGE, plain),
    "POST /fine_tuning/jobs": (CHANGE, tune),
    "GET /fine_tuning/jobs": (FREE, plain),
    "GET /fine_tuning/jobs/<job_id>": (LOOK, plain),
    "POST /fine_tuning/jobs/<job_id>/<any(cancel, pause, resume):action>": (CHANGE, plain),
    "GET /fine_tuning/jobs/<job_id>/<any(events, checkpoints):what>": (LOOK, plain),
    "GET /models": (FREE, plain),
    "GET /models/<path:model>": (FREE, plain),
    "GET /model/info": (FREE, plain),
    "GET /model_group/info": (FREE, plain),
    "GET /health": (FREE, plain),
    "GET /metrics": ((403, 403, 403, 200, 200, 403), plain),
    "POST /user/new": (ADMIN, lambda _: {"json": {}}),
    "POST /user/update": (ADMIN, of_user(user_alias="x")),
    "POST /user/delete": (ADMIN, of_user()),
    "GET /user/info": (LOOK, lambda scene: {"query_string": {"user_id": scene.owner_id}}),
    "GET /user/list": (FREE, plain),
    "POST /key/generate": (CHANGE, of_user()),
    "POST /key/update": (CHANGE, lambda scene: {"json": {"key": scene.key, "metadata": {}}}),
    "POST /key/delete": (CHANGE, of_key),
    "POST /key/block": (CHANGE, of_key),
    "POST /key/unblock": (ADMIN, of_key),
    "POST /key/regenerate": (CHANGE, of_key),
    "GET /key/info": (LOOK, lambda scene: {"query_string": {"key": scene.key}}),
    "GET /key/list": (FREE, plain),
}


class FakeAccount(FakeProvider):
    """Takes everything."""

    operations = frozenset(Operation)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    database = connect("sqlite://")
    make_tables(database)
    fakes: dict[str, FakeProvider] = {d.id: FakeAccount(d) for d in (*DEPLOYMENTS, *ACCOUNTS)}
    settings = Settings(
        deployments=DEPLOYMENTS,
        file_accounts=ACCOUNTS,
        master_key=MASTER_KEY,
        data_dir=tmp_path_factory.mktemp("roles"),
    )
    app = create_app(settings, database, fakes)
    yield Gateway(app, database, Access(database, MASTER_KEY), fakes, settings.data_dir)
    database.engine.dispose()


_numbers = itertools.count()


def scene_of(gateway: Gateway, role: str) -> Scene:
    """A new user with a file, an upload and a second key; and a caller of that role."""
    access, number = gateway.access, next(_numbers)
    owner_id = f"owner-{number}"
    owner = gateway.person(owner_id)
    second = access.generate_key(operator(), {"user_id": owner_id})["key"]
    file_id = owner.upload(b"own things", target_model_names="a")
    batch_file_id = owner.upload(ROW, name="a.jsonl", purpose="batch", target_model_names="a")
    training_id = owner.upload(ROW, name="a.jsonl", purpose="fine-tune", target_model_names="a")
    upload_id = owner.post("/v1/uploads", **announce_scene()).get_json()["id"]
    things = Scene(owner_id, second, file_id, upload_id, batch_file_id, training_id, "", "", owner)
    batch_id = owner.post("/v1/batches", **start_batch(things)).get_json()["id"]
    job_id = owner.post("/v1/fine_tuning/jobs", **tune(things)).get_json()["id"]
    caller = {
        "foreign": lambda: gateway.person(f"other-{number}"),
        "admin viewer": lambda: gateway.person(f"viewer-{number}", role=Role.PROXY_ADMIN_VIEWER),
        "admin": lambda: Person(gateway.app, MASTER_KEY),
        "no user": lambda: gateway.person(None),
        "wrong key": lambda: Person(gateway.app, "sk-" + "x" * 40),
    }.get(role, lambda: owner)()
    if role == "viewer own":
        access.update_user(operator(), owner_id, {"role": Role.INTERNAL_USER_VIEWER.value})
    elif role == "blocked user":
        access.update_user(operator(), owner_id, {"blocked": True})
    elif role == "blocked key":
        access.block_key(operator(), owner.secret)
    elif role == "expired key":
        access.update_key(operator(), owner.secret, {"expires_at": now() - dt.timedelta(seconds=1)})
    return replace(things, batch_id=batch_id, job_id=job_id, caller=caller)


@pytest.fixture(scope="module")
def still(gateway: Gateway) -> Callable[[str], Scene]:
    """One scene for all requests of a role that change nothing: making one takes ten requests."""
    return cache(lambda role: scene_of(gateway, role))


def announce_scene() -> dict[str, Any]:
    return announce(None)  # type: ignore[arg-type]  # asks nothing of the scene


def normalised(rule: str) -> str:
    """A rule without the prefixes under which it stands once more."""
    rule = rule.replace("/openai/deployments/<path:model>", "/engines/<path:model>")
    return re.sub(r"^(/<provider>/v1|/v1|/openai/v1|/openai)(?=/)", "", rule)


def routes() -> list[tuple[str, str]]:
    """Method and rule of every route that a key opens; the console's are in tests/console."""
    app = create_app(Settings(), connect("sqlite://"), {})
    return sorted(
        (method, rule.rule)
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        if rule.rule not in OPEN_ROUTES and not rule.rule.startswith("/ui/")
    )


ROUTES = routes()


def ask(scene: Scene, method: str, rule: str, *, as_method: str | None = None) -> Any:
    path = rule
    for name, value in {
        "<provider>": "openai",
        "<path:model>": "a",
        "<file_id>": scene.file_id,
        "<upload_id>": scene.upload_id,
        "<batch_id>": scene.batch_id,
        "<job_id>": scene.job_id,
        "<any(cancel, pause, resume):action>": "pause",
        "<any(events, checkpoints):what>": "events",
    }.items():
        path = path.replace(name, value)
    options = DECISIONS[f"{method} {normalised(rule)}"][1](scene)
    return scene.caller.open(as_method or method, path, **options)


def test_every_route_has_a_decision_and_every_decision_a_route():
    assert {f"{method} {normalised(rule)}" for method, rule in ROUTES} == set(DECISIONS)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(("method", "rule"), ROUTES)
def test_a_role_gets_what_was_decided(gateway, still, method, rule, role):
    wanted = DECISIONS[f"{method} {normalised(rule)}"][0][ROLES.index(role)]
    changes_nothing = method == "GET" or wanted == 403
    scene = still(role) if changes_nothing else scene_of(gateway, role)
    before = gateway.calls()
    response = ask(scene, method, rule)
    assert response.status_code == wanted, response.text
    if wanted == 403:
        assert gateway.calls() == before, "an upstream was called"
        error = response.get_json()["error"]
        assert error["type"] == "permission_error"
        assert scene.key not in response.text
    if role in ("foreign", "no user"):
        for thing in (scene.owner_id, scene.file_id, scene.key[-8:]):
            shown = response.text if wanted == 200 else ""
            assert thing not in shown, "somebody else's thing is shown"


@pytest.mark.parametrize("role", REFUSED)
@pytest.mark.parametrize(("method", "rule"), ROUTES)
def test_without_a_good_key_there_is_nothing(gateway, still, method, rule, role):
    scene = still(role)
    if role == "no key":
        scene = replace(scene, caller=Nobody(gateway.app, ""))
    before = gateway.calls()
    response = ask(scene, method, rule)
    assert response.status_code == 401, response.text
    assert response.get_json()["error"]["type"] == "authentication_error"
    assert response.headers["WWW-Authenticate"] == "Bearer"
    for verb in ("HEAD", "OPTIONS", "TRACE", "PROPFIND"):
        assert ask(scene, method, rule, as_method=verb).status_code in (401, 405)
    assert gateway.calls() == before


@pytest.mark.parametrize("rule", [rule for method, rule in ROUTES if method == "GET"])
def test_head_is_as_permitted_as_get(still, rule):
    for role, wanted in zip(ROLES, DECISIONS[f"GET {normalised(rule)}"][0], strict=True):
        response = ask(still(role), "GET", rule, as_method="HEAD")
        assert (response.status_code, response.data) == (wanted, b"")


REFERENCE = {"/", "/openapi.json", "/reference/<asset>"}
"""tests/api/test_reference.py shows that they are the same for everybody."""


@pytest.mark.parametrize("rule", sorted(OPEN_ROUTES))
def test_open_routes_need_no_key_and_tell_nothing(gateway, rule):
    client = gateway.app.test_client()
    is_reference = rule in REFERENCE
    rule = rule.replace("<asset>", "start.js")
    response = client.get(rule)
    assert response.status_code == 200
    assert is_reference or len(response.data) < 60
    assert client.head(rule).status_code == 200
    for method in ("POST", "DELETE", "OPTIONS"):
        assert client.open(rule, method=method).status_code == 405


WAYS: list[dict[str, str]] = [
    {"target_model_names": "a,b"},
    {"model": "a"},
    {"custom_llm_provider": "openai"},
]


@pytest.mark.parametrize("way", WAYS, ids=["unified", "encoded", "raw"])
@pytest.mark.parametrize("forged", [False, True])
@pytest.mark.parametrize("role", ["foreign", "no user"])
def test_no_kind_of_id_opens_somebody_elses_file(gateway, way, forged, role):
    scene = scene_of(gateway, "own")
    file_id = scene.caller.upload(b"secret", **way)
    stranger = scene_of(gateway, role).caller
    named = {file_id}
    if forged:
        # The provider's own id, and what one can make of it.
        raw = [key for fake in gateway.fakes.values() for key in fake.contents][-1]
        named = {raw, ids.encode_file(raw, "a"), ids.encode_file(raw, "b")}
    before = gateway.calls()
    for each in named:
        part = {"type": "file", "file": {"file_id": each}}
        message = {"role": "user", "content": [part]}
        for response in (
            stranger.get(f"/v1/files/{each}"),
            stranger.get(f"/v1/files/{each}?model=a"),
            stranger.get(f"/openai/v1/files/{each}"),
            stranger.get(f"/v1/files/{each}/content"),
            stranger.delete(f"/v1/files/{each}"),
            stranger.delete(f"/v1/files/{each}", json={"custom_llm_provider": "openai"}),
            stranger.post(f"/v1/files/{each}/delete"),
            stranger.post("/v1/chat/completions", json={"model": "a", "messages": [message]}),
            stranger.post(
                "/v1/responses", json={"model": "a", "input": [{"type": "x", "file_id": each}]}
            ),
        ):
            assert response.status_code in (403, 404), response.text
    assert gateway.calls() == before
    assert scene.caller.get(f"/v1/files/{file_id}/content").data == b"secret"
