"""Usage: counted by the way, written down now and then, shown to whom it concerns."""

import datetime as dt
import timeit

import pytest
from sqlalchemy import event

from app.db.tables import KeyUse, UsageHour, now
from app.errors import DatabaseUnavailable
from app.services.access import Access
from app.services.callers import operator
from app.services.usage import MOST_PLACES, Usage
from tests.access_builders import MASTER_KEY, issue
from tests.conftest import make_caller

MODELS = {"d-1": "gpt", "d-2": "gpt", "d-3": "llama", "account": None}


@pytest.fixture
def usage(database):
    return Usage(database, MODELS.get, None)


def test_counts_add_up_over_processes_and_by_model_and_deployment(database, usage, alice, bob):
    other = Usage(database, MODELS.get, None)
    for process in (usage, other):
        process.count(alice, is_error=False, bytes_in=10, bytes_out=1, deployments=("d-1", "d-2"))
        process.count(alice, is_error=True, bytes_out=5, deployments=("d-3", "account"))
        process.count(bob, is_error=False)
        process.flush()
        process.flush()
    history = usage.history(alice, 24)
    assert len(history.hours) == 24 and history.counts["requests"][-1] == 4
    assert {name: history.total(name) for name in ("errors", "bytes_in", "bytes_out")} == {
        "errors": 2,
        "bytes_in": 20,
        "bytes_out": 12,
    }
    assert [(name, c["requests"]) for name, c in usage.busiest(alice, 24, "model")] == [
        ("gpt", 2),
        ("llama", 2),
    ]
    assert usage.busiest(bob, 24, "model") == []
    everybody = make_caller("root", role=operator().role)
    assert usage.history(everybody, 24).total("requests") == 6
    assert usage.deployments(24)["d-2"]["requests"] == 2
    assert [name for name, _ in usage.busiest(everybody, 24, "owner")] == ["user:alice", "user:bob"]


def test_a_step_sums_hours_and_old_hours_are_swept(database, usage, alice):
    this = now().replace(minute=0, second=0, microsecond=0)
    zeros = dict.fromkeys(("errors", "bytes_in", "bytes_out", "rows_done", "rows_failed"), 0)
    with database.write() as session:
        for hours in (0, 1, 5, 6, 167, 168, 24 * 91):
            at = this - dt.timedelta(hours=hours)
            place = {"hour": at, "owner": alice.owner, "dimension": "", "name": ""}
            session.add(UsageHour(**place, requests=1, **zeros))
    assert usage.history(alice, 168, step=6).counts["requests"][-2:] == (1, 3)
    assert usage.history(alice, 168, step=6).total("requests") == 5
    usage.sweep()
    with database.read() as session:
        assert session.query(UsageHour).count() == 6


def test_what_could_not_be_written_is_kept(database, alice, monkeypatch):
    usage = Usage(database, MODELS.get, None)
    usage.count(alice, is_error=False, bytes_in=1)
    with monkeypatch.context() as away:
        away.setattr(database, "write", _away)
        with pytest.raises(DatabaseUnavailable):
            usage.flush()
    usage.count(alice, is_error=False, bytes_in=1)
    usage.flush()
    assert usage.history(alice, 1).counts == {
        "requests": (2,),
        "errors": (0,),
        "bytes_in": (2,),
        "bytes_out": (0,),
        "rows_done": (0,),
        "rows_failed": (0,),
    }


def _away():
    raise DatabaseUnavailable


def test_memory_is_bounded_while_nothing_can_be_written(memory, alice):
    usage = Usage(memory, MODELS.get, None)
    for number in range(MOST_PLACES + 100):
        usage.count(make_caller(f"user-{number}"), is_error=False)
    assert len(usage._counts) == MOST_PLACES


def test_a_request_costs_a_few_additions_and_no_statement(memory, alice):
    usage = Usage(memory, MODELS.get, None)
    told: list[str] = []
    event.listen(memory.engine, "before_cursor_execute", lambda *a: told.append(a[2]))

    def one() -> None:
        usage.count(alice, is_error=False, bytes_in=1, deployments=("d-1", "d-3"))

    seconds = min(timeit.repeat(one, number=2000, repeat=5)) / 2000
    assert told == []
    assert seconds < 20e-6


def test_a_key_has_a_last_use_to_a_minute_until_it_is_deleted(database, usage):
    access = Access(database, MASTER_KEY)
    first, second = (access.authenticate(issue(access, name)) for name in ("one", "two"))
    for caller in (first, second, operator(), make_caller("gone")):
        usage.count(caller, is_error=False)
    access.delete_keys(operator(), [second.key_hash])
    usage.flush()
    uses = usage.last_uses([first.key_hash, second.key_hash])
    assert list(uses) == [first.key_hash]
    assert now() - uses[first.key_hash] < dt.timedelta(seconds=30)
    usage.count(first, is_error=False)
    assert usage._uses == {}, "no more than once a minute"
    access.delete_keys(operator(), [first.key_hash])
    with database.read() as session:
        assert session.query(KeyUse).count() == 0
