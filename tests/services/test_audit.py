"""The audit trail: rows with their change, rows of their own, and what they say."""

import datetime as dt
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import event, text

from app.db import audit as audit_rows
from app.db.audit import AuditFilter
from app.db.engine import Database
from app.db.tables import AuditEntry, Base, now
from app.errors import Conflict, DatabaseUnavailable, NotPermitted
from app.services import audit
from app.services.access import Access
from app.services.audit import Trail
from app.services.callers import Caller, Origin, Role, operator
from app.services.file_lists import ListQuery
from app.services.router import Selector
from tests.access_builders import MASTER_KEY, everything, sign_in
from tests.conftest import NO_HINTS, make_caller, make_gateway


def rows(database: Database, **among: str) -> list[AuditEntry]:
    return Trail(database, 365).newest(AuditFilter(**among), 1000)  # type: ignore[arg-type]  # text


def told(database: Database) -> list[tuple[object, ...]]:
    return [(row.action, row.target, row.fields) for row in rows(database)]


@pytest.fixture
def access(database: Database) -> Access:
    return Access(database, MASTER_KEY)


@pytest.fixture
def admin() -> Caller:
    return replace(operator(), key_hash="ab" * 32, origin=Origin("req_7", "10.0.0.9"))


def test_a_row_says_who_from_where_and_with_which_key(database, access, admin):
    access.new_user(admin, "alice", {"alias": "Al"}, None)
    [row] = rows(database)
    assert (row.actor, row.role, row.key) == ("default_user_id", "proxy_admin", "abababababab")
    assert (row.address, row.request_id, row.status) == ("10.0.0.9", "req_7", 200)
    assert now() - row.at < dt.timedelta(minutes=1)


def test_every_change_of_users_and_keys_has_its_row(database, access, admin):
    _, first = access.new_user(admin, "alice", {"role": "internal_user"}, {"alias": "one"})
    assert first is not None
    token = first["token"]
    access.update_user(admin, "alice", {"email": "a@b.c", "blocked": False})
    access.update_key(admin, token, {"models": ["a"], "alias": "one"})
    access.block_key(admin, token)
    access.block_key(admin, token)
    access.unblock_key(admin, token)
    renewed = access.regenerate_key(admin, token, now() + dt.timedelta(hours=1))["token"]
    made = access.generate_key(admin, {"user_id": "carol", "metadata": {"a": 1}})["token"]
    access.delete_keys(admin, [made])
    access.delete_users(admin, ["alice"], "transfer", "carol")
    assert sorted(told(database), key=repr) == sorted(
        [
            ("user.new", "alice", ["role"]),
            ("key.generate", token, ["alias"]),
            ("user.update", "alice", ["email"]),
            ("key.update", token, ["models"]),
            ("key.block", token, ["blocked"]),
            ("key.block", token, []),
            ("key.unblock", token, ["blocked"]),
            ("key.regenerate", token, ["grace_period", "key"]),
            ("key.regenerate", renewed, ["grace_period", "key"]),
            ("user.new", "carol", []),
            ("key.generate", made, ["metadata", "user_id"]),
            ("key.delete", made, []),
            ("user.delete", "alice", ["files", "keys"]),
        ],
        key=repr,
    )


def test_a_change_that_fails_leaves_no_row(database, access, admin):
    access.new_user(admin, "alice", {"email": "a@b.c"}, None)
    access.new_user(admin, "bob", {}, None)
    before = len(rows(database))
    with pytest.raises(Conflict):
        access.update_user(admin, "bob", {"email": "A@b.c"})
    with pytest.raises(NotPermitted):
        access.update_user(make_caller("bob"), "bob", {"role": "proxy_admin"})
    assert len(rows(database)) == before


def test_without_its_row_there_is_no_change(memory, admin):
    access = Access(memory, MASTER_KEY)
    alice = sign_in(access, "alice")
    before = everything(memory)
    with memory.write() as session:
        session.execute(text("ALTER TABLE audit RENAME TO away"))
    for change in (
        lambda: access.new_user(admin, "bob", {}, {}),
        lambda: access.update_user(admin, "alice", {"blocked": True}),
        lambda: access.delete_users(admin, ["alice"]),
        lambda: access.generate_key(alice, {}),
        lambda: access.update_key(alice, alice.key_hash, {"metadata": {"a": 1}}),
        lambda: access.block_key(alice, alice.key_hash),
        lambda: access.regenerate_key(alice, alice.key_hash),
        lambda: access.delete_keys(alice, [alice.key_hash]),
    ):
        with pytest.raises(DatabaseUnavailable):
            change()
    assert everything(memory) == before


def test_what_goes_to_a_provider_is_noted_before_and_after(memory):
    gateway = make_gateway(memory)
    alice = make_caller("alice")
    file_id = gateway.upload(alice, b"12345")
    gateway.files.delete(alice, file_id, NO_HINTS)
    assert [(row.action, row.status, row.target, row.bytes) for row in rows(memory)] == [
        ("file.upload", 200, file_id, 5),
        ("file.delete", 202, file_id, 5),
        ("file.delete", 200, file_id, 5),
    ]


def test_without_its_row_nothing_is_deleted_and_no_upload_is_acknowledged(memory):
    gateway = make_gateway(memory)
    alice = make_caller("alice")
    file_id = gateway.upload(alice)
    with memory.write() as session:
        session.execute(text("ALTER TABLE audit RENAME TO away"))
    before = gateway.calls()
    with pytest.raises(DatabaseUnavailable):
        gateway.files.delete(alice, file_id, NO_HINTS)
    assert gateway.calls() == before
    assert gateway.files.retrieve(alice, file_id, NO_HINTS)["status"] == "processed"
    with pytest.raises(DatabaseUnavailable):
        gateway.upload(alice)
    [known] = gateway.lists.page(alice, ListQuery(), Selector())["data"]
    assert known["id"] == file_id


def test_rows_of_their_own_are_all_there_and_share_their_commits(served_database):
    trail = Trail(served_database, 365)
    commits: list[int] = []
    event.listen(served_database.engine, "commit", lambda _: commits.append(1))
    together = threading.Barrier(32)

    def download(number: int) -> None:
        together.wait()
        for turn in range(5):
            trail.write(make_caller("alice"), "file.download", f"file-{number}-{turn}")

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(download, range(32)))
    found = {row.target for row in rows(served_database)}
    assert found == {f"file-{number}-{turn}" for number in range(32) for turn in range(5)}
    assert len(commits) < 160


def test_a_row_is_committed_when_the_call_returns(served_database):
    Trail(served_database, 365).write(make_caller("alice"), "file.download", "file-1", size=7)
    [row] = rows(served_database)
    assert (row.target, row.bytes) == ("file-1", 7)


def test_whoever_waits_for_a_commit_that_fails_is_told(sqlite_file):
    trail = Trail(sqlite_file, 365)
    Base.metadata.drop_all(sqlite_file.engine)
    together = threading.Barrier(8)

    def download(_: int) -> str:
        together.wait()
        try:
            trail.write(make_caller("alice"), "file.download", "file-1")
        except DatabaseUnavailable:
            return "refused"
        return "written"

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(download, range(8))) == {"refused"}
    Base.metadata.create_all(sqlite_file.engine)
    trail.write(make_caller("alice"), "file.download", "file-2")
    assert [row.target for row in rows(sqlite_file)] == ["file-2"]


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("a\r\nb", "a\\r\\nb"),
        ("nul\0", "nul\\x00"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("half \ud800", "half \\ud800"),
        ("\u202etxt", "\\u202etxt"),
        ("x" * 5000, "x" * 4096),
        ("grün", "grün"),
    ],
    ids=["line end", "null", "escape", "surrogate", "direction", "long", "plain"],
)
def test_a_target_stays_on_its_line_in_every_database(database, sent, kept):
    Trail(database, 365).write(make_caller("alice"), "file.delete", sent, status=404)
    [row] = rows(database)
    assert row.target == kept


def test_old_rows_are_swept_once_an_hour(database):
    trail = Trail(database, retention_days=1)
    with database.write() as session:
        for age in (0, 2, 3):
            audit_rows.add(session, [audit.entry(operator(), "user.new", str(age))])
            session.flush()
    with database.write() as session:
        if database.engine.dialect.name == "postgresql":
            session.execute(text("SET LOCAL session_replication_role = replica"))
        for row in session.query(AuditEntry):
            row.at -= dt.timedelta(days=int(row.target or 0))
    trail.sweep_when_due()
    assert [row.target for row in rows(database)] == ["0"]
    assert trail.sweep() == 0


def test_a_caller_without_user_has_only_his_key(database):
    nobody = make_caller(None, Role.INTERNAL_USER)
    Trail(database, 365).write(nobody, "file.delete", "file-1", status=403)
    [row] = rows(database)
    assert (row.actor, row.key) == (None, nobody.key_hash[:12])
