"""Deployments: how each is doing, what it holds and how often it failed; for administrators."""

from collections.abc import Iterable
from typing import Any

from flask import Blueprint, Response

from app.api.auth import Door, Guard, guard
from app.api.context import services
from app.console.rendering import render
from app.settings import Deployment

blueprint = Blueprint("deployments", __name__)

HOURS = 24
_NOTHING = {"requests": 0, "errors": 0, "bytes_in": 0, "bytes_out": 0}
_PENDING = ("intended", "stored")


@blueprint.get("/deployments")
@guard(Guard.ADMIN_READ, Door.SESSION)
def list_() -> Response:
    """Every deployment of the configuration, and those that only rows speak of still."""
    settings, usage = services().settings, services().usage
    used, resting = usage.deployments(HOURS), set(services().router.resting())
    held: dict[str, dict[str, Any]] = {}
    for counted in usage.copies():
        of_one = held.setdefault(counted.deployment_id, {"bytes": 0, "states": {}})
        of_one["states"][counted.state] = counted.copies
        if counted.state == "ready":
            of_one["bytes"] += counted.bytes
    known = _known(settings.deployments, settings.file_accounts, settings.finetune_accounts)
    shown = [
        _row(key, deployment, held.get(key), used.get(key), key in resting)
        for key, deployment in known.items()
    ]
    gone = [
        _row(key, None, held[key], used.get(key), False) for key in sorted(held) if key not in known
    ]
    return render(
        "deployments.html",
        active="deployments",
        deployments=shown,
        gone=gone,
        warnings=settings.warnings,
        is_live=True,
    )


def _known(*groups: Iterable[Deployment]) -> dict[str, Deployment]:
    found: dict[str, Deployment] = {}
    for group in groups:
        for deployment in group:
            found.setdefault(deployment.id, deployment)
    return found


def _row(
    key: str,
    deployment: Deployment | None,
    held: dict[str, Any] | None,
    used: dict[str, int] | None,
    is_resting: bool,
) -> dict[str, Any]:
    states: dict[str, int] = (held or {}).get("states", {})
    counts = used or _NOTHING
    failing = counts["requests"] >= 5 and counts["errors"] / counts["requests"] > 0.5
    return {
        "id": key,
        "deployment": deployment,
        "health": "resting" if is_resting else "failing" if failing else "healthy",
        "bytes": (held or {}).get("bytes", 0),
        "ready": states.get("ready", 0),
        "pending": sum(states.get(state, 0) for state in _PENDING),
        "missing": states.get("missing", 0) + states.get("expired", 0),
        "counts": counts,
    }
