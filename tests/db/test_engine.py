"""Trouble with the database is DatabaseUnavailable, whatever the driver calls it."""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import event, insert, select, text

from app.db.engine import Database, connect
from app.db.tables import Base, User
from app.errors import DatabaseUnavailable
from tests.row_builders import fresh, row_of
from tests.tables import make_tables

USERS = Base.metadata.tables["users"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    database = connect(f"sqlite:///{tmp_path / 'manifold.db'}")
    make_tables(database)
    database.engine.dispose()
    return tmp_path / "manifold.db"


@contextmanager
def opened(url: str, *, pool_size: int = 4) -> Iterator[Database]:
    database = connect(url, pool_size=pool_size)
    try:
        yield database
    finally:
        database.engine.dispose()


def add(database: Database, *numbers: int) -> None:
    with database.write() as session:
        session.execute(insert(USERS), [row_of(USERS, number) for number in numbers])


def users(database: Database) -> int:
    with database.read() as session:
        return len(session.scalars(select(User.user_id)).all())


def cause_of(action: Callable[[], object]) -> str:
    with pytest.raises(DatabaseUnavailable) as trouble:
        action()
    assert trouble.value.status == 503
    assert trouble.value.headers["Retry-After"]
    return str(trouble.value.__cause__)


def test_a_read_only_file_can_be_read(path):
    with opened(f"sqlite:///{path}") as database:
        add(database, 1)
    with opened(f"sqlite:///file:{path}?mode=ro&uri=true") as database:
        assert "readonly database" in cause_of(lambda: add(database, 2))
        assert users(database) == 1


def test_a_file_that_cannot_grow_works_again_when_it_can(path):
    with opened(f"sqlite:///{path}", pool_size=1) as database:
        add(database, 1)
        with database.engine.connect() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
            connection.exec_driver_sql(f"PRAGMA max_page_count={pages + 1}")
        many = range(10, 500)
        assert "disk is full" in cause_of(lambda: add(database, *many))
        assert users(database) == 1
        with database.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count=100000")
        add(database, *many)
        assert users(database) == 1 + len(many)


def test_a_file_that_is_no_database(tmp_path):
    (tmp_path / "x.db").write_bytes(b"no database" * 1000)
    with opened(f"sqlite:///{tmp_path / 'x.db'}") as database:
        assert "not a database" in cause_of(database.ping)


def test_a_table_that_is_missing_is_trouble_too(path):
    with opened(f"sqlite:///{path}") as database:
        with database.engine.begin() as connection:
            connection.execute(text("DROP TABLE users"))
        assert "no such table" in cause_of(lambda: users(database))


def test_who_stood_in_line_gives_up_together(path):
    """An operator's tool holds the file: the last of many waits no longer than the first."""

    def impatient(connection, _record):
        connection.execute("PRAGMA busy_timeout=600")

    with (
        opened(f"sqlite:///{path}", pool_size=16) as one,
        opened(f"sqlite:///{path}", pool_size=16) as other,
        closing(sqlite3.connect(path, isolation_level=None)) as tool,
    ):
        for database in (one, other):
            event.listen(database.engine, "connect", impatient)
        tool.execute("BEGIN IMMEDIATE")
        found: list[str] = []

        def write(database: Database, number: int) -> None:
            try:
                add(database, number)
            except DatabaseUnavailable as error:
                found.append(str(error.__cause__))

        threads = [threading.Thread(target=write, args=(one, number)) for number in range(10)]
        begun = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.monotonic() - begun < 3
        assert len(found) == 10
        assert all("lock" in each for each in found)
        tool.execute("ROLLBACK")
        add(one, 1)
        add(other, 2)
        assert users(one) == 2


def test_a_connection_that_the_server_ended_is_replaced(tmp_path):
    with fresh("postgresql", tmp_path) as database:
        Base.metadata.create_all(database.engine)
        add(database, 1)
        url = database.engine.url.render_as_string(hide_password=False)
        ends = text(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        with opened(url) as server:

            def in_the_middle() -> None:
                with database.write() as session:
                    session.execute(insert(USERS), [row_of(USERS, 2)])
                    with server.write() as other:
                        other.execute(ends)
                    session.execute(insert(USERS), [row_of(USERS, 3)])

            assert cause_of(in_the_middle)
            assert users(database) == 1
            with server.write() as other:
                other.execute(ends)
            # While it was idle: nobody is told.
            add(database, 4)
            assert users(database) == 2


def test_more_threads_than_connections_take_turns(tmp_path):
    with fresh("postgresql", tmp_path) as owner:
        Base.metadata.create_all(owner.engine)
        url = owner.engine.url.render_as_string(hide_password=False)
        with opened(url, pool_size=2) as database:
            most: list[int] = []

            @event.listens_for(database.engine, "checkout")
            def count(*_: object) -> None:
                most.append(database.engine.pool.checkedout())  # type: ignore[attr-defined]

            threads = [threading.Thread(target=add, args=(database, n)) for n in range(24)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert users(database) == 24
            assert max(most) == 2
