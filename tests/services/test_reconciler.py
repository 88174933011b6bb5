"""The worker's looks at copies: everything that was cut off comes to its end, from rows alone."""

import datetime as dt
import hashlib
import time
from contextlib import suppress

import pytest
from sqlalchemy import func, select, update

from app import faults
from app.db import copies as work_rows
from app.db.tables import Copy, File, now
from app.errors import DeleteIncomplete, UpstreamError, UpstreamRejected, UpstreamTimeout
from app.services.router import Hints
from tests.builders import make_deployment, make_upload
from tests.conftest import Gateway, make_gateway

CONTENT = bytes(range(256))
BROKEN = UpstreamError("broken", retryable=True)
LOST = UpstreamTimeout("no answer in time")
MODELS = (
    make_deployment("a-1", model_name="a"),
    make_deployment("a-2", model_name="a"),
    make_deployment("b-1", model_name="b"),
)


class Killed(BaseException):
    """What a test ends a request with where a crash would."""


@pytest.fixture(params=["keys", "lists"])
def gateway(request, served_database) -> Gateway:
    """In front of upstreams that let us choose names, and of those that have to be searched."""
    gateway = make_gateway(served_database, MODELS, ())
    for fake in gateway.fakes.values():
        fake.is_keyed = request.param == "keys"
    return gateway


@pytest.fixture(autouse=True)
def _no_watch():
    yield
    faults.watch(None)


def kill_at(name: str, nth: int = 1) -> None:
    """End the next request at the nth time that it reaches a point."""
    seen = 0

    def reached(point: str) -> None:
        nonlocal seen
        seen += point == name
        if point == name and seen == nth:
            faults.watch(None)
            raise Killed

    faults.watch(reached)


def forget_leases(gateway: Gateway) -> None:
    """Let the time go by after which a dead process's copies are anybody's."""
    past = now() - dt.timedelta(seconds=1)
    with gateway.database.write() as session:
        session.execute(update(Copy).where(Copy.lease_until.is_not(None)).values(lease_until=past))
        session.execute(
            update(Copy).where(Copy.next_look_at.is_not(None)).values(next_look_at=past)
        )


def work(gateway: Gateway, passes: int = 1) -> None:
    """Passes of the worker, each over all that is due."""
    for _ in range(passes):
        forget_leases(gateway)
        for copy_id in gateway.rooms.reconciler.due():
            gateway.rooms.reconciler.look(copy_id)


def rows(gateway: Gateway) -> tuple[list[File], list[Copy]]:
    with gateway.database.read() as session:
        files = list(session.scalars(select(File)))
        return files, list(session.scalars(select(Copy).order_by(Copy.deployment_id)))


def stored(gateway: Gateway) -> dict[str, list[bytes]]:
    """What every upstream has."""
    return {key: list(fake.contents.values()) for key, fake in gateway.fakes.items()}


def due(gateway: Gateway) -> int:
    with gateway.database.read() as session:
        open_ones = select(func.count()).where(Copy.next_look_at.is_not(None))
        return session.scalar(open_ones) or 0


NOTHING: dict[str, list[bytes]] = {"a-1": [], "a-2": [], "b-1": []}
EVERYWHERE = {"a-1": [CONTENT], "a-2": [CONTENT], "b-1": [CONTENT]}

# Uploads that were cut off


@pytest.mark.parametrize(
    ("point", "nth"),
    [*(("copy stored upstream", n) for n in (1, 2, 3)), *(("copy recorded", n) for n in (1, 2))],
)
def test_an_upload_that_died_between_two_copies_is_taken_back(gateway, alice, point, nth):
    # An answer is on record by itself where another one takes longer.
    gateway.fakes["b-1"].upload_delay = 0.2
    kill_at(point, nth)
    with pytest.raises(Killed):
        gateway.upload(alice, CONTENT)
    work(gateway)
    assert stored(gateway) == NOTHING
    work(gateway, 4)
    assert rows(gateway) == ([], [])


@pytest.mark.parametrize("point", ["intent committed", "copies sent", "content kept"])
def test_an_upload_that_died_before_its_answer_is_taken_back(gateway, alice, point):
    kill_at(point)
    with pytest.raises(Killed):
        gateway.upload(alice, CONTENT)
    work(gateway)
    assert stored(gateway) == NOTHING
    work(gateway, 4)
    assert rows(gateway) == ([], [])


def test_an_upload_whose_row_is_ready_is_whole_though_nobody_was_told(gateway, alice):
    kill_at("ready committed")
    with pytest.raises(Killed):
        gateway.upload(alice, CONTENT)
    work(gateway, 2)
    assert stored(gateway) == EVERYWHERE
    assert [file.state for file in rows(gateway)[0]] == ["ready"]


def test_an_upload_that_is_still_running_is_left_alone(gateway, alice):
    seen: list[bool] = []

    def look() -> None:
        reconciler = gateway.rooms.reconciler
        seen.extend(reconciler.look(copy.id) for copy in rows(gateway)[1])

    gateway.fakes["b-1"].during_upload = look
    gateway.upload(alice, CONTENT)
    assert seen == [False, False, False]
    assert stored(gateway) == EVERYWHERE
    assert due(gateway) == 0


def test_a_process_that_was_taken_for_dead_takes_its_own_copy_back(gateway, alice):
    gateway.fakes["b-1"].during_upload = lambda: work(gateway, 5)
    with pytest.raises(Exception, match=r"given up on|deleted while"):
        gateway.upload(alice, CONTENT)
    work(gateway, 5)
    assert stored(gateway) == NOTHING
    assert rows(gateway) == ([], [])


@pytest.mark.parametrize("point", ["take-back begun", "take-back done upstream"])
def test_a_take_back_that_was_cut_off_goes_on(gateway, alice, point):
    gateway.fakes["b-1"].fail_next(UpstreamRejected("no", status=400), method="upload")
    kill_at(point)
    with pytest.raises(Killed):
        gateway.upload(alice, CONTENT)
    work(gateway)
    assert stored(gateway) == NOTHING
    work(gateway, 4)
    assert rows(gateway) == ([], [])


def test_a_take_back_that_an_upstream_refuses_goes_on(gateway, alice):
    gateway.fakes["b-1"].fail_next(UpstreamRejected("no", status=400), method="upload")
    gateway.fakes["a-1"].fail_next(BROKEN, BROKEN, method="delete")
    with pytest.raises(UpstreamRejected):
        gateway.upload(alice, CONTENT)
    assert stored(gateway) == {**NOTHING, "a-1": [CONTENT]}
    work(gateway)
    assert stored(gateway) == {**NOTHING, "a-1": [CONTENT]}
    work(gateway)
    assert stored(gateway) == NOTHING
    assert rows(gateway) == ([], [])


def test_two_take_backs_at_once_leave_no_row_without_copies(gateway, alice):
    gateway.fakes["a-1"].fail_next(LOST, method="upload", after_doing=True)
    gateway.fakes["b-1"].fail_next(LOST, method="upload")
    with pytest.raises(UpstreamTimeout):
        gateway.upload(alice, CONTENT)
    [file], stale = rows(gateway)
    assert [copy.deployment_id for copy in stale] == ["a-1", "b-1"]
    work(gateway)
    assert [copy.deployment_id for copy in rows(gateway)[1]] == ["b-1"]
    # Another one that began before, and cannot tell yet what became of the first copy.
    gateway.rooms.copies.take_back(file, stale, {stale[0].id})
    assert rows(gateway) == ([], [])


def test_a_copy_whose_answer_was_lost_is_found_and_removed(gateway, alice):
    gateway.fakes["b-1"].fail_next(LOST, method="upload", after_doing=True)
    with pytest.raises(UpstreamTimeout):
        gateway.upload(alice, CONTENT)
    assert stored(gateway) == {**NOTHING, "b-1": [CONTENT]}
    work(gateway, 5)
    assert stored(gateway) == NOTHING
    assert rows(gateway) == ([], [])


ROW = (
    b'{"custom_id": "1", "method": "POST", "url": "/v1/embeddings", '
    b'"body": {"model": "a", "input": "x"}}\n'
)


def test_a_lost_batch_file_is_found_by_the_size_that_it_was_sent_with(gateway, alice):
    # Its rows say "gpt-4o-2026" there, so it is longer than what the owner sent.
    gateway.fakes["a-1"].fail_next(LOST, method="upload", after_doing=True)
    gateway.fakes["a-2"].fail_next(LOST, method="upload")
    with pytest.raises(UpstreamTimeout):
        gateway.upload(alice, ROW, names=("a",), purpose="batch")
    assert [len(content) > len(ROW) for content in stored(gateway)["a-1"]] == [True]
    work(gateway, 5)
    assert stored(gateway) == NOTHING
    assert rows(gateway) == ([], [])


def test_a_lost_copy_of_a_batch_file_that_was_sent_again_is_found_by_its_size(gateway, alice):
    gateway.fakes["a-2"].fail_next(BROKEN, method="upload")
    gateway.fakes["a-2"].fail_next(LOST, method="upload", after_doing=True)
    gateway.upload(alice, ROW, names=("a",), purpose="batch")
    work(gateway, 5)
    assert [len(stored(gateway)[name]) for name in ("a-1", "a-2")] == [1, 1]
    assert due(gateway) == 0


def test_a_twin_that_somebody_has_is_not_taken_for_a_lost_copy(gateway, alice):
    first = gateway.upload(alice, CONTENT)
    gateway.fakes["b-1"].fail_next(LOST, method="upload")
    with pytest.raises(UpstreamTimeout):
        gateway.upload(alice, CONTENT)
    work(gateway, 5)
    assert stored(gateway) == EVERYWHERE
    gateway.files.retrieve(alice, first, Hints())


def test_two_lost_copies_of_one_name_are_both_found(gateway, alice):
    for _ in range(2):
        gateway.fakes["b-1"].fail_next(LOST, method="upload", after_doing=True)
        with pytest.raises(UpstreamTimeout):
            gateway.upload(alice, CONTENT)
    assert len(stored(gateway)["b-1"]) == 2
    work(gateway, 5)
    assert stored(gateway) == NOTHING


def test_what_another_look_has_removed_meanwhile_is_not_taken_for_found(gateway, alice):
    """The upstream's list is older than the removal: another one of its files is the lost one."""
    fake = gateway.fakes["b-1"]
    for _ in range(2):
        fake.fail_next(LOST, method="upload", after_doing=True)
        with pytest.raises(UpstreamTimeout):
            gateway.upload(alice, CONTENT)
    forget_leases(gateway)
    first, second = (c.id for c in rows(gateway)[1] if c.deployment_id == "b-1")
    attempted, looking = fake.attempted, True

    def stale(attempt):
        nonlocal looking
        found = list(attempted(attempt))
        if looking:
            looking = False
            # Another worker finds one of them, removes it, and its row with it.
            gateway.rooms.reconciler.look(second)
            assert len(fake.stored) == 1
        return iter(found)

    fake.attempted = stale
    gateway.rooms.reconciler.look(first)
    assert fake.stored == {}
    work(gateway, 5)
    assert stored(gateway) == NOTHING
    assert rows(gateway) == ([], [])


def test_a_list_that_cannot_be_trusted_links_nothing(gateway, alice):
    fake = gateway.fakes["b-1"]
    fake.fail_next(LOST, method="upload", after_doing=True)
    with pytest.raises(UpstreamTimeout):
        gateway.upload(alice, CONTENT)
    fake.fail_next(UpstreamTimeout("no answer"), method="retrieve")
    work(gateway)
    assert [copy.deployment_file_id for copy in rows(gateway)[1]] == [None]
    work(gateway, 5)
    assert stored(gateway) == NOTHING


@pytest.mark.parametrize("order", [1, -1])
def test_two_lost_copies_of_two_contents_are_never_exchanged(gateway, alice, order):
    contents = [b"content", b"CONTENT"]
    for content in contents:
        gateway.fakes["a-2"].fail_next(LOST, method="upload", after_doing=True)
        gateway.upload(alice, content)
    files, _ = rows(gateway)
    wanted = {
        file.id: content
        for file in files
        for content in contents
        if hashlib.sha256(content).hexdigest() == file.sha256
    }
    for _ in range(8):
        forget_leases(gateway)
        for copy_id in gateway.rooms.reconciler.due()[::order]:
            gateway.rooms.reconciler.look(copy_id)
    for copy in rows(gateway)[1]:
        assert copy.state == "ready"
        fake = gateway.fakes[copy.deployment_id]
        assert fake.contents[copy.deployment_file_id] == wanted[copy.file_id]
    assert len(gateway.fakes["a-2"].stored) == 2


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("how", ["failed", "deleted"])
def test_a_lost_copy_that_is_removed_takes_no_other_content_along(gateway, alice, how, order):
    fake = gateway.fakes["a-2"]
    fake.fail_next(LOST, method="upload", after_doing=True)
    gateway.upload(alice, b"content")
    fake.fail_next(LOST, method="upload", after_doing=True)
    if how == "failed":
        gateway.fakes["b-1"].fail_next(BROKEN, method="upload")
        with pytest.raises(UpstreamError):
            gateway.upload(alice, b"CONTENT")
    else:
        gateway.fakes["a-2"].fail_next(LOST, method="attempted")
        doomed = gateway.upload(alice, b"CONTENT")
        with suppress(DeleteIncomplete):
            gateway.files.delete(alice, doomed, Hints())
    for _ in range(8):
        forget_leases(gateway)
        for copy_id in gateway.rooms.reconciler.due()[::order]:
            gateway.rooms.reconciler.look(copy_id)
    assert stored(gateway) == {key: [b"content"] for key in gateway.fakes}


def test_a_lost_copy_is_not_confused_with_what_is_stored_again_at_this_moment(gateway, alice):
    fake = gateway.fakes["a-2"]
    gateway.upload(alice, CONTENT)
    [raw] = fake.stored
    fake.fail_next(LOST, method="upload")
    gateway.upload(alice, CONTENT)
    lost = next(copy.id for copy in rows(gateway)[1] if copy.state == "intended")
    linked: list[str | None] = []
    fake.lose(raw)
    with gateway.database.write() as session:
        renewed = update(Copy).where(Copy.deployment_file_id == raw)
        session.execute(renewed.values(state="missing", next_look_at=now()))

    def look() -> None:
        fake.during_upload = lambda: None
        made = fake.upload(make_upload(CONTENT))
        forget = update(Copy).where(Copy.id == lost)
        with gateway.database.write() as session:
            past = now() - dt.timedelta(seconds=1)
            session.execute(forget.values(lease_until=None, next_look_at=past))
        gateway.rooms.reconciler.look(lost)
        linked.append(next(c for c in rows(gateway)[1] if c.id == lost).deployment_file_id)
        fake.lose(made.id)

    fake.during_upload = look
    for copy_id in [c.id for c in rows(gateway)[1] if c.state == "missing"]:
        gateway.rooms.reconciler.look(copy_id)
    assert linked == [None]
    work(gateway, 6)
    assert len(fake.stored) == 2


def test_a_lost_copy_is_not_confused_with_what_is_uploaded_at_this_moment(gateway, alice):
    gateway.fakes["b-1"].fail_next(LOST, method="upload")
    with pytest.raises(UpstreamTimeout):
        gateway.upload(alice, CONTENT)
    lost = [copy.id for copy in rows(gateway)[1]]

    def look() -> None:
        # The other upload's file is there, and its row does not say so yet.
        gateway.fakes["b-1"].during_upload = lambda: None
        made = gateway.fakes["b-1"].upload(make_upload(CONTENT))
        past = now() - dt.timedelta(seconds=1)
        with gateway.database.write() as session:
            due = {"lease_until": None, "next_look_at": past}
            session.execute(update(Copy).where(Copy.id.in_(lost)).values(**due))
        for copy_id in lost:
            gateway.rooms.reconciler.look(copy_id)
        assert made.id in gateway.fakes["b-1"].stored
        gateway.fakes["b-1"].lose(made.id)

    gateway.fakes["b-1"].during_upload = look
    gateway.upload(alice, CONTENT)


# Copies that are to be completed


def test_a_region_that_was_down_gets_its_copy_from_the_kept_content(gateway, alice):
    gateway.fakes["a-2"].fail_next(BROKEN, method="upload")
    file_id = gateway.upload(alice, CONTENT)
    assert stored(gateway) == {**EVERYWHERE, "a-2": []}
    assert rows(gateway)[0][0].is_kept
    work(gateway)
    assert stored(gateway) == EVERYWHERE
    assert not rows(gateway)[0][0].is_kept
    assert list((gateway.settings.data_dir / "kept").iterdir()) == []
    assert gateway.files.retrieve(alice, file_id, Hints())["status"] == "processed"
    assert due(gateway) == 0
    assert all(fake.called("content") == [] for fake in gateway.fakes.values())


def test_it_is_tried_again_until_it_is_there(gateway, alice):
    gateway.fakes["a-2"].fail_next(BROKEN, BROKEN, BROKEN, method="upload")
    gateway.upload(alice, CONTENT)
    work(gateway, 2)
    assert stored(gateway)["a-2"] == []
    assert rows(gateway)[0][0].is_kept
    work(gateway)
    assert stored(gateway) == EVERYWHERE
    assert rows(gateway)[1][1].attempts == 4


def test_it_is_given_up_on_in_the_end(gateway, alice):
    gateway.fakes["a-2"].fail_next(*[BROKEN] * 9, method="upload")
    gateway.upload(alice, CONTENT)
    with gateway.database.write() as session:
        session.execute(update(File).values(created_at=now() - dt.timedelta(days=10)))
    work(gateway)
    assert due(gateway) == 0
    assert not rows(gateway)[0][0].is_kept
    assert list((gateway.settings.data_dir / "kept").iterdir()) == []


def test_a_copy_of_a_good_file_whose_answer_was_lost_is_adopted(gateway, alice):
    gateway.fakes["a-2"].fail_next(LOST, method="upload", after_doing=True)
    gateway.upload(alice, CONTENT)
    work(gateway)
    assert stored(gateway) == EVERYWHERE
    [_, copy, _] = rows(gateway)[1]
    assert (copy.state, copy.deployment_file_id) == ("ready", gateway.raw_id("a-2"))
    assert due(gateway) == 0


def test_one_that_never_arrived_is_sent_again(gateway, alice):
    gateway.fakes["a-2"].fail_next(LOST, method="upload")
    gateway.upload(alice, CONTENT)
    work(gateway, 5)
    assert stored(gateway) == EVERYWHERE
    assert due(gateway) == 0


@pytest.mark.parametrize("point", ["renewal claimed", "renewal stored upstream"])
def test_a_completion_that_was_cut_off_leaves_no_twin(gateway, alice, point):
    gateway.fakes["a-2"].fail_next(BROKEN, method="upload")
    gateway.upload(alice, CONTENT)
    kill_at(point)
    with pytest.raises(Killed):
        work(gateway)
    work(gateway, 5)
    assert stored(gateway) == EVERYWHERE
    assert due(gateway) == 0


def test_a_copy_that_its_upstream_is_at_work_on_becomes_ready(gateway, alice):
    file_id = gateway.upload(alice, CONTENT, names=("b",))
    with gateway.database.write() as session:
        session.execute(update(Copy).values(state="stored", next_look_at=now()))
    raw = gateway.raw_id("b-1")
    gateway.fakes["b-1"].change(raw, status="uploaded")
    work(gateway)
    assert rows(gateway)[1][0].state == "stored"
    gateway.fakes["b-1"].change(raw, status="processed")
    work(gateway)
    assert rows(gateway)[1][0].state == "ready"
    assert gateway.files.retrieve(alice, file_id, Hints())["status"] == "processed"
    assert due(gateway) == 0


# Ends


def test_a_copy_that_has_an_end_is_looked_at_then(database, alice):
    gateway = make_gateway(database, MODELS[2:], ())
    gateway.fakes["b-1"].expires_in = 3600
    gateway.upload(alice, CONTENT, names=("b",))
    [copy] = rows(gateway)[1]
    assert copy.next_look_at == copy.expires_at
    with gateway.database.write() as session:
        session.execute(update(Copy).values(expires_at=now()))
    work(gateway)
    [file], [copy] = rows(gateway)
    assert (file.status, copy.state, copy.next_look_at) == ("error", "expired", None)


def test_a_copy_that_nobody_can_replace_is_told_in_the_files_status(gateway, alice):
    gateway.upload(alice, CONTENT, names=("b",))
    with gateway.database.write() as session:
        session.execute(update(Copy).values(state="missing", next_look_at=now()))
    work(gateway)
    [file], [copy] = rows(gateway)
    assert (file.status, copy.next_look_at) == ("error", None)


def test_a_kept_file_is_renewed_ahead_of_its_end(database, alice):
    gateway = make_gateway(database, MODELS[2:], (), keep_content=True, renew_ahead_seconds=7200.0)
    fake = gateway.fakes["b-1"]
    fake.expires_in = 86_400
    gateway.upload(alice, CONTENT, names=("b",))
    [copy] = rows(gateway)[1]
    was = copy.deployment_file_id
    assert copy.expires_at
    assert copy.next_look_at == copy.expires_at - dt.timedelta(hours=2)
    with gateway.database.write() as session:
        session.execute(update(Copy).values(expires_at=now() + dt.timedelta(hours=1)))
    work(gateway)
    [copy] = rows(gateway)[1]
    assert copy.expires_at
    assert copy.expires_at > now() + dt.timedelta(hours=23)
    assert list(fake.stored) == [copy.deployment_file_id] != [was], "the old copy is gone"


def test_a_file_past_its_owners_time_goes_everywhere(gateway, alice):
    gateway.upload(alice, CONTENT, expires_after_seconds=3600)
    with gateway.database.write() as session:
        session.execute(update(File).values(expires_at=now()))
        session.execute(update(Copy).values(expires_at=now()))
    work(gateway)
    assert stored(gateway) == NOTHING
    assert [file.state for file in rows(gateway)[0]] == ["deleted"]


# Deletes


@pytest.mark.parametrize(
    "point", ["delete committed", "copy erased", "delete done upstream", "delete recorded"]
)
def test_a_delete_that_was_cut_off_goes_on(gateway, alice, point):
    file_id = gateway.upload(alice, CONTENT)
    kill_at(point)
    with pytest.raises(Killed):
        gateway.files.delete(alice, file_id, Hints())
    work(gateway)
    assert stored(gateway) == NOTHING
    assert [file.state for file in rows(gateway)[0]] == ["deleted"]
    assert due(gateway) == 0


def test_a_delete_that_an_upstream_refused_is_retried(gateway, alice):
    file_id = gateway.upload(alice, CONTENT)
    gateway.fakes["a-1"].fail_next(BROKEN, method="delete")
    with pytest.raises(UpstreamError):
        gateway.files.delete(alice, file_id, Hints())
    work(gateway)
    assert stored(gateway) == NOTHING
    assert due(gateway) == 0


def test_a_delete_finds_a_copy_whose_answer_was_lost(gateway, alice):
    gateway.fakes["a-2"].fail_next(LOST, method="upload", after_doing=True)
    file_id = gateway.upload(alice, CONTENT)
    gateway.files.delete(alice, file_id, Hints())
    assert stored(gateway) == NOTHING


# Looks


def test_one_copy_is_looked_at_by_one_worker(gateway, alice):
    gateway.upload(alice, CONTENT, names=("b",))
    with gateway.database.write() as session:
        session.execute(update(Copy).values(state="stored", next_look_at=now()))
    [copy_id] = gateway.rooms.reconciler.due()
    with gateway.database.write() as session:
        until = now() + dt.timedelta(seconds=20)
        assert work_rows.claim(session, copy_id, now(), until)
        assert not work_rows.claim(session, copy_id, now(), until)
    assert gateway.rooms.reconciler.due() == []
    assert gateway.rooms.reconciler.look(copy_id) is False


def test_one_copys_trouble_is_not_that_of_the_others(gateway, alice, caplog):
    for _ in range(2):
        gateway.upload(alice, CONTENT, names=("b",))
    with gateway.database.write() as session:
        session.execute(update(Copy).values(state="stored", next_look_at=now()))
    gateway.fakes["b-1"].fail_next(BROKEN, method="retrieve")
    work(gateway)
    assert sorted(copy.state for copy in rows(gateway)[1]) == ["ready", "stored"]
    assert "look failed" in caplog.text


def test_a_look_whose_upstream_fails_comes_later_each_time(gateway, alice):
    gateway.upload(alice, CONTENT, names=("b",))
    with gateway.database.write() as session:
        session.execute(update(Copy).values(state="stored", next_look_at=now()))
    waits = []
    for _ in range(4):
        gateway.fakes["b-1"].fail_next(BROKEN, method="retrieve")
        work(gateway)
        later = rows(gateway)[1][0].next_look_at
        assert later
        waits.append(later - now())
    assert waits == sorted(waits) and waits[0] > dt.timedelta(seconds=1)


def test_a_long_upload_keeps_its_lease(sqlite_file, alice):
    gateway = make_gateway(sqlite_file, MODELS[2:], (), lease_seconds=0.4)
    seen: list[str] = []

    def slow() -> None:
        time.sleep(1.0)
        seen.extend(gateway.rooms.reconciler.due())

    gateway.fakes["b-1"].during_upload = slow
    gateway.upload(alice, CONTENT, names=("b",))
    assert seen == []
