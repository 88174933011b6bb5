"""A key that is taken away is refused by every worker at once; database trouble is no bad key."""

import contextlib
import re
import secrets
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import requests
from sqlalchemy import make_url

from tests.e2e.conftest import StartGateway
from tests.e2e.gateway import Gateway, Upstream, model, wait_until
from tests.e2e.inside import scratch_postgres
from tests.e2e.tcp_proxy import TcpProxy

WORKERS = 4
CONFIG: dict[str, Any] = {
    "model_list": [{"model_name": "disk", "litellm_params": {"model": "local/disk"}}]
}


class Connections:
    """One open connection to each worker of a gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.by_pid: dict[str, requests.Session] = {}
        spare = []
        end = time.monotonic() + 10
        while len(self.by_pid) < WORKERS and time.monotonic() < end:
            session = requests.Session()
            session.trust_env = False
            pid = self._pid(session)
            if pid in self.by_pid:
                spare.append(session)
            else:
                self.by_pid[pid] = session
        for session in spare:
            session.close()
        assert len(self.by_pid) == WORKERS

    def _pid(self, session: requests.Session) -> str:
        mark = f"who-{secrets.token_hex(8)}"
        url = f"{self.gateway.url}/health/liveness"
        session.get(url, headers={"x-request-id": mark}, timeout=10)
        line = wait_until(
            lambda: re.search(rf'"pid": (\d+), "request_id": "{mark}"', self.gateway.log_text())
        )
        assert line is not None
        return line[1]

    def ask(self, key: str, path: str = "/v1/files") -> list[requests.Response]:
        """The answers of all workers to a GET with this key."""
        headers = {"Authorization": f"Bearer {key}"}
        return [
            session.get(self.gateway.url + path, headers=headers, timeout=60)
            for session in self.by_pid.values()
        ]

    def statuses(self, key: str, path: str = "/v1/files") -> list[int]:
        return [response.status_code for response in self.ask(key, path)]

    def close(self) -> None:
        for session in self.by_pid.values():
            session.close()


@dataclass
class Load:
    """Clients that use keys all the time, and what they were answered since when.

    They rest while nobody is `using` them: they would cost the other tests their time.
    """

    gateway: Gateway
    keys: list[str] = field(default_factory=list)
    answers: list[tuple[float, str, int]] = field(default_factory=list)
    at_work: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def using(self, key: str) -> Iterator[None]:
        self.keys.append(key)
        self.at_work.set()
        try:
            yield
        finally:
            self.at_work.clear()

    def run(self) -> None:
        session = requests.Session()
        session.trust_env = False
        n = 0
        while not self.over.is_set():
            if not self.at_work.wait(0.1):
                continue
            n += 1
            for key in self.keys[-3:]:
                begun = time.monotonic()
                response = session.get(
                    f"{self.gateway.url}/v1/files?limit=1",
                    # Some of these connections stay with one worker, others change it.
                    headers={
                        "Authorization": f"Bearer {key}",
                        **({"Connection": "close"} if n % 2 else {}),
                    },
                    timeout=30,
                )
                self.answers.append((begun, key, response.status_code))
        session.close()

    def since(self, moment: float, key: str) -> Counter[int]:
        """Statuses of the requests with a key that began after a moment."""
        return Counter(s for begun, k, s in self.answers if k == key and begun > moment)


@dataclass
class Setting:
    gateway: Gateway
    workers: Connections
    load: Load


@pytest.fixture(scope="module")
def setting(start_gateway: StartGateway) -> Iterator[Setting]:
    gateway = start_gateway(CONFIG, workers=WORKERS, threads=16)
    workers = Connections(gateway)
    load = Load(gateway)
    threads = [threading.Thread(target=load.run) for _ in range(6)]
    for thread in threads:
        thread.start()
    yield Setting(gateway, workers, load)
    load.over.set()
    for thread in threads:
        thread.join()
    workers.close()


def post(gateway: Gateway, path: str, **body: Any) -> dict[str, Any]:
    response = gateway.api("POST", path, json=body)
    assert response.status_code == 200, response.text
    return dict(response.json())


def block(gateway: Gateway, made: dict[str, Any]) -> None:
    post(gateway, "/key/block", key=made["key"])


def block_by_hash(gateway: Gateway, made: dict[str, Any]) -> None:
    post(gateway, "/key/block", key=made["token"])


def update_to_blocked(gateway: Gateway, made: dict[str, Any]) -> None:
    post(gateway, "/key/update", key=made["key"], blocked=True)


def delete(gateway: Gateway, made: dict[str, Any]) -> None:
    post(gateway, "/key/delete", keys=[made["key"]])


def expire(gateway: Gateway, made: dict[str, Any]) -> None:
    post(gateway, "/key/update", key=made["key"], duration="1s")
    time.sleep(1.05)


def regenerate(gateway: Gateway, made: dict[str, Any]) -> None:
    post(gateway, "/key/regenerate", key=made["key"])


def block_the_user(gateway: Gateway, made: dict[str, Any]) -> None:
    post(gateway, "/user/update", user_id=made["user_id"], blocked=True)


def delete_the_user(gateway: Gateway, made: dict[str, Any]) -> None:
    post(gateway, "/user/delete", user_ids=[made["user_id"]])


WAYS: list[Callable[[Gateway, dict[str, Any]], None]] = [
    block,
    block_by_hash,
    update_to_blocked,
    delete,
    expire,
    regenerate,
    block_the_user,
    delete_the_user,
]


@pytest.mark.parametrize("take_away", WAYS, ids=lambda way: way.__name__)
def test_a_key_that_is_taken_away_is_refused_by_every_worker(
    setting: Setting, take_away: Callable[[Gateway, dict[str, Any]], None]
):
    gateway, workers, load = setting.gateway, setting.workers, setting.load
    made = gateway.new_user()
    key = made["key"]
    with load.using(key):
        assert workers.statuses(key) == [200] * WORKERS
        wait_until(lambda: load.since(0, key)[200] > 20)

        take_away(gateway, made)
        moment = time.monotonic()

        for response in workers.ask(key):
            assert response.status_code == 401
            error = response.json()["error"]
            assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
            assert key not in response.text
        # Never resurrected, whatever was under way at that moment.
        wait_until(lambda: load.since(moment, key)[401] > 100)
    assert set(load.since(moment, key)) == {401}
    assert workers.statuses(key) == [401] * WORKERS
    assert workers.statuses(gateway.master_key) == [200] * WORKERS


def test_a_key_that_is_given_back_works_at_once(setting: Setting):
    gateway, workers = setting.gateway, setting.workers
    made = gateway.new_user()
    for _ in range(5):
        post(gateway, "/key/block", key=made["key"])
        assert workers.statuses(made["key"]) == [401] * WORKERS
        post(gateway, "/key/unblock", key=made["key"])
        assert workers.statuses(made["key"]) == [200] * WORKERS


def test_a_new_secret_works_at_once_and_the_old_one_until_its_grace_is_over(setting: Setting):
    gateway, workers = setting.gateway, setting.workers
    made = gateway.new_user()

    new = post(gateway, "/key/regenerate", key=made["key"], grace_period="1s")

    assert workers.statuses(new["key"]) == [200] * WORKERS
    assert workers.statuses(made["key"]) == [200] * WORKERS
    time.sleep(1.05)
    assert workers.statuses(made["key"]) == [401] * WORKERS
    assert workers.statuses(new["key"]) == [200] * WORKERS


def test_a_model_that_is_taken_away_is_refused_by_every_worker(setting: Setting):
    gateway, workers = setting.gateway, setting.workers
    made = gateway.new_user()
    path = "/v1/files?target_model_names=disk"
    assert workers.statuses(made["key"], path) == [200] * WORKERS

    post(gateway, "/key/update", key=made["key"], models=["another"])

    assert workers.statuses(made["key"], path) == [403] * WORKERS


def test_an_admin_who_is_none_any_more_is_none_at_once(setting: Setting):
    gateway, workers = setting.gateway, setting.workers
    made = gateway.new_user(user_role="proxy_admin")
    path = "/v1/files?user_id=somebody"
    assert workers.statuses(made["key"], path) == [200] * WORKERS

    post(gateway, "/user/update", user_id=made["user_id"], user_role="internal_user")

    assert workers.statuses(made["key"], path) == [403] * WORKERS


# -------------------------------------------------------------------- database trouble


@pytest.fixture(scope="module")
def wired(upstream: Upstream, start_gateway: StartGateway) -> Iterator[tuple[Gateway, TcpProxy]]:
    with scratch_postgres() as url:
        parsed = make_url(url)
        wire = TcpProxy(parsed.host or "127.0.0.1", parsed.port or 5432)
        through = parsed.set(host="127.0.0.1", port=wire.port)
        account = upstream.account("during-trouble")
        gateway = start_gateway(
            {"model_list": [model("cloud", "openai/gpt-4o", account)]},
            workers=WORKERS,
            threads=8,
            database_url=through.render_as_string(hide_password=False),
        )
        with wire:
            yield gateway, wire
            gateway.close_clients()
            gateway.stop()


def outage(response: requests.Response) -> None:
    """It is the database's fault, and worth another try."""
    assert response.status_code == 503, response.text
    assert int(response.headers["Retry-After"]) > 0
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("server_error", "database_unavailable")
    assert "psycopg" not in response.text and "127.0.0.1" not in response.text


def test_a_database_that_is_gone_is_503_and_comes_back_without_a_restart(
    upstream: Upstream, wired: tuple[Gateway, TcpProxy]
):
    gateway, wire = wired
    workers = Connections(gateway)
    made = gateway.new_user()
    key = made["key"]
    assert workers.statuses(key) == [200] * WORKERS
    started = {process.pid for process in gateway.processes()}

    for _ in range(2):
        wire.refuse()
        for each in (key, "sk-" + "unknown" * 6, gateway.master_key):
            for response in workers.ask(each):
                outage(response)
        fields = {"purpose": "user_data", "target_model_names": "cloud"}
        form: dict[str, Any] = {"files": {"file": ("a.txt", b"x")}, "data": fields}
        outage(gateway.api("POST", "/v1/files", **form))
        outage(gateway.api("POST", "/key/block", json={"key": key}))
        outage(gateway.api("POST", "/user/new", json={}))
        assert workers.statuses("", "/health/liveness") == [200] * WORKERS
        for response in workers.ask("", "/health/readiness"):
            assert (response.status_code, response.json()["db"]) == (503, "disconnected")
            assert int(response.headers["Retry-After"]) > 0
        assert gateway.api("GET", "/v1/files", key="").status_code == 401
        assert upstream.requests() == []

        wire.resume()
        assert workers.statuses("", "/health/readiness") == [200] * WORKERS
        assert workers.statuses(key) == [200] * WORKERS
        assert workers.statuses("sk-" + "unknown" * 6) == [401] * WORKERS
        assert workers.statuses(gateway.master_key) == [200] * WORKERS
    assert {process.pid for process in gateway.processes()} == started
    workers.close()


def test_a_database_that_goes_while_a_copy_is_made_leaves_no_copy_unknown(
    upstream: Upstream, wired: tuple[Gateway, TcpProxy]
):
    gateway, wire = wired
    fields = {"purpose": "user_data", "target_model_names": "cloud"}
    fault = upstream.fail("during-trouble", method="POST", handle=True, delay_s=1.0)
    assert fault
    answers: list[requests.Response] = []

    def send() -> None:
        form: dict[str, Any] = {"files": {"file": ("a.txt", b"x")}, "data": fields}
        answers.append(gateway.api("POST", "/v1/files", **form))

    sending = threading.Thread(target=send)
    sending.start()
    wait_until(lambda: upstream.files("during-trouble"))
    wire.refuse()
    sending.join()
    wire.resume()
    upstream.clear_faults()

    outage(answers[0])
    wait_until(lambda: upstream.files("during-trouble") == [])
    assert gateway.api("GET", "/v1/files").json()["data"] == []


def test_a_sqlite_file_that_somebody_locks_can_be_read_and_is_503_to_writers(setting: Setting):
    gateway, workers = setting.gateway, setting.workers
    made = gateway.new_user()
    other = sqlite3.connect(gateway.data_dir / "manifold.db", isolation_level=None)
    with contextlib.closing(other):
        other.execute("BEGIN IMMEDIATE")
        begun = time.monotonic()
        outage(gateway.api("POST", "/key/block", json={"key": made["key"]}))
        assert 5 <= time.monotonic() - begun < 25
        assert workers.statuses(made["key"]) == [200] * WORKERS
        assert workers.statuses("sk-" + "unknown" * 6) == [401] * WORKERS
        assert workers.statuses("", "/health/readiness") == [200] * WORKERS
        other.execute("ROLLBACK")

    post(gateway, "/key/block", key=made["key"])
    assert workers.statuses(made["key"]) == [401] * WORKERS
