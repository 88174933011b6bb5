"""A job that was started and whose answer was lost is found again; nothing is started twice."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import Any

import openai
import pytest
from sqlalchemy import create_engine, text

from tests.e2e.batching import Kind, one_account
from tests.e2e.conftest import StartGateway
from tests.e2e.gateway import Account, Gateway, Upstream, wait_until

WITHIN = 30.0
"""Seconds after which a lost answer has been found."""


def states(gateway: Gateway, kind: str = "batch") -> list[tuple[str, str | None]]:
    """State and upstream id of every job, oldest first."""
    engine = create_engine(f"sqlite:///{gateway.data_dir / 'manifold.db'}")
    sql = "SELECT state, upstream_id FROM jobs WHERE type = :kind ORDER BY created_at"
    try:
        with engine.connect() as connection:
            return [(row[0], row[1]) for row in connection.execute(text(sql), {"kind": kind})]
    finally:
        engine.dispose()


@contextmanager
def tables_away(gateway: Gateway) -> Iterator[None]:
    """A database that fails at every use of a job."""
    engine = create_engine(f"sqlite:///{gateway.data_dir / 'manifold.db'}", isolation_level=None)
    with engine.connect() as connection:
        connection.execute(text("ALTER TABLE jobs RENAME TO jobs_away"))
        try:
            yield
        finally:
            connection.execute(text("ALTER TABLE jobs_away RENAME TO jobs"))
    engine.dispose()


@contextmanager
def asked(ask: Callable[[], Any]) -> Iterator[Future[Any]]:
    """Something that is asked for while the block runs; its answer afterwards."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(ask)


def let_pass(gateway: Gateway) -> None:
    """As if the ten seconds were over in which an intent is left to its own request."""
    engine = create_engine(f"sqlite:///{gateway.data_dir / 'manifold.db'}")
    sql = "UPDATE jobs SET next_look_at = '2020-01-01 00:00:00.000000' WHERE state = 'intended'"
    with engine.begin() as connection:
        assert connection.execute(text(sql)).rowcount > 0
    engine.dispose()


def has_more(kind: Kind, before: int) -> bool:
    return len(kind.made()) > before


def has_listed(kind: Kind, client: Any, number: int) -> bool:
    return len(kind.ids(client)) == number


def is_closed(kind: Kind) -> bool:
    return states(kind.gateway, kind.name)[-1] == ("void", None)


@pytest.fixture(scope="module")
def account(upstream: Upstream) -> Account:
    return upstream.account("lossy", batch_delay_s=0, job_delay_s=0)


@pytest.fixture(scope="module")
def gateway(account: Account, start_gateway: StartGateway) -> Gateway:
    return start_gateway(one_account(account), workers=1, worker=True)


@pytest.fixture(params=["batch", "fine_tuning"])
def kind(request: pytest.FixtureRequest, gateway: Gateway, account: Account) -> Kind:
    return Kind(request.param, gateway, account)


@pytest.fixture
def kinds(gateway: Gateway, account: Account) -> list[Kind]:
    """Both at a time, for what takes long."""
    return [Kind(name, gateway, account) for name in ("batch", "fine_tuning")]


@pytest.fixture
def client(gateway: Gateway) -> Iterator[Any]:
    with closing(gateway.client(gateway.new_user()["key"])) as client:
        yield client


LOST: dict[str, dict[str, Any]] = {
    "500": {"status": 500},
    "502 of a proxy": {"status": 502, "body": "<html>bad gateway</html>"},
    "a broken connection": {"close": "before_body"},
    "half an answer": {"close": "mid_body", "after_bytes": 20},
    "nonsense": {"status": 200, "body": "<html>"},
    "no id": {"status": 200, "body": {"object": "batch"}},
}


def test_a_lost_answer_is_found_and_linked(kind, client):
    gateway, file_ids = kind.gateway, {}
    before = len(kind.made())
    # Or it finds the first before the last is lost.
    assert gateway.worker is not None
    gateway.worker.stop()
    for how, action in LOST.items():
        file_ids[how] = kind.input(client)
        kind.account.fail(
            method="POST", path_prefix=kind.path, times=1, **{"handle": True, **action}
        )
        with pytest.raises(openai.APIStatusError) as lost:
            kind.start(client, file_ids[how], metadata={"how": how})
        assert lost.value.status_code >= 500, how
        assert lost.value.response.headers["x-should-retry"] == "false", how
        with pytest.raises(openai.ConflictError):
            client.files.delete(file_ids[how])
    assert kind.ids(client) == []
    assert len(kind.made()) == before + len(LOST)

    gateway.worker = gateway.start_worker()
    wait_until(lambda: len(kind.ids(client)) == len(LOST), WITHIN)
    for each in kind.api(client).list():
        how = each.metadata["how"]
        handed = each.input_file_id if kind.is_batch else each.training_file
        assert handed == file_ids.pop(how)
        assert kind.ended(client, each.id).status in ("completed", "succeeded")
    assert len(kind.made()) == before + len(LOST)
    wait_until(lambda: {state for state, _ in states(kind.gateway, kind.name)} <= {"final", "void"})


def test_an_intent_of_which_nothing_came_is_closed(kinds, client):
    intents = []
    for kind in kinds:
        before = len(kind.made())
        file_id = kind.input(client)
        kind.account.fail(method="POST", path_prefix=kind.path, times=1, status=500)
        with pytest.raises(openai.InternalServerError) as lost:
            kind.start(client, file_id)
        assert lost.value.response.headers["x-should-retry"] == "false"
        intents.append((kind, before, file_id))
    for kind, before, file_id in intents:
        wait_until(partial(is_closed, kind))
        assert kind.ids(client) == []
        assert len(kind.made()) == before
        assert client.files.delete(file_id).deleted


@pytest.mark.parametrize("status", [400, 401, 404, 429, 503])
def test_a_refusal_leaves_nothing_behind(kind, client, status):
    file_id = kind.input(client)
    kind.account.fail(method="POST", path_prefix=kind.path, status=status)
    with pytest.raises(openai.APIStatusError) as refused:
        kind.start(client, file_id)
    assert refused.value.status_code == (502 if status == 401 else status)
    assert states(kind.gateway, kind.name)[-1][0] == "void"
    assert client.files.delete(file_id).deleted


def test_two_lost_answers_to_one_input_find_a_job_each(kind, client):
    file_id = kind.input(client)
    before = len(kind.made())
    kind.account.fail(method="POST", path_prefix=kind.path, times=3, status=500, handle=True)
    for n in range(3):
        with pytest.raises(openai.InternalServerError):
            kind.start(client, file_id, metadata={"n": str(n)})
    kind.start(client, file_id, metadata={"n": "3"})
    wait_until(lambda: len(kind.ids(client)) == 4, WITHIN + 20)
    shown = {each.metadata["n"] for each in kind.api(client).list()}
    assert shown == {"0", "1", "2", "3"}
    linked = {raw for _, raw in states(kind.gateway, kind.name)}
    assert {each["id"] for each in kind.made()[before:]} <= linked
    assert len(kind.made()) == before + 4


def test_the_database_fails_right_after_the_upstream_said_yes(kinds, client):
    before = [len(kind.made()) for kind in kinds]
    file_ids = [kind.input(client) for kind in kinds]
    for kind in kinds:
        kind.account.fail(method="POST", path_prefix=kind.path, times=1, handle=True, delay_s=1.5)
    with ExitStack() as stack:
        answers = [
            stack.enter_context(asked(partial(kind.start, client, file_id)))
            for kind, file_id in zip(kinds, file_ids, strict=True)
        ]
        for kind, number in zip(kinds, before, strict=True):
            wait_until(partial(has_more, kind, number))
        with tables_away(kinds[0].gateway):
            errors = [answer.exception() for answer in answers]
    for error in errors:
        assert isinstance(error, openai.APIStatusError)
        assert error.status_code == 503
        assert error.response.headers["x-should-retry"] == "false"
    let_pass(kinds[0].gateway)
    for kind, number in zip(kinds, before, strict=True):
        wait_until(partial(has_listed, kind, client, 1), WITHIN)
        [job_id] = kind.ids(client)
        assert kind.ended(client, job_id).status in ("completed", "succeeded")
        assert len(kind.made()) == number + 1


def test_a_gateway_that_dies_while_it_asks_loses_nothing(account, upstream, start_gateway):
    gateway = start_gateway(one_account(account), workers=1)
    key = gateway.new_user()["key"]
    for name in ("batch", "fine_tuning"):
        kind = Kind(name, gateway, account)
        before = len(kind.made())
        with closing(gateway.client(key)) as client:
            file_id = kind.input(client)
            account.fail(method="POST", path_prefix=kind.path, handle=True, delay_s=60)
            with asked(partial(kind.start, client, file_id)) as asking:
                wait_until(partial(has_more, kind, before))
                gateway.kill()
                assert isinstance(asking.exception(), openai.APIConnectionError)
        upstream.clear_faults()
        gateway.start()
        assert [state for state, _ in states(gateway, name)] == ["intended"]
    let_pass(gateway)
    worker = gateway.start_worker()
    try:
        with closing(gateway.client(key)) as client:
            for name in ("batch", "fine_tuning"):
                kind = Kind(name, gateway, account)
                wait_until(partial(has_listed, kind, client, 1), WITHIN)
                [job_id] = kind.ids(client)
                assert kind.ended(client, job_id).status in ("completed", "succeeded")
                assert len(states(gateway, name)) == 1
    finally:
        assert worker.stop() == 0
