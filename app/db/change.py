"""Changes that are made by every upload: their text is made once for each database.

As with questions, what SQLAlchemy does at each execution takes several times as long as the driver
and SQLite do.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Dialect, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from app.db.question import Question


class Changing:
    """A transaction on a connection, in which changes are made."""

    def __init__(self, connection: Any, dialect: Dialect) -> None:
        self._connection = connection
        self._dialect = dialect

    def do(self, change: Question, **values: Any) -> int:
        """Make a change; to how many rows."""
        asked = change.for_dialect(self._dialect)
        made: int = self._connection.execute(asked.text, asked.parameters(values)).rowcount
        return made


def within(session: Session) -> Changing:
    """Changes in the transaction of a session."""
    connection = session.connection()
    return Changing(connection.connection.dbapi_connection, connection.dialect)


@contextmanager
def transaction(engine: Engine) -> Iterator[Changing]:
    """A transaction that commits at the end and rolls back on any error.

    Raises the driver's errors as SQLAlchemy's.
    """
    dialect = engine.dialect
    driver: Any = dialect.loaded_dbapi
    try:
        lent = engine.raw_connection()
        try:
            connection: Any = lent.dbapi_connection
            if dialect.name == "sqlite":
                # The lock is taken at the beginning, as `engine` says.
                connection.execute("BEGIN IMMEDIATE")
            yield Changing(connection, dialect)
            connection.commit()
        except driver.Error as error:
            if dialect.is_disconnect(error, connection, None):
                # What was lent before this connection is as broken as this one.
                lent.invalidate(error)
            raise
        finally:
            # Rolls back what was not committed.
            lent.close()
    except driver.Error as error:
        raised = DBAPIError.instance(None, None, error, driver.Error, dialect=dialect)
        raise raised from error
