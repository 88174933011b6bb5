"""`manifold serve` and `manifold worker`."""

import os
import sys
from functools import partial
from pathlib import Path
from typing import NoReturn

import click

import app
from app import start, supervisor
from app.cli import options

_HOME = Path(app.__file__).parent.parent


@click.command()
@options.config
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", default=4000, show_default=True, type=click.IntRange(0, 65535))
@click.option("--workers", type=click.IntRange(1), help="Processes.  [default: one a core, to 4]")
@click.option(
    "--threads",
    type=click.IntRange(1),
    help="Requests and streams that one process serves at a time.  [default: 64]",
)
@click.option(
    "--worker-class",
    type=click.Choice(["gthread", "gevent"]),
    help="Threads, or greenlets for thousands of streams.  [default: gthread]",
)
@click.option("--no-worker", is_flag=True, help="Do not run the background worker beside gunicorn.")
@options.explaining
def serve(
    *,
    config: str,
    host: str,
    port: int,
    workers: int | None,
    threads: int | None,
    worker_class: str | None,
    no_worker: bool,
) -> None:
    """Serve the API.

    Stops after SIGTERM, as soon as the transfers at hand are done.

    \b
    manifold serve
    manifold serve --host 0.0.0.0 --workers 4 --threads 64
    """
    start.prepare(config, os.environ)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    click.echo(
        f"Manifold {app.__version__} on http://{address}\n"
        f"Try: curl http://{address}/health/readiness"
    )
    os.environ["MANIFOLD_CONFIG"] = str(Path(config).absolute())
    os.environ[start.ANNOUNCED] = "1"
    # By their paths, and -P, because the current directory may hold an `app` or a `wsgi.py` too.
    command = [sys.executable, "-P", "-m", "gunicorn", "-c", str(_HOME / "app" / "serving.py")]
    command += ["--pythonpath", str(_HOME), "--bind", address]
    if workers is not None:
        command += ["--workers", str(workers)]
    if threads is not None:
        command += ["--threads", str(threads)]
    if worker_class is not None:
        command += ["--worker-class", worker_class]
    command.append("wsgi:app")
    # The options that gunicorn itself takes from the environment may ask for it too.
    named = worker_class or os.environ.get("MANIFOLD_WORKER_CLASS", "")
    wants_gevent = "gevent" in named + os.environ.get("GUNICORN_CMD_ARGS", "")
    gunicorn = partial(_start_anew if wants_gevent else _go_on_as, command)
    if no_worker:
        # In place of this process, so that signals reach gunicorn and its exit status is ours.
        gunicorn()
    sys.exit(supervisor.run(gunicorn, [sys.executable, "-P", "-m", "app.cli", "worker"]))


def _start_anew(command: list[str]) -> NoReturn:
    """For gevent, which has to be there before everything that it changes."""
    sys.stdout.flush()
    os.execv(sys.executable, command)  # noqa: S606


def _go_on_as(command: list[str]) -> NoReturn:
    """Become gunicorn without loading again what is loaded: half a second of a start.

    Its workers have all of the application before they begin.
    """
    import gunicorn  # noqa: PLC0415  # nobody else needs it
    from gunicorn.app import wsgiapp  # noqa: PLC0415  # likewise

    import app.factory  # noqa: F401, PLC0415  # likewise

    # Its options, behind what it starts when it is asked to replace itself.
    itself = Path(gunicorn.__file__).with_name("__main__.py")
    sys.argv = [str(itself), *command[command.index("gunicorn") + 1 :]]
    wsgiapp.WSGIApplication(prog="gunicorn").run()
    sys.exit()


@click.command()
@options.config
@click.option(
    "--threads",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    help="Jobs that are looked at at a time.",
)
@options.explaining
def worker(*, config: str, threads: int) -> None:
    """Do what is to be done without a request: follow batches and jobs to their end.

    `manifold serve` runs one of these beside the server. Several may run, on several machines too.

    \b
    manifold worker --threads 8
    """
    # `serve`, which starts two processes and watches them, needs none of the application.
    from app import worker as background  # noqa: PLC0415
    from app.factory import build  # noqa: PLC0415

    settings = start.prepare(config, os.environ)
    supervisor.end_with_parent()
    services = build(settings, metrics=start.measure(settings, "worker", os.environ))
    background.run(
        background.make_queue(settings),
        [services.upkeep, services.reconciler],
        services.sweeper,
        [services.trail.sweep_when_due],
        threads=threads,
    )
