"""Batches and fine-tuning at OpenAI and Azure: addresses, bodies, and answers read leniently."""

import json
from typing import Any
from urllib.parse import parse_qs

import pytest
import responses

from app.errors import NotFound, UpstreamAuthFailed, UpstreamError, UpstreamRejected
from app.providers.azure import Azure
from app.providers.openai import OpenAI
from app.providers.openai_jobs import batch_of, job_of, seconds
from app.providers.protocol import BatchRequest
from app.transfers import ExpiresAfter
from tests.builders import make_deployment, make_place

HOST = "https://res.openai.azure.com"
REQUEST = BatchRequest("file-1", "/v1/responses", "24h")
BATCH = {"id": "batch_1", "object": "batch", "status": "validating", "created_at": 1}
JOB = {"id": "ftjob-1", "object": "fine_tuning.job", "status": "queued", "created_at": 1}


def make_openai(**params: Any) -> OpenAI:
    return OpenAI(make_deployment(params={"api_key": "sk-up", **params}), make_place())


def make_azure(base: str = HOST, **params: Any) -> Azure:
    params = {"api_base": base, "api_key": "azure-key", **params}
    return Azure(make_deployment(provider="azure", params=params), make_place())


@pytest.fixture
def mock():
    with responses.RequestsMock() as mock:
        yield mock


@pytest.fixture
def openai():
    return make_openai()


def answer(mock, body: Any, method: str = "GET", path: str = "/batches/batch_1", status=200):
    """Let OpenAI answer the next such request so."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    mock.add(method, "https://api.openai.com/v1" + path, body=raw, status=status)


# Addresses

OPERATIONS: dict[str, Any] = {
    "create batch": (lambda p: p.create_batch(REQUEST), "POST", "/batches"),
    "batch": (lambda p: p.retrieve_batch("batch_1"), "GET", "/batches/batch_1"),
    "cancel batch": (lambda p: p.cancel_batch("batch_1"), "POST", "/batches/batch_1/cancel"),
    "batches": (lambda p: list(p.batches()), "GET", "/batches"),
    "create job": (lambda p: p.create_job({"model": "m"}), "POST", "/fine_tuning/jobs"),
    "job": (lambda p: p.retrieve_job("ftjob-1"), "GET", "/fine_tuning/jobs/ftjob-1"),
    "jobs": (lambda p: list(p.jobs()), "GET", "/fine_tuning/jobs"),
    **{
        action: (
            lambda p, action=action: p.steer_job("ftjob-1", action),
            "POST",
            f"/fine_tuning/jobs/ftjob-1/{action}",
        )
        for action in ("cancel", "pause", "resume")
    },
    **{
        what: (
            lambda p, what=what: p.job_page("ftjob-1", what, None, 20),
            "GET",
            f"/fine_tuning/jobs/ftjob-1/{what}",
        )
        for what in ("events", "checkpoints")
    },
}
PLACES: dict[str, Any] = {
    "openai": (make_openai, "https://api.openai.com/v1", None),
    "engine": (lambda: make_openai(api_base="http://vllm:8000/v1/"), "http://vllm:8000/v1", None),
    "azure": (make_azure, HOST + "/openai", "2024-10-21"),
    "azure preview": (
        lambda: make_azure(HOST + "/", api_version="2025-04-01-preview"),
        HOST + "/openai",
        "2025-04-01-preview",
    ),
    "azure v1": (lambda: make_azure(HOST + "/openai/v1"), HOST + "/openai/v1", None),
    "azure v1 preview": (
        lambda: make_azure(HOST + "/openai/v1/", api_version="preview"),
        HOST + "/openai/v1",
        "preview",
    ),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_method_path_and_version(mock, operation, place):
    call, method, path = OPERATIONS[operation]
    make, base, version = PLACES[place]
    mock.add(method, base + path, json={**BATCH, "data": []})
    call(make())
    sent = mock.calls[0].request
    found, _, query = (sent.url or "").partition("?")
    assert (sent.method, found) == (method, base + path)
    assert parse_qs(query).get("api-version") == ([version] if version else None)


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (make_openai, "/v1/chat/completions"),
        (make_azure, "/chat/completions"),
        (lambda: make_azure(HOST + "/openai/v1"), "/v1/chat/completions"),
    ],
)
def test_how_a_row_says_where_it_goes(make, wanted):
    assert make().row_url("/v1/chat/completions") == wanted


def test_an_id_cannot_leave_its_place_in_the_address(mock, openai):
    mock.add("GET", "https://api.openai.com/v1/batches/a%2Fb%3Fc%23d", json=BATCH)
    openai.retrieve_batch("a/b?c#d")


# Bodies


def test_a_batch_is_asked_for_with_what_the_caller_set_and_nothing_else(mock, openai):
    answer(mock, BATCH, "POST", "/batches")
    openai.create_batch(REQUEST)
    assert json.loads(mock.calls[0].request.body) == {
        "input_file_id": "file-1",
        "endpoint": "/v1/responses",
        "completion_window": "24h",
    }


@pytest.mark.parametrize("metadata", [{}, {"k": "v"}, {"ü": "\U0001f600", "half": "\ud800"}])
def test_metadata_and_expiry_go_out_exactly(mock, openai, metadata):
    answer(mock, BATCH, "POST", "/batches")
    openai.create_batch(
        BatchRequest("file-1", "/v1/x", "24h", metadata, ExpiresAfter("created_at", 3600))
    )
    sent = json.loads(mock.calls[0].request.body)
    assert sent["metadata"] == metadata
    assert sent["output_expires_after"] == {"anchor": "created_at", "seconds": 3600}


@pytest.mark.parametrize(
    ("body", "wanted"),
    [({}, "globalstandard"), ({"trainingType": "developerTier"}, "developerTier")],
)
def test_azure_is_told_a_training_type(mock, body, wanted):
    mock.add("POST", HOST + "/openai/fine_tuning/jobs", json=JOB, status=201)
    make_azure().create_job({"model": "m", **body})
    assert json.loads(mock.calls[0].request.body) == {"model": "m", "trainingType": wanted}


def test_openai_is_told_what_the_caller_set_and_nothing_else(mock, openai):
    body = {"model": "m", "method": {"type": "dpo", "new": [1.5]}, "new_field": {"a": None}}
    answer(mock, JOB, "POST", "/fine_tuning/jobs")
    openai.create_job(body)
    assert json.loads(mock.calls[0].request.body) == body


def test_cancel_has_an_empty_body(mock, openai):
    answer(mock, BATCH, "POST", "/batches/batch_1/cancel")
    openai.cancel_batch("batch_1")
    sent = mock.calls[0].request
    assert not sent.body
    assert sent.headers["Content-Length"] == "0"


def test_a_page_is_asked_for_by_cursor_and_limit(mock, openai):
    answer(mock, {"data": []}, path="/fine_tuning/jobs/j/events")
    openai.job_page("j", "events", "ft&event", 7)
    assert parse_qs(mock.calls[0].request.url.partition("?")[2]) == {
        "limit": ["7"],
        "after": ["ft&event"],
    }


# Failures


def test_starting_is_not_tried_again_after_a_lost_answer(mock):
    deployment = make_deployment(params={"api_key": "k"}, max_retries=3)
    answer(mock, {}, "POST", "/batches", 500)
    with pytest.raises(UpstreamRejected) as refusal:
        OpenAI(deployment, make_place()).create_batch(REQUEST)
    assert not refusal.value.retryable
    assert len(mock.calls) == 1


@pytest.mark.parametrize("status", [429, 503])
def test_what_was_not_begun_for_sure_may_be_tried_again(mock, openai, status):
    answer(mock, {}, "POST", "/fine_tuning/jobs", status)
    with pytest.raises(UpstreamRejected) as refusal:
        openai.create_job({})
    assert refusal.value.retryable


@pytest.mark.parametrize(
    ("status", "error"),
    [(404, NotFound), (401, UpstreamAuthFailed), (409, UpstreamRejected), (302, UpstreamError)],
)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_refusal_is_an_error_of_ours(mock, openai, operation, status, error):
    call, method, path = OPERATIONS[operation]
    answer(mock, {"error": {"message": "no"}}, method, path, status)
    with pytest.raises(error):
        call(openai)


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b"null", b"<html>", b'{"id":null}', b'{"id":""}', b'{"id":[1]}']
)
@pytest.mark.parametrize("operation", ["create batch", "batch", "cancel batch", "create job"])
def test_a_yes_that_names_no_job_is_an_error_and_not_a_no(mock, openai, operation, body):
    call, method, path = OPERATIONS[operation]
    answer(mock, body, method, path)
    with pytest.raises(UpstreamError) as failure:
        call(openai)
    assert not failure.value.retryable
    assert failure.value.status == 502


# Answers


def test_azures_words_for_a_batch(mock, openai):
    answer(
        mock,
        {
            "id": "batch_1",
            "status": "InProgress",
            "endpoint": None,
            "input_file_id": None,
            "completion_window": None,
            "created_at": "2024-05-22T12:00:00.1234567Z",
            "in_progress_at": "2024-05-22T14:00:00+02:00",
            "expires_at": 1716379200.9,
            "request_counts": None,
            "metadata": None,
            "error_file_id": "",
            "unknown": "left out",
        },
    )
    batch: Any = openai.retrieve_batch("batch_1")
    assert batch["status"] == "in_progress"
    assert (batch["endpoint"], batch["input_file_id"], batch["completion_window"]) == (
        "",
        "",
        "24h",
    )
    assert batch["created_at"] == batch["in_progress_at"] == batch["expires_at"] == 1716379200
    assert batch["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
    assert (batch["error_file_id"], batch["output_file_id"], batch["errors"]) == (None, None, None)
    assert "usage" not in batch and "unknown" not in batch


@pytest.mark.parametrize(
    ("told", "status"),
    [
        ("Validating", "validating"),
        ("NotStarted", "validating"),
        ("canceled", "cancelled"),
        ("Canceling", "cancelling"),
        ("COMPLETED", "completed"),
        ("in_progress", "in_progress"),
        ("brand_new", "brand_new"),
        (None, "validating"),
        (7, "7"),
    ],
)
def test_statuses_of_batches(told, status):
    assert batch_of({"id": "b", "status": told})["status"] == status


@pytest.mark.parametrize(
    ("told", "status"),
    [
        ("created", "validating_files"),
        ("pending", "queued"),
        ("Running", "running"),
        ("canceled", "cancelled"),
        ("paused", "paused"),
        ("brand_new", "brand_new"),
        (None, "queued"),
    ],
)
def test_statuses_of_jobs(told, status):
    assert job_of({"id": "j", "status": told})["status"] == status


@pytest.mark.parametrize("counts", [None, [], 5, {}, {"total": None}, {"total": "x", "failed": -1}])
def test_counts_that_are_none(counts):
    found = batch_of({"id": "b", "request_counts": counts})["request_counts"]
    assert found == {"total": 0, "completed": 0, "failed": 0}


def test_what_is_known_of_a_batch_is_kept():
    usage = {"total_tokens": 3}
    errors = {"object": "list", "data": [{"code": "x", "line": 3}]}
    told = {"id": "b", "usage": usage, "model": "m", "errors": errors, "metadata": {"a": "b"}}
    batch: Any = batch_of({**told, "request_counts": {"total": 3, "completed": 2, "failed": 1}})
    assert {key: batch[key] for key in told} == told
    assert batch["request_counts"] == {"total": 3, "completed": 2, "failed": 1}


@pytest.mark.parametrize(
    ("told", "found"),
    [
        (5, 5),
        (5.9, 5),
        (0, 0),
        (-1, None),
        (True, None),
        (None, None),
        ("", None),
        ("soon", None),
        ("1970-01-01T00:00:05", 5),
        ("1970-01-01T00:00:05Z", 5),
        ("0001-01-01T00:00:00", None),
        ("0001-01-01T00:00:00+23:59", None),
        ("9999-12-31T23:59:59-23:59", None),
        (10**30, None),
        (1716379200000, None),
        (float("nan"), None),
        (float("inf"), None),
        ([], None),
        ({}, None),
    ],
)
def test_moments(told, found):
    assert seconds(told) == found


def test_azures_words_for_a_job():
    job = job_of(
        {
            "id": "j",
            "status": "pending",
            "organisation_id": "org",
            "organization_id": None,
            "result_files": None,
            "hyperparameters": None,
            "seed": None,
            "error": None,
            "created_at": "1970-01-01T00:00:05Z",
            "estimated_finish": "1970-01-01T00:00:09Z",
            "method": {"type": "dpo"},
        }
    )
    assert (job["organization_id"], job["result_files"], job["hyperparameters"]) == ("org", [], {})
    assert (job["created_at"], job["estimated_finish"], job["finished_at"]) == (5, 9, None)
    assert (job["seed"], job["error"], job["method"]) == (0, None, {"type": "dpo"})
    assert "organisation_id" not in job


@pytest.mark.parametrize("files", [None, {}, "file-1", 5, [None, 5, ["x"], ""]])
def test_result_files_that_are_none(files):
    assert job_of({"id": "j", "result_files": files})["result_files"] == []


@pytest.mark.parametrize("key", ["data", "value"])
def test_every_page_of_a_list_is_walked(mock, openai, key):
    for items, has_more in ((["b3", "b2"], True), (["b2", "b1"], False)):
        data = [{"id": item, "status": "Completed"} for item in items]
        answer(
            mock, {key: [*data, "nonsense", {"id": None}], "has_more": has_more}, path="/batches"
        )
    assert [batch["id"] for batch in openai.batches()] == ["b3", "b2", "b1"]
    queries = [parse_qs(call.request.url.partition("?")[2]) for call in mock.calls]
    assert queries == [{"limit": ["100"]}, {"limit": ["100"], "after": ["b2"]}]


def test_a_list_without_a_cursor_does_not_go_round_for_ever(mock, openai):
    answer(mock, {"data": [JOB], "has_more": True}, path="/fine_tuning/jobs")
    assert [job["id"] for job in openai.jobs()] == ["ftjob-1"]
    assert len(mock.calls) == 2


@pytest.mark.parametrize("body", [{}, {"data": None}, {"data": 5}, {"data": {}}, {"value": "x"}])
def test_a_list_of_nothing(mock, openai, body):
    answer(mock, body, path="/batches")
    assert list(openai.batches()) == []


def test_a_list_is_read_as_far_as_it_is_wanted(mock, openai):
    answer(mock, {"data": [{"id": "b2"}, {"id": "b1"}], "has_more": True}, path="/batches")
    assert next(openai.batches())["id"] == "b2"
    assert len(mock.calls) == 1


def test_events_have_openais_words(mock, openai):
    event = {"id": "e", "level": "warning", "created_at": "1970-01-01T00:00:05Z", "data": {"x": 1}}
    answer(mock, {"value": [event, "nonsense"]}, path="/fine_tuning/jobs/j/events")
    assert openai.job_page("j", "events", None, 20) == {
        "object": "list",
        "data": [{**event, "level": "warn", "created_at": 5}],
        "has_more": False,
    }


def test_a_page_of_checkpoints_keeps_its_ends(mock, openai):
    point = {"id": "c", "metrics": {"step": 1}, "fine_tuning_job_id": "j"}
    page = {"object": "list", "data": [point], "has_more": True, "first_id": "c", "last_id": "c"}
    answer(mock, page, path="/fine_tuning/jobs/j/checkpoints")
    assert openai.job_page("j", "checkpoints", None, 10) == page


def test_what_no_database_takes_is_left_out_of_an_answer(mock, openai):
    raw = (
        b'{"id":"j","half":"a\\ud800b","nul":"a\\u0000b","k\\udc00":1,"nan":NaN,"big":1e999,'
        b'"list":["\\ud83d\\ude00",Infinity],"raw":"\xed\xa0\x80"}'
    )
    answer(mock, raw, path="/fine_tuning/jobs/j")
    job = openai.retrieve_job("j")
    assert (job["half"], job["nul"], job["k?"]) == ("a?b", "ab", 1)
    assert (job["nan"], job["big"], job["list"]) == (None, None, ["\U0001f600", None])
    json.dumps(job, ensure_ascii=False, allow_nan=False).encode()
