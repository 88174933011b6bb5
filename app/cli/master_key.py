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
@options.explaining
def rotate(*, config: str, grace_hours: float) -> None:
    """Make a new master key, in the place of the old one.

    Restart the gateway, or send it SIGHUP, so that it knows the new key.
    """
    path = keys.rotate(start.read(config, os.environ), dt.timedelta(hours=grace_hours))
    click.echo(
        f"The new master key is in {path}; the old one works for {grace_hours:g} more hours.\n"
        "Restart the gateway, or send it SIGHUP, so that it knows the new one."
    )
