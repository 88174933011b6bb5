"""/metrics: for Prometheus, what this machine's processes counted and what the database holds."""

from collections.abc import Iterator
from typing import Any

from flask import Blueprint, Response, request

import app
from app.api.auth import Guard, guard
from app.api.context import services
from app.metrics import page
from app.services.census import Counts

blueprint = Blueprint("metrics", __name__)


@blueprint.get("/metrics")
@guard(Guard.METRICS)
def metrics() -> Response:
    """The page, in the form that the scraper asks for."""
    found = services()
    collectors: list[Any] = [_Counted(found.census.counts())]
    if found.metrics is not None:
        collectors.append(found.metrics)
    body, content_type = page(collectors, request.headers.get("Accept", ""))
    return Response(body, content_type=content_type)


class _Counted:
    """A census as prometheus_client's families."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import GaugeMetricFamily  # noqa: PLC0415  # 60 ms

        def gauge(name: str, text: str, *labels: str) -> Any:
            return GaugeMetricFamily(f"manifold_{name}", text, labels=labels)

        counts = self._counts
        build = gauge("build_info", "Which version this is.", "version")
        build.add_metric([app.__version__], 1)
        yield build
        plainly: tuple[tuple[str, str, int], ...] = (
            ("database_up", "Whether the database answers.", counts.has_database),
            ("spool_bytes", "Bytes of transfers that are under way.", counts.spool_bytes),
            ("data_dir_free_bytes", "Room left on the disk of data_dir.", counts.free_bytes),
        )
        for name, text, number in plainly:
            plain = gauge(name, text)
            plain.add_metric([], number)
            yield plain
        for name, label, found in (
            ("files", "state", counts.files),
            ("copies", "state", counts.copies),
            ("uploads", "status", counts.uploads),
        ):
            rows = gauge(name, f"Rows of {name}, all nodes'.", label)
            for word, count in sorted(found.items()):
                rows.add_metric([word], count)
            yield rows
        jobs = gauge("jobs", "Rows of jobs.", "type", "provider", "model", "status")
        for key, count in sorted(counts.jobs.items()):
            jobs.add_metric(list(key), count)
        yield jobs
        backlog = gauge("worker_backlog", "Rows that are due, all nodes'.", "chore")
        late = gauge("worker_late_seconds", "For how long the first of them is due.", "chore")
        for chore, (waiting, seconds) in sorted(counts.due.items()):
            backlog.add_metric([chore], waiting)
            late.add_metric([chore], seconds)
        yield from (backlog, late)
