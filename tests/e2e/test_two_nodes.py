"""Two nodes behind one nginx on one PostgreSQL behave as one, also when one of them is killed."""

import itertools
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import openai
import pytest
import requests

from tests.e2e import inside
from tests.e2e.asking import ask, echo
from tests.e2e.batching import QUICK, looks, start, upload
from tests.e2e.conftest import StartGateway, missing
from tests.e2e.gateway import Account, Gateway, Server, Upstream, model, wait_until
from tests.e2e.nginx import Nginx, is_installed
from tests.e2e.upstream_jobs import rows

REVOKED_WITHIN_S = 10.0
UPLOADS = 100
LEASE_S = 5


@dataclass
class Nodes:
    """Each with a data directory of its own: what they share is the database and nginx."""

    first: Gateway
    second: Gateway
    nginx: Nginx
    account: Account
    other: Account

    @property
    def both(self) -> tuple[Gateway, Gateway]:
        return self.first, self.second

    def api(self, method: str, path: str, key: str, **more: Any) -> requests.Response:
        """A request to whichever node nginx chooses."""
        return self.nginx.api(method, path, headers={"Authorization": f"Bearer {key}"}, **more)

    def admin(self, path: str, **fields: Any) -> dict[str, Any]:
        response = self.api("POST", path, self.first.master_key, json=fields)
        assert response.status_code == 200, response.text
        return dict(response.json())

    @contextmanager
    def workers(self) -> Iterator[list[Server]]:
        """One background worker on each node."""
        running = [node.start_worker(f"worker-{node.name}") for node in self.both if node.running]
        try:
            yield running
        finally:
            for worker in running:
                worker.stop()

    def where(self, request_ids: list[str]) -> Counter[str]:
        """How many of these requests each node has logged."""
        return Counter({n.name: sum(i in n.log_text() for i in request_ids) for n in self.both})

    def left(self, acknowledged: set[str]) -> set[str]:
        """What is at the upstream and belongs to no file that a client knows of."""
        return {file["id"] for file in self.account.files()} - acknowledged


@pytest.fixture(scope="module")
def nodes(
    upstream: Upstream, start_gateway: StartGateway, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Nodes]:
    if not is_installed():
        missing("nginx is not installed")
    account = upstream.account("shared", download_any=True, batch_delay_s=0)
    other = upstream.account("shared-2", download_any=True)
    with inside.scratch_postgres() as url:
        config = {
            "model_list": [
                model("a", "openai/gpt-4o", account),
                model("b", "openai/gpt-4o", other),
            ],
            "general_settings": {
                **QUICK,
                "lease_seconds": LEASE_S,
                "database_pool_size": 8,
                "task_queue_url": url.replace("+psycopg", ""),
            },
        }
        more: dict[str, Any] = {"workers": 2, "threads": 64, "database_url": url}
        first = start_gateway(config, name="first", **more)
        second = start_gateway(config, name="second", **more)
        addresses = [node.url.removeprefix("http://") for node in (first, second)]
        with Nginx(tmp_path_factory.mktemp("nginx"), *addresses) as nginx:
            yield Nodes(first, second, nginx, account, other)
        for node in (first, second):
            node.close_clients()
            if node.running:
                node.stop()


@pytest.fixture
def client(nodes: Nodes) -> Iterator[openai.OpenAI]:
    with closing(nodes.nginx.client(nodes.admin("/user/new")["key"])) as client:
        yield client


def test_requests_go_to_both(nodes):
    ids = [f"spread-{secrets.token_hex(8)}" for _ in range(20)]
    for each in ids:
        found = nodes.nginx.api("GET", "/health/liveness", headers={"x-request-id": each})
        assert found.headers["x-request-id"] == each
    wait_until(lambda: sum(nodes.where(ids).values()) == len(ids))
    assert min(nodes.where(ids).values()) >= 5


# ------------------------------------------------------- users and keys


TAKEN_AWAY: dict[str, Callable[[Nodes, dict[str, Any]], Any]] = {
    "blocked": lambda nodes, made: nodes.admin("/key/block", key=made["key"]),
    "deleted": lambda nodes, made: nodes.admin("/key/delete", keys=[made["key"]]),
    "renewed": lambda nodes, made: nodes.admin("/key/regenerate", key=made["key"]),
    "its user blocked": lambda nodes, made: nodes.admin(
        "/user/update", user_id=made["user_id"], blocked=True
    ),
    "its user deleted": lambda nodes, made: nodes.admin("/user/delete", user_ids=[made["user_id"]]),
}


@pytest.mark.parametrize("how", TAKEN_AWAY)
def test_a_key_that_is_taken_away_is_refused_by_both(nodes, how):
    made = nodes.admin("/user/new")
    for node in nodes.both * 4:
        assert node.api("GET", "/v1/files", key=made["key"]).status_code == 200
    TAKEN_AWAY[how](nodes, made)
    since = time.monotonic()

    def refused() -> bool:
        return all(
            node.api("GET", "/v1/files", key=made["key"]).status_code == 401
            for node in nodes.both * 8
        )

    wait_until(refused, REVOKED_WITHIN_S)
    assert time.monotonic() - since < REVOKED_WITHIN_S


def test_a_user_is_made_once(nodes):
    """The same name at the same moment, from many sides: one gets a key, the others are told."""
    name = f"once-{secrets.token_hex(4)}"

    def make(_number: int) -> int:
        response = nodes.api("POST", "/user/new", nodes.first.master_key, json={"user_id": name})
        return int(response.status_code)

    with ThreadPoolExecutor(12) as pool:
        found = Counter(pool.map(make, range(12)))
    assert found == {200: 1, 409: 11}


def test_limits_hold_for_both_together(nodes):
    made = nodes.admin("/key/generate", rpm_limit=30)

    def ask_one(number: int) -> int:
        node = nodes.both[number % 2]
        return int(node.api("GET", "/v1/files", key=made["key"]).status_code)

    with ThreadPoolExecutor(12) as pool:
        assert Counter(pool.map(ask_one, range(80))) == {200: 30, 429: 50}


# ------------------------------------------------------- files


def test_a_file_is_the_same_at_both(nodes, client):
    content = secrets.token_bytes(100_000)
    made = client.files.create(
        file=("a.bin", content), purpose="user_data", extra_body={"target_model_names": "a,b"}
    )
    key = client.api_key
    for node in nodes.both:
        with closing(node.client(key)) as direct:
            assert direct.files.retrieve(made.id) == made
            assert direct.files.content(made.id).read() == content
            assert [file.id for file in direct.files.list()] == [made.id]
            answer = direct.chat.completions.create(model="b", messages=ask(made.id))
            assert echo(answer)["account"] == "shared-2"
    with closing(nodes.second.client(key)) as direct:
        assert direct.files.delete(made.id).deleted
    with closing(nodes.first.client(key)) as direct:
        with pytest.raises(openai.NotFoundError):
            direct.files.retrieve(made.id)
        assert list(direct.files.list()) == []


def test_lists_are_the_same_at_both(nodes, client):
    with ThreadPoolExecutor(8) as pool:
        made = list(
            pool.map(
                lambda n: upload(client, b"x", "user_data", f"{n}.txt", target_model_names="a"),
                range(40),
            )
        )
    pages = []
    for node in nodes.both:
        with closing(node.client(client.api_key)) as direct:
            pages.append([file.id for file in direct.files.list(limit=7)])
    # Every page from the other node than the page before.
    turns, walked, after = itertools.cycle(nodes.both), [], ""
    while True:
        query = f"?limit=7{after}"
        page = next(turns).api("GET", f"/v1/files{query}", key=client.api_key).json()
        walked += [file["id"] for file in page["data"]]
        if not page["has_more"]:
            break
        after = f"&after={page['last_id']}"
    assert pages[0] == pages[1] == walked
    assert sorted(walked) == sorted(made)


def test_parts_that_went_to_the_other_node_are_missed_by_name(nodes, client):
    """The parts of an upload are on one node's disk: nginx must keep them together, or else."""
    announced = {
        **{"filename": "b", "purpose": "user_data", "bytes": 6, "mime_type": "text/plain"},
        "target_model_names": "a",
    }
    made = nodes.first.api("POST", "/v1/uploads", key=client.api_key, json=announced).json()
    parts = []
    for node, piece in ((nodes.first, b"abc"), (nodes.second, b"def")):
        path = f"/v1/uploads/{made['id']}/parts"
        part = node.api("POST", path, key=client.api_key, files={"data": ("p", piece)})
        assert part.status_code == 200, part.text
        parts.append(part.json()["id"])
    path = f"/v1/uploads/{made['id']}/complete"
    answer = nodes.first.api("POST", path, key=client.api_key, json={"part_ids": parts})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "parts_lost"


# ------------------------------------------------------- batches


def test_each_batch_is_followed_by_one_worker_at_a_time(nodes, client):
    made = []
    with nodes.workers(), nodes.account.changed(batch_stay="in_progress"):
        for _ in range(10):
            made.append(start(client, upload(client, rows(2, "a"), target_model_names="a")).id)
        raws = [batch["id"] for batch in nodes.account.batches()]
        assert len(raws) == len(made)
        wait_until(lambda: all(len(looks(nodes.account, raw)) >= 2 for raw in raws))
        nodes.account.upstream.control("PATCH", "/accounts", {"name": "shared", "batch_stay": None})
        wait_until(lambda: {batch.status for batch in client.batches.list()} == {"completed"})
    for raw in raws:
        for before, after in itertools.pairwise(looks(nodes.account, raw)):
            assert not before.overlaps(after)
            assert before.m_end is not None
            # Never sooner than the shortest pause, whoever it was.
            assert after.m_start - before.m_end > 0.3
    assert sorted(batch.id for batch in client.batches.list()) == sorted(made)
    # What came of each has one row, and both nodes name it alike.
    outputs = [batch.output_file_id for batch in client.batches.list()]
    assert len(set(outputs)) == len(made) and None not in outputs
    for node in nodes.both:
        with closing(node.client(client.api_key)) as direct:
            listed = [file.id for file in direct.files.list(purpose="batch_output")]
            assert sorted(listed) == sorted(str(each) for each in outputs)
            assert {b.output_file_id for b in direct.batches.list()} == set(outputs)


# ------------------------------------------------------- a node that dies


def test_every_file_that_was_acknowledged_outlives_a_killed_node(nodes):
    key = nodes.admin("/user/new")["key"]
    contents = [secrets.token_bytes(20_000) for _ in range(UPLOADS)]
    before = {file["id"] for file in nodes.account.files()}

    def send(content: bytes) -> str | None:
        """The new file's id, None when the client was told of a failure or of nothing."""
        try:
            response = requests.post(
                f"{nodes.nginx.url}/v1/files",
                headers={"Authorization": f"Bearer {key}"},
                files={"file": ("kept.bin", content)},
                data={"purpose": "user_data", "target_model_names": "a"},
                verify=str(nodes.nginx.ca),
                timeout=60,
            )
        except requests.RequestException:
            return None
        return str(response.json()["id"]) if response.status_code == 200 else None

    with nodes.account.changed(upload_delay_s=0.4), ThreadPoolExecutor(UPLOADS) as pool:
        sending = [pool.submit(send, content) for content in contents]
        # In the middle: some are stored, others on their way.
        wait_until(lambda: len(nodes.account.files()) - len(before) >= UPLOADS // 5)
        nodes.second.kill()
        found = [each.result() for each in sending]
    acknowledged = {id_: content for id_, content in zip(found, contents, strict=True) if id_}
    assert UPLOADS // 5 < len(acknowledged) < UPLOADS

    # The other node goes on alone, and nobody is sent to the one that is gone.
    for _ in range(20):
        assert nodes.api("GET", "/v1/files?limit=1", key).status_code == 200
    with closing(nodes.nginx.client(key)) as client:
        listed = [file.id for file in client.files.list()]
        assert set(listed) >= set(acknowledged)
        for file_id in listed:
            file = client.files.retrieve(file_id)
            found_there = client.files.content(file_id).read()
            assert (file.status, file.bytes) == ("processed", len(found_there))
            # One that is listed and whose answer died with the node is as whole as the others.
            assert found_there == acknowledged.get(file_id, found_there)
            assert found_there in contents

    # Whatever else is at the upstream has a row, or an intent from which it can be found.
    rows_of_copies = inside.rows(nodes.first, "copies")["copies"]
    recorded = {value for row in rows_of_copies for value in row}
    ready = {provider_id(nodes.first, file_id) for file_id in listed}
    left = nodes.left(before | ready)
    intents = [row for row in rows_of_copies if {"intended", "uploading"} & set(row)]
    assert len(left - recorded) <= len(intents)

    nodes.second.start()
    # The workers take back what nobody was told of.
    with nodes.workers():
        wait_until(lambda: not nodes.left(before | ready), 180)
    for file_id in listed:
        path = f"/v1/files/{file_id}"
        assert nodes.second.api("GET", path, key=key).status_code == 200
    for file_id in listed:
        assert nodes.second.api("DELETE", f"/v1/files/{file_id}", key=key).status_code == 200
    assert nodes.left(before) == set()


def provider_id(gateway: Gateway, file_id: str) -> str:
    """What the upstream calls the only copy of a file, which is ready."""
    [copy] = gateway.api("GET", f"/v1/files/{file_id}?include=copies").json()["copies"]
    assert copy["state"] == "ready"
    return str(copy["provider_file_id"])
