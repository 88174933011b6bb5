"""What batches and fine-tuning jobs have in common: input, intents and answers, outputs, ids."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Connection, event

from app import ids
from app.db.tables import now
from app.errors import (
    Conflict,
    DatabaseUnavailable,
    FileNotAvailable,
    InvalidRequest,
    ModelAccessDenied,
    NotFound,
    NotPermitted,
    NotSupported,
    UnknownModel,
    UpstreamAuthFailed,
    UpstreamError,
    UpstreamRejected,
    UpstreamTimeout,
)
from app.services.job_lists import JobQuery
from app.services.jobs import Source, UnrecordedJob
from app.services.router import Selector
from tests.builders import make_deployment
from tests.conftest import NO_HINTS, make_caller
from tests.job_builders import WithoutJobs, hints, make_job_gateway, make_rows

LOST = UpstreamTimeout("openai did not answer in time")


@pytest.fixture
def gateway(database):
    return make_job_gateway(database)


def source(gateway, caller, file_id: str, **by: Any) -> Source:
    found: Source = gateway.jobs.source(caller, file_id, hints(**by), "input_file_id")
    return found


def raw_of(gateway, deployment_id: str) -> str:
    [raw] = gateway.fakes[deployment_id].stored
    return str(raw)


# Sources


def test_a_unified_file_is_at_every_deployment_of_its_models(gateway, alice):
    found = source(gateway, alice, gateway.upload(alice, names=("a", "b")))
    assert set(found.raw_by_deployment) == {"a-1", "a-2", "b-1"}
    assert (found.kind, found.purpose, found.unready) == ("unified", "batch", frozenset())
    assert found.model_names == {"a-1": "a", "a-2": "a", "b-1": "b"}
    assert set(found.where) == {"a", "b"}


@pytest.mark.parametrize("by", [{}, {"model": "b"}, {"custom_llm_provider": "azure"}])
def test_an_id_of_ours_decides_alone(gateway, alice, by):
    unified = gateway.upload(alice, names=("a",))
    encoded = gateway.upload(alice, model="a")
    assert source(gateway, alice, unified, **by).kind == "unified"
    assert source(gateway, alice, encoded, **by).kind == "encoded"
    assert len(source(gateway, alice, encoded, **by).raw_by_deployment) == 1


@pytest.mark.parametrize(
    ("by", "kind"),
    [({}, "raw"), ({"custom_llm_provider": "openai"}, "raw"), ({"model": "b"}, "encoded")],
)
def test_a_providers_own_id_means_that_copy_and_no_other(gateway, alice, by, kind):
    gateway.upload(alice, names=("a", "b"))
    raw = raw_of(gateway, "b-1")
    found = source(gateway, alice, raw, **by)
    assert found.raw_by_deployment == {"b-1": raw}
    assert found.kind == kind


def test_an_encoded_id_of_a_copy_means_that_copy(gateway, alice):
    gateway.upload(alice, names=("a", "b"))
    raw = raw_of(gateway, "a-2")
    found = source(gateway, alice, ids.encode_file(raw, "a"))
    assert found.raw_by_deployment == {"a-2": raw}


def test_a_copy_that_has_expired_is_none(gateway, alice):
    file_id = gateway.upload(alice)
    with gateway.database.write() as session:
        copy = session.merge(gateway.copies()[0])
        copy.expires_at = now()
    assert len(source(gateway, alice, file_id).raw_by_deployment) == 1


def test_a_file_that_is_being_processed_is_known_as_such(gateway, alice):
    file_id = gateway.upload(alice)
    with gateway.database.write() as session:
        copy = session.merge(gateway.copies()[0])
        copy.state = "stored"
    assert source(gateway, alice, file_id).unready == {copy.deployment_id}


def test_somebody_elses_file_is_no_source(gateway, alice, bob, viewer, root):
    unified = gateway.upload(alice, names=("a",))
    encoded = gateway.upload(alice, model="b")
    raw = gateway.upload(alice, provider="openai")
    copy = raw_of(gateway, "a-1")
    calls = gateway.calls()
    for file_id in (unified, encoded, raw, copy, ids.encode_file(copy, "a")):
        with pytest.raises(NotPermitted):
            source(gateway, bob, file_id)
        assert source(gateway, root, file_id).file_uuid
    assert gateway.calls() == calls


def test_a_file_without_a_row_is_for_admins(gateway, alice, root):
    for file_id in ("file-x", ids.encode_file("file-x", "a")):
        with pytest.raises(NotFound):
            source(gateway, alice, file_id, model="a")
        found = source(gateway, root, file_id, model="a")
        assert found.raw_by_deployment == {"a-1": "file-x", "a-2": "file-x"}
        assert (found.kind, found.file_uuid, found.purpose) == ("encoded", None, None)
    found = source(gateway, root, "file-x", custom_llm_provider="azure")
    assert (found.kind, found.raw_by_deployment) == ("raw", {"azure-account": "file-x"})


# Routes


def route(gateway, caller, *sources: Source, model: str | None = None, kind="batch") -> Any:
    return gateway.jobs.route(caller, kind, list(sources), model)


def test_a_job_goes_where_the_file_is(gateway, alice):
    found = source(gateway, alice, gateway.upload(alice))
    seen = {route(gateway, alice, found).deployment.id for _ in range(50)}
    assert seen == {"a-1", "a-2"}
    gateway.router.rest("a-1")
    assert route(gateway, alice, found).deployment.id == "a-2"


def test_of_several_models_one_must_be_named(gateway, alice):
    found = source(gateway, alice, gateway.upload(alice, names=("a", "b")))
    with pytest.raises(InvalidRequest, match="name one as model: a, b") as refusal:
        route(gateway, alice, found)
    assert refusal.value.param == "model"
    assert route(gateway, alice, found, model="b").upstream_model == "up-b"
    assert route(gateway, alice, found, model="openai/up-b").model_name == "b"


@pytest.mark.parametrize(
    ("model", "error"), [("b", FileNotAvailable), ("nothing", UnknownModel), ("", UnknownModel)]
)
def test_a_model_without_the_file_is_said(gateway, alice, model, error):
    found = source(gateway, alice, gateway.upload(alice))
    with pytest.raises(error) as refusal:
        route(gateway, alice, found, model=model)
    if error is FileNotAvailable:
        assert "it is at: a" in refusal.value.message
        assert (refusal.value.param, refusal.value.status) == ("input_file_id", 400)


def test_two_files_must_be_at_one_place(gateway, alice):
    both = source(gateway, alice, gateway.upload(alice, names=("a", "b")))
    only = source(gateway, alice, gateway.upload(alice, names=("b",)))
    other = source(gateway, alice, gateway.upload(alice, names=("a",)))
    assert route(gateway, alice, both, only).deployment.id == "b-1"
    with pytest.raises(FileNotAvailable):
        route(gateway, alice, other, only)
    with pytest.raises(FileNotAvailable):
        route(gateway, alice, both, only, model="a")


def test_a_key_whose_list_became_shorter_starts_nothing(gateway, alice):
    for file_id in (gateway.upload(alice, names=("a",)), gateway.upload(alice, model="a")):
        found = source(gateway, alice, file_id)
        less = make_caller("alice", key_models=["b"])
        with pytest.raises(ModelAccessDenied):
            route(gateway, less, found)
        with pytest.raises(ModelAccessDenied):
            route(gateway, less, found, model="a")


def test_behind_a_wildcard_the_name_is_the_copys(database, alice):
    wild = make_deployment("w", model_name="open/*", upstream_model="*")
    gateway = make_job_gateway(database, [wild])
    found = source(gateway, alice, gateway.upload(alice, names=("open/x",)))
    chosen = route(gateway, alice, found)
    assert (chosen.model_name, chosen.upstream_model) == ("open/x", "x")
    with pytest.raises(FileNotAvailable):
        route(gateway, alice, found, model="open/y")
    with pytest.raises(ModelAccessDenied):
        route(gateway, make_caller("alice", key_models=["open/y"]), found)
    assert gateway.start(alice, gateway.upload(alice, names=("open/x",)))["status"] == "validating"


def test_a_provider_that_can_is_chosen_before_one_that_cannot(database, alice):
    gateway = make_job_gateway(database, fakes={"a-1": WithoutJobs, "b-1": WithoutJobs})
    found = source(gateway, alice, gateway.upload(alice, names=("a", "b")))
    assert {route(gateway, alice, found).deployment.id for _ in range(20)} == {"a-2"}


@pytest.mark.parametrize("kind", ["batch", "fine_tuning"])
def test_where_no_provider_can_it_is_said_at_once(database, alice, kind):
    gateway = make_job_gateway(database, fakes={"b-1": WithoutJobs})
    found = source(gateway, alice, gateway.upload(alice, names=("b",)))
    calls = gateway.calls()
    with pytest.raises(NotSupported) as refusal:
        route(gateway, alice, found, kind=kind)
    assert (refusal.value.status, refusal.value.code) == (400, "unsupported_operation")
    assert gateway.calls() == calls and gateway.rows() == []


def test_a_file_at_an_account_that_is_gone(database, alice):
    file_id = make_job_gateway(database).upload(alice, names=("b",))
    gateway = make_job_gateway(database, [make_deployment("new", model_name="b")])
    with pytest.raises(FileNotAvailable, match="no account that is configured"):
        route(gateway, alice, source(gateway, alice, file_id))


# Files that are not ready


def not_ready(gateway, caller, **status: Any) -> Source:
    file_id = gateway.upload(caller, names=("b",))
    with gateway.database.write() as session:
        for copy in gateway.copies():
            session.merge(copy).state = "stored"
    gateway.fakes["b-1"].change(raw_of(gateway, "b-1"), **{"status": "uploaded", **status})
    return source(gateway, caller, file_id)


def test_a_file_is_waited_for(database, alice):
    gateway = make_job_gateway(database, file_wait_seconds=30.0)
    found = not_ready(gateway, alice)
    raw = raw_of(gateway, "b-1")
    timer = threading.Timer(0.3, lambda: gateway.fakes["b-1"].change(raw, status="processed"))
    timer.start()
    begun = time.monotonic()
    gateway.jobs.await_ready(route(gateway, alice, found), found)
    assert 0.2 < time.monotonic() - begun < 5
    timer.join()


def test_a_file_is_waited_for_within_a_bound(database, alice):
    gateway = make_job_gateway(database, file_wait_seconds=0.3)
    found = not_ready(gateway, alice)
    with pytest.raises(Conflict, match="still being processed") as refusal:
        gateway.jobs.await_ready(route(gateway, alice, found), found)
    assert (refusal.value.status, refusal.value.code) == (409, "file_not_ready")
    # This conflict goes away, and nothing was started: the client may try again.
    assert refusal.value.headers["x-should-retry"] == "true"
    assert int(refusal.value.headers["Retry-After"]) > 0
    assert gateway.rows() == []


def test_a_file_that_its_upstream_refused_is_said(gateway, alice):
    found = not_ready(gateway, alice, status="error", status_details="line 3 is odd")
    with pytest.raises(InvalidRequest, match="could not process .*: line 3 is odd"):  # noqa: RUF043
        gateway.jobs.await_ready(route(gateway, alice, found), found)


def test_a_file_that_is_ready_is_not_asked_for(gateway, alice):
    found = source(gateway, alice, gateway.upload(alice))
    calls = gateway.calls()
    gateway.jobs.await_ready(route(gateway, alice, found), found)
    assert gateway.calls() == calls


# Intents and answers


@pytest.mark.parametrize(
    "error",
    [
        UpstreamRejected("bad", status=400),
        UpstreamRejected("busy", status=429, retryable=True),
        UpstreamRejected("busy", status=503, retryable=True),
        UpstreamError("unreachable", retryable=True),
        UpstreamAuthFailed("our key"),
        NotFound("no such file"),
        NotSupported("no"),
    ],
    ids=lambda error: error.message,
)
def test_a_refusal_leaves_nothing_behind(gateway, alice, error):
    file_id = gateway.upload(alice, names=("b",))
    gateway.fakes["b-1"].fail_next(error, method="create_batch")
    with pytest.raises(type(error)) as refusal:
        gateway.start(alice, file_id)
    assert "x-should-retry" not in refusal.value.headers
    row = gateway.row()
    assert (row.state, row.upstream_id, row.last_error) == ("void", None, error.message)
    assert gateway.upkeep.due() == []
    gateway.files.delete(alice, file_id, NO_HINTS)


@pytest.mark.parametrize(
    "error",
    [LOST, UpstreamError("broken"), UpstreamRejected("oops", status=500)],
    ids=lambda error: error.message,
)
def test_a_lost_answer_leaves_an_intent_and_is_not_repeated(gateway, alice, error):
    file_id = gateway.upload(alice, names=("b",))
    gateway.fakes["b-1"].fail_next(error, method="create_batch")
    with pytest.raises(type(error)) as failure:
        gateway.start(alice, file_id)
    assert failure.value.headers["x-should-retry"] == "false"
    row = gateway.row()
    assert (row.state, row.status) == ("intended", "unanswered")
    assert gateway.upkeep.due() == [row.id], "the worker asks what became of it at once"
    with pytest.raises(NotFound):
        gateway.batches.retrieve(alice, row.public_id, NO_HINTS)
    with pytest.raises(Conflict, match="a job that is starting|unanswered"):  # noqa: RUF043
        gateway.files.delete(alice, file_id, NO_HINTS)


def test_the_row_is_there_before_the_upstream_is_asked(gateway, alice):
    seen = []
    file_id = gateway.upload(alice, names=("b",))
    fake = gateway.fakes["b-1"]
    begin = fake.create_batch

    def spy(request):
        seen.append((gateway.row().state, gateway.row().upstream_input_id))
        return begin(request)

    fake.create_batch = spy
    gateway.start(alice, file_id)
    assert seen == [("intended", raw_of(gateway, "b-1"))]


def test_a_failing_note_does_not_hide_the_upstreams_error(gateway, alice):
    file_id = gateway.upload(alice, names=("b",))
    fake = gateway.fakes["b-1"]
    with DatabaseDown(gateway, fake, "create_batch", LOST), pytest.raises(UpstreamTimeout) as error:
        gateway.start(alice, file_id)
    assert error.value.headers["x-should-retry"] == "false"
    assert gateway.row().status == "intended"


def test_the_database_fails_right_after_the_upstream_accepted(gateway, alice):
    file_id = gateway.upload(alice, names=("b",))
    fake = gateway.fakes["b-1"]
    with DatabaseDown(gateway, fake, "create_batch"), pytest.raises(DatabaseUnavailable) as error:
        gateway.start(alice, file_id, metadata={"k": "v"})
    assert error.value.headers["x-should-retry"] == "false"
    assert error.value.status == 503
    assert gateway.row().state == "intended"
    assert gateway.look() == [True]
    row = gateway.row()
    assert (row.state, row.upstream_id) == ("active", *fake.remote_batches)
    shown = gateway.batches.retrieve(alice, row.public_id, NO_HINTS)
    assert (shown["input_file_id"], shown["metadata"]) == (file_id, {"k": "v"})
    assert len(fake.called("create_batch")) == 1


class DatabaseDown:
    """Writes fail from the moment at which a fake has done `method`, until the block ends."""

    def __init__(self, gateway, fake, method: str, error: Exception | None = None) -> None:
        self._database = gateway.database
        self._fake = fake
        self._method = method
        self._error = error

    def __enter__(self):
        work = getattr(self._fake, self._method)

        def and_then_fail(*arguments: Any) -> Any:
            answer = work(*arguments)
            event.listen(self._database.engine, "begin", _refuse_writes)
            if self._error is not None:
                raise self._error
            return answer

        setattr(self._fake, self._method, and_then_fail)

    def __exit__(self, *_: object) -> None:
        delattr(self._fake, self._method)
        event.remove(self._database.engine, "begin", _refuse_writes)
        if self._database.engine.dialect.name == "sqlite":
            with self._database.engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA query_only=OFF")


def _refuse_writes(connection: Connection) -> None:
    is_sqlite = connection.dialect.name == "sqlite"
    connection.exec_driver_sql("PRAGMA query_only=ON" if is_sqlite else "SET TRANSACTION READ ONLY")


def test_an_answer_that_comes_late_revives_its_intent(gateway, alice):
    file_id = gateway.upload(alice, names=("b",))
    fake = gateway.fakes["b-1"]
    begin = fake.create_batch

    def slow(request):
        gateway.change(state="void")
        return begin(request)

    fake.create_batch = slow
    batch = gateway.start(alice, file_id)
    assert gateway.row().state == "active"
    assert gateway.batches.retrieve(alice, batch["id"], NO_HINTS)["id"] == batch["id"]


def test_the_worker_may_link_a_job_before_its_own_answer_comes(gateway, alice):
    file_id = gateway.upload(alice, names=("b",))
    fake = gateway.fakes["b-1"]
    begin = fake.create_batch

    def slow(request):
        answer = begin(request)
        assert gateway.look() == [True]
        assert gateway.row().state == "active"
        return answer

    fake.create_batch = slow
    batch = gateway.start(alice, file_id)
    row = gateway.row()
    assert (row.state, row.public_id) == ("active", batch["id"])
    assert [row.upstream_id] == list(fake.remote_batches)


def test_an_error_after_the_worker_linked_the_job_does_not_lose_it(gateway, alice):
    file_id = gateway.upload(alice, names=("b",))
    fake = gateway.fakes["b-1"]
    begin = fake.create_batch

    def slow(request):
        begin(request)
        assert gateway.look() == [True]
        raise LOST

    fake.create_batch = slow
    with pytest.raises(UpstreamTimeout):
        gateway.start(alice, file_id)
    assert gateway.row().state == "active"
    [shown] = gateway.batches.page(alice, JobQuery(), Selector())["data"]
    assert shown["status"] == "validating"


@pytest.mark.parametrize("way", [{"names": ("b",)}, {"model": "b"}, {"provider": "openai"}])
def test_the_worker_took_one_requests_job_for_anothers(gateway, alice, way):
    """Two equal requests: the first one's never began, and the second one's is found for it."""
    file_id = gateway.upload(alice, make_rows("b"), **way)
    [fake] = [fake for fake in gateway.fakes.values() if fake.stored]
    fake.fail_next(LOST, method="create_batch")
    with pytest.raises(UpstreamTimeout):
        gateway.start(alice, file_id)
    begin = fake.create_batch

    def slow(request):
        answer = begin(request)
        assert gateway.look() == [True, True]
        return answer

    fake.create_batch = slow
    batch = gateway.start(alice, file_id)
    [raw] = fake.remote_batches
    first, second = gateway.rows()
    assert (second.upstream_id, second.state, second.public_id) == (raw, "active", batch["id"])
    assert (first.upstream_id, first.state) == (None, "intended")
    assert [b["id"] for b in gateway.batches.page(alice, JobQuery(), Selector())["data"]] == [
        batch["id"]
    ]


def test_each_lost_answer_finds_its_own_job(gateway, alice):
    file_id = gateway.upload(alice, names=("b",))
    fake = gateway.fakes["b-1"]
    for name in ("first", "second"):
        fake.fail_next(LOST, method="create_batch", after_doing=True)
        with pytest.raises(UpstreamTimeout):
            gateway.start(alice, file_id, metadata={"name": name})
    assert gateway.look() == [True, True]
    for row in gateway.rows():
        told = fake.remote_batches[row.upstream_id or ""]["metadata"] or {}
        assert (told, row.state) == (row.request["metadata"], "active")


def test_an_upstream_that_gives_away_somebody_elses_job(gateway, alice, bob):
    first = gateway.start(alice, gateway.upload(alice, names=("b",)))
    fake = gateway.fakes["b-1"]
    [theirs] = fake.remote_batches.values()
    fake.create_batch = lambda _request: theirs
    with pytest.raises(UpstreamError, match="the id of another job") as error:
        gateway.start(bob, gateway.upload(bob, names=("b",)))
    assert error.value.headers["x-should-retry"] == "false"
    assert gateway.batches.retrieve(alice, first["id"], NO_HINTS)["id"] == first["id"]


def test_a_status_that_is_very_long_is_no_trouble(database, alice):
    gateway = make_job_gateway(database)
    batch = gateway.start(alice, gateway.upload(alice, names=("b",)))
    fake, raw = gateway.upstream()
    fake.step(raw, status="x" * 100)
    assert gateway.batches.retrieve(alice, batch["id"], NO_HINTS)["status"] == "x" * 32


# Ends


def test_the_end_is_neither_overwritten_nor_lost(gateway, alice):
    batch = gateway.start(alice, gateway.upload(alice, names=("b",)))
    old = gateway.row()
    gateway.finish()
    done = gateway.batches.retrieve(alice, batch["id"], NO_HINTS)
    # Somebody asked before it had ended, and comes to write what he was told only now.
    gateway.jobs.save(old, {"id": "x", "status": "in_progress"}, is_final=False)
    assert gateway.row().state == "final"
    assert old.status == "completed"
    assert gateway.batches.shown(old) == done


def test_looks_come_less_often_until_something_happens(gateway, alice):
    gateway.start(alice, gateway.upload(alice, names=("b",)))
    gaps = []
    for _ in range(4):
        gateway.look()
        gaps.append((gateway.row().next_look_at - now()).total_seconds())
    assert gaps == sorted(gaps) and gaps[-1] > 3 * gaps[0]
    fake, raw = gateway.upstream()
    fake.step(raw, status="in_progress")
    gateway.look()
    assert (gateway.row().next_look_at - now()).total_seconds() < gaps[0]


def test_a_client_that_asks_all_the_time_does_not_put_the_worker_off(gateway, alice):
    batch = gateway.start(alice, gateway.upload(alice, names=("b",)))
    for _ in range(30):
        gateway.batches.retrieve(alice, batch["id"], NO_HINTS)
    assert (gateway.row().next_look_at - now()).total_seconds() < 6


@pytest.mark.parametrize("looks", [0, 1, 10, 10_000])
def test_pauses_have_bounds(database, looks):
    gateway = make_job_gateway(database, poll_seconds=2.0, poll_max_seconds=60.0)
    assert 2 <= gateway.jobs.pause(looks).total_seconds() <= 60
    odd = make_job_gateway(database, poll_seconds=90.0, poll_max_seconds=60.0)
    assert odd.jobs.pause(looks).total_seconds() == 90


# Ids


@pytest.mark.parametrize("way", [{"names": ("b",)}, {"model": "b"}, {"provider": "openai"}])
def test_every_id_of_a_job_is_its_owners(gateway, alice, bob, viewer, root, way):
    batch = gateway.start(alice, gateway.upload(alice, make_rows("b"), **way))
    row = gateway.row()
    calls = gateway.calls()
    known = [batch["id"], row.upstream_id]
    if "provider" not in way:
        known.append(ids.encode_batch(row.upstream_id or "", "b"))
    for job_id in known:
        for caller in (alice, root, viewer):
            assert gateway.jobs.resolve(caller, "batch", job_id, NO_HINTS).id == row.id
        for changing in (False, True):
            with pytest.raises(NotPermitted, match="User bob does not have access to the object"):
                gateway.jobs.resolve(bob, "batch", job_id, NO_HINTS, changing=changing)
        with pytest.raises(NotPermitted):
            gateway.jobs.resolve(viewer, "batch", job_id, NO_HINTS, changing=True)
        with pytest.raises(NotFound):
            gateway.jobs.resolve(alice, "fine_tuning", row.public_id, NO_HINTS)
    forged = ids.encode_unified_job("batch", "a-1", row.id)
    with pytest.raises(NotFound):
        gateway.jobs.resolve(alice, "batch", forged, NO_HINTS)
    assert gateway.calls() == calls


def test_what_is_not_ones_own_may_be_hidden(database, alice, bob):
    gateway = make_job_gateway(database, hide_foreign_objects=True)
    batch = gateway.start(alice)
    with pytest.raises(NotFound) as refusal:
        gateway.jobs.resolve(bob, "batch", batch["id"], NO_HINTS)
    assert refusal.value.message == f"No such Batch object: {batch['id']}"


def test_two_accounts_may_use_the_same_id(gateway, alice, bob):
    for caller, names in ((alice, ("a",)), (bob, ("b",))):
        gateway.start(caller, gateway.upload(caller, names=names))
    gateway.change(upstream_id="batch_same")
    for caller in (alice, bob):
        assert gateway.jobs.resolve(caller, "batch", "batch_same", NO_HINTS).owner == caller.owner
    with pytest.raises(NotPermitted):
        encoded = ids.encode_batch("batch_same", "b")
        gateway.jobs.resolve(alice, "batch", encoded, NO_HINTS)


@pytest.mark.parametrize("job_id", ["", "../x", "a\0b", "batch_unknown", "x" * 5000, "litellm"])
def test_an_unknown_id_is_not_found(database, alice, job_id):
    gateway = make_job_gateway(database)
    for kind in ("batch", "fine_tuning"):
        with pytest.raises(NotFound) as refusal:
            gateway.jobs.resolve(alice, kind, job_id, NO_HINTS)
        assert len(refusal.value.message) < 300


def test_a_job_without_a_row_is_for_admins(gateway, alice, viewer, root):
    encoded = ids.encode_batch("batch_x", "a")
    for caller in (alice, viewer):
        for job_id in ("batch_x", encoded):
            with pytest.raises(NotFound):
                gateway.jobs.resolve(caller, "batch", job_id, NO_HINTS)
    assert gateway.jobs.resolve(root, "batch", encoded, NO_HINTS) == UnrecordedJob(
        "batch_x", encoded, "a"
    )
    unified = ids.encode_unified_job("batch", "a-1", "2a839b2a-7c25-4b55-a51a-ef7a89c76d35")
    with pytest.raises(NotFound):
        gateway.jobs.resolve(root, "batch", unified, NO_HINTS)
    with pytest.raises(NotFound):
        # What is inside of it goes into an address.
        gateway.jobs.resolve(root, "batch", ids.encode_batch("../files", "a"), NO_HINTS)


def test_without_a_shared_database_anybody_may_use_what_nobody_has(database, alice, bob):
    gateway = make_job_gateway(database, allow_unrecorded_ids=True)
    assert isinstance(gateway.jobs.resolve(bob, "batch", "batch_x", NO_HINTS), UnrecordedJob)
    gateway.start(alice, gateway.upload(alice, names=("b",)))
    raw = gateway.row().upstream_id or ""
    for job_id in (raw, ids.encode_batch(raw, "b")):
        with pytest.raises(NotPermitted):
            gateway.jobs.resolve(bob, "batch", job_id, NO_HINTS)
    # The same account under another of its names: it is alice's there too.
    with pytest.raises(NotFound):
        gateway.jobs.resolve(bob, "batch", ids.encode_batch(raw, "a"), NO_HINTS)


# Outputs


def test_an_output_has_one_row_and_one_id_whoever_looks(served_database, alice):
    gateway = make_job_gateway(served_database)
    batch = gateway.start(alice, gateway.upload(alice, names=("b",)))
    gateway.finish(b"out\n", b"err\n")
    gateway.come_due()
    job_uuid = gateway.row().id

    def look(number: int) -> Any:
        if number % 5 == 0:
            gateway.upkeep.look(job_uuid)
        return gateway.batches.retrieve(alice, batch["id"], NO_HINTS)

    with ThreadPoolExecutor(10) as pool:
        seen = list(pool.map(look, range(25)))
    assert len({(b["output_file_id"], b["error_file_id"]) for b in seen}) == 1
    files = {file.public_id: file for file in gateway.stored("batch_output")}
    assert set(files) == {seen[0]["output_file_id"], seen[0]["error_file_id"]}
    assert {file.owner for file in files.values()} == {alice.owner}
    assert gateway.row().state == "final"


def test_an_output_is_its_jobs_owners_whoever_looks_first(gateway, alice, bob, root, viewer):
    for first in (root, viewer, alice, None):
        batch = gateway.start(alice, gateway.upload(alice, names=("b",)))
        row = gateway.rows()[-1]
        gateway.fakes["b-1"].finish(row.upstream_id or "", b"{}\n")
        if first is None:
            gateway.look()
            first = alice  # noqa: PLW2901
        shown = gateway.batches.retrieve(first, batch["id"], NO_HINTS)
        output = shown["output_file_id"]
        assert gateway.files.retrieve(alice, output, NO_HINTS)["bytes"] == 3
        with pytest.raises(NotPermitted):
            gateway.files.retrieve(bob, output, NO_HINTS)


def test_an_owner_who_is_deleted_in_the_middle_of_a_look(gateway, alice):
    gateway.start(alice, gateway.upload(alice, names=("b",)))
    gateway.finish()
    fake, _ = gateway.upstream()
    retrieve = fake.retrieve

    def slow(file_id):
        gateway.change(owner="deleted-user:alice:1")
        return retrieve(file_id)

    fake.retrieve = slow
    assert gateway.look() == [True]
    [output] = gateway.stored("batch_output")
    assert output.owner == "deleted-user:alice:1"


def test_an_output_that_is_not_there_yet_is_waited_for(gateway, alice):
    batch = gateway.start(alice, gateway.upload(alice, names=("b",)))
    gateway.finish()
    fake, _raw = gateway.upstream()
    kept = dict(fake.stored)
    fake.stored.clear()
    shown = gateway.batches.retrieve(alice, batch["id"], NO_HINTS)
    assert (shown["status"], shown["output_file_id"]) == ("validating", None)
    assert gateway.look() == [True]
    assert (gateway.row().state, gateway.row().lease_until) == ("active", None)
    fake.stored.update(kept)
    shown = gateway.batches.retrieve(alice, batch["id"], NO_HINTS)
    assert shown["status"] == "completed" and shown["output_file_id"]


def test_an_output_that_has_expired_does_not_keep_a_job_from_its_end(gateway, alice):
    batch = gateway.start(alice, gateway.upload(alice, names=("b",)))
    gateway.finish()
    fake, raw = gateway.upstream()
    fake.step(raw, completed_at=int(time.time()) - 7200)
    fake.stored.clear()
    shown = gateway.batches.retrieve(alice, batch["id"], NO_HINTS)
    assert (shown["status"], shown["output_file_id"]) == ("completed", None)
    assert gateway.row().state == "final"


def test_an_output_that_was_deleted_does_not_come_back(gateway, alice):
    batch = gateway.start(alice, gateway.upload(alice, names=("b",)))
    gateway.finish()
    output = gateway.batches.retrieve(alice, batch["id"], NO_HINTS)["output_file_id"]
    gateway.files.delete(alice, output, NO_HINTS)
    again = gateway.batches.retrieve(alice, batch["id"], NO_HINTS)
    assert again["output_file_id"] == output
    with pytest.raises(NotFound):
        gateway.files.retrieve(alice, output, NO_HINTS)


def test_a_job_of_an_account_that_is_gone_is_still_shown(database, alice):
    old = make_job_gateway(database)
    batch = old.start(alice, old.upload(alice, names=("b",)))
    gateway = make_job_gateway(database, [make_deployment("new", model_name="b")])
    shown = gateway.batches.retrieve(alice, batch["id"], NO_HINTS, with_state=True)
    assert shown["status"] == "validating"
    assert "no longer has the account" in shown["gateway"]["last_error"]
    with pytest.raises(UpstreamError, match="no longer has the account"):
        gateway.batches.cancel(alice, batch["id"], NO_HINTS)
