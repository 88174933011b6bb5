"""What an operator sees inside a gateway: rows of its database, files in its data directory."""

import os
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, inspect, make_url, text
from sqlalchemy.schema import CreateSchema, DropSchema

from tests.e2e.gateway import Gateway


@contextmanager
def scratch_postgres() -> Iterator[str]:
    """The URL of an empty schema on the test server; gone afterwards."""
    server = os.environ.get("MANIFOLD_TEST_POSTGRES")
    if not server:
        if os.environ.get("MANIFOLD_TEST_NO_SKIP"):
            pytest.fail("MANIFOLD_TEST_POSTGRES is not set")
        pytest.skip("MANIFOLD_TEST_POSTGRES is not set")
    url = make_url(server).set(drivername="postgresql+psycopg")
    schema = f"e2e_{uuid.uuid4().hex}"
    admin = create_engine(url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(CreateSchema(schema))
    in_schema = url.update_query_dict({"options": f"-csearch_path={schema}"})
    try:
        yield in_schema.render_as_string(hide_password=False)
    finally:
        with admin.connect() as connection:
            connection.execute(DropSchema(schema, cascade=True))
        admin.dispose()


def _engine(gateway: Gateway, **options: Any) -> Engine:
    settings = gateway.config["general_settings"]
    url = settings.get("database_url") or f"sqlite:///{gateway.data_dir / 'manifold.db'}"
    parsed = make_url(url)
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    return create_engine(parsed, **options)


class Watch:
    """Some tables of a gateway, to be looked at thousands of times: over one connection."""

    def __init__(self, gateway: Gateway, *, but: Collection[str]) -> None:
        self._engine = _engine(gateway, isolation_level="AUTOCOMMIT")
        self._connection = self._engine.connect()
        self._names = sorted(set(inspect(self._engine).get_table_names()) - set(but))
        assert self._names

    def rows(self) -> list[list[Any]]:
        """Every row, table by table, in an order of its own."""
        driver: Any = self._connection.connection.driver_connection
        if self._engine.dialect.name == "sqlite":
            found = (driver.execute(f'SELECT * FROM "{name}"') for name in self._names)
            return [sorted(each, key=repr) for each in found]
        # All in one statement: asking takes longer than reading.
        every = (f"SELECT '{name}', each::text FROM \"{name}\" each" for name in self._names)
        return [sorted(driver.execute(" UNION ALL ".join(every)))]

    def close(self) -> None:
        self._connection.close()
        self._engine.dispose()


def rows(gateway: Gateway, only: str | None = None) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table (or of one), sorted."""
    engine = _engine(gateway)
    try:
        with engine.connect() as connection:
            names = [only] if only else inspect(connection).get_table_names()
            return {
                name: sorted(
                    (tuple(row) for row in connection.execute(text(f'SELECT * FROM "{name}"'))),
                    key=repr,
                )
                for name in names
            }
    finally:
        engine.dispose()


def files_below(folder: Path) -> list[str]:
    """The paths of all files below a folder, relative to it, sorted; but those that say that a
    process lives."""
    found = folder.rglob("*") if folder.exists() else ()
    files = (path for path in found if path.is_file() and path.name != ".lock")
    return sorted(str(path.relative_to(folder)) for path in files)


def spooled(gateway: Gateway) -> list[str]:
    """The temporary files of uploads."""
    return files_below(gateway.data_dir / "spool")


def local_files(gateway: Gateway) -> set[str]:
    """The ids of the files in the local store that are there for good."""
    entries = (gateway.data_dir / "local").glob("*/*.json")
    return {path.stem for path in entries}
