"""The database: is it there, whole, of this version, with enough connections? Never written to."""

import datetime as dt
import os
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from app.db import migrate
from app.db.engine import Database, connect
from app.db.tables import HEAD, Copy, Job, now
from app.doctor.findings import Finding, fault, ok, warning
from app.errors import ConfigError, DatabaseAway
from app.settings import Settings

_OVERDUE = dt.timedelta(minutes=10)
_QUIET_SECONDS = 120.0
_DAMAGED = ("malformed", "not a database", "disk image")


def look(settings: Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Everything about the database, and whether a background worker takes care of its rows."""
    url = make_url(settings.resolved_database_url)
    is_sqlite = url.get_backend_name() == "sqlite"
    if is_sqlite:
        path = Path(url.database or "")
        if not path.exists():
            yield ok("database", f"{path} will be made at the first start")
            return
        found = list(_sqlite(path))
        yield from found
        if any(finding.level == "fault" for finding in found):
            return
    try:
        database = connect(settings.resolved_database_url, pool_size=1)
    except ConfigError as error:
        for mistake in error.mistakes:
            yield fault("database", mistake, "nothing is served without it", "install the driver")
        return
    try:
        yield from _reached(settings, database, environ, is_sqlite=is_sqlite)
    finally:
        database.engine.dispose()


def _sqlite(path: Path) -> Iterator[Finding]:
    """SQLite's own check of its file."""
    restore = "stop Manifold, keep a copy of the file, and `manifold restore` the last backup"
    try:
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)
        try:
            [told] = connection.execute("PRAGMA quick_check(1)").fetchone()
            [journal] = connection.execute("PRAGMA journal_mode").fetchone()
        finally:
            connection.close()
    except sqlite3.DatabaseError as error:
        if any(word in str(error) for word in _DAMAGED):
            yield fault("database", f"{path}: {error}", "its file is damaged", restore)
        else:
            yield fault(
                "database",
                f"{path}: {error}",
                "it cannot be read",
                "let the user that runs Manifold own it, and end whatever holds it locked",
            )
        return
    if told != "ok":
        yield fault("database", f"{path}: {told}", "its file is damaged", restore)
    elif journal != "wal":
        yield warning(
            "database",
            f"{path}: its journal is {journal!r}, not WAL",
            "readers wait for writers",
            "start Manifold on it, which sets it; if it stays so, the file system knows no shared "
            "memory: use a local disk",
        )
    else:
        yield ok("database", f"{path}: whole, in WAL")


def _reached(
    settings: Settings, database: Database, environ: Mapping[str, str], *, is_sqlite: bool
) -> Iterator[Finding]:
    try:
        revision = migrate.current(database)
    except DatabaseAway as error:
        yield fault(
            "database",
            error.mistakes[0],
            "nothing is served without it",
            "look whether its server runs, and whether address, user and password in database_url "
            "or DATABASE_URL are right",
        )
        return
    if revision != HEAD:
        yield _other_revision(revision, settings)
        return
    yield ok("database", f"at migration {HEAD}")
    try:
        with database.engine.connect() as connection:
            if not is_sqlite:
                yield from _connections(connection, settings, environ)
            yield from _overdue(connection, settings)
    except SQLAlchemyError as error:
        told = str(getattr(error, "orig", None) or error).partition("\n")[0]
        yield fault("database", told, "it does not answer", "look into its server's log")


def _other_revision(revision: str | None, settings: Settings) -> Finding:
    if revision is not None and revision > HEAD:
        return fault(
            "database",
            f"it is at migration {revision}, this version knows {HEAD}",
            "a newer version has upgraded it; this one does not start",
            "install that version again, or restore the backup from before the upgrade",
        )
    found = f"at migration {revision}" if revision else "without tables"
    if settings.migrate_on_start:
        return ok("database", f"{found}; the next start brings it to {HEAD}")
    return fault(
        "database",
        f"{found}, this version needs {HEAD}",
        "requests fail, and migrate_on_start is false",
        "`manifold backup`, then `manifold db upgrade`",
    )


def _connections(
    connection: Connection, settings: Settings, environ: Mapping[str, str]
) -> Iterator[Finding]:
    [most] = connection.execute(text("SELECT current_setting('max_connections')::int")).one()
    [reserved] = connection.execute(
        text("SELECT current_setting('superuser_reserved_connections')::int")
    ).one()
    processes = _workers(environ) + 1
    wanted = processes * settings.database_pool_size
    told = f"{processes} processes x {settings.database_pool_size} = {wanted} connections"
    if wanted > most - reserved:
        yield warning(
            "database",
            f"{told} a node; the server allows {most - reserved}",
            "under load requests are answered 503",
            "raise max_connections, lower database_pool_size, or put pgbouncer in between",
        )
    else:
        yield ok("database", f"{told} a node; the server allows {most - reserved}")


def _workers(environ: Mapping[str, str]) -> int:
    said = environ.get("WEB_CONCURRENCY", "")
    return int(said) if said.isdigit() else min(os.cpu_count() or 1, 4)


def _overdue(connection: Connection, settings: Settings) -> Iterator[Finding]:
    """Rows that a worker should have looked at, and whether one is there."""
    before = now() - _OVERDUE
    count = 0
    for table in (Job, Copy):
        due: Any = select(func.count()).select_from(table).where(table.next_look_at < before)
        if table is Job:
            due = due.where(Job.state.in_(("intended", "active")))
        count += connection.execute(due).scalar_one()
    if count:
        yield warning(
            "worker",
            f"{count} rows wait for ten minutes and more",
            "batches are not followed, and cut-off uploads and deletes not finished",
            "start `manifold worker`, or `manifold serve` without --no-worker; if one runs, read "
            "its log for look failed",
        )
    else:
        yield ok("worker", _sign_of_life(settings))


def _sign_of_life(settings: Settings) -> str:
    """What the queue's own file tells; elsewhere that nothing waits must do."""
    if settings.task_queue_url is None:
        for ending in ("-wal", ""):
            path = settings.data_dir / f"tasks.db{ending}"
            if path.exists():
                age = dt.datetime.now(dt.UTC).timestamp() - path.stat().st_mtime
                if age < _QUIET_SECONDS:
                    return f"nothing waits; one worked {age:.0f} seconds ago"
        return "nothing waits; none runs now"
    return "nothing waits"


def queue(settings: Settings) -> Iterator[Finding]:
    """The task queue, where it is a server of its own."""
    url = settings.task_queue_url
    if url is None:
        return
    cure = "look whether its server runs, and whether task_queue_url is right"
    why = "no worker can work: batches are followed only when somebody asks"
    try:
        if url.startswith(("redis://", "rediss://")):
            import redis  # noqa: PLC0415  # an extra

            with redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5) as client:
                client.ping()
        else:
            reached = connect(url, pool_size=1)
            try:
                reached.ping()
            finally:
                reached.engine.dispose()
    except ImportError:
        yield fault("task queue", "its driver is missing", why, "install manifold-gateway[redis]")
    except Exception as error:  # noqa: BLE001  # every driver has its own; all mean the same
        told = str(error).partition("\n")[0] or type(error).__name__
        yield fault("task queue", f"it does not answer ({told[:200]})", why, cure)
    else:
        yield ok("task queue", "answers")
