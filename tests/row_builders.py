"""Whole databases for tests: empty ones of each kind, and rows in every table there is."""

import datetime as dt
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import JSON, Boolean, DateTime, Integer, Table, insert, select, text

from app.db import copying, migrate
from app.db.engine import Database, connect
from app.db.tables import Base, UtcDateTime
from tests.conftest import postgres_url

ODD = "ö 日本 🦉 '; DROP TABLE files; -- \" \\ \t"
TABLES = Base.metadata.sorted_tables


@contextmanager
def fresh(kind: str, folder: Path) -> Iterator[Database]:
    """An empty database without tables, as an operator makes it."""
    if kind == "sqlite":
        database = connect(f"sqlite:///{folder / uuid.uuid4().hex}.db")
        yield database
        database.engine.dispose()
        return
    name = f"copy_{uuid.uuid4().hex}"
    server = connect(postgres_url()).engine.execution_options(isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    database = connect(server.url.set(database=name).render_as_string(hide_password=False))
    try:
        yield database
    finally:
        database.engine.dispose()
        with server.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        server.dispose()


def value_for(column: Any, number: int) -> Any:
    """Something that is unusual, and of which there is only one."""
    for key in column.foreign_keys:
        return value_for(key.column, number)
    kind = column.type
    if isinstance(kind, Boolean):
        return number % 2 == 0
    if isinstance(kind, Integer):
        return number
    if isinstance(kind, UtcDateTime | DateTime):
        zone = dt.timezone(dt.timedelta(hours=number % 5))
        return dt.datetime(2026, 11, 1, 12, 0, 0, number, zone)
    if isinstance(kind, JSON):
        return {"b": [1, 2.5, None, ODD, {"x": True}], "a": number}
    named = f"{column.table.name}.{column.name}.{number}"
    return f"{named} {ODD}"[: kind.length]


def row_of(table: Table, number: int, *, sparse: bool = False) -> dict[str, Any]:
    return {c.name: None if sparse and c.nullable else value_for(c, number) for c in table.columns}


def fill(database: Database, rows: int = 3) -> None:
    """So many rows in every table, one of them with nothing that may be left out."""
    migrate.upgrade(database)
    with copying.writing(database) as connection:
        for table in TABLES:
            for number in range(rows):
                sparse = number == rows - 1
                connection.execute(insert(table), [row_of(table, number, sparse=sparse)])


def everything(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    with database.engine.connect() as connection:
        return {
            table.name: sorted((tuple(row) for row in connection.execute(select(table))), key=repr)
            for table in TABLES
        }
