"""Questions that are asked at nearly every request: their text is made once for each database.

What SQLAlchemy does at each execution, to look up the compiled text, to keep an account of the
connection and to wrap the rows, takes ten times as long as the answer of an index in SQLite. So it
makes the text and knows the types here, and the driver is asked directly.
"""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Dialect, Insert, Select, Update

Row = list[Any]
"""The values of one row, in the order of the columns that were selected."""
_Process = Callable[[Any], Any] | None


class Question:
    """A statement whose parameters are `bindparam`s, each with a value of its own at every asking.

    An INSERT without values has one for each column.
    """

    def __init__(self, statement: Select[Any] | Insert | Update) -> None:
        self._statement = statement
        self._asked: dict[str, _Asked] = {}

    def for_dialect(self, dialect: Dialect) -> "_Asked":
        """How this database is asked it."""
        found = self._asked.get(dialect.name)
        if found is None:
            found = self._asked[dialect.name] = _Asked(self._statement, dialect)
        return found


class _Asked:
    """A question as the text of one database, with what its types do to values."""

    def __init__(self, statement: Select[Any] | Insert | Update, dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        self.text = str(compiled)
        # The parameters' order where the driver wants them in one, None where it takes names.
        self._order: Sequence[str] | None = getattr(compiled, "positiontup", None)
        self._fixed = {n: p.value for n, p in compiled.binds.items() if not p.required}
        self._binds = [
            (name, process)
            for name, parameter in compiled.binds.items()
            if (process := _bind(parameter.type, dialect))
        ]
        self._results = [
            (at, process)
            for at, column in enumerate(getattr(statement, "selected_columns", ()))
            if (process := _result(column.type, dialect))
        ]

    def parameters(self, values: dict[str, Any]) -> Any:
        """The values as the driver takes them."""
        values |= self._fixed
        for name, process in self._binds:
            values[name] = process(values[name])
        return values if self._order is None else [values[name] for name in self._order]

    def row(self, found: Sequence[Any]) -> Row:
        """A row of the driver's with values of our types."""
        made = list(found)
        for at, process in self._results:
            # No type of ours makes anything of NULL.
            if (value := made[at]) is not None:
                made[at] = process(value)
        return made


def _bind(kind: Any, dialect: Dialect) -> _Process:
    found: _Process = kind.dialect_impl(dialect).bind_processor(dialect)
    return found


def _result(kind: Any, dialect: Dialect) -> _Process:
    # Some drivers name a column's type by a number; nothing that we store depends on it.
    found: _Process = kind.dialect_impl(dialect).result_processor(dialect, None)
    return found


class Asking:
    """A connection on which questions are asked, each answered from one moment's state."""

    def __init__(self, connection: Any, dialect: Dialect) -> None:
        self._connection = connection
        self._dialect = dialect

    def all(self, question: Question, **values: Any) -> list[Row]:
        """Every row that answers it."""
        asked = question.for_dialect(self._dialect)
        found = self._connection.execute(asked.text, asked.parameters(values))
        return [asked.row(row) for row in found.fetchall()]
