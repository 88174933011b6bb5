"""What happens before the app exists: the settings, the log, the master key, the tables."""

import logging
import os
import stat
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import app
from app import logs, master_key, signals, tracing
from app.db import migrate
from app.db.engine import Database, connect
from app.db.tables import HEAD
from app.errors import ConfigError, DatabaseAway
from app.metrics import Metrics, Role
from app.providers import registry
from app.settings import Settings, load

ANNOUNCED = "MANIFOLD_ANNOUNCED"
"""Set in the environment by the process that has said what is said once, for its children."""

_DO_NOT_TRY_AGAIN = 3
"""gunicorn's status of a worker that stops the whole server."""
_PAUSE_SECONDS = 2.0

_OURS = (
    *(f"manifold.db{ending}" for ending in ("", "-wal", "-shm", "-queue", ".migrate.lock")),
    *(f"tasks.db{ending}" for ending in ("", "-wal", "-shm")),
    *("audit", "kept", "local", "metrics", "spool", "uploads"),
)
"""What is in the data directory, and nobody else's business."""

_log = logging.getLogger("manifold")


def prepare(path: str, environ: Mapping[str, str]) -> Settings:
    """The settings at `path`, with a master key, and a database that is ready for them.

    Says on stderr which master key was made, and logs every warning about the configuration.
    Raises ConfigError with every mistake there is. A child of a process that has been through this
    does not need the database to answer now.
    """
    settings = read(path, environ)
    settings = master_key.ensure(settings, announce=_say)
    _close(settings.data_dir)
    database = open_database(settings)
    try:
        if settings.migrate_on_start:
            _migrate(database, environ)
        elif ANNOUNCED not in environ and (found := migrate.current(database)) != HEAD:
            _log.warning(
                "database_not_migrated",
                extra={"found": found, "expected": HEAD, "remedy": "manifold db upgrade"},
            )
    finally:
        database.engine.dispose()
    if ANNOUNCED not in environ:
        for warning in settings.warnings:
            _log.warning("configuration", extra={"warning": warning})
    return settings


def measure(settings: Settings, role: Role, environ: Mapping[str, str]) -> Metrics | None:
    """Count and trace from now on what this process does; its metrics, None where there are none.

    To be called after the last fork. The processes of one server have one parent in common, a
    worker stands alone.
    """
    leader = os.getppid() if role == "server" else os.getpid()
    metrics = None
    listeners: list[signals.Listener] = []
    try:
        metrics = Metrics(settings.data_dir, role, leader)
        listeners.append(metrics.meters)
    except OSError as error:
        _log.warning("no_metrics", extra={"reason": str(error)})
    traces = tracing.open_traces(environ, app.__version__)
    if traces is not None:
        listeners.append(traces)
    signals.listen(*listeners)
    return metrics


def _migrate(database: Database, environ: Mapping[str, str]) -> None:
    try:
        migrate.upgrade(database)
    except DatabaseAway as error:
        if ANNOUNCED not in environ:
            raise
        # Our parent has migrated it. Who takes the place of a process that died meanwhile must
        # not end all the others: it answers 503 until the database is back.
        _log.error("database_unavailable", extra={"reason": str(error)})


def _close(data_dir: Path) -> None:
    """Take from others what earlier versions have left open to them in the data directory."""
    for name in _OURS:
        path = data_dir / name
        # Somebody else's file is his to close.
        with suppress(OSError):
            mode = stat.S_IMODE(path.stat().st_mode)
            if mode & 0o077:
                path.chmod(mode & 0o700)


def read(path: str, environ: Mapping[str, str]) -> Settings:
    """The settings at `path`, and the log set up. Raises ConfigError with every mistake.

    From here on whatever this process makes on the disk is for its own user alone.
    """
    os.umask(0o077)
    level = environ.get("MANIFOLD_LOG_LEVEL", "INFO")
    try:
        logs.configure(level)
    except ValueError as error:
        raise ConfigError([f"MANIFOLD_LOG_LEVEL: unknown level {level!r}"]) from error
    if not Path(path).exists():
        raise ConfigError([f"{path}: no such file; name one with --config or MANIFOLD_CONFIG"])
    return load(Path(path), environ, check=registry.mistakes)


def open_database(settings: Settings) -> Database:
    """The settings' database over one connection. Raises ConfigError if it cannot be there."""
    if settings.database_url is None:
        try:
            settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError([f"data_dir: {settings.data_dir}: {error.strerror}"]) from error
    database = connect(settings.resolved_database_url, pool_size=1)
    in_memory = database.engine.url.database in (None, "", ":memory:")
    if database.engine.dialect.name == "sqlite" and in_memory:
        raise ConfigError(["database_url: a database in memory is not shared by the workers"])
    return database


def refused(error: ConfigError, environ: Mapping[str, str]) -> int:
    """Tell why this process cannot serve; its exit status.

    The first one of a server ends all of it. A later one, for which the file has changed since,
    does not: it waits a little, for another will be started in its place.
    """
    explain(error)
    if ANNOUNCED not in environ:
        return _DO_NOT_TRY_AGAIN
    time.sleep(_PAUSE_SECONDS)
    return 1


def explain(error: ConfigError) -> None:
    """Print every mistake on stderr, each on a line of its own."""
    _say("Manifold cannot start:")
    for mistake in error.mistakes:
        _say(f"  {mistake}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
