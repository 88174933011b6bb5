"""Fine-tuning jobs without HTTP: what is sent, what is shown, steering, results, tuned models."""

import time
from typing import Any

import pytest

from app import ids
from app.errors import (
    Conflict,
    FileNotAvailable,
    InvalidRequest,
    ModelAccessDenied,
    NotFound,
    NotPermitted,
    UnknownModel,
    UpstreamError,
    UpstreamRejected,
    UpstreamTimeout,
)
from app.services.job_lists import JobQuery
from app.services.router import Selector
from tests.builders import make_deployment
from tests.conftest import NO_HINTS, make_caller
from tests.job_builders import hints, make_job_gateway

TUNING = (
    make_deployment("tuning", model_name=None, upstream_model=""),
    make_deployment("tuning-azure", model_name=None, provider="azure", upstream_model=""),
)


@pytest.fixture
def gateway(database):
    return make_job_gateway(database)


@pytest.fixture
def job(gateway, alice):
    return gateway.tune(alice, upload(gateway, alice, names=("b",)), model="b")


def upload(gateway, caller, **way: Any) -> str:
    return str(gateway.upload(caller, b"{}\n", purpose="fine-tune", **way))


def retrieve(gateway, caller, job_id: str, **by: Any) -> Any:
    return gateway.tuning.retrieve(caller, job_id, hints(**by))


def steer(gateway, caller, job_id: str, action: Any = "cancel", **by: Any) -> Any:
    return gateway.tuning.steer(caller, job_id, action, hints(**by))


def sent(gateway) -> Any:
    """The body that the upstream was sent."""
    [(body,)] = [body for fake in gateway.fakes.values() for body in fake.called("create_job")]
    return body


# Create


def test_only_what_the_caller_set_goes_upstream(gateway, alice):
    file_id = upload(gateway, alice, names=("b",))
    given = {
        "suffix": "mine",
        "seed": 0,
        "method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.1, "new": None}}},
        "integrations": [{"type": "wandb", "wandb": {"project": "p"}}],
        "hyperparameters": {"n_epochs": "auto"},
        "metadata": {},
        "trainingType": "developerTier",
    }
    unset = {"validation_file": None, "x": None}
    routing = {"custom_llm_provider": "azure", "provider": "azure", "target_model_names": "a"}
    job = gateway.tune(alice, file_id, model="b", **given, **unset, **routing)
    [raw] = gateway.fakes["b-1"].stored
    assert sent(gateway) == {**given, "model": "up-b", "training_file": raw}
    assert {key: job[key] for key in given} == given
    assert (job["model"], job["training_file"], job["validation_file"]) == ("b", file_id, None)
    assert "custom_llm_provider" not in job


def test_both_files_are_those_of_the_chosen_deployment(gateway, alice):
    training = upload(gateway, alice, names=("a", "b"))
    validation = upload(gateway, alice, names=("b",))
    job = gateway.tune(alice, training, model="b", validation_file=validation)
    body = sent(gateway)
    assert {body["training_file"], body["validation_file"]} == set(gateway.fakes["b-1"].stored)
    assert (job["training_file"], job["validation_file"]) == (training, validation)
    row = gateway.row()
    assert row.input_uuid and row.validation_uuid and row.input_uuid != row.validation_uuid
    for file_id in (training, validation):
        with pytest.raises(Conflict, match="is the input of"):
            gateway.files.delete(alice, file_id, NO_HINTS)


def test_a_deployment_without_the_validation_file_is_none(gateway, alice):
    training = upload(gateway, alice, names=("a", "b"))
    validation = upload(gateway, alice, names=("b",))
    with pytest.raises(FileNotAvailable) as refusal:
        gateway.tune(alice, training, model="a", validation_file=validation)
    assert refusal.value.param == "validation_file"
    assert validation in refusal.value.message


@pytest.mark.parametrize(
    ("model", "error"), [("a", FileNotAvailable), ("none", UnknownModel), ("up-b", UnknownModel)]
)
def test_the_model_must_have_the_file(gateway, alice, model, error):
    file_id = upload(gateway, alice, names=("b",))
    with pytest.raises(error) as refusal:
        gateway.tune(alice, file_id, model=model)
    if error is FileNotAvailable:
        assert refusal.value.param == "training_file"
    assert gateway.rows() == []


@pytest.mark.parametrize("name", ["training_file", "validation_file"])
def test_a_file_of_another_purpose_is_refused(gateway, alice, name):
    files = {"training_file": upload(gateway, alice), "validation_file": upload(gateway, alice)}
    files[name] = gateway.upload(alice)
    with pytest.raises(InvalidRequest, match="'batch', not 'fine-tune'") as refusal:
        gateway.tuning.create(alice, {"model": "a", **files}, NO_HINTS)
    assert refusal.value.param == name


@pytest.mark.parametrize("name", ["training_file", "validation_file"])
@pytest.mark.parametrize("way", [{}, {"model": "a"}, {"provider": "openai"}])
def test_somebody_elses_file_starts_nothing(gateway, alice, bob, name, way):
    files = {"training_file": upload(gateway, bob, **way)}
    files["validation_file"] = upload(gateway, bob, **way)
    files[name] = upload(gateway, alice, **way)
    calls = gateway.calls()
    with pytest.raises(NotPermitted):
        gateway.tuning.create(bob, {"model": "a", **files}, NO_HINTS)
    assert gateway.calls() == calls and gateway.rows() == []


def test_a_key_whose_list_became_shorter_starts_nothing(gateway, alice):
    less = make_caller("alice", key_models=["a"])
    for way in ({"names": ("b",)}, {"model": "b"}):
        with pytest.raises(ModelAccessDenied):
            gateway.tune(less, upload(gateway, alice, **way), model="b")
    with pytest.raises(ModelAccessDenied, match="'gpt-x'"):
        gateway.tune(less, upload(gateway, alice, provider="openai"), model="gpt-x")
    assert gateway.rows() == []


WAYS: dict[str, Any] = {
    "unified": ({"names": ("b",)}, {}, False, "unified"),
    "encoded": ({"model": "b"}, {}, False, "unified"),
    "model and raw": ({"model": "b"}, {"model": "b"}, True, "unified"),
    "unified beside a provider": ({"names": ("b",)}, {"custom_llm_provider": "azure"}, False,
                                  "unified"),
    "raw": ({"model": "b"}, {}, True, "raw"),
    "provider and raw of a managed file": ({"names": ("b",)}, {"custom_llm_provider": "openai"},
                                           True, "raw"),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_each_way_gives_its_kind_of_id(gateway, alice, bob, way):
    how, by, is_raw, kind = WAYS[way]
    file_id = upload(gateway, alice, **how)
    [raw] = gateway.fakes["b-1"].stored
    job = gateway.tune(alice, raw if is_raw else file_id, model="b", by=by)
    row = gateway.row()
    [raw_job] = gateway.fakes["b-1"].remote_jobs
    unified = ids.encode_unified_job("fine_tuning", "b-1", row.id)
    assert (job["id"], row.kind) == (unified if kind == "unified" else raw_job, kind)
    assert sent(gateway)["model"] == "up-b"
    assert retrieve(gateway, alice, job["id"])["id"] == job["id"]
    listed = gateway.tuning.page(alice, JobQuery(), Selector())
    assert [j["id"] for j in listed["data"]] == [job["id"]]
    assert gateway.tuning.page(bob, JobQuery(), Selector())["data"] == []


def test_by_the_provider_way_the_model_is_the_providers_own(gateway, alice):
    file_id = upload(gateway, alice, provider="openai")
    job = gateway.tune(alice, file_id, model="gpt-x", by={"custom_llm_provider": "openai"})
    assert sent(gateway) == {"model": "gpt-x", "training_file": file_id}
    assert job["id"] in gateway.fakes["openai-account"].remote_jobs
    assert job["model"] == "gpt-x"


def test_a_copys_account_may_be_asked_in_its_own_words(gateway, alice):
    upload(gateway, alice, names=("b",))
    [raw] = gateway.fakes["b-1"].stored
    gateway.tune(alice, raw, model="up-b", by={"custom_llm_provider": "openai"})
    assert sent(gateway)["model"] == "up-b"


def test_finetune_settings_are_for_the_provider_way(database, alice):
    gateway = make_job_gateway(database, tuning=TUNING)
    gateway.fakes["tuning"].stored = gateway.fakes["openai-account"].stored
    file_id = upload(gateway, alice, provider="openai")
    job = gateway.tune(alice, file_id, model="gpt-x", validation_file=file_id)
    assert job["id"] in gateway.fakes["tuning"].remote_jobs
    assert sent(gateway)["validation_file"] == file_id
    assert retrieve(gateway, alice, job["id"])["id"] == job["id"]
    assert gateway.row().deployment_id == "tuning"


# Show


def test_an_end_shows_results_as_the_owners_files(gateway, alice, bob, root, job):
    fake, raw = gateway.upstream()
    result = gateway.fakes["b-1"].upload(_csv())
    fake.step_job(raw, status="succeeded", result_files=[result.id], fine_tuned_model="ft:b")
    shown = retrieve(gateway, root, job["id"])
    assert (shown["status"], shown["fine_tuned_model"]) == ("succeeded", "ft:b")
    [file_id] = shown["result_files"]
    file = gateway.files.retrieve(alice, file_id, NO_HINTS)
    assert (file["purpose"], file["filename"]) == ("fine-tune-results", "step_metrics.csv")
    content = gateway.files.content(alice, file_id, NO_HINTS)
    assert content.mime_type == "text/csv"
    with pytest.raises(NotPermitted):
        gateway.files.retrieve(bob, file_id, NO_HINTS)
    assert retrieve(gateway, alice, job["id"]) == shown
    assert gateway.row().state == "final"


def _csv() -> Any:
    from tests.builders import make_upload  # one use

    return make_upload(b"step,loss\n", filename="step_metrics.csv", purpose="fine-tune-results")


def test_what_the_upstream_says_beside_openais_fields_is_kept(gateway, alice, job):
    fake, raw = gateway.upstream()
    fake.step_job(raw, model="up-b", usage_metrics=7, training_file="raw", metadata={"x": "y"})
    shown = retrieve(gateway, alice, job["id"])
    assert (shown["usage_metrics"], shown["model"]) == (7, "b")
    assert shown["training_file"] == job["training_file"]


@pytest.mark.parametrize("error", [UpstreamError("broken"), UpstreamTimeout("slow"), NotFound("?")])
def test_during_trouble_upstream_the_row_answers(gateway, alice, job, error):
    fake, _ = gateway.upstream()
    fake.fail_next(error, method="retrieve_job")
    shown = gateway.tuning.retrieve(alice, job["id"], NO_HINTS, with_state=True)
    assert shown.pop("gateway")["last_error"] == error.message
    assert shown == job


@pytest.mark.parametrize("what", ["events", "checkpoints"])
def test_events_and_checkpoints_are_the_owners(gateway, alice, bob, viewer, job, what):
    fake, raw = gateway.upstream()
    item = {"id": "x", "fine_tuning_job_id": raw, "data": {}}
    page = {"object": "list", "data": [item, {"id": "y"}], "has_more": True}
    fake.job_page = lambda *_: page
    for caller in (alice, viewer):
        found = gateway.tuning.details(caller, job["id"], what, JobQuery(), NO_HINTS)
        assert found["data"] == [{**item, "fine_tuning_job_id": job["id"]}, {"id": "y"}]
        assert found["has_more"]
    with pytest.raises(NotPermitted):
        gateway.tuning.details(bob, job["id"], what, JobQuery(), NO_HINTS)


def test_a_page_of_events_goes_on_where_it_is_told(gateway, alice, job):
    fake, raw = gateway.upstream()
    query = JobQuery(limit=7, after="ftevent-1")
    gateway.tuning.details(alice, job["id"], "events", query, NO_HINTS)
    assert fake.called("job_page") == [(raw, "events", "ftevent-1", 7)]
    del fake.remote_jobs[raw]
    with pytest.raises(NotFound, match="is gone at its upstream"):
        gateway.tuning.details(alice, job["id"], "events", query, NO_HINTS)


# Steer


def test_a_job_is_paused_resumed_and_cancelled(gateway, alice, job):
    for action, status in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled")):
        shown = steer(gateway, alice, job["id"], action)
        assert (shown["status"], shown["id"]) == (status, job["id"])
    assert gateway.row().state == "final"
    calls = gateway.calls()
    assert steer(gateway, alice, job["id"])["status"] == "cancelled"
    for action in ("pause", "resume"):
        with pytest.raises(Conflict, match="it is cancelled"):
            steer(gateway, alice, job["id"], action)
    assert gateway.calls() == calls


@pytest.mark.parametrize("action", ["cancel", "pause", "resume"])
def test_nobody_else_steers_a_job(gateway, bob, viewer, root, job, action):
    calls = gateway.calls()
    for caller in (bob, viewer):
        with pytest.raises(NotPermitted):
            steer(gateway, caller, job["id"], action)
    assert gateway.calls() == calls
    assert steer(gateway, root, job["id"], action)["id"] == job["id"]
    assert gateway.row().owner == "user:alice"


@pytest.mark.parametrize("status", [400, 409])
def test_a_cancel_that_comes_late(gateway, alice, job, status):
    fake, raw = gateway.upstream()
    refusal = UpstreamRejected("the job has ended", status=status)
    fake.step_job(raw, status="cancelled")
    fake.fail_next(refusal, method="steer_job")
    assert steer(gateway, alice, job["id"])["status"] == "cancelled"
    gateway.change(state="active", status="running")
    fake.step_job(raw, status="failed")
    fake.fail_next(refusal, method="steer_job")
    with pytest.raises(UpstreamRejected, match="has ended"):
        steer(gateway, alice, job["id"])
    assert (gateway.row().status, gateway.row().state) == ("failed", "final")


@pytest.mark.parametrize("action", ["pause", "resume"])
def test_an_upstream_that_refuses_is_heard(gateway, alice, job, action):
    fake, _ = gateway.upstream()
    fake.fail_next(UpstreamRejected("not now", status=400), method="steer_job")
    with pytest.raises(UpstreamRejected, match="not now"):
        steer(gateway, alice, job["id"], action)


def test_after_a_failure_a_second_cancel_is_forwarded(gateway, alice, job):
    fake, _ = gateway.upstream()
    fake.fail_next(UpstreamRejected("oops", status=500), method="steer_job")
    with pytest.raises(UpstreamRejected):
        steer(gateway, alice, job["id"])
    assert steer(gateway, alice, job["id"])["status"] == "cancelled"


def test_a_job_that_its_upstream_has_lost_cannot_be_steered(gateway, alice, job):
    fake, raw = gateway.upstream()
    del fake.remote_jobs[raw]
    with pytest.raises(NotFound, match="is gone at its upstream"):
        steer(gateway, alice, job["id"])


# Without a row


def test_an_admin_uses_a_job_without_a_row(database, root, alice):
    gateway = make_job_gateway(database, tuning=TUNING)
    gateway.fakes["tuning-azure"].remote_jobs["ftjob-x"] = {"id": "ftjob-x", "status": "running"}
    by = {"custom_llm_provider": "azure"}
    assert retrieve(gateway, root, "ftjob-x", **by)["id"] == "ftjob-x"
    assert steer(gateway, root, "ftjob-x", "pause", **by)["status"] == "paused"
    found = gateway.tuning.details(root, "ftjob-x", "events", JobQuery(), hints(**by))
    assert found["data"] == []
    with pytest.raises(NotFound):
        retrieve(gateway, root, "ftjob-y", **by)
    for use in (retrieve, steer):
        with pytest.raises(NotFound):
            use(gateway, alice, "ftjob-x", **by)
    assert gateway.rows() == []


# Lost answers


def test_a_lost_answer_is_found(gateway, alice):
    file_id = upload(gateway, alice, names=("b",))
    fake = gateway.fakes["b-1"]
    fake.fail_next(UpstreamTimeout("slow"), method="create_job", after_doing=True)
    with pytest.raises(UpstreamTimeout):
        gateway.tune(alice, file_id, model="b", metadata={"k": "v"})
    assert gateway.look() == [True]
    [raw] = fake.remote_jobs
    row = gateway.row()
    assert (row.state, row.upstream_id) == ("active", raw)
    assert retrieve(gateway, alice, row.public_id or "")["metadata"] == {"k": "v"}
    assert len(fake.called("create_job")) == 1


# Tuned models


def succeed(gateway, name: str = "ft:b") -> None:
    fake, raw = gateway.upstream()
    now = int(time.time())
    fake.step_job(raw, status="succeeded", fine_tuned_model=name, finished_at=now)


def test_a_tuned_model_is_shown_and_not_registered_by_default(gateway, alice, job):
    succeed(gateway)
    assert retrieve(gateway, alice, job["id"])["fine_tuned_model"] == "ft:b"
    assert gateway.tuned_rows() == []


def test_a_tuned_model_is_its_owners_alone(database, alice, bob, root):
    gateway = make_job_gateway(database, auto_register_fine_tuned=True)
    file_id = upload(gateway, alice, names=("b",))
    gateway.tune(alice, file_id, model="b")
    succeed(gateway)
    # Whoever looks.
    assert gateway.look() == [True]
    assert "ft:b" in gateway.router.model_names(alice)
    [route] = gateway.router.routes("ft:b", alice)
    assert (route.deployment.id, route.upstream_model) == ("b-1", "ft:b")
    for caller in (bob, root):
        assert "ft:b" not in gateway.router.model_names(caller)
        with pytest.raises(UnknownModel):
            gateway.router.routes("ft:b", caller)
    # After a restart too.
    again = make_job_gateway(database, auto_register_fine_tuned=True)
    assert again.router.routes("ft:b", alice)[0].deployment.id == "b-1"


@pytest.mark.parametrize("status", ["failed", "cancelled", "running"])
def test_only_a_job_that_succeeded_makes_a_model(database, alice, status):
    gateway = make_job_gateway(database, auto_register_fine_tuned=True)
    gateway.tune(alice, upload(gateway, alice, names=("b",)), model="b")
    fake, raw = gateway.upstream()
    fake.step_job(raw, status=status, fine_tuned_model="ft:b")
    gateway.look()
    assert gateway.tuned_rows() == []


def test_a_model_that_must_be_deployed_first_is_not_registered(database, alice):
    gateway = make_job_gateway(database, auto_register_fine_tuned=True)
    gateway.tune(alice, upload(gateway, alice, names=("b",)), model="b")
    gateway.fakes["b-1"].serves_tuned_models = False  # type: ignore[misc]  # as azure's class says
    succeed(gateway)
    gateway.look()
    assert gateway.row().state == "final" and gateway.tuned_rows() == []
