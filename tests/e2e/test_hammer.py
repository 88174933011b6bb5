"""Four processes hammer one SQLite file: nothing is locked, lost, doubled or left over.

MANIFOLD_HAMMER_SECONDS says for how long (15 by default).
"""

import os
import random
import statistics
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import openai
import pytest
import requests

from tests.e2e.conftest import StartGateway
from tests.e2e.gateway import Gateway, Upstream, model
from tests.e2e.inside import local_files, rows, spooled

SECONDS = float(os.environ.get("MANIFOLD_HAMMER_SECONDS", "15"))
USERS = 4
CLIENTS_PER_USER = 6
FILES_AT_ONCE = 40
"""About as many files a user keeps while it goes on."""
LONGEST_WAIT_S = 15.0
"""Nobody starves: the busy time-out of SQLite is 30 s."""


@dataclass
class Owner:
    """A user, and what his clients believe to exist: id -> content."""

    key: str
    lock: threading.Lock = field(default_factory=threading.Lock)
    files: dict[str, bytes] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)

    def some(self, rng: random.Random) -> tuple[str, bytes] | None:
        with self.lock:
            return rng.choice(list(self.files.items())) if self.files else None

    def pop(self, rng: random.Random) -> str | None:
        with self.lock:
            if not self.files:
                return None
            file_id = rng.choice(list(self.files))
            del self.files[file_id]
            return file_id


class Hammer:
    """One client that goes on until told to stop."""

    def __init__(self, gateway: Gateway, owner: Owner, seed: int, end: float) -> None:
        self.gateway, self.owner, self.end = gateway, owner, end
        self.rng = random.Random(seed)
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.headers["Authorization"] = f"Bearer {owner.key}"
        self.statuses: Counter[tuple[str, int]] = Counter()
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.wrong: list[str] = []

    def run(self) -> None:
        actions = (self.upload, self.delete, self.list, self.retrieve, self.content)
        try:
            while time.monotonic() < self.end:
                many = len(self.owner.files) >= FILES_AT_ONCE
                weights = (2 if many else 6, 6 if many else 2, 2, 2, 2)
                self.rng.choices(actions, weights)[0]()
        except Exception as error:
            self.wrong.append(repr(error))
        finally:
            self.session.close()

    def ask(self, what: str, method: str, path: str, expected=(200,), **more) -> requests.Response:
        begun = time.monotonic()
        response = self.session.request(
            method, f"{self.gateway.url}/v1/files{path}", timeout=60, **more
        )
        self.seconds[what].append(time.monotonic() - begun)
        self.statuses[what, response.status_code] += 1
        if response.status_code not in expected:
            self.wrong.append(f"{what}: {response.status_code} {response.text[:300]}")
        return response

    def upload(self) -> None:
        content = self.rng.randbytes(self.rng.randrange(1, 5000))
        response = self.ask(
            "upload",
            "POST",
            "",
            files={"file": ("hammer.bin", content)},
            data={"purpose": "user_data", "target_model_names": "cloud,disk"},
        )
        if response.status_code == 200:
            with self.owner.lock:
                self.owner.files[response.json()["id"]] = content

    def delete(self) -> None:
        file_id = self.owner.pop(self.rng)
        if file_id is None:
            return
        response = self.ask("delete", "DELETE", f"/{file_id}")
        if response.status_code == 200:
            with self.owner.lock:
                self.owner.deleted.add(file_id)

    def list(self) -> None:
        limit = self.rng.choice((10, 100, 10_000))
        seen = [each["id"] for each in self.ask("list", "GET", f"?limit={limit}").json()["data"]]
        if len(seen) != len(set(seen)):
            self.wrong.append("a list that names a file twice")

    def retrieve(self) -> None:
        if chosen := self.owner.some(self.rng):
            # Somebody may have deleted it since.
            self.ask("retrieve", "GET", f"/{chosen[0]}", (200, 404))

    def content(self) -> None:
        if chosen := self.owner.some(self.rng):
            response = self.ask("content", "GET", f"/{chosen[0]}/content", (200, 404))
            if response.status_code == 200 and response.content != chosen[1]:
                self.wrong.append("other content than was uploaded")


@pytest.fixture(scope="module")
def hammered(upstream: Upstream, start_gateway: StartGateway) -> tuple[Gateway, list[Owner]]:
    account = upstream.account("hammered", download_any=True)
    config = {
        "model_list": [
            model("cloud", "openai/gpt-4o", account),
            {"model_name": "disk", "litellm_params": {"model": "local/disk"}},
        ]
    }
    gateway = start_gateway(config, workers=4, threads=16)
    owners = [Owner(gateway.new_user(user_id=f"user-{n}")["key"]) for n in range(USERS)]
    return gateway, owners


def test_four_processes_hammer_one_sqlite_file(
    upstream: Upstream, hammered: tuple[Gateway, list[Owner]]
):
    gateway, owners = hammered
    end = time.monotonic() + SECONDS
    clients = [
        Hammer(gateway, owner, seed, end)
        for seed, owner in enumerate(owner for owner in owners for _ in range(CLIENTS_PER_USER))
    ]
    threads = [threading.Thread(target=client.run) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    longest = report(clients)
    assert [wrong for client in clients for wrong in client.wrong] == []
    log = gateway.log_text()
    for sign in ("locked", "unexpected_error", "Traceback", "WORKER TIMEOUT", '"status": 5'):
        assert sign not in log
    assert longest < LONGEST_WAIT_S
    compare(upstream, gateway, owners)


def report(clients: list[Hammer]) -> float:
    """Print what it was like; the longest of all waits."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for client in clients:
        for what, found in client.seconds.items():
            seconds[what] += found
    total = sum(len(found) for found in seconds.values())
    print(f"\n{total} requests in {SECONDS:.0f} s, {total / SECONDS:.0f} a second")
    for what, found in sorted(seconds.items()):
        cuts = statistics.quantiles(found, n=100)
        print(
            f"{what:9} {len(found):6}  p50 {cuts[49] * 1000:6.1f} ms  "
            f"p99 {cuts[98] * 1000:7.1f} ms  max {max(found) * 1000:7.1f} ms"
        )
    statuses = sum((client.statuses for client in clients), Counter[tuple[str, int]]())
    print({f"{what} {status}": count for (what, status), count in sorted(statuses.items())})
    return max(max(found) for found in seconds.values())


def compare(upstream: Upstream, gateway: Gateway, owners: list[Owner]) -> None:
    """What clients believe == the list == the rows == the copies that there are."""
    believed = {file_id for owner in owners for file_id in owner.files}
    assert len(believed) > 20
    for owner in owners:
        listed = [file.id for file in gateway.client(owner.key).files.list(limit=50)]
        assert sorted(listed) == sorted(owner.files)

    inside = rows(gateway)
    columns = {"files": 1, "copies": 5}  # public_id, deployment_file_id
    ready = [row for row in inside["files"] if "ready" in row]
    assert {row[columns["files"]] for row in ready} == believed
    assert {row[columns["files"]] for row in inside["files"]} - believed == {
        file_id for owner in owners for file_id in owner.deleted
    }
    assert not [row for row in inside["files"] if not {"ready", "deleted"} & set(row)]
    living = [row for row in inside["copies"] if "ready" in row]
    assert not [row for row in inside["copies"] if not {"ready", "deleted"} & set(row)]
    assert len(living) == 2 * len(ready)
    kept = {row[columns["copies"]] for row in living}
    assert kept == {each["id"] for each in upstream.files("hammered")} | local_files(gateway)
    assert len(upstream.files("hammered")) == len(local_files(gateway)) == len(ready)
    assert spooled(gateway) == []


def test_what_was_left_can_be_read_and_deleted(
    upstream: Upstream, hammered: tuple[Gateway, list[Owner]]
):
    gateway, owners = hammered
    for owner in owners:
        client: openai.OpenAI = gateway.client(owner.key)
        for file_id, content in owner.files.items():
            assert client.files.content(file_id).read() == content
            assert client.files.delete(file_id).deleted
        assert list(client.files.list()) == []

    assert upstream.files("hammered") == []
    assert local_files(gateway) == set()
    assert list((gateway.data_dir / "local").rglob("*.bin")) == []
