"""The database goes away and comes back: 503 with Retry-After meanwhile, and nobody restarts."""

import json
import os
import resource
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
import pytest
import requests
import yaml
from sqlalchemy import create_engine, make_url, text

from app.db.engine import BUSY_TIMEOUT_SECONDS
from tests.e2e import inside
from tests.e2e.asking import ask
from tests.e2e.batching import looks, one_account, start, upload, workers
from tests.e2e.conftest import StartGateway
from tests.e2e.gateway import (
    MANIFOLD,
    MASTER_KEY,
    Account,
    Gateway,
    Server,
    Upstream,
    model,
    wait_until,
)
from tests.e2e.serve import Served, quoted
from tests.e2e.tcp_proxy import TcpProxy
from tests.e2e.upstream_jobs import rows

MB = 1024 * 1024
RECOVERY_S = 5.0
AWAY_S = 5.0
POOL = 3
WORKERS = 2


@dataclass
class Behind:
    """A gateway and its worker, with a relay between them and their PostgreSQL."""

    gateway: Gateway
    account: Account
    proxy: TcpProxy
    server_url: str
    name: str
    key: str
    file_id: str
    other_id: str

    def sql(self, statement: str) -> int:
        """The one number that the server answers, past the relay."""
        engine = create_engine(self.server_url, isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection:
                found = connection.execute(text(statement), {"name": self.name}).scalar()
                return int(found or 0)
        finally:
            engine.dispose()

    def connections(self) -> int:
        return self.sql("SELECT count(*) FROM pg_stat_activity WHERE application_name = :name")

    def terminate(self) -> int:
        """End every session of the gateway on the server; how many there were."""
        return self.sql(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            "WHERE application_name = :name"
        )

    def asked(self) -> dict[str, tuple[str, str, dict[str, Any]]]:
        """One request for everything that needs the database."""
        form = {
            "files": {"file": ("a.txt", b"content")},
            "data": {"purpose": "user_data", "target_model_names": "a"},
        }
        announced = {"filename": "b", "purpose": "user_data", "bytes": 5, "mime_type": "text/plain"}
        batch = {"input_file_id": self.file_id, "endpoint": "/v1/chat/completions"}
        chat = {"model": "a", "messages": ask(self.file_id)}
        file = f"/v1/files/{self.file_id}"
        return {
            "list": ("GET", "/v1/files", {}),
            "upload": ("POST", "/v1/files", form),
            "retrieve": ("GET", file, {}),
            "content": ("GET", f"{file}/content", {}),
            "delete": ("DELETE", f"/v1/files/{self.other_id}", {}),
            "announce": ("POST", "/v1/uploads", {"json": announced}),
            "batches": ("GET", "/v1/batches", {}),
            "batch": ("POST", "/v1/batches", {"json": {**batch, "completion_window": "24h"}}),
            "jobs": ("GET", "/v1/fine_tuning/jobs", {}),
            "chat": ("POST", "/v1/chat/completions", {"json": chat}),
            "models": ("GET", "/v1/models", {}),
            "key": ("GET", "/key/info", {}),
            "new key": ("POST", "/key/generate", {"json": {}}),
            "health": ("GET", "/health", {}),
        }

    def ask(self, what: str, key: str | None = None) -> requests.Response:
        method, path, more = self.asked()[what]
        return self.gateway.api(method, path, key=self.key if key is None else key, **more)

    def is_well(self) -> bool:
        return all(self.ask("list").status_code == 200 for _ in range(2 * WORKERS * POOL))


@pytest.fixture(scope="module")
def behind(upstream: Upstream, start_gateway: StartGateway) -> Iterator[Behind]:
    account = upstream.account("distant", download_any=True, batch_delay_s=0)
    with inside.scratch_postgres() as direct:
        server = make_url(direct)
        with TcpProxy(server.host or "127.0.0.1", server.port or 5432) as proxy:
            name = f"manifold-{proxy.port}"
            far = server.set(host="127.0.0.1", port=proxy.port)
            far = far.update_query_dict({"application_name": name})
            url = far.render_as_string(hide_password=False)
            queue = far.set(drivername="postgresql").render_as_string(hide_password=False)
            config = one_account(account, database_pool_size=POOL, task_queue_url=queue)
            config["model_list"].append(
                {"model_name": "disk", "litellm_params": {"model": "local/disk"}}
            )
            gateway = start_gateway(config, workers=WORKERS, threads=16, database_url=url)
            key = gateway.new_user(user_id="alice")["key"]
            with closing(gateway.client(key)) as client:
                ids = [upload(client, rows(2, "a"), target_model_names="a") for _ in range(2)]
            yield Behind(gateway, account, proxy, direct, name, key, *ids)
            gateway.stop()


def events(server: Server) -> Counter[str]:
    """How often each event stands in a log."""
    lines = server.log_text().splitlines()
    return Counter(json.loads(line)["event"] for line in lines if line.startswith("{"))


def assert_unavailable(response: requests.Response) -> None:
    assert response.status_code == 503, response.text
    assert response.headers["Retry-After"] == "2"
    if response.headers["Content-Type"] == "application/json" and "error" in response.json():
        error = response.json()["error"]
        assert (error["type"], error["code"]) == ("server_error", "database_unavailable")


# ------------------------------------------------------- the number of connections


def test_no_process_takes_more_connections_than_it_may(behind):
    most, over = [0], threading.Event()

    def watch() -> None:
        while not over.is_set():
            most[0] = max(most[0], behind.connections())

    watching = threading.Thread(target=watch)
    watching.start()
    found: Counter[int] = Counter()

    def ask_often() -> None:
        for what in ("list", "retrieve", "models", "upload", "list"):
            found[behind.ask(what).status_code] += 1

    clients = [threading.Thread(target=ask_often) for _ in range(32)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    over.set()
    watching.join()
    assert found == {200: 160}
    assert WORKERS < most[0] <= WORKERS * POOL


# ------------------------------------------------------- PostgreSQL


class Asking:
    """Clients that go on asking until told to stop."""

    def __init__(self, behind: Behind) -> None:
        self._behind = behind
        self._over = threading.Event()
        self.found: list[tuple[float, requests.Response]] = []
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(6)]

    def _run(self, number: int) -> None:
        what = ("list", "retrieve", "upload", "models", "key", "content")[number]
        while not self._over.is_set():
            begun = time.monotonic()
            self.found.append((begun, self._behind.ask(what)))

    def __enter__(self) -> "Asking":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def test_sessions_that_the_server_ends_cost_a_503_at_most(behind):
    with Asking(behind) as asking:
        for _ in range(4):
            time.sleep(0.5)
            assert behind.terminate() > 0
            behind.proxy.cut()
        last = time.monotonic()
        time.sleep(RECOVERY_S + 1)
    found = Counter(response.status_code for _, response in asking.found)
    assert set(found) <= {200, 503}
    assert found[200] > 50
    for begun, response in asking.found:
        if response.status_code == 503:
            assert_unavailable(response)
            assert begun < last + RECOVERY_S
    assert "Traceback" not in behind.gateway.log_text()


def test_a_server_that_is_away_for_some_seconds(behind):
    gateway, account = behind.gateway, behind.account
    before = events(gateway)
    with (
        closing(gateway.client(behind.key)) as client,
        account.changed(chunks=25, chunk_delay_s=0.4, batch_stay="in_progress"),
        workers(gateway, 1) as [worker],
    ):
        made = start(client, behind.file_id)
        raw = account.batches()[-1]["id"]
        wait_until(lambda: looks(account, raw), 20)  # The worker is at work.
        stream = client.chat.completions.create(model="a", messages=ask(), stream=True)
        chunks = iter(stream)
        next(chunks)
        begun = time.monotonic()
        behind.proxy.refuse()
        for what in behind.asked():
            assert_unavailable(behind.ask(what))
        # Nobody is told that his key is wrong, whether or not it is.
        assert_unavailable(behind.ask("list", key="sk-unknown-0123456789"))
        assert gateway.api("GET", "/health/liveness", key="").status_code == 200
        readiness = gateway.api("GET", "/health/readiness", key="")
        assert (readiness.status_code, readiness.json()["db"]) == (503, "disconnected")
        assert_unavailable(readiness)
        assert gateway.api("GET", "/v1/files", key="").status_code == 401
        time.sleep(max(0.0, AWAY_S - (time.monotonic() - begun)))
        assert_unavailable(behind.ask("list"))
        behind.proxy.resume()
        back = time.monotonic()
        wait_until(behind.is_well, RECOVERY_S)
        assert time.monotonic() - back < RECOVERY_S
        # What was under way did not need it.
        assert len(list(chunks)) >= 24
        account.upstream.control("PATCH", "/accounts", {"name": account.name, "batch_stay": None})
        wait_until(lambda: client.batches.list().data[0].status == "completed")
        assert [batch["id"] for batch in account.batches()].count(raw) == 1
        assert client.batches.list().data[0].id == made.id
        assert worker.running
        said = events(worker)
    for log in (gateway.log_text(), worker.log_text()):
        assert "Traceback" not in log
    # One line for each of the two that were away.
    assert said["database_unavailable"] <= 1
    assert said["queue_away"] == 1
    assert events(gateway)["unexpected_error"] == before["unexpected_error"] == 0
    for what in behind.asked():
        assert behind.ask(what).status_code in (200, 400), what


def test_a_worker_waits_for_its_queue(behind, upstream, start_gateway):
    """It starts while PostgreSQL is away; its own database is another."""
    account = upstream.account("patient", batch_delay_s=0)
    with inside.scratch_postgres() as direct:
        server = make_url(direct)
        with TcpProxy(server.host or "127.0.0.1", server.port or 5432) as proxy:
            far = server.set(drivername="postgresql", host="127.0.0.1", port=proxy.port)
            proxy.refuse()
            url = far.render_as_string(hide_password=False)
            gateway = start_gateway(one_account(account, task_queue_url=url), workers=1)
            with closing(gateway.client(gateway.new_user()["key"])) as client:
                start(client, upload(client, rows(1, "a"), target_model_names="a"))
                with workers(gateway, 1) as [worker]:
                    wait_until(lambda: events(worker)["queue_away"])
                    time.sleep(2)
                    assert worker.running
                    proxy.resume()
                    wait_until(lambda: [b.status for b in client.batches.list()] == ["completed"])
                assert events(worker)["queue_away"] == 1
                assert "Traceback" not in worker.log_text()
                proxy.refuse()
                with workers(gateway, 1) as [impatient]:
                    wait_until(lambda: events(impatient)["queue_away"] == 2)
                    # Ended by SIGTERM while it waits, with exit status 0.
            gateway.stop()


def settled(served: Served) -> list[psutil.Process]:
    """Supervisor, gunicorn, its worker and the background worker; nothing while one comes or goes.

    A background worker that begins runs programs to find its libraries.
    """
    first = served.processes()
    time.sleep(0.5)
    return first if len(first) == 4 and served.processes() == first else []


def test_processes_that_die_meanwhile_are_replaced(tmp_path, upstream):
    """And none that starts without a database ends those that are waiting for it."""
    account = upstream.account("replaced")
    with inside.scratch_postgres() as direct:
        server = make_url(direct)
        with TcpProxy(server.host or "127.0.0.1", server.port or 5432) as proxy:
            far = server.set(host="127.0.0.1", port=proxy.port)
            url = far.render_as_string(hide_password=False)
            config = one_account(account, master_key=MASTER_KEY, database_url=url)
            (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
            with Served(quoted(MANIFOLD, "serve", "--workers", 1), tmp_path) as served:

                def status() -> int | None:
                    try:
                        answer = requests.get(f"{served.url}/health/readiness", timeout=5)
                    except requests.ConnectionError:
                        return None
                    return answer.status_code

                processes = wait_until(lambda: settled(served))
                proxy.refuse()
                parents = {process.ppid() for process in processes}
                killed = {each.pid for each in processes if each.pid not in parents}
                for process in processes:
                    if process.pid in killed:
                        process.kill()
                wait_until(lambda: status() == 503)
                proxy.resume()
                wait_until(lambda: status() == 200)
                # The listener, and who watches over both, are who they were.
                assert len(killed) == 2
                wait_until(lambda: killed.isdisjoint({each.pid for each in served.processes()}))
                wait_until(lambda: len(served.processes()) == len(processes))
                after = {each.pid for each in served.processes()}
                assert {each.pid for each in processes} - killed <= after
                assert "Traceback" not in served.log_text()
                assert served.stop() == 0


# ------------------------------------------------------- SQLite


@dataclass
class Small:
    """A gateway on one SQLite file."""

    gateway: Gateway
    key: str

    def upload(self) -> requests.Response:
        return self.gateway.api(
            "POST",
            "/v1/files",
            key=self.key,
            files={"file": ("a.txt", os.urandom(20))},
            data={"purpose": "user_data", "target_model_names": "disk"},
        )

    def new_key(self) -> requests.Response:
        return self.gateway.api("POST", "/key/generate", key=self.key, json={})

    def read(self) -> requests.Response:
        return self.gateway.api("GET", "/v1/files", key=self.key)


@pytest.fixture(scope="module")
def small(upstream: Upstream, start_gateway: StartGateway) -> Small:
    account = upstream.account("small", batch_delay_s=0)
    config = {
        "model_list": [
            model("a", "openai/gpt-4o", account),
            {"model_name": "disk", "litellm_params": {"model": "local/disk"}},
        ]
    }
    gateway = start_gateway(config, workers=2, worker=True)
    return Small(gateway, gateway.new_user(user_id="alice")["key"])


@contextmanager
def locked(gateway: Gateway) -> Iterator[None]:
    """Somebody else's tool holds the write lock."""
    with closing(sqlite3.connect(gateway.data_dir / "manifold.db", timeout=30)) as other:
        other.isolation_level = None
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


def test_a_file_that_is_locked_for_long(small):
    found: list[requests.Response] = []
    begun = time.monotonic()
    with locked(small.gateway):
        askers = [
            threading.Thread(target=lambda ask=ask: found.append(ask()))
            for ask in (small.upload, small.new_key) * 8
        ]
        for asker in askers:
            asker.start()
        time.sleep(1)
        # Readers are not held up.
        for _ in range(10):
            assert small.read().status_code == 200
        for asker in askers:
            asker.join()
    # Nobody waited for the others to give up first, one after another.
    assert time.monotonic() - begun < 3 * BUSY_TIMEOUT_SECONDS
    assert len(found) == 16
    for response in found:
        assert_unavailable(response)
    wait_until(lambda: small.upload().status_code == 200, RECOVERY_S)
    assert small.new_key().status_code == 200
    assert small.gateway.worker is not None and small.gateway.worker.running
    assert "Traceback" not in small.gateway.log_text() + small.gateway.worker.log_text()


@contextmanager
def full(gateway: Gateway, size: int = 8192) -> Iterator[None]:
    """No file of the gateway's grows beyond `size` bytes, as when its disk has no room."""
    changed: list[tuple[psutil.Process, tuple[int, int]]] = []
    for process in gateway.processes():
        before = process.rlimit(resource.RLIMIT_FSIZE)
        process.rlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        changed.append((process, before))
    try:
        yield
    finally:
        for process, before in changed:
            process.rlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_without_room(small):
    assert small.upload().status_code == 200
    with full(small.gateway):
        for _ in range(3):
            assert_unavailable(small.upload())
            assert_unavailable(small.new_key())
            assert small.read().status_code == 200
    assert small.gateway.worker is not None and small.gateway.worker.running
    wait_until(lambda: small.upload().status_code == 200, RECOVERY_S)
    assert small.new_key().status_code == 200
    files = small.read().json()["data"]
    for file in files:
        content = small.gateway.api("GET", f"/v1/files/{file['id']}/content", key=small.key)
        assert (content.status_code, len(content.content)) == (200, file["bytes"])
    assert inside.spooled(small.gateway) == []


def test_a_spool_without_room(small):
    """The database still has some: it is the file that is too large for what is left."""
    room = 32 * MB
    before = small.read().json()
    with full(small.gateway, room):
        response = small.gateway.api(
            "POST",
            "/v1/files",
            key=small.key,
            files={"file": ("large.bin", bytes(room + MB))},
            data={"purpose": "user_data", "target_model_names": "a,disk"},
        )
        assert (response.status_code, response.json()["error"]["code"]) == (507, "storage_full")
        assert inside.spooled(small.gateway) == []
        assert small.read().json() == before
        assert small.upload().status_code == 200
