"""A walk through any rows by pages of any sizes, with deletes between them, is whole."""

import datetime as dt
import uuid
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, update

from app import ids
from app.db.tables import File, Job
from app.objects import Page
from app.services.file_lists import ListQuery
from app.services.job_lists import JobQuery
from app.services.router import Selector
from tests.conftest import make_gateway
from tests.job_builders import make_job_gateway

START = dt.datetime(2026, 11, 1, 12, tzinfo=dt.UTC)

moments = st.integers(0, 3).map(
    lambda microseconds: START + dt.timedelta(microseconds=microseconds)
)
owners = st.sampled_from(["user:alice", "user:alice", "user:bob"])
sizes = st.lists(st.integers(1, 5), min_size=1, max_size=6)
removals = st.lists(st.sets(st.integers(0, 24), max_size=4), max_size=6)
any_walk = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def make_file(moment: dt.datetime, owner: str, state: str) -> File:
    file_uuid = str(uuid.uuid4())
    return File(
        id=file_uuid,
        public_id=ids.encode_unified("text/plain", file_uuid, ["a"]),
        kind="unified",
        owner=owner,
        filename="a.txt",
        mime_type="text/plain",
        purpose="user_data",
        bytes=1,
        sha256=None,
        target_model_names=["a"],
        state=state,
        status="processed",
        status_details=None,
        expires_at=None,
        created_at=moment,
        updated_at=moment,
    )


def make_job(moment: dt.datetime, owner: str, state: str) -> Job:
    job_uuid = str(uuid.uuid4())
    return Job(
        id=job_uuid,
        type="batch",
        kind="unified",
        public_id=ids.encode_unified_job("batch", "a-1", job_uuid),
        owner=owner,
        model_name="a",
        deployment_id="a-1",
        provider="openai",
        upstream_id=f"batch_{job_uuid}",
        upstream_input_id="file-1",
        input_uuid=None,
        validation_uuid=None,
        request={
            "input_file_id": "file-1",
            "endpoint": "/v1/embeddings",
            "completion_window": "24h",
            "metadata": None,
        },
        snapshot={"id": f"batch_{job_uuid}", "object": "batch"},
        status="completed",
        state=state,
        looks=0,
        next_look_at=moment,
        lease_until=None,
        last_error=None,
        created_at=moment,
        updated_at=moment,
    )


def walked(
    ask: Callable[[int, str | None], Page | Any], sizes: list[int], remove: Callable[[int], object]
) -> list[str]:
    """Every id that is shown; after each page `remove` is called with its number."""
    seen: list[str] = []
    after = None
    for number in range(100):
        size = sizes[number % len(sizes)]
        found = ask(size, after)
        names = [each["id"] for each in found["data"]]
        assert len(names) <= size and (names or not found["has_more"])
        seen += names
        remove(number)
        if not found["has_more"]:
            return seen
        after = found["last_id"]
    raise AssertionError("the walk has no end")


def check(seen: list[str], mine: list[str], gone: set[str]) -> None:
    assert len(seen) == len(set(seen)), "something stands there twice"
    assert set(seen) <= set(mine)
    assert [each for each in mine if each not in gone] == [e for e in seen if e not in gone]


@any_walk
@given(
    rows=st.lists(
        st.tuples(
            moments,
            owners,
            st.sampled_from(["ready", "ready", "ready", "uploading", "failed", "deleting"]),
        ),
        max_size=25,
    ),
    sizes=sizes,
    removals=removals,
    order=st.sampled_from(["asc", "desc"]),
)
def test_any_files(memory, alice, rows, sizes, removals, order):
    gateway = make_gateway(memory)
    files = [make_file(*row) for row in rows]
    with memory.write() as session:
        session.execute(delete(File))
        session.add_all(files)
    mine = [f for f in files if f.owner == "user:alice" and f.state == "ready"]
    mine.sort(key=lambda file: (file.created_at, file.id), reverse=order == "desc")
    gone: set[str] = set()

    def remove(number: int) -> None:
        for which in removals[number] if number < len(removals) else ():
            if which < len(files):
                gone.add(files[which].public_id or "")
                with memory.write() as session:
                    change = update(File).where(File.id == files[which].id)
                    session.execute(change.values(state="deleted"))

    def ask(size: int, after: str | None) -> Page:
        return gateway.lists.page(alice, ListQuery(size, order, after), Selector())

    check(walked(ask, sizes, remove), [f.public_id or "" for f in mine], gone)


@any_walk
@given(
    rows=st.lists(
        st.tuples(
            moments, owners, st.sampled_from(["active", "final", "intended", "void", "lost"])
        ),
        max_size=25,
    ),
    sizes=sizes,
)
def test_any_batches(memory, alice, rows, sizes):
    gateway = make_job_gateway(memory)
    jobs = [make_job(*row) for row in rows]
    with memory.write() as session:
        session.execute(delete(Job))
        session.add_all(jobs)
    mine = [j for j in jobs if j.owner == "user:alice" and j.state not in ("intended", "void")]
    mine.sort(key=lambda job: (job.created_at, job.id), reverse=True)

    def ask(size: int, after: str | None) -> Any:
        return gateway.batches.page(alice, JobQuery(size, after), Selector())

    seen = walked(ask, sizes, lambda number: None)
    check(seen, [j.public_id or "" for j in mine], set())
