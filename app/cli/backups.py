"""`manifold backup` and `manifold restore`."""

import os
from pathlib import Path

import click

from app import backup as backups
from app import start
from app.cli import options
from app.db import migrate
from app.errors import OperationRefused

MB = 1024 * 1024


@click.command()
@click.argument("target", type=click.Path(path_type=Path), metavar="FOLDER|FILE.tar")
@options.config
@options.as_json
@options.explaining
def backup(*, target: Path, config: str, as_json: bool) -> None:
    """Write database, stored files and generated master key to a folder or a tar file.

    The gateway may go on working meanwhile. What the configuration file holds is not in a backup.

    \b
    manifold backup /var/backups/manifold/monday
    manifold backup monday.tar
    """
    settings = start.read(config, os.environ)
    if not settings.data_dir.is_dir():
        raise OperationRefused(f"{settings.data_dir} is not there: nothing to back up")
    database = start.open_database(settings)
    try:
        if migrate.current(database) is None:
            raise OperationRefused("the database has no tables: nothing to back up")
        size = backups.write(settings, database, target)
    finally:
        database.engine.dispose()
    facts = {"path": str(target), "bytes": size}
    options.tell(facts, f"{target}: {size / MB:.1f} MB", as_json=as_json)


@click.command()
@click.argument("source", type=click.Path(exists=True, path_type=Path), metavar="FOLDER|FILE.tar")
@options.config
@options.as_json
@options.explaining
def restore(*, source: Path, config: str, as_json: bool) -> None:
    """Put a backup into an empty data directory.

    No gateway may be running on it. The rows go where the configuration says that they are; a
    database that is older than this version is migrated at the next start.

    \b
    manifold restore monday.tar
    """
    done = backups.restore(start.read(config, os.environ), source)
    facts = {
        "taken_at": str(done.taken_at),
        "version": done.version,
        "data_dir": str(done.data_dir),
        "database": done.database,
    }
    options.tell(
        facts,
        f"restored the backup of {done.taken_at} (version {done.version}) into {done.data_dir}; "
        f"its rows are in {done.database}",
        as_json=as_json,
    )
