"""/health: is the process alive, can it serve, and how it is."""

from typing import Any

from flask import Blueprint

import app
from app.api import errors
from app.api.auth import Guard, guard
from app.api.context import caller, services
from app.errors import DatabaseUnavailable

blueprint = Blueprint("health", __name__)

_UNAVAILABLE = {"Retry-After": "2"}


@blueprint.get("/health/liveliness")
@blueprint.get("/health/liveness")
@guard(Guard.OPEN)
def liveness() -> dict[str, str]:
    """The process answers."""
    return {"status": "alive"}


@blueprint.get("/health/readiness")
@guard(Guard.OPEN)
def readiness() -> tuple[dict[str, str], int, dict[str, str]]:
    """200 when requests can be served, else 503."""
    if _database_answers():
        return {"status": "healthy", "db": "connected"}, 200, {}
    return {"status": "unhealthy", "db": "disconnected"}, 503, _UNAVAILABLE


@blueprint.get("/health")
@guard(Guard.ANY_KEY)
def health() -> tuple[dict[str, Any], int, dict[str, str]]:
    """Status and version; to administrators also what the configuration was warned about, and
    the ids of the deployments that are left alone for a moment because they failed."""
    answers = _database_answers()
    told: dict[str, Any] = {
        "status": "healthy" if answers else "unhealthy",
        "version": app.__version__,
        "db": "connected" if answers else "disconnected",
    }
    if caller().sees_everything:
        told["warnings"] = list(services().settings.warnings)
        told["resting"] = services().router.resting()
    return told, 200 if answers else 503, {} if answers else _UNAVAILABLE


def _database_answers() -> bool:
    try:
        services().database.ping()
    except DatabaseUnavailable as error:
        errors.log_outage(error)
        return False
    return True
