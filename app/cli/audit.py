"""`manifold audit`: who did what, from the database."""

import datetime as dt
import json
import os
import re
from contextlib import suppress
from typing import Any

import click

from app import start
from app.cli import options
from app.db.audit import AuditFilter
from app.db.tables import AuditEntry
from app.services.audit import Trail

_AGO = re.compile(r"([0-9]{1,6})(m|h|d)")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


class Moment(click.ParamType[dt.datetime]):
    """A moment as ISO 8601 has it (UTC unless it says otherwise), or a time ago: 30m, 12h, 7d."""

    name = "moment"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dt.datetime:
        """The moment, aware."""
        if match := _AGO.fullmatch(value):
            return dt.datetime.now(dt.UTC) - dt.timedelta(**{_UNITS[match[2]]: int(match[1])})
        try:
            moment = dt.datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is neither a date such as 2026-11-30T12:00 nor 30m, 12h or 7d")
        return moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)


@click.command()
@options.config
@click.option("--since", type=Moment(), help="From this moment on: 2026-11-30T12:00, or 7d ago.")
@click.option("--until", type=Moment(), help="Before this moment.")
@click.option("--actor", help="The id of the user who did it.")
@click.option("--action", help="What was done: file.delete, or file for all that begin so.")
@click.option("--target", help="The id of the object it was done to.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--limit", type=click.IntRange(1, 1_000_000), default=100, show_default=True)
@options.explaining
def audit(*, config: str, as_json: bool, limit: int, **among: Any) -> None:
    """Show who did what: the newest rows of the audit trail, oldest first.

    \b
    manifold audit --since 7d --action file.delete
    manifold audit --actor lea --json --limit 1000
    """
    settings = start.read(config, os.environ)
    database = start.open_database(settings)
    trail = Trail(database, settings.audit_retention_days, settings.data_dir / "audit")
    with suppress(OSError):
        # What belongs to another user is taken in by his gateway.
        trail.take_in()
    for row in trail.newest(AuditFilter(**among), limit):
        facts = _facts(row)
        click.echo(json.dumps(facts) if as_json else _line(facts))
    database.engine.dispose()


def _facts(row: AuditEntry) -> dict[str, Any]:
    return {
        "at": row.at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "action": row.action,
        "status": row.status,
        "actor": row.actor,
        "role": row.role,
        "key": row.key,
        "address": row.address,
        "target": row.target,
        "fields": row.fields,
        "bytes": row.bytes,
        "request_id": row.request_id,
    }


def _line(facts: dict[str, Any]) -> str:
    head = f"{facts['at']}  {facts['action']:<18} {facts['status']}  {facts['actor'] or '-'}"
    rest = (
        f"{name}={','.join(value) if isinstance(value, list) else value}"
        for name, value in facts.items()
        if name not in ("at", "action", "status", "actor") and value not in (None, [])
    )
    return "  ".join([head, *rest])
