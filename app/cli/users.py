"""`manifold users`: the people who have keys and files."""

from collections.abc import Callable
from typing import Any

import click

from app.cli import remote
from app.client import Gateway
from app.services.callers import Role

_COLUMNS = ("user_id", "user_email", "user_role", "models", "blocked", "created_at")
_LIMITS = (
    ("--rpm", "rpm_limit", "Requests a minute."),
    ("--parallel", "max_parallel_requests", "Requests at a time."),
    ("--max-files", "max_files", "Files that may be stored."),
    ("--max-bytes", "max_bytes_stored", "Bytes that may be stored."),
)


def limits(command: Callable[..., None]) -> Callable[..., None]:
    """Options for what a user or a key may do at most."""
    for option, name, text in reversed(_LIMITS):
        command = click.option(option, name, type=click.IntRange(0), help=text)(command)
    return command


def listing(command: Callable[..., None]) -> Callable[..., None]:
    """Options for which part of a list is shown."""
    command = click.option(
        "--limit", type=click.IntRange(1, 1_000_000), default=100, show_default=True
    )(command)
    return click.option("--page", type=click.IntRange(1), default=1, help="Begin at this page.")(
        command
    )


@click.group(epilog=remote.EPILOG)
def users() -> None:
    """Users; for administrators.

    \b
    manifold users new lea --model gpt-4o --duration 30d
    manifold users list
    """


@users.command(epilog=remote.EPILOG)
@click.argument("user_id", required=False)
@click.option("--email")
@click.option("--alias", help="A name to show.")
@click.option(
    "--role",
    type=click.Choice([role.value for role in Role]),
    default=Role.INTERNAL_USER.value,
    show_default=True,
)
@click.option("--model", "models", multiple=True, help="May use this model.  [default: all]")
@click.option("--duration", help="How long the first key works: 30m, 12h, 30d, 1mo.")
@click.option("--no-key", is_flag=True, help="Make no key yet.")
@limits
@remote.connected
def new(gateway: Gateway, no_key: bool, as_json: bool, **said: Any) -> None:
    """Make a user, and the first key, whose secret is shown this once.

    \b
    manifold users new lea --email lea@example.org --model gpt-4o --duration 30d
    """
    names = {"email": "user_email", "alias": "user_alias", "role": "user_role"}
    body = {names.get(name, name): value for name, value in said.items() if value is not None}
    body |= {"models": list(said["models"]), "auto_create_key": not no_key}
    made = gateway.post("/user/new", body)
    shown = ("user_id", "user_email", "user_role", "models", "key", "expires")
    facts = {name: made[name] for name in shown if made.get(name) is not None}
    remote.show(made if as_json else facts, as_json=as_json)


@users.command("list", epilog=remote.EPILOG)
@click.option("--email")
@click.option("--role", type=click.Choice([role.value for role in Role]))
@listing
@remote.connected
def list_(  # noqa: PLR0917  # options are passed by name
    gateway: Gateway,
    email: str | None,
    role: str | None,
    page: int,
    limit: int,
    as_json: bool,
) -> None:
    """List users, newest first.

    \b
    manifold users list --role proxy_admin
    """
    found = numbered(gateway, "/user/list", "users", page, limit, user_email=email, role=role)
    remote.table(found, _COLUMNS, as_json=as_json)


@users.command(epilog=remote.EPILOG)
@click.argument("user_id", required=False)
@remote.connected
def show(gateway: Gateway, user_id: str | None, as_json: bool) -> None:
    """Show a user with the newest keys; yourself when none is named.

    \b
    manifold users show lea
    """
    found = gateway.get("/user/info", user_id=user_id)
    if as_json:
        remote.show(found, as_json=True)
        return
    remote.show(found["user_info"], as_json=False)
    if found["keys"]:
        click.echo()
        columns = ("key_name", "key_alias", "models", "blocked", "expires", "token")
        remote.table(found["keys"], columns, as_json=False)


@users.command(epilog=remote.EPILOG)
@click.argument("user_ids", nargs=-1, required=True, metavar="USER_ID...")
@click.option(
    "--files",
    type=click.Choice(["keep", "transfer", "delete"]),
    default="keep",
    show_default=True,
    help="What becomes of their files; those that are kept have no owner.",
)
@click.option("--transfer-to", metavar="USER_ID", help="Who gets them, with --files transfer.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@remote.connected
def delete(  # noqa: PLR0917  # options are passed by name
    gateway: Gateway,
    user_ids: tuple[str, ...],
    files: str,
    transfer_to: str | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Delete users, with their keys, all of them or none.

    \b
    manifold users delete lea --files transfer --transfer-to max
    """
    if not yes:
        told = ", ".join(map(remote.plain, user_ids))
        click.confirm(f"Delete {told}, their keys, and {files} their files?", abort=True, err=True)
    body: dict[str, Any] = {"user_ids": list(user_ids), "files": files}
    if transfer_to is not None:
        body["transfer_to"] = transfer_to
    gone = gateway.post("/user/delete", body)
    if as_json:
        remote.show(gone, as_json=True)
    else:
        click.echo(f"{len(gone['deleted_users'])} deleted, with {gone['deleted_keys']} keys")


def numbered(  # where, what, and how much of it
    gateway: Gateway, path: str, name: str, page: int, limit: int, **query: Any
) -> list[dict[str, Any]]:
    """Up to `limit` objects of a list that has numbered pages, from a page on."""
    size = min(limit, 100)
    found: list[dict[str, Any]] = []
    while len(found) < limit:
        answer = gateway.get(path, page=page, size=size, **query)
        found += answer[name]
        if page >= answer["total_pages"]:
            break
        page += 1
    return found[:limit]
