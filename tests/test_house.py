"""The house as it is drawn: arrows, rooms, providers, guards and docstrings."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from app.api import auth
from app.db.engine import connect
from app.factory import create_app
from app.providers.protocol import Operation, Provider
from app.providers.registry import PROVIDERS
from app.settings import Settings

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "app").rglob("*.py"))
NO_PROVIDERS = {
    "__init__",
    "account_params",
    "content_store",
    "google_token",
    "lines",
    "multipart",
    "openai_jobs",
    "openai_style",
    "params",
    "protocol",
    "registry",
    "upstream",
}
"""Modules of app/providers that are not a provider."""


def test_no_import_goes_up_or_sideways():
    run = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache", "--config", "setup.cfg"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_what_lives_there(module):
    doc = ast.get_docstring(ast.parse(module.read_text()))
    assert doc and doc.splitlines()[0].endswith((".", ":", '"')), "one line, and a whole one"


def test_every_function_without_a_room_has_found_one():
    nameless = {"utils", "util", "helpers", "helper", "common", "base", "misc", "lib", "shared"}
    assert not [path for path in MODULES if path.stem in nameless or path.parent.name in nameless]


def test_the_registry_has_every_provider_there_is():
    files = {path.stem for path in (ROOT / "app/providers").glob("*.py")} - NO_PROVIDERS
    assert {cls.__module__.rpartition(".")[2] for cls in PROVIDERS} == files
    assert len(PROVIDERS) == len(files)


def test_every_provider_has_a_test_that_inherits_the_contract():
    for cls in PROVIDERS:
        test = ROOT / f"tests/providers/test_{cls.__module__.rpartition('.')[2]}.py"
        inherits = re.compile(r"^class \w+\(.*(Provider|Files)Contract\)", re.MULTILINE)
        assert inherits.search(test.read_text()), test


def test_no_name_means_two_providers():
    names = [name for cls in PROVIDERS for name in (cls.name, *cls.aliases)]
    assert len(names) == len(set(names))


def test_nothing_outside_of_the_providers_names_google():
    named = re.compile(r"google|gemini|vertex|\bgcs\b|gs://", re.IGNORECASE)
    found = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "app").rglob("*.py")
        if "providers" not in path.parts and named.search(path.read_text())
    }
    # LiteLLM's keys, those that make a deployment's id, those no client may send, a noisy logger.
    names = {"app/litellm_keys.py", "app/settings.py", "app/api/target.py", "app/logs.py"}
    assert found <= names


@pytest.mark.parametrize("cls", PROVIDERS, ids=lambda cls: cls.name)
def test_a_provider_codes_what_it_declares(cls: type[Provider]):
    assert cls.operations <= frozenset(Operation)
    file_methods = {"upload", "retrieve", "files", "content", "delete"}
    coded = {name for name in file_methods if getattr(cls, name) is not getattr(Provider, name)}
    assert coded == (file_methods if Operation.FILES in cls.operations else set())
    infers = cls.infer is not Provider.infer
    assert infers == bool(cls.operations - {Operation.FILES})


def test_no_caller_asks_which_provider_it_has():
    names = "|".join(re.escape(cls.name) for cls in PROVIDERS)
    asking = re.compile(rf"[!=]= *[\"']({names})[\"']|[\"']({names})[\"'] *[!=]=")
    rooms = ("api", "services", "db")
    asked = {
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for room in rooms
        for path in (ROOT / "app" / room).glob("*.py")
        for line in path.read_text().splitlines()
        if asking.search(line)
    }
    # Contract, section 3: of several accounts without a default, the one for openai.
    assert {line.partition(":")[0] for line in asked} <= {"app/services/router.py"}


@pytest.fixture(scope="module")
def app():
    return create_app(Settings(), connect("sqlite://"), {})


def test_every_route_has_a_guard_or_is_open(app):
    assert auth.unguarded(app) == []
    rules = {rule.rule for rule in app.url_map.iter_rules()}
    assert rules >= auth.OPEN_ROUTES | auth.OPEN_PAGES


def test_the_console_is_what_a_session_opens_and_nothing_else(app):
    for rule in app.url_map.iter_rules():
        by_session = auth.door_of(app, rule.endpoint) is auth.Door.SESSION
        assert by_session == rule.rule.startswith("/ui/"), rule
    assert all(rule.startswith("/ui/") for rule in auth.OPEN_PAGES)


def test_no_route_answers_what_it_was_not_made_for(app):
    for rule in app.url_map.iter_rules():
        assert "OPTIONS" not in (rule.methods or set()), rule
        assert rule.endpoint != "static"


def test_every_openai_route_stands_with_and_without_v1(app):
    rules = {rule.rule for rule in app.url_map.iter_rules()}
    with_v1 = {rule.removeprefix("/v1") for rule in rules if rule.startswith("/v1/")}
    assert with_v1 and with_v1 <= rules


def test_importing_a_leaf_imports_neither_flask_nor_a_provider():
    code = "import sys, app.ids, app.errors, app.settings, app.transfers; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(run.stdout.split())
    assert not {name for name in loaded if name.startswith(("flask", "app.providers", "requests"))}
