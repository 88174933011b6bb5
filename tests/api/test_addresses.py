"""Addresses and credentials come from the configuration: no request chooses one, on any route."""

import io
import json
import re
from urllib.parse import urlsplit

import pytest
import responses

from app.api.target import FORBIDDEN
from app.db.engine import connect
from app.factory import create_app
from app.services.access import Access
from app.settings import Settings
from tests.access_builders import MASTER_KEY
from tests.api.conftest import Gateway, Person
from tests.api.test_roles import ROUTES, normalised
from tests.builders import make_deployment
from tests.tables import make_tables

EVIL = "https://evil.test/v1"
SECRET = "sk-upstream-secret"
HOST = "upstream.test"
NAMES = (
    *sorted(FORBIDDEN), "API_BASE", "api_base[]", "s3_bucket_name", "aws_secret_access_key",
    "vertex_credentials", "vertex_location", "gcs_bucket_name", "gcs_api_base", "azure_ad_token",
    "azure_endpoint",
)  # fmt: skip
NO_UPSTREAM = {
    "GET /health", "GET /metrics", "GET /models", "GET /models/<path:model>", "GET /model/info",
    "GET /model_group/info", "POST /uploads/<upload_id>/cancel", "POST /uploads/<upload_id>/parts",
    "POST /user/new", "POST /user/update", "POST /user/delete", "GET /user/info", "GET /user/list",
    "POST /key/generate", "POST /key/update", "POST /key/delete", "POST /key/block",
    "POST /key/unblock", "POST /key/regenerate", "GET /key/info", "GET /key/list",
}  # fmt: skip
"""Routes behind which nothing is sent anywhere, whatever they are asked."""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    """The app over real providers; whoever answers for them says that it knows nothing."""
    database = connect("sqlite://")
    make_tables(database)
    account = {"api_base": f"https://{HOST}/v1", "api_key": SECRET}
    settings = Settings(
        deployments=(
            make_deployment("a-1", model_name="a", upstream_model="up-a", params=account),
        ),
        file_accounts=(make_deployment("acc", model_name=None, upstream_model="", params=account),),
        master_key=MASTER_KEY,
        data_dir=tmp_path_factory.mktemp("addresses"),
    )
    app = create_app(settings, database)
    yield Gateway(app, database, Access(database, MASTER_KEY), {}, settings.data_dir)
    database.engine.dispose()


@pytest.fixture
def sent():
    """Every request that leaves, wherever to."""
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        for method in ("GET", "POST", "DELETE", "PUT", "HEAD"):
            mock.add_callback(
                method,
                re.compile(".*"),
                callback=lambda _: (404, {}, json.dumps({"error": {"message": "unknown"}})),
            )
        yield mock.calls


@pytest.fixture(params=["admin", "user"])
def person(request, gateway):
    if request.param == "admin":
        return Person(gateway.app, MASTER_KEY)
    return gateway.person(f"user-{id(request)}")


def path_of(rule: str) -> str:
    for name, value in {
        "<provider>": "openai",
        "<path:model>": "a",
        "<file_id>": "file-abc",
        "<upload_id>": f"upload_{'0' * 32}",
        "<batch_id>": "batch_abc",
        "<job_id>": "ftjob-abc",
        "<any(cancel, pause, resume):action>": "cancel",
        "<any(events, checkpoints):what>": "events",
    }.items():
        rule = rule.replace(name, value)
    return rule


def body_of(rule: str) -> dict[str, object]:
    """What the route needs, as far as one body can say it for all of them."""
    if normalised(rule).startswith(("/user", "/key")):
        return {}
    return {
        "model": "a",
        "messages": [{"role": "user", "content": "x"}],
        "input": "x",
        "prompt": "x",
        "input_file_id": "file-abc",
        "training_file": "file-abc",
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }


def check_where(sent) -> None:
    for call in sent:
        assert urlsplit(call.request.url).hostname == HOST, call.request.url
        assert "evil.test" not in call.request.url
        told = {name.lower(): str(value) for name, value in call.request.headers.items()}
        assert told["authorization"] == f"Bearer {SECRET}"
        assert "evil" not in json.dumps(told)


BARE = sorted({(method, rule) for method, rule in ROUTES if not rule.startswith("/openai/v1")})


@pytest.mark.parametrize(("method", "rule"), BARE)
def test_no_query_and_no_body_chooses_an_address(gateway, person, sent, method, rule):
    path, is_refused = path_of(rule), f"{method} {normalised(rule)}" not in NO_UPSTREAM
    for name in NAMES:
        for options in (
            {"query_string": {name: EVIL, "model": "a"}},
            {"query_string": {"model": "a"}, "json": {**body_of(rule), name: EVIL}},
            {"query_string": {"model": "a"}, "json": {**body_of(rule), name: {"api_base": EVIL}}},
        ):
            response = person.open(method, path, **options)
            assert response.status_code < 500, response.text
            assert "evil.test" not in response.headers.get("Location", "")
            if is_refused and method != "POST" and "json" not in options:
                assert response.get_json()["error"]["code"] == "forbidden_parameter", response.text
    assert is_refused or not sent
    check_where(sent)


@pytest.mark.parametrize(("method", "rule"), BARE)
def test_no_form_no_header_and_nothing_nested_chooses_one(gateway, person, sent, method, rule):
    path = path_of(rule)
    names = dict.fromkeys(NAMES, EVIL)
    headers = {
        spelled: EVIL
        for name in NAMES
        for plain in (name.replace("[]", "").replace("_", "-"),)
        for spelled in (plain, f"x-{plain}", f"x-litellm-{plain}", f"x-openai-{plain}")
        if plain.lower() not in ("api-key",)
        and spelled.lower() not in ("x-api-key", "x-litellm-api-key")
    }
    nested = {**body_of(rule), "metadata": names, "extra": {"litellm_params": names}}
    form = {"purpose": "user_data", "model": "a", **names}
    for options in (
        {"headers": headers, "json": body_of(rule), "query_string": {"model": "a"}},
        {"headers": {"Cookie": f"api_base={EVIL}", "Host": "evil.test"}, "json": body_of(rule)},
        {"json": nested},
        {"data": {**form, "file": (io.BytesIO(b"x"), "a.txt")}},
        {"data": form},
    ):
        response = person.open(method, path, **options)
        assert response.status_code in (200, 400, 403, 404, 405), response.text
    check_where(sent)


@pytest.mark.parametrize("name", NAMES)
def test_an_upload_with_such_a_field_is_refused_before_anything_is_sent(person, sent, name):
    for fields in ({name: EVIL, "model": "a"}, {name: EVIL, "custom_llm_provider": "openai"}):
        response = person.send(**fields)
        assert response.get_json()["error"]["code"] == "forbidden_parameter", response.text
    response = person.send(path=f"/v1/files?{name}={EVIL}", model="a")
    assert response.get_json()["error"]["code"] == "forbidden_parameter", response.text
    assert not sent


def test_the_rows_of_a_batch_go_where_all_rows_go(person, sent):
    row = {
        "custom_id": "1",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "a", "messages": [], "api_base": EVIL, "extra": {"base_url": EVIL}},
    }
    person.send(json.dumps(row).encode(), name="a.jsonl", purpose="batch", model="a")
    check_where(sent)
    assert sent
    for url in (EVIL, "//evil.test/v1/chat/completions", "/v1/../../evil", "http:/evil.test"):
        before = len(sent)
        content = json.dumps({**row, "url": url}).encode()
        response = person.send(content, name="a.jsonl", purpose="batch", model="a")
        assert response.status_code == 400
        assert len(sent) == before


def test_something_was_sent_at_all(gateway, sent):
    root = Person(gateway.app, MASTER_KEY)
    root.get("/v1/files/file-abc?model=a")
    root.get("/v1/batches/batch_abc?model=a")
    root.post("/v1/chat/completions", json={"model": "a", "messages": []})
    assert len(sent) >= 3
    check_where(sent)
