"""The background worker: one look at a time, rarer with time, other queues, giving up."""

import itertools
import os
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import pytest
import yaml
from sqlalchemy import create_engine, text

from tests.e2e import inside
from tests.e2e.batching import (
    BATCHES,
    JOBS,
    Kind,
    ended,
    job_ended,
    looks,
    one_account,
    start,
    upload,
    workers,
)
from tests.e2e.conftest import missing
from tests.e2e.gateway import MANIFOLD, Account, Gateway, Upstream, wait_until
from tests.e2e.serve import plain_environment
from tests.e2e.upstream_jobs import rows


@pytest.fixture(scope="module")
def account(upstream: Upstream) -> Account:
    return upstream.account("followed", batch_delay_s=0, job_delay_s=0)


def one_at_a_time(gateway: Gateway, account: Account) -> None:
    """Three workers look at three batches: never two at once, never two within the interval."""
    with closing(gateway.client(gateway.new_user()["key"])) as client:
        file_id = upload(client, rows(1, "a"), target_model_names="a")
        with account.changed(batch_stay="in_progress"):
            for _ in range(3):
                start(client, file_id)
            account.fail(method="GET", path_prefix=f"{BATCHES}/", delay_s=0.5)
            raws = [batch["id"] for batch in account.batches()[-3:]]
            with workers(gateway, 3):
                wait_until(lambda: all(len(looks(account, raw)) >= 3 for raw in raws))
        for raw in raws:
            seen = looks(account, raw)
            assert len(seen) >= 3
            for first, second in itertools.pairwise(seen):
                assert first.m_end is not None
                assert second.m_start - first.m_end >= 0.9


def test_three_workers_share_the_looks(account, start_gateway):
    config = one_account(account, poll_seconds=1, poll_max_seconds=1)
    one_at_a_time(start_gateway(config, workers=1), account)


def test_three_workers_share_the_looks_on_postgresql(account, start_gateway):
    config = one_account(account, poll_seconds=1, poll_max_seconds=1)
    with inside.scratch_postgres() as url:
        gateway = start_gateway(config, workers=1, database_url=url)
        one_at_a_time(gateway, account)
        gateway.stop()


def test_looks_become_rarer(account, start_gateway):
    config = one_account(account, poll_seconds=0.5, poll_max_seconds=60)
    gateway = start_gateway(config, workers=1, worker=True)
    with (
        closing(gateway.client(gateway.new_user()["key"])) as client,
        account.changed(batch_stay="in_progress"),
    ):
        start(client, upload(client, rows(1, "a"), target_model_names="a"))
        raw = account.batches()[-1]["id"]
        wait_until(lambda: len(looks(account, raw)) >= 4)
        seen = looks(account, raw)
    # A look may be late on a busy machine, and is never early: each waits longer than the last.
    for number, (first, second) in enumerate(itertools.pairwise(seen)):
        assert second.m_start - first.m_start > 0.5 * 1.5**number
    gateway.stop()


# -------------------------------------------------------------------- giving up


def test_what_cannot_be_followed_is_given_up_where_an_admin_sees_it(account, start_gateway):
    config = one_account(account, give_up_days=1 / 86400)
    gateway = start_gateway(config, workers=1, worker=True)
    with closing(gateway.client(gateway.new_user()["key"])) as client:
        made = {
            name: Kind(name, gateway, account).start(
                client, Kind(name, gateway, account).input(client)
            )
            for name in ("batch", "fine_tuning")
        }
        account.fail(method="GET", path_prefix=BATCHES, status=404)
        account.fail(method="GET", path_prefix=JOBS, status=401)

        def state(name: str) -> dict[str, Any]:
            path = (BATCHES if name == "batch" else JOBS) + f"/{made[name].id}?include=state"
            answer = gateway.api("GET", path)
            assert answer.status_code == 200, answer.text
            return dict(answer.json()["gateway"])

        def is_lost(name: str) -> bool:
            return bool(state(name)["state"] == "lost")

        for name, each in made.items():
            wait_until(partial(is_lost, name))
            found = state(name)
            assert set(found) == {"state", "deployment", "looks", "last_error"}
            assert found["last_error"]
            assert found["deployment"]
            api = client.batches if name == "batch" else client.fine_tuning.jobs
            # Its owner keeps it, as it was seen last.
            assert api.retrieve(each.id).id == each.id
            assert each.id in [listed.id for listed in api.list()]
        account.upstream.clear_faults()
        assert ended(client, made["batch"].id).status == "completed"
        assert job_ended(client, made["fine_tuning"].id).status == "succeeded"
        assert state("batch")["state"] == "final"
    gateway.stop()


# -------------------------------------------------------------------- other queues


@contextmanager
def redis_queue() -> Iterator[str]:
    url = os.environ.get("MANIFOLD_TEST_REDIS")
    if not url:
        missing("MANIFOLD_TEST_REDIS is not set")
    yield url


@contextmanager
def postgresql_queue() -> Iterator[str]:
    url = os.environ.get("MANIFOLD_TEST_POSTGRES")
    if not url:
        missing("MANIFOLD_TEST_POSTGRES is not set")
    name = f"queue_{uuid.uuid4().hex}"
    server = url.replace("postgresql://", "postgresql+psycopg://")
    admin = create_engine(server, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    try:
        yield url.rpartition("/")[0] + f"/{name}"
    finally:
        with admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        admin.dispose()


def all_ended(api: Any) -> bool:
    return {each.status for each in api.list()} <= {"completed", "succeeded"}


@pytest.mark.parametrize("queue", [redis_queue, postgresql_queue])
def test_the_queue_may_be_another(account, start_gateway, queue):
    with queue() as url:
        gateway = start_gateway(one_account(account, task_queue_url=url), workers=1)
        with closing(gateway.client(gateway.new_user()["key"])) as client, workers(gateway, 2):
            for name in ("batch", "fine_tuning"):
                kind = Kind(name, gateway, account)
                for _ in range(3):
                    kind.start(client, kind.input(client))
            for api in (client.batches, client.fine_tuning.jobs):
                wait_until(partial(all_ended, api))
        gateway.stop()
        assert not (gateway.data_dir / "tasks.db").exists()


def test_a_worker_without_its_queue_s_driver_says_what_to_install(account, tmp_path):
    config = one_account(account, task_queue_url="redis://127.0.0.1:1/0")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    # A module of this name that cannot be imported: as good as none.
    (tmp_path / "redis.py").write_text("raise ImportError\n")
    found = subprocess.run(
        [MANIFOLD, "worker"],
        cwd=tmp_path,
        env={**plain_environment(), "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert found.returncode == 2
    assert "install manifold-gateway[redis]" in found.stderr
    assert "Traceback" not in found.stderr
