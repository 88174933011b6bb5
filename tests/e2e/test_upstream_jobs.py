"""The fake upstream's batches and fine-tuning jobs, asked by the real clients."""

import json
import re
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import openai
import pytest
import requests

from tests.e2e.gateway import API_VERSION, Account, Upstream, wait_until
from tests.e2e.test_upstream import azure_client, openai_client
from tests.e2e.upstream_jobs import by_custom_id, custom_ids, rows, training_rows

CHAT = "/v1/chat/completions"
SHORT_CHAT = "/chat/completions"
TRAINING = {"trainingType": "globalstandard"}


@pytest.fixture
def alpha(upstream: Upstream) -> Account:
    return upstream.account("alpha", models=["gpt-4o"], batch_polls=1, job_polls=1)


@pytest.fixture
def client(alpha: Account) -> Iterator[Any]:
    with closing(openai_client(alpha)) as client:
        yield client


@pytest.fixture
def blue(upstream: Upstream) -> Account:
    return upstream.account("blue", "azure", models=["dep"], batch_polls=1, job_polls=1)


@pytest.fixture
def azure(blue: Account) -> Iterator[Any]:
    with closing(azure_client(blue)) as client:
        yield client


def start(client: Any, content: bytes, endpoint: str = CHAT, **more: Any) -> Any:
    made = client.files.create(file=("in.jsonl", content), purpose="batch")
    return client.batches.create(
        **{"input_file_id": made.id, "endpoint": endpoint, "completion_window": "24h", **more}
    )


def train(client: Any, content: bytes | None = None, **more: Any) -> Any:
    content = training_rows(10) if content is None else content
    made = client.files.create(file=("train.jsonl", content), purpose="fine-tune")
    return client.fine_tuning.jobs.create(**{"model": "gpt-4o", "training_file": made.id, **more})


def lines_of(client: Any, file_id: str) -> dict[str, dict[str, Any]]:
    return by_custom_id(client.files.content(file_id).read())


# -------------------------------------------------------------------- batches


def test_a_batch_is_really_executed(alpha, client):
    content = rows(6, "gpt-4o", fail={2, 5})
    made = start(
        client,
        content,
        metadata={"k": "v"},
        output_expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert re.fullmatch("batch_[0-9a-f]+", made.id)
    assert (made.status, made.object, made.endpoint) == ("validating", "batch", CHAT)
    assert (made.metadata, made.output_file_id, made.errors) == ({"k": "v"}, None, None)
    assert made.expires_at == made.created_at + 24 * 3600

    done = client.batches.retrieve(made.id)
    assert (done.status, done.model) == ("completed", "gpt-4o")
    counts = done.request_counts
    assert (counts.total, counts.completed, counts.failed) == (6, 4, 2)
    assert done.created_at <= done.in_progress_at <= done.finalizing_at <= done.completed_at
    assert (done.failed_at, done.cancelled_at) == (None, None)
    assert 0 < done.usage.input_tokens < done.usage.total_tokens

    output = client.files.retrieve(done.output_file_id)
    assert (output.purpose, output.filename) == ("batch_output", f"{made.id}_output.jsonl")
    assert output.expires_at == output.created_at + 3600
    answers = lines_of(client, done.output_file_id)
    assert set(answers) == {f"row-{n}" for n in (1, 3, 4, 6)}
    assert list(answers) != sorted(answers)
    row = answers["row-3"]
    assert (row["error"], row["response"]["status_code"]) == (None, 200)
    body = row["response"]["body"]
    assert (body["object"], body["model"]) == ("chat.completion", "gpt-4o")
    echo = json.loads(body["choices"][0]["message"]["content"])
    assert (echo["account"], echo["model"], echo["custom_id"]) == ("alpha", "gpt-4o", "row-3")

    failed = lines_of(client, done.error_file_id)
    assert set(failed) == {"row-2", "row-5"}
    assert failed["row-2"]["response"]["status_code"] == 400
    assert failed["row-2"]["response"]["body"]["error"]["message"] == "told to fail"
    assert failed["row-2"]["error"] is None

    [seen] = alpha.batches()
    assert (seen["account"], seen["status"], seen["polls"]) == ("alpha", "completed", 1)
    assert seen["sent"]["metadata"] == {"k": "v"}


def test_the_rows_are_odd_but_good():
    content = rows(8, "m", fail=[3], newline="\r\n", last_newline=False)
    lines = content.split(b"\r\n")
    parsed = [json.loads(line) for line in lines]
    assert [row["custom_id"] for row in parsed] == custom_ids(8)
    assert {row["body"]["model"] for row in parsed} == {"m"}
    assert len({tuple(row) for row in parsed}) == 4
    assert len({tuple(row["body"]) for row in parsed}) > 4
    assert parsed[0]["body"]["seed"] > 2**80
    assert [n for n, row in enumerate(parsed, 1) if "fail_me" in row["body"]] == [3]
    assert rb"\u00e9" in lines[0]
    assert "é".encode() in lines[0]
    assert rb'"\u0072ow-4"' in lines[3]
    assert rows(2, "m", replace={2: "x"}).splitlines()[1] == b"x"


@pytest.mark.parametrize("path", ["responses", "embeddings", "completions", "moderations"])
def test_every_endpoint_has_answers(client, path):
    made = start(client, rows(2, "gpt-4o", url=f"/v1/{path}"), f"/v1/{path}")
    done = client.batches.retrieve(made.id)
    assert (done.status, done.error_file_id) == ("completed", None)
    answers = lines_of(client, done.output_file_id)
    assert {a["response"]["body"]["model"] for a in answers.values()} == {"gpt-4o"}


def test_time_alone_finishes_a_batch(alpha, client):
    with alpha.changed(batch_polls=None, batch_delay_s=0.3):
        made = start(client, rows(3, "gpt-4o"))
        assert client.batches.retrieve(made.id).status == "validating"
        # The output is there before anybody asks for the batch.
        wait_until(lambda: len(client.files.list(purpose="batch_output").data) == 1)
        assert client.batches.retrieve(made.id).status == "completed"


def test_states_come_by_retrieves(alpha, client):
    with alpha.changed(batch_polls=4):
        made = start(client, rows(4, "gpt-4o"))
        assert [b.status for b in client.batches.list()] == ["validating"]
        seen = [client.batches.retrieve(made.id) for _ in range(4)]
    assert [b.status for b in seen] == ["in_progress", "in_progress", "finalizing", "completed"]
    assert [b.request_counts.completed for b in seen] == [1, 2, 4, 4]
    assert [b.output_file_id is None for b in seen] == [True, True, True, False]


def test_rows_are_checked_and_the_batch_fails(client):
    good = json.loads(rows(1, "gpt-4o"))
    bad: list[tuple[str, str, int | None]] = [
        ("", "empty_file", None),
        ("{", "invalid_json_line", 2),
        ("[]", "invalid_json_line", 2),
        ('{"a": NaN}', "invalid_json_line", 2),
        (json.dumps({**good, "custom_id": "row-1"}), "duplicate_custom_id", 2),
        (json.dumps({**good, "custom_id": None}), "missing_required_parameter", 2),
        (json.dumps({**good, "custom_id": "n", "method": "GET"}), "invalid_method", 2),
        (json.dumps({**good, "custom_id": "n", "url": SHORT_CHAT}), "url_mismatch", 2),
        (json.dumps({**good, "custom_id": "n", "body": {"model": "x"}}), "model_not_found", 2),
    ]
    for text, code, line in bad:
        content = rows(3, "gpt-4o", replace={2: text}) if text else b"\n"
        done = client.batches.retrieve(start(client, content).id)
        assert (done.status, done.output_file_id, done.error_file_id) == ("failed", None, None)
        assert [(e.code, e.line) for e in done.errors.data] == [(code, line)]
        assert done.failed_at
        assert (done.request_counts.total, done.in_progress_at) == (0, None)


def test_a_batch_has_one_model_and_may_have_a_mark(alpha, client):
    with alpha.changed(models=["a", "b"]):
        mixed = start(client, rows(1, "a") + rows(1, "b", first=2))
        [error] = client.batches.retrieve(mixed.id).errors.data
        assert (error.code, error.line) == ("mismatched_model", 2)
        marked = start(client, b"\xef\xbb\xbf" + rows(2, "a", newline="\r\n") + b"\n\n")
        assert client.batches.retrieve(marked.id).request_counts.completed == 2


def test_when_all_rows_fail_there_is_no_output(client):
    done = client.batches.retrieve(start(client, rows(2, "gpt-4o", fail=(1, 2))).id)
    assert (done.status, done.output_file_id) == ("completed", None)
    assert set(lines_of(client, done.error_file_id)) == {"row-1", "row-2"}


def test_what_the_create_call_refuses(upstream, client):
    other = upstream.account("beta")
    with closing(openai_client(other)) as stranger:
        theirs = stranger.files.create(file=("a.jsonl", b"x"), purpose="batch").id
    wrong = client.files.create(file=("a.jsonl", b"x"), purpose="user_data").id
    for param, more in {
        "input_file_id": {"input_file_id": theirs},
        "endpoint": {"endpoint": SHORT_CHAT},
        "completion_window": {"completion_window": "1h"},
        "metadata": {"metadata": {str(n): "x" for n in range(17)}},
        "metadata.k": {"metadata": {"k": 1}},
        "output_expires_after.seconds": {
            "output_expires_after": {"anchor": "created_at", "seconds": 60}
        },
        "model": {"extra_body": {"model": "gpt-4o"}},
    }.items():
        with pytest.raises(openai.BadRequestError) as error:
            start(client, rows(1, "gpt-4o"), **more)
        assert error.value.param == param
    with pytest.raises(openai.BadRequestError, match="Invalid purpose 'user_data'"):
        start(client, b"", input_file_id=wrong)
    assert list(client.batches.list()) == []


def test_a_cancelled_batch_keeps_what_it_had(alpha, client):
    with alpha.changed(batch_stay="in_progress"):
        made = start(client, rows(4, "gpt-4o"))
        running = client.batches.retrieve(made.id)
        assert (running.status, running.request_counts.completed) == ("in_progress", 3)
        assert client.batches.cancel(made.id).status == "cancelling"
        assert client.batches.cancel(made.id).status == "cancelling"
        done = client.batches.retrieve(made.id)
    assert (done.status, done.request_counts.completed) == ("cancelled", 3)
    assert set(lines_of(client, done.output_file_id)) == set(custom_ids(3))
    [undone] = lines_of(client, done.error_file_id).values()
    assert (undone["response"], undone["error"]["code"]) == (None, "batch_cancelled")
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(made.id)

    early = start(client, rows(4, "gpt-4o"))
    assert client.batches.cancel(early.id).status == "cancelling"
    done = client.batches.retrieve(early.id)
    assert (done.status, done.output_file_id, done.error_file_id) == ("cancelled", None, None)


def test_a_batch_can_be_told_to_expire_or_to_fail(alpha, client):
    with alpha.changed(batch_end="expired"):
        done = client.batches.retrieve(start(client, rows(3, "gpt-4o")).id)
    assert (done.status, done.request_counts.completed) == ("expired", 2)
    [undone] = lines_of(client, done.error_file_id).values()
    assert undone["error"]["code"] == "batch_expired"
    with alpha.changed(batch_end="failed"):
        done = client.batches.retrieve(start(client, rows(3, "gpt-4o")).id)
    assert (done.status, done.errors.data[0].code) == ("failed", "token_limit_exceeded")


def test_batches_are_listed_and_belong_to_their_account(upstream, alpha, client):
    ids = [start(client, rows(1, "gpt-4o")).id for _ in range(5)]
    page = client.batches.list(limit=2)
    assert (page.has_more, [b.id for b in page.data]) == (True, ids[:2:-1])
    assert [b.id for b in client.batches.list(limit=2)] == ids[::-1]
    with pytest.raises(openai.BadRequestError):
        client.batches.list(limit=101)
    with closing(openai_client(upstream.account("beta"))) as other:
        assert list(other.batches.list()) == []
        for call in (other.batches.retrieve, other.batches.cancel):
            with pytest.raises(openai.NotFoundError, match=f"id '{ids[0]}'"):
                call(ids[0])
    assert {b["polls"] for b in alpha.batches()} == {0}
    upstream.account("alpha")
    assert upstream.batches("alpha") == []


def test_a_batch_can_lose_its_answer(upstream, alpha, client):
    alpha.fail(path_regex="/batches$", method="POST", handle=True, status=500, times=1)
    with pytest.raises(openai.InternalServerError):
        start(client, rows(1, "gpt-4o"))
    assert len(alpha.batches()) == 1
    alpha.fail(path_regex="/batches$", method="POST", status=500, times=1)
    with pytest.raises(openai.InternalServerError):
        start(client, rows(1, "gpt-4o"))
    assert len(alpha.batches()) == 1
    assert not upstream.unexpected()


def test_rows_may_name_files_of_the_account(client):
    told = client.files.create(file=("a.pdf", b"x"), purpose="user_data").id
    lines = []
    for n, file_id in enumerate([told, "file-none"]):
        content = [{"type": "file", "file": {"file_id": file_id}}]
        body = {"model": "gpt-4o", "messages": [{"role": "user", "content": content}]}
        row = {"custom_id": str(n), "method": "POST", "url": CHAT, "body": body}
        lines.append(json.dumps(row).encode())
    done = client.batches.retrieve(start(client, b"\n".join(lines)).id)
    assert set(lines_of(client, done.output_file_id)) == {"0"}
    assert set(lines_of(client, done.error_file_id)) == {"1"}


def test_a_large_batch_does_not_stop_the_others(alpha, client):
    with alpha.changed(batch_polls=None, batch_delay_s=0):
        made = start(client, rows(3000, "gpt-4o"))
        client.models.list()
        wait_until(lambda: alpha.batches()[0]["status"] == "completed", timeout=20)
    done = client.batches.retrieve(made.id)
    assert done.request_counts.completed == 3000
    assert set(lines_of(client, done.output_file_id)) == set(custom_ids(3000))


# -------------------------------------------------------------------- Azure's batches


def test_azure_spells_batches_its_own_way(upstream, blue, azure):
    with blue.changed(batch_polls=4):
        made = start(azure, rows(2, "dep", url=SHORT_CHAT), SHORT_CHAT)
        statuses = [made.status] + [azure.batches.retrieve(made.id).status for _ in range(4)]
    assert statuses == ["Validating", "In_progress", "In_progress", "Finalizing", "Completed"]
    done = azure.batches.retrieve(made.id)
    echo = lines_of(azure, done.output_file_id)["row-1"]["response"]["body"]["choices"][0]
    assert json.loads(echo["message"]["content"])["deployment"] == "dep"
    assert azure.files.content(done.error_file_id).read() == b""
    with pytest.raises(openai.BadRequestError):
        azure.batches.cancel(made.id)
    with blue.changed(cancel_refused_status=409), pytest.raises(openai.ConflictError):
        azure.batches.cancel(made.id)
    assert azure.batches.list(limit=1).has_more is False
    with blue.changed(capitalised=False, iso_dates=True, sparse=True, list_as_value=True):
        [shown] = azure.batches.with_raw_response.list().http_response.json()["value"]
    assert (shown["status"], shown["endpoint"], shown["request_counts"]) == (
        "completed",
        None,
        None,
    )
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+\+00:00", shown["completed_at"])
    assert "failed_at" not in shown
    [seen] = blue.batches()
    assert (seen["status"], seen["endpoint"]) == ("completed", SHORT_CHAT)
    assert not upstream.unexpected()


def test_azure_v1_has_openais_urls_and_the_same_batches(upstream, blue, azure):
    v1: Any = openai.OpenAI(base_url=f"{upstream.url}/openai/v1", api_key=blue.key, max_retries=0)
    with closing(v1):
        made = start(v1, rows(1, "dep"))
        assert azure.batches.retrieve(made.id).status == "Completed"
        wrong = start(v1, rows(1, "dep", url=SHORT_CHAT))
        [error] = v1.batches.retrieve(wrong.id).errors.data
    assert error.code == "url_mismatch"
    with pytest.raises(openai.BadRequestError):
        start(azure, rows(1, "dep"), CHAT)


def test_azure_wants_a_file_that_is_processed(blue, azure):
    with blue.changed(polls_until_processed=1):
        content = rows(1, "dep", url=SHORT_CHAT)
        made = azure.files.create(file=("in.jsonl", content), purpose="batch")
        asked = {
            "input_file_id": made.id,
            "endpoint": SHORT_CHAT,
            "completion_window": "24h",
        }
        with pytest.raises(openai.BadRequestError, match="not processed yet") as error:
            azure.batches.create(**asked)
        assert error.value.code == "invalidPayload"
        azure.files.retrieve(made.id)
        azure.batches.create(**asked)


def test_azure_knows_its_deployments_and_no_byte_order_mark(azure):
    for content, code in [
        (rows(1, "gpt-4o", url=SHORT_CHAT), "model_not_found"),
        (b"\xef\xbb\xbf" + rows(1, "dep", url=SHORT_CHAT), "invalid_json_line"),
    ]:
        made = start(azure, content, SHORT_CHAT)
        done = azure.batches.retrieve(made.id)
        assert (done.status, done.errors.data[0].code) == ("Failed", code)


def test_an_engine_has_neither(upstream):
    engine = upstream.account("engine", "engine")
    with closing(openai_client(engine)) as client:
        for call in (client.batches.list, client.fine_tuning.jobs.list):
            with pytest.raises(openai.NotFoundError):
                call()
    assert len(upstream.unexpected()) == 2


# -------------------------------------------------------------------- fine-tuning


def test_a_job_tunes_a_model_that_can_be_used(upstream, alpha, client):
    with alpha.changed(job_polls=4):
        made = train(client, suffix="mine", seed=7, metadata={"k": "v"})
        assert re.fullmatch("ftjob-[0-9a-f]+", made.id)
        assert (made.status, made.seed, made.fine_tuned_model) == ("validating_files", 7, None)
        assert (made.organization_id, made.result_files) == ("org-fake", [])
        assert made.method.type == "supervised"
        jobs = [client.fine_tuning.jobs.retrieve(made.id) for _ in range(4)]
    assert [job.status for job in jobs] == ["queued", "running", "running", "succeeded"]
    done = jobs[-1]
    assert re.fullmatch("ft:gpt-4o:fake:mine:[0-9a-f]{8}", done.fine_tuned_model)
    assert (done.trained_tokens, done.metadata) == (3000, {"k": "v"})
    [result] = done.result_files
    kept = client.files.retrieve(result)
    assert (kept.purpose, kept.filename) == ("fine-tune-results", "step_metrics.csv")
    assert client.files.content(result).read().startswith(b"step,train_loss")

    told: Any = [{"role": "user", "content": "x"}]
    client.chat.completions.create(model=done.fine_tuned_model, messages=told)
    assert done.fine_tuned_model in [m.id for m in client.models.list()]
    with closing(openai_client(upstream.account("beta", models=["gpt-4o"]))) as other:
        with pytest.raises(openai.NotFoundError):
            other.chat.completions.create(model=done.fine_tuned_model, messages=told)
        with pytest.raises(openai.NotFoundError):
            other.fine_tuning.jobs.list_events(made.id)
        assert list(other.fine_tuning.jobs.list()) == []
    [seen] = alpha.jobs()
    assert (seen["status"], seen["sent"]["suffix"], seen["polls"]) == ("succeeded", "mine", 4)


def test_events_and_checkpoints_come_in_pages(alpha, client):
    with alpha.changed(job_steps=12):
        job = client.fine_tuning.jobs.retrieve(train(client).id)
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=5))
    assert len(events) == 5 + 12 + 1
    assert events[0].message == "The job has successfully completed"
    assert events[-1].message == f"Created fine-tuning job: {job.id}"
    assert sum(event.type == "metrics" for event in events) == 12
    page = client.fine_tuning.jobs.checkpoints.list(job.id)
    assert (len(page.data), page.has_more) == (10, True)
    assert (page.first_id, page.last_id) == (page.data[0].id, page.data[-1].id)
    found = [c.step_number for c in client.fine_tuning.jobs.checkpoints.list(job.id, limit=7)]
    assert found == list(range(12, 0, -1))


def test_jobs_are_listed_without_ids_at_the_ends(client):
    ids = [train(client, metadata={"n": str(n)}).id for n in range(3)]
    raw = client.fine_tuning.jobs.with_raw_response.list(limit=2).http_response.json()
    assert set(raw) == {"object", "data", "has_more"}
    assert [job.id for job in client.fine_tuning.jobs.list(limit=2)] == ids[::-1]
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"n": "1"})] == [ids[1]]


def test_jobs_are_steered(alpha, client):
    jobs = client.fine_tuning.jobs
    with alpha.changed(job_stay="running"):
        made = train(client)
        with pytest.raises(openai.BadRequestError):
            jobs.pause(made.id)
        assert jobs.retrieve(made.id).status == "running"
        assert jobs.pause(made.id).status == "paused"
        assert jobs.retrieve(made.id).status == "paused"
        assert jobs.resume(made.id).status == "queued"
        assert jobs.retrieve(made.id).status == "running"
        cancelled = jobs.cancel(made.id)
    assert (cancelled.status, cancelled.fine_tuned_model) == ("cancelled", None)
    with pytest.raises(openai.BadRequestError):
        jobs.cancel(made.id)


def test_what_a_job_is_refused_for(alpha, client):
    batch_file = client.files.create(file=("a.jsonl", b"x"), purpose="batch").id
    for param, more in {
        "model": {"model": "unknown"},
        "training_file": {"training_file": batch_file},
        "validation_file": {"validation_file": "file-none"},
        "suffix": {"suffix": None},
        "seed": {"seed": -1},
        "trainingType": {"extra_body": TRAINING},
    }.items():
        with pytest.raises(openai.BadRequestError) as error:
            train(client, **more)
        assert error.value.param == param
    assert alpha.jobs() == []
    bad = train(client, b'{"messages": []}\nno\n')
    failed = client.fine_tuning.jobs.retrieve(bad.id)
    assert (failed.status, failed.error.param) == ("failed", "training_file")
    assert "line 2" in failed.error.message
    with alpha.changed(job_end="failed"):
        told = client.fine_tuning.jobs.retrieve(train(client).id)
    assert (told.status, told.error.code) == ("failed", "told_to_fail")


def test_time_alone_finishes_a_job(alpha, client):
    with alpha.changed(job_polls=None, job_delay_s=0.2):
        made = train(client)
        wait_until(lambda: alpha.jobs()[0]["status"] == "succeeded")
    assert client.fine_tuning.jobs.retrieve(made.id).fine_tuned_model


def test_azure_tunes_in_its_own_words(upstream, blue, azure):
    with pytest.raises(openai.BadRequestError, match="does not support fine-tuning"):
        train(azure, model="dep")
    with blue.changed(job_polls=4):
        raw = azure.fine_tuning.jobs.with_raw_response
        made = train(azure, model="dep", extra_body=TRAINING)
        words = [made.status]
        words += [azure.fine_tuning.jobs.retrieve(made.id).status for _ in range(4)]
        shown = raw.retrieve(made.id).http_response.json()
    assert words == ["created", "pending", "running", "running", "succeeded"]
    assert shown["organisation_id"] == "org-fake"
    assert "organization_id" not in shown
    tuned = shown["fine_tuned_model"]
    assert tuned == f"dep.ft-{made.id.removeprefix('ftjob-')}"
    azure.chat.completions.create(model=tuned, messages=[{"role": "user", "content": "x"}])
    url = f"{upstream.url}/openai/fine_tuning/jobs?api-version={API_VERSION}"
    created = requests.post(url, json=shown, headers={"api-key": blue.key})
    assert created.json()["error"]["code"] == "invalidPayload"
    with blue.changed(training_type_required=False):
        assert train(azure, model="dep").status == "created"
    assert not upstream.unexpected()
