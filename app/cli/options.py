"""What every command has: `--config`, and mistakes in the configuration on stderr."""

import json
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import click

from app import start
from app.errors import ConfigError, DatabaseUnavailable, OperationRefused
from app.outages import reason

_NOT_DONE = 1
_REFUSED = 2

config = click.option(
    "--config",
    envvar="MANIFOLD_CONFIG",
    default="config.yaml",
    show_default=True,
    show_envvar=True,
    metavar="PATH",
    help="The configuration.",
)


as_json = click.option("--json", "as_json", is_flag=True, help="JSON, one object a line.")


def tell(facts: Mapping[str, object], sentence: str, *, as_json: bool) -> None:
    """What a command has done, for people or as a line of JSON."""
    click.echo(json.dumps(facts) if as_json else sentence)


def explaining(command: Callable[..., None]) -> Callable[..., None]:
    """Say on stderr why a command was not carried out.

    Exit status 2: the configuration is wrong, and every mistake is shown; 1: all else.
    """

    @wraps(command)
    def run(**options: Any) -> None:
        try:
            command(**options)
        except ConfigError as error:
            start.explain(error)
            sys.exit(_REFUSED)
        except OperationRefused as error:
            click.echo(f"Not done: {error}", err=True)
            sys.exit(_NOT_DONE)
        except DatabaseUnavailable as error:
            click.echo(f"Not done: the database does not answer ({reason(error)})", err=True)
            sys.exit(_NOT_DONE)

    return run
