"""What commands that talk to a running gateway have: its address, the key, errors, and output."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import click

from app import settings
from app.client import Gateway, GatewayAway, Progress, is_this_machine
from app.errors import ConfigError, OperationRefused

DEFAULT_URL = "http://127.0.0.1:4000"

_FAILED = 1
_WRONG_USE = 2
_AWAY = 3
_INTERRUPTED = 130

EPILOG = """\
Exit status: 0 done; 1 refused or failed; 2 wrong use; 3 the gateway cannot be reached; 130
interrupted.
"""


def connected(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command `gateway` and `as_json`, and say in one line on stderr what went wrong."""

    @click.option(
        "--url",
        envvar="MANIFOLD_URL",
        default=DEFAULT_URL,
        show_default=True,
        show_envvar=True,
        metavar="URL",
        help="The gateway.",
    )
    @click.option(
        "--key",
        "own_key",
        metavar="env:NAME|file:PATH|ask",
        help="Where the key is.  [default: MANIFOLD_API_KEY; else, on the gateway's own machine, "
        "its master key]",
    )
    @click.option(
        "--config",
        envvar="MANIFOLD_CONFIG",
        default="config.yaml",
        hidden=True,
        help="The configuration that names the master key.",
    )
    @click.option("--json", "as_json", is_flag=True, help="JSON, one object a line.")
    @wraps(command)
    def run(url: str, own_key: str | None, config: str, **rest: Any) -> None:
        try:
            with closing(Gateway(url, _key(own_key, url, config))) as gateway:
                command(gateway=gateway, **rest)
        except GatewayAway as error:
            fail(str(error), _AWAY)
        except OperationRefused as error:
            fail(str(error), _FAILED)
        except KeyboardInterrupt:
            fail("interrupted", _INTERRUPTED)
        except BrokenPipeError:
            # Whoever read this has seen enough.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except OSError as error:
            fail(f"{error.filename or 'this machine'}: {error.strerror}", _FAILED)

    return run


def fail(why: str, status: int) -> None:
    """End with this status and one line on stderr."""
    click.echo(f"manifold: {plain(why)}", err=True)
    sys.exit(status)


def _key(said: str | None, url: str, config: str) -> str | None:
    if said is not None:
        return secret(said, "--key")
    if key := os.environ.get("MANIFOLD_API_KEY"):
        return key
    # A key that rules everything goes to no other machine because of a mistyped address.
    return _master_key(config) if is_this_machine(url) else None


def secret(said: str, option: str) -> str:
    """What `env:NAME`, `file:PATH` or `ask` stands for; a secret itself is refused."""
    kind, _, rest = said.partition(":")
    if said == "ask":
        prompted: str = click.prompt("Key", hide_input=True, err=True)
        return prompted
    if kind == "env":
        if found := os.environ.get(rest):
            return found
        raise click.BadParameter(f"the variable {rest} is not set", param_hint=option)
    if kind == "file":
        try:
            return Path(rest).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise click.BadParameter(f"{rest} cannot be read", param_hint=option) from error
    raise click.BadParameter(
        "a key on the command line is seen by every user of this machine; say env:NAME, file:PATH "
        "or ask, or set MANIFOLD_API_KEY",
        param_hint=option,
    )


def _master_key(config: str) -> str | None:
    """The master key of this machine's gateway, where this user may read it."""
    try:
        found = settings.load(Path(config), os.environ)
    except (ConfigError, OSError):
        return None
    if found.master_key is not None:
        return found.master_key
    try:
        return (found.data_dir / "master_key").read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None


# Output


def plain(value: object) -> str:
    """A value as text that moves no cursor: names are other people's."""
    text = "-" if value is None else str(value)
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def show(facts: Mapping[str, Any], *, as_json: bool) -> None:
    """One object: a line of JSON, or a line for each of its facts."""
    if as_json:
        click.echo(json.dumps(facts, ensure_ascii=False))
        return
    width = max((len(name) for name in facts), default=0)
    for name, value in facts.items():
        text = json.dumps(value) if isinstance(value, dict | list) else value
        click.echo(f"{name:<{width}}  {plain(text)}")


def table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], *, as_json: bool) -> int:
    """Objects: a line of JSON each, or a table of these columns; how many there were."""
    found = 0
    if as_json:
        for row in rows:
            click.echo(json.dumps(row, ensure_ascii=False))
            found += 1
        return found
    lines = [[plain(_cell(row.get(column))) for column in columns] for row in rows]
    if lines:
        lines.insert(0, [column.upper() for column in columns])
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))] if lines else []
    for line in lines:
        cells = (f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())
    return max(0, len(lines) - 1)


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "*"
    return value


def when(seconds: int | None) -> str | None:
    """Unix seconds as people read them, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds)) if seconds else None


def size(count: float | None) -> str | None:
    """Bytes as people read them."""
    if count is None:
        return None
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("GB is the last unit")


@contextmanager
def progress(label: str, total: int, there: int = 0) -> Iterator[Progress]:
    """A bar on stderr with speed and time left, for as long as the block runs.

    `there` of the bytes are there already. Where stderr is no terminal there is no bar.
    """
    begun = time.monotonic()
    came = 0

    def speed(_item: object) -> str:
        return f"{size(came / max(time.monotonic() - begun, 0.001))}/s"

    with click.progressbar(
        length=max(total, 1),
        label=plain(label),
        file=sys.stderr,
        hidden=not sys.stderr.isatty(),
        item_show_func=speed,
        update_min_steps=max(1, total // 500),
    ) as bar:

        def told(count: int) -> None:
            nonlocal came
            came += max(count, 0)
            bar.update(count, current_item=None)

        bar.update(there)
        yield told
