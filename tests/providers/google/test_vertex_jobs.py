"""Vertex AI's batches as OpenAI's: states, counts, two files made of shards, and deletes."""

import json
import random
import threading
import tracemalloc

import pytest
import responses

from app.errors import InvalidRequest, NotFound, NotSupported, UpstreamError
from app.providers.google.batch_rows import vertex_rows
from app.providers.google.vertex_jobs import VertexJobs
from app.providers.protocol import BatchRequest
from app.providers.wire import jsonl
from app.transfers import ExpiresAfter
from tests.providers.google.test_batch_results import ANSWER
from tests.providers.google.test_batch_rows import make_row
from tests.providers.google.vertex_account import BUCKET, HOST, ROOT, MemoryBucket, VertexAccount

KEY = "0123456789abcdef0123456789abcdef"
CHAT = "/v1/chat/completions"
JOBS = "batchPredictionJobs"
BAD = 'Bad Request: {"error": {"code": 400, "message": "no", "status": "INVALID_ARGUMENT"}}'
ENDED = {"startTime": "2026-11-20T10:01:00Z", "endTime": "2026-11-20T11:00:00Z"}
ENDED_AT = 1795172400
TUNED = "projects/77/locations/us-central1/models/4567@1"


@pytest.fixture
def account():
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        yield VertexAccount(mock)


@pytest.fixture
def bucket(account):
    return account.bucket


@pytest.fixture
def jobs(account):
    return make_jobs(account)


def make_jobs(account, root=ROOT):
    return VertexJobs(account.upstream(), root, lambda: account.bucket)


def make_request(model="gemini-2.5-flash", endpoint=CHAT, file_id=KEY, **more):
    return BatchRequest(file_id, endpoint, "24h", model=model, **more)


def store(bucket, *custom_ids, key=KEY, same=False):
    """A batch file's rows, as an upload has stored them."""
    rows = [
        make_row(i, body={"messages": [{"role": "user", "content": "x" if same else f"say {i}"}]})
        for i in custom_ids or ("1",)
    ]
    made = vertex_rows(jsonl.rows(rows), "gemini-2.5-flash")
    bucket.objects[f"manifold/{key}.rows"] = b"".join(made)
    bucket.objects[f"manifold/{key}"] = b"".join(rows)
    bucket.described[f"manifold/{key}"] = {"model": "gemini-2.5-flash", "purpose": "batch"}


def answered(bucket, failing=(), left_out=(), unlabelled=False, key=KEY, answer=ANSWER):
    """What Vertex AI writes for every row of a file."""
    for number, raw in enumerate(bucket.objects[f"manifold/{key}.rows"].splitlines()):
        row = json.loads(raw)
        if number in left_out:
            continue
        if unlabelled:
            del row["request"]["labels"]
        fails = number in failing
        yield (
            json.dumps(
                {
                    "status": BAD if fails else "",
                    "processed_time": "2026-11-20T10:30:00Z",
                    "request": row["request"],
                    "response": {} if fails else answer,
                }
            ).encode()
            + b"\n"
        )


def finish(account, batch_id, shards, state="SUCCEEDED", **more):
    """End a job with these shards, each the lines of it; the folder has a name of Google's."""
    job = account.jobs[JOBS][batch_id]
    prefix = job["outputConfig"]["gcsDestination"]["outputUriPrefix"]
    folder = f"{prefix}/prediction-model-2026-11-20T10:00:00.123456Z"
    name = folder.removeprefix(f"gs://{BUCKET}/")
    for number, lines in enumerate(shards):
        last = f"predictions.jsonl-{number:05}-of-{len(shards):05}"
        last = last if len(shards) > 1 else "predictions.jsonl"
        account.bucket.objects[f"{name}/{last}"] = b"".join(lines)
    account.bucket.objects[f"{name}/incremental_predictions.jsonl"] = b"{}\n"
    info = {"outputInfo": {"gcsOutputDirectory": folder}} if shards else {}
    account.set(JOBS, batch_id, state, **ENDED, **info, **more)
    return name


def content(jobs, file_id):
    download = jobs.output_content(file_id)
    assert download is not None
    found = b"".join(download.chunks)
    download.close()
    assert download.length in (None, len(found))
    return found


def lines(jobs, file_id):
    return [json.loads(line) for line in content(jobs, file_id).splitlines()]


# Start


def test_a_job_is_asked_for(account, jobs, bucket):
    """Source: Google Cloud, REST reference v1, batchPredictionJobs.create; read 2026-11."""
    store(bucket)
    batch = jobs.create_batch(make_request())
    [body] = account.posted
    assert body["displayName"].startswith("manifold-")
    assert body["model"] == "publishers/google/models/gemini-2.5-flash"
    assert body["inputConfig"] == {
        "instancesFormat": "jsonl",
        "gcsSource": {"uris": [f"gs://{BUCKET}/manifold/{KEY}.rows"]},
    }
    destination = body["outputConfig"]["gcsDestination"]["outputUriPrefix"]
    assert destination.startswith(f"gs://{BUCKET}/manifold/outputs/")
    assert (batch["id"], batch["status"], batch["endpoint"]) == ("900", "validating", CHAT)
    assert (batch["input_file_id"], batch["completion_window"]) == (KEY, "24h")
    assert (batch["output_file_id"], batch["error_file_id"]) == (None, None)
    assert batch["created_at"] == 1795168800
    assert batch["model"] == "gemini-2.5-flash"
    assert jobs.retrieve_batch("900") == batch


def test_no_two_jobs_write_into_one_folder(account, jobs, bucket):
    store(bucket)
    for _ in range(3):
        jobs.create_batch(make_request())
    prefixes = [b["outputConfig"]["gcsDestination"]["outputUriPrefix"] for b in account.posted]
    assert len(set(prefixes)) == 3


@pytest.mark.parametrize(
    ("model", "resource"),
    [
        ("gemini-2.5-flash", "publishers/google/models/gemini-2.5-flash"),
        ("publishers/google/models/x", "publishers/google/models/x"),
        ("projects/p/locations/l/models/5", "projects/p/locations/l/models/5"),
        ("4567", "projects/p/locations/us-central1/models/4567"),
        ("gemini/gemma-3", "publishers/google/models/gemma-3"),
        ("1234", TUNED),
        ("endpoints/1234", TUNED),
        ("projects/p/locations/us-central1/endpoints/1234", TUNED),
        ("mine", TUNED),
    ],
)
def test_the_model_of_a_job(account, bucket, model, resource):
    """`mine` is a deployment whose address is that of an endpoint."""
    account.jobs["endpoints"] = {"1234": {"deployedModels": [{"model": TUNED}]}}
    store(bucket)
    named = {"mine": "endpoints/1234"}
    jobs = VertexJobs(account.upstream(), ROOT, lambda: bucket, named)
    jobs.create_batch(make_request(model))
    assert account.posted[0]["model"] == resource


@pytest.mark.parametrize("location", ["global", "eu"])
def test_any_location(location):
    with responses.RequestsMock() as mock:
        account = VertexAccount.__new__(VertexAccount)
        account.bucket = MemoryBucket()
        store(account.bucket)
        root = f"/v1beta1/projects/p/locations/{location}"
        name = f"projects/77/locations/{location}/batchPredictionJobs/5"
        mock.add("POST", f"{HOST}{root}/batchPredictionJobs", json={"name": name})
        assert make_jobs(account, root).create_batch(make_request())["id"] == "5"


def test_the_file_says_its_model_when_nobody_else_does(account, jobs, bucket):
    store(bucket)
    jobs.create_batch(make_request(model=""))
    assert account.posted[0]["model"] == "publishers/google/models/gemini-2.5-flash"
    bucket.described.clear()
    with pytest.raises(InvalidRequest, match="nothing says for which model"):
        jobs.create_batch(make_request(model=""))


def test_litellms_rows_are_used_as_they_are(account, jobs, bucket):
    name = "litellm-vertex-files/publishers/google/models/gemini-2.0-flash/abc"
    bucket.objects[name] = b'{"request": {}}\n'
    jobs.create_batch(make_request(model="", file_id=f"gs://{BUCKET}/{name}"))
    [body] = account.posted
    assert body["inputConfig"]["gcsSource"]["uris"] == [f"gs://{BUCKET}/{name}"]
    assert body["model"] == "publishers/google/models/gemini-2.0-flash"


@pytest.mark.parametrize(
    "file_id",
    [
        "f" * 32,
        "",
        "file-1",
        "gs://another/manifold/x",
        f"gs://{BUCKET}/private/x",
        f"gs://{BUCKET}/manifold/../private/x",
        f"gs://{BUCKET}/",
    ],
)
def test_a_file_that_is_not_there_starts_nothing(account, jobs, bucket, file_id):
    store(bucket)
    with pytest.raises(NotFound, match="No such File object"):
        jobs.create_batch(make_request(file_id=file_id))
    assert account.posted == []


@pytest.mark.parametrize("endpoint", ["/v1/responses", "/v1/completions", "nonsense"])
def test_an_endpoint_that_google_does_not_have(account, jobs, bucket, endpoint):
    store(bucket)
    with pytest.raises(NotSupported) as refused:
        jobs.create_batch(make_request(endpoint=endpoint))
    assert refused.value.param == "endpoint"
    assert account.posted == []


def test_rows_that_ask_for_something_else_start_nothing(account, jobs, bucket):
    store(bucket)
    with pytest.raises(InvalidRequest) as refused:
        jobs.create_batch(make_request(endpoint="/v1/embeddings"))
    assert (refused.value.param, refused.value.code) == ("endpoint", "url_mismatch")
    rows = [make_row("1", "/v1/embeddings", {"input": "a"})]
    made = vertex_rows(jsonl.rows(rows), "gemini-embedding-001")
    bucket.objects[f"manifold/{KEY}.rows"] = b"".join(made)
    batch = jobs.create_batch(make_request("gemini-embedding-001", "/v1/embeddings"))
    assert batch["endpoint"] == "/v1/embeddings"
    with pytest.raises(InvalidRequest, match="ask for /v1/embeddings"):
        jobs.create_batch(make_request())


def test_an_expiry_that_google_does_not_have(account, jobs, bucket):
    store(bucket)
    with pytest.raises(NotSupported) as refused:
        jobs.create_batch(make_request(output_expires_after=ExpiresAfter("created_at", 3600)))
    assert refused.value.param == "output_expires_after"
    assert account.posted == []


def test_a_file_without_rows_starts_nothing(account, jobs, bucket):
    bucket.objects[f"manifold/{KEY}.rows"] = b""
    with pytest.raises(InvalidRequest, match="has no rows"):
        jobs.create_batch(make_request())
    assert account.posted == []


def test_trouble_before_the_job_is_asked_for_has_begun_nothing_for_sure(account, jobs, bucket):
    store(bucket)

    def break_off(_name):
        raise UpstreamError("the connection broke")

    bucket.before_read = break_off
    with pytest.raises(UpstreamError) as failure:
        jobs.create_batch(make_request())
    assert failure.value.retryable
    assert account.posted == []


def test_starting_is_not_tried_again_after_a_lost_answer():
    with responses.RequestsMock() as mock:
        account = VertexAccount.__new__(VertexAccount)
        account.bucket = MemoryBucket()
        store(account.bucket)
        mock.add("POST", f"{HOST}{ROOT}/{JOBS}", status=500)
        made = VertexJobs(account.upstream(max_retries=3), ROOT, lambda: account.bucket)
        with pytest.raises(UpstreamError) as failure:
            made.create_batch(make_request())
        assert not failure.value.retryable
        assert len(mock.calls) == 1


@pytest.mark.parametrize(
    "body", [{}, {"name": None}, {"name": "projects/p/x/"}, {"name": "a/b"}, {"name": 5}]
)
def test_a_yes_that_names_no_job_is_an_error_and_not_a_no(body):
    with responses.RequestsMock() as mock:
        account = VertexAccount.__new__(VertexAccount)
        account.bucket = MemoryBucket()
        store(account.bucket)
        mock.add("POST", f"{HOST}{ROOT}/{JOBS}", json=body)
        with pytest.raises(UpstreamError) as failure:
            make_jobs(account).create_batch(make_request())
        assert not failure.value.retryable


# States


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("QUEUED", "validating"),
        ("PENDING", "validating"),
        ("RUNNING", "in_progress"),
        ("PAUSED", "in_progress"),
        ("UPDATING", "in_progress"),
        ("SUCCEEDED", "completed"),
        ("PARTIALLY_SUCCEEDED", "completed"),
        ("FAILED", "failed"),
        ("UNSPECIFIED", "failed"),
        ("BRAND_NEW", "failed"),
        ("CANCELLING", "cancelling"),
        ("CANCELLED", "cancelled"),
        ("EXPIRED", "expired"),
    ],
)
def test_states(account, jobs, bucket, state, status):
    """Source: Google Cloud, REST reference v1, JobState; read 2026-11."""
    store(bucket)
    jobs.create_batch(make_request())
    account.set(JOBS, "900", state, **ENDED)
    batch = jobs.retrieve_batch("900")
    assert batch["status"] == status
    ends = {k for k in ("completed_at", "failed_at", "cancelled_at", "expired_at") if batch[k]}
    wanted = {f"{status}_at"} if status in ("completed", "failed", "cancelled", "expired") else ()
    assert ends == set(wanted)
    assert all(batch[end] == ENDED_AT for end in ends)
    assert bool(batch["cancelling_at"]) == (status == "cancelling")
    assert batch["in_progress_at"] == 1795168860


def test_a_failed_job_says_why(account, jobs, bucket):
    store(bucket)
    jobs.create_batch(make_request())
    account.set(JOBS, "900", "FAILED", error={"code": 3, "message": "bad input"}, **ENDED)
    batch = jobs.retrieve_batch("900")
    [error] = batch["errors"]["data"]
    assert (error["code"], error["message"]) == ("invalid_argument", "bad input")
    assert (batch["output_file_id"], batch["error_file_id"]) == (None, None)


def test_counts_while_it_runs(account, jobs, bucket):
    store(bucket)
    jobs.create_batch(make_request())
    stats = {"successfulCount": "7", "failedCount": "2", "incompleteCount": "-1"}
    account.set(JOBS, "900", "RUNNING", completionStats=stats)
    counts = jobs.retrieve_batch("900")["request_counts"]
    assert counts == {"total": 9, "completed": 7, "failed": 2}
    account.set(JOBS, "900", "RUNNING", completionStats={**stats, "incompleteCount": "11"})
    assert jobs.retrieve_batch("900")["request_counts"]["total"] == 20


@pytest.mark.parametrize("batch_id", ["901", "batch_1", "", "..", "1/2", "900:cancel", "9" * 99])
def test_an_unknown_batch_is_not_found(account, jobs, bucket, batch_id):
    store(bucket)
    jobs.create_batch(make_request())
    for call in (jobs.retrieve_batch, jobs.cancel_batch):
        with pytest.raises(NotFound) as refused:
            call(batch_id)
        assert "projects/77" not in refused.value.message
    assert account.cancelled == []


def test_cancel_is_said_once_it_was_taken(account, jobs, bucket):
    store(bucket)
    jobs.create_batch(make_request())
    batch = jobs.cancel_batch("900")
    assert (batch["status"], account.cancelled) == ("cancelling", ["900"])
    for state, status in (("CANCELLING", "cancelling"), ("CANCELLED", "cancelled")):
        account.set(JOBS, "900", state, **ENDED)
        assert jobs.cancel_batch("900")["status"] == status


def test_a_batch_that_has_ended_is_as_it_was(account, jobs, bucket):
    store(bucket)
    jobs.create_batch(make_request())
    finish(account, "900", [list(answered(bucket))])
    batch = jobs.cancel_batch("900")
    assert (batch["status"], batch["output_file_id"]) == ("completed", "900-output")


def test_a_refused_cancel_is_told(account, jobs, bucket):
    store(bucket)
    jobs.create_batch(make_request())
    account.set(JOBS, "900", "PAUSED")
    with pytest.raises(UpstreamError):
        jobs.cancel_batch("900")


def test_the_list_has_the_gateways_batches_newest_first(account, jobs, bucket):
    assert list(jobs.batches()) == []
    store(bucket)
    made = [jobs.create_batch(make_request())["id"] for _ in range(5)]
    account.jobs[JOBS]["800"] = {
        "name": "projects/77/locations/l/batchPredictionJobs/800",
        "inputConfig": {"gcsSource": {"uris": ["gs://somebody/else.jsonl"]}},
    }
    account.jobs[JOBS]["801"] = {"inputConfig": {"bigquerySource": {"inputUri": "bq://a.b.c"}}}
    found = list(jobs.batches())
    assert [batch["id"] for batch in found] == made[::-1]
    assert {batch["input_file_id"] for batch in found} == {KEY}


def test_a_list_reads_no_results(account, jobs, bucket):
    store(bucket)
    jobs.create_batch(make_request())
    finish(account, "900", [list(answered(bucket))])
    bucket.was_read.clear()
    [batch] = jobs.batches()
    assert (batch["status"], batch["output_file_id"]) == ("finalizing", None)
    assert bucket.was_read == []


# Results


def a_thousand_rows(account, jobs, shards=3):
    """1,000 rows answered in any order over the shards; five have failed."""
    bucket = account.bucket
    ids = [f"Row №{number}" for number in range(1000)]
    store(bucket, *ids)
    batch_id = jobs.create_batch(make_request())["id"]
    failing = (3, 141, 592, 653, 999)
    found = list(answered(bucket, failing=failing))
    random.Random(7).shuffle(found)
    finish(account, batch_id, [found[n::shards] for n in range(shards)])
    return ids, [ids[n] for n in failing], found


def test_a_thousand_rows_in_any_order_with_five_failures(account, jobs, bucket):
    ids, failed, found = a_thousand_rows(account, jobs)
    batch = jobs.retrieve_batch("900")
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 1000, "completed": 995, "failed": 5}
    assert batch["usage"]["total_tokens"] == 995 * 12
    assert batch["usage"]["input_tokens"] == 995 * 5
    output, errors = (lines(jobs, batch[key]) for key in ("output_file_id", "error_file_id"))
    assert sorted(line["custom_id"] for line in errors) == sorted(failed)
    assert {line["custom_id"] for line in output} == set(ids) - set(failed)
    assert len(output) == 995
    for line in errors:
        assert line["response"]["status_code"] == 400
        assert line["response"]["body"]["error"]["message"] == "no"
        assert line["error"] is None
    # In the order of the shards.
    first = json.loads(found[0])["request"]["contents"][0]["parts"][0]["text"]
    assert f"say {output[0]['custom_id']}" == first


def test_the_files_are_described_and_are_the_same_bytes_each_time(account, jobs):
    a_thousand_rows(account, jobs)
    for kind in ("output", "errors"):
        stored = jobs.output(f"900-{kind}")
        assert stored is not None
        found = content(jobs, stored.id)
        assert stored.size == len(found) > 0
        assert (stored.purpose, stored.status) == ("batch_output", "processed")
        assert stored.created_at == ENDED_AT
        assert stored.filename.endswith(".jsonl")
        assert content(jobs, stored.id) == found == content(make_jobs(account), stored.id)


def test_many_shards_are_in_the_order_of_their_numbers(account, jobs, bucket):
    store(bucket, *map(str, range(12)))
    jobs.create_batch(make_request())
    name = finish(account, "900", [])
    account.set(
        JOBS, "900", "SUCCEEDED", outputInfo={"gcsOutputDirectory": f"gs://{BUCKET}/{name}"}
    )
    for number, line in enumerate(answered(bucket)):
        bucket.objects[f"{name}/predictions.jsonl-{number}-of-12"] = line
    found = [line["custom_id"] for line in lines(jobs, "900-output")]
    assert found == [str(number) for number in range(12)]


def test_results_are_read_once_for_all_who_ask(account, jobs, bucket):
    store(bucket)
    jobs.create_batch(make_request())
    finish(account, "900", [list(answered(bucket))])
    bucket.was_read.clear()
    barrier = threading.Barrier(8)

    def ask():
        barrier.wait()
        assert jobs.retrieve_batch("900")["output_file_id"] == "900-output"

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    jobs.output("900-output")
    assert len([name for name in bucket.was_read if "predictions" in name]) == 1


def test_a_pass_that_fails_is_made_again(account, jobs, bucket):
    store(bucket)
    jobs.create_batch(make_request())
    finish(account, "900", [list(answered(bucket))])

    def break_off(name):
        if "predictions" in name:
            raise UpstreamError("the connection broke")

    bucket.before_read = break_off
    for _ in range(2):
        with pytest.raises(UpstreamError):
            jobs.retrieve_batch("900")
    bucket.before_read = lambda _name: None
    assert jobs.retrieve_batch("900")["status"] == "completed"


def test_a_batch_without_a_failure_has_no_error_file(account, jobs, bucket):
    store(bucket, "1", "2")
    jobs.create_batch(make_request())
    finish(account, "900", [list(answered(bucket))])
    batch = jobs.retrieve_batch("900")
    assert (batch["output_file_id"], batch["error_file_id"]) == ("900-output", None)
    with pytest.raises(NotFound):
        jobs.output("900-errors")
    with pytest.raises(NotFound):
        jobs.output_content("900-errors")


def test_a_batch_in_which_every_row_failed_has_no_output_file(account, jobs, bucket):
    store(bucket, "1", "2")
    jobs.create_batch(make_request())
    finish(account, "900", [list(answered(bucket, failing=(0, 1)))])
    batch = jobs.retrieve_batch("900")
    assert (batch["status"], batch["output_file_id"]) == ("completed", None)
    assert batch["error_file_id"] == "900-errors"
    assert batch["request_counts"] == {"total": 2, "completed": 0, "failed": 2}
    assert "usage" in batch and batch["usage"]["total_tokens"] == 0


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ("CANCELLED", "batch_cancelled"),
        ("EXPIRED", "batch_expired"),
        ("PARTIALLY_SUCCEEDED", "batch_expired"),
        ("FAILED", "batch_failed"),
    ],
)
def test_what_was_done_until_the_end_is_kept_and_the_rest_is_said(
    account, jobs, bucket, state, code
):
    store(bucket, *map(str, range(6)))
    jobs.create_batch(make_request())
    found = list(answered(bucket, failing=(0,), left_out=(2, 5)))
    finish(account, "900", [found[::2], found[1::2]], state)
    batch = jobs.retrieve_batch("900")
    assert batch["request_counts"] == {"total": 6, "completed": 3, "failed": 3}
    assert {line["custom_id"] for line in lines(jobs, "900-output")} == {"1", "3", "4"}
    failed = {line["custom_id"]: line for line in lines(jobs, "900-errors")}
    assert set(failed) == {"0", "2", "5"}
    assert failed["2"]["response"] is None
    assert failed["2"]["error"]["code"] == failed["5"]["error"]["code"] == code
    assert failed["0"]["response"]["status_code"] == 400


def test_a_batch_that_was_cancelled_before_it_began(account, jobs, bucket):
    store(bucket, "1", "2")
    jobs.create_batch(make_request())
    account.set(JOBS, "900", "CANCELLED", **ENDED)
    batch = jobs.retrieve_batch("900")
    assert (batch["output_file_id"], batch["error_file_id"]) == (None, "900-errors")
    assert [line["custom_id"] for line in lines(jobs, "900-errors")] == ["1", "2"]
    jobs.delete_output("900-errors")
    assert jobs.retrieve_batch("900")["error_file_id"] is None


def test_a_cancelled_batch_whose_input_is_gone(account, jobs, bucket):
    store(bucket, "1", "2")
    jobs.create_batch(make_request())
    finish(account, "900", [list(answered(bucket, left_out=(1,)))], "CANCELLED")
    bucket.delete(f"manifold/{KEY}.rows")
    batch = jobs.retrieve_batch("900")
    assert (batch["output_file_id"], batch["error_file_id"]) == ("900-output", None)


def test_a_job_that_ended_without_a_folder_has_no_files(account, jobs, bucket):
    store(bucket)
    jobs.create_batch(make_request())
    account.set(JOBS, "900", "SUCCEEDED", **ENDED)
    batch = jobs.retrieve_batch("900")
    assert (batch["status"], batch["output_file_id"], batch["error_file_id"]) == (
        "completed",
        None,
        None,
    )


def test_a_folder_elsewhere_is_not_read(account, jobs, bucket):
    store(bucket)
    jobs.create_batch(make_request())
    finish(account, "900", [list(answered(bucket))])
    config = {"gcsDestination": {"outputUriPrefix": "gs://other/x"}}
    info = {"gcsOutputDirectory": "gs://other/x/prediction"}
    account.set(JOBS, "900", "SUCCEEDED", outputInfo=info, outputConfig=config)
    assert jobs.retrieve_batch("900")["output_file_id"] is None
    with pytest.raises(NotFound):
        jobs.output("900-output")


def test_a_folder_that_may_be_many_jobs_is_not_read(account, jobs, bucket):
    """Somebody else's job, which an admin looks at: it has ended before it wrote anything."""
    store(bucket)
    jobs.create_batch(make_request())
    bucket.objects["shared/another-job/predictions.jsonl"] = b"".join(answered(bucket))
    config = {"gcsDestination": {"outputUriPrefix": f"gs://{BUCKET}/shared"}}
    account.set(JOBS, "900", "CANCELLED", outputConfig=config, **ENDED)
    assert jobs.retrieve_batch("900")["output_file_id"] is None
    jobs.delete_output("900-output")
    assert "shared/another-job/predictions.jsonl" in bucket.objects


def test_labels_that_were_lost_are_found_by_the_request(account, jobs, bucket):
    ids = [f"Row {number}" for number in range(50)]
    store(bucket, *ids)
    jobs.create_batch(make_request())
    found = list(answered(bucket, unlabelled=True, failing=(7,)))
    random.Random(7).shuffle(found)
    finish(account, "900", [found])
    assert jobs.retrieve_batch("900")["request_counts"]["failed"] == 1
    output = lines(jobs, "900-output")
    assert {line["custom_id"] for line in output} == set(ids) - {"Row 7"}
    [failed] = lines(jobs, "900-errors")
    assert failed["custom_id"] == "Row 7"


def test_equal_requests_without_labels_get_the_ids_of_their_rows(account, jobs, bucket):
    store(bucket, "1", "2", "3", same=True)
    jobs.create_batch(make_request())
    finish(account, "900", [list(answered(bucket, unlabelled=True))])
    assert [line["custom_id"] for line in lines(jobs, "900-output")] == ["1", "2", "3"]
    assert content(jobs, "900-output") == content(make_jobs(account), "900-output")


def test_a_line_that_nobody_can_read_does_not_stop_the_rest(account, jobs, bucket):
    store(bucket, "1", "2", "3")
    jobs.create_batch(make_request())
    first, _, third = answered(bucket)
    finish(account, "900", [[first, b'{"status": "cut o\n', b"\n", third]])
    batch = jobs.retrieve_batch("900")
    assert batch["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    [failed] = lines(jobs, "900-errors")
    assert (failed["custom_id"], failed["response"]) == ("2", None)
    assert failed["error"]["code"] == "server_error"


def test_embeddings_come_back(account, jobs, bucket):
    rows = [make_row(i, "/v1/embeddings", {"input": f"text {i}"}) for i in ("a", "b")]
    made = list(vertex_rows(jsonl.rows(rows), "gemini-embedding-001"))
    bucket.objects[f"manifold/{KEY}.rows"] = b"".join(made)
    jobs.create_batch(make_request("gemini-embedding-001", "/v1/embeddings"))
    response = {"embedding": {"values": [0.25]}, "usageMetadata": {"promptTokenCount": 2}}
    finish(
        account,
        "900",
        [[json.dumps({"key": key, "response": response}).encode() + b"\n" for key in ("b", "a")]],
    )
    batch = jobs.retrieve_batch("900")
    assert batch["usage"]["total_tokens"] == 4
    output = lines(jobs, "900-output")
    assert [line["custom_id"] for line in output] == ["b", "a"]
    assert output[0]["response"]["body"]["data"][0]["embedding"] == [0.25]
    assert output[0]["response"]["body"]["model"] == "gemini-embedding-001"


# Reading and deleting


def test_a_reader_who_goes_away_leaves_nothing_open(account, jobs, bucket):
    a_thousand_rows(account, jobs)
    bucket.answers.clear()
    download = jobs.output_content("900-output")
    next(download.chunks)
    download.close()
    assert bucket.answers
    assert all(answer.is_closed for answer in bucket.answers)


def test_a_shard_that_goes_away_breaks_the_transfer(account, jobs, bucket):
    a_thousand_rows(account, jobs)
    download = jobs.output_content("900-output")
    for name in [name for name in bucket.objects if name.endswith("-00002-of-00003")]:
        bucket.delete(name)
    with pytest.raises(NotFound):
        list(download.chunks)


def test_deleting_the_output_leaves_the_errors(account, jobs, bucket):
    a_thousand_rows(account, jobs)
    errors = content(jobs, "900-errors")
    size = jobs.output("900-errors").size
    for _ in range(2):
        assert jobs.delete_output("900-output")
        with pytest.raises(NotFound):
            jobs.output("900-output")
        with pytest.raises(NotFound):
            jobs.output_content("900-output")
        assert content(jobs, "900-errors") == errors
        assert jobs.output("900-errors").size == size
    assert not [name for name in bucket.objects if "predictions.jsonl" in name]
    jobs.delete_output("900-errors")
    with pytest.raises(NotFound):
        jobs.output("900-errors")
    assert not [name for name in bucket.objects if name.endswith("manifold-errors.jsonl")]


def test_deleting_the_errors_leaves_the_output(account, jobs, bucket):
    a_thousand_rows(account, jobs)
    output = content(jobs, "900-output")
    for _ in range(2):
        assert jobs.delete_output("900-errors")
        with pytest.raises(NotFound):
            jobs.output("900-errors")
        with pytest.raises(NotFound):
            jobs.output_content("900-errors")
        assert content(jobs, "900-output") == output
    jobs.delete_output("900-output")
    with pytest.raises(NotFound):
        jobs.output("900-output")
    with pytest.raises(NotFound):
        jobs.output("900-errors")
    assert not [name for name in bucket.objects if "predictions.jsonl" in name]


@pytest.mark.parametrize("first", ["output", "errors"])
def test_deleting_both_of_a_cancelled_batch(account, jobs, bucket, first):
    store(bucket, "1", "2", "3")
    jobs.create_batch(make_request())
    finish(account, "900", [list(answered(bucket, failing=(0,), left_out=(2,)))], "CANCELLED")
    second = "errors" if first == "output" else "output"
    kept = content(jobs, f"900-{second}")
    jobs.delete_output(f"900-{first}")
    assert content(jobs, f"900-{second}") == kept
    jobs.delete_output(f"900-{second}")
    batch = jobs.retrieve_batch("900")
    assert (batch["output_file_id"], batch["error_file_id"]) == (None, None)


def test_deleting_what_is_gone_is_no_error(account, jobs, bucket):
    assert jobs.delete_output("999-output")
    store(bucket)
    jobs.create_batch(make_request())
    assert jobs.delete_output("900-output")


@pytest.mark.parametrize("file_id", [KEY, "900", "900-input", "x-output", "900-output-", ""])
def test_other_ids_are_not_outputs(jobs, file_id):
    assert jobs.output(file_id) is None
    assert jobs.output_content(file_id) is None
    assert not jobs.delete_output(file_id)


@pytest.mark.parametrize("file_id", ["999-output", "900-errors"])
def test_an_output_that_is_not_there(account, jobs, bucket, file_id):
    store(bucket)
    jobs.create_batch(make_request())
    with pytest.raises(NotFound, match=f"No such File object: {file_id}"):
        jobs.output(file_id)
    with pytest.raises(NotFound):
        jobs.output_content(file_id)


def test_neither_results_nor_rows_are_held(account, jobs, bucket):
    """A result has 10 kB here, and all of them 20 MB."""
    ids = [f"row-{number}" for number in range(2000)]
    store(bucket, *ids)
    jobs.create_batch(make_request())
    answer = {**ANSWER, "candidates": [{"content": {"parts": [{"text": "x" * 10_000}]}}]}
    found = list(answered(bucket, failing=(1,), answer=answer))
    finish(account, "900", [found[::2], found[1::2]])
    del found
    bucket.chunk_bytes = 256 * 1024
    tracemalloc.start()
    try:
        assert jobs.output("900-output").size > 20_000_000
        download = jobs.output_content("900-output")
        size = sum(len(chunk) for chunk in download.chunks)
        jobs.delete_output("900-output")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size == download.length
    assert peak < 3 * 1024 * 1024
