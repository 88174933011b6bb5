"""How SQLite would answer what a question asks."""

from contextlib import closing
from typing import Any

from sqlalchemy import event

from app.db.engine import Database
from app.db.question import Asking


class Listening:
    """A connection that remembers what it was asked."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.asked: list[tuple[str, Any]] = []

    def execute(self, text: str, parameters: Any) -> Any:
        self.asked.append((text, parameters))
        return self._connection.execute(text, parameters)


def plans(database: Database, ask: Any, *, of_objects: bool = False) -> list[list[str]]:
    """The steps by which each question of `ask` is answered.

    It is given an Asking, or with `of_objects` a session.
    """
    asked: list[tuple[str, Any]] = []
    if of_objects:

        @event.listens_for(database.engine, "before_cursor_execute")
        def remember(_connection, _cursor, statement, parameters, _context, _many):
            if statement.startswith("SELECT"):
                asked.append((statement, parameters))

        with database.read() as session:
            ask(session)
        event.remove(database.engine, "before_cursor_execute", remember)
    with closing(database.engine.raw_connection()) as connection:
        if not of_objects:
            listening = Listening(connection)
            ask(Asking(listening, database.engine.dialect))
            asked = listening.asked
        return [
            [row[3] for row in connection.cursor().execute(f"EXPLAIN QUERY PLAN {text}", values)]
            for text, values in asked
        ]
