"""INSERT ... ON CONFLICT, which both databases have and SQLAlchemy spells for each of them."""

from typing import Any

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session


def insert(session: Session, table: type[Any]) -> Any:
    """An INSERT into a table, with `on_conflict_do_update`, for the session's database."""
    is_sqlite = session.get_bind().dialect.name == "sqlite"
    return sqlite.insert(table) if is_sqlite else postgresql.insert(table)
