"""Copies that their upstream has let go of: stored again once, by whoever asks first."""

import datetime as dt
import json
import threading
import time

import pytest
from sqlalchemy import select, update

from app.db import files as file_rows
from app.db.tables import Copy, File, now
from app.errors import (
    Conflict,
    FileExpired,
    FileNotAvailable,
    InvalidRequest,
    UpstreamError,
    UpstreamRejected,
)
from app.providers.protocol import Operation
from app.services.inference import Inference
from app.services.lookup import Held
from app.services.router import Hints
from app.transfers import Cancellation
from tests.builders import make_deployment
from tests.conftest import Gateway, make_gateway
from tests.fakes import FakeProvider, json_reply

DAY = dt.timedelta(days=1)
CONTENT = bytes(range(256)) * 10
BROKEN = UpstreamError("broken", retryable=True)


class Forgetful(FakeProvider):
    """An upstream whose files live for two days, and must be processed before they are used."""

    processes_first = True

    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        self.expires_in = 2 * 86_400
        self.is_keyed = True


ONE = (make_deployment("one", model_name="m"),)
TWO = (*ONE, make_deployment("two", model_name="other"))


@pytest.fixture
def kept(served_database) -> Gateway:
    """A gateway that keeps contents, in front of one forgetful upstream."""
    return make_gateway(served_database, ONE, fake=Forgetful, keep_content=True)


@pytest.fixture
def unkept(memory) -> Gateway:
    return make_gateway(memory, TWO, fake=Forgetful)


def expire(gateway: Gateway, deployment_id: str | None = None) -> None:
    """Let two days go by for copies, all of them or those at a deployment."""
    with gateway.database.write() as session:
        change = update(Copy).values(expires_at=now() - dt.timedelta(seconds=1))
        if deployment_id:
            change = change.where(Copy.deployment_id == deployment_id)
        session.execute(change)
    for key, fake in gateway.fakes.items():
        if deployment_id in (None, key):
            for raw in list(fake.stored):
                fake.lose(raw)


def chat(gateway: Gateway, caller, file_id: str, model: str = "m") -> bytes:
    """The body that the upstream got."""
    part = {"type": "file", "file": {"file_id": file_id}}
    body = {"model": model, "messages": [{"role": "user", "content": [part]}]}
    document = Inference.read(json.dumps(body).encode())
    hints = Hints([("body", "model", (model,))])
    answer = gateway.inference.run(caller, Operation.CHAT, document, hints, Cancellation())
    text = b"".join(answer.reply.chunks)
    answer.reply.close()
    return text


def copies(gateway: Gateway) -> list[Copy]:
    with gateway.database.read() as session:
        return list(session.scalars(select(Copy).order_by(Copy.deployment_id)))


def file_row(gateway: Gateway) -> File:
    with gateway.database.read() as session:
        return session.scalars(select(File)).one()


def read(gateway: Gateway, caller, file_id: str, byte_range: str | None = None) -> bytes:
    content = gateway.files.content(caller, file_id, Hints(), byte_range)
    try:
        return b"".join(content.download.chunks)
    finally:
        content.download.close()


# Expiry is shown


def test_a_copys_end_is_the_files_end_unless_the_content_is_kept(memory, alice):
    forgetful = make_gateway(memory, ONE, fake=Forgetful)
    shown = forgetful.files.retrieve(alice, forgetful.upload(alice, names=("m",)), Hints())
    assert shown["expires_at"] == pytest.approx(time.time() + 2 * 86_400, abs=5)
    keeping = make_gateway(memory, ONE, fake=Forgetful, keep_content=True)
    shown = keeping.files.retrieve(alice, keeping.upload(alice, names=("m",)), Hints())
    assert shown["expires_at"] is None


def test_a_file_whose_copies_have_ended_says_so(unkept, alice):
    file_id = unkept.upload(alice, names=("m",))
    expire(unkept)
    shown = unkept.files.retrieve(alice, file_id, Hints(), with_copies=True)
    assert (shown["status"], shown["copies"][0]["state"]) == ("error", "expired")
    assert shown["status_details"].startswith("expired")
    with pytest.raises(FileExpired, match="upload it again"):
        read(unkept, alice, file_id)
    with pytest.raises(FileExpired):
        chat(unkept, alice, file_id)
    assert unkept.fakes["one"].called("infer") == []


# Renewal on use


def test_the_next_chat_after_the_end_works_when_the_content_is_kept(kept, alice):
    file_id = kept.upload(alice, CONTENT, names=("m",))
    was = copies(kept)[0].deployment_file_id
    expire(kept)
    chat(kept, alice, file_id)
    [copy] = copies(kept)
    assert (copy.state, copy.first_file_id, copy.attempts) == ("ready", was, 2)
    assert copy.deployment_file_id != was
    assert copy.expires_at and copy.expires_at > now() + DAY
    assert kept.fakes["one"].contents == {copy.deployment_file_id: CONTENT}
    [(_, body, _)] = kept.fakes["one"].called("infer")
    assert copy.deployment_file_id in body.decode()


def test_twenty_chats_at_once_cause_one_upload(kept, alice):
    file_id = kept.upload(alice, CONTENT, names=("m",))
    expire(kept)
    fake = kept.fakes["one"]
    fake.upload_delay = 0.3
    together = threading.Barrier(20)
    failures = []

    def ask() -> None:
        together.wait()
        try:
            chat(kept, alice, file_id)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(fake.called("upload")) == 2, "the first, and one renewal"
    assert len(fake.called("infer")) == 20


def test_another_holder_gives_the_bytes(unkept, alice):
    file_id = unkept.upload(alice, CONTENT, names=("m", "other"))
    expire(unkept, "one")
    chat(unkept, alice, file_id)
    raw = copies(unkept)[0].deployment_file_id
    assert unkept.fakes["one"].contents == {raw: CONTENT}
    assert list(unkept.settings.data_dir.glob("spool/*/renewal-*")) == []


def test_other_bytes_than_those_that_were_sent_are_not_taken(unkept, alice):
    file_id = unkept.upload(alice, CONTENT, names=("m", "other"))
    expire(unkept, "one")
    [raw] = unkept.fakes["two"].stored
    unkept.fakes["two"].contents[raw] = b"damaged"
    with pytest.raises(FileExpired):
        chat(unkept, alice, file_id)
    assert unkept.fakes["one"].contents == {}


def test_a_file_that_vanished_upstream_is_stored_again_and_the_chat_repeated(kept, alice):
    file_id = kept.upload(alice, CONTENT, names=("m",))
    fake = kept.fakes["one"]
    fake.lose(kept.raw_id("one"))
    # Some answer so for a file that they do not have (any more).
    fake.replies = [json_reply({"error": {"message": "no permission"}}, 403)]
    assert b"chat.completion" in chat(kept, alice, file_id)
    assert len(fake.called("infer")) == 2
    assert list(fake.contents.values()) == [CONTENT]


def test_a_refusal_that_is_not_about_the_file_stays_one(kept, alice):
    file_id = kept.upload(alice, CONTENT, names=("m",))
    fake = kept.fakes["one"]
    fake.replies = [json_reply({"error": {"message": "too hot"}}, 400)]
    assert b"too hot" in chat(kept, alice, file_id)
    assert (len(fake.called("infer")), len(fake.called("upload"))) == (1, 1)


def test_a_vanished_file_that_nobody_has_is_said_to_be_gone(unkept, alice):
    file_id = unkept.upload(alice, CONTENT, names=("m",))
    fake = unkept.fakes["one"]
    fake.lose(unkept.raw_id("one"))
    fake.replies = [json_reply({"error": {"message": "no permission"}}, 403)]
    with pytest.raises(FileExpired, match="is gone"):
        chat(unkept, alice, file_id)
    with unkept.database.read() as session:
        assert session.scalars(select(File.status)).one() == "error", "a list says so too"


def test_a_copy_that_was_renewed_while_it_was_asked_for_has_not_vanished(unkept, alice):
    file_id = unkept.upload(alice, CONTENT, names=("m",))
    held = unkept.lookup.resolve(alice, file_id, Hints())
    assert isinstance(held, Held)
    [copy] = held.copies
    unkept.fakes["one"].lose(unkept.raw_id("one"))
    with unkept.database.write() as session:
        session.execute(update(Copy).values(deployment_file_id="file-renewed"))
    assert unkept.rooms.renewal.vanished(held, copy)
    assert [each.state for each in copies(unkept)] == ["ready"]


def test_a_renewal_that_fails_says_why_and_is_tried_again(kept, alice):
    file_id = kept.upload(alice, CONTENT, names=("m",))
    expire(kept)
    refused = UpstreamRejected("quota", status=429, retryable=True)
    kept.fakes["one"].fail_next(refused, method="upload")
    with pytest.raises(UpstreamRejected, match="quota"):
        chat(kept, alice, file_id)
    [copy] = copies(kept)
    assert (copy.lease_until, copy.last_error) == (None, "quota")
    chat(kept, alice, file_id)


def test_a_renewal_whose_process_died_is_taken_over(kept, alice):
    file_id = kept.upload(alice, CONTENT, names=("m",))
    expire(kept)
    with kept.database.write() as session:
        session.execute(update(Copy).values(lease_until=now() - dt.timedelta(seconds=1)))
    chat(kept, alice, file_id)


def test_who_waits_for_a_renewal_waits_within_a_bound(memory, alice):
    gateway = make_gateway(memory, ONE, fake=Forgetful, keep_content=True, file_wait_seconds=0.1)
    file_id = gateway.upload(alice, CONTENT, names=("m",))
    expire(gateway)
    with gateway.database.write() as session:
        session.execute(update(Copy).values(lease_until=now() + DAY))
    with pytest.raises(UpstreamError, match="try again later"):
        chat(gateway, alice, file_id)


def test_a_file_that_is_deleted_meanwhile_is_not_renewed(kept, alice):
    file_id = kept.upload(alice, CONTENT, names=("m",))
    expire(kept)
    fake = kept.fakes["one"]

    def delete() -> None:
        with kept.database.write() as session:
            file_rows.record_file(session, file_row_id, state="deleting")

    file_row_id = file_row(kept).id
    fake.during_upload = delete
    with pytest.raises(Exception, match="No such File"):
        chat(kept, alice, file_id)
    assert fake.contents == {}


@pytest.mark.parametrize("selector", [{"model": "m"}, {"provider": "openai"}])
def test_an_id_that_has_the_providers_in_it_outlives_a_renewal(memory, alice, selector):
    account = make_deployment("one" if "provider" in selector else "acc", model_name=None)
    deployments = () if "provider" in selector else ONE
    gateway = make_gateway(memory, deployments, (account,), fake=Forgetful, keep_content=True)
    file_id = gateway.upload(alice, CONTENT, **selector)
    expire(gateway)
    [held] = [gateway.lookup.resolve(alice, file_id, Hints())]
    assert isinstance(held, Held)
    gateway.rooms.renewal.renew(held, held.copies[0])
    assert read(gateway, alice, file_id) == CONTENT
    assert gateway.files.retrieve(alice, file_id, Hints())["id"] == file_id
    gateway.files.delete(alice, file_id, Hints())
    assert gateway.fakes["one"].stored == {}


# Waiting for the upstream's own work


def test_a_chat_waits_until_the_upstream_has_processed_the_file(memory, alice):
    gateway = make_gateway(memory, ONE, fake=Forgetful, file_wait_seconds=5.0)
    file_id = gateway.upload(alice, names=("m",))
    with gateway.database.write() as session:
        session.execute(update(Copy).values(state="stored"))
    fake = gateway.fakes["one"]
    fake.change(gateway.raw_id("one"), status="uploaded")
    later = threading.Timer(0.3, lambda: fake.change(gateway.raw_id("one"), status="processed"))
    later.start()
    chat(gateway, alice, file_id)
    later.join()
    assert copies(gateway)[0].state == "ready"


def test_it_waits_within_a_bound(memory, alice):
    gateway = make_gateway(memory, ONE, fake=Forgetful, file_wait_seconds=0.0)
    file_id = gateway.upload(alice, names=("m",))
    with gateway.database.write() as session:
        session.execute(update(Copy).values(state="stored"))
    gateway.fakes["one"].change(gateway.raw_id("one"), status="uploaded")
    with pytest.raises(Conflict, match="still being processed") as refused:
        chat(gateway, alice, file_id)
    assert refused.value.code == "file_not_ready"
    gateway.fakes["one"].change(gateway.raw_id("one"), status="error", status_details="unreadable")
    with pytest.raises(InvalidRequest, match="unreadable"):
        chat(gateway, alice, file_id)
    assert gateway.fakes["one"].called("infer") == []


# The kept content


def test_a_kept_content_is_what_the_caller_sent_in_whole_and_in_parts(kept, alice):
    file_id = kept.upload(alice, CONTENT, names=("m",))
    assert read(kept, alice, file_id) == CONTENT
    assert read(kept, alice, file_id, "bytes=1-3") == CONTENT[1:4]
    assert kept.fakes["one"].called("content") == []


def test_a_kept_content_goes_with_its_file(kept, alice):
    first, second = (kept.upload(alice, CONTENT, names=("m",)) for _ in range(2))
    blobs = kept.settings.data_dir / "local" / "blobs"
    assert len([path for path in blobs.rglob("*") if path.is_file()]) == 1, "kept once"
    kept.files.delete(alice, first, Hints())
    assert read(kept, alice, second) == CONTENT
    kept.files.delete(alice, second, Hints())
    assert [path for path in blobs.rglob("*") if path.is_file()] == []
    assert list((kept.settings.data_dir / "kept").iterdir()) == []


def test_nothing_is_kept_that_nobody_asked_for(unkept, alice):
    unkept.upload(alice, CONTENT, names=("m", "other"))
    assert not (unkept.settings.data_dir / "kept").exists()


def test_the_way_to_a_model_that_never_had_the_file_stays_closed(unkept, alice):
    file_id = unkept.upload(alice, CONTENT, names=("m",))
    with pytest.raises(FileNotAvailable):
        chat(unkept, alice, file_id, model="other")
