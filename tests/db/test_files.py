"""Questions about files and copies: what they see, in which order, and which indexes they use."""

import datetime as dt
import subprocess
import sys
import threading
import uuid

import pytest
from sqlalchemy import select, text

from app.db import files as db
from app.db.tables import Copy, File, now
from app.errors import DatabaseUnavailable
from tests.db.plans import plans

START = dt.datetime(2026, 11, 1, 12, tzinfo=dt.UTC)


def make_file(owner="user:alice", moment=START, *, number=None, **more):
    fields = {
        "id": str(uuid.uuid4()) if number is None else f"{number:08}-0000-4000-8000-000000000000",
        "public_id": None,
        "kind": "unified",
        "owner": owner,
        "filename": "a.jsonl",
        "mime_type": "application/jsonl",
        "purpose": "batch",
        "bytes": 1,
        "sha256": None,
        "target_model_names": ["a"],
        "state": "ready",
        "status": "processed",
        "status_details": None,
        "expires_at": None,
        "created_at": moment,
        "updated_at": moment,
    }
    return File(**{**fields, **more})


def make_copy(file, deployment_id="a-1", raw=None, **more):
    fields = {
        "id": str(uuid.uuid4()),
        "file_id": file.id,
        "model_name": "a",
        "deployment_id": deployment_id,
        "provider": "openai",
        "deployment_file_id": raw,
        "state": "ready",
        "attempts": 1,
        "last_error": None,
        "expires_at": None,
        "created_at": file.created_at,
        "updated_at": file.created_at,
    }
    return Copy(**{**fields, **more})


def store(database, *pairs):
    with database.write() as session:
        for file, copies in pairs:
            db.insert(session, file, copies)


def walk(database, filters, *, descending=True, limit=7):
    """The numbers of all pages, one after the other."""
    after = None
    while True:
        with database.ask() as asking:
            found = db.page(asking, filters, after=after, descending=descending, limit=limit)
        yield from (int(file.id[:8]) for file in found)
        if len(found) < limit:
            return
        after = (found[-1].created_at, found[-1].id)


def test_a_file_and_its_copies_come_back(database):
    file = make_file(filename="näme 日本.jsonl", bytes=5_000_000_000, expires_at=START)
    store(database, (file, [make_copy(file, "a-1", "file-1"), make_copy(file, "a-2")]))
    with database.read() as session:
        found = db.by_uuid(session, file.id)
        copies = db.copies_of(session, [file.id])
    assert found is not None
    assert (found.filename, found.bytes, found.expires_at, found.target_model_names) == (
        "näme 日本.jsonl",
        5_000_000_000,
        START,
        ["a"],
    )
    assert found.created_at == START and found.created_at.tzinfo is not None
    assert {copy.deployment_id for copy in copies} == {"a-1", "a-2"}


def test_no_row_and_no_ids_give_nothing(database):
    with database.read() as session:
        assert db.by_uuid(session, str(uuid.uuid4())) is None
        assert db.copies_of(session, []) == []
        assert db.by_deployment_file_id(session, "file-1") == []


def test_a_provider_id_finds_each_of_its_files_once(database):
    one, two, other = make_file(number=1), make_file(number=2), make_file(number=3)
    store(
        database,
        (one, [make_copy(one, "a-1", "file-x"), make_copy(one, "a-2", "file-x")]),
        (two, [make_copy(two, "b-1", "file-x")]),
        (other, [make_copy(other, "a-1", "file-y")]),
    )
    with database.read() as session:
        assert [f.id for f in db.by_deployment_file_id(session, "file-x")] == [one.id, two.id]
        assert [f.id for f in db.by_deployment_file_id(session, "file-x", ["b-1"])] == [two.id]
        assert db.by_deployment_file_id(session, "file-x", []) == []
        assert db.by_deployment_file_id(session, "FILE-X") == []
        assert db.by_deployment_file_id(session, "%") == []


@pytest.mark.parametrize("descending", [True, False])
def test_no_page_loses_or_doubles_a_file(database, descending):
    pairs: list[tuple[File, list[Copy]]] = []
    for number in range(60):
        # Five files at each moment, and a stranger's between them.
        moment = START + dt.timedelta(microseconds=number // 5)
        pairs.append((make_file(number=number, moment=moment), []))
        pairs.append((make_file("user:bob", number=1000 + number, moment=moment), []))
    store(database, *pairs)
    found = list(walk(database, db.Filters("user:alice"), descending=descending))
    assert found == sorted(range(60), reverse=descending)


def test_a_page_is_narrowed_in_every_way_at_once(database):
    wanted = make_file(number=1, kind="encoded", purpose="batch")
    others = [
        make_file(number=2, kind="raw"),
        make_file(number=3, kind="encoded", purpose="vision"),
        make_file(number=4, kind="encoded"),
        make_file("user:bob", number=5, kind="encoded"),
    ]
    store(
        database,
        (wanted, [make_copy(wanted, "a-1"), make_copy(wanted, "a-2")]),
        *((file, [make_copy(file, "b-1" if file.id[7] == "4" else "a-1")]) for file in others),
    )
    narrow = db.Filters("user:alice", "encoded", "batch", ("a-1", "a-2"))
    assert list(walk(database, narrow)) == [1]


@pytest.mark.parametrize("state", ["uploading", "failed", "deleting", "deleted"])
def test_only_ready_files_are_listed(database, state):
    store(database, (make_file(number=1), []), (make_file(number=2, state=state), []))
    assert list(walk(database, db.Filters("user:alice"))) == [1]


def test_an_expired_file_is_listed_no_more(database):
    past, future = now() - dt.timedelta(seconds=1), now() + dt.timedelta(hours=1)
    store(
        database,
        (make_file(number=1, expires_at=past), []),
        (make_file(number=2, expires_at=future), []),
        (make_file(number=3), []),
    )
    assert list(walk(database, db.Filters("user:alice"))) == [3, 2]


def test_a_row_with_broken_json_does_not_break_the_list(memory):
    # PostgreSQL would not take it.
    store(memory, (make_file(number=1), []), (make_file(number=2), []))
    with memory.write() as session:
        broken = "UPDATE files SET target_model_names = '[\"a' WHERE id LIKE '%2-0000%'"
        session.execute(text(broken))
    assert list(walk(memory, db.Filters("user:alice"))) == [2, 1]


def test_what_is_recorded_is_written_and_dated(database):
    file = make_file()
    copy = make_copy(file)
    store(database, (file, [copy]))
    with database.write() as session:
        db.record_copy(session, copy.id, state="deleting", last_error="no")
        db.record_file(session, file.id, state="deleting")
    with database.read() as session:
        [stored] = db.copies_of(session, [file.id])
        again = session.get_one(File, file.id)
    assert (stored.state, stored.last_error, again.state) == ("deleting", "no", "deleting")
    assert stored.updated_at > START and again.updated_at > START


def test_what_was_changed_meanwhile_is_left_alone(database):
    file = make_file(state="deleting")
    copy = make_copy(file, state="deleted")
    store(database, (file, [copy]))
    with database.write() as session:
        assert not db.record_file(session, file.id, was="uploading", state="ready")
        assert not db.record_copy(session, copy.id, was="stored", state="ready")
        assert not db.record_file(session, "no such file", state="ready")
        assert db.record_file(session, file.id, was="deleting", state="deleted")
    with database.read() as session:
        [stored] = db.copies_of(session, [file.id])
        again = session.get_one(File, file.id)
    assert (again.state, stored.state) == ("deleted", "deleted")


def test_a_file_takes_its_copies_along(database):
    file, other = make_file(), make_file()
    store(database, (file, [make_copy(file)]), (other, [make_copy(other)]))
    with database.write() as session:
        db.drop_file(session, file.id)
    with database.read() as session:
        assert [copy.file_id for copy in session.scalars(select(Copy))] == [other.id]


def test_only_the_named_copies_are_dropped(database):
    file = make_file()
    gone, kept = make_copy(file, "a-1"), make_copy(file, "a-2")
    store(database, (file, [gone, kept]))
    with database.write() as session:
        db.drop_copies(session, [])
        db.drop_copies(session, {gone.id})
    with database.read() as session:
        assert [copy.id for copy in db.copies_of(session, [file.id])] == [kept.id]


def test_only_old_tombstones_are_dropped_and_few_at_once(database):
    old = [make_file(number=n, state="deleted", updated_at=START) for n in range(5)]
    fresh = make_file(number=10, state="deleted", updated_at=now())
    living = make_file(number=11, updated_at=START)
    store(database, *((file, [make_copy(file, state="deleted")]) for file in (*old, fresh, living)))
    for left in (2, 0):
        with database.write() as session:
            db.drop_tombstones(session, now() - dt.timedelta(days=1), 3)
        with database.read() as session:
            ids = {file.id for file in session.scalars(select(File))}
        assert len(ids) == 2 + left
        assert {fresh.id, living.id} <= ids


def test_a_tombstone_whose_upload_may_have_stored_something_stays(database):
    file = make_file(state="deleted", updated_at=START)
    lost = make_copy(file, "b-1", state="intended")
    store(database, (file, [make_copy(file, state="deleted"), lost]))
    with database.write() as session:
        db.drop_tombstones(session, now(), 10)
    with database.read() as session:
        assert db.by_uuid(session, file.id) is not None


def test_a_file_has_one_copy_at_a_deployment(database):
    file = make_file()
    with pytest.raises(Exception, match=r"(?i)unique"):
        store(database, (file, [make_copy(file), make_copy(file)]))
    with database.read() as session:
        assert db.by_uuid(session, file.id) is None


def test_writers_in_many_threads_lose_nothing(served_database):
    file = make_file()
    copies = [make_copy(file, f"d-{n}", state="intended") for n in range(16)]
    store(served_database, (file, copies))
    start = threading.Barrier(16)
    failures = []

    def record(copy):
        start.wait(10)
        try:
            for n in range(5):
                with served_database.write() as session:
                    db.record_copy(session, copy.id, state="ready", deployment_file_id=f"file-{n}")
                with served_database.read() as session:
                    db.copies_of(session, [file.id])
        except DatabaseUnavailable as error:
            failures.append(error.__cause__)

    threads = [threading.Thread(target=record, args=(copy,)) for copy in copies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with served_database.read() as session:
        stored = db.copies_of(session, [file.id])
    assert {(c.state, c.deployment_file_id) for c in stored} == {("ready", "file-4")}


QUESTIONS = {
    "a page": lambda a: db.page(a, db.Filters("o"), after=None, descending=True, limit=10),
    "a later page": lambda a: db.page(
        a, db.Filters("o"), after=(START, "x"), descending=False, limit=10
    ),
    "a narrowed page": lambda a: db.page(
        a, db.Filters("o", "raw", "batch", ("a", "b")), after=None, descending=True, limit=10
    ),
    "a file and its copies": lambda a: db.with_copies(a, "1"),
}
QUESTIONS_OF_OBJECTS = {
    "by provider id": lambda s: db.by_deployment_file_id(s, "file-1"),
    "copies": lambda s: db.copies_of(s, ["1"]),
}


@pytest.mark.parametrize("question", [*QUESTIONS, *QUESTIONS_OF_OBJECTS])
def test_no_question_reads_a_whole_table(memory, question):
    ask = {**QUESTIONS, **QUESTIONS_OF_OBJECTS}[question]
    [steps] = plans(memory, ask, of_objects=question in QUESTIONS_OF_OBJECTS)
    assert not [step for step in steps if step.startswith("SCAN")], steps
    if question.endswith("page"):
        assert not [step for step in steps if "TEMP B-TREE" in step], steps


def test_what_is_made_of_rows_knows_its_columns_before_any_query():
    made = "from app.db import files; from app.db.tables import File"
    asked = "print(files._object(File, ('id', 'state'), ('a', 'ready')).state)"
    done = subprocess.run(
        [sys.executable, "-c", f"{made}; {asked}"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "ready\n"
