"""Uploads in parts: what they become, whose they are, and that nothing is made twice or lost."""

import dataclasses
import datetime as dt
import errno
import hashlib
import threading
import tracemalloc
import uuid
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import select, update

from app import ids
from app.db.tables import File, UploadPart, UploadSession, now
from app.errors import (
    AmbiguousRouting,
    Conflict,
    DatabaseUnavailable,
    InvalidRequest,
    ModelAccessDenied,
    NotFound,
    NotPermitted,
    RoutingRequired,
    StorageFull,
    TooLarge,
    UnknownModel,
    UpstreamError,
)
from app.factory import file_services
from app.services import uploads as module
from app.services.callers import Caller, Role
from app.services.router import Hints, Router, Selector
from app.services.uploads import Announced, Uploads
from app.settings import Settings
from app.transfers import ExpiresAfter
from tests.builders import make_deployment
from tests.fakes import FakeProvider

GPT = Selector(target_model_names=("gpt",))
NO_HINTS = Hints()


def make_caller(name, role=Role.INTERNAL_USER, models=()):
    return Caller(f"user:{name}", name, "0" * 64, "key", role, key_models=models)


ALICE, BOB = make_caller("alice"), make_caller("bob")
ROOT = make_caller("root", Role.PROXY_ADMIN)


@pytest.fixture
def house(database, tmp_path):
    return make_house(database, tmp_path)


def make_house(database, data_dir, **more):
    """The service with two models of one deployment each, and one provider's account."""
    deployments = (
        make_deployment("d-gpt", model_name="gpt", provider="fake"),
        make_deployment("d-gemini", model_name="gemini", provider="fake"),
    )
    account = make_deployment("d-account", model_name=None, provider="fake")
    settings = Settings(
        deployments=deployments, file_accounts=(account,), data_dir=data_dir, **more
    )
    providers = {d.id: FakeProvider(d) for d in (*deployments, account)}
    router = Router(settings, providers)
    rooms = file_services(settings, database, router)
    return SimpleNamespace(
        uploads=Uploads(settings, database, router, rooms.files, rooms.meter),
        files=rooms.files,
        database=database,
        data_dir=data_dir,
        gpt=providers["d-gpt"],
        gemini=providers["d-gemini"],
        account=providers["d-account"],
    )


def announce(house, size=6, *, caller=ALICE, selector=GPT, purpose="user_data", expiry=None):
    announced = Announced("a b.txt", "text/plain", purpose, size, expiry)
    return house.uploads.create(caller, announced, selector)


def send(house, upload, content, caller=ALICE):
    """The id of a new part, spooled as the API does it."""
    folder = house.uploads.part_folder(caller, upload["id"])
    folder.mkdir(parents=True, exist_ok=True)
    spooled = folder / f"upload-{uuid.uuid4().hex}"
    spooled.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    try:
        return house.uploads.add_part(caller, upload["id"], spooled, len(content), digest)["id"]
    finally:
        spooled.unlink(missing_ok=True)


def complete(house, upload, parts, *, caller=ALICE, hints=NO_HINTS, md5=None):
    return house.uploads.complete(caller, upload["id"], parts, hints, md5)


def folder_of(house, upload):
    return house.data_dir / "uploads" / upload["id"].removeprefix("upload_")


def let_it_expire(house, upload, ago=dt.timedelta(seconds=1)):
    change(house, upload, expires_at=now() - ago)


def change(house, upload, **values):
    row_id = upload["id"].removeprefix("upload_")
    with house.database.write() as session:
        session.execute(update(UploadSession).where(UploadSession.id == row_id).values(**values))


def files_in(house):
    with house.database.read() as session:
        return list(session.scalars(select(File)))


def at_once(*calls):
    """What each call returned or raised, all begun at the same moment."""
    start = threading.Barrier(len(calls))
    outcomes: list[Any] = [None] * len(calls)

    def run(number, call):
        start.wait()
        try:
            outcomes[number] = call()
        except Exception as error:
            outcomes[number] = error

    threads = [threading.Thread(target=run, args=each) for each in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


# What an upload becomes


def test_parts_become_one_file_in_the_order_that_complete_names(house):
    upload = announce(house)
    assert upload["id"].startswith("upload_")
    assert upload == {
        "id": upload["id"],
        "object": "upload",
        "bytes": 6,
        "created_at": upload["created_at"],
        "expires_at": upload["created_at"] + 3600,
        "filename": "a b.txt",
        "purpose": "user_data",
        "status": "pending",
        "file": None,
    }
    second, first = send(house, upload, b"def"), send(house, upload, b"abc")
    done = complete(house, upload, [first, second])
    assert done == {**upload, "status": "completed", "file": done["file"]}
    assert list(house.gpt.contents.values()) == [b"abcdef"]
    [file] = files_in(house)
    assert done["file"] == house.files.retrieve(ALICE, file.public_id, NO_HINTS)
    assert done["file"]["filename"] == "a b.txt"
    assert (file.owner, file.mime_type, file.bytes) == ("user:alice", "text/plain", 6)
    assert file.sha256 == hashlib.sha256(b"abcdef").hexdigest()


def test_the_files_expiry_is_forwarded(house):
    upload = announce(house, 1, expiry=ExpiresAfter("created_at", 7200))
    file = complete(house, upload, [send(house, upload, b"a")])["file"]
    assert file["expires_at"] == file["created_at"] + 7200
    [stored] = house.gpt.stored.values()
    assert stored.expires_at


@pytest.mark.parametrize(
    ("selector", "kind", "holders"),
    [
        (Selector(target_model_names=("gpt", "gemini")), ids.UnifiedId, {"gpt", "gemini"}),
        (Selector(model="gemini"), ids.EncodedId, {"gemini"}),
        (Selector(provider="fake"), ids.RawId, {"account"}),
        (Selector(), ids.RawId, {"account"}),
    ],
    ids=["target_model_names", "model", "custom_llm_provider", "nothing"],
)
def test_the_selector_of_create_decides_where_the_file_goes(house, selector, kind, holders):
    upload = announce(house, 1, selector=selector)
    file = complete(house, upload, [send(house, upload, b"a")])["file"]
    assert isinstance(ids.decode(file["id"]), kind)
    assert {n for n in ("gpt", "gemini", "account") if getattr(house, n).contents} == holders


def test_a_default_is_decided_at_create(database, tmp_path):
    before = make_house(database, tmp_path, default_target_model_names=("gemini",))
    upload = announce(before, 1, selector=Selector())
    part = send(before, upload, b"a")
    after = make_house(database, tmp_path, default_target_model_names=("gpt",))
    complete(after, upload, [part])
    assert after.gemini.contents
    assert not after.gpt.contents


def hints(kind, *values):
    return Hints([("body", kind, values)])


@pytest.mark.parametrize(
    ("selector", "again"),
    [
        (Selector(target_model_names=("gpt", "gemini")), ("target_model_names", "gemini", "gpt")),
        (Selector(model="gpt"), ("model", "gpt")),
        (Selector(provider="fake"), ("custom_llm_provider", "fake")),
    ],
)
def test_the_same_selector_may_stand_beside_complete(house, selector, again):
    upload = announce(house, 1, selector=selector)
    done = complete(house, upload, [send(house, upload, b"a")], hints=hints(*again))
    assert done["status"] == "completed"


@pytest.mark.parametrize(
    "other",
    [("target_model_names", "gpt", "gemini"), ("model", "gpt"), ("custom_llm_provider", "fake")],
)
def test_another_selector_beside_complete_is_refused(house, other):
    upload = announce(house, 1)
    part = send(house, upload, b"a")
    with pytest.raises(AmbiguousRouting, match=r"target_model_names 'gpt'") as refused:
        complete(house, upload, [part], hints=hints(*other))
    assert refused.value.param == other[0]
    assert not files_in(house)
    assert complete(house, upload, [part])["status"] == "completed"


# Create


@pytest.mark.parametrize(
    ("selector", "caller", "error"),
    [
        (Selector(model="nope"), ALICE, UnknownModel),
        (Selector(model="gpt"), make_caller("carol", models=("gemini",)), ModelAccessDenied),
    ],
)
def test_a_model_is_checked_before_any_byte(house, selector, caller, error):
    with pytest.raises(error):
        announce(house, caller=caller, selector=selector)
    with house.database.read() as session:
        assert not session.scalars(select(UploadSession)).all()


def test_without_any_way_to_go_the_upload_is_refused(database, tmp_path):
    settings = Settings(data_dir=tmp_path)
    router = Router(settings, {})
    rooms = file_services(settings, database, router)
    uploads = Uploads(settings, database, router, rooms.files, rooms.meter)
    with pytest.raises(RoutingRequired):
        uploads.create(ALICE, Announced("a", "text/plain", "user_data", 1), Selector())


MB = 1024 * 1024


@pytest.mark.parametrize(("purpose", "limit"), [("user_data", 5), ("batch", 2)])
def test_a_size_over_the_limit_is_refused_naming_both(database, tmp_path, purpose, limit):
    house = make_house(database, tmp_path, max_file_size_mb=5, max_batch_file_size_mb=2)
    announce(house, limit * MB, purpose=purpose)
    with pytest.raises(TooLarge, match=rf"{limit * MB + 1} bytes.* {limit * MB} bytes") as refused:
        announce(house, limit * MB + 1, purpose=purpose)
    assert refused.value.param == "bytes"


# Parts


def test_parts_may_not_hold_more_than_was_announced(house):
    upload = announce(house, 6)
    with pytest.raises(InvalidRequest, match=r"7 bytes.* 6 bytes"):
        send(house, upload, b"1234567")
    part = send(house, upload, b"1234")
    with pytest.raises(InvalidRequest, match=r"7 bytes.* 6 bytes"):
        send(house, upload, b"567")
    assert [path.name for path in folder_of(house, upload).iterdir()] == [part]


def test_a_part_that_was_sent_again_does_not_take_the_room_of_the_next(house):
    # The openai client repeats a part whose answer was lost, and never learns the first id.
    upload = announce(house, 6)
    send(house, upload, b"abc")
    again = send(house, upload, b"abc")
    last = send(house, upload, b"def")
    assert complete(house, upload, [again, last])["status"] == "completed"
    assert list(house.gpt.contents.values()) == [b"abcdef"]


def test_equal_parts_may_be_meant(house):
    upload = announce(house, 6)
    parts = [send(house, upload, b"abc"), send(house, upload, b"abc")]
    complete(house, upload, parts)
    assert list(house.gpt.contents.values()) == [b"abcabc"]


def test_repeated_parts_fill_the_disk_with_twice_the_bytes_at_most(house):
    upload = announce(house, 6)
    for _ in range(4):
        send(house, upload, b"abc")
    with pytest.raises(InvalidRequest, match=r"15 bytes.* 6 bytes"):
        send(house, upload, b"abc")


def test_an_upload_has_a_bounded_number_of_parts(house, database):
    upload = announce(house, 10**6)
    with database.write() as session:
        session.add_all(
            UploadPart(
                id=f"part_{number:032}",
                upload_id=upload["id"].removeprefix("upload_"),
                bytes=1,
                sha256=f"{number:064}",
                created_at=now(),
            )
            for number in range(module.MAX_PARTS)
        )
    with pytest.raises(InvalidRequest, match="10000 parts"):
        send(house, upload, b"a")


def test_parts_that_come_in_parallel_are_all_kept_and_none_too_many(served_database, tmp_path):
    house = make_house(served_database, tmp_path)
    upload = announce(house, 12)
    contents = [f"{number:02}".encode() for number in range(8)]
    outcomes = at_once(*[lambda c=c: send(house, upload, c) for c in contents])
    kept = {c: o for c, o in zip(contents, outcomes, strict=True) if isinstance(o, str)}
    assert len(kept) == 6
    assert all(isinstance(o, str | InvalidRequest) for o in outcomes)
    assert len(list(folder_of(house, upload).iterdir())) == 6
    complete(house, upload, list(kept.values()))
    assert list(house.gpt.contents.values()) == [b"".join(kept)]


# Complete


def test_a_sum_that_is_not_what_was_announced_is_refused_naming_both(house):
    upload = announce(house, 6)
    parts = [send(house, upload, b"abc"), send(house, upload, b"de")]
    with pytest.raises(InvalidRequest, match=r"5 bytes.* 6 bytes") as refused:
        complete(house, upload, parts)
    assert refused.value.param == "part_ids"
    parts.append(send(house, upload, b"f"))
    assert complete(house, upload, parts)["status"] == "completed"


def test_a_part_counts_once_and_only_in_its_own_upload(house):
    upload, other = announce(house, 2), announce(house, 2)
    part, foreign = send(house, upload, b"a"), send(house, other, b"b")
    with pytest.raises(InvalidRequest, match=f"{part}.* twice"):
        complete(house, upload, [part, part])
    for strange in (foreign, "part_" + "0" * 32, "../" + part, "x" * 500):
        with pytest.raises(InvalidRequest, match="has no part"):
            complete(house, upload, [part, strange])
    assert not files_in(house)


def test_md5_is_checked_when_it_is_given(house):
    upload = announce(house, 6)
    parts = [send(house, upload, b"abc"), send(house, upload, b"def")]
    right = hashlib.md5(b"abcdef").hexdigest()
    with pytest.raises(InvalidRequest, match=f"{right}, not {'0' * 32}") as refused:
        complete(house, upload, parts, md5="0" * 32)
    assert refused.value.param == "md5"
    assert not files_in(house)
    assert complete(house, upload, parts, md5=right.upper())["status"] == "completed"


def test_a_failed_fan_out_leaves_the_upload_as_it_was(house):
    upload = announce(house, 6, selector=Selector(target_model_names=("gpt", "gemini")))
    parts = [send(house, upload, b"abc"), send(house, upload, b"def")]
    house.gemini.fail_next(UpstreamError("gemini is down"), method="upload")
    with pytest.raises(UpstreamError, match="gemini is down"):
        complete(house, upload, parts)
    assert not house.gpt.contents
    assert sorted(p.name for p in folder_of(house, upload).iterdir()) == sorted(parts)
    done = complete(house, upload, parts[::-1])
    assert done["status"] == "completed"
    assert list(house.gemini.contents.values()) == [b"defabc"]


def test_bytes_that_are_gone_from_the_disk_are_noticed(house):
    upload = announce(house, 6)
    parts = [send(house, upload, b"abc"), send(house, upload, b"def")]
    (folder_of(house, upload) / parts[0]).unlink()
    with pytest.raises(InvalidRequest, match="only 3 bytes are left"):
        complete(house, upload, parts)
    (folder_of(house, upload) / parts[1]).unlink()
    folder_of(house, upload).rmdir()
    with pytest.raises(InvalidRequest, match="only 0 bytes are left"):
        complete(house, upload, parts)
    assert not files_in(house)


def test_a_full_disk_is_said_and_the_upload_can_go_on(house, monkeypatch):
    upload = announce(house, 6)
    parts = [send(house, upload, b"abc"), send(house, upload, b"def")]
    real = Path.open

    def full(path, mode="r", *args, **kwargs):
        if path.name == "whole":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, mode, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", full)
        with pytest.raises(StorageFull):
            complete(house, upload, parts)
    assert complete(house, upload, parts)["status"] == "completed"


def test_repeated_with_the_same_parts_it_answers_the_same(house):
    upload = announce(house, 2)
    parts = [send(house, upload, b"a"), send(house, upload, b"b")]
    done = complete(house, upload, parts)
    let_it_expire(house, upload)
    assert complete(house, upload, parts)["file"] == done["file"]
    assert len(house.gpt.called("upload")) == 1
    with pytest.raises(InvalidRequest, match="is completed"):
        complete(house, upload, parts[::-1])
    house.files.delete(ALICE, done["file"]["id"], NO_HINTS)
    assert complete(house, upload, parts)["file"] is None


def test_of_several_completes_at_once_one_makes_the_file(served_database, tmp_path):
    house = make_house(served_database, tmp_path)
    upload = announce(house, 2)
    parts = [send(house, upload, b"a"), send(house, upload, b"b")]
    refusals = threading.Semaphore(0)

    def call():
        try:
            return complete(house, upload, parts)
        except Conflict:
            refusals.release()
            raise

    # The one that won is not done before the others were told.
    house.gpt.during_upload = lambda: [refusals.acquire(timeout=5) for _ in range(4)]
    outcomes = at_once(*[call] * 5)
    kinds = Counter(type(outcome) for outcome in outcomes)
    assert kinds == {dict: 1, Conflict: 4}
    assert len(files_in(house)) == len(house.gpt.contents) == 1


def test_nothing_else_is_done_while_it_is_completed(house):
    upload = announce(house, 2)
    parts = [send(house, upload, b"a"), send(house, upload, b"b")]
    refused = []

    def meanwhile():
        for call in (
            lambda: complete(house, upload, parts),
            lambda: house.uploads.cancel(ALICE, upload["id"]),
            lambda: send(house, upload, b"c"),
        ):
            with pytest.raises(Conflict, match="is being completed") as conflict:
                call()
            refused.append(conflict.value.headers["x-should-retry"])
        let_it_expire(house, upload)
        announce(house)

    house.gpt.during_upload = meanwhile
    assert complete(house, upload, parts)["status"] == "completed"
    assert refused == ["false"] * 3
    assert list(house.gpt.contents.values()) == [b"ab"]


def test_the_file_is_shown_when_its_upload_cannot_be_recorded(house, caplog):
    upload = announce(house, 1)
    parts = [send(house, upload, b"a")]
    files = house.files

    class Breaking:
        def create(self, *arguments):
            file = files.create(*arguments)
            house.uploads._database = Broken()
            return file

    class Broken:
        def write(self):
            raise DatabaseUnavailable

    real = house.uploads._database
    house.uploads._files = Breaking()
    done = complete(house, upload, parts)
    assert done["file"]["id"] == files_in(house)[0].public_id
    assert "not recorded" in caplog.text
    house.uploads._database = real
    with pytest.raises(Conflict):
        complete(house, upload, parts)


def test_memory_is_flat_while_parts_are_put_together(house):
    size = 16 * MB
    upload = announce(house, 2 * size)
    parts = [send(house, upload, bytes([number]) * size) for number in range(2)]
    peak = []

    class Watching(FakeProvider):
        def upload(self, upload):
            peak.append(tracemalloc.get_traced_memory()[1])
            return super().upload(dataclasses.replace(upload, source=Path("/dev/null")))

    router = house.uploads._router
    router._providers["d-gpt"] = Watching(house.gpt.deployment)
    tracemalloc.start()
    try:
        complete(house, upload, parts, md5=None)
    finally:
        tracemalloc.stop()
    assert peak[0] < 8 * MB


# Cancel, expiry and sweeping


def test_a_cancelled_upload_is_gone_for_good(house):
    upload = announce(house, 2)
    part = send(house, upload, b"a")
    cancelled = house.uploads.cancel(ALICE, upload["id"])
    assert cancelled == {**upload, "status": "cancelled"}
    assert house.uploads.cancel(ALICE, upload["id"]) == cancelled
    assert not folder_of(house, upload).exists()
    for call in (lambda: send(house, upload, b"b"), lambda: complete(house, upload, [part])):
        with pytest.raises(InvalidRequest, match="is cancelled") as refused:
            call()
        assert refused.value.code == "upload_cancelled"


def test_a_part_that_arrives_during_a_cancel_is_not_kept(house):
    upload = announce(house, 2)
    folder = house.uploads.part_folder(ALICE, upload["id"])
    folder.mkdir(parents=True)
    spooled = folder / "upload-1"
    spooled.write_bytes(b"a")
    house.uploads.cancel(ALICE, upload["id"])
    with pytest.raises(InvalidRequest, match="is cancelled"):
        house.uploads.add_part(ALICE, upload["id"], spooled, 1, "0" * 64)
    folder.mkdir(parents=True)
    spooled.write_bytes(b"a")
    with pytest.raises(InvalidRequest, match="is cancelled"):
        house.uploads.add_part(ALICE, upload["id"], spooled, 1, "0" * 64)
    assert list(folder.iterdir()) == []


def test_a_completed_upload_cannot_be_cancelled_and_keeps_no_parts(house):
    upload = announce(house, 1)
    complete(house, upload, [send(house, upload, b"a")])
    assert not folder_of(house, upload).exists()
    with pytest.raises(InvalidRequest, match="is completed"):
        house.uploads.cancel(ALICE, upload["id"])
    with pytest.raises(InvalidRequest, match="is completed"):
        send(house, upload, b"b")


@pytest.mark.parametrize("swept", [False, True])
def test_an_hour_later_every_call_says_that_it_expired(house, swept):
    upload = announce(house, 2)
    part = send(house, upload, b"a")
    let_it_expire(house, upload)
    if swept:
        announce(house, caller=BOB)
        assert not folder_of(house, upload).exists()
    for call in (
        lambda: send(house, upload, b"b"),
        lambda: complete(house, upload, [part]),
        lambda: house.uploads.cancel(ALICE, upload["id"]),
    ):
        with pytest.raises(InvalidRequest, match=f"{upload['id']} has expired"):
            call()


def test_the_sweep_leaves_what_is_alive(house):
    kept = announce(house, 1)
    part = send(house, kept, b"a")
    announce(house)
    assert complete(house, kept, [part])["status"] == "completed"


def test_what_a_crash_left_behind_goes_with_the_row(house):
    upload = announce(house, 1)
    send(house, upload, b"a")
    change(house, upload, status="cancelled")  # And then the process died.
    let_it_expire(house, upload, module.TOMBSTONE_AGE + dt.timedelta(minutes=1))
    announce(house)
    assert not folder_of(house, upload).exists()
    with pytest.raises(NotFound):
        house.uploads.cancel(ALICE, upload["id"])


# Whose it is


def every_call(house, upload, part, caller):
    return (
        lambda: house.uploads.part_folder(caller, upload["id"]),
        lambda: house.uploads.add_part(
            caller, upload["id"], folder_of(house, upload) / "spooled", 1, "0" * 64
        ),
        lambda: complete(house, upload, [part], caller=caller),
        lambda: house.uploads.cancel(caller, upload["id"]),
    )


@pytest.mark.parametrize(("hide", "error"), [(False, NotPermitted), (True, NotFound)])
def test_a_stranger_may_do_nothing(database, tmp_path, hide, error):
    house = make_house(database, tmp_path, hide_foreign_objects=hide)
    upload = announce(house, 1)
    part = send(house, upload, b"a")
    for call in every_call(house, upload, part, BOB):
        (folder_of(house, upload) / "spooled").write_bytes(b"b")
        with pytest.raises(error) as refused:
            call()
        expected = (
            f"No such Upload object: {upload['id']}"
            if hide
            else f"User bob does not have access to the upload {upload['id']}"
        )
        assert refused.value.message == expected
    assert complete(house, upload, [part])["status"] == "completed"
    assert len(house.gpt.contents) == 1


@pytest.mark.parametrize("unknown", ["upload_" + "0" * 32, "upload_x", "x", "file-1", "u" * 9000])
def test_nobodys_upload_is_not_found(house, unknown):
    for call in every_call(house, {"id": unknown}, "part_1", ALICE):
        with pytest.raises(NotFound, match="No such Upload object") as refused:
            call()
        assert len(refused.value.message) < 200


def test_what_an_admin_completes_is_its_owners(house):
    upload = announce(house, 1)
    done = complete(house, upload, [send(house, upload, b"a", ROOT)], caller=ROOT)
    [file] = files_in(house)
    assert file.owner == "user:alice"
    assert house.files.retrieve(ALICE, done["file"]["id"], NO_HINTS) == done["file"]


def test_a_key_that_lost_its_model_cannot_complete(house):
    upload = announce(house, 1)
    part = send(house, upload, b"a")
    narrowed = make_caller("alice", models=("gemini",))
    with pytest.raises(ModelAccessDenied):
        complete(house, upload, [part], caller=narrowed)
    assert not house.gpt.called("upload")
    assert complete(house, upload, [part])["status"] == "completed"
