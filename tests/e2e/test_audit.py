"""The audit trail of real processes: no answer without its row, whatever becomes of them."""

import json
import sqlite3
import subprocess
import threading
from collections import Counter
from contextlib import closing
from typing import Any

import pytest
import requests

from tests.e2e.conftest import StartGateway
from tests.e2e.gateway import MANIFOLD, Gateway, wait_until

DISK = {"model_list": [{"model_name": "disk", "litellm_params": {"model": "local/disk"}}]}


def trail(gateway: Gateway, *options: str) -> list[dict[str, Any]]:
    """What the operator's command shows."""
    shown = subprocess.run(
        [MANIFOLD, "audit", "--config", str(gateway.config_path), "--json", *options],
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in shown.stdout.splitlines()]


def upload(gateway: Gateway, key: str) -> str:
    made = gateway.client(key).files.create(
        file=("a.txt", b"content"),
        purpose="user_data",
        extra_body={"target_model_names": "disk"},
    )
    return made.id


@pytest.fixture(scope="module")
def gateway(start_gateway: StartGateway) -> Gateway:
    return start_gateway(DISK, workers=2, threads=16)


def test_the_command_shows_who_did_what(gateway: Gateway):
    key = gateway.new_user(user_id="alice")["key"]
    mine = {"x-request-id": "audited-1"}
    file_id = upload(gateway, key)
    gateway.api("GET", f"/v1/files/{file_id}/content", key=key, headers=mine)
    gateway.api("DELETE", f"/v1/files/{file_id}", key=key)

    shown = trail(gateway, "--actor", "alice")

    assert [(row["action"], row["status"]) for row in shown] == [
        ("file.upload", 200),
        ("file.download", 200),
        ("file.delete", 202),
        ("file.delete", 200),
    ]
    assert {row["target"] for row in shown} == {file_id}
    assert shown[1]["request_id"] == "audited-1"
    assert (shown[1]["address"], shown[1]["bytes"]) == ("127.0.0.1", 7)
    assert trail(gateway, "--actor", "alice", "--limit", "1") == shown[-1:]
    assert trail(gateway, "--action", "file.download", "--target", file_id) == shown[1:2]
    assert trail(gateway, "--actor", "alice", "--since", "1h") == shown
    assert trail(gateway, "--actor", "alice", "--since", shown[2]["at"]) == shown[2:]
    assert trail(gateway, "--until", "1h") == []
    assert trail(gateway, "--action", "user") and not trail(gateway, "--action", "use")


def test_the_command_prints_lines_for_people_and_says_what_it_does_not_understand(
    gateway: Gateway,
):
    gateway.new_user(user_id="printed", user_alias="A")
    command = [MANIFOLD, "audit", "--config", str(gateway.config_path)]
    lines = subprocess.run(
        [*command, "--target", "printed"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert len(lines) == 1
    assert "user.new" in lines[0] and "fields=alias" in lines[0] and "default_user_id" in lines[0]

    wrong = subprocess.run(
        [*command, "--since", "yesterday"], capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 2
    assert "'yesterday'" in wrong.stderr


def test_a_client_cannot_name_another_address(gateway: Gateway):
    """A peer on this host is trusted as a proxy, but only with the last address that it names."""
    key = gateway.new_user(user_id="forwarded")["key"]
    gateway.api(
        "DELETE",
        "/v1/files/file-x",
        key=key,
        headers={"X-Forwarded-For": "6.6.6.6, 203.0.113.9"},
    )
    gateway.api("DELETE", "/v1/files/file-y", key=key, headers={"X-Forwarded-For": "no address"})
    shown = trail(gateway, "--actor", "forwarded")
    assert [(row["address"], row["status"]) for row in shown] == [
        ("203.0.113.9", 404),
        ("127.0.0.1", 404),
    ]


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_every_download_that_was_answered_has_its_row(start_gateway: StartGateway, end: str):
    gateway = start_gateway(DISK, workers=2, threads=16)
    key = gateway.new_user(user_id="alice")["key"]
    file_id = upload(gateway, key)
    answered: Counter[int] = Counter()
    is_over = threading.Event()

    def download(number: int) -> None:
        with requests.Session() as session:
            session.trust_env = False
            while not is_over.is_set():
                try:
                    response = session.get(
                        f"{gateway.url}/v1/files/{file_id}/content",
                        headers={"Authorization": f"Bearer {key}"},
                        timeout=20,
                        stream=True,
                    )
                except requests.RequestException:
                    return
                if response.status_code == 200:
                    answered[number] += 1
                response.close()

    threads = [threading.Thread(target=download, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    wait_until(lambda: answered.total() > 100, timeout=30)
    gateway.stop() if end == "stop" else gateway.kill()
    is_over.set()
    for thread in threads:
        thread.join()

    noted = trail(gateway, "--action", "file.download", "--limit", "100000")

    # A row more for each connection that broke between the commit and the answer.
    assert answered.total() <= len(noted) <= answered.total() + len(threads)


def test_the_worker_takes_in_what_was_left_and_sweeps_what_is_old(start_gateway: StartGateway):
    general = {"audit_retention_days": 30}
    gateway = start_gateway({**DISK, "general_settings": general}, workers=1)
    upload(gateway, gateway.new_user(user_id="alice")["key"])
    row = {
        **trail(gateway, "--action", "file.upload")[0],
        "id": "left-by-a-process-that-is-gone",
        "action": "file.download",
    }
    (gateway.data_dir / "audit").mkdir(exist_ok=True)
    (gateway.data_dir / "audit" / "left.jsonl").write_text(json.dumps(row) + "\n")
    database = gateway.data_dir / "manifold.db"
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(
            "INSERT INTO audit (id, at, role, action, status, fields) "
            "VALUES ('old', '2020-01-01 00:00:00.000000', 'proxy_admin', 'user.new', 200, '[]')"
        )

    def actions() -> list[str]:
        with closing(sqlite3.connect(database)) as connection:
            return sorted(row[0] for row in connection.execute("SELECT action FROM audit"))

    assert actions() == ["file.upload", "key.generate", "user.new", "user.new"]
    worker = gateway.start_worker()
    try:
        expected = ["file.download", "file.upload", "key.generate", "user.new"]
        wait_until(lambda: actions() == expected, timeout=20)
    finally:
        worker.stop()
    assert not list((gateway.data_dir / "audit").iterdir())
