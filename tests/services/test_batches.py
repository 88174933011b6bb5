"""Batches without HTTP: what is sent, what is shown, cancelling, trouble upstream."""

from typing import Any

import pytest
from sqlalchemy import delete

from app import ids
from app.db.tables import Job
from app.errors import (
    Conflict,
    InvalidRequest,
    NotFound,
    NotPermitted,
    UpstreamError,
    UpstreamRejected,
    UpstreamTimeout,
)
from app.services.job_lists import JobQuery
from app.services.router import Selector
from tests.conftest import NO_HINTS
from tests.job_builders import ENDPOINT, expiry, hints, make_job_gateway, make_rows

REFUSED = UpstreamRejected("cannot be cancelled now", status=409)


@pytest.fixture
def gateway(database):
    return make_job_gateway(database)


@pytest.fixture
def batch(gateway, alice):
    return gateway.start(alice, gateway.upload(alice, names=("b",)))


def retrieve(gateway, caller, batch_id: str, **by: Any) -> Any:
    return gateway.batches.retrieve(caller, batch_id, hints(**by))


def cancel(gateway, caller, batch_id: str, **by: Any) -> Any:
    return gateway.batches.cancel(caller, batch_id, hints(**by))


# Create

WAYS: dict[str, Any] = {
    "unified": ({"names": ("b",)}, {}, lambda file_id, raw: file_id, "unified"),
    "encoded": ({"model": "b"}, {}, lambda file_id, raw: file_id, "encoded"),
    "model and raw": ({"model": "b"}, {"model": "b"}, lambda file_id, raw: raw, "encoded"),
    "provider and raw": (
        {"provider": "openai"},
        {"custom_llm_provider": "openai"},
        lambda file_id, raw: raw,
        "raw",
    ),
    "raw of a managed file": ({"names": ("b",)}, {}, lambda file_id, raw: raw, "raw"),
    "model and raw of a managed file": (
        {"names": ("b",)},
        {"model": "b"},
        lambda file_id, raw: raw,
        "encoded",
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_each_way_gives_its_kind_of_id_and_a_row(gateway, alice, bob, way):
    upload, by, handed, kind = WAYS[way]
    file_id = gateway.upload(alice, make_rows("b"), **upload)
    [fake] = [fake for fake in gateway.fakes.values() if fake.stored]
    [raw_file] = fake.stored
    sent = handed(file_id, raw_file)
    batch = gateway.start(alice, sent, **by)
    row = gateway.row()
    [raw] = fake.remote_batches
    wanted = {
        "unified": ids.encode_unified_job("batch", row.deployment_id, row.id),
        "encoded": ids.encode_batch(raw, "b"),
        "raw": raw,
    }
    assert (batch["id"], row.kind) == (wanted[kind], kind)
    assert batch["input_file_id"] == sent
    [(request,)] = fake.called("create_batch")
    assert request.input_file_id == raw_file
    # Retrievable, cancellable, in the creator's list, and nobody else's.
    assert retrieve(gateway, alice, batch["id"])["input_file_id"] == sent
    listed = gateway.batches.page(alice, JobQuery(), Selector())
    assert [b["id"] for b in listed["data"]] == [batch["id"]]
    assert gateway.batches.page(bob, JobQuery(), Selector())["data"] == []
    calls = gateway.calls()
    for use in (retrieve, cancel):
        with pytest.raises(NotPermitted):
            use(gateway, bob, batch["id"])
    assert gateway.calls() == calls
    fake.finish(raw, b"output\n")
    done = retrieve(gateway, alice, batch["id"])
    content = gateway.files.content(alice, done["output_file_id"], NO_HINTS)
    assert b"".join(content.download.chunks) == b"output\n"
    assert isinstance(ids.decode(done["output_file_id"]), ids.UnifiedId)


@pytest.mark.parametrize("metadata", [None, {}, {"k": "v"}, {"ü\U0001f600": "\0 \\u0000"}])
def test_metadata_are_the_callers(gateway, alice, metadata):
    batch = gateway.start(alice, gateway.upload(alice, names=("b",)), metadata=metadata)
    fake, raw = gateway.upstream()
    assert fake.called("create_batch")[0][0].metadata == metadata
    # Whatever the upstream makes of them.
    fake.step(raw, metadata={"upstream": "own"})
    for shown in (
        batch,
        retrieve(gateway, alice, batch["id"]),
        cancel(gateway, alice, batch["id"]),
        gateway.batches.page(alice, JobQuery(), Selector())["data"][0],
    ):
        assert shown["metadata"] == metadata


@pytest.mark.parametrize("endpoint", ["/v1/embeddings", "/embeddings"])
def test_what_was_sent_is_what_is_shown(gateway, alice, endpoint):
    file_id = gateway.upload(alice, names=("b",))
    batch = gateway.start(alice, file_id, endpoint=endpoint, output_expires_after=expiry(7200))
    fake, raw = gateway.upstream()
    [(request,)] = fake.called("create_batch")
    assert (request.endpoint, request.output_expires_after) == ("/v1/embeddings", expiry(7200))
    fake.step(raw, endpoint="/other", input_file_id="file-other", completion_window="48h")
    for shown in (batch, retrieve(gateway, alice, batch["id"])):
        assert shown["object"] == "batch"
        assert (shown["endpoint"], shown["input_file_id"]) == (endpoint, file_id)
        assert shown["completion_window"] == "24h"
        assert shown["created_at"] == batch["created_at"]


@pytest.mark.parametrize("endpoint", ["", "/v1/files", "v1/embeddings", "https://x/v1/embeddings"])
def test_an_endpoint_that_there_is_not(gateway, alice, endpoint):
    with pytest.raises(InvalidRequest) as refusal:
        gateway.start(alice, "file-1", endpoint=endpoint)
    assert refusal.value.param == "endpoint"


@pytest.mark.parametrize("way", [{"names": ("b",)}, {"model": "b"}, {"provider": "openai"}])
def test_a_file_of_another_purpose_is_refused(gateway, alice, way):
    file_id = gateway.upload(alice, b"{}", purpose="fine-tune", **way)
    calls = gateway.calls()
    with pytest.raises(InvalidRequest, match="'fine-tune', not 'batch'"):
        gateway.start(alice, file_id)
    assert gateway.calls() == calls and gateway.rows() == []


def test_an_unknown_file_starts_nothing(gateway, alice, root):
    for caller, file_id in ((alice, "file-unknown"), (alice, ""), (root, "a/b")):
        with pytest.raises(NotFound):
            gateway.start(caller, file_id)
    assert gateway.rows() == [] and gateway.calls() == 0


def test_somebody_elses_file_starts_nothing(gateway, alice, bob):
    for way in ({"names": ("b",)}, {"model": "b"}, {"provider": "openai"}):
        file_id = gateway.upload(alice, make_rows("b"), **way)
        calls = gateway.calls()
        with pytest.raises(NotPermitted):
            gateway.start(bob, file_id)
        assert gateway.calls() == calls and gateway.rows() == []


def test_what_an_admin_starts_is_his(gateway, alice, root):
    batch = gateway.start(root, gateway.upload(alice, names=("b",)))
    assert gateway.row().owner == root.owner
    with pytest.raises(NotPermitted):
        retrieve(gateway, alice, batch["id"])


def test_an_upstream_that_is_done_at_once(gateway, alice):
    file_id = gateway.upload(alice, names=("b",))
    fake = gateway.fakes["b-1"]
    begin = fake.create_batch

    def at_once(request):
        raw = begin(request)["id"]
        fake.finish(raw, b"{}\n")
        return fake.remote_batches[raw]

    fake.create_batch = at_once
    batch = gateway.start(alice, file_id)
    assert batch["status"] == "completed"
    assert gateway.files.retrieve(alice, batch["output_file_id"], NO_HINTS)["bytes"] == 3
    assert gateway.row().state == "final"


def test_an_output_that_fails_at_once_does_not_fail_the_creation(gateway, alice):
    file_id = gateway.upload(alice, names=("b",))
    fake = gateway.fakes["b-1"]
    begin = fake.create_batch

    def at_once(request):
        raw = begin(request)["id"]
        fake.finish(raw, b"{}\n")
        fake.fail_next(UpstreamError("files are down"), method="retrieve")
        return fake.remote_batches[raw]

    fake.create_batch = at_once
    batch = gateway.start(alice, file_id)
    assert gateway.row().state == "active"
    assert retrieve(gateway, alice, batch["id"])["output_file_id"]


def test_a_batch_that_is_refused_at_once_has_ended(gateway, alice):
    file_id = gateway.upload(alice, names=("b",))
    fake = gateway.fakes["b-1"]
    begin = fake.create_batch
    fake.create_batch = lambda request: fake.step(begin(request)["id"], status="failed")
    assert gateway.start(alice, file_id)["status"] == "failed"
    assert gateway.row().state == "final"
    gateway.files.delete(alice, file_id, NO_HINTS)


# Retrieve


def test_the_list_says_what_retrieve_says(gateway, alice, batch):
    fake, raw = gateway.upstream()
    counts = {"total": 3, "completed": 1, "failed": 0}
    for changes in (
        {"status": "in_progress", "in_progress_at": 5, "request_counts": counts},
        {"status": "finalizing", "finalizing_at": 6},
        {"status": "expired", "expired_at": 7, "errors": {"object": "list", "data": []}},
    ):
        fake.step(raw, **changes)
        shown = retrieve(gateway, alice, batch["id"])
        assert {key: shown[key] for key in changes} == changes
        assert gateway.batches.page(alice, JobQuery(), Selector())["data"] == [shown]
    assert gateway.row().state == "final"


def test_the_model_is_shown_by_its_public_name(gateway, alice, batch):
    fake, raw = gateway.upstream()
    fake.step(raw, model="up-b")
    assert retrieve(gateway, alice, batch["id"])["model"] == "b"


def test_what_has_ended_is_not_asked_for_again(gateway, alice, batch):
    gateway.finish()
    shown = retrieve(gateway, alice, batch["id"])
    calls = gateway.calls()
    assert retrieve(gateway, alice, batch["id"]) == shown
    assert gateway.calls() == calls


@pytest.mark.parametrize(
    "error",
    [
        UpstreamError("broken"),
        UpstreamTimeout("slow"),
        UpstreamRejected("busy", status=429),
        NotFound("No such Batch object: batch_raw"),
    ],
    ids=lambda error: error.message,
)
def test_during_trouble_upstream_the_row_answers(gateway, alice, batch, root, error):
    fake, _ = gateway.upstream()
    fake.fail_next(error, method="retrieve_batch")
    assert retrieve(gateway, alice, batch["id"]) == batch
    fake.fail_next(error, method="retrieve_batch")
    shown = gateway.batches.retrieve(root, batch["id"], NO_HINTS, with_state=True)
    assert shown["gateway"] == {
        "state": "active",
        "deployment": "b-1",
        "looks": 0,
        "last_error": error.message,
    }
    shown = gateway.batches.retrieve(alice, batch["id"], NO_HINTS, with_state=True)
    assert shown["gateway"] == {
        "state": "active",
        "deployment": None,
        "looks": 0,
        "last_error": None,
    }


def test_a_batch_that_was_given_up_is_found_again(gateway, alice, batch):
    gateway.change(state="lost")
    assert gateway.upkeep.due() == []
    fake, _raw = gateway.upstream()
    fake.fail_next(UpstreamError("down"), method="retrieve_batch")
    retrieve(gateway, alice, batch["id"])
    assert gateway.row().state == "lost"
    retrieve(gateway, alice, batch["id"])
    assert gateway.row().state == "active"


@pytest.mark.parametrize("state", ["intended", "void"])
def test_what_has_not_begun_is_not_there(gateway, alice, batch, root, state):
    gateway.change(state=state)
    for caller in (alice, root):
        for use in (retrieve, cancel):
            with pytest.raises(NotFound):
                use(gateway, caller, batch["id"])


# Cancel


def test_cancelling_twice_is_cancelling_once(gateway, alice, batch):
    fake, raw = gateway.upstream()
    for status in ("cancelling", "cancelled", "cancelled"):
        fake.step(raw, status=status) if status == "cancelled" else None
        assert cancel(gateway, alice, batch["id"])["status"] in ("cancelling", status)
        retrieve(gateway, alice, batch["id"])
    assert len(fake.called("cancel_batch")) == 1
    assert gateway.row().state == "final"


@pytest.mark.parametrize("status", [400, 409])
@pytest.mark.parametrize("now_is", ["cancelling", "cancelled"])
def test_somebody_else_has_cancelled_it_already(gateway, alice, batch, status, now_is):
    fake, raw = gateway.upstream()
    fake.step(raw, status=now_is)
    fake.fail_next(UpstreamRejected("no", status=status), method="cancel_batch")
    assert cancel(gateway, alice, batch["id"])["status"] == now_is


@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize("status", ["completed", "failed", "expired"])
def test_what_has_ended_cannot_be_cancelled(gateway, alice, batch, status, is_known):
    fake, raw = gateway.upstream()
    fake.step(raw, status=status)
    if is_known:
        retrieve(gateway, alice, batch["id"])
    fake.fail_next(REFUSED, method="cancel_batch")
    with pytest.raises(Conflict, match=f"it is {status}") as refusal:
        cancel(gateway, alice, batch["id"])
    assert refusal.value.status == 409
    assert gateway.row().state == "final"


def test_an_upstream_that_refuses_for_now_is_heard(gateway, alice, batch):
    fake, raw = gateway.upstream()
    fake.step(raw, status="finalizing")
    fake.fail_next(REFUSED, method="cancel_batch")
    with pytest.raises(UpstreamRejected, match="cannot be cancelled now"):
        cancel(gateway, alice, batch["id"])
    assert gateway.row().status == "finalizing"
    assert cancel(gateway, alice, batch["id"])["status"] == "cancelling"


@pytest.mark.parametrize("status", [500, 503, 429])
def test_after_a_failure_a_second_cancel_is_forwarded(gateway, alice, batch, status):
    fake, _ = gateway.upstream()
    fake.fail_next(UpstreamRejected("oops", status=status), method="cancel_batch")
    with pytest.raises(UpstreamRejected):
        cancel(gateway, alice, batch["id"])
    assert cancel(gateway, alice, batch["id"])["status"] == "cancelling"
    assert len(fake.called("cancel_batch")) == 2


def test_a_batch_that_its_upstream_has_lost_cannot_be_cancelled(gateway, alice, batch):
    fake, raw = gateway.upstream()
    fake.fail_next(NotFound(f"No such Batch object: {raw}"), method="cancel_batch")
    with pytest.raises(NotFound) as refusal:
        cancel(gateway, alice, batch["id"])
    assert refusal.value.message == f"the batch {batch['id']} is gone at its upstream"


def test_what_an_admin_cancels_stays_its_owners(gateway, alice, batch, root, viewer, bob):
    with pytest.raises(NotPermitted):
        cancel(gateway, viewer, batch["id"])
    assert cancel(gateway, root, batch["id"])["status"] == "cancelling"
    fake, raw = gateway.upstream()
    fake.finish(raw, b"partial\n")
    fake.step(raw, status="cancelled")
    output = retrieve(gateway, root, batch["id"])["output_file_id"]
    assert [file.owner for file in gateway.stored("batch_output")] == [alice.owner]
    with pytest.raises(NotPermitted):
        gateway.files.retrieve(bob, output, NO_HINTS)


def test_an_output_that_is_not_there_yet_does_not_fail_a_cancel(gateway, alice, batch):
    fake, raw = gateway.upstream()
    fake.step(raw, error_file_id="file-soon")
    assert cancel(gateway, alice, batch["id"])["id"] == batch["id"]
    assert gateway.row().state == "active"


# Input in use


@pytest.mark.parametrize("way", [{"names": ("a", "b")}, {"model": "b"}, {"provider": "openai"}])
def test_the_input_of_a_running_batch_cannot_be_deleted(gateway, alice, root, way):
    file_id = gateway.upload(alice, make_rows("b"), **way)
    batch = gateway.start(alice, file_id, **({"model": "b"} if "names" in way else {}))
    calls = gateway.calls()
    for caller in (alice, root):
        with pytest.raises(Conflict, match="is the input of") as refusal:
            gateway.files.delete(caller, file_id, NO_HINTS)
        assert batch["id"] in refusal.value.message
        assert refusal.value.code == "file_in_use"
    assert gateway.calls() == calls
    gateway.finish()
    retrieve(gateway, alice, batch["id"])
    gateway.files.delete(alice, file_id, NO_HINTS)
    assert retrieve(gateway, alice, batch["id"])["input_file_id"] == file_id


def test_the_input_of_a_batch_that_was_given_up_can_be_deleted(gateway, alice, batch):
    gateway.change(state="lost")
    gateway.files.delete(alice, batch["input_file_id"], NO_HINTS)


# Without a row


def started_elsewhere(gateway, caller, deployment_id: str) -> str:
    """The upstream's id of a batch that has no row."""
    fake = gateway.fakes[deployment_id]
    gateway.start(caller, gateway.upload(caller, make_rows("a"), model="a"))
    with gateway.database.write() as session:
        session.execute(delete(Job))
    [found] = [f for f in gateway.fakes.values() if f.remote_batches]
    [raw] = found.remote_batches
    if found is not fake:
        fake.remote_batches[raw] = found.remote_batches.pop(raw)
    return str(raw)


@pytest.mark.parametrize("deployment_id", ["a-1", "a-2"])
def test_an_admin_uses_a_batch_without_a_row_by_its_encoded_id(gateway, root, deployment_id):
    raw = started_elsewhere(gateway, root, deployment_id)
    gateway.fakes[deployment_id].step(raw, output_file_id="file-o")
    encoded = ids.encode_batch(raw, "a")
    shown = retrieve(gateway, root, encoded)
    assert (shown["id"], shown["output_file_id"]) == (encoded, ids.encode_file("file-o", "a"))
    assert shown["error_file_id"] is None
    assert ids.decode(shown["input_file_id"]).model == "a"  # type: ignore[union-attr]  # an encoded id
    assert cancel(gateway, root, encoded)["status"] == "cancelling"
    assert gateway.rows() == []


def test_an_admin_uses_a_batch_without_a_row_by_its_own_id(gateway, root):
    raw = started_elsewhere(gateway, root, "azure-account")
    shown = retrieve(gateway, root, raw, custom_llm_provider="azure")
    assert shown["id"] == raw
    with pytest.raises(NotFound):
        retrieve(gateway, root, raw, custom_llm_provider="openai")
    with pytest.raises(NotFound):
        retrieve(gateway, root, "batch_unknown", model="a")


def test_an_admin_starts_a_batch_on_a_file_without_a_row(gateway, root):
    gateway.upload(root, model="b")
    [raw] = gateway.fakes["b-1"].stored
    with gateway.database.write() as session:
        for copy in gateway.copies():
            session.delete(session.merge(copy))
    batch = gateway.start(root, ids.encode_file(raw, "b"))
    assert batch["id"] == ids.encode_batch(gateway.row().upstream_id or "", "b")
    assert gateway.row().input_uuid is None
    assert batch["endpoint"] == ENDPOINT
