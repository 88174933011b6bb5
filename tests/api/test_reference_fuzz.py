"""schemathesis reads the document and tries every route with what it allows and what it does not.

Every answer must be one that the document describes: status, type, headers and fields; a server
error is none.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import schemathesis
from schemathesis import engine
from schemathesis.engine import events

from app.db.engine import connect
from app.factory import create_app
from app.providers.protocol import NO_FILES, Operation
from app.services.access import Access
from app.settings import Settings
from app.transfers import AttachedFile, Cancellation, Reply
from tests.access_builders import MASTER_KEY
from tests.api.conftest import Gateway, Person
from tests.builders import make_deployment
from tests.fakes import FakeProvider, json_reply, stream_reply
from tests.tables import make_tables

SEED = 7
EXAMPLES = 8
DEPLOYMENTS = (
    # The names that the document's examples have, so that they find their way.
    make_deployment("gpt", model_name="gpt-4o", upstream_model="up-gpt"),
    make_deployment("llama", model_name="llama", provider="azure", upstream_model="up-llama"),
)
ACCOUNTS = (make_deployment("account", model_name=None, upstream_model=""),)
ROW = b'{"custom_id":"1","method":"POST","url":"/v1/chat/completions","body":{"model":"gpt-4o"}}'
OPTIONS: dict[str, Any] = {
    "seed": SEED,
    "workers": 1,
    "headers": {"Authorization": f"Bearer {MASTER_KEY}"},
    "generation": {"max-examples": EXAMPLES, "mode": "all", "database": "none"},
    "phases": {"stateful": {"enabled": False}},
    "checks": {
        # What a schema cannot say, such as that a file exists, is refused all the same.
        "positive_data_acceptance": {"enabled": False},
        # tests/api/test_roles.py asks every route without a key, and more.
        "ignored_auth": {"enabled": False},
    },
    "operations": [
        {
            # What is wrong with it is the upstream's to say.
            "include-tag": "Inference",
            "checks": {"negative_data_rejection": {"enabled": False}},
        }
    ],
}


class Upstream(FakeProvider):
    """An account that takes everything, and answers each operation as OpenAI does."""

    operations = frozenset(Operation)

    def infer(
        self,
        operation: Operation,
        body: bytes,
        upstream_model: str,
        cancellation: Cancellation,
        files: Mapping[str, AttachedFile] = NO_FILES,
    ) -> Reply:
        if operation is Operation.CHAT:
            if b'"stream": true' in body or b'"stream":true' in body:
                return stream_reply({"object": "chat.completion.chunk", "choices": []})
            return super().infer(operation, body, upstream_model, cancellation, files)
        kind = {"id": "x-1", "model": upstream_model, "created": 1}
        return json_reply(
            {
                Operation.COMPLETIONS: {**kind, "object": "text_completion", "choices": []},
                Operation.EMBEDDINGS: {**kind, "object": "list", "data": []},
                Operation.RESPONSES: {**kind, "object": "response", "output": []},
            }[operation]
        )


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    database = connect("sqlite://")
    make_tables(database)
    fakes: dict[str, FakeProvider] = {d.id: Upstream(d) for d in (*DEPLOYMENTS, *ACCOUNTS)}
    settings = Settings(
        deployments=DEPLOYMENTS,
        file_accounts=ACCOUNTS,
        master_key=MASTER_KEY,
        data_dir=tmp_path_factory.mktemp("fuzz"),
    )
    app = create_app(settings, database, fakes)
    yield Gateway(app, database, Access(database, MASTER_KEY), fakes, settings.data_dir)
    database.engine.dispose()


def objects(gateway: Gateway) -> dict[str, str]:
    """Something that each id in a path may name, by the parameter's name."""
    root = Person(gateway.app, MASTER_KEY)
    rows = root.upload(ROW, name="a.jsonl", purpose="batch", target_model_names="gpt-4o")
    batch = {"input_file_id": rows, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    lines = root.upload(ROW, name="a.jsonl", purpose="fine-tune", target_model_names="gpt-4o")
    large = {"purpose": "user_data", "filename": "a", "bytes": 5, "mime_type": "text/plain"}
    made = {
        "batch_id": root.post("/v1/batches", json=batch),
        "job_id": root.post(
            "/v1/fine_tuning/jobs", json={"model": "gpt-4o", "training_file": lines}
        ),
        "upload_id": root.post("/v1/uploads", json={**large, "model": "gpt-4o"}),
    }
    found = {name: answer.get_json()["id"] for name, answer in made.items()}
    assert root.post("/key/generate", json={"key_alias": "nightly"}).status_code == 200
    return {"file_id": root.upload(model="gpt-4o"), "model": "gpt-4o", **found}


def loaded(gateway: Gateway) -> Any:
    """The document as it is served, without what would hide what it says."""
    schema = schemathesis.openapi.from_wsgi(
        "/openapi.json", gateway.app, config=schemathesis.Config.from_dict(OPTIONS)
    )
    named = objects(gateway)
    for path in schema.raw_schema["paths"].values():
        for operation in path.values():
            # The fake upstream refuses nothing, so every status must be named.
            operation["responses"].pop("4XX", None)
            operation["responses"].pop("5XX", None)
            parameters = operation["parameters"]
            # Few requests would come past one key that all of them share.
            once = {"$ref": "#/components/parameters/Idempotency-Key"}
            operation["parameters"] = [each for each in parameters if each != once]
            for each in operation["parameters"]:
                if each.get("in") == "path" and each["name"] in named:
                    each["schema"]["examples"] = [named[each["name"]]]
    return schema


def test_every_route_answers_as_the_document_says(gateway):
    failures: dict[tuple[str, str], str] = {}
    statuses: Counter[int] = Counter()
    good: set[str] = set()
    tried: set[str] = set()
    for event in engine.from_schema(loaded(gateway)).execute():
        if isinstance(event, events.NonFatalError | events.FatalError):
            pytest.fail(str(event))
        if not isinstance(event, events.ScenarioFinished):
            continue
        tried.add(event.recorder.label)
        for case_id, exchange in event.recorder.interactions.items():
            if exchange.response is None:
                continue
            statuses[exchange.response.status_code] += 1
            if exchange.response.status_code < 300:
                good.add(event.recorder.label)
            for check in event.recorder.checks.get(case_id, []):
                if check.failure_info is not None:
                    failures.setdefault(
                        (event.recorder.label, check.name),
                        f"{exchange.request.method} {exchange.request.uri} "
                        f"{(exchange.request.body or b'')[:300]!r}\n"
                        f"{exchange.response.status_code} {exchange.response.content[:300]!r}\n"
                        f"{check.failure_info.failure.title}: "
                        f"{check.failure_info.failure.message[:600]}",
                    )
    assert not failures, "\n\n".join(f"{key}: {text}" for key, text in failures.items())
    assert not [status for status in statuses if status >= 500]
    print(f"{sum(statuses.values())} requests", dict(sorted(statuses.items())))
    # That it came past the first check nearly everywhere, and not to refusals alone. What is
    # deleted early cannot be changed later.
    assert len(tried) > 50 and sum(statuses.values()) > 2000
    assert len(good) > 40, sorted(tried - good)
