"""`manifold fsck` beside a real gateway: broken by hand on either side, found and mended."""

import contextlib
import json
import sqlite3
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.e2e.conftest import StartGateway
from tests.e2e.gateway import MANIFOLD, Account, Gateway, Upstream, wait_until
from tests.e2e.serve import plain_environment
from tests.e2e.test_backup import Writer, manifold

CONTENT = b"content"


def fsck(config: Path, *options: str, status: int, env: dict[str, str] | None = None) -> list[str]:
    """What the command says, line by line."""
    done = subprocess.run(
        [MANIFOLD, "fsck", "--config", str(config), "--grace-seconds=0", *options],
        cwd=config.parent,
        env={**plain_environment(), **(env or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return (done.stdout or done.stderr).splitlines()


@pytest.fixture(scope="module")
def account(upstream: Upstream) -> Account:
    return upstream.account("checked", download_any=True)


@pytest.fixture(scope="module")
def other(upstream: Upstream) -> Account:
    return upstream.account("checked-too", download_any=True)


@pytest.fixture(scope="module")
def gateway(start_gateway: StartGateway, account: Account, other: Account) -> Gateway:
    entries: dict[str, dict[str, Any]] = {
        "a": {"model": "openai/up", "max_retries": 0, **account.params},
        "b": {"model": "openai/up", "max_retries": 0, **other.params},
        "disk": {"model": "local/disk"},
    }
    models = [
        {"model_name": name, "litellm_params": params, "model_info": {"id": f"{name}-1"}}
        for name, params in entries.items()
    ]
    general = {"default_target_model_names": list(entries)}
    return start_gateway({"model_list": models, "general_settings": general}, workers=1)


def upload(gateway: Gateway, names: str, content: bytes = CONTENT) -> str:
    asked = {"target_model_names": names}
    made = gateway.client().files.create(
        file=("a.txt", content), purpose="user_data", extra_body=asked
    )
    return made.id


def lose(account: Account, raw: str) -> None:
    """Delete a file at the provider, past the gateway."""
    found = requests.delete(
        f"{account.api_base}/files/{raw}",
        headers={"Authorization": f"Bearer {account.key}"},
        timeout=10,
    )
    assert found.status_code == 200, found.text


def put(account: Account, name: str) -> str:
    """Store a file at the provider, past the gateway."""
    found = requests.post(
        f"{account.api_base}/files",
        headers={"Authorization": f"Bearer {account.key}"},
        files={"file": (name, b"strange")},
        data={"purpose": "user_data"},
        timeout=10,
    )
    assert found.status_code == 200, found.text
    return str(found.json()["id"])


def test_what_was_broken_on_either_side_is_found_and_mended(gateway, account, other):
    file_id = upload(gateway, "a,b,disk")
    assert fsck(gateway.config_path, status=0) == ["nothing differs: 1 file, 3 copies, 3 accounts"]

    [lost], [kept] = account.files(), other.files()
    lose(account, lost["id"])
    strange = put(other, "strange.txt")
    [entry] = (gateway.data_dir / "local").glob("*/*.json")
    entry.write_text("{")
    (gateway.data_dir / "uploads" / ("0" * 32)).mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(gateway.data_dir / "manifold.db")) as rows, rows:
        rows.execute("UPDATE files SET status = 'error' WHERE public_id = ?", (file_id,))

    said = fsck(gateway.config_path, "--read", status=4)
    assert [line.split("  ")[:3] for line in said[:-1]] == [
        ["damaged", "disk-1", entry.stem],
        ["leftover", "uploads", "0" * 32],
        ["missing", "a-1", lost["id"]],
        ["unknown", "b-1", strange],
        ["status", "database", file_id],
    ]
    assert said[-1].startswith("4 differences; 1 thing noted that may be somebody else's: 1 file")
    assert account.files() == [] and len(other.files()) == 2

    said = fsck(gateway.config_path, "--repair", "--own", "b", status=1)
    # The status was written anew with the first of its copies.
    assert [line.split("  ")[0] for line in said[:-1]] == [
        *("damaged", "leftover", "missing", "orphaned"),
    ]
    assert all(line.endswith("; mended") for line in said[:-1])
    assert [each["sha256"] for each in account.files()] == [kept["sha256"]]
    assert [each["id"] for each in other.files()] == [kept["id"]]
    client = gateway.client()
    assert client.files.retrieve(file_id).status == "processed"
    assert client.files.content(file_id).read() == CONTENT
    assert fsck(gateway.config_path, "--own", "b", status=0)[0].startswith("nothing differs")
    shown = manifold(gateway.data_dir.parent, "audit", "--action", "fsck", "--json")
    assert {json.loads(line)["action"] for line in shown.splitlines()} == {
        *("fsck.damaged", "fsck.leftover", "fsck.missing", "fsck.orphaned"),
    }
    assert "Traceback" not in gateway.log_text()


def test_beside_clients_that_upload_and_delete_nothing_seems_to_differ(gateway):
    writers = [Writer(gateway.url, gateway.new_user()["key"]) for _ in range(3)]
    over = threading.Event()
    threads = [threading.Thread(target=writer.run, args=(over,)) for writer in writers]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: all(len(writer.made) >= 10 for writer in writers))
        for options in (("--own", "a", "--own", "b-1"), ("--repair", "--read")):
            said = fsck(gateway.config_path, *options, status=0)
            assert said[-1].startswith("nothing differs"), said
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert [writer.wrong for writer in writers] == [[]] * 3


def test_what_cannot_be_asked_is_named(gateway, account, other):
    upload(gateway, "a,b")
    strange = put(account, "strange.txt")
    said = [json.loads(line) for line in fsck(gateway.config_path, "--json", status=0)]
    assert [each["kind"] for each in said] == ["unknown", "summary"]
    assert said[0]["id"] == strange and said[0]["outcome"] == "noted"
    assert said[1]["exit_status"] == 0 and said[1]["outcomes"] == {"noted": 1}
    assert account.key not in json.dumps(said) and gateway.master_key not in json.dumps(said)

    lose(other, other.files()[-1]["id"])
    account.fail(method="GET", path_prefix="/v1/files", status=500)
    said = fsck(gateway.config_path, status=12)
    assert [line.split("  ")[:2] for line in said[:-1]] == [["unasked", "a-1"], ["missing", "b-1"]]

    away = {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}
    [line] = fsck(gateway.config_path, status=8, env=away)
    assert line.startswith("Not checked: ")
    nowhere = {"DATABASE_URL": f"sqlite:///{gateway.data_dir}/none.db"}
    [line] = fsck(gateway.config_path, status=8, env=nowhere)
    assert "nothing to check" in line and not (gateway.data_dir / "none.db").exists()
    assert "'nobody'" in fsck(gateway.config_path, "--own", "nobody", status=2)[-1]
