"""The overview: what is stored, and what was asked in the last day, week or month."""

from typing import Any

from flask import Blueprint, Response, request

from app.api.auth import Door, Guard, guard
from app.api.context import caller, services
from app.console import charts, formats
from app.console.rendering import render

blueprint = Blueprint("overview", __name__)

SPANS = {"24h": ("24 hours", 24, 1), "7d": ("7 days", 7 * 24, 6), "30d": ("30 days", 30 * 24, 24)}
"""The name of a span, its hours, and how many of them one column is."""


@blueprint.get("/overview")
@guard(Guard.ANY_KEY, Door.SESSION)
def show() -> Response:
    """Charts of the caller's own things, of everybody's for those who see everything."""
    me, usage = caller(), services().usage
    span = request.args.get("span", "24h")
    span = span if span in SPANS else "24h"
    name, hours, step = SPANS[span]
    history = usage.history(me, hours, step=step)
    good = [
        all_ - bad
        for all_, bad in zip(history.counts["requests"], history.counts["errors"], strict=True)
    ]
    has_days = step > 1
    requests = charts.columns(
        history.hours,
        [("good", good), ("bad", history.counts["errors"])],
        charts.Writer(),
        days=has_days,
    )
    moved = charts.columns(
        history.hours,
        [("in", history.counts["bytes_in"]), ("out", history.counts["bytes_out"])],
        charts.ByteWriter(),
        days=has_days,
    )
    batch_rows = charts.columns(
        history.hours,
        [("good", history.counts["rows_done"]), ("bad", history.counts["rows_failed"])],
        charts.Writer(),
        days=has_days,
    )
    owners = usage.stored(me, "owner")
    total = owners if not me.sees_everything else usage.stored(me, "owner", 100_000)
    return render(
        "overview.html",
        active="overview",
        span=span,
        spans=SPANS,
        span_name=name,
        step=step,
        totals={name: history.total(name) for name in history.counts},
        files=sum(each.files for each in total),
        stored=sum(each.bytes for each in total),
        running=services().browse.running(me, "batch"),
        requests=requests,
        moved=moved,
        batch_rows=batch_rows,
        by_owner=_bars([(formats.owner(each.name), each.files, each.bytes) for each in owners]),
        by_model=_bars(
            [
                (each.name or "an account", each.files, each.bytes)
                for each in usage.stored(me, "model")
            ]
        ),
        models=_busiest("model"),
        owners=_busiest("owner") if me.sees_everything else [],
    )


def _busiest(by: str) -> list[dict[str, Any]]:
    hours = SPANS[request.args.get("span", "24h")][1] if request.args.get("span") in SPANS else 24
    found = services().usage.busiest(caller(), hours, by)
    shares = charts.share_of([counts["requests"] for _, counts in found])
    return [
        {"name": formats.owner(name) if by == "owner" else name, "share": share, **counts}
        for (name, counts), share in zip(found, shares, strict=True)
    ]


def _bars(found: list[tuple[str, int, int]]) -> list[dict[str, Any]]:
    shares = charts.share_of([size for *_, size in found])
    return [
        {"name": name, "files": files, "bytes": size, "share": share}
        for (name, files, size), share in zip(found, shares, strict=True)
    ]
