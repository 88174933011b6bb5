"""Every row from one database into another, SQLite or PostgreSQL, in one transaction."""

import datetime as dt
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    JSON,
    BindParameter,
    Column,
    Connection,
    Table,
    bindparam,
    func,
    insert,
    select,
    text,
)
from sqlalchemy.exc import SQLAlchemyError

from app.db import migrate
from app.db.engine import Database
from app.db.tables import HEAD, Base
from app.errors import OperationRefused

BATCH = 1000
"""Rows that are in memory at a time."""

_MODULUS = 1 << 256


@dataclass(frozen=True)
class Content:
    """What a table holds, whatever the order of its rows: how many, and the sum of their hashes."""

    rows: int
    digest: int


Tell = Callable[[str], None]
"""Takes a line about what has been done so far."""


def copy(source: Database, target: Database, tell: Tell = lambda line: None) -> int:
    """Copy every row of every table; how many there were.

    The target is migrated and must have no rows. At the end counts and contents are compared, table
    by table, and the source is read once more: what was written to it meanwhile is in no copy.
    Raises OperationRefused, with the target as empty as it was, when anything differs; ConfigError
    when one of them does not answer.
    """
    require_current(source)
    migrate.upgrade(target)
    with explained(), moment_of(source) as reader, writing(target) as writer:
        copied = copy_moment(reader, writer, tell)
        _require_unchanged(source, copied)
    return sum(each.rows for each in copied.values())


def copy_moment(
    reader: Connection, writer: Connection, tell: Tell = lambda line: None
) -> dict[str, Content]:
    """What was copied of each table, compared with what has arrived; the caller commits.

    Raises OperationRefused when there were rows already, or anything differs.
    """
    _require_empty(writer)
    copied = {table.name: _copy(table, reader, writer, tell) for table in _tables()}
    for table in _tables():
        if (arrived := content(writer, table)) != copied[table.name]:
            raise OperationRefused(
                f"{table.name}: {copied[table.name].rows} rows were copied, and {arrived.rows} "
                "rows with another content have arrived; nothing was kept"
            )
    return copied


def require_current(source: Database) -> None:
    """Raise OperationRefused for a database that is not at this version's migration."""
    if (found := migrate.current(source)) != HEAD:
        raise OperationRefused(
            f"the source is at migration {found} and this version at {HEAD}: run "
            "`manifold db upgrade` on it first"
        )


def content(connection: Connection, table: Table) -> Content:
    """What a table holds now. The same on SQLite and PostgreSQL when the rows are the same."""
    rows = digest = 0
    for batch in _batches(connection, table):
        rows += len(batch)
        digest += sum(map(_hash, batch))
    return Content(rows, digest % _MODULUS)


@contextmanager
def moment_of(database: Database) -> Iterator[Connection]:
    """A connection that sees one moment's state of all tables until it is closed."""
    is_sqlite = database.engine.dialect.name == "sqlite"
    level = {} if is_sqlite else {"isolation_level": "REPEATABLE READ"}
    with database.engine.connect().execution_options(**level) as connection:
        # In SQLite the moment is that of the first read.
        connection.execute(text("SELECT 1 FROM alembic_version"))
        yield connection


@contextmanager
def writing(database: Database) -> Iterator[Connection]:
    """A connection whose transaction is committed at the end, and rolled back on any error."""
    writing = database.engine.execution_options(manifold_writes=True)
    with writing.begin() as connection:
        yield connection


@contextmanager
def explained() -> Iterator[None]:
    """Turn a driver's error into OperationRefused."""
    try:
        yield
    except SQLAlchemyError as error:
        told = str(getattr(error, "orig", None) or error).partition("\n")[0]
        raise OperationRefused(f"{told}; nothing was kept") from error


def _tables() -> list[Table]:
    """Parents before their children."""
    return Base.metadata.sorted_tables


def _require_empty(connection: Connection) -> None:
    for table in _tables():
        if connection.execute(select(func.count()).select_from(table)).scalar_one():
            raise OperationRefused(f"the target is not empty: {table.name} has rows")


def _require_unchanged(source: Database, copied: dict[str, Content]) -> None:
    with moment_of(source) as reader:
        changed = [t.name for t in _tables() if content(reader, t) != copied[t.name]]
    if changed:
        raise OperationRefused(
            f"the source was written to meanwhile ({', '.join(changed)}), which would be lost: "
            "stop every gateway and worker, and begin again; nothing was kept"
        )


def _copy(table: Table, reader: Connection, writer: Connection, tell: Tell) -> Content:
    rows = digest = 0
    filling = insert(table).values({c.name: _parameter(c) for c in table.columns})
    for batch in _batches(reader, table):
        try:
            writer.execute(filling, batch)
        except SQLAlchemyError as error:
            told = str(getattr(error, "orig", None) or error).partition("\n")[0]
            raise OperationRefused(
                f"{table.name}: the target takes none of rows {rows + 1} to {rows + len(batch)}: "
                f"{told}; nothing was kept"
            ) from error
        rows += len(batch)
        digest += sum(map(_hash, batch))
        tell(f"{table.name}: {rows} rows")
    return Content(rows, digest % _MODULUS)


def _parameter(column: Column[Any]) -> BindParameter[Any]:
    # Else a column without a value would hold JSON's null, which is a value.
    kind = JSON(none_as_null=True) if isinstance(column.type, JSON) else column.type
    return bindparam(column.name, type_=kind)


def _batches(connection: Connection, table: Table) -> Iterator[list[dict[str, Any]]]:
    streaming = connection.execution_options(yield_per=BATCH)
    for batch in streaming.execute(select(table)).mappings().partitions():
        yield [{column.name: row[column] for column in table.columns} for row in batch]


def _hash(row: dict[str, Any]) -> int:
    """A row's values as both kinds of database give them back, hashed."""
    plain = json.dumps(row, sort_keys=True, default=_as_text)
    return int.from_bytes(hashlib.sha256(plain.encode()).digest())


def _as_text(value: Any) -> str:
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC).isoformat()
    if isinstance(value, bytes):
        return value.hex()
    raise TypeError(f"no column of ours holds a {type(value).__name__}")
