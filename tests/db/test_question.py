"""Questions by the driver: the same answers as SQLAlchemy's, and the same errors."""

import datetime as dt
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sqlalchemy import bindparam, create_engine, select, text

from app.db.engine import Database, connect
from app.db.question import Asking, Question
from app.db.tables import File, Key
from app.errors import DatabaseUnavailable, InvalidRequest
from tests.db.test_files import make_copy, make_file, store

MOMENT = dt.datetime(2026, 11, 21, 12, 0, 0, 123456, tzinfo=dt.UTC)
FILE = Question(select(File.__table__).where(File.id == bindparam("id"), File.state == "ready"))


def test_values_are_those_that_a_session_reads(served_database):
    file = make_file(expires_at=MOMENT, target_model_names=["ä", "b"], is_kept=True, key_id=None)
    store(served_database, (file, [make_copy(file, "a-1")]))
    with served_database.read() as session:
        expected = session.execute(select(File.__table__).where(File.id == file.id)).one()
    with served_database.ask() as asking:
        [row] = asking.all(FILE, id=file.id)
        assert tuple(row) == tuple(expected)
        assert asking.all(FILE, id="f" * 36) == []


def test_parameters_are_made_what_the_column_wants(served_database):
    file = make_file(expires_at=MOMENT)
    store(served_database, (file, []))
    later = Question(select(File.__table__.c.id).where(File.expires_at <= bindparam("moment")))
    elsewhere = MOMENT.astimezone(dt.timezone(dt.timedelta(hours=5)))
    with served_database.ask() as asking:
        assert asking.all(later, moment=elsewhere) == [[file.id]]
        assert asking.all(later, moment=elsewhere - dt.timedelta(microseconds=1)) == []


def test_what_was_committed_meanwhile_is_seen(served_database):
    """A question leaves no transaction open, whoever asks the next one on the same connection."""
    file = make_file()
    with served_database.ask() as asking:
        assert asking.all(FILE, id=file.id) == []
        store(served_database, (file, []))
        assert len(asking.all(FILE, id=file.id)) == 1
    with served_database.ask() as asking:
        assert len(asking.all(FILE, id=file.id)) == 1


def test_a_question_that_fails_is_no_answer_and_the_next_one_is_answered(served_database):
    wrong = Question(select(text("no_such_column")).select_from(Key.__table__))
    with pytest.raises(DatabaseUnavailable), served_database.ask() as asking:
        asking.all(wrong)
    with served_database.ask() as asking:
        assert asking.all(FILE, id="x") == []


def test_a_value_that_the_database_cannot_take_is_a_bad_request(postgres):
    with pytest.raises(InvalidRequest), postgres.ask() as asking:
        asking.all(FILE, id="a\0b")


@pytest.mark.parametrize("url", ["sqlite:////nowhere/at/all.db", "postgresql://u@127.0.0.1:1/x"])
def test_a_database_that_is_not_there_is_unavailable(url):
    database = connect(url)
    with pytest.raises(DatabaseUnavailable), database.ask():
        pass
    database.engine.dispose()


def test_the_first_thing_that_a_process_reads_may_be_a_question(sqlite_file):
    file = make_file()
    store(sqlite_file, (file, [make_copy(file, "a-1")]))
    script = (
        "import sys\n"
        "from app.db.engine import connect\n"
        "from app.db.files import with_copies\n"
        "with connect(sys.argv[1]).ask() as asking:\n"
        "    file, copies = with_copies(asking, sys.argv[2])\n"
        "print(file.filename, [copy.deployment_id for copy in copies])\n"
    )
    url = sqlite_file.engine.url.render_as_string()
    done = subprocess.run(
        [sys.executable, "-c", script, url, file.id], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{file.filename} ['a-1']\n"


def test_who_asks_and_fails_otherwise_gives_the_connection_back(served_database):
    for _ in range(40):  # more than there are connections
        with pytest.raises(ZeroDivisionError), served_database.ask() as asking:
            assert isinstance(asking, Asking)
            raise ZeroDivisionError
    with served_database.ask() as asking:
        assert asking.all(FILE, id="x") == []


def test_a_file_with_one_connection_is_asked_and_written(tmp_path):
    database = connect(f"sqlite:///{tmp_path / 'one.db'}", pool_size=1)
    ping = Question(select(text("1")))
    with database.ask() as asking:
        assert asking.all(ping) == [[1]]
    with database.write() as session:
        session.execute(text("CREATE TABLE t (x)"))
    database.engine.dispose()


class _Newer(sqlite3.Connection):
    """One of Python 3.12 or newer, where this keeps every later change from being committed."""

    def __setattr__(self, name, value):
        assert name != "autocommit"
        super().__setattr__(name, value)


def test_a_file_that_was_asked_is_written_with_any_python(tmp_path):
    engine = create_engine(
        f"sqlite:///{tmp_path / 'any.db'}", pool_size=1, connect_args={"factory": _Newer}
    )
    database = Database(engine)
    with database.ask() as asking:
        assert asking.all(Question(select(text("1")))) == [[1]]
    with database.write() as session:
        session.execute(text("CREATE TABLE t (x)"))
    engine.dispose()


def test_connections_at_rest_end_with_the_engine(tmp_path):
    database = connect(f"sqlite:///{tmp_path / 'ended.db'}")
    with database.ask() as first, database.ask() as second:
        assert first.all(Question(select(text("1")))) == second.all(Question(select(text("1"))))

    def is_open():
        held = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
        return any(path.name == "ended.db" for path in held)

    assert is_open()
    database.engine.dispose()
    assert not is_open()


def test_many_threads_ask_at_the_same_time(tmp_path):
    database = connect(f"sqlite:///{tmp_path / 'many.db'}", pool_size=4)
    ping = Question(select(text("1")))
    seen = []

    def ask():
        for _ in range(50):
            with database.ask() as asking:
                seen.extend(asking.all(ping))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [[1]] * 400
    database.engine.dispose()
