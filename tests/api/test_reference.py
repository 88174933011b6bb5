"""The API reference: complete both ways, valid, the same for everybody, in nobody's way."""

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from marshmallow import ValidationError
from openapi_spec_validator import validate

from app import errors, objects
from app.api import error_codes
from app.api.auth import OPEN_ROUTES
from app.api.reference import answers, page
from app.api.reference.document import is_page, routes_of
from app.api.reference.operations import JSON, OPERATIONS
from app.db.engine import connect
from app.factory import create_app
from app.server import refusals
from app.services import keys, uploads, users
from app.settings import Settings
from tests.api.conftest import Gateway
from tests.builders import make_deployment

ROOT = Path(__file__).parent.parent.parent
SOURCES = sorted((ROOT / "app").rglob("*.py"))


@pytest.fixture(scope="module")
def document(still: Gateway) -> dict[str, Any]:
    response = still.app.test_client().get("/openapi.json")
    assert response.status_code == 200
    assert response.content_type == "application/json"
    found: dict[str, Any] = response.get_json()
    return found


def operations(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{method.upper()} {path}", operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
    ]


def test_the_document_is_valid(document):
    assert document["openapi"] == "3.1.0"
    validate(document)


def test_every_route_is_in_it_and_it_has_no_other(still, document):
    shown = {
        f"{key.partition(' ')[0]} {path}"
        for key, operation in operations(document)
        for path in (key.partition(" ")[2], *operation.get("x-also-at", ()))
    }
    assert shown == {f"{route.method} {route.path}" for route in routes_of(still.app)}
    assert {key for key, _ in operations(document)} == set(OPERATIONS)


def test_a_rule_is_lost_nowhere(still):
    """Flask's own list, against what the document is made from."""
    rules = {r.rule for r in still.app.url_map.iter_rules() if not is_page(r.rule)}
    spelled = {route.path for route in routes_of(still.app)}
    plain = {re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule) for rule in rules if "<any(" not in rule}
    assert plain <= spelled
    assert {path for path in spelled - plain if "/fine_tuning/jobs/{job_id}/" not in path} == set()


def test_the_consoles_pages_are_no_part_of_it():
    assert [is_page(rule) for rule in ("/ui", "/ui/files", "/uis", "/")] == [
        True,
        True,
        False,
        False,
    ]


def test_a_route_that_nobody_described_is_a_mistake(still):
    app = create_app(Settings(), connect("sqlite://"), {})
    app.add_url_rule("/forgotten", view_func=lambda: "")
    with pytest.raises(KeyError, match="GET /forgotten is described 0 times"):
        page._document(app)


def test_everything_has_words_and_a_type(document):
    without = []
    for name, schema in document["components"]["schemas"].items():
        for field, found in schema.get("properties", {}).items():
            if not found.get("description") and "$ref" not in found and "anyOf" not in found:
                without.append(f"{name}.{field}")
            if not {"type", "$ref", "anyOf", "examples"} & set(found):
                without.append(f"{name}.{field} has no type")
    for key, operation in operations(document):
        assert operation["summary"] and operation["description"], key
        for parameter in operation["parameters"]:
            if "$ref" not in parameter and not parameter.get("description"):
                without.append(f"{key}: {parameter['name']}")
        without += [
            f"{key}: {s}" for s, r in operation["responses"].items() if not r["description"]
        ]
    assert not without


def test_no_two_operations_have_one_name(document):
    names = [operation["operationId"] for _, operation in operations(document)]
    assert len(names) == len(set(names))


def test_every_example_of_a_body_is_one_that_is_taken():
    tried = 0
    for key, told in OPERATIONS.items():
        for name, value in (told.examples or {}).items():
            assert told.body is not None
            try:
                told.body().load(value)
            except ValidationError as error:
                pytest.fail(f"{key}, {name}: {error}")
            tried += 1
        assert told.body is None or told.examples or "lock" in key, f"{key} has no example"
    assert tried > 20


def test_every_answer_that_is_json_has_fields(document):
    for key, operation in operations(document):
        for status, answer in operation["responses"].items():
            assert answer["headers"]["x-request-id"], key
            for media, content in answer["content"].items():
                if media == JSON:
                    assert "$ref" in content["schema"], (key, status)


def test_what_needs_a_key_says_so(document):
    paths = {re.sub(r"<(\w+)>", r"{\1}", rule) for rule in OPEN_ROUTES}
    for key, operation in operations(document):
        if key.partition(" ")[2] in paths:
            assert operation["security"] == [] and "401" not in operation["responses"]
        else:
            assert {"bearer": []} in operation["security"]
            assert {"401", "429", "500", "503"} <= set(operation["responses"]), key


@pytest.mark.parametrize(
    ("shown", "given"),
    [
        (answers.File, objects.FileObject),
        (answers.DeletedFile, objects.FileDeleted),
        (answers.Model, objects.Model),
        (answers.RequestCounts, objects.RequestCounts),
        (answers.Upload, uploads.UploadObject),
        (answers.UploadPart, uploads.UploadPartObject),
        (answers.KeyWithSecret, keys.KeyObject),
        (answers.User, users.UserObject),
    ],
)
def test_an_answers_fields_are_those_that_are_given(shown, given):
    assert set(shown().fields) == set(get_type_hints(given))


def test_a_batchs_fields_are_those_that_are_given():
    # `include=state` adds the gateway's own.
    assert set(answers.Batch().fields) - {"gateway"} == set(get_type_hints(objects.Batch))


# Who sees it, and what it costs


def test_it_is_the_same_for_everybody_and_tells_nothing_of_the_installation(still, tmp_path):
    deployment = make_deployment("secret-id", model_name="secret-model", params={"api_key": "sk-s"})
    told = Settings(
        deployments=(deployment,),
        master_key="sk-the-master-key",
        data_dir=tmp_path / "secret-place",
        max_file_size_mb=77,
    )
    other = create_app(told, connect("sqlite://"), {}).test_client()
    for path in ("/", "/openapi.json", *(f"/reference/{name}" for name in page.ASSETS)):
        here = still.app.test_client().get(path)
        there = other.get(path, headers={"Authorization": "Bearer sk-wrong"})
        assert here.status_code == 200
        assert (here.status_code, here.data) == (there.status_code, there.data)
        assert "Set-Cookie" not in there.headers


def test_a_browser_asks_again_whether_it_has_changed(still):
    client = still.app.test_client()
    for path in ("/", "/openapi.json", "/reference/start.js"):
        first = client.get(path)
        assert "no-cache" in first.headers["Cache-Control"]
        again = client.get(path, headers={"If-None-Match": first.headers["ETag"]})
        assert (again.status_code, again.data) == (304, b"")


@pytest.mark.parametrize("name", ["swagger-ui.js", "..%2fpage.py", "oauth2-redirect.html", "x"])
def test_nothing_else_is_served_from_there(still, name):
    response = still.app.test_client().get(f"/reference/{name}")
    assert response.status_code == 404
    assert response.get_json()["error"]["code"] == "not_found"


def test_the_page_loads_its_own_files_only_and_runs_nothing_inline(still):
    client = still.app.test_client()
    response = client.get("/")
    html = response.get_data(as_text=True)
    linked = re.findall(r'(?:src|href)="([^"]+)"', html)
    assert {link for link in linked if not link.startswith("data:")} == {
        "openapi.json",
        *(f"reference/{name}" for name in page.ASSETS),
    }
    assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\son\w+=", html)
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "script-src 'self';" in policy
    assert "frame-ancestors 'none'" in policy
    assert "http" not in policy


def test_nothing_of_it_is_loaded_before_somebody_asks():
    code = (
        "import sys; from app.db.engine import connect; from app.factory import create_app; "
        "from app.settings import Settings; "
        "client = create_app(Settings(), connect('sqlite://'), {}).test_client(); "
        "client.get('/health/liveness'); client.get('/'); "
        "print([name for name in sys.modules if name.startswith(('apispec', 'flask_swagger'))])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


# Errors


def codes_in(source: Path) -> set[str]:
    """Every code that a line of this file gives to an error."""
    found: set[str] = set()
    tree = ast.parse(source.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            given = [k.value for k in node.keywords if k.arg == "code"]
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            given += node.args[2:3] if name == "_bad" else []
            for value in given:
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    found.add(value.value)
                elif isinstance(value, ast.JoinedStr):
                    assert ast.unparse(value) == "f'upload_{status}'", ast.unparse(value)
                    found |= {"upload_completed", "upload_cancelled", "upload_expired"}
    # Some validators say it behind the message.
    return found | set(re.findall(r"\\0([a-z_]+)", source.read_text()))


def test_every_code_of_every_error_is_in_the_table():
    raised = set().union(
        *(codes_in(path) for path in SOURCES if path.name not in ("error_codes.py", "glossary.py"))
    )
    assert len(raised) > 20
    known = {each.code for each in error_codes.ERRORS}
    assert raised <= known


def test_every_class_of_errors_is_in_the_table_with_its_status_and_type():
    def below(cls: type[errors.GatewayError]) -> list[type[errors.GatewayError]]:
        return [cls, *(found for each in cls.__subclasses__() for found in below(each))]

    known = {(each.code, each.status, each.type) for each in error_codes.ERRORS}
    for cls in below(errors.GatewayError):
        # It carries what the upstream said.
        if cls.__module__ == "app.errors" and cls is not errors.UpstreamRejected:
            assert (cls.code, cls.status, cls.type) in known, cls


def test_what_the_server_itself_refuses_is_in_the_table():
    known = {(each.code, each.status) for each in error_codes.ERRORS}
    for _, (status, code, _) in refusals._ANSWERS:
        assert (code, status) in known


def test_the_table_says_of_werkzeugs_errors_what_is_answered(still):
    client = still.app.test_client()
    for response in (client.put("/v1/files"), client.get("/nowhere")):
        error = response.get_json()["error"]
        known = {(each.code, each.status, each.type) for each in error_codes.ERRORS}
        assert (error["code"], response.status_code, error["type"]) in known


def test_every_code_has_an_example_in_the_document(document):
    examples = document["components"]["examples"]
    assert set(examples) == {each.name for each in error_codes.ERRORS}
    for each in error_codes.ERRORS:
        assert examples[each.name]["value"]["error"]["code"] == each.code
        assert each.cause.endswith(".") and each.cure.endswith(".")
    shown = {
        name
        for _, operation in operations(document)
        for answer in operation["responses"].values()
        for content in answer["content"].values()
        for name in content.get("examples", {})
    }
    # What comes before a route is found belongs to none, and the console is no part of the API.
    anywhere = {
        "csrf",
        "method_not_allowed",
        "request_timeout",
        "uri_too_long",
        "unsupported_media_type",
    }
    anywhere |= {"expectation_failed", "headers_too_large", "unsupported_transfer_coding"}
    assert set(examples) - shown == anywhere


def test_the_page_of_errors_is_up_to_date():
    written = (ROOT / "docs/errors.md").read_text()
    assert written == error_codes.markdown(), "python -m app.api.error_codes > docs/errors.md"
