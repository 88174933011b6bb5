"""`Idempotency-Key` on every POST that creates, and the openai client's own repeated uploads."""

from typing import Any

import pytest

from app.errors import UpstreamError
from tests.api.conftest import Gateway, Person, error_of

ROW = b'{"custom_id":"1","method":"POST","url":"/v1/chat/completions","body":{"model":"a"}}\n'
AGAIN = "Idempotent-Replayed"


def key(name: str = "key-1") -> dict[str, str]:
    return {"Idempotency-Key": name}


def batch_of(person: Person) -> dict[str, Any]:
    file_id = person.upload(ROW, purpose="batch", target_model_names="a", name="rows.jsonl")
    return {
        "input_file_id": file_id,
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }


def training_of(person: Person) -> dict[str, Any]:
    file_id = person.upload(b'{"messages": []}\n', purpose="fine-tune", target_model_names="a")
    return {"model": "a", "training_file": file_id}


def announced(_person: Person) -> dict[str, Any]:
    return {
        "filename": "a.txt",
        "purpose": "user_data",
        "bytes": 1,
        "mime_type": "text/plain",
        "target_model_names": "a",
    }


CREATING = {
    "/v1/batches": batch_of,
    "/v1/fine_tuning/jobs": training_of,
    "/v1/uploads": announced,
    "/key/generate": lambda _: {},
    "/user/new": lambda _: {},
}
ADMINS = ("/user/new",)


@pytest.mark.parametrize("path", CREATING)
def test_what_is_sent_twice_is_made_once(gateway: Gateway, alice, root, path):
    person = root if path in ADMINS else alice
    body = CREATING[path](person)
    first = person.post(path, json=body, headers=key())
    assert (first.status_code, AGAIN in first.headers) == (200, False)
    calls = gateway.calls()
    again = person.post(path, json=body, headers=key())
    assert (again.status_code, again.headers[AGAIN]) == (200, "true")
    assert again.get_json() == first.get_json()
    assert gateway.calls() == calls
    other = person.post(path, json=body, headers=key("key-2"))
    assert other.status_code == 200 and other.get_json() != first.get_json()
    error_of(
        person.post(path, json={**body, "metadata": {"a": "b"}}, headers=key()),
        422,
        code="idempotency_key_reused",
    )


def test_a_new_secret_is_shown_again_and_works(alice, root, gateway):
    made = alice.post("/key/generate", json={}, headers=key()).get_json()
    again = alice.post("/key/generate", json={}, headers=key()).get_json()
    assert made["key"] == again["key"]
    assert Person(gateway.app, again["key"]).get("/v1/files").status_code == 200
    renewal = {"key": made["token"]}
    renewed = alice.post("/key/regenerate", json=renewal, headers=key("r")).get_json()
    assert alice.post("/key/regenerate", json=renewal, headers=key("r")).get_json() == renewed
    assert Person(gateway.app, renewed["key"]).get("/v1/files").status_code == 200


def test_an_upload_is_stored_once(gateway, alice):
    first = alice.send(b"content", target_model_names="a,b", headers=key())
    calls = gateway.calls()
    again = alice.send(b"content", target_model_names="a,b", headers=key())
    assert again.get_json() == first.get_json() and again.headers[AGAIN] == "true"
    assert gateway.calls() == calls
    for changes in (
        {"content": b"contents"},
        {"name": "b.txt"},
        {"type": "text/html"},
        {"target_model_names": "a"},
        {"purpose": "assistants"},
    ):
        given: dict[str, Any] = {"content": b"content", "target_model_names": "a,b", **changes}
        response = alice.send(given.pop("content"), headers=key(), **given)
        error_of(response, 422, code="idempotency_key_reused")
    assert gateway.calls() == calls


def test_the_key_is_the_caller_s_own(alice, bob):
    first = alice.upload(target_model_names="a", headers=key())
    assert bob.upload(target_model_names="a", headers=key()) != first


def test_after_a_failure_it_is_tried_again(gateway, alice):
    gateway.fakes["a-1"].fail_next(UpstreamError("no answer", retryable=True), method="upload")
    error_of(alice.send(target_model_names="a", headers=key()), 502)
    made = alice.upload(target_model_names="a", headers=key())
    assert alice.upload(target_model_names="a", headers=key()) == made
    assert len(gateway.fakes["a-1"].stored) == 1


def test_after_a_mistake_the_key_is_free(alice):
    error_of(alice.send(target_model_names="nobody", headers=key()), 400, "model")
    assert alice.send(target_model_names="a", headers=key()).status_code == 200


def test_while_the_answer_of_a_batch_is_lost_it_is_not_made_again(gateway, alice):
    body = batch_of(alice)
    fake = gateway.fakes["a-1"]
    fake.fail_next(UpstreamError("no answer"), method="create_batch", after_doing=True)
    error_of(alice.post("/v1/batches", json=body, headers=key()), 502)
    unknown = alice.post("/v1/batches", json=body, headers=key())
    error_of(unknown, 409, code="idempotency_in_progress")
    assert len(fake.called("create_batch")) == 1


@pytest.mark.parametrize("value", ["", "x" * 256, "tab\tin it"])
def test_a_key_that_is_none_is_refused(alice, value):
    response = alice.send(target_model_names="a", headers=key(value))
    error_of(response, 400, "Idempotency-Key")


def test_the_client_s_own_repetition_gives_the_first_file(gateway, alice):
    repeated = {"x-stainless-retry-count": "1"}
    first = alice.upload(target_model_names="a,b", headers={"x-stainless-retry-count": "0"})
    calls = gateway.calls()
    assert alice.upload(target_model_names="a,b", headers=repeated) == first
    assert gateway.calls() == calls
    # One that its sender means is another file.
    assert alice.upload(target_model_names="a,b") != first
    assert alice.upload(b"other", target_model_names="a,b", headers=repeated) != first
