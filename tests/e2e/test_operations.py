"""What docs/operations.md shows works, block by block, on an installation that has been used."""

import re
import shutil
import subprocess
from pathlib import Path

import openai
import pytest

from tests.e2e import inside
from tests.e2e.gateway import MANIFOLD, ROOT
from tests.e2e.pages import Story
from tests.e2e.serve import Served, quoted

PAGE = ROOT / "docs" / "operations.md"
SHOWN = "postgresql://manifold:secret@127.0.0.1/manifold"
BACK = "/tmp/manifold-back.db"


def connected(served: Served, place: Path) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=served.url,
        api_key=(place / "data" / "master_key").read_text().strip(),
        max_retries=0,
        http_client=openai.DefaultHttpxClient(trust_env=False),
    )


def contents(place: Path) -> dict[str, bytes]:
    """Every file of a gateway in this directory, by id."""
    with (
        Served(quoted(MANIFOLD, "serve", "--workers", 1), place) as served,
        connected(served, place) as client,
    ):
        return {file.id: client.files.content(file.id).read() for file in client.files.list()}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An installation with a file, on the configuration that is shipped."""
    shutil.copy(ROOT / "config.yaml", tmp_path)
    with (
        Served(quoted(MANIFOLD, "serve", "--workers", 1), tmp_path) as served,
        connected(served, tmp_path) as client,
    ):
        client.files.create(file=("a.txt", b"kept"), purpose="user_data")
    return tmp_path


def test_the_page_s_commands_work_in_their_order(place):
    before = contents(place)
    assert list(before.values()) == [b"kept"]
    with inside.scratch_postgres() as url:
        story = Story(PAGE, place, replaced={SHOWN: f"'{url}'", BACK: f"{place}/back.db"})
        script = "".join(block.text for block in story.blocks)
        assert script.count(SHOWN) == script.count(BACK) == 1
        said = "".join(story.run())
    found = re.findall(r"(\d+) rows copied, and compared", said)
    assert len(found) == 2 and found[0] == found[1] and int(found[0]) >= 3
    assert contents(place / "restored") == before
    # What came back is a whole database too.
    shutil.move(place / "back.db", place / "data" / "manifold.db")
    for name in ("manifold.db-wal", "manifold.db-shm"):
        (place / "data" / name).unlink(missing_ok=True)
    assert contents(place) == before


def test_every_command_of_the_page_and_of_the_program_is_the_same():
    shown = set(re.findall(r"`?manifold (db \w+|\w+)", PAGE.read_text()))
    commands = {"serve", "worker", "backup", "restore", "fsck"}
    commands |= {"db current", "db upgrade", "db copy"}
    assert shown <= commands
    assert {"backup", "fsck", "restore", "db copy", "db upgrade", "db current"} <= shown
    for command in sorted(shown):
        subprocess.run([MANIFOLD, *command.split(), "--help"], capture_output=True, check=True)
