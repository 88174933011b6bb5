"""Nodes that start at the same moment on an empty database: it is migrated once, both serve."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import NullPool, create_engine, inspect, text

from app.db import migrate
from tests.e2e import inside
from tests.e2e.conftest import StartGateway
from tests.e2e.gateway import Gateway

CONFIG: dict[str, Any] = {
    "model_list": [{"model_name": "disk", "litellm_params": {"model": "local/disk"}}]
}


@contextmanager
def sqlite(folder: Path) -> Iterator[str]:
    yield f"sqlite:///{folder / 'shared.db'}"


@contextmanager
def postgresql(_folder: Path) -> Iterator[str]:
    with inside.scratch_postgres() as url:
        yield url


@pytest.fixture(params=[sqlite, postgresql], ids=lambda kind: kind.__name__)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with request.param(tmp_path) as url:
        yield url


def test_two_nodes_with_four_processes_each(start_gateway: StartGateway, url: str):
    def start(name: str) -> Gateway:
        return start_gateway(CONFIG, name=name, workers=4, threads=4, database_url=url)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(start, ("first", "second"))
    try:
        key = first.new_user(user_id="alice")["key"]
        for node in (first, second):
            for _ in range(8):
                assert node.api("GET", "/v1/files", key=key).status_code == 200
            assert "Traceback" not in node.log_text()
        script = ScriptDirectory.from_config(migrate.configuration())
        log = first.log_text() + second.log_text()
        done = {
            each.revision: log.count(f"-> {each.revision},") for each in script.walk_revisions()
        }
        # A new SQLite file begins with the newest tables at once.
        begun = log.count('"event": "database_begun"')
        is_sqlite = url.startswith("sqlite")
        assert (Counter(done.values()), begun) == ({int(not is_sqlite): len(done)}, int(is_sqlite))
    finally:
        for node in (first, second):
            node.stop()


def test_a_migration_that_fails_stops_the_start_and_changes_nothing(
    start_gateway: StartGateway, url: str
):
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        # Not the first table that is made: those before it must be taken back.
        connection.execute(text("CREATE TABLE jobs (id INTEGER)"))
        connection.execute(text("INSERT INTO jobs VALUES (7)"))
    with pytest.raises(RuntimeError, match="ended with 3") as ended:
        start_gateway(CONFIG, workers=1, threads=4, database_url=url)
    told = str(ended.value)
    assert "the database could not be migrated" in told and "CREATE TABLE jobs" in told
    assert "Traceback" not in told
    assert inspect(engine).get_table_names() == ["jobs"]
    with engine.connect() as connection:
        assert connection.execute(text("SELECT id FROM jobs")).scalars().all() == [7]
