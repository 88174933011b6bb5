"""`manifold files`: send, list, fetch, show and remove files of a running gateway."""

import mimetypes
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from app.cli import remote
from app.client import Gateway, Part, quoted
from app.errors import OperationRefused
from app.objects import LISTED_PURPOSES, PURPOSES

_PAGE = 1000
_COLUMNS = ("id", "filename", "size", "purpose", "status", "created")
# What providers rewrite or translate on the way is not as long as it was.
_REWRITTEN = ("batch", "batch_output")


@click.group(epilog=remote.EPILOG)
def files() -> None:
    """Files, under one id for every model.

    \b
    manifold files put report.pdf --model gpt-4o --model claude-sonnet
    manifold files list --purpose user_data
    manifold files get FILE_ID
    """


@files.command(epilog=remote.EPILOG)
@click.argument(
    "paths",
    nargs=-1,
    required=True,
    metavar="FILE...",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)
@click.option(
    "--model",
    "models",
    multiple=True,
    help="A model that is to have it; may be given several times.  [default: the gateway's]",
)
@click.option("--provider", help="Store it by this provider's API, under its own id.")
@click.option("--purpose", type=click.Choice(PURPOSES), default="user_data", show_default=True)
@click.option("--name", help="The name it is stored under, for one file.  [default: its own]")
@click.option(
    "--expires-in-days", type=click.IntRange(1, 30), help="When the gateway lets go of it."
)
@remote.connected
def put(  # noqa: PLR0917  # options are passed by name
    gateway: Gateway,
    paths: tuple[Path, ...],
    models: tuple[str, ...],
    provider: str | None,
    purpose: str,
    name: str | None,
    expires_in_days: int | None,
    as_json: bool,
) -> None:
    """Send files, of any size, and print their ids.

    \b
    manifold files put report.pdf
    manifold files put *.pdf --model gpt-4o --model claude-sonnet
    id=$(manifold files put rows.jsonl --purpose batch --model gpt-4o)
    """
    if name is not None and len(paths) > 1:
        raise click.UsageError("--name is for one file")
    fields = {"purpose": purpose}
    if models:
        fields["target_model_names"] = ",".join(models)
    if provider:
        fields["custom_llm_provider"] = provider
    if expires_in_days:
        fields["expires_after[anchor]"] = "created_at"
        fields["expires_after[seconds]"] = str(expires_in_days * 86400)
    for path in paths:
        sent = send(gateway, path, fields, name)
        if as_json:
            remote.show(sent, as_json=True)
        else:
            click.echo(sent["id"])


def send(
    gateway: Gateway, path: Path, fields: dict[str, str], name: str | None = None
) -> dict[str, Any]:
    """Upload a file with a progress bar; its file object."""
    name = name or path.name
    if not path.stat().st_size:
        raise OperationRefused(f"{path} is empty")
    mime_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
    with remote.progress(name, path.stat().st_size) as told:
        return gateway.upload(path, name, mime_type, fields, told)


@files.command("list", epilog=remote.EPILOG)
@click.option("--model", "models", multiple=True, help="Only files that this model has.")
@click.option("--purpose", type=click.Choice(LISTED_PURPOSES))
@click.option("--user", help="Another user's files, for administrators.")
@click.option("--limit", type=click.IntRange(1, 1_000_000), default=100, show_default=True)
@click.option("--after", metavar="ID", help="Those behind this file.")
@click.option("--oldest-first", is_flag=True)
@remote.connected
def list_(  # noqa: PLR0917  # options are passed by name
    gateway: Gateway,
    models: tuple[str, ...],
    purpose: str | None,
    user: str | None,
    limit: int,
    after: str | None,
    oldest_first: bool,
    as_json: bool,
) -> None:
    """List your files, newest first.

    \b
    manifold files list --model gpt-4o --limit 20
    manifold files list --json | jq -r .id
    """
    found = gateway.pages(
        "/v1/files",
        limit,
        _PAGE,
        purpose=purpose,
        after=after,
        user_id=user,
        order="asc" if oldest_first else "desc",
        target_model_names=",".join(models) or None,
    )
    rows: Iterable[dict[str, Any]] = found if as_json else map(_row, found)
    if remote.table(rows, _COLUMNS, as_json=as_json) == limit:
        click.echo(
            f"There may be more: say --limit, or --after the last id ({limit} shown).", err=True
        )


def _row(file: dict[str, Any]) -> dict[str, Any]:
    return {
        **file,
        "size": remote.size(file["bytes"]),
        "created": remote.when(file["created_at"]),
    }


@files.command(epilog=remote.EPILOG)
@click.argument("file_id", metavar="FILE_ID")
@remote.connected
def show(gateway: Gateway, file_id: str, as_json: bool) -> None:
    """Show a file and where its copies are.

    \b
    manifold files show FILE_ID
    """
    file = gateway.get(f"/v1/files/{quoted(file_id)}", include="copies")
    copies = file.pop("copies", [])
    if as_json:
        remote.show({**file, "copies": copies}, as_json=True)
        return
    remote.show(
        {
            **{name: value for name, value in file.items() if value is not None},
            "created_at": remote.when(file["created_at"]),
            "bytes": file["bytes"],
        },
        as_json=False,
    )
    if copies:
        click.echo()
        columns = [name for name in copies[0] if any(copy.get(name) for copy in copies)]
        remote.table(copies, columns, as_json=False)


@files.command(epilog=remote.EPILOG)
@click.argument("file_id", metavar="FILE_ID")
@click.option(
    "--out",
    "-o",
    type=click.Path(dir_okay=True, path_type=Path, allow_dash=True),
    help="A file, a folder, or - for stdout.  [default: the file's own name, here]",
)
@click.option("--force", "-f", is_flag=True, help="Write over a file that is there.")
@remote.connected
def get(gateway: Gateway, file_id: str, out: Path | None, force: bool, as_json: bool) -> None:
    """Fetch a file's content.

    What was cut off goes on where it stopped when the same command is given again.

    \b
    manifold files get FILE_ID
    manifold files get FILE_ID --out results.jsonl
    manifold files get FILE_ID --out - | head
    """
    if out is not None and str(out) == "-":
        for chunk in gateway.read(file_id):
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
        return
    file = gateway.get(f"/v1/files/{quoted(file_id)}")
    if out is None or out.is_dir():
        out = (out or Path()) / safe_name(file["filename"])
    fetch(gateway, file, out, force=force)
    facts = {"id": file["id"], "path": str(out), "bytes": out.stat().st_size}
    if as_json:
        remote.show(facts, as_json=True)
    else:
        click.echo(remote.plain(out))


def fetch(gateway: Gateway, file: dict[str, Any], target: Path, *, force: bool = False) -> None:
    """Download a file with a progress bar, to go on with where an earlier try has stopped."""
    if target.exists() and not force:
        raise OperationRefused(f"{target} is there already; say --force to write over it")
    part = Part(
        path=target.with_name(f"{target.name}.part"),
        note=target.with_name(f"{target.name}.part.json"),
        facts={
            "gateway": gateway.url,
            "id": file["id"],
            "bytes": file["bytes"],
            "created_at": file["created_at"],
        },
    )
    with remote.progress(target.name, file["bytes"], part.begin()) as told:
        gateway.download(file["id"], part, told)
    if file["purpose"] not in _REWRITTEN and part.size != file["bytes"]:
        raise OperationRefused(
            f"{part.size} bytes came of a file that has {file['bytes']}; they are in {part.path}"
        )
    with part.path.open("rb") as written:
        os.fsync(written.fileno())
    part.path.replace(target)


def safe_name(name: str) -> str:
    """A stored name as one that can be written here: the gateway's word is not trusted for it."""
    kept = "".join(char for char in name.replace("\\", "/") if char.isprintable())
    kept = kept.rpartition("/")[2].lstrip(".").strip()
    return kept[:200] or "file"


@files.command(epilog=remote.EPILOG)
@click.argument("file_ids", nargs=-1, required=True, metavar="FILE_ID...")
@remote.connected
def rm(gateway: Gateway, file_ids: tuple[str, ...], as_json: bool) -> None:
    """Remove files, with every copy at every provider.

    \b
    manifold files rm FILE_ID
    manifold files list --purpose batch --json | jq -r .id | xargs manifold files rm
    """
    for file_id in file_ids:
        gone = gateway.delete(f"/v1/files/{quoted(file_id)}")
        if as_json:
            remote.show(gone, as_json=True)
        else:
            click.echo(f"removed {remote.plain(gone['id'])}")
