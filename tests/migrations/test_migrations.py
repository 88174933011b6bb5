"""One head; each revision up, down, up; no drift; two at once; on both databases."""

import os
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import MetaData, Table, create_engine, insert, inspect, select, text

from app.db import migrate
from app.db.engine import Database, connect
from app.db.tables import HEAD, Base
from app.errors import ConfigError
from migrations import newest
from tests.row_builders import row_of

POSTGRES = os.environ.get("MANIFOLD_TEST_POSTGRES")
TABLES = {table.name for table in Base.metadata.sorted_tables}
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of an empty database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'manifold.db'}"
        return
    if POSTGRES is None:
        pytest.skip("MANIFOLD_TEST_POSTGRES is not set")
    name = f"migrations_{uuid.uuid4().hex}"
    server = connect(POSTGRES).engine.execution_options(isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield server.url.set(database=name).render_as_string(hide_password=False)
    with server.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    server.dispose()


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    database = connect(url)
    yield database
    database.engine.dispose()


def tables(database: Database) -> set[str]:
    return set(inspect(database.engine).get_table_names())


def run(database: Database, *steps: tuple[object, ...]) -> None:
    """Alembic's own commands, in one transaction of the database."""
    with database.engine.begin() as connection:
        config = migrate.configuration()
        config.attributes["connection"] = connection
        for function, *arguments in steps:
            function(config, *arguments)  # type: ignore[operator]  # an alembic command


def test_there_is_one_head_and_the_constant_names_it():
    assert ScriptDirectory.from_config(migrate.configuration()).get_heads() == [HEAD]


def test_setup_cfg_finds_the_same_migrations(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    assert ScriptDirectory.from_config(Config("setup.cfg")).get_heads() == [HEAD]


def test_every_migration_goes_up_and_down_and_up_again(database: Database):
    revisions = ScriptDirectory.from_config(migrate.configuration()).walk_revisions()
    for revision in reversed(list(revisions)):
        below = revision.down_revision or "base"
        run(
            database,
            (command.upgrade, revision.revision),
            (command.downgrade, below),
            (command.upgrade, revision.revision),
        )
    assert tables(database) == TABLES | {"alembic_version"}
    run(database, (command.downgrade, "base"))
    assert tables(database) == {"alembic_version"}


@pytest.mark.parametrize(
    "revision",
    [
        each.revision
        for each in ScriptDirectory.from_config(migrate.configuration()).walk_revisions()
    ],
)
def test_rows_from_before_an_upgrade_are_there_after_it(database: Database, revision: str):
    run(database, (command.upgrade, revision))
    old = MetaData()
    old.reflect(database.engine)
    filled = [table for table in old.sorted_tables if table.name != "alembic_version"]
    with database.engine.begin() as connection:
        for table in filled:
            connection.execute(insert(table), [row_of(table, n) for n in range(3)])
    before = {table.name: rows_of(database, table) for table in filled}
    migrate.upgrade(database)
    # By the old columns: an upgrade that drops one does not get through here.
    assert {table.name: rows_of(database, table) for table in filled} == before
    assert {len(rows) for rows in before.values()} == {3}


def rows_of(database: Database, table: Table) -> list[str]:
    with database.engine.connect() as connection:
        return sorted(repr(tuple(row)) for row in connection.execute(select(table)))


def test_the_tables_are_what_the_migrations_make(database: Database):
    migrate.upgrade(database)
    run(database, (command.check,))


def test_an_upgrade_is_done_once(database: Database):
    assert migrate.current(database) is None
    migrate.upgrade(database)
    assert migrate.current(database) == HEAD
    migrate.upgrade(database)
    assert tables(database) == TABLES | {"alembic_version"}


def test_a_database_that_is_up_to_date_costs_no_alembic(database: Database, url: str):
    migrate.upgrade(database)
    script = (
        "import sys; from app.db import engine, migrate\n"
        "migrate.upgrade(engine.connect(sys.argv[1]))\n"
        "assert 'alembic' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script, url], check=True, cwd=ROOT)


def test_two_gateways_that_start_at_once_both_find_the_tables(url: str, database: Database):
    script = (
        "import sys; from app.db import engine, migrate\n"
        "sys.stdin.read()\n"
        "migrate.upgrade(engine.connect(sys.argv[1]))"
    )
    read, write = os.pipe()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, url], cwd=ROOT, stdin=read, stderr=subprocess.PIPE
        )
        for _ in range(2)
    ]
    os.close(read)
    os.close(write)  # Both read the end of their input at the same moment.
    for process in processes:
        _, complaints = process.communicate(timeout=60)
        assert process.returncode == 0, complaints
    assert tables(database) == TABLES | {"alembic_version"}


def test_a_database_from_a_newer_version_is_refused_and_left_alone(database: Database):
    migrate.upgrade(database)
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigError, match=r"'9999'.*newer version"):
        migrate.upgrade(database)
    assert migrate.current(database) == "9999"


def test_a_failing_migration_names_the_statement_and_changes_nothing(database: Database):
    with database.engine.begin() as connection:
        # Not the first table that is made, so that some would be left behind.
        connection.execute(text("CREATE TABLE copies (id INTEGER)"))
    with pytest.raises(ConfigError, match="CREATE TABLE copies"):
        migrate.upgrade(database)
    assert tables(database) == {"copies"}


def test_a_database_that_does_not_answer_is_a_mistake_in_the_configuration(tmp_path: Path):
    nowhere = connect("postgresql://nobody:hunter2@127.0.0.1:1/none")
    with pytest.raises(ConfigError, match="database_url") as failure:
        migrate.upgrade(nowhere)
    assert "hunter2" not in str(failure.value)
    with pytest.raises(ConfigError):
        migrate.upgrade(connect(f"sqlite:///{tmp_path / 'missing' / 'manifold.db'}"))


def test_foreign_keys_hold_again_after_an_upgrade(tmp_path: Path):
    path = tmp_path / "manifold.db"
    database = connect(f"sqlite:///{path}", pool_size=1)
    migrate.upgrade(database)
    with database.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    database.engine.dispose()
    with sqlite3.connect(path) as plain:
        assert plain.execute("PRAGMA foreign_key_check").fetchall() == []
    plain.close()


def test_a_database_in_memory_can_be_migrated():
    database = connect("sqlite://")
    migrate.upgrade(database)
    assert tables(database) == TABLES | {"alembic_version"}
    database.engine.dispose()


def test_alembic_itself_takes_the_address_from_the_environment(tmp_path: Path):
    path = tmp_path / "manifold.db"
    environ = {**os.environ, "DATABASE_URL": f"sqlite:///{path}"}
    subprocess.run(
        [sys.executable, "-m", "alembic", "-c", "setup.cfg", "upgrade", "head"],
        check=True,
        cwd=ROOT,
        env=environ,
        capture_output=True,
    )
    engine = create_engine(f"sqlite:///{path}")
    assert set(inspect(engine).get_table_names()) == TABLES | {"alembic_version"}
    engine.dispose()


# ------------------------------------------------ what a new SQLite file begins with


def made(path: Path) -> dict[tuple[str, str], str]:
    with closing(sqlite3.connect(path)) as database:
        rows = database.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
    return {(kind, name): " ".join((sql or "").split()) for kind, name, sql in rows}


def test_a_new_file_begins_as_if_every_migration_had_been_run(tmp_path):
    for name, begin in (("new", migrate.upgrade), ("old", migrate.step_by_step)):
        database = connect(f"sqlite:///{tmp_path / name}")
        begin(database)
        assert migrate.current(database) == HEAD
        database.engine.dispose()
    assert made(tmp_path / "new") == made(tmp_path / "old")
    assert newest.written() == migrate.NEWEST.read_text(), "run `python -m migrations.newest`"


def test_a_new_file_begins_without_alembic(tmp_path):
    code = (
        "import sys; from app.db import engine, migrate; "
        f"migrate.upgrade(engine.connect('sqlite:///{tmp_path / 'new'}')); "
        "assert not [name for name in sys.modules if name.startswith('alembic')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_file_with_somebody_else_s_table_is_migrated_step_by_step(tmp_path, monkeypatch):
    monkeypatch.setattr(migrate, "NEWEST", tmp_path / "not there")
    database = connect(f"sqlite:///{tmp_path / 'shared'}")
    with database.engine.begin() as connection:
        connection.execute(text("CREATE TABLE theirs (id INTEGER)"))
    migrate.upgrade(database)
    assert tables(database) == {*TABLES, "alembic_version", "theirs"}
    database.engine.dispose()


def test_a_beginning_that_fails_leaves_an_empty_file(tmp_path, monkeypatch):
    broken = tmp_path / "broken.sql"
    broken.write_text(migrate.NEWEST.read_text().replace("INSERT INTO", "INSERT IN"))
    monkeypatch.setattr(migrate, "NEWEST", broken)
    database = connect(f"sqlite:///{tmp_path / 'new'}")
    with pytest.raises(ConfigError, match="could not be migrated"):
        migrate.upgrade(database)
    assert tables(database) == set()
    monkeypatch.undo()
    migrate.upgrade(database)
    assert tables(database) == {*TABLES, "alembic_version"}
    database.engine.dispose()
