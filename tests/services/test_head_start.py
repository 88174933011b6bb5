"""A file that is sent on while it arrives: which are, what counts of it, and what it costs."""

from dataclasses import replace

import pytest
from sqlalchemy import select

from app.db.tables import Copy, now
from app.services.head_start import HeadStarts
from app.transfers import HELD_BYTES, GivenUpError
from tests.builders import make_upload
from tests.conftest import make_gateway

CONTENT = bytes(range(256)) * (4 * HELD_BYTES // 256)


@pytest.fixture
def gateway(database):
    return make_gateway(database)


def announced(upload):
    """The same file while it arrives: nobody knows its hash yet."""
    return replace(upload, sha256="")


def ended(begun, route):
    """Wait for the end of what was begun."""
    outcome = begun.outcome_of(route)
    assert outcome is not None
    return outcome()


def held(gateway):
    return {key: list(fake.contents.values()) for key, fake in gateway.fakes.items() if fake.calls}


def test_what_was_sent_early_is_what_is_stored_under_the_key_on_record(gateway, alice):
    way = gateway.way(alice, target_model_names=("a", "b"))
    upload = make_upload(CONTENT)
    begun = gateway.files.begin(announced(upload), way)
    begun.arriving.wrote(len(CONTENT))
    keys = [begun.key_of(route) for route in way.routes]
    made = gateway.files.create(alice, upload, way, None, begun)
    assert made["bytes"] == len(CONTENT)
    assert held(gateway) == {key: [CONTENT] for key in ("a-1", "a-2", "b-1")}
    with gateway.database.read() as session:
        copies = list(session.scalars(select(Copy)))
    assert sorted(copy.upload_key for copy in copies) == sorted(keys)
    assert all(copy.created_at == begun.begun_at for copy in copies)


@pytest.mark.parametrize(
    "other",
    [{"purpose": "assistants"}, {"filename": "other.bin"}, {"size": 5}, {"mime_type": "a/b"}],
)
def test_another_file_than_was_announced_is_sent_from_the_spool(gateway, alice, other):
    way = gateway.way(alice, target_model_names=("b",))
    upload = make_upload(CONTENT)
    begun = gateway.files.begin(replace(announced(upload), **other), way)
    begun.arriving.wrote(len(CONTENT))
    gateway.files.create(alice, upload, way, None, begun)
    assert held(gateway)["b-1"] == [CONTENT]
    with pytest.raises(GivenUpError):
        ended(begun, way.routes[0])


def test_a_head_start_that_was_given_up_is_no_error(gateway, alice):
    way = gateway.way(alice, target_model_names=("b",))
    upload = make_upload(CONTENT)
    begun = gateway.files.begin(announced(upload), way)
    begun.give_up()
    gateway.files.create(alice, upload, way, None, begun)
    assert held(gateway)["b-1"] == [CONTENT]


def test_one_that_ends_just_before_its_end_is_let_go_is_no_error(gateway, alice):
    class TooLate:
        begun_at = now()

        def is_of(self, _upload, _way):
            return True

        def key_of(self, _route):
            return "0" * 32

        def let_go(self):
            """It has not ended yet at this moment."""

        def outcome_of(self, _route):
            def given_up():
                raise GivenUpError

            return given_up

    way = gateway.way(alice, target_model_names=("b",))
    gateway.files.create(alice, make_upload(CONTENT), way, None, TooLate())
    assert held(gateway)["b-1"] == [CONTENT]


def test_what_is_in_memory_takes_no_thread_from_what_still_arrives(gateway, alice):
    way = gateway.way(alice, target_model_names=("b",))
    starts = HeadStarts(gateway.router, threads=1)
    small = replace(make_upload(CONTENT), source=CONTENT)
    assert [starts.begin(small, way) for _ in range(3)] == [None] * 3
    begun = starts.begin(announced(make_upload(CONTENT)), way)
    assert begun is not None
    begun.give_up()


def test_a_batch_file_waits_until_its_rows_are_checked(gateway, alice):
    way = gateway.way(alice, target_model_names=("a", "b"))
    assert gateway.files.begin(make_upload(CONTENT, purpose="batch"), way) is None


def test_one_account_gets_it_and_the_next_one_only_when_that_fails(gateway, alice):
    way = gateway.way(alice, model="a")
    upload = make_upload(CONTENT)
    begun = gateway.files.begin(announced(upload), way)
    begun.arriving.wrote(len(CONTENT))
    gateway.files.create(alice, upload, way, None, begun)
    [(_, contents)] = held(gateway).items()
    assert contents == [CONTENT]


def test_without_a_free_thread_for_each_there_is_none(gateway, alice):
    starts = HeadStarts(gateway.router, threads=3)
    three = gateway.way(alice, target_model_names=("a", "b"))
    one = gateway.way(alice, target_model_names=("b",))
    upload = announced(make_upload(CONTENT))
    first = starts.begin(upload, three)
    assert first is not None and starts.begin(upload, one) is None
    first.give_up()
    for route in three.routes:
        with pytest.raises(GivenUpError):
            ended(first, route)
    again = starts.begin(upload, one)
    assert again is not None
    again.give_up()
