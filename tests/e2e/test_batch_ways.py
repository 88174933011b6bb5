"""Every way to upload, every way to start a batch, and whose everything is.

Alice owns, Bob is a stranger with things of his own, the auditor reads everything, the master key
may do everything. A file's row decides where its batch goes; the id that was handed in decides
which kind of id the batch has.
"""

import base64
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import openai
import pytest
import requests

from tests.e2e import inside
from tests.e2e.batching import CHAT, QUICK, bytes_at, ended, job_ended, raw_ids, start, upload
from tests.e2e.conftest import StartGateway
from tests.e2e.gateway import Account, Gateway, Upstream, model
from tests.e2e.upstream_jobs import by_custom_id, custom_ids, rows, training_rows

PROVIDER = {"custom-llm-provider": "openai"}


def unpadded(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decoded(handed: str) -> str:
    return base64.urlsafe_b64decode(handed + "=" * (-len(handed) % 4)).decode()


def kind_of(batch_id: str, raw: str) -> str:
    """By the contract's table; AssertionError for an id that is nothing of it."""
    if batch_id == raw:
        return "raw"
    if batch_id.startswith("batch_"):
        assert decoded(batch_id.removeprefix("batch_")) == f"litellm:{raw};model,a"
        return "encoded"
    text = decoded(batch_id)
    assert text.startswith("litellm_proxy;model_id:")
    assert ";llm_batch_id:" in text
    assert raw not in text
    return "unified"


@dataclass(frozen=True)
class House:
    gateway: Gateway
    east: Account
    keys: dict[str, str]
    clients: dict[str, Any] = field(default_factory=dict)

    def api(self, who: str, method: str, path: str, **more: Any) -> requests.Response:
        return self.gateway.api(method, path, key=self.keys[who], **more)


def configuration(east: Account, general: dict[str, Any]) -> dict[str, Any]:
    return {
        "model_list": [model("a", "openai/gpt-4o", east)],
        "files_settings": [{"custom_llm_provider": "openai", **east.params}],
        "general_settings": {**QUICK, "default_target_model_names": ["a"], **general},
    }


def settle(gateway: Gateway, east: Account) -> House:
    keys = {
        "alice": gateway.new_user(user_id="alice")["key"],
        "bob": gateway.new_user(user_id="bob")["key"],
        "auditor": gateway.new_user(user_id="auditor", user_role="proxy_admin_viewer")["key"],
        "nobody": gateway.api("POST", "/key/generate", json={}).json()["key"],
        "root": gateway.master_key,
    }
    return House(gateway, east, keys, {who: gateway.client(key) for who, key in keys.items()})


@pytest.fixture(scope="module")
def east(upstream: Upstream) -> Account:
    return upstream.account("east", batch_delay_s=0, job_delay_s=0)


@pytest.fixture(scope="module")
def house(east: Account, start_gateway: StartGateway) -> House:
    return settle(start_gateway(configuration(east, {}), workers=1), east)


@pytest.fixture
def alice(house: House) -> Any:
    return house.clients["alice"]


@pytest.fixture
def bob(house: House) -> Any:
    return house.clients["bob"]


@pytest.fixture(autouse=True)
def _nothing_strange(upstream: Upstream) -> Iterator[None]:
    yield
    assert not upstream.unexpected()


# -------------------------------------------------------------------- four ways by four ways

UPLOADS: dict[str, dict[str, str]] = {
    "unified": {"target_model_names": "a"},
    "by default": {},
    "encoded": {"model": "a"},
    "raw": {"custom_llm_provider": "openai"},
}
CREATES: dict[str, dict[str, Any]] = {
    "the id as it is": {},
    "encoded by hand": {},
    "model and raw": {"extra_body": {"model": "a"}},
    "provider and raw": {"extra_headers": PROVIDER},
}
COMBINATIONS = [
    (how, create)
    for how in UPLOADS
    for create in CREATES
    # The provider's account is another one than that of the model's deployment.
    if (how, create) != ("raw", "encoded by hand")
]


def expected_kind(how: str, create: str) -> str:
    if create in ("the id as it is", "encoded by hand"):
        return "unified" if how == "by default" else how
    return {"model and raw": "encoded", "provider and raw": "raw"}[create]


@pytest.mark.parametrize(("how", "create"), COMBINATIONS)
def test_a_batch_of_every_way_is_its_creator_s(house, alice, bob, how, create):
    content = rows(5, "gpt-4o" if how == "raw" else "a", fail={2})
    file_id = upload(alice, content, **UPLOADS[how])
    [raw] = raw_ids(house.gateway, file_id).values()
    assert bytes_at(house.east, raw) == rows(5, "gpt-4o", fail={2})
    handed = {
        "the id as it is": file_id,
        "encoded by hand": "file-" + unpadded(f"litellm:{raw};model,a"),
    }.get(create, raw)
    made = start(alice, handed, metadata={"what": f"{how} {create}"}, **CREATES[create])
    known = house.east.batches()[-1]
    assert known["input_file_id"] == raw
    assert kind_of(made.id, known["id"]) == expected_kind(how, create)
    assert (made.input_file_id, made.endpoint, made.completion_window) == (handed, CHAT, "24h")

    assert made.id in [batch.id for batch in alice.batches.list()]
    assert made.id not in [batch.id for batch in bob.batches.list()]
    done = ended(alice, made.id)
    assert (done.id, done.status, done.input_file_id) == (made.id, "completed", handed)
    assert done.metadata == {"what": f"{how} {create}"}
    [listed] = [batch for batch in alice.batches.list() if batch.id == made.id]
    assert listed == done

    known = house.east.batches()[-1]
    for shown, at_upstream, expected in (
        (done.output_file_id, known["output_file_id"], set(custom_ids(5)) - {"row-2"}),
        (done.error_file_id, known["error_file_id"], {"row-2"}),
    ):
        assert decoded(shown).startswith("litellm_proxy:application/jsonl;unified_id,")
        assert at_upstream not in decoded(shown)
        downloaded = alice.files.content(shown).read()
        assert downloaded == bytes_at(house.east, at_upstream)
        assert set(by_custom_id(downloaded)) == expected
        with pytest.raises(openai.PermissionDeniedError):
            bob.files.content(shown)
    with pytest.raises(openai.PermissionDeniedError):
        bob.batches.retrieve(made.id)


@pytest.mark.parametrize(("how", "create"), COMBINATIONS)
def test_a_batch_of_every_way_is_cancelled_once_and_for_all(house, alice, bob, how, create):
    file_id = upload(alice, rows(5, "gpt-4o" if how == "raw" else "a"), **UPLOADS[how])
    [raw] = raw_ids(house.gateway, file_id).values()
    handed = {
        "the id as it is": file_id,
        "encoded by hand": "file-" + unpadded(f"litellm:{raw};model,a"),
    }.get(create, raw)
    with house.east.changed(batch_stay="in_progress"):
        made = start(alice, handed, **CREATES[create])
        with pytest.raises(openai.PermissionDeniedError):
            bob.batches.cancel(made.id)
        with pytest.raises(openai.ConflictError) as refused:
            alice.files.delete(file_id)
        assert made.id in refused.value.response.json()["error"]["message"]
        assert refused.value.code == "file_in_use"
        assert alice.batches.cancel(made.id).status == "cancelling"
        assert alice.batches.cancel(made.id).status in ("cancelling", "cancelled")
    assert ended(alice, made.id).status == "cancelled"
    assert alice.batches.cancel(made.id).status == "cancelled"
    assert house.east.batches()[-1]["status"] == "cancelled"
    assert alice.files.delete(file_id).deleted


def test_a_batch_that_has_ended_is_not_cancelled(house, alice):
    made = start(alice, upload(alice, rows(1, "a")))
    # The gateway does not know yet that it has ended: the upstream says so.
    with pytest.raises(openai.ConflictError):
        alice.batches.cancel(made.id)
    assert alice.batches.retrieve(made.id).status == "completed"
    with pytest.raises(openai.ConflictError):
        alice.batches.cancel(made.id)


def test_a_failed_cancel_can_be_repeated(house, alice):
    with house.east.changed(batch_stay="in_progress"):
        made = start(alice, upload(alice, rows(3, "a")))
        house.east.fail(path_regex="/cancel$", times=1, status=500)
        with pytest.raises(openai.InternalServerError):
            alice.batches.cancel(made.id)
        assert alice.batches.cancel(made.id).status == "cancelling"


def test_an_input_of_another_purpose_is_refused(house, alice, upstream):
    file_id = upload(alice, training_rows(10), "fine-tune", target_model_names="a")
    upstream.forget_requests()
    with pytest.raises(openai.BadRequestError) as refused:
        start(alice, file_id)
    assert refused.value.param == "input_file_id"
    batch_file = upload(alice, rows(1, "a"))
    upstream.forget_requests()
    with pytest.raises(openai.BadRequestError) as refused:
        alice.fine_tuning.jobs.create(model="a", training_file=batch_file)
    assert refused.value.param == "training_file"
    assert upstream.requests() == []


WRONG_BATCHES: dict[str, tuple[dict[str, Any], str]] = {
    "no endpoint": ({"endpoint": None}, "endpoint"),
    "another endpoint": ({"endpoint": "/v1/files"}, "endpoint"),
    "another window": ({"completion_window": "48h"}, "completion_window"),
    "no window": ({"completion_window": None}, "completion_window"),
    "no input": ({"input_file_id": None}, "input_file_id"),
    "a number as input": ({"input_file_id": 1}, "input_file_id"),
    "17 pairs": ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
    "a number in metadata": ({"metadata": {"a": 1}}, "metadata"),
    "a long key": ({"metadata": {"k" * 65: ""}}, "metadata"),
    "a long value": ({"metadata": {"k": "v" * 513}}, "metadata"),
    "a list as metadata": ({"metadata": []}, "metadata"),
    "expiry without anchor": ({"output_expires_after": {"seconds": 3600}}, "output_expires_after"),
    "a short expiry": (
        {"output_expires_after": {"anchor": "created_at", "seconds": 3599}},
        "output_expires_after",
    ),
    "a long expiry": (
        {"output_expires_after": {"anchor": "created_at", "seconds": 2_592_001}},
        "output_expires_after",
    ),
}


@pytest.mark.parametrize("wrong", list(WRONG_BATCHES))
def test_a_wrong_request_is_refused_by_its_parameter(house, alice, upstream, wrong):
    changes, param = WRONG_BATCHES[wrong]
    file_id = upload(alice, rows(1, "a"))
    upstream.forget_requests()
    body = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"}
    response = house.api("alice", "POST", "/v1/batches", json={**body, **changes})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"].split(".")[0] == param
    assert upstream.requests() == []


@pytest.mark.parametrize(
    "metadata", [..., None, {}, {f"k{n}": "v" * 512 for n in range(16)}, {"k" * 64: "é\n😀"}]
)
def test_metadata_is_exactly_the_caller_s(house, alice, metadata):
    more = {} if metadata is ... else {"metadata": metadata}
    made = start(alice, upload(alice, rows(1, "a")), **more)
    shown = None if metadata is ... else metadata
    assert made.metadata == shown
    assert ended(alice, made.id).metadata == shown
    sent = house.east.batches()[-1]["sent"]
    assert sent.get("metadata") == shown
    assert set(sent) - {"metadata"} == {"input_file_id", "endpoint", "completion_window"}


def test_the_output_expires_when_the_caller_said(house, alice):
    expiry = {"anchor": "created_at", "seconds": 7200}
    made = start(alice, upload(alice, rows(1, "a")), output_expires_after=expiry)
    assert house.east.batches()[-1]["sent"]["output_expires_after"] == expiry
    output = alice.files.retrieve(ended(alice, made.id).output_file_id)
    known = house.east.batches()[-1]
    [stored] = [f for f in house.east.files() if f["id"] == known["output_file_id"]]
    assert output.expires_at == stored["created_at"] + 7200


# -------------------------------------------------------------------- strangers


@dataclass(frozen=True)
class Belongings:
    """What Alice has, under every id that means it."""

    files: dict[str, str]
    training: dict[str, str]
    batches: dict[str, str]
    jobs: dict[str, str]


@pytest.fixture(scope="module")
def belongings(house: House) -> Belongings:
    alice, east = house.clients["alice"], house.east
    files: dict[str, str] = {}
    training: dict[str, str] = {}
    batches: dict[str, str] = {}
    jobs: dict[str, str] = {}
    for how, routing in UPLOADS.items():
        name = "gpt-4o" if how == "raw" else "a"
        files[how] = upload(alice, rows(2, name), **routing)
        [raw] = raw_ids(house.gateway, files[how]).values()
        files[f"{how}, its copy"] = raw
        if how != "raw":
            files[f"{how}, by hand"] = "file-" + unpadded(f"litellm:{raw};model,a")
        training[how] = upload(alice, training_rows(10), "fine-tune", **routing)
        [raw] = raw_ids(house.gateway, training[how]).values()
        training[f"{how}, its copy"] = raw
        batches[how] = start(alice, files[how]).id
        raw = east.batches()[-1]["id"]
        batches[f"{how}, the upstream's"] = raw
        if how != "raw":
            batches[f"{how}, by hand"] = "batch_" + unpadded(f"litellm:{raw};model,a")
        more = {"extra_headers": PROVIDER} if how == "raw" else {}
        jobs[how] = alice.fine_tuning.jobs.create(
            model=name, training_file=training[how], **more
        ).id
        jobs[f"{how}, the upstream's"] = east.jobs()[-1]["id"]
    for each in batches.values():
        ended(alice, each)
    for each in jobs.values():
        job_ended(alice, each)
    return Belongings(files, training, batches, jobs)


def uses(house: House, who: str, have: Belongings) -> Iterator[tuple[str, requests.Response]]:
    for name, file_id in have.files.items():
        for more in ({}, {"model": "a"}, {"custom_llm_provider": "openai"}):
            body = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"}
            response = house.api(who, "POST", "/v1/batches", json={**body, **more})
            yield f"batch of {name} {more}", response
    for name, file_id in have.training.items():
        for more in ({}, {"custom_llm_provider": "openai"}):
            body = {"model": "a", "training_file": file_id, **more}
            yield f"job of {name}", house.api(who, "POST", "/v1/fine_tuning/jobs", json=body)
    for name, batch_id in have.batches.items():
        yield f"cancel {name}", house.api(who, "POST", f"/v1/batches/{batch_id}/cancel")
    for name, job_id in have.jobs.items():
        for action in ("cancel", "pause", "resume"):
            path = f"/v1/fine_tuning/jobs/{job_id}/{action}"
            yield f"{action} {name}", house.api(who, "POST", path)


def looks(house: House, who: str, have: Belongings) -> Iterator[tuple[str, requests.Response]]:
    for name, batch_id in have.batches.items():
        for query in ("", "?model=a", "?custom_llm_provider=openai"):
            yield f"{name} {query}", house.api(who, "GET", f"/v1/batches/{batch_id}{query}")
    for name, job_id in have.jobs.items():
        for what in ("", "/events", "/checkpoints"):
            yield name + what, house.api(who, "GET", f"/v1/fine_tuning/jobs/{job_id}{what}")


@pytest.mark.parametrize("who", ["bob", "nobody"])
def test_a_stranger_is_refused_every_use_and_no_upstream_is_asked(house, belongings, upstream, who):
    before = inside.rows(house.gateway, "jobs")
    for use in (uses, looks):
        for name, response in use(house, who, belongings):
            assert response.status_code == 403, (name, response.text)
            error = response.json()["error"]
            assert error["type"] == "permission_error", name
            assert "does not have access to the" in error["message"], name
    assert upstream.requests() == []
    assert inside.rows(house.gateway, "jobs") == before


def test_a_stranger_s_validation_file_is_refused(house, belongings, bob, upstream):
    own = upload(bob, training_rows(10), "fine-tune", target_model_names="a")
    upstream.forget_requests()
    for file_id in belongings.training.values():
        with pytest.raises(openai.PermissionDeniedError):
            bob.fine_tuning.jobs.create(model="a", training_file=own, validation_file=file_id)
    assert upstream.requests() == []


def test_the_auditor_may_look_and_nothing_else(house, belongings, upstream):
    for name, response in looks(house, "auditor", belongings):
        assert response.status_code == 200, (name, response.text)
    upstream.forget_requests()
    for name, response in uses(house, "auditor", belongings):
        assert response.status_code == 403, (name, response.text)
    assert upstream.requests() == []


def test_the_owner_and_the_admin_may_look_by_every_id(house, belongings):
    for who in ("alice", "root"):
        for name, response in looks(house, who, belongings):
            assert response.status_code == 200, (who, name, response.text)
            if response.json()["object"] == "batch":
                assert response.json()["status"] == "completed", name


def test_forged_ids_mean_nothing(house, belongings, upstream):
    batch, job, file = (
        each["unified"] for each in (belongings.batches, belongings.jobs, belongings.files)
    )
    uuid = decoded(batch).rpartition(":")[2]
    other = "00000000-0000-4000-8000-000000000000"
    batches = {
        "another uuid": unpadded(decoded(batch).replace(uuid, other)),
        "another deployment": unpadded(decoded(batch).replace("model_id:", "model_id:x")),
        "a job's form": unpadded(decoded(batch).replace("llm_batch_id", "generic_response_id")),
        "padded": batch + "=",
        "the row's own id": uuid,
        "unknown": "batch_abc",
        "unknown, encoded": "batch_" + unpadded("litellm:batch_abc;model,a"),
        "a path": "batch_" + unpadded("litellm:../files;model,a"),
        "encoded twice": "batch_" + unpadded(f"litellm:{batch};model,a"),
        "too long": "batch_" + "a" * 5000,
    }
    for name, forged in batches.items():
        for who in ("alice", "bob"):
            for method, end in (("GET", ""), ("POST", "/cancel")):
                response = house.api(who, method, f"/v1/batches/{forged}{end}")
                assert response.status_code == 404, (name, response.text)
    jobs = {
        "another uuid": unpadded(decoded(job).rpartition(":")[0] + ":" + other),
        "a batch": batch,
        "unknown": "ftjob-abc",
        "a batch's form": unpadded(decoded(job).replace("generic_response_id", "llm_batch_id")),
    }
    for name, forged in jobs.items():
        for end in ("", "/events", "/checkpoints"):
            response = house.api("alice", "GET", f"/v1/fine_tuning/jobs/{forged}{end}")
            assert response.status_code == 404, (name, response.text)
    files = {
        "another uuid": unpadded(decoded(file).replace(decoded(file).split(",")[1][:36], other)),
        "other names": unpadded(decoded(file) + ",b"),
        "unknown": "file-abc",
        "unknown, encoded": "file-" + unpadded("litellm:file-abc;model,a"),
        "encoded twice": "file-" + unpadded(f"litellm:{file};model,a"),
        "a batch": batch,
    }
    for name, forged in files.items():
        body = {"input_file_id": forged, "endpoint": CHAT, "completion_window": "24h"}
        response = house.api("alice", "POST", "/v1/batches", json=body)
        assert response.status_code == 404, (name, response.text)
        response = house.api(
            "alice", "POST", "/v1/fine_tuning/jobs", json={"model": "a", "training_file": forged}
        )
        assert response.status_code == 404, (name, response.text)
    assert upstream.requests() == []


def test_what_is_not_ones_own_may_be_hidden(east, start_gateway, upstream):
    config = configuration(east, {"hide_foreign_objects": True})
    house = settle(start_gateway(config, workers=1), east)
    alice = house.clients["alice"]
    file_id = upload(alice, rows(2, "a"))
    training = upload(alice, training_rows(10), "fine-tune")
    batch_id = ended(alice, start(alice, file_id).id).id
    job_id = alice.fine_tuning.jobs.create(model="a", training_file=training).id
    have = Belongings({"": file_id}, {"": training}, {"": batch_id}, {"": job_id})
    upstream.forget_requests()
    for use in (uses, looks):
        for name, response in use(house, "bob", have):
            assert response.status_code == 404, (name, response.text)
            assert "alice" not in response.text
    assert upstream.requests() == []


# -------------------------------------------------------------------- those that have none


def test_a_provider_without_batches_says_so_at_once(upstream, start_gateway):
    engine, plain = upstream.account("engine", "engine"), upstream.account("plain", batch_delay_s=0)
    llama = model("llama", "local/llama", engine)
    gateway = start_gateway(
        {
            "model_list": [
                llama,
                {"model_name": "documents", "litellm_params": {"model": "local/documents"}},
                {**llama, "model_name": "both"},
                model("both", "openai/gpt-4o", plain),
            ],
            "files_settings": [{"custom_llm_provider": "local"}],
            "general_settings": QUICK,
        },
        workers=1,
    )
    with closing(gateway.client(gateway.new_user()["key"])) as client:
        for routing in (
            {"target_model_names": "llama"},
            {"model": "llama"},
            {"target_model_names": "documents"},
            {"custom_llm_provider": "local"},
        ):
            name = "documents" if "documents" in routing.values() else "llama"
            batch_file = upload(client, rows(2, name), **routing)
            training = upload(client, training_rows(10), "fine-tune", **routing)
            tune = partial(client.fine_tuning.jobs.create, model=name, training_file=training)
            for refused in (partial(start, client, batch_file), tune):
                with pytest.raises(openai.BadRequestError) as error:
                    refused()
                assert error.value.code == "unsupported_operation", error.value.message
        assert upstream.requests() == []
        assert inside.rows(gateway, "jobs") == {"jobs": []}
        # Of two holders the one that can is taken.
        both = upload(client, rows(2, "both"), target_model_names="both")
        for _ in range(6):
            assert ended(client, start(client, both).id).status == "completed"
