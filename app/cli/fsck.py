"""`manifold fsck`: whether rows, disk and accounts agree."""

import datetime as dt
import json
import logging
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import click
from sqlalchemy.engine import make_url

from app import start
from app.cli import options
from app.db import migrate
from app.db.tables import HEAD
from app.errors import (
    ConfigError,
    DatabaseAway,
    DatabaseUnavailable,
    GatewayError,
    OperationRefused,
)
from app.factory import build
from app.outages import reason
from app.services.findings import Asked, Finding, Summary
from app.services.router import Router
from app.settings import Settings

_MENDED, _LEFT, _NOT_ASKED, _CANCELLED = 1, 4, 8, 32
"""Exit statuses, added up. Source: fsck(8), util-linux."""
_KEPT = "kept"

log = logging.getLogger("manifold.fsck")


@click.command()
@options.config
@click.option("--repair", is_flag=True, help="Mend what differs.")
@click.option(
    "--own",
    multiple=True,
    metavar="DEPLOYMENT|MODEL",
    help="Nobody else stores files at its account: those without a row are differences too.",
)
@click.option("--read", is_flag=True, help="Read every content on this machine's disk.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option(
    "--grace-seconds",
    type=click.FloatRange(0, 86400),
    default=300.0,
    show_default=True,
    help="What is younger than this is left alone.",
)
@options.explaining
def fsck(
    *,
    config: str,
    repair: bool,
    own: tuple[str, ...],
    read: bool,
    as_json: bool,
    grace_seconds: float,
) -> None:
    """Compare the database, this machine's store and every provider account.

    Gateways and workers may go on working. Exit status: 0 nothing differs, 1 all differences were
    mended, 4 some are left, 8 something could not be asked; 4 and 8 add up to 12.

    \b
    manifold fsck
    manifold fsck --repair --read
    """
    settings = start.read(config, os.environ)
    asked = Asked(repair=repair, read=read, grace=dt.timedelta(seconds=grace_seconds))
    try:
        status = _run(settings, asked, own, as_json=as_json)
    except DatabaseUnavailable as error:
        status = _refused(f"the database does not answer ({reason(error)})")
    except (DatabaseAway, OperationRefused, GatewayError) as error:
        status = _refused(str(error))
    except KeyboardInterrupt:
        status = _CANCELLED
    except (click.ClickException, ConfigError):
        raise
    except Exception:  # 1, Python's own exit status, means that all is well again
        log.exception("fsck broke")
        status = _refused("internal error")
    sys.exit(status)


def _run(settings: Settings, asked: Asked, own: Iterable[str], *, as_json: bool) -> int:
    _require_tables(settings)
    services = build(settings)
    try:
        own_ids = frozenset(_deployments(settings, services.router, own))
        asked = Asked(asked.repair, own_ids, asked.read, asked.grace)

        def tell(finding: Finding) -> None:
            click.echo(json.dumps(asdict(finding)) if as_json else _line(finding, asked))

        summary = services.fsck.run(asked, tell)
    finally:
        services.database.engine.dispose()
    status = _status(summary)
    if as_json:
        counted = asdict(summary) | {"outcomes": dict(summary.outcomes)}
        click.echo(json.dumps({"kind": "summary", **counted, "exit_status": status}))
    else:
        click.echo(_sentence(summary))
    return status


def _require_tables(settings: Settings) -> None:
    url = make_url(settings.resolved_database_url)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
        # SQLite would make it.
        raise OperationRefused(f"{url.database} is not there: nothing to check")
    database = start.open_database(settings)
    try:
        found = migrate.current(database)
    finally:
        database.engine.dispose()
    if found != HEAD:
        raise OperationRefused(
            f"the database is at {found}, this version at {HEAD}; see `manifold db upgrade`"
        )


def _deployments(settings: Settings, router: Router, names: Iterable[str]) -> Iterable[str]:
    accounts = (*settings.deployments, *settings.file_accounts, *settings.finetune_accounts)
    known = {deployment.id for deployment in accounts} | {_KEPT}
    for name in names:
        found = {name} & known or router.accounts_of(name)
        if not found:
            raise click.BadParameter(
                f"no deployment and no model is called {name!r}; deployments: "
                f"{', '.join(sorted(known - {_KEPT}))}",
                param_hint="--own",
            )
        yield from found


def _refused(why: str) -> int:
    click.echo(f"Not checked: {why}", err=True)
    return _NOT_ASKED


def _status(summary: Summary) -> int:
    outcomes = summary.outcomes
    status = 0
    if outcomes["found"] or outcomes["left"]:
        status = _LEFT
    elif outcomes["mended"]:
        status = _MENDED
    return status + (_NOT_ASKED if outcomes["unasked"] else 0)


def _line(finding: Finding, asked: Asked) -> str:
    text = finding.meaning
    match finding.outcome:
        case "found":
            text += f"; repair {finding.repair}"
        case "mended":
            text += "; mended"
        case "left":
            text += f"; left: {finding.reason or finding.repair}"
        case "noted" if not asked.repair:
            text += f"; repair {finding.repair}"
    return f"{finding.kind}  {finding.where}  {finding.id}  {text}"


def _sentence(summary: Summary) -> str:
    looked = ", ".join(
        _number(number, name)
        for number, name in (
            (summary.files, "file"),
            (summary.copies, "copy"),
            (summary.accounts, "account"),
        )
    )
    outcomes = summary.outcomes
    if not summary.differences:
        said = "nothing differs"
    else:
        counted = {"mended": outcomes["mended"], "left": outcomes["left"]}
        told = ", ".join(f"{number:,} {word}" for word, number in counted.items() if number)
        said = _number(summary.differences, "difference") + (f" ({told})" if told else "")
    if outcomes["unasked"]:
        said += f"; {_number(outcomes['unasked'], 'place')} could not be asked"
    if outcomes["noted"]:
        said += f"; {_number(outcomes['noted'], 'thing')} noted that may be somebody else's"
    return f"{said}: {looked}"


def _number(number: int, name: str) -> str:
    several = "copies" if name == "copy" else f"{name}s"
    return f"{number:,} {name if number == 1 else several}"
