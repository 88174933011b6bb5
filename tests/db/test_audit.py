"""The audit trail's table: rows are added, and only the sweep removes the old ones."""

import datetime as dt
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import IntegrityError

from app.db import audit, migrate
from app.db.audit import AuditFilter
from app.db.engine import Database, connect
from app.db.tables import AuditEntry, AuditSweep

NOON = dt.datetime(2026, 11, 20, 12, tzinfo=dt.UTC)


@pytest.fixture(params=["sqlite", "postgresql"])
def trail(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database with the triggers, which are the migration's; three rows an hour apart."""
    if request.param == "sqlite":
        database = connect(f"sqlite:///{tmp_path / 'manifold.db'}")
        migrate.upgrade(database)
    else:
        database = request.getfixturevalue("migrated_postgres")
        with database.write() as session:
            session.execute(text("SET LOCAL session_replication_role = replica"))
            session.execute(text("DELETE FROM audit"))
    with database.write() as session:
        session.add(row("1", NOON, actor="alice", action="file.upload", target="file-1"))
        session.add(row("2", NOON + dt.timedelta(hours=1), actor="bob", action="file.delete"))
        session.add(row("3", NOON + dt.timedelta(hours=2), actor=None, action="files"))
    yield database
    if request.param == "sqlite":
        database.engine.dispose()


def row(key: str, at: dt.datetime, **more: object) -> AuditEntry:
    facts: dict[str, object] = {
        "role": "internal_user",
        "key": "0123456789ab",
        "address": "127.0.0.1",
        "target": None,
        "status": 200,
        "request_id": "req_1",
        "fields": [],
        "bytes": None,
    }
    return AuditEntry(id=key, at=at, **{**facts, **more})


def ids(database: Database, **among: object) -> list[str]:
    with database.read() as session:
        found = audit.newest(session, AuditFilter(**among), 100)  # type: ignore[arg-type]  # facts
        return [entry.id for entry in found]


CHANGES = (
    "UPDATE audit SET actor = 'eve'",
    "UPDATE audit SET status = 403 WHERE id = '1'",
    "UPDATE audit SET id = '9'",
    "DELETE FROM audit",
    "DELETE FROM audit WHERE id = '1'",
)
ONLY = {
    "sqlite": (
        "INSERT OR REPLACE INTO audit SELECT * FROM audit",
        "REPLACE INTO audit SELECT * FROM audit WHERE id = '2'",
    ),
    "postgresql": (
        "TRUNCATE audit",
        "INSERT INTO audit SELECT * FROM audit ON CONFLICT (id) DO UPDATE SET actor = 'eve'",
    ),
}


def test_no_statement_changes_or_removes_a_row(trail: Database):
    for statement in (*CHANGES, *ONLY[trail.engine.dialect.name]):
        with pytest.raises(IntegrityError), trail.write() as session:
            session.execute(text(statement))
    with trail.read() as session:
        actors = session.scalars(select(AuditEntry.actor).order_by(AuditEntry.id)).all()
    assert actors == ["alice", "bob", None]


def test_a_sweep_removes_what_is_old_and_nothing_else(trail: Database):
    with trail.write() as session:
        assert audit.sweep(session, NOON + dt.timedelta(hours=1), 100) == 1
    assert ids(trail) == ["2", "3"]
    with trail.read() as session:
        assert session.scalar(select(func.count()).select_from(AuditSweep)) == 0
    with pytest.raises(IntegrityError), trail.write() as session:
        session.execute(text("DELETE FROM audit WHERE id = '2'"))


def test_a_sweep_is_done_in_parts_oldest_first(trail: Database):
    late = NOON + dt.timedelta(days=1)
    for left in (["3"], []):
        with trail.write() as session:
            audit.sweep(session, late, 2)
        assert ids(trail) == left


def test_a_sweep_that_names_a_moment_does_not_open_what_is_younger(trail: Database):
    with pytest.raises(IntegrityError), trail.write() as session:
        session.add(AuditSweep(before=NOON + dt.timedelta(hours=1)))
        session.flush()
        session.execute(text("DELETE FROM audit"))
    assert ids(trail) == ["1", "2", "3"]


def test_rows_are_found_by_what_is_known_of_them(trail: Database):
    assert ids(trail) == ["1", "2", "3"]
    assert ids(trail, actor="alice") == ["1"]
    assert ids(trail, action="file") == ["1", "2"]
    assert ids(trail, action="file.delete") == ["2"]
    assert ids(trail, action="%") == []
    assert ids(trail, target="file-1") == ["1"]
    assert ids(trail, since=NOON + dt.timedelta(hours=1)) == ["2", "3"]
    assert ids(trail, until=NOON + dt.timedelta(hours=1)) == ["1"]
    with trail.read() as session:
        assert [e.id for e in audit.newest(session, AuditFilter(), 2)] == ["2", "3"]
