"""`manifold serve`: gunicorn and a worker beside it, as one thing to start and to stop."""

from contextlib import closing
from pathlib import Path

import openai
import psutil
import pytest
import yaml

from tests.e2e.batching import ended, one_account, start, upload
from tests.e2e.gateway import MANIFOLD, MASTER_KEY, Account, Upstream, wait_until
from tests.e2e.serve import Served, quoted
from tests.e2e.upstream_jobs import rows


@pytest.fixture(scope="module")
def account(upstream: Upstream) -> Account:
    return upstream.account("served", batch_delay_s=0, job_delay_s=0)


def tree(served: Served, word: str) -> list[psutil.Process]:
    """The processes below it that were started with this word."""
    found = []
    for process in served.processes():
        try:
            if word in process.cmdline():
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.fixture
def place(account: Account, tmp_path: Path) -> Path:
    config = one_account(account, master_key=MASTER_KEY)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def connected(served: Served) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=served.url,
        api_key=MASTER_KEY,
        max_retries=0,
        http_client=openai.DefaultHttpxClient(trust_env=False),
    )


def test_serve_runs_a_worker_and_starts_it_again(account, place):
    with Served(quoted(MANIFOLD, "serve", "--workers", 1), place) as served:
        with closing(connected(served)) as client:

            def followed() -> None:
                made = start(client, upload(client, rows(1, "a"), target_model_names="a"))

                def is_done() -> bool:
                    return (made.id, "completed") in [
                        (batch.id, batch.status) for batch in client.batches.list(limit=1)
                    ]

                wait_until(is_done)

            followed()
            [worker] = tree(served, "worker")
            worker.kill()
            [again] = wait_until(
                lambda: [p for p in tree(served, "worker") if p.pid != worker.pid], 10
            )
            assert again.pid != worker.pid
            followed()
        everything = served.processes()
        assert served.stop() == 0
        psutil.wait_procs(everything, timeout=5)
        assert not any(process.is_running() for process in everything)
        assert '"worker_ended"' in served.log_text()
        # The queue would tell of every tick.
        assert '"logger": "huey' not in served.log_text()


def test_serve_without_a_worker(account, place):
    with Served(quoted(MANIFOLD, "serve", "--workers", 1, "--no-worker"), place) as served:
        assert tree(served, "worker") == []
        with closing(connected(served)) as client:
            made = start(client, upload(client, rows(1, "a"), target_model_names="a"))
            # Whoever looks brings it up to date.
            assert ended(client, made.id).status == "completed"
        assert served.stop() == 0


def test_the_worker_does_not_outlive_serve(account, place):
    with Served(quoted(MANIFOLD, "serve", "--workers", 1), place) as served:
        [worker] = wait_until(lambda: tree(served, "worker"))
        everything = served.processes()
        psutil.Process(worker.ppid()).kill()
        psutil.wait_procs([worker], timeout=10)
        assert not worker.is_running()
        for process in everything:
            if process.is_running():
                process.kill()
        served.kill()
