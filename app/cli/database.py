"""`manifold db`: the database's tables."""

import os
from pathlib import Path

import click
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from app import start
from app.cli import options
from app.db import copying, migrate
from app.db.engine import SUPPORTED, connect
from app.db.tables import HEAD
from app.errors import OperationRefused

_ADDRESS = "URL|env:NAME|file:PATH"


@click.group()
def db() -> None:
    """The database's tables."""


@db.command()
@options.config
@options.as_json
@options.explaining
def upgrade(config: str, as_json: bool) -> None:
    """Bring the tables to this version's migration.

    \b
    manifold db upgrade
    """
    database = start.open_database(start.read(config, os.environ))
    before = migrate.current(database)
    migrate.upgrade(database)
    told = f"{'already' if before == HEAD else f'from {before} to'} {HEAD}"
    options.tell({"before": before, "now": HEAD}, told, as_json=as_json)
    database.engine.dispose()


@db.command()
@options.config
@options.as_json
@options.explaining
def current(config: str, as_json: bool) -> None:
    """Show the migration the tables are at, and this version's.

    \b
    manifold db current
    """
    database = start.open_database(start.read(config, os.environ))
    found = migrate.current(database)
    told = f"database {found}, this version {HEAD}"
    options.tell({"database": found, "this_version": HEAD}, told, as_json=as_json)
    database.engine.dispose()


@db.command()
@options.config
@click.option("--from", "source", metavar=_ADDRESS, help="[default: the configuration's database]")
@click.option("--to", "target", metavar=_ADDRESS, required=True)
@options.as_json
@options.explaining
def copy(config: str, source: str | None, target: str, as_json: bool) -> None:
    """Copy every row into an empty database, of the other kind or of the same.

    No gateway and no worker may be running on either. An address with a password stands in an
    environment variable (env:NAME) or in a file (file:PATH), never on the command line. The target
    is migrated, filled in one transaction, and compared with the source, table by table.

    \b
    manifold db copy --to env:NEW_DATABASE_URL
    """
    if source is None:
        came_from = start.read(config, os.environ).resolved_database_url
    else:
        came_from = address(source, "--from")
    _require_file(came_from)
    found = connect(came_from, pool_size=2)
    made = connect(address(target, "--to"), pool_size=2)
    try:
        if migrate.current(found) is None:
            raise OperationRefused("the source has no tables of a gateway")
        rows = copying.copy(found, made, lambda line: click.echo(line, err=True))
    finally:
        found.engine.dispose()
        made.engine.dispose()
    options.tell({"rows": rows}, f"{rows} rows copied, and compared", as_json=as_json)


def address(said: str, option: str) -> str:
    """The URL that is said, or the one in `env:NAME` or `file:PATH`; a password stands there."""
    kind, _, rest = said.partition(":")
    if kind == "env":
        if url := os.environ.get(rest):
            return url
        raise click.BadParameter(f"the variable {rest} is not set", param_hint=option)
    if kind == "file":
        try:
            return Path(rest).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise click.BadParameter(f"{rest} cannot be read", param_hint=option) from error
    try:
        has_password = make_url(said).password is not None
    except ArgumentError as error:
        what = f"neither a URL nor env:NAME nor file:PATH; supported: {', '.join(SUPPORTED)}"
        raise click.BadParameter(what, param_hint=option) from error
    if has_password or "password=" in said:
        raise click.BadParameter(
            "a password on the command line is seen by every user of this machine; put the address "
            f"into a variable and say {option} env:NAME, or into a file and say {option} file:PATH",
            param_hint=option,
        )
    return said


def _require_file(url: str) -> None:
    # SQLite would make it.
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").is_file():
        raise click.BadParameter(f"{parsed.database}: no such file", param_hint="--from")
