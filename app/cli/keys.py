"""`manifold keys`: make, show, block, renew and delete keys."""

import sys
from typing import Any

import click

from app.cli import remote
from app.cli.users import limits, listing, numbered
from app.client import Gateway

_COLUMNS = ("key_name", "key_alias", "user_id", "models", "blocked", "expires", "token")
_SHOWN = ("key", "key_alias", "user_id", "models", "expires", "token")


@click.group(epilog=remote.EPILOG)
def keys() -> None:
    """Keys. KEY is an alias or a hash (the column TOKEN), or - for a secret on stdin.

    \b
    manifold keys new --user lea --model gpt-4o --duration 30d
    manifold keys block laptop
    """


@keys.command(epilog=remote.EPILOG)
@click.option("--user", "user_id", help="Whose key it is.  [default: your own]")
@click.option("--alias", "key_alias", help="A name for the key.")
@click.option("--model", "models", multiple=True, help="May use this model.  [default: as you]")
@click.option("--duration", help="How long it works: 30m, 12h, 30d, 1mo.")
@click.option("--only-key", is_flag=True, help="Print the secret and nothing else.")
@limits
@remote.connected
def new(gateway: Gateway, only_key: bool, as_json: bool, **said: Any) -> None:
    """Make a key; its secret is shown this once.

    \b
    manifold keys new --user lea --alias laptop --duration 30d
    (umask 077; manifold keys new --alias ci --only-key > ci.key)
    """
    body = {name: value for name, value in said.items() if value not in (None, ())}
    made = gateway.post("/key/generate", body)
    _tell_secret(made, only_key=only_key, as_json=as_json)


@keys.command("list", epilog=remote.EPILOG)
@click.option("--user", "user_id", help="Only this user's.")
@click.option("--alias", "key_alias", help="Only those of this name.")
@listing
@remote.connected
def list_(  # noqa: PLR0917  # options are passed by name
    gateway: Gateway,
    user_id: str | None,
    key_alias: str | None,
    page: int,
    limit: int,
    as_json: bool,
) -> None:
    """List keys, newest first: your own, or everybody's for administrators.

    \b
    manifold keys list --user lea
    """
    asked = {"user_id": user_id, "key_alias": key_alias}
    found = numbered(gateway, "/key/list", "keys", page, limit, **asked)
    remote.table(found, _COLUMNS, as_json=as_json)


@keys.command(epilog=remote.EPILOG)
@click.argument("key", required=False)
@remote.connected
def show(gateway: Gateway, key: str | None, as_json: bool) -> None:
    """Show a key; the one you use when none is named.

    \b
    manifold keys show laptop
    """
    # A secret stands in no address, where logs would keep it.
    found = gateway.get("/key/info", key=None if key is None else _named(key, in_address=True))
    remote.show(found["info"], as_json=as_json)


@keys.command(epilog=remote.EPILOG)
@click.argument("key")
@remote.connected
def block(gateway: Gateway, key: str, as_json: bool) -> None:
    """Refuse a key from its next request on.

    \b
    manifold keys block laptop
    """
    _tell("blocked", gateway.post("/key/block", {"key": _named(key)}), as_json=as_json)


@keys.command(epilog=remote.EPILOG)
@click.argument("key")
@remote.connected
def unblock(gateway: Gateway, key: str, as_json: bool) -> None:
    """Accept a key again; for administrators.

    \b
    manifold keys unblock laptop
    """
    _tell("accepted again", gateway.post("/key/unblock", {"key": _named(key)}), as_json=as_json)


@keys.command(epilog=remote.EPILOG)
@click.argument("key")
@click.option("--grace", metavar="DURATION", help="How long the old secret still works: 1h, 2d.")
@click.option("--only-key", is_flag=True, help="Print the secret and nothing else.")
@remote.connected
def regenerate(
    gateway: Gateway, key: str, grace: str | None, only_key: bool, as_json: bool
) -> None:
    """Give a key a new secret; everything else about it stays.

    \b
    manifold keys regenerate laptop --grace 1d
    """
    body = {"key": _named(key), **({"grace_period": grace} if grace else {})}
    made = gateway.post("/key/regenerate", body)
    _tell_secret(made, only_key=only_key, as_json=as_json)


@keys.command(epilog=remote.EPILOG)
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@remote.connected
def delete(gateway: Gateway, keys: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Delete keys, all of them or none.

    \b
    manifold keys delete laptop --yes
    """
    if not yes:
        names = ", ".join(map(remote.plain, keys))
        click.confirm(f"Delete {names}?", abort=True, err=True)
    gone = gateway.post("/key/delete", {"keys": [_named(key) for key in keys]})
    if as_json:
        remote.show(gone, as_json=True)
    else:
        click.echo(f"{len(gone['deleted_keys'])} deleted")


def _named(key: str, *, in_address: bool = False) -> str:
    if key.startswith("sk-") or (key == "-" and in_address):
        raise click.BadParameter(
            "a secret here is seen by every user of this machine; say its alias or its hash"
            + ("" if in_address else ", or - and send it on stdin"),
            param_hint="KEY",
        )
    if key == "-":
        return sys.stdin.readline().strip()
    return key


def _tell(what: str, key: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        remote.show(key, as_json=True)
    else:
        click.echo(f"{remote.plain(key['key_alias'] or key['key_name'])}: {what}")


def _tell_secret(made: dict[str, Any], *, only_key: bool, as_json: bool) -> None:
    if only_key:
        click.echo(made["key"])
        return
    facts = {name: made[name] for name in _SHOWN if made.get(name) is not None}
    remote.show(made if as_json else facts, as_json=as_json)
