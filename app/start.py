"""What happens before the app exists: the settings, the log, the master key, the tables."""

import logging
import sys
from collections.abc import Mapping
from pathlib import Path

from app import logs, master_key
from app.db import migrate
from app.db.engine import Database, connect
from app.db.tables import HEAD
from app.errors import ConfigError
from app.providers import registry
from app.settings import Settings, load

ANNOUNCED = "MANIFOLD_ANNOUNCED"
"""Set in the environment by the process that has said what is said once, for its children."""

_log = logging.getLogger("manifold")


def prepare(path: str, environ: Mapping[str, str]) -> Settings:
    """The settings at `path`, with a master key, and a database that is ready for them.

    Says on stderr which master key was made, and logs every warning about the configuration.
    Raises ConfigError with every mistake there is.
    """
    settings = read(path, environ)
    settings = master_key.ensure(settings, announce=_say)
    database = open_database(settings)
    try:
        if settings.migrate_on_start:
            migrate.upgrade(database)
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


def read(path: str, environ: Mapping[str, str]) -> Settings:
    """The settings at `path`, and the log set up. Raises ConfigError with every mistake."""
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


def explain(error: ConfigError) -> None:
    """Print every mistake on stderr, each on a line of its own."""
    _say("Manifold cannot start:")
    for mistake in error.mistakes:
        _say(f"  {mistake}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
