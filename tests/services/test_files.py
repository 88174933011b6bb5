"""Files without HTTP: fan-out and its undoing, what is committed when, content, delete."""

import datetime as dt
import threading
import time
from collections import Counter
from contextlib import contextmanager
from unittest.mock import patch

import pytest
from sqlalchemy import event, select, update
from sqlalchemy.exc import OperationalError

from app import ids
from app.db.tables import Copy, File, now
from app.errors import (
    Conflict,
    ContentNotAvailable,
    DatabaseUnavailable,
    DeleteIncomplete,
    InvalidRequest,
    NotFound,
    NotPermitted,
    RangeNotSatisfiable,
    UpstreamAuthFailed,
    UpstreamError,
    UpstreamRejected,
    UpstreamTimeout,
)
from app.services.copies import TOMBSTONE_AGE
from app.services.file_lists import ListQuery
from app.services.router import Hints, Selector
from app.transfers import Download
from tests.builders import make_deployment, make_upload
from tests.conftest import MODELS, NO_HINTS, make_gateway, raw_in
from tests.fakes import FakeProvider

EVERYTHING = (ListQuery(), Selector())
LOST = UpstreamError("openai broke the connection")
TIMEOUT = UpstreamTimeout("openai did not answer in time")
UNREACHABLE = UpstreamError("openai could not be reached", retryable=True)


def refused(status=400, message="the upstream's own words", **more):
    return UpstreamRejected(message, status=status, code="their_code", **more)


def rows(database):
    """All files and copies as they are committed."""
    with database.read() as session:
        return list(session.scalars(select(File))), list(session.scalars(select(Copy)))


def states(database):
    files, copies = rows(database)
    return [f.state for f in files], {c.deployment_id: c.state for c in copies}


def nothing(_value):
    """Of a call, only that it has ended."""


def read(content):
    try:
        return b"".join(content.download.chunks)
    finally:
        content.download.close()


@pytest.fixture
def gateway(database):
    return make_gateway(database)


# Create


def test_a_managed_file_is_at_every_deployment_of_every_model(gateway, alice):
    way = gateway.way(alice, target_model_names=("a", "b"))
    made = gateway.files.create(alice, make_upload(b"12345", filename="x.jsonl"), way)
    meaning = ids.decode(made["id"])
    assert isinstance(meaning, ids.UnifiedId)
    assert (meaning.mime_type, meaning.target_model_names) == ("application/jsonl", ("a", "b"))
    assert made == {
        "id": made["id"],
        "object": "file",
        "bytes": 5,
        "created_at": made["created_at"],
        "expires_at": None,
        "filename": "x.jsonl",
        "purpose": "user_data",
        "status": "processed",
        "status_details": None,
    }
    assert abs(made["created_at"] - time.time()) < 60
    for key in ("a-1", "a-2", "b-1"):
        assert list(gateway.fakes[key].contents.values()) == [b"12345"]
    assert gateway.fakes["openai-account"].calls == []
    assert states(gateway.database) == (["ready"], dict.fromkeys(("a-1", "a-2", "b-1"), "ready"))


def test_a_unified_id_tells_nothing_of_the_providers(gateway, alice):
    file_id = gateway.upload(alice)
    meaning = ids.decode(file_id)
    assert isinstance(meaning, ids.UnifiedId)
    # A random uuid may well hold "a-2".
    said = str(meaning).replace(meaning.file_uuid, "")
    for key in ("a-1", "a-2", "b-1"):
        assert gateway.raw_id(key) not in said
        assert key not in said


def test_one_account_gets_one_copy_and_an_encoded_id(gateway, alice):
    file_id = gateway.upload(alice, model="a")
    held = [key for key in ("a-1", "a-2") if gateway.fakes[key].stored]
    assert len(held) == 1
    assert file_id == ids.encode_file(gateway.raw_id(held[0]), "a")


def test_a_providers_account_gives_its_own_id(gateway, alice):
    file_id = gateway.upload(alice, provider="openai")
    assert file_id == gateway.raw_id("openai-account")
    [file], [copy] = rows(gateway.database)
    assert (file.owner, file.kind, copy.deployment_file_id) == (alice.owner, "raw", file_id)


def test_the_name_under_which_an_account_was_asked_for_stays_in_the_id(gateway, alice):
    file_id = gateway.upload(alice, model="openai/up-b")
    assert file_id == ids.encode_file(gateway.raw_id("b-1"), "openai/up-b")
    assert gateway.files.retrieve(alice, file_id, NO_HINTS)["id"] == file_id


def test_an_expiry_is_kept(gateway, alice):
    way = gateway.way(alice, target_model_names=("b",))
    made = gateway.files.create(alice, make_upload(expires_after_seconds=3600), way)
    assert made["expires_at"] == pytest.approx(made["created_at"] + 3600, abs=1)


def test_the_last_copys_end_is_the_files(gateway, alice):
    ends = {}

    class Forgets(FakeProvider):
        def upload(self, upload):
            stored = super().upload(upload)
            ends[self.deployment.id] = int(time.time()) + 1000 * len(self.deployment.id)
            self.change(stored.id, expires_at=ends[self.deployment.id])
            return self.stored[stored.id]

    gateway = make_gateway(
        gateway.database,
        [make_deployment("x", model_name="x"), make_deployment("yy", model_name="y")],
        fake=Forgets,
    )
    file_id = gateway.upload(alice, names=("x", "y"))
    assert gateway.files.retrieve(alice, file_id, NO_HINTS)["expires_at"] == ends["yy"]


def test_more_names_than_an_id_can_hold_are_refused_before_anything_is_sent(database, alice):
    names = [f"{'long-model-name' * 8}-{n}" for n in range(40)]
    gateway = make_gateway(database, [make_deployment(n, model_name=n) for n in names])
    with pytest.raises(InvalidRequest) as refusal:
        gateway.upload(alice, names=names)
    assert refusal.value.param == "target_model_names"
    assert gateway.calls() == 0
    assert rows(database) == ([], [])


def test_the_intent_is_committed_before_the_first_byte(served_database, alice):
    gateway = make_gateway(served_database)
    seen = []
    for fake in gateway.fakes.values():
        fake.during_upload = lambda: seen.append(rows(served_database))
    gateway.upload(alice, names=("a", "b"))
    assert len(seen) == 3
    for files, copies in seen:
        assert [(f.state, f.owner, f.filename) for f in files] == [
            ("uploading", alice.owner, "hello.jsonl")
        ]
        assert {c.deployment_id for c in copies} == {"a-1", "a-2", "b-1"}


@pytest.mark.parametrize("selector", [{"names": ("b",)}, {"model": "b"}, {"provider": "openai"}])
def test_the_intent_of_every_way_is_committed_and_unseen(database, alice, selector):
    gateway = make_gateway(database)
    seen = []

    def look():
        seen.append((states(database), gateway.lists.page(alice, *EVERYTHING)["data"]))

    for fake in gateway.fakes.values():
        fake.during_upload = look
    gateway.upload(alice, **selector)
    [((file_states, copy_states), listed)] = seen
    assert (file_states, list(copy_states.values()), listed) == (["uploading"], ["intended"], [])


def test_what_one_upstream_answered_is_committed_while_others_still_work(served_database, alice):
    gateway = make_gateway(served_database, MODELS[1:])
    seen = []
    stored = threading.Event()

    def look():
        for _ in range(500):
            [copy] = [c for c in rows(served_database)[1] if c.deployment_id == "a-2"]
            if copy.deployment_file_id:
                seen.append((copy.state, copy.deployment_file_id))
                return stored.set()
            time.sleep(0.01)
        return None

    gateway.fakes["b-1"].during_upload = look
    gateway.upload(alice, names=("a", "b"))
    assert stored.is_set()
    assert seen == [("ready", gateway.raw_id("a-2"))]


def test_all_copies_travel_at_the_same_time(served_database, alice):
    gateway = make_gateway(served_database)
    together = threading.Barrier(3)
    for fake in gateway.fakes.values():
        fake.during_upload = lambda: nothing(together.wait(5))
    gateway.upload(alice, names=("a", "b"))
    assert not together.broken


# No transaction while an upstream is waited for


@contextmanager
def counted_transactions(database):
    """The number of connections that are lent at the moment, in a list of one."""
    count = [0]
    steps = [("checkout", 1), ("checkin", -1)]
    listeners = []
    for name, step in steps:

        def listen(_connection, _record, _lent=None, step=step):
            count[0] += step

        event.listen(database.engine, name, listen)
        listeners.append((name, listen))
    yield count
    for name, listen in listeners:
        event.remove(database.engine, name, listen)


def test_no_transaction_is_open_while_an_upstream_works(database, alice):
    during = []

    class Watched(FakeProvider):
        def _called(self, method, *arguments):
            during.append((method, count[0]))
            return super()._called(method, *arguments)

    gateway = make_gateway(database, MODELS[2:], fake=Watched)
    with counted_transactions(database) as count:
        for selector in ({"names": ("b",)}, {"model": "b"}, {"provider": "openai"}):
            file_id = gateway.upload(alice, **selector)
            with database.write() as session:
                session.execute(update(Copy).values(state="stored"))
            gateway.files.retrieve(alice, file_id, NO_HINTS)
            read(gateway.files.content(alice, file_id, NO_HINTS))
            gateway.files.delete(alice, file_id, NO_HINTS)
        fake = gateway.fakes["b-1"]
        fake.fail_next(LOST, method="upload")
        with pytest.raises(UpstreamError):
            gateway.upload(alice, names=("b",))
        assert count == [0]
    assert {method for method, _ in during} == {"upload", "retrieve", "content", "delete"}
    assert {number for _, number in during} == {0}


# Partial success


def test_a_region_that_is_down_leaves_a_missing_copy(gateway, alice, root):
    gateway.fakes["a-1"].fail_next(UNREACHABLE, method="upload")
    file_id = gateway.upload(alice, names=("a", "b"))
    shown = gateway.files.retrieve(root, file_id, NO_HINTS, with_copies=True)
    assert shown["status"] == "processed"
    [missing] = [copy for copy in shown["copies"] if copy["deployment"] == "a-1"]
    assert (missing["state"], missing["last_error"], missing["provider_file_id"]) == (
        "missing",
        "openai could not be reached",
        None,
    )
    assert read(gateway.files.content(alice, file_id, NO_HINTS)) == b"content"


def test_an_answer_that_was_lost_stays_an_intent(gateway, alice, root):
    gateway.fakes["a-1"].fail_next(LOST, method="upload", after_doing=True)
    file_id = gateway.upload(alice, names=("a", "b"))
    assert states(gateway.database)[1]["a-1"] == "intended"
    shown = gateway.files.retrieve(alice, file_id, NO_HINTS, with_copies=True)
    assert sorted(copy["state"] for copy in shown["copies"]) == ["ready", "ready", "uploading"]


def test_every_deployment_can_be_demanded(database, alice):
    gateway = make_gateway(database, fan_out="every_deployment")
    gateway.fakes["a-1"].fail_next(UNREACHABLE, method="upload")
    with pytest.raises(UpstreamError) as failure:
        gateway.upload(alice, names=("a", "b"))
    assert "'a'" in failure.value.message
    assert rows(database) == ([], [])
    assert not any(fake.stored for fake in gateway.fakes.values())


@pytest.mark.parametrize(
    "error",
    [refused(400), refused(429, retryable=True), refused(413), UNREACHABLE,
     UpstreamAuthFailed("no"), NotFound("no"), InvalidRequest("no", param="expires_after")],
    ids=["400", "429", "413", "unreachable", "auth", "404", "invalid"],
)  # fmt: skip
def test_a_model_without_a_copy_undoes_the_others(gateway, alice, error):
    status, code, param, message = error.status, error.code, error.param, error.message
    gateway.fakes["b-1"].fail_next(error, method="upload")
    with pytest.raises(type(error)) as failure:
        gateway.upload(alice, names=("a", "b"))
    shown = failure.value
    assert (shown.status, shown.code, shown.param) == (status, code, param)
    assert "'b'" in shown.message and message in shown.message
    assert (shown.headers.get("x-should-retry") == "false") == (status >= 500)
    assert rows(gateway.database) == ([], [])
    for key in ("a-1", "a-2"):
        assert gateway.fakes[key].stored == {}
        assert len(gateway.fakes[key].called("delete")) == 1


@pytest.mark.parametrize("error", [LOST, TIMEOUT, refused(500)], ids=["lost", "timeout", "500"])
def test_what_may_be_stored_keeps_its_row(gateway, alice, error):
    gateway.fakes["b-1"].fail_next(error, method="upload", after_doing=True)
    with pytest.raises(UpstreamError):
        gateway.upload(alice, names=("a", "b"))
    assert states(gateway.database) == (["failed"], {"b-1": "intended"})
    assert gateway.lists.page(alice, *EVERYTHING)["data"] == []


def test_a_copy_that_cannot_be_taken_back_keeps_its_row_and_nobody_sees_it(gateway, alice, root):
    gateway.fakes["b-1"].fail_next(refused(400), method="upload")
    gateway.fakes["a-2"].fail_next(refused(503, "not now"), method="delete")
    with pytest.raises(UpstreamRejected, match="the upstream's own words"):
        gateway.upload(alice, names=("a", "b"))
    [file], [copy] = rows(gateway.database)
    raw = gateway.raw_id("a-2")
    assert (file.state, copy.deployment_id, copy.state) == ("failed", "a-2", "deleting")
    assert (copy.deployment_file_id, copy.last_error) == (raw, "not now")
    assert gateway.lists.page(alice, *EVERYTHING)["data"] == []
    for file_id in (file.public_id, raw, ids.encode_file(raw, "a")):
        for caller in (alice, root):
            with pytest.raises(NotFound):
                gateway.files.retrieve(caller, file_id, NO_HINTS)
            with pytest.raises(NotFound):
                gateway.files.delete(caller, file_id, NO_HINTS)


def test_an_account_that_is_down_is_passed_over(gateway, alice):
    for _ in range(4):
        gateway.fakes["a-1"].fail_next(UNREACHABLE, method="upload")
        file_id = gateway.upload(alice, model="a")
        assert raw_in(file_id) in gateway.fakes["a-2"].stored
        gateway.fakes["a-1"]._failures.clear()
        gateway.clock.seconds += 60
    files, copies = rows(gateway.database)
    assert {f.state for f in files} == {"ready"}
    assert {c.deployment_id for c in copies} == {"a-2"}


@pytest.mark.parametrize("error", [refused(400), LOST, UpstreamAuthFailed("no")])
def test_what_another_account_would_not_mend_is_not_sent_there(gateway, alice, error):
    for key in ("a-1", "a-2"):
        gateway.fakes[key].fail_next(error, method="upload")
    with pytest.raises(UpstreamError):
        gateway.upload(alice, model="a")
    assert sum(len(gateway.fakes[key].called("upload")) for key in ("a-1", "a-2")) == 1


def test_the_last_accounts_error_is_the_answer(gateway, alice):
    for key in ("a-1", "a-2"):
        gateway.fakes[key].fail_next(refused(429, f"{key} is full", retryable=True))
    with pytest.raises(UpstreamRejected, match=r"a-\d is full") as failure:
        gateway.upload(alice, model="a")
    assert failure.value.status == 429
    assert gateway.router.resting() != []
    assert rows(gateway.database) == ([], [])


def test_a_bug_in_a_provider_is_not_swallowed_and_the_intent_stays(gateway, alice):
    def explode():
        raise RuntimeError("a bug")

    gateway.fakes["b-1"].during_upload = explode
    with pytest.raises(RuntimeError, match="a bug"):
        gateway.upload(alice, names=("a", "b"))
    files, copies = states(gateway.database)
    assert files == ["uploading"]
    assert copies == {"a-1": "ready", "a-2": "ready", "b-1": "intended"}
    assert gateway.in_flight() == {}


# The database is down


@contextmanager
def outage(database, begins):
    """From the moment `begins()` is true, no connection can be had."""

    def refuse(*_arguments):
        if begins():
            raise OperationalError("x", None, Exception("the server is gone"))

    lend = database.lend

    def lent(**asked):
        # Some are kept out of the pool.
        if begins():
            raise DatabaseUnavailable
        return lend(**asked)

    event.listen(database.engine, "checkout", refuse)
    with patch.object(database, "lend", lent):
        yield
    event.remove(database.engine, "checkout", refuse)


def test_without_a_database_nothing_is_sent(gateway, alice):
    with outage(gateway.database, lambda: True), pytest.raises(DatabaseUnavailable):
        gateway.upload(alice)
    assert gateway.calls() == 0


@pytest.mark.parametrize("selector", [{"names": ("b",)}, {"model": "b"}, {"provider": "openai"}])
@pytest.mark.parametrize("deletable", [True, False])
def test_a_copy_that_cannot_be_written_down_is_taken_back(
    served_database, alice, selector, deletable
):
    gateway = make_gateway(served_database)
    fake = gateway.fakes["openai-account" if "provider" in selector else "b-1"]
    if not deletable:
        fake.fail_next(UNREACHABLE, method="delete")
    with (
        outage(gateway.database, lambda: bool(fake.called("upload"))),
        pytest.raises(DatabaseUnavailable) as failure,
    ):
        gateway.upload(alice, **selector)
    assert failure.value.headers["Retry-After"]
    assert bool(fake.stored) == (not deletable)
    # Back again: what was intended can be seen, and the file cannot.
    files, copies = states(gateway.database)
    assert (files, list(copies.values())) == (["uploading"], ["intended"])
    assert gateway.lists.page(alice, *EVERYTHING)["data"] == []


def test_a_short_outage_takes_back_all_copies(served_database, alice):
    # Just while one of two is written down: the other one must not stay behind either.
    gateway = make_gateway(served_database, MODELS[1:])
    hit: list[bool] = []

    def begins():
        is_first = bool(gateway.fakes["a-2"].called("upload")) and not hit
        if is_first:
            hit.append(True)
        return is_first

    gateway.fakes["b-1"].upload_delay = 0.2
    with outage(served_database, begins), pytest.raises(DatabaseUnavailable):
        gateway.upload(alice, names=("a", "b"))
    assert not any(fake.stored for fake in gateway.fakes.values())
    assert states(served_database) == (["failed"], {"a-2": "intended"})


def test_a_file_whose_user_is_deleted_meanwhile_does_not_come_back(database, alice):
    gateway = make_gateway(database)

    def give_up():
        with database.write() as session:
            session.execute(update(File).values(state="deleting", owner="deleted-user:alice:1"))
        gateway.files.finish_deletes([file.id for file in rows(database)[0]])

    gateway.fakes["b-1"].during_upload = give_up
    with pytest.raises(Conflict):
        gateway.upload(alice, names=("b",))
    assert gateway.fakes["b-1"].stored == {}
    assert states(database) == (["deleted"], {"b-1": "deleted"})


# Retrieve


class Slow(FakeProvider):
    """Still at work on what was just uploaded."""

    def upload(self, upload):
        stored = super().upload(upload)
        self.change(stored.id, status="uploaded")
        return self.stored[stored.id]


def test_a_file_is_answered_from_its_row(gateway, alice):
    file_id = gateway.upload(alice)
    before = gateway.calls()
    assert gateway.files.retrieve(alice, file_id, NO_HINTS)["id"] == file_id
    assert gateway.calls() == before


def test_copies_that_are_not_final_are_asked_for_until_they_are(database, alice):
    gateway = make_gateway(database, fake=Slow)
    file_id = gateway.upload(alice, names=("a", "b"))
    assert gateway.files.retrieve(alice, file_id, NO_HINTS)["status"] == "uploaded"
    gateway.fakes["a-1"].change(gateway.raw_id("a-1"), status="processed")
    assert gateway.files.retrieve(alice, file_id, NO_HINTS)["status"] == "uploaded"
    gateway.fakes["b-1"].change(gateway.raw_id("b-1"), status="processed")
    assert gateway.files.retrieve(alice, file_id, NO_HINTS)["status"] == "processed"
    asked = len(gateway.fakes["a-1"].called("retrieve"))
    gateway.files.retrieve(alice, file_id, NO_HINTS)
    assert len(gateway.fakes["a-1"].called("retrieve")) == asked
    assert states(database)[1] == {"a-1": "ready", "a-2": "stored", "b-1": "ready"}


def test_an_upstream_that_refuses_the_file_makes_it_an_error(database, alice):
    gateway = make_gateway(database, fake=Slow)
    file_id = gateway.upload(alice, names=("b",))
    raw = gateway.raw_id("b-1")
    gateway.fakes["b-1"].change(raw, status="error", status_details="line 3 is not JSON")
    shown = gateway.files.retrieve(alice, file_id, NO_HINTS)
    assert (shown["status"], shown["status_details"]) == ("error", "line 3 is not JSON")


def test_an_upstream_that_does_not_answer_changes_nothing(database, alice):
    gateway = make_gateway(database, fake=Slow)
    file_id = gateway.upload(alice, names=("b",))
    gateway.fakes["b-1"].fail_next(TIMEOUT, method="retrieve")
    assert gateway.files.retrieve(alice, file_id, NO_HINTS)["status"] == "uploaded"
    assert states(database)[1] == {"b-1": "stored"}


def test_a_refresh_does_not_bring_a_deleted_copy_back(database, alice):
    class Raced(Slow):
        def retrieve(self, file_id):
            with database.write() as session:
                session.execute(update(File).values(state="deleted"))
                session.execute(update(Copy).values(state="deleted"))
            return super().retrieve(file_id)

    gateway = make_gateway(database, fake=Raced)
    file_id = gateway.upload(alice, names=("b",))
    gateway.fakes["b-1"].change(gateway.raw_id("b-1"), status="processed")
    gateway.files.retrieve(alice, file_id, NO_HINTS)
    assert states(database) == (["deleted"], {"b-1": "deleted"})


def test_who_sees_what_of_the_copies(gateway, alice, root, viewer):
    file_id = gateway.upload(alice, names=("b",))
    raw = gateway.raw_id("b-1")
    [shown] = gateway.files.retrieve(alice, file_id, NO_HINTS, with_copies=True)["copies"]
    assert shown == {"model": "b", "state": "ready", "expires_at": None}
    for caller in (root, viewer):
        [shown] = gateway.files.retrieve(caller, file_id, NO_HINTS, with_copies=True)["copies"]
        assert (shown["deployment"], shown["provider_file_id"]) == ("b-1", raw)
    assert "copies" not in gateway.files.retrieve(root, file_id, NO_HINTS)


def test_the_id_is_answered_as_it_was_asked(gateway, alice):
    unified = gateway.upload(alice, names=("b",))
    raw = gateway.raw_id("b-1")
    for file_id in (unified, raw, ids.encode_file(raw, "b")):
        assert gateway.files.retrieve(alice, file_id, NO_HINTS)["id"] == file_id
        assert read(gateway.files.content(alice, file_id, NO_HINTS)) == b"content"


def test_strangers_touch_no_upstream(gateway, alice, bob, nobody):
    known = [gateway.upload(alice, **way) for way in ({}, {"model": "b"}, {"provider": "openai"})]
    before = gateway.calls()
    for file_id in known:
        for caller in (bob, nobody):
            for ask in (gateway.files.retrieve, gateway.files.content, gateway.files.delete):
                with pytest.raises(NotPermitted):
                    ask(caller, file_id, NO_HINTS)
    assert gateway.calls() == before


# Content


def test_content_has_what_the_row_says(gateway, alice):
    way = gateway.way(alice, target_model_names=("b",))
    every_byte = bytes(range(256)) * 3
    upload = make_upload(every_byte, filename="näme.bin", mime_type="application/x-own")
    file_id = gateway.files.create(alice, upload, way)["id"]
    found = gateway.files.content(alice, file_id, NO_HINTS)
    assert (found.filename, found.mime_type, found.size, found.deployment) == (
        "näme.bin",
        "application/x-own",
        768,
        "b-1",
    )
    assert found.download.length == 768
    assert read(found) == every_byte


def test_a_range_is_passed_on(gateway, alice):
    file_id = gateway.upload(alice, b"0123456789")
    found = gateway.files.content(alice, file_id, NO_HINTS, "bytes=2-4")
    assert (found.download.content_range, read(found)) == ("bytes 2-4/10", b"234")
    with pytest.raises(RangeNotSatisfiable):
        gateway.files.content(alice, file_id, NO_HINTS, "bytes=10-")


@pytest.mark.parametrize("error", [UNREACHABLE, TIMEOUT, refused(500), NotFound("gone")])
def test_the_next_copy_is_read_when_one_fails_before_its_first_byte(gateway, alice, error):
    file_id = gateway.upload(alice, names=("a",))
    for key in ("a-1", "a-2"):
        gateway.fakes[key].fail_next(error, method="content")
        assert read(gateway.files.content(alice, file_id, NO_HINTS)) == b"content"
        gateway.fakes[key]._failures.clear()


class Breaks(FakeProvider):
    """Its content breaks after `good` pieces of it, and says when it was closed."""

    good = 0
    closed: Counter[str] = Counter()

    def content(self, file_id, byte_range=None, cancellation=None):
        self._called("content", file_id)

        def chunks():
            for _ in range(self.good):
                yield b"piece"
            raise UpstreamError("openai broke the connection")

        def close():
            self.closed[self.deployment.id] += 1

        return Download(chunks(), 100, close=close)


def test_a_stream_that_breaks_at_once_is_replaced_and_closed(database, alice):
    Breaks.closed.clear()
    gateway = make_gateway(database, fake=Breaks)
    file_id = gateway.upload(alice, names=("a",))
    with pytest.raises(UpstreamError, match="broke the connection"):
        gateway.files.content(alice, file_id, NO_HINTS)
    for key in ("a-1", "a-2"):
        assert len(gateway.fakes[key].called("content")) == 1
        assert Breaks.closed[key] == 1


def test_a_stream_that_breaks_later_breaks_visibly(database, alice):
    class BreaksLater(Breaks):
        good = 3

    gateway = make_gateway(database, fake=BreaksLater)
    file_id = gateway.upload(alice, names=("a",))
    found = gateway.files.content(alice, file_id, NO_HINTS)
    pieces = []
    with pytest.raises(UpstreamError):
        for chunk in found.download.chunks:
            pieces.append(chunk)
    assert pieces == [b"piece"] * 3
    found.download.close()
    assert sum(len(gateway.fakes[key].called("content")) for key in ("a-1", "a-2")) == 1


def test_an_error_that_may_pass_counts_more_than_a_loss(gateway, alice):
    file_id = gateway.upload(alice, names=("a",))
    for _ in range(6):
        gateway.fakes["a-1"].fail_next(refused(503, "try later"), method="content")
        gateway.fakes["a-2"].fail_next(NotFound("gone"), method="content")
        with pytest.raises(UpstreamRejected, match="try later"):
            gateway.files.content(alice, file_id, NO_HINTS)


def test_a_file_that_every_upstream_has_lost_is_not_found(gateway, alice):
    file_id = gateway.upload(alice, names=("a",))
    for key in ("a-1", "a-2"):
        gateway.fakes[key].stored.clear()
    with pytest.raises(NotFound) as failure:
        gateway.files.content(alice, file_id, NO_HINTS)
    assert file_id in failure.value.message


def test_a_file_without_a_copy_to_read_says_so(gateway, alice):
    file_id = gateway.upload(alice, names=("a",))
    with gateway.database.write() as session:
        session.execute(update(Copy).values(state="missing"))
    with pytest.raises(ContentNotAvailable):
        gateway.files.content(alice, file_id, NO_HINTS)


def test_an_expired_copy_is_not_asked(gateway, alice):
    file_id = gateway.upload(alice, names=("a",))
    with gateway.database.write() as session:
        past = update(Copy).values(expires_at=now() - dt.timedelta(seconds=1))
        session.execute(past.where(Copy.deployment_id == "a-1"))
    for _ in range(8):
        assert gateway.files.content(alice, file_id, NO_HINTS).deployment == "a-2"
    assert gateway.fakes["a-1"].called("content") == []


def test_a_deployment_that_was_removed_from_the_configuration_is_not_asked(database, alice):
    file_id = make_gateway(database).upload(alice, names=("a",))
    later = make_gateway(database, MODELS[2:])
    with pytest.raises(ContentNotAvailable):
        later.files.content(alice, file_id, NO_HINTS)
    assert later.files.retrieve(alice, file_id, NO_HINTS)["id"] == file_id


# Delete


@pytest.mark.parametrize(
    "selector", [{"names": ("a", "b")}, {"model": "b"}, {"provider": "openai"}]
)
def test_a_deleted_file_is_gone_everywhere(gateway, alice, selector):
    file_id = gateway.upload(alice, **selector)
    assert gateway.files.delete(alice, file_id, NO_HINTS) == {
        "id": file_id,
        "object": "file",
        "deleted": True,
    }
    assert not any(fake.stored for fake in gateway.fakes.values())
    before = gateway.calls()
    for ask in (gateway.files.delete, gateway.files.retrieve, gateway.files.content):
        with pytest.raises(NotFound):
            ask(alice, file_id, NO_HINTS)
    assert gateway.calls() == before
    assert gateway.lists.page(alice, *EVERYTHING)["data"] == []


def test_what_is_gone_upstream_counts_as_deleted(gateway, alice):
    file_id = gateway.upload(alice)
    gateway.fakes["a-1"].stored.clear()
    assert gateway.files.delete(alice, file_id, NO_HINTS)["deleted"] is True


def test_a_delete_that_one_model_refuses_goes_on_from_there(gateway, alice, root):
    file_id = gateway.upload(alice, names=("a", "b"))
    raw = gateway.raw_id("b-1")
    gateway.fakes["b-1"].fail_next(refused(500, "secret internals"), TIMEOUT, method="delete")
    for attempt in (1, 2):
        with pytest.raises(DeleteIncomplete) as failure:
            gateway.files.delete(alice, file_id, NO_HINTS)
        assert (failure.value.status, failure.value.code) == (502, "delete_incomplete")
        assert "at: b;" in failure.value.message
        assert "secret" not in failure.value.message and raw not in failure.value.message
        assert states(gateway.database) == (
            ["deleting"],
            {"a-1": "deleted", "a-2": "deleted", "b-1": "deleting"},
        )
        assert len(gateway.fakes["b-1"].called("delete")) == attempt
        # From the first attempt on nobody can use it, by whatever id.
        for used in (file_id, raw, ids.encode_file(raw, "b")):
            for caller in (alice, root):
                for ask in (gateway.files.retrieve, gateway.files.content):
                    with pytest.raises(NotFound):
                        ask(caller, used, NO_HINTS)
        assert gateway.lists.page(alice, *EVERYTHING)["data"] == []
    assert gateway.files.delete(alice, file_id, NO_HINTS)["deleted"] is True
    assert [len(gateway.fakes[key].called("delete")) for key in ("a-1", "a-2", "b-1")] == [1, 1, 3]
    with pytest.raises(NotFound):
        gateway.files.delete(alice, file_id, NO_HINTS)


def test_a_file_is_unusable_before_the_first_upstream_is_asked_to_delete(database, alice):
    seen = []

    class Looks(FakeProvider):
        def delete(self, file_id):
            seen.append(states(database))
            super().delete(file_id)

    gateway = make_gateway(database, MODELS[2:], fake=Looks)
    gateway.files.delete(alice, gateway.upload(alice, names=("b",)), NO_HINTS)
    assert seen == [(["deleting"], {"b-1": "deleting"})]


def test_a_delete_goes_on_without_a_request(gateway, alice):
    file_id = gateway.upload(alice, names=("a", "b"))
    kept = gateway.upload(alice, names=("b",))
    gateway.fakes["b-1"].fail_next(TIMEOUT, method="delete")
    with pytest.raises(DeleteIncomplete):
        gateway.files.delete(alice, file_id, NO_HINTS)
    everything = [file.id for file in rows(gateway.database)[0]]
    gateway.files.finish_deletes([*everything, ids.new_uuid()])
    assert sorted(states(gateway.database)[0]) == ["deleted", "ready"]
    assert gateway.files.retrieve(alice, kept, NO_HINTS)


def test_a_deployment_without_configuration_keeps_a_delete_open(database, alice):
    file_id = make_gateway(database).upload(alice, names=("a", "b"))
    later = make_gateway(database, MODELS[:2])
    with pytest.raises(DeleteIncomplete, match="at: b;"):
        later.files.delete(alice, file_id, NO_HINTS)
    assert make_gateway(database).files.delete(alice, file_id, NO_HINTS)["deleted"]


def test_two_deletes_at_once_both_succeed(served_database, alice):
    gateway = make_gateway(served_database)
    file_id = gateway.upload(alice)
    start = threading.Barrier(4)
    answers: list[bool] = []

    def delete():
        start.wait(5)
        try:
            answers.append(gateway.files.delete(alice, file_id, NO_HINTS)["deleted"])
        except NotFound:
            answers.append(False)

    threads = [threading.Thread(target=delete) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 4 and True in answers
    assert not any(fake.stored for fake in gateway.fakes.values())
    assert states(served_database)[0] == ["deleted"]


def test_old_tombstones_go_when_something_is_deleted(gateway, alice):
    old, other = gateway.upload(alice, names=("b",)), gateway.upload(alice, names=("b",))
    gateway.files.delete(alice, old, NO_HINTS)
    with gateway.database.write() as session:
        before = now() - TOMBSTONE_AGE - dt.timedelta(minutes=1)
        session.execute(update(File).where(File.state == "deleted").values(updated_at=before))
    gateway.files.delete(alice, other, NO_HINTS)
    files, copies = rows(gateway.database)
    assert [file.public_id for file in files] == [other]
    assert len(copies) == 1


# Files without a row


def test_an_admin_uses_what_has_no_row(gateway, root):
    stored = gateway.fakes["openai-account"].upload(make_upload(b"theirs", filename="t.txt"))
    assert gateway.files.retrieve(root, stored.id, NO_HINTS)["filename"] == "t.txt"
    assert read(gateway.files.content(root, stored.id, NO_HINTS)) == b"theirs"
    assert gateway.files.delete(root, stored.id, NO_HINTS)["id"] == stored.id
    assert gateway.fakes["openai-account"].stored == {}
    for ask in (gateway.files.retrieve, gateway.files.content, gateway.files.delete):
        with pytest.raises(NotFound):
            ask(root, stored.id, NO_HINTS)


def test_a_file_without_a_row_is_looked_for_at_all_accounts_of_its_model(gateway, root):
    for key in ("a-1", "a-2"):
        stored = gateway.fakes[key].upload(make_upload(b"theirs"))
        file_id = ids.encode_file(stored.id, "a")
        assert gateway.files.retrieve(root, file_id, NO_HINTS)["id"] == file_id
        assert read(gateway.files.content(root, file_id, NO_HINTS)) == b"theirs"
        assert gateway.files.delete(root, file_id, NO_HINTS)["deleted"]
        assert gateway.fakes[key].stored == {}, key


def test_hints_say_where_a_file_without_a_row_is(gateway, root):
    stored = gateway.fakes["b-1"].upload(make_upload(b"theirs"))
    hints = Hints([("query", "model", ("b",))])
    assert read(gateway.files.content(root, stored.id, hints)) == b"theirs"
    with pytest.raises(NotFound):
        gateway.files.content(root, stored.id, NO_HINTS)
