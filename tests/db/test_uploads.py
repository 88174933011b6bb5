"""Uploads and parts as rows: who wins a change of status, what the parts hold, what is swept."""

import datetime as dt
import threading
import uuid
from typing import Any

import pytest
from sqlalchemy import select

from app.db import uploads as rows
from app.db.tables import UploadPart, UploadSession, now

HOUR = dt.timedelta(hours=1)


@pytest.fixture
def database(served_database):
    """In a file: SQLite in memory is one connection, which threads cannot share."""
    return served_database


def add_upload(database, *, status="pending", expires_in=HOUR):
    row = UploadSession(
        id=uuid.uuid4().hex,
        owner="user:alice",
        filename="a.bin",
        mime_type="application/octet-stream",
        purpose="user_data",
        bytes=10**11,
        file_expires_after_seconds=None,
        selector={"target_model_names": ["gpt"]},
        status=status,
        part_ids=[],
        file_id=None,
        expires_at=now() + expires_in,
        created_at=now(),
        updated_at=now(),
    )
    with database.write() as session:
        rows.insert(session, row)
    return row.id


def add_part(database, row_id, size, content="a"):
    with database.write() as session:
        part_id = f"part_{uuid.uuid4().hex}"
        rows.add_part(
            session,
            UploadPart(
                id=part_id, upload_id=row_id, bytes=size, sha256=content * 64, created_at=now()
            ),
        )
    return part_id


def found(database, row_id) -> Any:
    with database.read() as session:
        return rows.by_id(session, row_id)


def status(database, row_id):
    row = found(database, row_id)
    return row and row.status


def test_a_row_comes_back_as_it_was_written(database):
    row_id = add_upload(database)
    row = found(database, row_id)
    assert row.bytes == 10**11
    assert row.selector == {"target_model_names": ["gpt"]}
    assert row.expires_at.tzinfo is not None


def test_a_status_changes_only_from_the_one_that_is_named(database):
    row_id = add_upload(database)
    with database.write() as session:
        assert not rows.change_status(session, row_id, "completing", "completed")
        assert rows.change_status(session, row_id, "pending", "completing", part_ids=["p"])
        assert not rows.change_status(session, row_id, "pending", "cancelled")
    row = found(database, row_id)
    assert (row.status, row.part_ids) == ("completing", ["p"])


def test_an_upload_whose_hour_is_over_is_not_pending(database):
    row_id = add_upload(database, expires_in=-HOUR)
    with database.write() as session:
        assert not rows.change_status(session, row_id, "pending", "completing")


def test_a_completing_upload_goes_back_to_pending_after_its_hour(database):
    row_id = add_upload(database, status="completing", expires_in=-HOUR)
    with database.write() as session:
        assert rows.change_status(session, row_id, "completing", "pending")


def test_of_many_changes_at_once_one_wins(database):
    row_id = add_upload(database)
    start = threading.Barrier(6)
    won = []

    def change():
        start.wait()
        with database.write() as session:
            if rows.change_status(session, row_id, "pending", "completing"):
                won.append(1)

    threads = [threading.Thread(target=change) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


def test_parts_are_summed_and_equal_ones_counted_once(database):
    row_id, other = add_upload(database), add_upload(database)
    with database.read() as session:
        assert rows.sent(session, row_id) == rows.Sent(0, 0, 0)
    for size, content in ((5, "a"), (5, "a"), (7, "b")):
        add_part(database, row_id, size, content)
    add_part(database, other, 100)
    with database.read() as session:
        assert rows.sent(session, row_id) == rows.Sent(3, 17, 12)
        assert rows.has_content(session, row_id, "a" * 64, 5)
        assert not rows.has_content(session, row_id, "a" * 64, 100)
        assert len(rows.parts_of(session, row_id)) == 3


def test_a_locked_row_is_waited_for(database):
    row_id = add_upload(database)
    locked, order = threading.Event(), []

    def hold():
        with database.write() as session:
            rows.by_id(session, row_id, lock=True)
            locked.set()
            threading.Event().wait(0.2)
            order.append("holder")

    thread = threading.Thread(target=hold)
    thread.start()
    locked.wait()
    with database.write() as session:
        rows.by_id(session, row_id, lock=True)
        order.append("waiter")
    thread.join()
    assert order == ["holder", "waiter"]


def test_expired_uploads_are_marked_a_few_at_a_time(database):
    old = {add_upload(database, expires_in=-HOUR) for _ in range(3)}
    young = add_upload(database)
    busy = add_upload(database, status="completing", expires_in=-HOUR)
    with database.write() as session:
        first = rows.expire(session, now(), 2)
    with database.write() as session:
        second = rows.expire(session, now(), 2)
    assert len(first) == 2
    assert {*first, *second} == old
    assert {status(database, row_id) for row_id in old} == {"expired"}
    assert status(database, young) == "pending"
    assert status(database, busy) == "completing"


def test_what_is_over_for_long_goes_with_its_parts(database):
    over = [
        add_upload(database, status=each, expires_in=-3 * HOUR)
        for each in ("completed", "cancelled", "expired")
    ]
    add_part(database, over[0], 1)
    kept = [
        add_upload(database, status="completed"),
        add_upload(database, status="pending", expires_in=-3 * HOUR),
        add_upload(database, status="completing", expires_in=-3 * HOUR),
    ]
    with database.read() as session:
        to_drop = rows.over_since(session, now() - 2 * HOUR, 10)
    assert sorted(to_drop) == sorted(over)
    with database.write() as session:
        rows.drop(session, [])
        rows.drop(session, to_drop)
    with database.read() as session:
        assert session.scalars(select(UploadPart)).all() == []
    assert all(status(database, row_id) is None for row_id in over)
    assert all(status(database, row_id) for row_id in kept)


def test_two_sweepers_do_not_wait_for_each_other(postgres):
    database = postgres  # SQLite has one writer.
    row_id = add_upload(database, expires_in=-HOUR)
    with database.write() as first:
        assert rows.expire(first, now(), 5) == [row_id]
        with database.write() as second:
            assert rows.expire(second, now(), 5) == []
            rows.drop(second, [row_id])
    assert status(database, row_id) == "expired"
