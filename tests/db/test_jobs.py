"""Jobs as rows: whose they are, who may write when, who holds the lease, what a page shows."""

import datetime as dt
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError

from app import ids
from app.db import access
from app.db import jobs as rows
from app.db.tables import File, Job, TunedModel, UploadSession, now
from tests.access_builders import add_file

SECOND = dt.timedelta(seconds=1)
MINUTE = dt.timedelta(minutes=1)
# The cases below are made when the tests are collected, minutes before they run.
LONG = dt.timedelta(hours=6)


def make_job(**values: Any) -> Job:
    moment = now()
    job_uuid = str(uuid.uuid4())
    return Job(
        **{
            "id": job_uuid,
            "type": "batch",
            "kind": "unified",
            "public_id": ids.encode_unified_job("batch", "d-1", job_uuid),
            "owner": "user:alice",
            "model_name": "a",
            "deployment_id": "d-1",
            "provider": "openai",
            "upstream_id": f"batch_{job_uuid}",
            "upstream_input_id": "file-1",
            "input_uuid": None,
            "validation_uuid": None,
            "request": {},
            "snapshot": {},
            "status": "in_progress",
            "state": "active",
            "looks": 0,
            "next_look_at": moment - SECOND,
            "lease_until": None,
            "last_error": None,
            "created_at": moment,
            "updated_at": moment,
            **values,
        }
    )


def add(database, **values: Any) -> Job:
    job = make_job(**values)
    with database.write() as session:
        rows.insert(session, job)
    return job


def found(database, job: Job) -> Any:
    with database.read() as session:
        return rows.by_uuid(session, job.id)


def write(database, question, *arguments: Any, **values: Any) -> Any:
    with database.write() as session:
        return question(session, *arguments, **values)


def read(database, question, *arguments: Any, **values: Any) -> Any:
    with database.read() as session:
        return question(session, *arguments, **values)


# Values

ODD = {"half": "a\ud800b", "nul": "a\0b", "deep": [{"ü": 1.5}], "big": 2**70, "": None}


def test_a_row_comes_back_as_it_was_written(database):
    job = add(database, request=ODD, snapshot=ODD, lease_until=now())
    row = found(database, job)
    assert row.request == row.snapshot == ODD
    assert row.lease_until == job.lease_until and row.lease_until.tzinfo is not None


# Ids


def test_one_upstream_job_has_one_row(database):
    job = add(database)
    with pytest.raises(IntegrityError):
        add(database, upstream_id=job.upstream_id)
    add(database, upstream_id=job.upstream_id, deployment_id="d-2")
    add(database, upstream_id=job.upstream_id, type="fine_tuning")
    for _ in range(2):
        add(database, upstream_id=None)


def test_what_an_id_means(database):
    job = add(database)
    tuning = add(database, type="fine_tuning", upstream_id=job.upstream_id)
    other = add(database, upstream_id=job.upstream_id, deployment_id="d-2")

    def meant(kind, job_id):
        meaning = ids.decode_job(kind, job_id)
        return {found.id for found in read(database, rows.meant_by, kind, meaning, job_id)}

    assert meant("batch", job.public_id) == {job.id}
    assert meant("batch", job.upstream_id) == {job.id, other.id}
    assert meant("batch", ids.encode_batch(job.upstream_id or "", "m")) == {job.id, other.id}
    assert meant("fine_tuning", job.upstream_id) == {tuning.id}
    # It names the row of this job, and yet is not the id that was given out.
    assert meant("batch", ids.encode_unified_job("batch", "d-2", job.id)) == set()
    assert meant("batch", ids.encode_unified_job("batch", "d-1", tuning.id)) == set()


def test_an_imported_row_is_found_by_litellms_id(database):
    public_id = ids.encode_unified_job("batch", "d-1", "batch_raw")
    job = add(database, public_id=public_id, upstream_id="batch_raw")
    meaning = ids.decode_job("batch", public_id)
    assert [j.id for j in read(database, rows.meant_by, "batch", meaning, public_id)] == [job.id]


def test_which_upstream_ids_have_a_row(database):
    job = add(database, upstream_id="b-1")
    add(database, upstream_id="b-2", deployment_id="d-2")
    add(database, upstream_id=None)
    assert read(database, rows.linked, "d-1", "batch", ["b-1", "b-2", "b-3"]) == {"b-1"}
    assert read(database, rows.linked, "d-1", "batch", []) == set()
    assert read(database, rows.linked, "d-1", "fine_tuning", [job.upstream_id]) == set()


@pytest.mark.parametrize("state", ["intended", "active", "final", "lost", "void"])
@pytest.mark.parametrize("column", ["input_uuid", "validation_uuid"])
def test_a_file_is_read_by_jobs_that_have_not_ended(database, column, state):
    add(database, **{column: "file-uuid"}, state=state)
    running = read(database, rows.running_on, "file-uuid")
    assert (running is not None) == (state in ("intended", "active"))
    assert read(database, rows.running_on, "other") is None


# Writes


def test_the_end_is_written_once(database):
    job = add(database)
    assert write(database, rows.record_unless_final, job.id, state="final", status="completed")
    assert not write(database, rows.record_unless_final, job.id, state="active", status="x")
    assert found(database, job).status == "completed"
    assert not write(database, rows.record_unless_final, "nothing", status="x")


@pytest.mark.parametrize("state", ["void", "lost", "intended"])
def test_what_was_given_up_comes_back_when_the_answer_does(database, state):
    job = add(database, state=state)
    assert write(database, rows.record_unless_final, job.id, state="active")
    assert found(database, job).state == "active"


def test_a_write_may_depend_on_the_state(database):
    job = add(database, state="intended")
    assert write(database, rows.record_if, job.id, "intended", state="active")
    assert not write(database, rows.record_if, job.id, "intended", state="void")
    assert found(database, job).state == "active"


def test_a_guess_gives_way_to_what_is_linked(database):
    job = add(database, state="intended", upstream_id=None)
    assert write(database, rows.link, job.id, upstream_id="b-1", state="active")
    assert not write(database, rows.link, job.id, upstream_id="b-2", state="active")
    assert found(database, job).upstream_id == "b-1"
    void = add(database, state="void", upstream_id=None)
    assert write(database, rows.link, void.id, upstream_id="b-3", state="active")
    with pytest.raises(IntegrityError):
        other = add(database, state="intended", upstream_id=None)
        write(database, rows.link, other.id, upstream_id="b-3")


def test_an_answer_takes_its_job_from_another_intent(database):
    guessed = add(database, upstream_id="b-1", kind="encoded", public_id="batch_x")
    sure = make_job(upstream_id="b-1")
    assert write(database, rows.release, sure)
    row = found(database, guessed)
    assert (row.state, row.status, row.upstream_id) == ("intended", "unanswered", None)
    assert (row.public_id, row.snapshot) == (None, {})


def test_a_unified_id_stays_with_its_row(database):
    guessed = add(database, upstream_id="b-1")
    assert write(database, rows.release, make_job(upstream_id="b-1"))
    assert found(database, guessed).public_id == guessed.public_id


@pytest.mark.parametrize("more", [{"owner": "user:bob"}, {"upstream_input_id": "file-2"}])
def test_nobody_elses_job_is_taken(database, more):
    theirs = add(database, upstream_id="b-1", **more)
    assert not write(database, rows.release, make_job(upstream_id="b-1"))
    assert found(database, theirs).upstream_id == "b-1"


@pytest.mark.parametrize("more", [{"deployment_id": "d-2"}, {"type": "fine_tuning"}])
def test_another_accounts_job_is_no_obstacle(database, more):
    theirs = add(database, upstream_id="b-1", **more)
    assert write(database, rows.release, make_job(upstream_id="b-1"))
    assert found(database, theirs).upstream_id == "b-1"


# Leases


def test_what_is_due(database):
    moment = now()
    due = add(database, next_look_at=moment - MINUTE)
    intent = add(database, state="intended", next_look_at=moment - 2 * MINUTE)
    add(database, next_look_at=moment + MINUTE)
    add(database, lease_until=moment + MINUTE)
    freed = add(database, lease_until=moment - SECOND, next_look_at=moment - SECOND)
    for state in ("final", "lost", "void"):
        add(database, state=state)
    assert read(database, rows.due, moment, 10) == [intent.id, due.id, freed.id]
    assert read(database, rows.due, moment, 2) == [intent.id, due.id]


@pytest.mark.parametrize(
    "values",
    [
        {"state": "final"},
        {"state": "lost"},
        {"next_look_at": now() + LONG},
        {"lease_until": now() + LONG},
    ],
)
def test_only_what_is_due_is_claimed(database, values):
    job = add(database, **values)
    assert not write(database, rows.claim, job.id, now(), now() + MINUTE)


def test_one_of_many_gets_the_lease(served_database):
    job = add(served_database)

    def claim(_: int) -> bool:
        moment = now()
        return bool(write(served_database, rows.claim, job.id, moment, moment + MINUTE))

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(claim, range(24))) == 1


def test_a_lease_is_renewed_by_who_holds_it(database):
    job = add(database, lease_until=now())
    held = found(database, job).lease_until
    later = held + MINUTE
    assert write(database, rows.renew, job.id, held, later)
    assert not write(database, rows.renew, job.id, held, later + MINUTE)
    assert found(database, job).lease_until == later
    write(database, rows.record_if, job.id, "active", lease_until=None)
    assert not write(database, rows.renew, job.id, later, later + MINUTE)


# Pages


def test_a_page_is_the_owners_newest_first(database):
    start = now()
    made = [add(database, created_at=start + n * SECOND) for n in range(5)]
    same = sorted([add(database, created_at=start), add(database, created_at=start), made[0]],
                  key=lambda job: job.id)  # fmt: skip
    add(database, owner="user:bob")
    add(database, type="fine_tuning")
    for state in ("intended", "void"):
        add(database, state=state)
    wanted = [job.id for job in (*reversed(made[1:]), *reversed(same))]
    filters = rows.JobFilters("user:alice", "batch")
    seen: list[str] = []
    after = None
    while page := read(database, rows.page, filters, after=after, limit=2):
        seen += [job.id for job in page]
        after = (page[-1].created_at, page[-1].id)
    assert seen == wanted


def test_a_page_is_narrowed(database):
    one = add(database, kind="raw")
    two = add(database, deployment_id="d-2")
    for more, wanted in (
        ({"kind": "raw"}, {one.id}),
        ({"deployment_ids": ("d-2", "d-3")}, {two.id}),
        ({"deployment_ids": ("d-1", "d-2")}, {one.id, two.id}),
        ({"deployment_ids": ("d-2",), "kind": "raw"}, set()),
    ):
        filters = rows.JobFilters("user:alice", "batch", **more)
        page = read(database, rows.page, filters, after=None, limit=9)
        assert {job.id for job in page} == wanted


# Owners


def add_tuned(database, job: Job, owner: str, name: str = "ft:a") -> None:
    with database.write() as session:
        session.add(
            TunedModel(
                id=str(uuid.uuid4()),
                owner=owner,
                model_name=name,
                deployment_id="d-1",
                job_id=job.id,
                created_at=now(),
            )
        )


def add_upload(database) -> None:
    moment = now()
    with database.write() as session:
        session.add(
            UploadSession(
                id=uuid.uuid4().hex,
                owner="user:alice",
                filename="a",
                mime_type="text/plain",
                purpose="batch",
                bytes=1,
                file_expires_after_seconds=None,
                selector={},
                status="pending",
                part_ids=[],
                file_id=None,
                expires_at=moment,
                created_at=moment,
                updated_at=moment,
            )
        )


def test_everything_that_somebody_has_is_given(database):
    job = add(database)
    bobs = add(database, owner="user:bob")
    add_file(database, "user:alice")
    add_upload(database)
    add_tuned(database, job, "user:alice")
    write(database, access.give_files, "user:alice", "user:carol")
    with database.read() as session:
        for table in (File, UploadSession, TunedModel):
            assert list(session.scalars(select(table.owner))) == ["user:carol"]
    assert found(database, job).owner == "user:carol"
    assert found(database, bobs).owner == "user:bob"


def test_an_heir_who_has_a_model_of_the_name_keeps_his(database):
    job = add(database)
    add_tuned(database, job, "user:alice")
    add_tuned(database, job, "user:alice", "ft:b")
    add_tuned(database, job, "user:carol")
    write(database, access.give_files, "user:alice", "user:carol")
    owned = read(database, rows.tuned_models, "user:carol")
    assert sorted(model.model_name for model in owned) == ["ft:a", "ft:b"]
    assert read(database, rows.tuned_models, "user:alice") == []


def test_the_owner_is_as_of_now(database):
    job = add(database)
    with database.write() as session:
        session.execute(update(Job).values(owner="user:carol"))
        assert rows.owner_of(session, job.id) == "user:carol"
        assert rows.owner_of(session, "nothing") is None


def test_a_tuned_model_is_its_owners(database):
    job = add(database)
    add_tuned(database, job, "user:alice")
    assert read(database, rows.tuned_model, "user:alice", "ft:a").job_id == job.id
    assert read(database, rows.tuned_model, "user:bob", "ft:a") is None
    assert read(database, rows.tuned_model, "user:alice", "ft:b") is None
    with pytest.raises(IntegrityError):
        add_tuned(database, job, "user:alice")
