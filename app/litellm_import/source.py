"""LiteLLM's PostgreSQL, read and never written: its tables row by row, whatever its version.

Source: LiteLLM's schema.prisma, versions 1.60 to 1.109; read 2026-11. Columns that a version does
not have are None.
"""

import datetime as dt
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, create_engine, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from app.errors import OperationRefused

AT_ONCE = 500
"""Rows that are in memory at a time."""

USERS = "LiteLLM_UserTable"
KEYS = "LiteLLM_VerificationToken"
OLD_KEYS = "LiteLLM_DeprecatedVerificationToken"
TEAMS = "LiteLLM_TeamTable"
BUDGETS = "LiteLLM_BudgetTable"
FILES = "LiteLLM_ManagedFileTable"
OBJECTS = "LiteLLM_ManagedObjectTable"
MODELS = "LiteLLM_ProxyModelTable"

# What libpq knows of the words that Prisma's addresses have.
_KNOWN = ("sslmode", "sslcert", "sslkey", "sslrootcert", "connect_timeout", "options", "host")

Row = dict[str, Any]


class Source:
    """One moment's state of LiteLLM's database."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        found = inspect(connection)
        self._columns = {
            table: {column["name"] for column in found.get_columns(table)}
            for table in found.get_table_names()
            if table.startswith("LiteLLM_")
        }
        if KEYS not in self._columns:
            raise OperationRefused(
                f"there is no table {KEYS!r}: this is no database of LiteLLM's, or its tables are "
                "in another schema (?schema=NAME at the end of the address)"
            )

    def has(self, table: str) -> bool:
        """Whether this version has the table."""
        return table in self._columns

    def batches(self, table: str, key: str, columns: Sequence[str]) -> Iterator[list[Row]]:
        """All rows, ordered by their key, some hundred at a time."""
        if not self.has(table):
            return
        there = [name for name in columns if name in self._columns[table]]
        listed = ", ".join(f'"{name}"' for name in there)
        after: str | None = None
        while True:
            where = f'WHERE "{key}" > :after' if after is not None else ""
            query = text(
                f'SELECT {listed} FROM "{table}" {where} ORDER BY "{key}" LIMIT {AT_ONCE}'  # noqa: S608  # names of ours
            )
            found = self._connection.execute(query, {"after": after} if after is not None else {})
            rows = [dict(row) for row in found.mappings()]
            if rows:
                yield [dict.fromkeys(columns) | row for row in rows]
            if len(rows) < AT_ONCE:
                return
            after = rows[-1][key]

    def some(
        self, table: str, key: str, values: Iterable[str], columns: Sequence[str]
    ) -> list[Row]:
        """The rows with these keys."""
        wanted = sorted(set(values))
        if not wanted or not self.has(table):
            return []
        there = [name for name in columns if name in self._columns[table]]
        listed = ", ".join(f'"{name}"' for name in there)
        query = text(f'SELECT {listed} FROM "{table}" WHERE "{key}" = ANY(:wanted)')  # noqa: S608  # likewise
        found = self._connection.execute(query, {"wanted": wanted}).mappings()
        return [dict.fromkeys(columns) | dict(row) for row in found]

    def alike(self, table: str, column: str, order: str) -> list[str]:
        """The values of a column that differ from another one's in letter case at most.

        Oldest first, by `order`.
        """
        if not self.has(table) or column not in self._columns[table]:
            return []
        oldest = order if order in self._columns[table] else column
        query = text(
            f"""SELECT "{column}" FROM "{table}" WHERE lower("{column}") IN (
            SELECT lower("{column}") FROM "{table}" WHERE "{column}" <> ''
            GROUP BY 1 HAVING count(*) > 1)
            ORDER BY "{oldest}" NULLS LAST, 1"""  # noqa: S608  # likewise
        )
        return [value for value in self._connection.execute(query).scalars() if value is not None]


@contextmanager
def opened(url: str) -> Iterator[Source]:
    """The database behind LiteLLM's own DATABASE_URL. Raises OperationRefused for another one."""
    engine = create_engine(_address(url), hide_parameters=True)
    try:
        with engine.connect().execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        ) as connection:
            yield Source(connection)
    except SQLAlchemyError as error:
        told = str(getattr(error, "orig", None) or error).partition("\n")[0]
        raise OperationRefused(f"LiteLLM's database: {told}") from error
    finally:
        engine.dispose()


def _address(url: str) -> Any:
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() not in ("postgresql", "postgres"):
            raise OperationRefused("LiteLLM's database is PostgreSQL: postgresql://user@host/name")
    except (ArgumentError, NoSuchModuleError) as error:
        raise OperationRefused("LiteLLM's address is not a URL of PostgreSQL's") from error
    query = {name: value for name, value in parsed.query.items() if name in _KNOWN}
    if schema := parsed.query.get("schema"):
        query["options"] = f"-csearch_path={schema}"
    return parsed.set(drivername="postgresql+psycopg", query=query)


def as_json(value: Any) -> dict[str, Any]:
    """A JSON column's object, also when it was stored as text; empty for anything else."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return {}
    return value if isinstance(value, dict) else {}


def moment(value: Any) -> dt.datetime | None:
    """A timestamp, which Prisma writes in UTC without saying so."""
    if not isinstance(value, dt.datetime):
        return None
    return value if value.tzinfo else value.replace(tzinfo=dt.UTC)


def epoch(value: Any) -> dt.datetime | None:
    """Unix seconds as a moment."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        return None
    try:
        return dt.datetime.fromtimestamp(value, dt.UTC)
    except (OverflowError, OSError, ValueError):
        return None
