"""Tuned models: registered once, for their owner, usable by keys that may use what was tuned."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from app.errors import UnknownModel
from tests.builders import make_deployment
from tests.conftest import make_caller
from tests.job_builders import make_job_gateway


@pytest.fixture
def gateway(database):
    return make_job_gateway(database)


def tuned(gateway, caller, name="ft:b", *, model="b", **way):
    """A job of this caller, whose model is registered."""
    file_id = gateway.upload(caller, b"{}", purpose="fine-tune", **(way or {"names": ("b",)}))
    gateway.tune(caller, file_id, model=model)
    job = gateway.rows()[-1]
    gateway.tuned.register(job, name)
    return job


def test_it_is_registered_once(gateway, alice):
    job = tuned(gateway, alice)
    gateway.tuned.register(job, "ft:b")
    assert [(row.owner, row.job_id) for row in gateway.tuned_rows()] == [(alice.owner, job.id)]
    assert gateway.tuned.names(alice.owner) == [("ft:b", "b-1")]
    assert gateway.tuned.deployment_of(alice.owner, "ft:b") == "b-1"


def test_many_see_the_end_at_once(served_database, alice):
    gateway = make_job_gateway(served_database)
    job = tuned(gateway, alice, "ft:other")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: gateway.tuned.register(job, "ft:b"), range(16)))
    assert len(gateway.tuned_rows()) == 2


def test_two_owners_may_have_the_same_name(gateway, alice, bob):
    for caller in (alice, bob):
        tuned(gateway, caller)
    assert len(gateway.tuned_rows()) == 2


def test_the_owner_is_the_jobs_of_this_moment(gateway, alice):
    job = tuned(gateway, alice)
    gateway.change(owner="deleted-user:alice:1")
    gateway.tuned.register(job, "ft:late")
    assert gateway.tuned.names(alice.owner) == [("ft:b", "b-1")]
    assert gateway.tuned.names("deleted-user:alice:1") == [("ft:late", "b-1")]


@pytest.mark.parametrize(
    ("models", "may"),
    [
        ((), True),
        (("b",), True),
        (("ft:b",), True),
        (("openai/ft:*",), True),
        (("a",), False),
        (("a", "b*"), True),
    ],
)
def test_a_key_may_use_it_that_may_use_what_was_tuned(gateway, alice, models, may):
    tuned(gateway, alice)
    for caller in (
        make_caller("alice", key_models=models),
        make_caller("alice", user_models=models),
    ):
        assert ("ft:b" in gateway.router.model_names(caller)) == may
        if may:
            assert gateway.router.routes("ft:b", caller)[0].model_name == "ft:b"
        else:
            with pytest.raises(UnknownModel):
                gateway.router.routes("ft:b", caller)


@pytest.mark.parametrize(("models", "may"), [((), True), (("a",), False), (("ft:x",), True)])
def test_one_of_the_provider_way_is_not_for_every_key(gateway, alice, models, may):
    tuned(gateway, alice, "ft:x", model="gpt-x", provider="openai")
    caller = make_caller("alice", key_models=models)
    assert ("ft:x" in gateway.router.model_names(caller)) == may


def test_a_configured_name_comes_first(gateway, alice):
    tuned(gateway, alice, "a")
    assert {route.deployment.id for route in gateway.router.routes("a", alice)} == {"a-1", "a-2"}


def test_one_whose_account_is_gone_is_not_there(database, alice):
    tuned(make_job_gateway(database), alice)
    gateway = make_job_gateway(database, [make_deployment("new", model_name="b")])
    assert gateway.router.model_names(alice) == ["b"]
    with pytest.raises(UnknownModel):
        gateway.router.routes("ft:b", alice)


def test_a_batch_runs_on_it(gateway, alice):
    tuned(gateway, alice)
    file_id = gateway.upload(alice, names=("ft:b",))
    [content] = gateway.fakes["b-1"].contents.values() if False else [
        content for content in gateway.fakes["b-1"].contents.values() if b"custom_id" in content
    ]  # fmt: skip
    assert b'"model": "ft:b"' in content
    assert gateway.start(alice, file_id)["status"] == "validating"
    gateway.start(alice, file_id, model="ft:b")
