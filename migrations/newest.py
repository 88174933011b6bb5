"""What all migrations make of an empty SQLite file, as statements: `python -m migrations.newest`.

A new installation begins with these (`app.db.migrate`): running the migrations one after the other
takes Alembic, half a second and eleven megabytes of each worker's memory. To be run after a new
migration; a test holds the two against each other.
"""

import sqlite3
import tempfile
from pathlib import Path

from app.db import migrate
from app.db.engine import connect

_HEAD = """\
-- Written by `python -m migrations.newest`: what all migrations make of an empty SQLite file.
-- An empty line ends a statement.
"""


def statements(path: Path) -> list[str]:
    """The statements that make the tables of this database, in the order they were made."""
    with sqlite3.connect(path) as database:
        made = database.execute(
            "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid"
        )
        found = [
            "\n".join(line.rstrip() for line in sql.split("\n") if line.strip()) for (sql,) in made
        ]
        [(revision,)] = database.execute("SELECT version_num FROM alembic_version")
    database.close()
    at = f"INSERT INTO alembic_version (version_num) VALUES ('{revision}')"  # noqa: S608  # ours
    return [*found, at]


def written() -> str:
    """The file, as the migrations of this checkout make it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "newest.db"
        database = connect(f"sqlite:///{path}")
        migrate.step_by_step(database)
        database.engine.dispose()
        return _HEAD + "".join(f"\n{each}\n" for each in statements(path))


if __name__ == "__main__":
    migrate.NEWEST.write_text(written())
