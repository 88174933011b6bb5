"""Every route of the console x every role: what comes of it. A route without a decision fails."""

import html
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest

from app.api.auth import OPEN_PAGES
from app.db.engine import connect
from app.factory import create_app
from app.providers.protocol import Operation
from app.services.access import Access
from app.services.callers import Role, operator
from app.settings import Settings
from tests.access_builders import MASTER_KEY
from tests.api.conftest import ACCOUNTS, DEPLOYMENTS
from tests.console.conftest import Browser, Gateway, signed_in
from tests.fakes import FakeProvider
from tests.tables import make_tables

ROLES = ("own", "foreign", "viewer own", "admin viewer", "admin", "no user")
ROW = b'{"custom_id":"1","method":"POST","url":"/v1/chat/completions","body":{"model":"a"}}'

FREE = (200, 200, 200, 200, 200, 200)
ADMINS = (403, 403, 403, 200, 200, 403)
LOOK = (200, 404, 200, 200, 200, 404)
CHANGE = (303, 404, 403, 403, 303, 404)
WRITE = (200, 200, 403, 403, 200, 200)


@dataclass(frozen=True)
class Scene:
    """Somebody's things, and the browser of who wants to do something with them."""

    owner_id: str
    token: str
    file: str
    batch_file: str
    training: str
    batch: str
    job: str
    browser: Browser


Form = Callable[[Scene], dict[str, str]]


def nothing(_: Scene) -> dict[str, str]:
    return {}


def of_user(**more: str) -> Form:
    return lambda scene: {"user_id": scene.owner_id, **more}


DECISIONS: dict[str, tuple[tuple[int, ...], Form]] = {
    "GET /ui/": ((303,) * 6, nothing),
    "GET /ui/<path:rest>": ((404,) * 6, nothing),
    "POST /ui/sign-out": ((303,) * 6, nothing),
    "GET /ui/files": (FREE, nothing),
    # The upload form has a test of its own: here it is no form at all.
    "POST /ui/files": ((400, 400, 403, 403, 400, 400), nothing),
    "GET /ui/files/<uuid:file_id>": (LOOK, nothing),
    "GET /ui/files/<uuid:file_id>/content": (LOOK, nothing),
    "POST /ui/files/<uuid:file_id>/delete": (CHANGE, nothing),
    "GET /ui/batches": (FREE, nothing),
    "GET /ui/batches/new": (WRITE, nothing),
    "POST /ui/batches": (
        CHANGE,
        lambda scene: {"file": scene.batch_file, "endpoint": "/v1/chat/completions"},
    ),
    "GET /ui/batches/<uuid:batch_id>": (LOOK, nothing),
    "GET /ui/batches/<uuid:batch_id>/errors": (LOOK, nothing),
    "POST /ui/batches/<uuid:batch_id>/cancel": (CHANGE, nothing),
    "GET /ui/fine-tuning": (FREE, nothing),
    "GET /ui/fine-tuning/new": (WRITE, nothing),
    "POST /ui/fine-tuning": (CHANGE, lambda scene: {"file": scene.training, "model": "a"}),
    "GET /ui/fine-tuning/<uuid:job_id>": (LOOK, nothing),
    "POST /ui/fine-tuning/<uuid:job_id>/<any(cancel, pause, resume):action>": (CHANGE, nothing),
    "GET /ui/overview": (FREE, nothing),
    "GET /ui/keys": (FREE, nothing),
    # For himself; a key without a user makes none.
    "POST /ui/keys": ((200, 200, 403, 403, 200, 403), nothing),
    "GET /ui/keys/<token>": ((200, 403, 200, 200, 200, 403), nothing),
    "POST /ui/keys/<token>/<any(block, unblock):action>": (
        (303, 403, 403, 403, 303, 403),
        nothing,
    ),
    "POST /ui/keys/<token>/regenerate": ((200, 403, 403, 403, 200, 403), nothing),
    "POST /ui/keys/<token>/delete": ((303, 403, 403, 403, 303, 403), nothing),
    "GET /ui/users": (ADMINS, nothing),
    "POST /ui/users": ((403, 403, 403, 403, 200, 403), nothing),
    "GET /ui/users/show": (ADMINS, of_user()),
    "POST /ui/users/change": ((403, 403, 403, 403, 303, 403), of_user(role="internal_user")),
    "POST /ui/users/<any(block, unblock):action>": ((403, 403, 403, 403, 303, 403), of_user()),
    "POST /ui/users/delete": ((403, 403, 403, 403, 303, 403), of_user()),
    "GET /ui/deployments": (ADMINS, nothing),
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
        data_dir=tmp_path_factory.mktemp("console-roles"),
    )
    app = create_app(settings, database, fakes)
    yield Gateway(app, database, Access(database, MASTER_KEY), fakes, settings.data_dir)
    database.engine.dispose()


@pytest.fixture(autouse=True)
def many_attempts(monkeypatch):
    """All of these people sign in from one address."""
    monkeypatch.setattr("app.services.sessions.ATTEMPTS", 10_000)


_numbers = itertools.count()


def scene_of(gateway: Gateway, role: str) -> Scene:
    access, number = gateway.access, next(_numbers)
    owner_id = f"owner-{number}"
    owner = signed_in(gateway, owner_id)
    second = access.generate_key(operator(), {"user_id": owner_id})["token"]
    file = owner.upload(b"own things")
    batch_file = owner.upload(ROW, "a.jsonl", purpose="batch")
    training = owner.upload(ROW, "a.jsonl", purpose="fine-tune")
    made = owner.post("/ui/batches", data={"file": batch_file, "endpoint": "/v1/chat/completions"})
    job = owner.post("/ui/fine-tuning", data={"file": training, "model": "a"})
    assert (made.status_code, job.status_code) == (303, 303), made.text + job.text
    browser = {
        "foreign": lambda: signed_in(gateway, f"other-{number}"),
        "admin viewer": lambda: signed_in(
            gateway, f"viewer-{number}", role=Role.PROXY_ADMIN_VIEWER
        ),
        "admin": lambda: signed_in(gateway, "root"),
        "no user": lambda: signed_in(gateway, None),
    }.get(role, lambda: owner)()
    if role == "viewer own":
        access.update_user(operator(), owner_id, {"role": Role.INTERNAL_USER_VIEWER.value})
    last = [response.headers["Location"].rpartition("/")[2] for response in (made, job)]
    return Scene(owner_id, second, file, batch_file, training, last[0], last[1], browser)


@pytest.fixture(scope="module")
def still(gateway):
    return cache(lambda role: scene_of(gateway, role))


def routes() -> list[tuple[str, str]]:
    app = create_app(Settings(), connect("sqlite://"), {})
    return sorted(
        (method, rule.rule)
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        if rule.rule.startswith("/ui") and rule.rule not in OPEN_PAGES
    )


ROUTES = routes()


def path_of(scene: Scene, rule: str) -> str:
    for name, value in {
        "<path:rest>": "nothing",
        "<uuid:file_id>": scene.file,
        "<uuid:batch_id>": scene.batch,
        "<uuid:job_id>": scene.job,
        "<token>": scene.token,
        "<any(cancel, pause, resume):action>": "pause",
        "<any(block, unblock):action>": "block",
    }.items():
        rule = rule.replace(name, value)
    return rule


def ask(scene: Scene, method: str, rule: str, **options: Any) -> Any:
    form = DECISIONS[f"{method} {rule}"][1](scene)
    if method == "POST":
        return scene.browser.post(path_of(scene, rule), data=form, **options)
    query = {"id" if name == "user_id" else name: value for name, value in form.items()}
    return scene.browser.get(path_of(scene, rule), query_string=query, **options)


def test_every_route_has_a_decision_and_every_decision_a_route():
    assert {f"{method} {rule}" for method, rule in ROUTES} == set(DECISIONS)


@pytest.mark.parametrize("role", ROLES)
def test_a_role_gets_what_was_decided(gateway, still, role):
    for method, rule in ROUTES:
        wanted = DECISIONS[f"{method} {rule}"][0][ROLES.index(role)]
        changes_nothing = method == "GET" or wanted in (403, 404)
        scene = still(role) if changes_nothing else scene_of(gateway, role)
        before = gateway.calls()
        response = ask(scene, method, rule)
        assert response.status_code == wanted, (method, rule, response.text)
        if wanted in (403, 404):
            assert gateway.calls() == before, "an upstream was called"
        if role in ("foreign", "no user"):
            # What he typed himself may be said back.
            typed = DECISIONS[f"{method} {rule}"][1](scene).values()
            for thing in {scene.owner_id, scene.file, scene.batch, scene.token} - {*typed}:
                assert thing not in response.text, (method, rule)


@pytest.mark.parametrize("role", ROLES)
def test_what_a_role_may_not_do_is_not_shown(gateway, still, role):
    """Each link of every page leads to a page, each form to what this role may do."""
    scene = still(role)
    # What is shown to a stranger is his own.
    column = ROLES.index("own" if role in ("foreign", "no user") else role)
    allowed = {f"{verb} {rule}" for verb, rule in ROUTES if served(verb, rule, column)}
    allowed |= {"POST /ui/files"} if "viewer" not in role else set()
    allowed -= {"POST /ui/keys"} if role == "no user" else set()
    links, forms = {"/ui/files"}, set()
    seen: set[str] = set()
    while links - seen:
        path = min(links - seen)
        seen.add(path)
        page = scene.browser.get(path)
        assert page.status_code == 200, path
        if not path.endswith("/content"):
            links |= {html.unescape(link) for link in re.findall(r'href="(/ui/[^"]+)"', page.text)}
            forms |= set(re.findall(r'<form[^>]*method="post" action="([^"]+)"', page.text))
        links = {link for link in links if not link.startswith("/ui/static/")}
        # One of each kind will do.
        kinds = {
            rule_of(gateway, "GET", link.partition("?")[0]): link
            for link in sorted(links, reverse=True)
        }
        links = set(kinds.values())
    assert len(seen) > 5 and "/ui/sign-out" in forms
    for path in forms:
        assert rule_of(gateway, "POST", path) in allowed, path


def served(verb: str, rule: str, column: int) -> bool:
    return DECISIONS[f"{verb} {rule}"][0][column] < 400


def rule_of(gateway: Gateway, verb: str, path: str) -> str:
    adapter = gateway.app.url_map.bind("localhost")
    rule, _ = adapter.match(path, method=verb, return_rule=True)
    return f"{verb} {rule.rule}"


def test_without_a_session_there_is_nothing(gateway, still):
    scene = still("own")
    nobody = Browser(gateway.app)
    for method, rule in ROUTES:
        before = gateway.calls()
        path = path_of(scene, rule)
        response = nobody.client.open(path, method=method)
        assert response.status_code == 303, (method, rule)
        assert response.headers["Location"].startswith("/ui/sign-in")
        told = nobody.client.open(path, method=method, headers={"Accept": "application/json"})
        assert told.status_code == 401
        # HEAD of a page is as closed; other verbs are none.
        assert nobody.client.head(path).status_code in (303, 405)
        assert nobody.client.options(path).status_code in (303, 405)
        assert gateway.calls() == before


def test_a_revoked_session_gets_nothing_by_any_route(gateway):
    scene = scene_of(gateway, "own")
    gateway.access.update_user(operator(), scene.owner_id, {"blocked": True})
    for method, rule in ROUTES:
        response = scene.browser.client.open(path_of(scene, rule), method=method)
        assert response.status_code == 303, (method, rule)


def test_an_address_of_somebody_elses_thing_says_the_same_as_one_of_nothing(gateway, still):
    scene = still("foreign")
    for rule in ("/ui/files/{}", "/ui/batches/{}", "/ui/fine-tuning/{}"):
        mine = {"/ui/files/{}": scene.file, "/ui/batches/{}": scene.batch}.get(rule, scene.job)
        there = scene.browser.get(rule.format(mine))
        missing = scene.browser.get(rule.format("00000000-0000-4000-8000-000000000000"))
        assert there.status_code == missing.status_code == 404
        told = [page.text.partition("request <code>")[0] for page in (there, missing)]
        assert told[0] == told[1] and "Code <code>" in told[0]
