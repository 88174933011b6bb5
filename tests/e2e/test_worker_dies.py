"""A worker that dies is replaced, and one that is only slow is not."""

import time
from contextlib import closing

import pytest

from tests.e2e.batching import BATCHES, looks, one_account, start, upload, workers
from tests.e2e.gateway import Account, Upstream, wait_until
from tests.e2e.upstream_jobs import by_custom_id, custom_ids, rows

WITHIN = 30.0
"""Seconds after which another worker has taken over, at the latest."""
LEASE_S = 4


@pytest.fixture(scope="module")
def account(upstream: Upstream) -> Account:
    return upstream.account("mourned", batch_delay_s=0, job_delay_s=0)


def test_another_worker_takes_over_from_one_that_dies(account, upstream, start_gateway):
    gateway = start_gateway(one_account(account, lease_seconds=LEASE_S), workers=1)
    with closing(gateway.client(gateway.new_user()["key"])) as client:
        file_id = upload(client, rows(3, "a"), target_model_names="a")
        with account.changed(batch_stay="in_progress"):
            made = start(client, file_id)
        raw = account.batches()[-1]["id"]
        account.fail(method="GET", path_prefix=f"{BATCHES}/", times=1, delay_s=60)
        with workers(gateway, 3) as running:
            [seen] = wait_until(lambda: looks(account, raw))
            ports = {
                connection.laddr.port: worker
                for worker in running
                for process in worker.processes()
                for connection in process.net_connections("tcp")
            }
            ports[seen.connection].kill()
            killed = time.monotonic()
            upstream.clear_faults()

            def listed() -> bool:
                return [b.status for b in client.batches.list()] == ["completed"]

            wait_until(listed, WITHIN)
            assert time.monotonic() - killed < WITHIN
            assert len([worker for worker in running if worker.running]) == 2
        done = client.batches.retrieve(made.id)
        answers = by_custom_id(client.files.content(done.output_file_id).read())
        assert set(answers) == set(custom_ids(3))


def test_a_look_that_takes_long_is_still_the_only_one(account, start_gateway):
    """Longer than its lease: who is at work is not taken for dead."""
    gateway = start_gateway(one_account(account, lease_seconds=LEASE_S), workers=1)
    with closing(gateway.client(gateway.new_user()["key"])) as client:
        file_id = upload(client, rows(1, "a"), target_model_names="a")
        with account.changed(batch_stay="in_progress"):
            start(client, file_id)
        raw = account.batches()[-1]["id"]
        account.fail(method="GET", path_prefix=f"{BATCHES}/", times=1, delay_s=LEASE_S + 3)
        with workers(gateway, 2):
            wait_until(lambda: [b.status for b in client.batches.list()] == ["completed"])
        first, *rest = looks(account, raw)
        assert not any(first.overlaps(each) for each in rest)
