"""`manifold import-litellm`: take over what LiteLLM's database knows."""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import click

from app import start
from app.cli import options, remote
from app.cli.database import address
from app.db import migrate
from app.db.tables import HEAD
from app.errors import OperationRefused
from app.litellm_import import deployments, importing, source
from app.litellm_import.report import Line, Report

_SKIPPED = 4
_KINDS = ("user", "team", "key", "file", "batch", "job", "object")


@click.command(
    epilog="Exit status: 0 everything is taken; 1 it could not be done; 2 wrong use, or a mistake "
    "in the configuration; 4 done, but some rows are skipped."
)
@options.config
@click.option(
    "--from",
    "source_",
    metavar="env:NAME|file:PATH",
    default="env:LITELLM_DATABASE_URL",
    show_default=True,
    help="Where LiteLLM's DATABASE_URL is.",
)
@click.option(
    "--litellm-config",
    metavar="PATH",
    help="The config.yaml that LiteLLM ran with, which says what its deployments were called.  "
    "[default: --config]",
)
@click.option(
    "--deployment",
    "said",
    multiple=True,
    metavar="MODEL_ID=NAME",
    help="What LiteLLM called MODEL_ID is this deployment or model. May be given several times.",
)
@click.option("--apply", is_flag=True, help="Write. Without it, nothing is changed.")
@click.option("--json", "as_json", is_flag=True, help="Each row that is told of as a line of JSON.")
@options.explaining
def import_litellm(
    *,
    config: str,
    source_: str,
    litellm_config: str | None,
    said: tuple[str, ...],
    apply: bool,
    as_json: bool,
) -> None:
    """Take over LiteLLM's users, keys, managed files, batches and fine-tuning jobs.

    Old keys and old ids then work here, for their owners and for nobody else. LiteLLM's database
    is only read. The first run tells what would be taken and what not, and why; --apply does it.
    Run it again as often as you like: what is here stays, what was deleted here does not come back.

    \b
    export LITELLM_DATABASE_URL=postgresql://litellm:secret@db/litellm
    manifold import-litellm
    manifold import-litellm --apply
    """
    settings = start.read(config, os.environ)
    database = start.open_database(settings)

    def tell(line: Line) -> None:
        if as_json:
            click.echo(json.dumps(asdict(line), ensure_ascii=False))

    report = Report(tell)
    try:
        if (found := migrate.current(database)) != HEAD:
            raise OperationRefused(
                f"the database is at {found}, this version at {HEAD}; see `manifold db upgrade`"
            )
        known = deployments.found(settings, Path(litellm_config or config), os.environ, _said(said))
        with source.opened(address(source_, "--from")) as rows:
            asked = importing.Asked(apply=apply)
            importing.Import(rows, database, known, report).run(asked)
    finally:
        database.engine.dispose()
    _summarize(report, apply=apply, as_json=as_json)
    sys.exit(0 if report.is_whole else _SKIPPED)


def _said(pairs: tuple[str, ...]) -> Mapping[str, str]:
    found = {}
    for pair in pairs:
        model_id, equals, name = pair.partition("=")
        if not equals or not model_id or not name:
            raise click.BadParameter(f"{pair!r} is not MODEL_ID=NAME", param_hint="--deployment")
        found[model_id] = name
    return found


def _summarize(report: Report, *, apply: bool, as_json: bool) -> None:
    counts = {
        kind: {
            outcome: number
            for (of, outcome), number in report.counts.items()
            if of == kind and outcome != "noted"
        }
        for kind in _KINDS
    }
    if as_json:
        told = {kind: numbers for kind, numbers in counts.items() if numbers}
        click.echo(json.dumps({"kind": "summary", "applied": apply, **told}))
        return
    rows = [
        {
            "": f"{kind}s" if kind != "batch" else "batches",
            "taken": numbers.get("taken", 0),
            "here already": numbers.get("here", 0),
            "skipped": numbers.get("skipped", 0),
        }
        for kind, numbers in counts.items()
        if numbers
    ]
    remote.table(rows, ("", "taken", "here already", "skipped"), as_json=False)
    for outcome, heading in (("skipped", "Skipped"), ("noted", "Taken, but")):
        sorts = [(key, n) for key, n in report.reasons.most_common() if key[1] == outcome]
        if sorts:
            click.echo(f"\n{heading}:")
        for (kind, _, reason), number in sorts:
            example = remote.plain(report.examples[kind, outcome, reason])  # type: ignore[index]  # the literal is narrowed away
            click.echo(
                f"  {number} {kind}{'s' if number > 1 else ''}: {reason}\n    e.g. {example}"
            )
    if not apply:
        click.echo("\nNothing was written. Say --apply to do it.")
