"""Rows from one database into another: everything arrives, or nothing does."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, insert, select, text, update

from app.db import copying, migrate
from app.db.engine import Database
from app.db.tables import Base
from app.errors import OperationRefused
from tests.row_builders import TABLES, everything, fill, fresh, row_of

MANY = 2 * copying.BATCH + 1


def counts(database: Database) -> set[int]:
    with database.engine.connect() as connection:
        return {
            connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in TABLES
        }


KINDS = [("sqlite", "postgresql"), ("postgresql", "sqlite"), ("sqlite", "sqlite")]


@pytest.fixture(params=KINDS, ids=" to ".join)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Database, Database]]:
    source, target = request.param
    with fresh(source, tmp_path) as made, fresh(target, tmp_path) as empty:
        yield made, empty


def test_every_row_of_every_table_arrives_as_it_was(pair):
    source, target = pair
    fill(source)
    told: list[str] = []
    assert copying.copy(source, target, told.append) == 3 * len(TABLES)
    assert everything(target) == everything(source)
    assert told == [f"{table.name}: 3 rows" for table in TABLES]
    assert migrate.current(target) == migrate.current(source)


def test_what_has_no_value_has_none_afterwards(pair):
    """Not JSON's null in its place, which is a value."""
    source, target = pair
    fill(source, 1)
    copying.copy(source, target)
    with target.engine.connect() as connection:
        for table in TABLES:
            for column in (c for c in table.columns if c.nullable):
                empty = select(func.count()).select_from(table).where(column.is_(None))
                assert connection.execute(empty).scalar_one() == 1, column


def test_many_rows_go_in_batches(pair):
    source, target = pair
    migrate.upgrade(source)
    users = Base.metadata.tables["users"]
    with copying.writing(source) as connection:
        connection.execute(insert(users), [row_of(users, number) for number in range(MANY)])
    told: list[str] = []
    assert copying.copy(source, target, told.append) == MANY
    assert told == [f"users: {n} rows" for n in (copying.BATCH, 2 * copying.BATCH, MANY)]
    assert everything(target) == everything(source)


def test_a_target_with_rows_is_refused_and_left_alone(pair):
    source, target = pair
    fill(source)
    fill(target, 1)
    before = everything(target)
    with pytest.raises(OperationRefused, match=r"not empty: .* has rows"):
        copying.copy(source, target)
    assert everything(target) == before


def test_a_source_of_another_version_is_refused(pair):
    source, target = pair
    fill(source)
    with copying.writing(source) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0003'"))
    with pytest.raises(OperationRefused, match=r"migration 0003 .* db upgrade"):
        copying.copy(source, target)
    assert migrate.current(target) is None


def while_copying(database: Database, change: Callable[[], None]) -> Callable[[str], None]:
    """Something that happens once, when the first table has been read."""
    left = [change]

    def told(_line: str) -> None:
        if left:
            left.pop()()

    return told


def test_what_is_written_meanwhile_is_not_lost_unnoticed(pair):
    source, target = pair
    fill(source)

    def write() -> None:
        with source.write() as session:
            session.execute(text("UPDATE files SET filename = 'another' WHERE filename <> 'x'"))

    with pytest.raises(OperationRefused, match=r"written to meanwhile \(files\)"):
        copying.copy(source, target, while_copying(source, write))
    assert counts(target) == {0}
    assert copying.copy(source, target) == 3 * len(TABLES)


def test_a_value_that_the_target_changes_is_found(pair):
    """A row that does not arrive as it left is as bad as one that does not arrive."""
    source, target = pair
    fill(source)
    migrate.upgrade(target)
    triggers = {
        "sqlite": [
            "CREATE TRIGGER shorten AFTER INSERT ON files BEGIN UPDATE files SET "
            "filename = substr(filename, 1, 3) WHERE id = NEW.id; END"
        ],
        "postgresql": [
            "CREATE FUNCTION shorten() RETURNS trigger AS "
            "$$ BEGIN NEW.filename := left(NEW.filename, 3); RETURN NEW; END $$ LANGUAGE plpgsql",
            "CREATE TRIGGER shorten BEFORE INSERT ON files FOR EACH ROW EXECUTE FUNCTION shorten()",
        ],
    }
    with copying.writing(target) as connection:
        for statement in triggers[target.engine.dialect.name]:
            connection.exec_driver_sql(statement)
    with pytest.raises(OperationRefused, match=r"files: 3 rows .* another content"):
        copying.copy(source, target)
    assert counts(target) == {0}


def test_what_postgresql_cannot_hold_is_named_and_nothing_is_kept(tmp_path):
    with fresh("sqlite", tmp_path) as source, fresh("postgresql", tmp_path) as target:
        fill(source)
        with copying.writing(source) as connection:
            files = Base.metadata.tables["files"]
            connection.execute(update(files).values(mime_type="x" * 300))
        with pytest.raises(OperationRefused, match="files: the target takes none of rows 1 to 3"):
            copying.copy(source, target)
        assert counts(target) == {0}


def test_a_value_counts_and_the_order_of_rows_does_not(tmp_path):
    users = Base.metadata.tables["users"]
    rows = [row_of(users, number) for number in range(5)]
    found = []
    for order in (rows, rows[::-1], [*rows[:-1], {**rows[-1], "alias": "another"}], rows[:-1]):
        with fresh("sqlite", tmp_path) as database:
            migrate.upgrade(database)
            with copying.writing(database) as connection:
                connection.execute(insert(users), order)
                found.append(copying.content(connection, users))
    assert found[0] == found[1]
    assert len({each.digest for each in found}) == 3


def test_no_table_counts_its_rows_by_itself():
    """A sequence would begin anew in the copy, and give its numbers out a second time."""
    counted = [table.name for table in TABLES if table.autoincrement_column is not None]
    assert counted == []
