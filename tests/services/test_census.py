"""What monitoring is told of the database and the disk."""

import datetime as dt
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert

from app.db.engine import Database, connect
from app.db.tables import Copy, File, Job, UploadSession, now
from app.metrics import template
from app.services.census import KEPT_SECONDS, OTHER, Census
from app.settings import Settings
from tests.builders import make_deployment
from tests.row_builders import row_of

LATE = dt.timedelta(seconds=90)


def add(database: Database, cls: Any, *changes: dict[str, Any]) -> None:
    """Rows of a table, each with something of its own."""
    with database.write() as session:
        for number, values in enumerate(changes):
            row = row_of(cls.__table__, number) | {"next_look_at": now() + LATE} | values
            known = {key: row[key] for key in row if key in cls.__table__.c}
            session.execute(insert(cls.__table__).values(known))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(deployments=(make_deployment("d", model_name="known"),), data_dir=tmp_path)


def test_rows_are_counted_by_what_they_are(database, settings):
    add(database, File, {"state": "ready"}, {"state": "ready"}, {"state": "deleting"})
    due, later = now() - LATE, now() + LATE
    add(
        database,
        Copy,
        {"state": "ready", "next_look_at": None},
        {"state": "missing", "next_look_at": due},
        {"state": "missing", "next_look_at": later},
    )
    add(
        database,
        Job,
        {"type": "batch", "provider": "openai", "model_name": "known", "status": "completed",
         "state": "final", "next_look_at": due},
        {"type": "batch", "provider": "openai", "model_name": "of before", "status": "odd",
         "state": "active", "next_look_at": due},
        {"type": "fine_tuning", "provider": "azure", "model_name": None, "status": "running",
         "state": "active", "next_look_at": later},
    )  # fmt: skip
    add(database, UploadSession, {"status": "pending"})
    counts = Census(settings, database).counts()
    assert counts.has_database
    assert counts.files == {"ready": 2, "deleting": 1}
    assert counts.copies == {"ready": 1, "missing": 2}
    assert counts.uploads == {"pending": 1}
    assert counts.jobs == {
        ("batch", "openai", "known", "completed"): 1,
        ("batch", "openai", OTHER, OTHER): 1,
        ("fine_tuning", "azure", "", "running"): 1,
    }
    # One that has come to its end is not waited for.
    assert {chore: count for chore, (count, _) in counts.due.items()} == {"copies": 1, "jobs": 1}
    assert all(90 <= seconds < 150 for _, seconds in counts.due.values())


def test_an_answer_is_given_again_for_a_while(database, settings):
    moment = 0.0
    census = Census(settings, database, clock=lambda: moment)
    assert census.counts().files == {}
    add(database, File, {"state": "ready"})
    moment = KEPT_SECONDS - 0.1
    assert census.counts().files == {}
    moment = KEPT_SECONDS + 0.1
    assert census.counts().files == {"ready": 1}


def test_a_database_that_is_away_is_a_fact_too(settings, tmp_path):
    (tmp_path / "spool" / "1-x").mkdir(parents=True)
    (tmp_path / "spool" / "1-x" / "upload").write_bytes(b"12345")
    counts = Census(settings, connect("postgresql://nobody@127.0.0.1:1/none")).counts()
    assert not counts.has_database
    assert counts.spool_bytes == 5 and counts.free_bytes > 0
    assert counts.copies == {} and counts.due == {}


@pytest.mark.parametrize(
    ("route", "shown"),
    [
        ("/v1/files/<file_id>", "/files/<file_id>"),
        ("/files/<file_id>", "/files/<file_id>"),
        ("/openai/v1/chat/completions", "/chat/completions"),
        ("/openai/deployments/<path:model>/embeddings", "/deployments/<path:model>/embeddings"),
        ("/<provider>/v1/batches", "/batches"),
        ("/user/new", "/user/new"),
        (None, "none"),
    ],
)
def test_a_routes_other_spellings_are_one(route, shown):
    assert template(route) == shown
