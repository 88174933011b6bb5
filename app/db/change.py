"""Changes that are made by every upload: their text is made once for each database.

As with questions, what SQLAlchemy does at each execution takes several times as long as the driver
and SQLite do.
"""

from typing import Any

from sqlalchemy import Dialect
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
