"""services(), caller(), the request id: the only look at g and current_app."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from flask import current_app, g, request

from app.db.engine import Database
from app.db.files import WithCopies
from app.metrics import Metrics
from app.services.access import Access
from app.services.audit import Trail
from app.services.batches import Batches
from app.services.browse import Browse
from app.services.callers import Caller
from app.services.census import Census
from app.services.file_lists import FileLists
from app.services.files import Files
from app.services.fine_tuning import FineTuning
from app.services.fsck import Fsck
from app.services.inference import Inference
from app.services.metering import Meter
from app.services.once import Once
from app.services.reconciler import Reconciler
from app.services.repeats import Repeats
from app.services.router import Router
from app.services.sessions import Sessions
from app.services.sweeper import Sweeper
from app.services.upkeep import Upkeep
from app.services.uploads import Uploads
from app.services.usage import Usage
from app.settings import Settings
from app.spool import Spool

_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_EXTENSION = "manifold"
T = TypeVar("T")


@dataclass(frozen=True)
class Services:
    """The collaborators that the factory built, for the views."""

    settings: Settings
    database: Database
    access: Access
    sessions: Sessions
    usage: Usage
    browse: Browse
    meter: Meter
    once: Once
    repeats: Repeats
    trail: Trail
    router: Router
    files: Files
    file_lists: FileLists
    uploads: Uploads
    inference: Inference
    batches: Batches
    fine_tuning: FineTuning
    upkeep: Upkeep
    reconciler: Reconciler
    sweeper: Sweeper
    fsck: Fsck
    spool: Spool
    census: Census
    metrics: Metrics | None


def services() -> Services:
    """The collaborators of the app that serves this request."""
    return cast(Services, current_app.extensions[_EXTENSION])


def caller() -> Caller:
    """Who sends this request; only behind a guard."""
    return cast(Caller, g.caller)


def seen() -> WithCopies | None:
    """The file of the request's path as it was found with the caller, if it was."""
    return cast("WithCopies | None", g.get("seen"))


def itself(proxy: T) -> T:
    """What Flask's `request` or `g` stands for now, for who looks at it again and again.

    Each look through a proxy is four calls of functions.
    """
    found: T = proxy._get_current_object()  # type: ignore[attr-defined]  # it is a LocalProxy
    return found


def request_id() -> str:
    """The caller's own `x-request-id` when it is a sane one, else a new one; one per request."""
    ours = itself(g)
    found: str | None = ours.get("request_id")
    if found is None:
        sent = request.headers.get("x-request-id", "")
        found = sent if _SANE_REQUEST_ID.fullmatch(sent) else f"req_{os.urandom(16).hex()}"
        ours.request_id = found
    return found


def note(**facts: Any) -> None:
    """Add facts to the log line of this request."""
    g.setdefault("notes", {}).update(facts)


def asked(fields: Mapping[str, Any]) -> None:
    """Remember what a body about users or keys asks for; the audit trail keeps the names of it."""
    g.asked = fields
