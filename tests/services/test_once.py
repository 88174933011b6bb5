"""Requests with an idempotency key: done once, answered alike, and taken up after a crash."""

import datetime as dt
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import select, update

from app.db.tables import SingleRequest, now
from app.errors import Conflict, GatewayError, InvalidRequest, KeyReused, UpstreamError
from app.services.once import Answered, Once, Secrets, Turn

SECRETS = Secrets("sk-secret-of-the-caller", "key-1")
ANSWER = {"id": "file-1", "key": "sk-shown-once"}
ONE, OTHER = "1" * 64, "2" * 64


@pytest.fixture
def once(database) -> Once:
    return Once(database)


def begun(found: Turn | Answered) -> Turn:
    assert isinstance(found, Turn)
    return found


def row(once: Once) -> SingleRequest | None:
    with once._database.read() as session:
        return session.scalars(select(SingleRequest)).one_or_none()


def die(once: Once) -> None:
    """What the end of its process leaves of a request that is running."""
    with once._database.write() as session:
        session.execute(update(SingleRequest).values(lease_until=now()))


def test_the_answer_is_given_again(once, alice):
    turn = begun(once.begin(alice, SECRETS, ONE))
    assert not turn.is_second
    with once.taken(turn):
        pass
    once.keep(turn, SECRETS, ANSWER)
    for _ in range(2):
        assert once.begin(alice, SECRETS, ONE) == Answered(ANSWER)


def test_while_it_runs_the_next_one_is_told_so(once, alice):
    turn = begun(once.begin(alice, SECRETS, ONE))
    with once.taken(turn), pytest.raises(Conflict, match="is running") as refused:
        once.begin(alice, SECRETS, ONE)
    assert refused.value.code == "idempotency_in_progress"
    assert refused.value.headers["Retry-After"] == "2"
    # Unlike other conflicts of ours, this one goes away by repeating.
    assert refused.value.headers["x-should-retry"] == "true"


@pytest.mark.parametrize("is_done", [False, True])
def test_another_request_under_the_same_key_is_refused(once, alice, is_done):
    turn = begun(once.begin(alice, SECRETS, ONE))
    if is_done:
        once.keep(turn, SECRETS, ANSWER)
    with pytest.raises(KeyReused) as refused:
        once.begin(alice, SECRETS, OTHER)
    assert (refused.value.status, refused.value.code) == (422, "idempotency_key_reused")


def test_keys_of_two_callers_are_two(once, alice, bob):
    begun(once.begin(alice, SECRETS, ONE))
    begun(once.begin(bob, SECRETS, OTHER))
    begun(once.begin(replace(alice, key_id="another"), SECRETS, OTHER))
    begun(once.begin(alice, replace(SECRETS, key="key-2"), OTHER))


@pytest.mark.parametrize("error", [InvalidRequest("no"), Conflict("no")])
def test_after_a_refusal_the_key_is_free(once, alice, error):
    turn = begun(once.begin(alice, SECRETS, ONE))
    with pytest.raises(GatewayError, match="no"), once.taken(turn):
        raise error
    assert row(once) is None
    begun(once.begin(alice, SECRETS, OTHER))


@pytest.mark.parametrize("error", [UpstreamError("no answer"), ValueError("a bug")])
def test_after_a_failure_the_next_try_looks_first(once, alice, error):
    turn = begun(once.begin(alice, SECRETS, ONE))
    with pytest.raises(type(error)), once.taken(turn):
        raise error
    with pytest.raises(KeyReused):
        once.begin(alice, SECRETS, OTHER)
    assert once.begin(alice, SECRETS, ONE) == Turn(turn.id, turn.object_uuid, is_second=True)


def test_a_request_whose_process_died_is_taken_up(once, alice):
    turn = begun(once.begin(alice, SECRETS, ONE))
    die(once)
    second = begun(once.begin(alice, SECRETS, ONE))
    assert second == Turn(turn.id, turn.object_uuid, is_second=True)
    with pytest.raises(Conflict):
        once.begin(alice, SECRETS, ONE)
    # Nothing was made: what is made now has another row id, which a third try would look for.
    third = once.anew(second)
    assert third.object_uuid != turn.object_uuid and not third.is_second
    die(once)
    assert begun(once.begin(alice, SECRETS, ONE)).object_uuid == third.object_uuid


def test_a_look_that_fails_forgets_nothing(once, alice):
    turn = begun(once.begin(alice, SECRETS, ONE))
    die(once)
    second = begun(once.begin(alice, SECRETS, ONE))
    with pytest.raises(Conflict), once.taken(second):
        raise Conflict("not known yet")
    assert once.begin(alice, SECRETS, ONE) == Turn(turn.id, turn.object_uuid, is_second=True)


def test_a_long_request_keeps_its_turn(served_database, alice):
    # On a busy machine the thread that renews the lease may not run for half a second.
    once = Once(served_database, lease_seconds=1.5)
    turn = begun(once.begin(alice, SECRETS, ONE))
    first = row(once)
    assert first is not None
    with once.taken(turn):
        while now() <= first.lease_until + dt.timedelta(seconds=0.2):
            with pytest.raises(Conflict):
                once.begin(alice, SECRETS, ONE)


def test_one_of_many_at_once_does_it(served_database, alice):
    once = Once(served_database)

    def begin(_number: int) -> bool:
        try:
            return isinstance(once.begin(alice, SECRETS, ONE), Turn)
        except Conflict:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(begin, range(16))) == 1


def test_no_secret_is_stored(once, alice):
    turn = begun(once.begin(alice, SECRETS, ONE))
    once.keep(turn, SECRETS, ANSWER)
    kept = row(once)
    assert kept is not None
    text = json.dumps({name: str(value) for name, value in vars(kept).items()})
    for secret in (SECRETS.caller, SECRETS.key, ANSWER["key"]):
        assert secret not in text


def test_with_another_secret_the_answer_cannot_be_read(once, alice):
    turn = begun(once.begin(alice, SECRETS, ONE))
    once.keep(turn, SECRETS, ANSWER)
    with pytest.raises(Conflict, match="old secret") as refused:
        once.begin(alice, replace(SECRETS, caller="sk-renewed"), ONE)
    assert refused.value.code == "idempotency_key_used"


def test_after_a_day_it_is_forgotten(once, alice):
    turn = begun(once.begin(alice, SECRETS, ONE))
    once.keep(turn, SECRETS, ANSWER)
    once.sweep()
    assert row(once) is not None
    with once._database.write() as session:
        session.execute(update(SingleRequest).values(expires_at=now()))
    begun(once.begin(alice, SECRETS, OTHER))
    with once._database.write() as session:
        session.execute(update(SingleRequest).values(expires_at=now()))
    once.sweep()
    assert row(once) is None
