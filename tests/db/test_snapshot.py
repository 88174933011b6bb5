"""The rows of one moment: what is committed before is in it, and nothing changes while it lasts."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import insert, select

from app.db import migrate, snapshot
from app.db.engine import Database, connect
from app.db.tables import Base, User
from tests.row_builders import everything, fill, fresh, row_of

USERS = Base.metadata.tables["users"]
LONG = 20.0


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    with fresh(request.param, tmp_path) as database:
        migrate.upgrade(database)
        yield database


@contextmanager
def copied(path: Path) -> Iterator[Database]:
    database = connect(f"sqlite:///{path}")
    try:
        yield database
    finally:
        database.engine.dispose()


def add(database: Database, number: int) -> None:
    with database.write() as session:
        session.execute(insert(USERS), [row_of(USERS, number)])


def users(database: Database) -> int:
    with database.read() as session:
        return len(session.scalars(select(User.user_id)).all())


def test_every_row_is_in_it(database, tmp_path):
    fill(database, 200)
    snapshot.take(database, tmp_path / "copy.db", lambda: None)
    snapshot.check(tmp_path / "copy.db")
    with copied(tmp_path / "copy.db") as copy:
        assert everything(copy) == everything(database)


def test_writers_wait_for_the_moment_to_pass_and_readers_do_not(database, tmp_path):
    add(database, 1)
    has_written = threading.Event()

    def write() -> None:
        add(database, 2)
        has_written.set()

    writer = threading.Thread(target=write)

    def meanwhile() -> None:
        writer.start()
        assert users(database) == 1
        assert not has_written.wait(0.5)
        assert users(database) == 1

    snapshot.take(database, tmp_path / "copy.db", meanwhile)
    assert has_written.wait(LONG)
    writer.join()
    assert users(database) == 2
    with copied(tmp_path / "copy.db") as copy:
        assert users(copy) == 1


def test_who_is_writing_when_it_begins_is_waited_for(database, tmp_path):
    is_open, may_end = threading.Event(), threading.Event()

    def write() -> None:
        with database.write() as session:
            session.execute(insert(USERS), [row_of(USERS, 1)])
            is_open.set()
            may_end.wait(LONG)

    writer = threading.Thread(target=write)
    writer.start()
    assert is_open.wait(LONG)
    ending = threading.Timer(0.7, may_end.set)
    ending.start()
    snapshot.take(database, tmp_path / "copy.db", lambda: None)
    assert may_end.is_set()
    writer.join()
    with copied(tmp_path / "copy.db") as copy:
        assert users(copy) == 1


def test_what_goes_wrong_meanwhile_lets_the_writers_go_on(database, tmp_path):
    def fails() -> None:
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        snapshot.take(database, tmp_path / "copy.db", fails)
    add(database, 1)
    assert users(database) == 1
