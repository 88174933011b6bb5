"""Pages of one's own batches and fine-tuning jobs: order, cursors, narrowing, other users'."""

import datetime as dt
from typing import Any

import pytest
from sqlalchemy import update

from app import ids
from app.db.tables import Job
from app.errors import InvalidRequest, ModelAccessDenied, NotPermitted, UnknownProvider
from app.services.job_lists import JobQuery
from app.services.router import Selector
from tests.builders import make_deployment
from tests.conftest import make_caller
from tests.job_builders import ACCOUNTS, make_job_gateway, make_rows


@pytest.fixture
def gateway(database):
    return make_job_gateway(database)


def page(gateway, caller, selector=None, **query: Any) -> Any:
    return gateway.batches.page(caller, JobQuery(**query), selector or Selector())


def shown(gateway, caller, selector=None, **query: Any) -> list[str]:
    return [batch["id"] for batch in page(gateway, caller, selector, **query)["data"]]


def walk(gateway, caller, limit: int, **more: Any) -> list[str]:
    """Every id, page by page, as the openai client walks."""
    seen: list[str] = []
    after = None
    while True:
        found = page(gateway, caller, limit=limit, after=after, **more)
        seen += [batch["id"] for batch in found["data"]]
        assert len(found["data"]) <= limit
        if not found["has_more"]:
            return seen
        after = seen[-1]
        assert (found["first_id"], found["last_id"]) == (seen[-len(found["data"])], seen[-1])


@pytest.fixture
def made(gateway, alice, bob):
    """Alice's batches by every way, newest first; Bob has some between them."""
    found = []
    for way in ({"names": ("b",)}, {"model": "a"}, {"provider": "openai"}, {"names": ("a",)}) * 2:
        rows = make_rows("b" if way.get("names") == ("b",) else "a")
        for caller in (alice, bob):
            batch = gateway.start(caller, gateway.upload(caller, rows, **way))
            if caller is alice:
                found.append(batch["id"])
    return found[::-1]


@pytest.mark.parametrize("limit", [1, 3, 7, 8, 9, 100])
def test_a_walk_has_ones_own_and_nothing_else_newest_first(gateway, alice, made, limit):
    calls = gateway.calls()
    assert walk(gateway, alice, limit) == made
    assert gateway.calls() == calls


def test_jobs_of_one_moment_are_walked_too(gateway, alice, made):
    moment = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    with gateway.database.write() as session:
        session.execute(update(Job).values(created_at=moment))
    assert sorted(walk(gateway, alice, 3)) == sorted(made)


def test_an_empty_list(gateway, nobody):
    assert page(gateway, nobody) == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }


def test_a_list_is_narrowed_to_accounts(gateway, alice, made):
    by_b = [made[3], made[7]]
    by_account = [made[1], made[5]]
    assert shown(gateway, alice, Selector(model="b")) == by_b
    assert shown(gateway, alice, Selector(target_model_names=("b",))) == by_b
    assert shown(gateway, alice, Selector(target_model_names=("a", "b"))) == [
        batch for batch in made if batch not in by_account
    ]
    assert shown(gateway, alice, Selector(provider="openai")) == by_account
    assert shown(gateway, alice, Selector(provider="azure")) == []
    assert walk(gateway, alice, 1, selector=Selector(model="b")) == by_b
    limited = make_caller("alice", key_models=["a"])
    with pytest.raises(ModelAccessDenied):
        shown(gateway, limited, Selector(model="b"))


def test_an_admin_names_a_user(gateway, alice, bob, root, viewer, made):
    for caller in (root, viewer):
        assert shown(gateway, caller, user_id="alice") == made
        assert walk(gateway, caller, 3, user_id="alice") == made
        assert shown(gateway, caller) == []
        assert shown(gateway, caller, user_id="nobody") == []
    for user_id in ("alice", "bob"):
        with pytest.raises(NotPermitted):
            shown(gateway, bob, user_id=user_id)


def test_an_admins_own_by_his_own_name(gateway, root):
    batch = gateway.start(root, gateway.upload(root, names=("b",)))
    assert shown(gateway, root) == shown(gateway, root, user_id=root.user_id) == [batch["id"]]


@pytest.mark.parametrize(
    "after",
    ["", "batch_unknown", "../x", "x" * 5000, ids.encode_unified_job("batch", "d", "x" * 36)],
)
def test_a_cursor_that_names_nothing(gateway, alice, made, after):
    with pytest.raises(InvalidRequest) as refusal:
        shown(gateway, alice, after=after)
    assert refusal.value.param == "after"
    assert len(refusal.value.message) < 300


def test_a_cursor_is_ones_own_and_as_it_was_handed_out(gateway, alice, bob, made):
    for batch_id in made:
        with pytest.raises(InvalidRequest):
            shown(gateway, bob, after=batch_id)
    row = next(job for job in gateway.rows() if job.public_id == made[0])
    with pytest.raises(InvalidRequest):
        shown(gateway, alice, after=row.upstream_id)


def test_jobs_of_another_type_are_no_batches(gateway, alice, made):
    job = gateway.tune(alice)
    assert walk(gateway, alice, 3) == made
    with pytest.raises(InvalidRequest):
        shown(gateway, alice, after=job["id"])
    [found] = gateway.tuning.page(alice, JobQuery(), Selector())["data"]
    assert found["id"] == job["id"]


def test_what_has_not_begun_is_not_listed(gateway, alice, made):
    for state in ("intended", "void"):
        gateway.change(state=state)
        assert shown(gateway, alice) == []


def test_fine_tuning_jobs_of_a_provider_are_at_both_of_its_accounts(database, alice):
    tuning = (make_deployment("tuning", model_name=None, upstream_model=""),)
    before = make_job_gateway(database)
    after = make_job_gateway(database, tuning=tuning)
    after.fakes["tuning"].stored = after.fakes["openai-account"].stored
    made = []
    for gateway in (before, after):
        file_id = gateway.upload(alice, b"{}", purpose="fine-tune", provider="openai")
        made.append(gateway.tune(alice, file_id, model="gpt-x")["id"])
    assert {job.deployment_id for job in after.rows()} == {"openai-account", "tuning"}
    selector = Selector(provider="openai")
    found = after.tuning.page(alice, JobQuery(), selector)["data"]
    assert [job["id"] for job in found] == made[::-1]
    with pytest.raises(UnknownProvider):
        after.tuning.page(alice, JobQuery(), Selector(provider="other"))


def test_a_provider_that_stands_in_finetune_settings_alone(database, alice):
    tuning = (make_deployment("tuning", model_name=None, provider="other", upstream_model=""),)
    gateway = make_job_gateway(database, accounts=ACCOUNTS, tuning=tuning)
    assert gateway.tuning.page(alice, JobQuery(), Selector(provider="other"))["data"] == []
