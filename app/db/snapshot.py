"""The rows of one moment as a SQLite file, taken while the gateway goes on working."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from app.db import copying, migrate
from app.db.engine import Database, connect
from app.db.tables import Base
from app.errors import OperationRefused

_LOCK_ATTEMPTS = 50
_LOCK_MILLISECONDS = 300
"""Less than PostgreSQL's deadlock_timeout: who is in our way is never the one to be given up."""
_PAUSE_SECONDS = 0.1


def take(database: Database, path: Path, meanwhile: Callable[[], None]) -> None:
    """Write all rows, as they are at one moment, into a new SQLite file at `path`.

    `meanwhile` is called at that moment: until it returns no process writes a row, and readers are
    not held up. Raises OperationRefused when there is no such moment, DatabaseUnavailable.
    """
    if database.engine.dialect.name == "sqlite":
        _take_pages(database, path, meanwhile)
    else:
        _take_rows(database, path, meanwhile)


def check(path: Path) -> None:
    """Return if the file is a whole SQLite database, else raise OperationRefused."""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as file:
            [found] = file.execute("PRAGMA integrity_check(1)").fetchone()
    except sqlite3.Error as error:
        raise OperationRefused(f"{path.name} is damaged: {error}") from error
    if found != "ok":
        raise OperationRefused(f"{path.name} is damaged: {found}")


def _take_pages(database: Database, path: Path, meanwhile: Callable[[], None]) -> None:
    file = database.engine.url.database
    with (
        _explained(),
        closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as reader,
        closing(sqlite3.connect(path)) as copy,
    ):
        reader.isolation_level = None
        with database.write():
            # A reader sees what was committed when it read first, however long it goes on.
            reader.execute("BEGIN")
            reader.execute("SELECT 1 FROM sqlite_master").fetchone()
            meanwhile()
        reader.backup(copy)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise OperationRefused(f"the database could not be copied: {error}") from error


def _take_rows(database: Database, path: Path, meanwhile: Callable[[], None]) -> None:
    copying.require_current(database)
    file = connect(f"sqlite:///{path}", pool_size=1)
    try:
        migrate.upgrade(file)
        with copying.explained(), ExitStack() as stack:
            with _no_writer(database):
                reader = stack.enter_context(copying.moment_of(database))
                meanwhile()
            with copying.writing(file) as writer:
                copying.copy_moment(reader, writer)
    finally:
        file.engine.dispose()


@contextmanager
def _no_writer(database: Database) -> Iterator[None]:
    """Every transaction that writes has ended when this begins, and the next waits for its end."""
    tables = ", ".join(f'"{table.name}"' for table in Base.metadata.sorted_tables)
    with database.engine.connect() as connection:
        for _ in range(_LOCK_ATTEMPTS):
            try:
                connection.execute(text(f"SET LOCAL lock_timeout = {_LOCK_MILLISECONDS}"))
                connection.execute(text(f"LOCK TABLE {tables} IN SHARE MODE"))
                break
            except OperationalError:
                connection.rollback()
                time.sleep(_PAUSE_SECONDS)
        else:
            raise OperationRefused("there is always somebody who writes to the database")
        yield
