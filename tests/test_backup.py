"""Backup and restore of a data directory: whole or not at all, and with nothing that is extra."""

import json
import sqlite3
import stat
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app import backup
from app.db import migrate
from app.db.engine import Database, connect
from app.errors import OperationRefused
from app.settings import Settings
from tests.row_builders import everything, fill, fresh

BLOB = "local/blobs/ab/abcdef"
ENTRY = "local/0123/file-1.bin"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A data directory as a gateway leaves it, with all that does not belong in a backup."""
    data_dir = tmp_path / "data"
    for name, content in {
        BLOB: "content",
        "local/0123/file-1.json": "{}",
        "local/tmp/half": "half a blob",
        "kept/0a1b": "kept",
        "uploads/11aa/part_1": "part",
        "uploads/11aa/whole": "being put together",
        "spool/form-1": "on its way",
        "tasks.db": "the queue's",
        "master_key": "sk-secret\n",
        "master_key.previous": "sk-old\n",
    }.items():
        path = data_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        path.chmod(0o600)
    (data_dir / ENTRY).hardlink_to(data_dir / BLOB)
    return Settings(data_dir=data_dir)


@contextmanager
def opened(settings: Settings) -> Iterator[Database]:
    database = connect(settings.resolved_database_url, pool_size=2)
    try:
        yield database
    finally:
        database.engine.dispose()


def tree(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir()}


KEPT = {
    BLOB,
    ENTRY,
    "local/0123/file-1.json",
    "kept/0a1b",
    "uploads/11aa/part_1",
    "master_key",
    "master_key.previous",
    "manifold.db",
}


@pytest.fixture(params=["folder", "file.tar"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


def test_what_was_backed_up_comes_back(settings, target, tmp_path):
    with opened(settings) as database:
        fill(database)
        before = everything(database)
        size = backup.write(settings, database, target)
    assert size > 10_000
    again = Settings(data_dir=tmp_path / "again")
    done = backup.restore(again, target)
    assert done.data_dir == again.data_dir
    assert tree(again.data_dir) == KEPT
    for name in KEPT - {"manifold.db"}:
        assert (again.data_dir / name).read_bytes() == (settings.data_dir / name).read_bytes()
    with opened(again) as database:
        assert everything(database) == before
    # Equal contents are still on disk once.
    assert (again.data_dir / BLOB).samefile(again.data_dir / ENTRY)
    assert not (again.data_dir / BLOB).samefile(settings.data_dir / BLOB)


def test_nobody_else_may_read_a_backup_or_what_was_restored(settings, target, tmp_path):
    with opened(settings) as database:
        fill(database)
        backup.write(settings, database, target)
    again = Settings(data_dir=tmp_path / "again")
    backup.restore(again, target)
    for place in (target, again.data_dir):
        for path in (place, *place.rglob("*")):
            mode = stat.S_IMODE(path.stat().st_mode)
            # What is below is the contents' own affair; the way to it is shut.
            if path == place or path.name.startswith("master_key") or path.suffix == ".db":
                assert mode in (0o700, 0o600), path


def test_a_backup_leaves_nothing_in_the_data_directory(settings, target):
    with opened(settings) as database:
        fill(database)
        before = tree(settings.data_dir)
        backup.write(settings, database, target)
    left = tree(settings.data_dir) - before
    assert left <= {".backup.lock", "manifold.db-queue", "manifold.db-wal", "manifold.db-shm"}
    assert {p.name for p in target.parent.iterdir()} == {"data", target.name}


def test_what_a_crash_left_is_removed_by_the_next_backup(settings, target):
    (settings.data_dir / ".backup-0123" / "local").mkdir(parents=True)
    with opened(settings) as database:
        fill(database)
        backup.write(settings, database, target)
    assert not (settings.data_dir / ".backup-0123").exists()


# Refused


def refused(action, match: str) -> None:
    with pytest.raises(OperationRefused, match=match):
        action()


def test_nothing_that_is_there_is_overwritten(settings, target):
    target.mkdir()
    with opened(settings) as database:
        fill(database)
        refused(lambda: backup.write(settings, database, target), "exists already")
        assert list(target.iterdir()) == []
        nowhere = target / "missing" / "x.tar"
        refused(lambda: backup.write(settings, database, nowhere), "not a folder")


@pytest.mark.parametrize("what", ["manifold.db", "local", ".hidden"])
def test_only_an_empty_data_directory_is_restored_into(settings, target, tmp_path, what):
    with opened(settings) as database:
        fill(database)
        backup.write(settings, database, target)
    again = Settings(data_dir=tmp_path / "again")
    (again.data_dir / what).mkdir(parents=True)
    refused(lambda: backup.restore(again, target), "not empty")
    assert tree(again.data_dir) == set()
    assert [path.name for path in again.data_dir.iterdir()] == [what]


def test_a_database_that_is_there_is_not_replaced(settings, target, tmp_path):
    with opened(settings) as database:
        fill(database)
        backup.write(settings, database, target)
    elsewhere = tmp_path / "elsewhere.db"
    elsewhere.write_text("somebody's")
    again = Settings(data_dir=tmp_path / "again", database_url=f"sqlite:///{elsewhere}")
    refused(lambda: backup.restore(again, target), "exists already")
    assert elsewhere.read_text() == "somebody's"
    assert not again.data_dir.exists()
    elsewhere.unlink()
    backup.restore(again, target)
    assert "manifold.db" not in tree(again.data_dir)
    with opened(again) as there, opened(settings) as database:
        assert everything(there) == everything(database)


def _cut(folder: Path) -> None:
    path = folder / "manifold.db"
    path.write_bytes(path.read_bytes()[:50_000])


def _scribbled(folder: Path) -> None:
    path = folder / "manifold.db"
    content = bytearray(path.read_bytes())
    content[8192:16384] = bytes(8192)
    path.write_bytes(content)


def _another_format(folder: Path) -> None:
    (folder / "manifest.json").write_text(json.dumps({"format": 99}))


DAMAGES = {
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "no backup of this"),
    "another manifest": (lambda folder: (folder / "manifest.json").write_text("[]"), "no backup"),
    "another format": (_another_format, "format 99"),
    "no database": (lambda folder: (folder / "manifold.db").unlink(), "manifold.db is damaged"),
    "half a database": (_cut, "manifold.db is damaged"),
    "a page of zeros": (_scribbled, "manifold.db is damaged"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_backup_that_is_not_whole_restores_nothing(settings, tmp_path, damage):
    folder = tmp_path / "folder"
    with opened(settings) as database:
        fill(database, 200)
        backup.write(settings, database, folder)
    change, match = DAMAGES[damage]
    change(folder)
    again = Settings(data_dir=tmp_path / "again")
    refused(lambda: backup.restore(again, folder), match)
    assert not again.data_dir.exists()
    again.data_dir.mkdir()
    refused(lambda: backup.restore(again, folder), match)
    assert list(again.data_dir.iterdir()) == []


def test_half_a_tar_file_restores_nothing(settings, tmp_path):
    whole, half = tmp_path / "whole.tar", tmp_path / "half.tar"
    with opened(settings) as database:
        fill(database)
        backup.write(settings, database, whole)
    half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    again = Settings(data_dir=tmp_path / "again")
    for path in (half, Path(__file__)):
        refused(lambda path=path: backup.restore(again, path), ".")
        assert not again.data_dir.exists()


def test_a_tar_file_writes_nothing_outside(settings, tmp_path):
    evil = tmp_path / "evil.tar"
    with tarfile.open(evil, "w") as archive:
        archive.add(__file__, "../escaped")
    again = Settings(data_dir=tmp_path / "deep" / "again")
    refused(lambda: backup.restore(again, evil), "outside")
    assert not (tmp_path / "deep" / "escaped").exists()


def test_a_disk_without_room_leaves_no_half_backup(settings, target, tmp_path):
    """The limit of a file's size stands in for the disk: SQLite and tar both run into it."""
    import resource

    with opened(settings) as database:
        fill(database)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            refused(lambda: backup.write(settings, database, target), ".")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not target.exists()
        assert not list(settings.data_dir.glob(".backup-*"))
        assert {p.name for p in tmp_path.iterdir()} == {"data"}
        backup.write(settings, database, target)


# The database


def test_a_backup_of_an_older_version_is_restored_as_it_is(settings, target, tmp_path):
    """One takes a backup before an upgrade, and the next start does what is to be done."""
    with opened(settings) as database:
        fill(database)
        with database.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0003'")
        backup.write(settings, database, target)
    again = Settings(data_dir=tmp_path / "again")
    backup.restore(again, target)
    with opened(again) as database:
        assert migrate.current(database) == "0003"


def test_rows_of_postgresql_are_backed_up_and_restored_too(settings, target, tmp_path):
    with fresh("postgresql", tmp_path) as database, fresh("postgresql", tmp_path) as empty:
        fill(database)
        backup.write(settings, database, target)
        url = empty.engine.url.render_as_string(hide_password=False)
        again = Settings(data_dir=tmp_path / "again", database_url=url)
        done = backup.restore(again, target)
        assert done.database.startswith("postgresql")
        assert everything(empty) == everything(database)
        assert tree(again.data_dir) == KEPT - {"manifold.db"}
        third = Settings(data_dir=tmp_path / "third", database_url=url)
        refused(lambda: backup.restore(third, target), "not empty")
        assert not third.data_dir.exists()


def test_a_password_is_not_shown(settings, target, tmp_path):
    with fresh("postgresql", tmp_path) as database:
        fill(database)
        backup.write(settings, database, target)
    with fresh("postgresql", tmp_path) as empty:
        url = empty.engine.url.set(password="hunter2").render_as_string(hide_password=False)
        again = Settings(data_dir=tmp_path / "again", database_url=url)
        assert "hunter2" not in backup.restore(again, target).database


def test_the_copy_is_a_whole_database(settings, tmp_path):
    folder = tmp_path / "folder"
    with opened(settings) as database:
        fill(database)
        backup.write(settings, database, folder)
    assert {path.name for path in folder.glob("manifold.db*")} == {"manifold.db"}
    with sqlite3.connect(folder / "manifold.db") as plain:
        assert plain.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert plain.execute("PRAGMA foreign_key_check").fetchall() == []
    plain.close()
