"""INSERT ... ON CONFLICT, which both databases have and SQLAlchemy spells for each of them."""

from typing import Any

from sqlalchemy.orm import Session


def insert(session: Session, table: type[Any]) -> Any:
    """An INSERT into a table, with `on_conflict_do_update`, for the session's database."""
    # PostgreSQL's dialect costs a start 60 ms and its process 2 MB.
    if session.get_bind().dialect.name == "sqlite":
        from sqlalchemy.dialects import sqlite  # noqa: PLC0415

        return sqlite.insert(table)
    from sqlalchemy.dialects import postgresql  # noqa: PLC0415

    return postgresql.insert(table)
