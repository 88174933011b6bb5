"""Requests counted for the charts of the console, when their last byte is gone."""

from collections.abc import Mapping
from typing import Any

from app.services.callers import Caller
from app.services.usage import Usage

_CONSOLE = "/ui"


class Counting:
    """Counts what the access log has just written."""

    def __init__(self, usage: Usage) -> None:
        self._usage = usage

    def __call__(self, caller: Caller | None, line: Mapping[str, Any]) -> None:
        """Count a request whose caller is known."""
        deployments = tuple(filter(None, (line.get("deployment") or "").split(",")))
        is_page = (line["route"] or "").startswith(_CONSOLE) and not deployments
        if caller is None or is_page:
            # Who looks at the charts is not what they are about.
            return
        self._usage.count(
            caller,
            is_error=line["status"] >= 400,
            bytes_in=line.get("bytes_in", 0),
            bytes_out=line["bytes_out"],
            deployments=deployments,
        )
