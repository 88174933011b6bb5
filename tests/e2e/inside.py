"""What an operator sees inside a gateway: rows of its database, files in its data directory."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, inspect, make_url, text
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


def rows(gateway: Gateway, only: str | None = None) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table (or of one), sorted."""
    settings = gateway.config["general_settings"]
    url = settings.get("database_url") or f"sqlite:///{gateway.data_dir / 'manifold.db'}"
    parsed = make_url(url)
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    engine = create_engine(parsed)
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
