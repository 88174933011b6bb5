"""`manifold batches`: a file of requests, from sending it to its results."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from app.cli import files, remote
from app.client import Gateway, GatewayAway, quoted
from app.errors import OperationRefused
from app.objects import BATCH_FINAL

if TYPE_CHECKING:
    from click._termui_impl import ProgressBar

_NOT_WHOLE = 4
_INTERRUPTED = 130
_SETTLES_WITHIN_SECONDS = 60
_PATIENCE_SECONDS = 600
"""How long a gateway may be away while a batch is waited for."""

_COLUMNS = ("id", "status", "done", "failed", "total", "created")
_LONGEST_LINE = 64 * 1024 * 1024

EPILOG = """\
Exit status: 0 completed, every row answered; 1 refused or failed; 2 wrong use; 3 the gateway cannot
be reached; 4 the batch has ended otherwise, or rows of it have failed; 130 interrupted.
"""


@click.group(epilog=EPILOG)
def batches() -> None:
    """Batches: a file of requests, answered within a day for less.

    \b
    manifold batches run rows.jsonl --model gpt-4o --wait --out answers.jsonl
    """


def _waiting(command: Callable[..., None]) -> Callable[..., None]:
    """Options for how a batch is waited for, and where what it made goes."""
    command = click.option(
        "--out",
        "-o",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Where the answers go.  [default: FILE.output.jsonl]",
    )(command)
    command = click.option(
        "--errors",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Where rows without an answer go.  [default: beside the answers, .errors.jsonl]",
    )(command)
    command = click.option("--force", "-f", is_flag=True, help="Write over files that are there.")(
        command
    )
    return click.option(
        "--every",
        type=click.FloatRange(0.1, 3600),
        default=5.0,
        show_default=True,
        help="Seconds between two looks.",
    )(command)


@batches.command(epilog=EPILOG)
@click.argument(
    "path", metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option("--model", required=True, help="The model that its rows are for.")
@click.option("--endpoint", help="Where the rows go.  [default: the url of the first row]")
@click.option("--metadata", multiple=True, metavar="NAME=VALUE", help="May be given several times.")
@click.option("--wait", is_flag=True, help="Stay until it has ended, and fetch what it made.")
@_waiting
@remote.connected
def run(  # noqa: PLR0917  # options are passed by name
    gateway: Gateway,
    path: Path,
    model: str,
    endpoint: str | None,
    metadata: tuple[str, ...],
    wait: bool,
    out: Path | None,
    errors: Path | None,
    force: bool,
    every: float,
    as_json: bool,
) -> None:
    """Send a file of rows and start a batch; with --wait, stay for its results.

    Interrupted while it waits, it says how to go on: the batch runs all the same.

    \b
    manifold batches run rows.jsonl --model gpt-4o --wait
    manifold batches run rows.jsonl --model gpt-4o --metadata team=search --json
    """
    out = out or path.with_suffix(".output.jsonl")
    if wait:
        _require_free(out, errors, force=force)
    body: dict[str, Any] = {
        "endpoint": endpoint or _endpoint(path),
        "completion_window": "24h",
        "model": model,
    }
    if metadata:
        body["metadata"] = dict(_pair(text) for text in metadata)
    fields = {"purpose": "batch", "target_model_names": model}
    body["input_file_id"] = files.send(gateway, path, fields)["id"]
    batch = gateway.post("/v1/batches", body)
    if wait:
        _follow(gateway, batch, out, errors, force=force, every=every, as_json=as_json)
    elif as_json:
        remote.show(batch, as_json=True)
    else:
        click.echo(batch["id"])


@batches.command(epilog=EPILOG)
@click.argument("batch_id", metavar="BATCH_ID")
@_waiting
@remote.connected
def wait(  # noqa: PLR0917  # options are passed by name
    gateway: Gateway,
    batch_id: str,
    out: Path | None,
    errors: Path | None,
    force: bool,
    every: float,
    as_json: bool,
) -> None:
    """Wait for a batch that was started, and fetch its results.

    \b
    manifold batches wait BATCH_ID --out answers.jsonl
    """
    batch = gateway.get(f"/v1/batches/{quoted(batch_id)}")
    out = out or Path(f"batch-{batch['created_at']}.output.jsonl")
    _require_free(out, errors, force=force)
    _follow(gateway, batch, out, errors, force=force, every=every, as_json=as_json)


@batches.command("list", epilog=remote.EPILOG)
@click.option("--model", "models", multiple=True, help="Only batches of this model.")
@click.option("--user", help="Another user's batches, for administrators.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=20, show_default=True)
@click.option("--after", metavar="ID", help="Those behind this batch.")
@remote.connected
def list_(  # noqa: PLR0917  # options are passed by name
    gateway: Gateway,
    models: tuple[str, ...],
    user: str | None,
    limit: int,
    after: str | None,
    as_json: bool,
) -> None:
    """List your batches, newest first.

    \b
    manifold batches list --limit 5
    """
    names = ",".join(models) or None
    found = gateway.pages(
        "/v1/batches", limit, 100, after=after, user_id=user, target_model_names=names
    )
    remote.table(found if as_json else map(_row, found), _COLUMNS, as_json=as_json)


@batches.command(epilog=remote.EPILOG)
@click.argument("batch_id", metavar="BATCH_ID")
@remote.connected
def show(gateway: Gateway, batch_id: str, as_json: bool) -> None:
    """Show a batch as its provider tells it now.

    \b
    manifold batches show BATCH_ID
    """
    batch = gateway.get(f"/v1/batches/{quoted(batch_id)}", include="state")
    told = batch if as_json else {key: value for key, value in batch.items() if value is not None}
    remote.show(told, as_json=as_json)


@batches.command(epilog=remote.EPILOG)
@click.argument("batch_id", metavar="BATCH_ID")
@remote.connected
def cancel(gateway: Gateway, batch_id: str, as_json: bool) -> None:
    """End a batch before its time.

    \b
    manifold batches cancel BATCH_ID
    """
    batch = gateway.post(f"/v1/batches/{quoted(batch_id)}/cancel", {})
    if as_json:
        remote.show(batch, as_json=True)
    else:
        click.echo(remote.plain(batch["status"]))


def _follow(
    gateway: Gateway,
    batch: dict[str, Any],
    out: Path,
    errors: Path | None,
    *,
    force: bool,
    every: float,
    as_json: bool,
) -> None:
    """Wait for the end and fetch what there is; ends with the status that tells how it went."""
    try:
        batch = _ended(gateway, batch, every)
        made = _fetched(gateway, batch, out, errors or _beside(out), force=force)
    except KeyboardInterrupt:
        hint = f"manifold batches wait {batch['id']} --out {out}"
        remote.fail(f"interrupted; the batch goes on. To go on here: {hint}", _INTERRUPTED)
    counts = batch["request_counts"] or {"total": 0, "completed": 0, "failed": 0}
    if as_json:
        remote.show({**batch, "written": made}, as_json=True)
    else:
        click.echo(
            f"{batch['status']}: {counts['completed']} of {counts['total']} rows answered"
            + (f", {counts['failed']} failed" if counts["failed"] else "")
        )
        for path in made.values():
            click.echo(remote.plain(path))
    for trouble in ((batch.get("errors") or {}).get("data") or [])[:20]:
        line = f"line {trouble['line']}: " if trouble.get("line") else ""
        click.echo(remote.plain(f"{line}{trouble.get('message')}"), err=True)
    if batch["status"] != "completed" or counts["failed"]:
        raise SystemExit(_NOT_WHOLE)


def _ended(gateway: Gateway, batch: dict[str, Any], every: float) -> dict[str, Any]:
    """The batch after its end, with what it made; a bar tells how far it is."""
    bar: ProgressBar[int] = click.progressbar(
        length=1, file=sys.stderr, hidden=not sys.stderr.isatty(), show_pos=True
    )
    with bar:
        while True:
            counts = batch["request_counts"] or {}
            bar.length = max(counts.get("total") or 0, 1)
            bar.label = remote.plain(batch["status"])
            done = (counts.get("completed") or 0) + (counts.get("failed") or 0)
            bar.update(done - bar.pos)
            if batch["status"] in BATCH_FINAL and _is_settled(batch):
                return batch
            time.sleep(every)
            batch = _asked_again(gateway, batch["id"])


def _asked_again(gateway: Gateway, batch_id: str) -> dict[str, Any]:
    """The batch as it is now, also when the gateway is away for a while: it is restarted."""
    end = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return gateway.get(f"/v1/batches/{quoted(batch_id)}")
        except GatewayAway:
            if time.monotonic() > end:
                raise
            time.sleep(1)


def _is_settled(batch: dict[str, Any]) -> bool:
    """Whether what a completed batch made has ids already: they come a moment after its end."""
    counts = batch["request_counts"] or {}
    has_made = batch["output_file_id"] or batch["error_file_id"]
    is_old = time.time() - (batch["completed_at"] or 0) > _SETTLES_WITHIN_SECONDS
    return bool(has_made or is_old or not (counts.get("completed") or counts.get("failed")))


def _fetched(
    gateway: Gateway, batch: dict[str, Any], out: Path, errors: Path, *, force: bool
) -> dict[str, str]:
    made = {}
    for kind, path in (("output_file_id", out), ("error_file_id", errors)):
        if batch[kind]:
            file = gateway.get(f"/v1/files/{quoted(batch[kind])}")
            files.fetch(gateway, file, path, force=force)
            made[kind.partition("_")[0]] = str(path)
    return made


def _beside(out: Path) -> Path:
    return out.with_name(f"{out.name.removesuffix('.jsonl').removesuffix('.output')}.errors.jsonl")


def _require_free(out: Path, errors: Path | None, *, force: bool) -> None:
    for path in (out, errors or _beside(out)):
        if path.exists() and not force:
            raise OperationRefused(f"{path} is there already; say --force to write over it")
        if not path.parent.is_dir():
            raise OperationRefused(f"{path.parent} is no folder")


def _endpoint(path: Path) -> str:
    """The url of the first row; the gateway checks the rest."""
    with path.open("rb") as rows:
        first = rows.readline(_LONGEST_LINE).lstrip(b"\xef\xbb\xbf")
    try:
        url = json.loads(first)["url"]
    except (ValueError, KeyError, TypeError) as error:
        raise OperationRefused(f"{path}: its first line is no row with a url") from error
    return str(url)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--metadata")
    return name, value


def _row(batch: dict[str, Any]) -> dict[str, Any]:
    counts = batch["request_counts"] or {}
    return {
        "id": batch["id"],
        "status": batch["status"],
        "done": counts.get("completed"),
        "failed": counts.get("failed"),
        "total": counts.get("total"),
        "created": remote.when(batch["created_at"]),
    }
