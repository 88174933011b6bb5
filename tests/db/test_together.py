"""Changes of several threads in one transaction: each is made or not made, and its thread knows."""

import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing

import pytest
from sqlalchemy import bindparam, event, insert, select, update
from sqlalchemy.exc import IntegrityError

from app.db.change import Changing
from app.db.engine import Database
from app.db.question import Question
from app.db.tables import Base, User
from app.db.together import Together
from app.errors import DatabaseUnavailable, NotFound
from tests.row_builders import row_of

USERS = Base.metadata.tables["users"]
ADD = Question(insert(USERS))
RENAME = Question(
    update(USERS).where(USERS.c.user_id == bindparam("who")).values(alias=bindparam("alias"))
)
FEW = 12


def add(number: int) -> Callable[[Changing], int]:
    return lambda changing: changing.do(ADD, **row_of(USERS, number))


def users(database: Database) -> int:
    with database.read() as session:
        return len(session.scalars(select(User.user_id)).all())


def side_by_side(together: Together, works: list[Callable[[Changing], object]]) -> list[object]:
    """What each work has returned or raised; all wait for a first one, so they go together."""
    found: list[object] = [None] * len(works)
    begun, go_on = threading.Event(), threading.Event()

    def first(changing: Changing) -> None:
        begun.set()
        go_on.wait(5)

    def do(number: int) -> None:
        try:
            found[number] = together.do(works[number])
        except Exception as error:
            found[number] = error

    leading = threading.Thread(target=together.do, args=(first,))
    leading.start()
    begun.wait(5)
    threads = [threading.Thread(target=do, args=(number,)) for number in range(len(works))]
    for thread in threads:
        thread.start()
    while len(together._waiting) < len(works) and not together._is_alone:
        pass
    go_on.set()
    for thread in (leading, *threads):
        thread.join(20)
    return found


@pytest.fixture
def together(served_database: Database) -> Together:
    return Together(served_database)


@pytest.fixture
def commits(sqlite_file: Database) -> list[str]:
    """Every commit of the database from now on."""
    seen: list[str] = []

    @event.listens_for(sqlite_file.engine, "checkout")
    def lent(connection: sqlite3.Connection, *_: object) -> None:
        connection.set_trace_callback(
            lambda text: seen.append(text) if text.startswith("COMMIT") else None
        )

    return seen


def test_a_change_says_how_many_rows_it_was(together, served_database):
    assert together.do(add(1)) == 1
    who = row_of(USERS, 1)["user_id"]
    assert together.do(lambda changing: changing.do(RENAME, who=who, alias="a")) == 1
    assert together.do(lambda changing: changing.do(RENAME, who="nobody", alias="a")) == 0
    assert users(served_database) == 1


def test_those_that_wait_are_committed_in_one_transaction(sqlite_file, commits):
    found = side_by_side(Together(sqlite_file), [add(number) for number in range(FEW)])
    assert found == [1] * FEW
    assert users(sqlite_file) == FEW
    assert len(commits) == 2


def test_what_one_of_them_raises_is_its_own(together, served_database):
    def refuse(changing: Changing) -> None:
        changing.do(ADD, **row_of(USERS, 100))
        raise NotFound("no")

    works = [add(number) for number in range(FEW)]
    found = side_by_side(together, [*works, refuse, add(0)])
    assert found[1:FEW] == [1] * (FEW - 1)
    assert isinstance(found[FEW], NotFound)
    # One of the two that add the same row.
    twins = [found[0], found[-1]]
    assert sum(isinstance(each, IntegrityError) for each in twins) == 1
    assert 1 in twins
    assert users(served_database) == FEW


def test_a_database_that_does_not_answer_is_everybodys_trouble(sqlite_file):
    with closing(sqlite3.connect(sqlite_file.engine.url.database)) as other:
        other.execute("DROP TABLE audit_sweeps")
        other.execute("DROP TABLE users")
    found = side_by_side(Together(sqlite_file), [add(number) for number in range(FEW)])
    assert [type(each) for each in found] == [DatabaseUnavailable] * FEW


def test_a_commit_that_failed_is_not_tried_again(sqlite_file):
    tries: list[int] = []
    with closing(sqlite3.connect(sqlite_file.engine.url.database)) as other:
        other.execute("CREATE TABLE late (id REFERENCES users DEFERRABLE INITIALLY DEFERRED)")

    def fail_at_the_end(changing: Changing) -> None:
        tries.append(1)
        changing._connection.execute("INSERT INTO late VALUES ('nobody')")

    found = side_by_side(Together(sqlite_file), [add(1), fail_at_the_end])
    assert [type(each) for each in found] == [DatabaseUnavailable] * 2
    assert tries == [1]
    assert users(sqlite_file) == 0


def test_whoever_comes_next_is_served_after_any_trouble(together, served_database):
    class Ended(BaseException):
        pass

    def end(_changing: Changing) -> None:
        raise Ended

    with pytest.raises(Ended):
        together.do(end)
    assert together.do(add(1)) == 1
    assert users(served_database) == 1
