"""An upload that the client sends again by itself gives the first try's file, or waits for it."""

import threading
from contextlib import suppress
from dataclasses import replace

import pytest
from sqlalchemy import update

from app.db.tables import Copy, File, now
from app.errors import Conflict, GatewayError
from app.services.repeats import WITHIN, Repeats
from app.transfers import ExpiresAfter
from tests.builders import make_upload
from tests.conftest import Gateway, make_caller, make_gateway

CONTENT = b"content"


@pytest.fixture
def gateway(served_database) -> Gateway:
    return make_gateway(served_database)


def first(gateway, caller, content=CONTENT, *, wait_seconds=0.0, names=("a", "b"), **more):
    """The id of the first try's file."""
    way = gateway.way(caller, target_model_names=names)
    upload = replace(make_upload(content), **more)
    found = Repeats(gateway.database, wait_seconds).first(caller, upload, way)
    return None if found is None else found["id"]


def test_the_first_file_is_found(gateway, alice):
    assert first(gateway, alice) is None
    made = gateway.upload(alice, CONTENT)
    assert first(gateway, alice) == made
    twin = gateway.upload(alice, CONTENT)
    assert first(gateway, alice) == twin != made


def test_what_differs_is_another_upload(gateway, alice, bob):
    gateway.upload(alice, CONTENT)
    assert first(gateway, bob) is None
    assert first(gateway, make_caller("alice")) is None, "another key of hers"
    assert first(gateway, alice, b"contents") is None
    assert first(gateway, alice, filename="other.txt") is None
    assert first(gateway, alice, purpose="assistants") is None
    assert first(gateway, alice, names=("a",)) is None
    assert first(gateway, alice, expires_after=ExpiresAfter("created_at", 3600)) is None


def test_an_end_that_was_asked_for_is_the_same(gateway, alice):
    made = gateway.upload(alice, CONTENT, expires_after_seconds=3600)
    assert first(gateway, alice) is None
    assert first(gateway, alice, expires_after=ExpiresAfter("created_at", 3600)) == made


def test_after_some_minutes_it_is_another_upload(gateway, alice):
    gateway.upload(alice, CONTENT)
    with gateway.database.write() as session:
        session.execute(update(File).values(created_at=now() - WITHIN))
    assert first(gateway, alice) is None


def test_a_deleted_file_is_no_first_try(gateway, alice, root):
    made = gateway.upload(alice, CONTENT)
    with gateway.database.write() as session:
        session.execute(update(File).where(File.public_id == made).values(state="deleted"))
    assert first(gateway, alice) is None


def test_a_first_try_that_is_still_running_is_waited_for(gateway, alice):
    entered, go_on = threading.Event(), threading.Event()

    def held_up() -> None:
        entered.set()
        assert go_on.wait(10)

    gateway.fakes["b-1"].during_upload = held_up
    made: list[str] = []
    uploading = threading.Thread(target=lambda: made.append(gateway.upload(alice, CONTENT)))
    uploading.start()
    assert entered.wait(10)
    with pytest.raises(Conflict, match="still running") as refused:
        first(gateway, alice)
    assert refused.value.headers["x-should-retry"] == "true"
    threading.Timer(0.3, go_on.set).start()
    found = first(gateway, alice, wait_seconds=10)
    uploading.join()
    assert [found] == made


def test_a_first_try_that_fails_leaves_nothing_to_wait_for(gateway, alice):
    gateway.fakes["b-1"].fail_next(GatewayError("no"), method="upload")
    with suppress(GatewayError):
        gateway.upload(alice, CONTENT)
    assert first(gateway, alice, wait_seconds=10) is None


def test_a_first_try_whose_process_died_is_not_waited_for(gateway, alice):
    gateway.upload(alice, CONTENT)
    with gateway.database.write() as session:
        session.execute(update(File).values(state="uploading"))
        session.execute(update(Copy).values(state="intended", lease_until=now()))
    assert first(gateway, alice, wait_seconds=10) is None
