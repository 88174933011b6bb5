"""`manifold backup` while four clients write; a gateway on what `manifold restore` makes of it."""

import hashlib
import json
import random
import secrets
import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import requests

from tests.e2e.gateway import MANIFOLD, ROOT, wait_until
from tests.e2e.serve import Served, plain_environment, quoted

WRITERS = 4
KEPT = 10
"""So many files of each user stay, and are there before the first backup."""
BACKUPS = ("first.tar", "second", "third.tar")
SERVE = quoted(MANIFOLD, "serve", "--workers", 2, "--threads", 16)


def manifold(place: Path, *words: object, status: int | None = 0) -> str:
    """What the command says on both of its outputs. It ends with this status, if any is said."""
    done = subprocess.run(
        [MANIFOLD, *map(str, words)],
        cwd=place,
        env=plain_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert status in (None, done.returncode), done.stdout + done.stderr
    return done.stdout + done.stderr


@dataclass
class Writer:
    """A user who uploads and deletes; the name of each file is the hash of its content."""

    url: str
    key: str
    made: dict[str, float] = field(default_factory=dict)
    """When each file had been acknowledged."""
    deleted: dict[str, float] = field(default_factory=dict)
    """When somebody began to delete it."""
    wrong: list[str] = field(default_factory=list)

    def run(self, over: threading.Event) -> None:
        rng = random.Random(self.key)
        with requests.Session() as session:
            session.trust_env = False
            session.headers["Authorization"] = f"Bearer {self.key}"
            while not over.is_set():
                living = [each for each in [*self.made][KEPT:] if each not in self.deleted]
                if len(living) > 20:
                    chosen = rng.choice(living)
                    self.deleted[chosen] = time.monotonic()
                    found = session.delete(f"{self.url}/v1/files/{chosen}", timeout=60)
                else:
                    content = rng.randbytes(rng.randrange(1, 50_000))
                    found = session.post(
                        f"{self.url}/v1/files",
                        files={"file": (hashlib.sha256(content).hexdigest(), content)},
                        data={"purpose": "user_data"},
                        timeout=60,
                    )
                    if found.status_code == 200:
                        self.made[found.json()["id"]] = time.monotonic()
                if found.status_code != 200:
                    self.wrong.append(f"{found.status_code} {found.text}")


@dataclass
class Story:
    """What was written, and when each backup was taken."""

    place: Path
    writers: list[Writer]
    taken: dict[str, tuple[float, float]]
    upload_id: str
    part_id: str
    master_key: str


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    place = tmp_path_factory.mktemp("busy")
    shutil.copy(ROOT / "config.yaml", place)
    over, taken = threading.Event(), {}
    with Served(SERVE, place) as served:
        master_key = (place / "data" / "master_key").read_text().strip()
        admin = {"Authorization": f"Bearer {master_key}"}
        writers = []
        for _ in range(WRITERS):
            made = requests.post(f"{served.url}/user/new", headers=admin, json={}, timeout=30)
            writers.append(Writer(served.url, made.json()["key"]))
        mine = {"Authorization": f"Bearer {writers[0].key}"}
        asked = {"filename": "p", "purpose": "user_data", "bytes": 6, "mime_type": "text/plain"}
        begun = requests.post(f"{served.url}/v1/uploads", headers=mine, json=asked, timeout=30)
        path = f"{served.url}/v1/uploads/{begun.json()['id']}/parts"
        part = requests.post(path, headers=mine, files={"data": ("p", b"abc")}, timeout=30)
        threads = [threading.Thread(target=each.run, args=(over,)) for each in writers]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: all(len(each.made) >= KEPT for each in writers))
            for name in BACKUPS:
                since = time.monotonic()
                manifold(place, "backup", name)
                taken[name] = (since, time.monotonic())
        finally:
            over.set()
            for thread in threads:
                thread.join()
        assert "Traceback" not in served.log_text()
        yield Story(place, writers, taken, begun.json()["id"], part.json()["id"], master_key)


def test_the_writers_did_not_notice(story):
    assert [each.wrong for each in story.writers] == [[]] * WRITERS
    for since, until in story.taken.values():
        ends = [*story.writers[0].made.values(), *story.writers[0].deleted.values()]
        assert any(since < end < until for end in ends), "nobody wrote meanwhile"


@pytest.mark.parametrize("name", BACKUPS)
def test_a_gateway_on_a_restored_backup_has_all_and_only_what_it_names(story, tmp_path, name):
    shutil.copy(ROOT / "config.yaml", tmp_path)
    said = manifold(tmp_path, "restore", story.place / name)
    assert "restored the backup of" in said
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        "kept",
        "local",
        "manifold.db",
        "master_key",
        "uploads",
    ]
    since, until = story.taken[name]
    with Served(SERVE, tmp_path) as served:
        assert "was made" not in served.log_text()  # No new master key.
        admin = {"Authorization": f"Bearer {story.master_key}"}
        assert requests.get(f"{served.url}/v1/models", headers=admin, timeout=30).ok
        for writer in story.writers:
            with requests.Session() as session:
                session.headers["Authorization"] = f"Bearer {writer.key}"
                listed = session.get(f"{served.url}/v1/files", timeout=30).json()["data"]
                for file in listed:
                    found = session.get(f"{served.url}/v1/files/{file['id']}/content", timeout=30)
                    assert found.status_code == 200, found.text
                    assert hashlib.sha256(found.content).hexdigest() == file["filename"]
                    again = session.get(f"{served.url}/v1/files/{file['id']}", timeout=30).json()
                    assert again == file and file["status"] == "processed"
                ids = {file["id"] for file in listed}
                assert ids <= set(writer.made)
                never = time.monotonic()
                surely = {
                    each
                    for each, at in writer.made.items()
                    if at < since and writer.deleted.get(each, never) > until
                }
                assert surely <= ids
                assert len(surely) >= KEPT
        finish_the_upload(served.url, story)
    compare_store(tmp_path / "data")


def test_what_was_restored_agrees_with_its_rows(story, tmp_path):
    shutil.copy(ROOT / "config.yaml", tmp_path)
    manifold(tmp_path, "restore", story.place / "first.tar")
    assert manifold(tmp_path, "fsck", "--read").startswith("nothing differs: ")
    # Of what was being stored at that moment there may be a content that is not named yet; it is
    # young, and may only be called a leftover by who knows that nobody is at it.
    said = manifold(tmp_path, "fsck", "--read", "--json", "--grace-seconds=0", status=None)
    told = [json.loads(line) for line in said.splitlines()]
    assert {each["kind"] for each in told} <= {"leftover", "summary"}
    assert told[-1]["files"] >= WRITERS * KEPT


def finish_the_upload(url: str, story: Story) -> None:
    """The first part was sent before the backup, the second comes after the restore."""
    mine = {"Authorization": f"Bearer {story.writers[0].key}"}
    path = f"{url}/v1/uploads/{story.upload_id}"
    part = requests.post(f"{path}/parts", headers=mine, files={"data": ("p", b"def")}, timeout=30)
    ids = [story.part_id, part.json()["id"]]
    done = requests.post(f"{path}/complete", headers=mine, json={"part_ids": ids}, timeout=30)
    assert done.status_code == 200, done.text
    file_id = done.json()["file"]["id"]
    found = requests.get(f"{url}/v1/files/{file_id}/content", headers=mine, timeout=30)
    assert found.content == b"abcdef"
    assert requests.delete(f"{url}/v1/files/{file_id}", headers=mine, timeout=30).ok


def compare_store(data_dir: Path) -> None:
    """Every ready row has its content; every content has a row, or an intent of one."""
    with closing(sqlite3.connect(data_dir / "manifold.db")) as plain:
        assert plain.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = plain.execute("SELECT deployment_file_id, state FROM copies").fetchall()
    ready = {raw for raw, state in rows if state == "ready"}
    open_ = [raw for raw, state in rows if state not in ("ready", "deleted")]
    stored = {path.stem for path in (data_dir / "local").glob("*/*.json")}
    assert ready <= stored
    assert len(stored - ready) <= len(open_)
    for entry in stored:
        [content] = (data_dir / "local").glob(f"*/{entry}.bin")
        if entry in ready:
            # Two accounts share one content, and its blob: the restored store counts as the old.
            assert content.stat().st_nlink in (2, 3)


def test_what_is_not_wanted_is_said_in_one_line(story, tmp_path):
    shutil.copy(ROOT / "config.yaml", tmp_path)
    assert "nothing to back up" in manifold(tmp_path, "backup", "x.tar", status=1)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine").write_text("precious")
    said = manifold(tmp_path, "restore", story.place / "first.tar", status=1)
    assert said == "Not done: data is not empty; a backup is restored into an empty one\n"
    (tmp_path / "broken.tar").write_bytes(secrets.token_bytes(1000))
    (tmp_path / "data" / "mine").unlink()
    said = manifold(tmp_path, "restore", "broken.tar", status=1)
    assert said.startswith("Not done: ") and said.count("\n") == 1
    assert list((tmp_path / "data").iterdir()) == []
    said = manifold(story.place, "backup", "first.tar", status=1)
    assert said == "Not done: first.tar exists already\n"
