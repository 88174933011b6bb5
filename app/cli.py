"""The `manifold` command: serve, worker, db."""

import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

import app
from app import start, supervisor
from app import worker as background
from app.db import migrate
from app.db.tables import HEAD
from app.errors import ConfigError
from app.factory import build

_HOME = Path(app.__file__).parent.parent
_REFUSED = 2

_config = click.option(
    "--config",
    envvar="MANIFOLD_CONFIG",
    default="config.yaml",
    show_default=True,
    show_envvar=True,
    metavar="PATH",
    help="The configuration.",
)


def _explaining(command: Callable[..., None]) -> Callable[..., None]:
    """Exit with status 2 and every mistake on stderr when the configuration is wrong."""

    @wraps(command)
    def run(**options: Any) -> None:
        try:
            command(**options)
        except ConfigError as error:
            start.explain(error)
            sys.exit(_REFUSED)

    return run


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(app.__version__, prog_name="manifold")
def main() -> None:
    """Manifold: a gateway that speaks the OpenAI API, with one file id for every provider."""


@main.command()
@_config
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", default=4000, show_default=True, type=click.IntRange(0, 65535))
@click.option("--workers", type=click.IntRange(1), help="Processes.  [default: one a core, to 4]")
@click.option(
    "--threads",
    type=click.IntRange(1),
    help="Requests and streams that one process serves at a time.  [default: 64]",
)
@click.option("--no-worker", is_flag=True, help="Do not run the background worker beside gunicorn.")
@_explaining
def serve(
    *,
    config: str,
    host: str,
    port: int,
    workers: int | None,
    threads: int | None,
    no_worker: bool,
) -> None:
    """Serve the API.

    Stops after SIGTERM, as soon as the transfers at hand are done.
    """
    start.prepare(config, os.environ)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    click.echo(
        f"Manifold {app.__version__} on http://{address}\n"
        f"Try: curl http://{address}/health/readiness"
    )
    sys.stdout.flush()
    os.environ["MANIFOLD_CONFIG"] = str(Path(config).absolute())
    os.environ[start.ANNOUNCED] = "1"
    # By their paths, and -P, because the current directory may hold an `app` or a `wsgi.py` too.
    command = [sys.executable, "-P", "-m", "gunicorn", "-c", str(_HOME / "app" / "serving.py")]
    command += ["--pythonpath", str(_HOME), "--bind", address]
    if workers is not None:
        command += ["--workers", str(workers)]
    if threads is not None:
        command += ["--threads", str(threads)]
    command.append("wsgi:app")
    if no_worker:
        # In place of this process, so that signals reach gunicorn and its exit status is ours.
        os.execv(sys.executable, command)  # noqa: S606
    sys.exit(supervisor.run(command, [sys.executable, "-P", "-m", "app.cli", "worker"]))


@main.command()
@_config
@click.option(
    "--threads",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    help="Jobs that are looked at at a time.",
)
@_explaining
def worker(*, config: str, threads: int) -> None:
    """Do what is to be done without a request: follow batches and jobs to their end.

    `manifold serve` runs one of these beside the server. Several may run, on several machines too.
    """
    settings = start.prepare(config, os.environ)
    supervisor.end_with_parent()
    background.run(background.make_queue(settings), build(settings).upkeep, threads=threads)


@main.group()
def db() -> None:
    """The database's tables."""


@db.command()
@_config
@_explaining
def upgrade(config: str) -> None:
    """Bring the tables to this version's migration."""
    database = start.open_database(start.read(config, os.environ))
    before = migrate.current(database)
    migrate.upgrade(database)
    click.echo(f"{'already' if before == HEAD else f'from {before} to'} {HEAD}")
    database.engine.dispose()


@db.command()
@_config
@_explaining
def current(config: str) -> None:
    """Show the migration the tables are at, and this version's."""
    database = start.open_database(start.read(config, os.environ))
    click.echo(f"database {migrate.current(database)}, this version {HEAD}")
    database.engine.dispose()


if __name__ == "__main__":
    main()
