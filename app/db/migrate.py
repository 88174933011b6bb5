"""Bring the database's tables to the newest migration: once, locked, all or nothing."""

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import OperationalError, SQLAlchemyError

import app
from app.db.engine import Database
from app.db.tables import HEAD
from app.errors import ConfigError, DatabaseAway

if TYPE_CHECKING:
    from alembic.config import Config

MIGRATIONS = Path(app.__file__).parent.parent / "migrations"
NEWEST = MIGRATIONS / "newest.sql"
"""What all migrations make of an empty SQLite file: see `migrations.newest`."""

_log = logging.getLogger("manifold")

# Any number will do, as long as every gateway takes the same one.
_POSTGRES_LOCK = 0x6D616E69666F6C64


def current(database: Database) -> str | None:
    """The migration the database is at, None when it has no tables of ours.

    Raises DatabaseAway if the database does not answer.
    """
    try:
        with database.engine.connect() as connection:
            return _revision(connection)
    except SQLAlchemyError as error:
        raise DatabaseAway([f"database_url: {_first_line(error)}"]) from error


def upgrade(database: Database) -> None:
    """Bring the database to HEAD; the second of two processes finds the work done.

    Raises DatabaseAway if it does not answer, and ConfigError, with the database as it was, if a
    statement fails, or a newer version of the gateway has written to it.
    """
    if _is_up_to_date(database):
        return
    try:
        with _alone(database):
            # Whoever was first may have done it; a look needs no lock on the database.
            if not _is_up_to_date(database):
                _upgrade(database)
    except (SQLAlchemyError, OSError) as error:
        raise ConfigError([f"the database could not be migrated: {error}"]) from error


def configuration() -> "Config":
    """Alembic's configuration for our migrations, wherever the package is installed."""
    # Alembic costs a quarter of a cold start, and most starts have nothing to migrate.
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config


def _is_up_to_date(database: Database) -> bool:
    try:
        return current(database) == HEAD
    except ConfigError as error:
        # Another process may be creating this very file; the lock will tell.
        if database.engine.dialect.name == "sqlite" and isinstance(
            error.__cause__, OperationalError
        ):
            return False
        raise


@contextmanager
def _alone(database: Database) -> Iterator[None]:
    """No second process of this host migrates the same SQLite file meanwhile.

    PostgreSQL needs no file: its advisory lock is taken inside the transaction.
    """
    url = database.engine.url
    if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        yield
        return
    with Path(f"{url.database}.migrate.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def step_by_step(database: Database) -> None:
    """Run each migration that is missing, in one transaction. Raises ConfigError."""
    with _changing(database) as connection:
        _run(connection, _revision(connection))


def _upgrade(database: Database) -> None:
    with _changing(database) as connection:
        found = _revision(connection)
        if found == HEAD:
            return
        if connection.dialect.name == "sqlite" and not inspect(connection).get_table_names():
            _begin_with_newest(connection)
        else:
            _run(connection, found)


@contextmanager
def _changing(database: Database) -> Iterator[Connection]:
    """A transaction that nobody else migrates in."""
    with (
        database.engine.connect().execution_options(manifold_writes=True) as connection,
        _loose_foreign_keys(connection),
        connection.begin(),
    ):
        if connection.dialect.name == "postgresql":
            lock = text("SELECT pg_advisory_xact_lock(:number)")
            connection.execute(lock, {"number": _POSTGRES_LOCK})
        yield connection


def _begin_with_newest(connection: Connection) -> None:
    """Make the tables of a new file without a step for each migration, and without Alembic."""
    for paragraph in NEWEST.read_text().split("\n\n")[1:]:
        connection.exec_driver_sql(paragraph)
    _log.info("database_begun", extra={"migration": HEAD})


def _run(connection: Connection, found: str | None) -> None:
    from alembic import command  # noqa: PLC0415
    from alembic.util import CommandError  # noqa: PLC0415

    config = configuration()
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        if found is None:
            raise ConfigError([f"the database could not be migrated: {error}"]) from error
        raise ConfigError(
            [
                f"the database is at migration {found!r}, which this version of the gateway "
                f"(at {HEAD!r}) does not know: a newer version has upgraded it; start that "
                "version, or restore the database from before"
            ]
        ) from error
    _refuse_orphans(connection)


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


@contextmanager
def _loose_foreign_keys(connection: Connection) -> Iterator[None]:
    """SQLite changes a table by replacing it, and dropping the old one would empty its children."""
    if connection.dialect.name != "sqlite":
        yield
        return
    # The pragma does nothing inside a transaction, so it goes past SQLAlchemy, which begins one.
    driver: Any = connection.connection.driver_connection
    driver.execute("PRAGMA foreign_keys=OFF")
    try:
        yield
    finally:
        driver.execute("PRAGMA foreign_keys=ON")


def _refuse_orphans(connection: Connection) -> None:
    if connection.dialect.name == "sqlite":
        orphans = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
        if orphans:
            tables = ", ".join(sorted({row[0] for row in orphans}))
            raise ConfigError(
                [f"the database could not be migrated: rows without their parent in {tables}"]
            )


def _first_line(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).partition("\n")[0]
