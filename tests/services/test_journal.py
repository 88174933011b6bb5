"""The journal: rows outlive their process, and come into the database once."""

import json
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from app.db.audit import AuditFilter
from app.errors import DatabaseUnavailable, StorageFull
from app.services.audit import Trail
from app.services.journal import Journal, Row
from tests.conftest import make_caller
from tests.e2e.gateway import wait_until


class Database:
    """Keeps rows, or is away."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.is_away = False

    def keep(self, rows):
        if self.is_away:
            raise DatabaseUnavailable
        self.rows += rows


@pytest.fixture
def kept() -> Database:
    return Database()


@pytest.fixture
def journal(tmp_path, kept) -> Journal:
    return Journal(tmp_path / "audit", kept.keep)


def pages(journal: Journal) -> list[Path]:
    return sorted(journal._folder.iterdir())


WRITER = """
import os, sys
from pathlib import Path
from app.services.journal import Journal
journal = Journal(Path(sys.argv[1]), lambda rows: os._exit(1))
for number in range(3):
    journal.write({"id": str(number)})
print("written", flush=True)
os.kill(os.getpid(), 9)
"""


def die_after_writing(folder: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", WRITER, folder], stdout=subprocess.PIPE, check=False
    )
    assert (ended.returncode, ended.stdout) == (-signal.SIGKILL, b"written\n")


def test_rows_are_kept_once_and_their_file_is_gone(journal, kept):
    journal.write({"id": "1"})
    journal.write({"id": "2"})
    journal.flush()
    journal.flush()
    assert kept.rows == [{"id": "1"}, {"id": "2"}]
    assert pages(journal) == []


def test_a_row_is_on_the_disk_for_its_owner_only_when_the_call_returns(journal):
    journal.write({"id": "1"})
    [page] = pages(journal)
    assert json.loads(page.read_text()) == {"id": "1"}
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert stat.S_IMODE(page.parent.stat().st_mode) == 0o700


def test_the_rows_of_a_process_that_was_killed_are_taken_in(journal, kept):
    die_after_writing(journal._folder)
    assert len(pages(journal)) == 1
    journal.adopt()
    assert [row["id"] for row in kept.rows] == ["0", "1", "2"]
    assert pages(journal) == []


def test_the_rows_of_a_process_that_lives_are_left_to_it(tmp_path, journal, kept):
    journal.write({"id": "1"})
    other = Database()
    Journal(tmp_path / "audit", other.keep).adopt()
    assert other.rows == []
    journal.flush()
    assert kept.rows == [{"id": "1"}]


def test_half_a_line_costs_no_other_row(journal, kept):
    die_after_writing(journal._folder)
    [page] = pages(journal)
    with page.open("ab") as file:
        file.write(b'{"id": "ha')
    journal.adopt()
    assert [row["id"] for row in kept.rows] == ["0", "1", "2"]


def test_rows_wait_while_the_database_is_away(journal, kept):
    kept.is_away = True
    journal.write({"id": "1"})
    with pytest.raises(DatabaseUnavailable):
        journal.flush()
    journal.write({"id": "2"})
    with pytest.raises(DatabaseUnavailable):
        journal.flush()
    die_after_writing(journal._folder)
    with pytest.raises(DatabaseUnavailable):
        journal.adopt()
    assert len(pages(journal)) == 3
    kept.is_away = False
    journal.flush()
    journal.adopt()
    assert [row["id"] for row in kept.rows] == ["1", "2", "0", "1", "2"]
    assert pages(journal) == []


def test_rows_come_into_the_database_by_themselves(sqlite_file, tmp_path):
    trail = Trail(sqlite_file, 365, tmp_path / "audit")
    trail.jot(make_caller("alice"), "file.download", "file-1", status=206, size=7)
    [row] = wait_until(lambda: trail.newest(AuditFilter(), 10))
    assert (row.actor, row.target, row.status, row.bytes) == ("alice", "file-1", 206, 7)


def test_a_row_that_is_in_the_database_already_is_no_error(database, tmp_path):
    trail = Trail(database, 365, tmp_path / "audit")
    trail.jot(make_caller("alice"), "file.download", "file-1", status=200, size=7)
    [page] = (tmp_path / "audit").iterdir()
    copy = tmp_path / "copy"
    copy.write_bytes(page.read_bytes() * 600)
    trail.take_in()
    copy.rename(tmp_path / "audit" / "left.jsonl")
    trail.take_in()
    assert len(trail.newest(AuditFilter(), 10)) == 1
    assert not list((tmp_path / "audit").iterdir())


def test_a_folder_that_cannot_be_written_is_told(tmp_path, kept):
    (tmp_path / "audit").write_text("a file")
    with pytest.raises(StorageFull):
        Journal(tmp_path / "audit", kept.keep).write({"id": "1"})


FULL = """
import resource, signal, sys
from pathlib import Path
from app.errors import StorageFull
from app.services.journal import Journal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
kept = []
journal = Journal(Path(sys.argv[1]), kept.extend)
journal.write({"id": "1"})
resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))
try:
    journal.write({"id": "a row that is too long for what is left of the disk"})
except StorageFull:
    print("refused")
[page] = Path(sys.argv[1]).iterdir()
print(page.read_text(), end="")
journal.flush()
print(kept)
"""


def test_a_full_disk_is_told_and_leaves_no_half_a_row(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-c", FULL, tmp_path / "audit"], capture_output=True, text=True, check=True
    )
    assert ended.stdout.splitlines() == ["refused", '{"id": "1"}', "[{'id': '1'}]"]
