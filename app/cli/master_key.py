"""`manifold master-key`: the administrator's key that the gateway made itself."""

import datetime as dt
import os

import click

from app import master_key as keys
from app import start
from app.cli import options


@click.group()
def master_key() -> None:
    """The master key that was made because none is configured."""


@master_key.command()
@options.config
@click.option(
    "--grace-hours",
    type=click.FloatRange(0, 720),
    default=24.0,
    show_default=True,
    help="How long the old key still works.",
)
@options.as_json
@options.explaining
def rotate(*, config: str, grace_hours: float, as_json: bool) -> None:
    """Make a new master key, in the place of the old one.

    Restart the gateway, or send it SIGHUP, so that it knows the new key.

    \b
    manifold master-key rotate --grace-hours 1
    """
    path = keys.rotate(start.read(config, os.environ), dt.timedelta(hours=grace_hours))
    options.tell(
        {"path": str(path), "grace_hours": grace_hours},
        f"The new master key is in {path}; the old one works for {grace_hours:g} more hours.\n"
        "Restart the gateway, or send it SIGHUP, so that it knows the new one.",
        as_json=as_json,
    )
