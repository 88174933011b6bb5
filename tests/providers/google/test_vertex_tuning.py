"""Vertex AI's tuning jobs as OpenAI's: rows, hyperparameters, states, events and checkpoints."""

import json

import pytest
import responses

from app.errors import InvalidRequest, NotFound, NotSupported, UpstreamError
from app.providers.google.vertex_tuning import VertexTuning
from tests.providers.google.test_tuning_rows import make_row
from tests.providers.google.vertex_account import BUCKET, ROOT, VertexAccount

KEY = "0123456789abcdef0123456789abcdef"
OTHER = "f" * 32
JOBS = "tuningJobs"
ENDED = {"startTime": "2026-11-20T10:01:00Z", "endTime": "2026-11-20T11:00:00Z"}
STARTED_AT, ENDED_AT = 1795168860, 1795172400
TUNED = {
    "model": "projects/77/locations/us-central1/models/55@1",
    "endpoint": "projects/77/locations/us-central1/endpoints/44",
}
BODY = {"model": "gemini-2.5-flash", "training_file": KEY}


@pytest.fixture
def account():
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        made = VertexAccount(mock)
        for key in (KEY, OTHER):
            made.bucket.objects[f"manifold/{key}"] = make_row() * 3
        yield made


@pytest.fixture
def bucket(account):
    return account.bucket


@pytest.fixture
def tuning(account):
    return VertexTuning(account.upstream(), ROOT, lambda: account.bucket)


def test_a_job_is_asked_for(account, bucket, tuning):
    """Source: Google Cloud, REST reference v1, tuningJobs.create; read 2026-11."""
    job = tuning.create_job({**BODY, "validation_file": OTHER, "suffix": "mine", "metadata": {}})
    assert account.posted == [
        {
            "baseModel": "gemini-2.5-flash",
            "supervisedTuningSpec": {
                "trainingDatasetUri": f"gs://{BUCKET}/manifold/{KEY}.tuning",
                "validationDatasetUri": f"gs://{BUCKET}/manifold/{OTHER}.tuning",
            },
            "tunedModelDisplayName": "mine",
        }
    ]
    rows = [json.loads(line) for line in bucket.objects[f"manifold/{KEY}.tuning"].splitlines()]
    assert [row["contents"][-1]["role"] for row in rows] == ["model"] * 3
    assert (job["id"], job["object"], job["status"]) == ("900", "fine_tuning.job", "queued")
    assert (job["training_file"], job["validation_file"]) == (KEY, OTHER)
    assert (job["model"], job["suffix"]) == ("gemini-2.5-flash", "mine")
    assert (job["fine_tuned_model"], job["finished_at"], job["error"]) == (None, None, None)
    assert (job["result_files"], job["seed"], job["created_at"]) == ([], 0, 1795168800)
    assert tuning.retrieve_job("900") == job


def test_a_job_without_a_suffix_has_none(account, tuning):
    assert tuning.create_job(BODY)["suffix"] is None
    assert account.posted[0]["tunedModelDisplayName"].startswith("manifold-")


def test_the_rows_are_written_once(bucket, tuning):
    tuning.create_job(BODY)
    bucket.was_read.clear()
    tuning.create_job(BODY)
    assert bucket.was_read == []


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"n_epochs": 3}, {"epochCount": 3}),
        ({"learning_rate_multiplier": 0.5}, {"learningRateMultiplier": 0.5}),
        ({"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": None}, None),
        ({"adapter_size": "ADAPTER_SIZE_FOUR"}, {"adapterSize": "ADAPTER_SIZE_FOUR"}),
        ({"adapterSize": "ADAPTER_SIZE_ONE"}, {"adapterSize": "ADAPTER_SIZE_ONE"}),
        ({"brand_new_key": [1]}, {"brandNewKey": [1]}),
        ({"n_epochs": -1}, {"epochCount": -1}),
        ({}, None),
    ],
)
@pytest.mark.parametrize("place", ["method", "hyperparameters"])
def test_hyperparameters(account, tuning, given, sent, place):
    if place == "method":
        method = {"type": "supervised", "supervised": {"hyperparameters": given}}
        tuning.create_job({**BODY, "method": method})
    else:
        tuning.create_job({**BODY, "hyperparameters": given})
    assert account.posted[0]["supervisedTuningSpec"].get("hyperParameters") == sent


def test_hyperparameters_are_told_in_openais_words(account, tuning):
    tuning.create_job(BODY)
    account.jobs[JOBS]["900"]["supervisedTuningSpec"]["hyperParameters"] = {
        "epochCount": "4",
        "learningRateMultiplier": 2.0,
        "adapterSize": "ADAPTER_SIZE_FOUR",
    }
    job = tuning.retrieve_job("900")
    assert job["hyperparameters"] == {
        "n_epochs": 4,
        "learning_rate_multiplier": 2.0,
        "batch_size": "auto",
        "adapterSize": "ADAPTER_SIZE_FOUR",
    }
    assert job["method"]["supervised"]["hyperparameters"] == job["hyperparameters"]


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"method": {"type": "dpo", "dpo": {}}}, "method"),
        ({"method": {"type": "reinforcement"}}, "method"),
        ({"integrations": [{"type": "wandb"}]}, "integrations"),
        ({"hyperparameters": [1]}, "hyperparameters"),
        ({"new_field": 1}, "new_field"),
    ],
)
def test_what_google_does_not_have_starts_nothing(account, bucket, tuning, more, param):
    with pytest.raises(InvalidRequest) as refused:
        tuning.create_job({**BODY, **more})
    assert refused.value.param == param
    assert account.posted == []
    assert f"manifold/{KEY}.tuning" not in bucket.objects


@pytest.mark.parametrize("param", ["training_file", "validation_file"])
def test_a_row_that_cannot_be_said_names_file_and_line(account, bucket, tuning, param):
    key = "e" * 32
    bucket.objects[f"manifold/{key}"] = make_row() + b'{"prompt": "a", "completion": "b"}\n'
    with pytest.raises(InvalidRequest) as refused:
        tuning.create_job({**BODY, param: key})
    assert refused.value.param == param
    where = param.replace("_", " ")
    assert refused.value.message.startswith(f"line 2 of the {where}: messages is missing")
    assert account.posted == []


@pytest.mark.parametrize("param", ["training_file", "validation_file"])
@pytest.mark.parametrize("file_id", ["d" * 32, "file-1", "gs://other/x"])
def test_a_file_that_is_not_there_starts_nothing(account, tuning, param, file_id):
    with pytest.raises(NotFound) as refused:
        tuning.create_job({**BODY, param: file_id})
    assert refused.value.param == param
    assert account.posted == []


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("QUEUED", "queued"),
        ("PENDING", "queued"),
        ("RUNNING", "running"),
        ("CANCELLING", "running"),
        ("PAUSED", "paused"),
        ("SUCCEEDED", "succeeded"),
        ("FAILED", "failed"),
        ("EXPIRED", "failed"),
        ("CANCELLED", "cancelled"),
    ],
)
def test_states(account, tuning, state, status):
    """Source: Google Cloud, REST reference v1, JobState; read 2026-11."""
    tuning.create_job(BODY)
    account.set(JOBS, "900", state, tunedModel=TUNED, **ENDED)
    job = tuning.retrieve_job("900")
    assert job["status"] == status
    is_over = status in ("succeeded", "failed", "cancelled")
    assert job["finished_at"] == (ENDED_AT if is_over else None)
    assert job["fine_tuned_model"] == ("44" if status == "succeeded" else None)


def test_a_job_that_failed_says_why(account, tuning):
    tuning.create_job(BODY)
    error = {"code": 9, "message": "too few rows"}
    account.set(JOBS, "900", "FAILED", error=error, **ENDED)
    assert tuning.retrieve_job("900")["error"] == {
        "code": "failed_precondition",
        "message": "too few rows",
        "param": None,
    }


def test_what_it_has_cost(account, tuning):
    tuning.create_job(BODY)
    stats = {"supervisedTuningDataStats": {"totalBillableTokenCount": "1234"}}
    account.set(JOBS, "900", "RUNNING", tuningDataStats=stats)
    assert tuning.retrieve_job("900")["trained_tokens"] == 1234


@pytest.mark.parametrize("job_id", ["901", "ftjob-1", "", "..", "900:cancel", "1/2"])
def test_an_unknown_job_is_not_found(account, tuning, job_id):
    tuning.create_job(BODY)
    for call in (
        tuning.retrieve_job,
        lambda number: tuning.steer_job(number, "cancel"),
        lambda number: tuning.job_page(number, "events", None, 20),
    ):
        with pytest.raises(NotFound) as refused:
            call(job_id)
        assert "projects/77" not in refused.value.message
    assert account.cancelled == []


def test_cancel(account, tuning):
    tuning.create_job(BODY)
    tuning.steer_job("900", "cancel")
    assert account.cancelled == ["900"]
    for state, status in (("CANCELLING", "running"), ("CANCELLED", "cancelled")):
        account.set(JOBS, "900", state, **ENDED)
        assert tuning.steer_job("900", "cancel")["status"] == status
    account.set(JOBS, "900", "PAUSED")
    with pytest.raises(UpstreamError):
        tuning.steer_job("900", "cancel")


@pytest.mark.parametrize("action", ["pause", "resume"])
def test_no_other_way_to_steer(account, tuning, action):
    tuning.create_job(BODY)
    with pytest.raises(NotSupported, match=action):
        tuning.steer_job("900", action)


def test_the_list_has_the_gateways_jobs_newest_first(account, tuning):
    assert list(tuning.jobs()) == []
    made = [tuning.create_job(BODY)["id"] for _ in range(5)]
    spec = {"trainingDatasetUri": "gs://somebody/else.jsonl"}
    name = "projects/77/locations/l/tuningJobs/800"
    account.jobs[JOBS]["800"] = {"name": name, "supervisedTuningSpec": spec}
    account.jobs[JOBS]["801"] = {"preferenceOptimizationSpec": {}}
    assert [job["id"] for job in tuning.jobs()] == made[::-1]


def test_events_are_told_by_the_jobs_times(account, tuning):
    tuning.create_job(BODY)
    first = tuning.job_page("900", "events", None, 20)
    assert [event["message"] for event in first["data"]] == ["The job was created"]
    error = {"code": 9, "message": "too few rows"}
    account.set(JOBS, "900", "FAILED", error=error, **ENDED)
    page = tuning.job_page("900", "events", None, 2)
    assert (page["object"], page["has_more"]) == ("list", True)
    assert [event["created_at"] for event in page["data"]] == [ENDED_AT, STARTED_AT]
    assert [event["level"] for event in page["data"]] == ["error", "info"]
    assert "too few rows" in page["data"][0]["message"]
    rest = tuning.job_page("900", "events", page["data"][-1]["id"], 2)
    assert (rest["data"], rest["has_more"]) == (first["data"], False)
    with pytest.raises(InvalidRequest) as refused:
        tuning.job_page("900", "events", "ftevent-x", 2)
    assert refused.value.param == "after"


def test_checkpoints(account, tuning):
    """Source: Google Cloud, REST reference v1, TunedModelCheckpoint; read 2026-11."""
    tuning.create_job(BODY)
    assert tuning.job_page("900", "checkpoints", None, 10)["data"] == []
    points = [
        {
            "checkpointId": str(number),
            "epoch": str(number),
            "step": str(number * 10),
            "endpoint": f"projects/77/locations/l/endpoints/{number}",
        }
        for number in (1, 2)
    ]
    account.set(JOBS, "900", "SUCCEEDED", tunedModel={**TUNED, "checkpoints": points}, **ENDED)
    newest, oldest = tuning.job_page("900", "checkpoints", None, 10)["data"]
    assert (newest["step_number"], oldest["step_number"]) == (20, 10)
    assert newest["fine_tuned_model_checkpoint"] == "2"
    assert newest["fine_tuning_job_id"] == "900"
    assert newest["metrics"]["step"] == 20
