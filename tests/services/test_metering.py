"""Limits, counted exactly: a minute's requests and uploads, those at a time, files and bytes."""

import datetime as dt
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import select, update

from app.db.tables import File, RequestCount, RunningRequest, now
from app.errors import FileLimitExceeded, RateLimited, StorageLimitExceeded
from app.services.callers import Caller
from app.services.limits import UNLIMITED, Limits
from app.services.metering import Meter
from tests.conftest import NO_HINTS as NO
from tests.conftest import make_caller, make_gateway


def limited(caller: Caller, *, user: Limits = UNLIMITED, key: Limits = UNLIMITED) -> Caller:
    return replace(caller, user_limits=user, key_limits=key)


def another_key(caller: Caller) -> Caller:
    other = make_caller(caller.user_id)
    return replace(other, user_limits=caller.user_limits, key_limits=caller.key_limits)


def send(meter: Meter, caller: Caller, *, is_upload: bool = False) -> bool:
    """Whether a request of this caller's is let in; it ends at once."""
    try:
        meter.begin(caller, is_upload=is_upload).close()
    except RateLimited:
        return False
    return True


@pytest.fixture
def meter(database) -> Meter:
    return Meter(database)


def test_who_has_no_limits_leaves_no_row(meter, database, alice, root):
    for caller in (alice, root):
        for _ in range(5):
            assert send(meter, caller, is_upload=True)
    with database.read() as session:
        assert session.scalars(select(RequestCount)).all() == []
        assert session.scalars(select(RunningRequest)).all() == []


def test_a_minute_has_so_many_requests(meter, database, alice):
    alice = limited(alice, key=Limits(rpm_limit=3))
    assert [send(meter, alice) for _ in range(5)] == [True] * 3 + [False] * 2
    with pytest.raises(RateLimited, match="This key may send 3 requests a minute") as refused:
        meter.begin(alice, is_upload=False)
    assert 1 <= int(refused.value.headers["Retry-After"]) <= 60
    with database.write() as session:
        session.execute(update(RequestCount).values(began_at=now() - dt.timedelta(seconds=59)))
    assert not send(meter, alice)
    with database.write() as session:
        session.execute(update(RequestCount).values(began_at=now() - dt.timedelta(seconds=60)))
    assert [send(meter, alice) for _ in range(5)] == [True] * 3 + [False] * 2


def test_uploads_have_a_limit_of_their_own(meter, alice):
    alice = limited(alice, key=Limits(upload_rpm_limit=2, rpm_limit=5))
    assert [send(meter, alice, is_upload=True) for _ in range(3)] == [True, True, False]
    # What was refused counts nowhere.
    assert [send(meter, alice) for _ in range(4)] == [True] * 3 + [False]


def test_a_user_s_limit_is_shared_by_his_keys(meter, alice):
    alice = limited(alice, user=Limits(rpm_limit=3))
    keys = (alice, another_key(alice), another_key(alice))
    assert [send(meter, key) for key in keys * 2] == [True] * 3 + [False] * 3


def test_a_key_s_limit_is_its_own(meter, alice):
    alice = limited(alice, key=Limits(rpm_limit=1), user=Limits(rpm_limit=3))
    other = another_key(alice)
    assert [send(meter, alice), send(meter, alice), send(meter, other)] == [True, False, True]
    with pytest.raises(RateLimited, match="This key"):
        meter.begin(other, is_upload=False)


def test_a_limit_of_zero_lets_nobody_in(meter, alice):
    assert not send(meter, limited(alice, key=Limits(rpm_limit=0)))
    assert not send(meter, limited(alice, key=Limits(max_parallel_requests=0)))
    assert send(meter, limited(alice, key=Limits(upload_rpm_limit=0)))


def test_so_many_are_answered_at_a_time(meter, database, alice):
    alice = limited(alice, key=Limits(max_parallel_requests=2), user=Limits(rpm_limit=100))
    first, second = (meter.begin(alice, is_upload=False) for _ in range(2))
    with pytest.raises(RateLimited, match="2 requests answered at a time") as refused:
        meter.begin(alice, is_upload=False)
    assert refused.value.headers["Retry-After"] == "1"
    first.close()
    third = meter.begin(alice, is_upload=False)
    assert not send(meter, alice)
    third.close()
    second.close()
    with database.read() as session:
        assert session.scalars(select(RunningRequest)).all() == []


def test_a_request_whose_process_died_counts_until_its_lease_is_over(meter, database, alice):
    alice = limited(alice, key=Limits(max_parallel_requests=1))
    abandoned = meter.begin(alice, is_upload=False)
    assert not send(meter, alice)
    with database.write() as session:
        session.execute(update(RunningRequest).values(lease_until=now()))
    assert send(meter, alice)
    abandoned.close()


def test_a_long_request_keeps_its_place(served_database, alice):
    meter = Meter(served_database, lease_seconds=0.4)
    alice = limited(alice, key=Limits(max_parallel_requests=1))
    with meter.begin(alice, is_upload=False):
        with served_database.read() as session:
            [first] = session.scalars(select(RunningRequest.lease_until)).all()
        while now() <= first + dt.timedelta(seconds=0.2):
            assert not send(meter, alice)
    assert send(meter, alice)


@pytest.mark.parametrize("most", [1, 7])
def test_many_at_once_are_counted_exactly(served_database, alice, most):
    meters = [Meter(served_database) for _ in range(4)]
    alice = limited(alice, key=Limits(rpm_limit=most), user=Limits(rpm_limit=1000))
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda n: send(meters[n % 4], alice), range(40)))
    assert sum(found) == most


def test_many_at_once_never_run_more_than_they_may(served_database, alice):
    meters = [Meter(served_database) for _ in range(4)]
    alice = limited(alice, user=Limits(max_parallel_requests=3))

    def begin(number: int):
        try:
            return meters[number % 4].begin(alice, is_upload=False)
        except RateLimited:
            return None

    with ThreadPoolExecutor(12) as pool:
        running = [each for each in pool.map(begin, range(30)) if each is not None]
    assert len(running) == 3
    for each in running:
        each.close()
    assert send(meters[0], alice)


# ------------------------------------------------------- files and bytes


@pytest.fixture
def gateway(database):
    return make_gateway(database)


def stored(gateway) -> list[str]:
    with gateway.database.read() as session:
        return list(session.scalars(select(File.id).where(File.state == "ready")))


@pytest.mark.parametrize("whose", ["key", "user"])
def test_somebody_has_so_many_files(gateway, alice, bob, whose):
    alice = limited(alice, **{whose: Limits(max_files=2)})
    first = gateway.upload(alice)
    gateway.upload(alice)
    calls = gateway.calls()
    with pytest.raises(FileLimitExceeded, match="may have 2 files and has 2") as refused:
        gateway.upload(alice)
    assert refused.value.headers["Retry-After"]
    assert (gateway.calls(), len(stored(gateway))) == (calls, 2)
    gateway.upload(bob)
    gateway.files.delete(alice, first, NO)
    gateway.upload(alice)
    if whose == "key":
        gateway.upload(another_key(alice))
    else:
        with pytest.raises(FileLimitExceeded):
            gateway.upload(another_key(alice))


@pytest.mark.parametrize("whose", ["key", "user"])
def test_somebody_has_so_many_bytes(gateway, alice, whose):
    alice = limited(alice, **{whose: Limits(max_bytes_stored=10)})
    gateway.upload(alice, b"1234567")
    calls = gateway.calls()
    with pytest.raises(StorageLimitExceeded, match="10 bytes stored and has 7; 4 more") as refused:
        gateway.upload(alice, b"1234")
    assert refused.value.status == 413
    assert (gateway.calls(), len(stored(gateway))) == (calls, 1)
    gateway.upload(alice, b"123")
    with pytest.raises(StorageLimitExceeded):
        gateway.upload(alice, b"1")


def test_what_failed_takes_no_room(gateway, alice):
    alice = limited(alice, key=Limits(max_files=1))
    gateway.fakes["b-1"].fail_next(FileLimitExceeded("no"), method="upload")
    with pytest.raises(FileLimitExceeded, match="no"):
        gateway.upload(alice)
    gateway.upload(alice)


def test_many_at_once_never_store_more_than_they_may(served_database, alice):
    gateway = make_gateway(served_database)
    alice = limited(alice, user=Limits(max_files=3), key=Limits(max_bytes_stored=1000))

    def upload(_number: int) -> bool:
        try:
            gateway.upload(alice, names=["a"])
        except FileLimitExceeded:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(upload, range(16))) == 3
    assert len(stored(gateway)) == 3


def test_the_sweep_removes_what_is_over(meter, database, alice):
    alice = limited(alice, key=Limits(rpm_limit=5, max_parallel_requests=5))
    with meter.begin(alice, is_upload=False):
        meter.sweep()
        with database.read() as session:
            assert len(session.scalars(select(RequestCount)).all()) == 1
            assert len(session.scalars(select(RunningRequest)).all()) == 1
        with database.write() as session:
            past = now() - dt.timedelta(minutes=2)
            session.execute(update(RequestCount).values(began_at=past))
            session.execute(update(RunningRequest).values(lease_until=past))
        meter.sweep()
        with database.read() as session:
            assert session.scalars(select(RequestCount)).all() == []
            assert session.scalars(select(RunningRequest)).all() == []
