"""The check: every kind of difference, made by hand; what it says, leaves alone and mends."""

import datetime as dt
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text, update

from app.api.context import Services
from app.db.engine import Database
from app.db.tables import AuditEntry, Copy, File, Job, now
from app.errors import ContentNotAvailable, NotSupported, UpstreamError
from app.factory import build
from app.providers.local import Local
from app.providers.protocol import Place, Provider
from app.services.callers import Caller
from app.services.findings import Asked, Finding, Summary
from app.services.router import Hints, Selector
from app.services.uploads import Announced
from app.settings import Settings
from tests.builders import make_deployment, make_place, make_upload
from tests.fakes import FakeProvider

CONTENT = b"content"
HOUR = dt.timedelta(hours=1)
OLD = int(time.time()) - 7200
STRAY = "00000000-0000-4000-8000-000000000000"

A = make_deployment("a-1", model_name="a")
B = make_deployment("b-1", model_name="b")
DISK = make_deployment("disk-1", model_name="disk", provider="local")


@dataclass
class House:
    """A gateway's services over two fake accounts and this disk."""

    services: Services
    database: Database
    fakes: dict[str, FakeProvider]
    disk: Local
    said: list[Finding]
    summary: Summary

    @property
    def data_dir(self) -> Path:
        return self.services.settings.data_dir

    def upload(self, caller: Caller, *names: str, content: bytes = CONTENT, **more: Any) -> str:
        """The id of a new file at these models; at `a` and `b` unless told."""
        way = self.services.router.way(Selector(target_model_names=names or ("a", "b")), caller)
        return self.services.files.create(caller, make_upload(content, **more), way)["id"]

    def check(self, *, grace: dt.timedelta = -HOUR, **asked: Any) -> list[str]:
        """The kinds of what is found, in order; nothing is too young unless told."""
        self.said = []
        asked["own"] = frozenset(asked.get("own", ()))
        wanted = Asked(grace=grace, **asked)
        self.summary = self.services.fsck.run(wanted, self.said.append, settle_seconds=0.0)
        return [each.kind for each in self.said]

    def mend(self, **asked: Any) -> list[str]:
        """The outcomes of a repair; a check after it finds nothing."""
        self.check(repair=True, **asked)
        outcomes: list[str] = [each.outcome for each in self.said]
        assert self.check() == []
        return outcomes

    def content(self, caller: Caller, file_id: str) -> bytes:
        opened = self.services.files.content(caller, file_id, Hints())
        try:
            return b"".join(opened.download.chunks)
        finally:
            opened.download.close()

    def rows(self) -> tuple[list[File], list[Copy]]:
        with self.database.read() as session:
            copies = session.scalars(select(Copy).order_by(Copy.deployment_id))
            return list(session.scalars(select(File).order_by(File.created_at))), list(copies)

    def copy(self, deployment_id: str) -> Copy:
        [copy] = [each for each in self.rows()[1] if each.deployment_id == deployment_id]
        return copy

    def change(self, table: type[File | Copy | Job], **values: Any) -> None:
        """Write into every row, behind everybody's back."""
        with self.database.write() as session:
            session.execute(update(table).values(**values))

    def change_copy(self, at: str, **values: Any) -> None:
        with self.database.write() as session:
            session.execute(update(Copy).where(Copy.deployment_id == at).values(**values))

    def noted(self) -> list[tuple[str, str | None, int]]:
        """What the audit trail says of repairs."""
        with self.database.read() as session:
            query = select(AuditEntry).where(AuditEntry.action.startswith("fsck."))
            rows = session.scalars(query.order_by(AuditEntry.at, AuditEntry.status.desc()))
            return [(row.action, row.target, row.status) for row in rows]

    def state(self) -> Any:
        """Everything that a check without repair has to leave as it is."""
        files, copies = self.rows()
        rows = [{k: v for k, v in vars(r).items() if k[0] != "_"} for r in (*files, *copies)]
        disk = sorted(str(path) for path in self.data_dir.rglob("*") if path.is_file())
        return rows, [sorted(fake.contents) for fake in self.fakes.values()], disk


def make_house(database: Database, **settings: Any) -> House:
    made = Settings(
        deployments=(A, B, DISK),
        data_dir=settings.pop("data_dir", None) or make_place().data_dir,
        **settings,
    )
    fakes = {each.id: FakeProvider(each) for each in (A, B)}
    disk = Local(DISK, Place(data_dir=made.data_dir))
    providers: dict[str, Provider] = {**fakes, DISK.id: disk}
    services = build(made, database, providers)
    return House(services, database, fakes, disk, [], Summary())


@pytest.fixture
def house(database: Database) -> House:
    return make_house(database)


def kept_house(database: Database) -> House:
    return make_house(database, keep_content=True)


def untouched(house: House, kinds: list[str], **asked: Any) -> list[Finding]:
    """What is found, without repair; and nothing is changed by that."""
    before = house.state()
    assert house.check(**asked) == kinds
    assert {each.outcome for each in house.said} <= {"found", "noted"}
    assert house.state() == before
    assert house.noted() == []
    for each in house.said:
        assert each.meaning and each.repair and "\n" not in each.meaning
    return house.said


# Nothing


def test_nothing_differs_where_all_is_well(house, alice):
    house.upload(alice)
    house.upload(alice, "disk", content=b"other")
    gone = house.upload(alice)
    house.services.files.delete(alice, gone, Hints())
    assert untouched(house, [], read=True) == []
    assert house.check(repair=True, own=("a-1", "b-1")) == []
    assert (house.summary.files, house.summary.copies, house.summary.accounts) == (2, 3, 3)
    assert house.noted() == []


# Rows whose copy is not at its account


def test_a_copy_that_an_account_has_lost_is_stored_again(house, alice):
    file_id = house.upload(alice)
    raw = house.copy("a-1").deployment_file_id
    house.fakes["a-1"].lose(raw)
    [found] = untouched(house, ["missing"])
    assert (found.where, found.id) == ("a-1", raw)
    assert file_id in found.meaning and "elsewhere too" in found.meaning
    assert house.mend() == ["mended"]
    copy = house.copy("a-1")
    assert copy.state == "ready" and copy.deployment_file_id != raw
    assert list(house.fakes["a-1"].contents.values()) == [CONTENT]
    target = f"a-1/{raw}"
    assert house.noted() == [("fsck.missing", target, 202), ("fsck.missing", target, 200)]


def test_one_that_cannot_be_stored_again_now_is_left_to_the_worker(house, alice):
    house.upload(alice)
    fake = house.fakes["a-1"]
    fake.lose(house.copy("a-1").deployment_file_id)
    fake.fail_next(UpstreamError("overloaded", retryable=True), method="upload")
    house.check(repair=True)
    assert [each.outcome for each in house.said] == ["left"]
    assert "overloaded" in house.said[0].reason
    copy = house.copy("a-1")
    assert copy.state == "missing" and copy.next_look_at is not None
    assert house.noted()[-1][2] == 409


def test_a_file_that_nobody_has_any_more_is_lost_and_its_owner_is_told(house, alice):
    file_id = house.upload(alice)
    for key in ("a-1", "b-1"):
        house.fakes[key].lose(house.copy(key).deployment_file_id)
    found = untouched(house, ["missing", "missing"])
    assert "elsewhere too" in found[0].meaning
    house.check(repair=True)
    outcomes = [(each.kind, each.outcome) for each in house.said]
    assert outcomes[-1] == ("lost", "left")
    assert {each.kind for each in house.said} == {"missing", "lost"}
    [file] = house.rows()[0]
    assert file.status == "error"
    assert house.check() == ["lost"]
    house.services.files.delete(alice, file_id, Hints())
    assert house.check() == []


def test_a_list_that_lags_behind_is_not_believed(house, alice):
    house.upload(alice)
    fake = house.fakes["a-1"]
    fake.files = lambda purpose=None: iter(())
    assert house.check() == []
    assert len(fake.called("retrieve")) == 1


def test_what_was_written_a_moment_ago_is_left_alone(house, alice):
    house.upload(alice)
    house.fakes["a-1"].lose(house.copy("a-1").deployment_file_id)
    assert house.check(grace=HOUR) == []


@pytest.mark.parametrize("act", ["delete", "renew", "lease"])
def test_a_copy_that_changes_while_it_is_looked_for_is_no_difference(house, alice, act):
    file_id = house.upload(alice)
    fake, copy = house.fakes["a-1"], house.copy("a-1")

    def listed(purpose: str | None = None) -> Any:
        """The list as it was before what happens now."""
        stored = list(fake.stored.values())
        if act == "delete":
            house.services.files.delete(alice, file_id, Hints())
            return iter(stored[:0])
        fake.lose(copy.deployment_file_id)
        if act == "renew":
            renewed = fake.upload(make_upload(CONTENT))
            house.change_copy("a-1", deployment_file_id=renewed.id)
        else:
            until = now() + HOUR
            house.change_copy("a-1", lease_until=until, next_look_at=until)
        return iter(stored)

    fake.files = listed
    house.check()
    assert house.summary.differences == 0


def test_an_account_that_does_not_answer_is_said_and_the_others_are_compared(house, alice):
    house.upload(alice)
    house.fakes["b-1"].lose(house.copy("b-1").deployment_file_id)
    down = UpstreamError("connection refused")
    house.fakes["a-1"].fail_next(down, method="files")
    assert house.check() == ["unasked", "missing"]
    assert (house.said[0].where, house.said[0].outcome) == ("a-1", "unasked")
    assert "connection refused" in house.said[0].meaning
    house.fakes["b-1"].fail_next(down, method="retrieve")
    assert house.check() == ["unasked"]


def test_an_account_is_not_asked_for_ever_in_vain(house, alice):
    for _ in range(5):
        house.upload(alice, "a")
    fake = house.fakes["a-1"]
    for raw in list(fake.stored):
        fake.lose(raw)
    fake.fail_next(*[UpstreamError("too busy")] * 2, method="retrieve")
    assert sorted(house.check()) == ["missing"] * 3 + ["unasked"] * 2
    fake.fail_next(*[UpstreamError("too busy")] * 5, method="retrieve")
    assert house.check() == ["unasked"] * 3
    assert house.summary.outcomes["found"] == 0


# Files at an account that no row has


def aged(fake: FakeProvider, **more: Any) -> str:
    """A file that somebody has put into an account long ago, past the gateway."""
    raw = fake.upload(make_upload(b"strange", **more)).id
    fake.change(raw, created_at=OLD)
    return raw


def test_a_stranger_in_an_account_that_others_may_use_is_only_mentioned(house, alice):
    house.upload(alice)
    raw = aged(house.fakes["a-1"])
    [found] = untouched(house, ["unknown"])
    assert found.outcome == "noted" and found.id == raw
    assert "--own a-1" in found.repair
    house.check(repair=True)
    assert raw in house.fakes["a-1"].stored
    assert house.summary.differences == 0


def test_where_nobody_else_stores_files_a_stranger_is_deleted(house, alice):
    house.upload(alice)
    raw = aged(house.fakes["a-1"])
    [found] = untouched(house, ["orphaned"], own=("a-1",))
    assert (found.where, found.id) == ("a-1", raw)
    assert house.mend(own=("a-1",)) == ["mended"]
    assert raw not in house.fakes["a-1"].stored
    assert len(house.fakes["a-1"].stored) == 1
    target = f"a-1/{raw}"
    assert house.noted() == [("fsck.orphaned", target, 202), ("fsck.orphaned", target, 200)]


def test_a_young_stranger_may_be_an_upload_that_is_running(house):
    house.fakes["a-1"].upload(make_upload(b"strange"))
    assert house.check(grace=dt.timedelta(minutes=5), own=("a-1",)) == []


def test_a_stranger_that_a_lost_answer_may_have_left_is_the_workers(house, alice):
    fake = house.fakes["a-1"]
    fake.fail_next(UpstreamError("lost"), method="upload", after_doing=True)
    with pytest.raises(UpstreamError):
        house.upload(alice, "a")
    [raw] = fake.stored
    fake.change(raw, created_at=OLD)
    assert house.check(own=("a-1",)) == []
    house.change(Copy, state="missing")
    assert house.check(own=("a-1",)) == ["orphaned"]


def test_a_file_whose_upload_has_not_been_recorded_is_known_by_its_key(house, alice):
    for fake in house.fakes.values():
        fake.is_keyed = True
        fake.is_ours = lambda _: True
    fake = house.fakes["a-1"]
    fake.fail_next(UpstreamError("lost"), method="upload", after_doing=True)
    with pytest.raises(UpstreamError):
        house.upload(alice, "a")
    [raw] = fake.stored
    fake.change(raw, created_at=OLD, filename="another", size=1)
    assert house.check() == []
    house.change(Copy, upload_key="another")
    assert house.check() == ["orphaned"]


def test_what_shows_that_a_gateway_made_it_is_deleted(house, alice):
    house.upload(alice, "disk")
    raw = house.disk.upload(make_upload(b"strange")).id
    [found] = untouched(house, ["orphaned"])
    assert (found.where, found.id) == ("disk-1", raw)
    assert house.mend() == ["mended"]
    assert [each.id for each in house.disk.files()] == [house.copy("disk-1").deployment_file_id]


def test_in_front_of_an_empty_database_nothing_is_deleted(house):
    for _ in range(2):
        house.disk.upload(make_upload(b"strange"))
    next(house.data_dir.glob("local/*/*.json")).write_text("{")
    house.services.reconciler._kept.put(STRAY, make_upload(b"stray"))
    house.check(repair=True)
    assert [each.kind for each in house.said] == ["leftover", "damaged", "orphaned"]
    assert {each.outcome for each in house.said} == {"left"}
    assert all("if it is the right one" in each.reason for each in house.said)
    assert set(house.mend(own=("disk-1", "kept"))) == {"mended"}


def test_two_deployments_of_one_account_are_listed_once_and_know_each_others_files(
    house, alice, monkeypatch
):
    """`files_settings` and `model_list` may name the same account by different ids."""
    both = house.fakes["a-1"]
    monkeypatch.setattr(house.fakes["b-1"], "stored", both.stored)
    monkeypatch.setattr(house.fakes["b-1"], "contents", both.contents)
    house.upload(alice)
    assert house.check(own=("a-1", "b-1")) == []
    assert house.summary.accounts == 3
    monkeypatch.setattr(FakeProvider, "account", "one")
    raw = aged(both)
    assert house.check() == ["unknown"]
    assert house.said[0].id == raw and house.summary.accounts == 2


def add_job(house: House, alice: Caller, **values: Any) -> None:
    moment = now()
    facts: dict[str, Any] = {
        "id": STRAY,
        "type": "batch",
        "kind": "unified",
        "owner": alice.owner,
        "deployment_id": "a-1",
        "provider": "openai",
        "upstream_input_id": "file-none",
        "request": {},
        "snapshot": {},
        "status": "in_progress",
        "state": "active",
        "looks": 0,
        "next_look_at": moment + HOUR,
        "created_at": moment - dt.timedelta(hours=3),
        "updated_at": moment,
        **values,
    }
    with house.database.write() as session:
        session.add(Job(**facts))


@pytest.mark.parametrize(
    "snapshot",
    [
        {"output_file_id": "?"},
        {"error_file_id": "?", "output_file_id": None},
        {"result_files": ["file-x", "?"]},
    ],
)
def test_what_a_job_has_made_and_nobody_recorded_yet_is_the_upkeeps(house, alice, snapshot):
    raw = aged(house.fakes["a-1"])
    told = json.loads(json.dumps(snapshot).replace("?", raw))
    add_job(house, alice, snapshot=told)
    assert house.check(own=("a-1",)) == []


def test_what_a_job_reads_is_known(house, alice):
    add_job(house, alice, upstream_input_id=aged(house.fakes["a-1"]))
    assert house.check(own=("a-1",)) == []


@pytest.mark.parametrize("purpose", ["batch_output", "fine-tune-results"])
def test_an_output_is_never_deleted_before_every_job_has_ended(house, alice, purpose):
    house.upload(alice)
    raw = aged(house.fakes["a-1"], purpose=purpose)
    house.fakes["a-1"].is_ours = lambda _: True
    assert house.check(repair=True) == ["unknown"]
    add_job(house, alice)
    assert house.check(repair=True, own=("a-1",)) == []
    assert raw in house.fakes["a-1"].stored
    house.change(Job, state="final")
    assert house.check(repair=True, own=("a-1",)) == ["orphaned"]
    assert raw not in house.fakes["a-1"].stored


def test_a_name_that_a_stranger_chose_stays_on_its_line(house):
    aged(house.fakes["a-1"], filename="a\n\x1b[31mb")
    house.check()
    assert house.said[0].meaning.isprintable()


def test_a_time_that_is_none_is_a_long_time_ago(house):
    raw = aged(house.fakes["a-1"])
    house.fakes["a-1"].change(raw, created_at=10**18)
    assert house.check(grace=HOUR) == ["unknown"]
    assert "1970" in house.said[0].meaning


def test_a_place_without_files_is_no_account(house, alice):
    def without(purpose: str | None = None) -> Any:
        raise NotSupported("no bucket")

    house.fakes["a-1"].files = without
    assert house.check() == []
    assert house.summary.accounts == 2
    house.upload(alice)
    assert house.check() == ["unasked"]


# The rows alone


def uploading(house: House, alice: Caller, state: str) -> None:
    house.upload(alice)
    house.change(File, state=state)


@pytest.mark.parametrize("state", ["uploading", "failed", "deleting"])
def test_a_file_that_nobody_goes_on_with_is_brought_to_its_end(house, alice, state):
    uploading(house, alice, state)
    [found] = untouched(house, ["stuck"])
    assert state in found.meaning
    assert house.mend() == ["mended"]
    assert [fake.stored for fake in house.fakes.values()] == [{}, {}]
    assert [file.state for file in house.rows()[0]] in ([], ["deleted"])


@pytest.mark.parametrize("state", ["uploading", "failed", "deleting"])
def test_so_is_one_without_a_copy(house, alice, state):
    uploading(house, alice, state)
    with house.database.write() as session:
        session.execute(text("DELETE FROM copies"))
    for fake in house.fakes.values():
        fake.stored.clear()
    untouched(house, ["stuck"])
    assert house.mend() == ["mended"]
    assert [file.state for file in house.rows()[0]] in ([], ["deleted"])


def test_a_delete_whose_copies_are_all_gone_is_ended(house, alice):
    uploading(house, alice, "deleting")
    house.change(Copy, state="deleted")
    for fake in house.fakes.values():
        fake.stored.clear()
    untouched(house, ["stuck"])
    assert house.mend() == ["mended"]


def test_a_copy_that_nobody_comes_to_is_looked_at(house, alice):
    house.upload(alice)
    house.change_copy("a-1", state="stored")
    house.change(File, status="uploaded")
    [found] = untouched(house, ["stuck"])
    assert found.where == "a-1"
    assert house.mend() == ["mended"]
    assert house.copy("a-1").state == "ready"
    assert house.rows()[0][0].status == "processed"


def test_work_that_is_long_overdue_asks_for_a_worker_and_is_done(house, alice):
    house.upload(alice)
    house.change_copy("a-1", state="missing", deployment_file_id=None, next_look_at=now() - HOUR)
    house.fakes["a-1"].stored.clear()
    [found] = untouched(house, ["overdue"])
    assert "manifold worker" in found.meaning
    assert house.mend() == ["mended"]
    assert house.copy("a-1").state == "ready"


def test_work_in_somebodys_hands_is_not_overdue(house, alice):
    house.upload(alice)
    house.change_copy("a-1", next_look_at=now() - HOUR, lease_until=now() + HOUR)
    assert house.check(repair=True) == []


def test_copies_of_a_deployment_that_is_not_configured_are_counted(house, alice):
    house.upload(alice)
    house.upload(alice)
    house.change_copy("a-1", deployment_id="gone-1")
    house.fakes["a-1"].stored.clear()
    [found] = untouched(house, ["unconfigured"])
    assert found.where == "gone-1" and found.meaning.endswith(": 2")
    house.check(repair=True)
    assert [each.outcome for each in house.said] == ["left"]


def test_a_status_that_its_copies_do_not_make_is_written_anew(house, alice):
    house.upload(alice)
    house.change(File, status="error", status_details="old")
    [found] = untouched(house, ["status"])
    assert "'error'" in found.meaning and "'processed'" in found.meaning
    assert house.check(grace=HOUR) == [], "whoever has written it may write once more"
    assert house.mend() == ["mended"]
    [file] = house.rows()[0]
    assert (file.status, file.status_details) == ("processed", None)


def test_a_file_whose_copies_have_ended_as_announced_is_not_lost(house, alice):
    for fake in house.fakes.values():
        fake.expires_in = 3600
    house.upload(alice)
    house.change(Copy, state="expired", next_look_at=None)
    house.change(File, status="error")
    for fake in house.fakes.values():
        fake.stored.clear()
    assert house.check() == []


# The SQLite file


def behind_its_back(database: Database, statement: str) -> None:
    """A statement with which no foreign key is looked after."""
    with database.engine.connect() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        connection.rollback()
        driver.execute("PRAGMA foreign_keys=OFF")
        driver.execute(statement)
        driver.execute("PRAGMA foreign_keys=ON")


def test_a_row_whose_parent_is_gone_goes_with_what_it_stands_for(sqlite_file, alice):
    house = make_house(sqlite_file)
    house.upload(alice, "a")
    house.upload(alice, "b")
    kept = house.copy("b-1").file_id
    behind_its_back(sqlite_file, f"DELETE FROM files WHERE id <> '{kept}'")
    [found] = untouched(house, ["database"])
    assert found.id.startswith("copies:")
    assert house.mend() == ["mended"]
    assert house.fakes["a-1"].stored == {}
    assert len(house.fakes["b-1"].stored) == 1


def test_a_damaged_index_is_told_and_left(sqlite_file, alice):
    house = make_house(sqlite_file)
    house.upload(alice)
    with sqlite_file.engine.connect() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        connection.rollback()
        driver.execute("PRAGMA writable_schema=ON")
        driver.execute(
            "UPDATE sqlite_master SET sql = replace(sql, '(model_name', '(provider') "
            "WHERE name = 'ix_copies_model_name'"
        )
        driver.execute("PRAGMA writable_schema=RESET")
    found = untouched(house, ["database"] * 2)
    assert any("ix_copies_model_name" in each.meaning for each in found)
    house.check(repair=True)
    assert {each.outcome for each in house.said} == {"left"}


# What is kept


def kept_path(house: House) -> Path:
    [file] = house.rows()[0]
    return house.data_dir / "kept" / file.id


def test_a_content_that_no_row_speaks_of_is_removed(database, alice):
    house = kept_house(database)
    house.upload(alice)
    path = kept_path(house)
    stray = path.with_name(STRAY)
    stray.write_bytes(b"stray")
    [found] = untouched(house, ["leftover"])
    assert (found.where, found.id) == ("kept", STRAY)
    assert house.check(grace=HOUR) == [], "it may be of an upload that is still running"
    assert house.mend() == ["mended"]
    assert path.exists() and not stray.exists()


def test_the_content_of_a_running_upload_is_not(database, alice):
    house = kept_house(database)
    house.upload(alice)
    house.change(File, state="uploading", is_kept=False)
    house.change(Copy, lease_until=now() + HOUR, next_look_at=now() + HOUR)
    assert house.check() == []


def test_a_content_that_is_not_there_is_not_promised(database, alice):
    house = kept_house(database)
    file_id = house.upload(alice)
    kept_path(house).unlink()
    next((house.data_dir / "local" / "blobs").glob("??/*")).unlink()
    [found] = untouched(house, ["unkept"])
    assert file_id in found.meaning
    assert house.mend() == ["mended"]
    [file] = house.rows()[0]
    assert not file.is_kept
    assert house.content(alice, file_id) == CONTENT


def test_with_several_nodes_it_may_be_on_another_one(database, alice):
    house = make_house(database, keep_content=True, task_queue_url="redis://127.0.0.1/9")
    house.upload(alice, "disk")
    kept_path(house).unlink()
    house.disk.delete(house.copy("disk-1").deployment_file_id or "")
    found = untouched(house, ["elsewhere", "elsewhere"])
    assert [each.where for each in found] == ["kept", "disk-1"]
    house.check(repair=True)
    assert house.rows()[0][0].is_kept and house.copy("disk-1").state == "ready"
    assert house.check(own=("kept", "disk-1")) == ["unkept", "missing"]


def spoil(path: Path) -> None:
    """Other bytes, as many, in every entry that shares this content."""
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def test_a_kept_content_that_is_not_what_was_uploaded_goes(database, alice):
    house = kept_house(database)
    file_id = house.upload(alice)
    spoil(kept_path(house))
    assert house.check() == [], "nobody has read it"
    [found] = untouched(house, ["damaged"], read=True)
    assert found.where == "kept" and file_id in found.meaning
    assert house.mend(read=True) == ["mended"]
    assert house.content(alice, file_id) == CONTENT
    again = house.upload(alice)
    assert house.content(alice, again) == CONTENT, "nothing is shared with the damaged blob"
    assert house.check(read=True) == []


def test_a_content_that_is_shorter_is_seen_without_reading(database, alice):
    house = kept_house(database)
    house.upload(alice)
    kept_path(house).write_bytes(b"short")
    [found] = untouched(house, ["damaged"])
    assert "5 bytes instead of 7" in found.meaning


def test_the_last_content_there_is_is_not_removed_however_damaged(database, alice):
    house = kept_house(database)
    house.upload(alice, "a")
    house.fakes["a-1"].stored.clear()
    house.change(Copy, state="missing", next_look_at=None)
    house.change(File, status="error")
    spoil(kept_path(house))
    house.check(repair=True, read=True)
    assert [(each.kind, each.outcome) for each in house.said] == [("damaged", "left")]
    assert kept_path(house).exists()


# Local models


def entry(house: House, suffix: str) -> Path:
    raw = house.copy("disk-1").deployment_file_id
    [path] = (house.data_dir / "local").glob(f"*/{raw}{suffix}")
    return path


def test_an_entry_without_its_content_is_stored_again(house, alice):
    file_id = house.upload(alice, "a", "disk")
    entry(house, ".bin").unlink()
    blob = next((house.data_dir / "local" / "blobs").glob("??/*"))
    found = untouched(house, ["damaged", "leftover"])
    assert found[0].meaning == "its content is gone"
    assert (found[1].where, found[1].id) == ("local", blob.name)
    assert set(house.mend()) == {"mended"}
    house.fakes["a-1"].stored.clear()
    assert house.content(alice, file_id) == CONTENT


def test_a_content_without_its_entry_and_a_blob_without_either_are_removed(house, alice):
    house.upload(alice, "a", "disk")
    entry(house, ".json").unlink()
    assert untouched(house, ["leftover", "missing"])[0].where == "disk-1"
    assert house.mend() == ["mended"] * 3
    assert house.copy("disk-1").state == "ready"


@pytest.mark.parametrize("damage", ["entry", "bytes", "size"])
def test_a_damaged_content_is_stored_again(house, alice, damage):
    file_id = house.upload(alice, "a", "disk")
    if damage == "entry":
        entry(house, ".json").write_text("{")
    elif damage == "bytes":
        spoil(entry(house, ".bin"))
    else:
        entry(house, ".bin").write_bytes(b"short")
    untouched(house, ["damaged"], read=True)
    assert house.mend(read=True) == ["mended"]
    assert entry(house, ".bin").read_bytes() == CONTENT
    assert house.content(alice, file_id) == CONTENT


@pytest.mark.parametrize("damage", ["entry", "bytes"])
def test_what_is_damaged_stays_where_the_others_do_not_give_the_content(house, alice, damage):
    """OpenAI has a file of purpose user_data and lets nobody download it."""
    house.upload(alice, "a", "disk")
    path = entry(house, ".bin")
    if damage == "entry":
        entry(house, ".json").write_text("{")
    else:
        spoil(path)
    refused = ContentNotAvailable("not allowed to download")
    house.fakes["a-1"].fail_next(refused, method="content")
    house.check(repair=True, read=True)
    [found] = house.said
    assert (found.kind, found.outcome) == ("damaged", "left")
    assert "nothing was removed" in found.reason and path.exists()
    assert house.mend(read=True) == ["mended"]


def test_a_kept_content_stays_where_no_account_gives_another(database, alice):
    house = kept_house(database)
    house.upload(alice, "a")
    spoil(kept_path(house))
    house.fakes["a-1"].fail_next(ContentNotAvailable("not allowed"), method="content")
    house.check(repair=True, read=True)
    assert [(each.kind, each.outcome) for each in house.said] == [("damaged", "left")]
    assert kept_path(house).exists() and house.rows()[0][0].is_kept
    assert house.mend(read=True) == ["mended"]


def test_a_damaged_file_that_no_row_knows_is_removed(house, alice):
    house.upload(alice, "disk")
    house.disk.upload(make_upload(b"strange"))
    mine = entry(house, ".json")
    [stray] = [path for path in mine.parent.glob("*.json") if path != mine]
    stray.write_text("{")
    assert house.check() == ["damaged"]
    assert house.mend() == ["mended", "mended"]
    assert list(mine.parent.glob("*.json")) == [mine]


def test_a_damaged_content_that_nobody_else_has_stays(house, alice):
    house.upload(alice, "disk")
    spoil(entry(house, ".bin"))
    house.check(repair=True, read=True)
    assert [(each.kind, each.outcome) for each in house.said] == [("damaged", "left")]
    assert entry(house, ".bin").exists()


def test_a_content_that_was_exchanged_with_its_entry_is_damaged_too(house, alice):
    house.upload(alice, "a", "disk")
    raw = house.copy("disk-1").deployment_file_id or ""
    other = house.disk.upload(make_upload(b"another"))
    for suffix in (".bin", ".json"):
        [source] = (house.data_dir / "local").glob(f"*/{other.id}{suffix}")
        content = source.read_bytes().replace(other.id.encode(), raw.encode())
        entry(house, suffix).unlink()
        source.with_name(raw + suffix).write_bytes(content)
    house.disk.delete(other.id)
    house.disk.sweep(-3600)
    assert house.check() == []
    [found] = untouched(house, ["damaged"], read=True)
    assert "not the content of the file" in found.meaning
    assert house.mend(read=True) == ["mended"]
    assert entry(house, ".bin").read_bytes() == CONTENT


# Parts of uploads, and the spool


def test_parts_of_an_upload_without_a_row_are_removed(house, alice):
    announced = Announced("f", "text/plain", "user_data", 3)
    selector = Selector(target_model_names=("a",))
    living = house.services.uploads.create(alice, announced, selector)["id"]
    folder = house.data_dir / "uploads" / living.removeprefix("upload_")
    stray = folder.with_name("0" * 32)
    for each in (folder, stray):
        each.mkdir(parents=True)
        (each / "part_x").write_bytes(b"abc")
    [found] = untouched(house, ["leftover"])
    assert (found.where, found.id) == ("uploads", stray.name)
    assert house.mend() == ["mended"]
    assert folder.exists() and not stray.exists()


def test_what_a_dead_process_had_under_way_is_removed(house):
    mine = house.services.spool.folder()
    dead = mine.with_name("1-dead")
    dead.mkdir()
    (dead / ".lock").touch()
    (dead / "upload").write_bytes(b"half")
    [found] = untouched(house, ["leftover"])
    assert (found.where, found.id) == ("spool", "1-dead")
    assert house.mend() == ["mended"]
    assert mine.exists() and not dead.exists()


# What is found again, at the end of a repair


def test_a_repair_does_all_that_is_due(house, alice):
    house.upload(alice)
    house.change_copy(
        "a-1", state="missing", deployment_file_id=None, next_look_at=now() - dt.timedelta(1e-5)
    )
    house.fakes["a-1"].stored.clear()
    house.change(File, status="uploaded")
    assert house.check() == []
    assert house.copy("a-1").state == "missing"
    assert house.check(repair=True) == []
    assert house.copy("a-1").state == "ready"
