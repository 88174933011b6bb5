"""/batches: create, list, retrieve, cancel."""

from typing import Any

from flask import Blueprint, request

from app.api import body, once, target
from app.api.auth import Guard, guard
from app.api.context import caller, services
from app.api.job_schemas import JobListQuery, NewBatchBody, json_object
from app.api.schemas import load, loaded_query
from app.errors import InvalidRequest
from app.objects import Batch, Page
from app.services.router import Hints

blueprint = Blueprint("batches", __name__)


@blueprint.post("/batches")
@guard(Guard.WRITE)
def create(**_: str) -> Batch:
    """The new batch, under the kind of id that its input file has."""
    batches = services().batches

    def make(job_uuid: str) -> Batch:
        found = json_object()
        hints = target.hints(found)
        return batches.create(caller(), load(NewBatchBody, found), hints, job_uuid)

    return once.of_json(make, batches.made)


@blueprint.get("/batches")
@guard(Guard.ANY_KEY)
def list_(**_: str) -> Page:
    """A page of the caller's own batches."""
    selector = _hints().selector()
    query = loaded_query(JobListQuery)
    return services().batches.page(caller(), query, selector)


@blueprint.get("/batches/<batch_id>")
@guard(Guard.ANY_KEY)
def retrieve(batch_id: str, **_: str) -> dict[str, Any]:
    """The batch; `?include=state` adds how the gateway is doing with it."""
    return services().batches.retrieve(caller(), batch_id, _hints(), with_state=wants_state())


@blueprint.post("/batches/<batch_id>/cancel")
@guard(Guard.WRITE)
def cancel(batch_id: str, **_: str) -> Batch:
    """The batch, on its way to its end."""
    return services().batches.cancel(caller(), batch_id, _hints())


def wants_state() -> bool:
    """Whether the query asks for the gateway's own state. Raises InvalidRequest for other asks."""
    include = request.args.getlist("include") + request.args.getlist("include[]")
    unknown = [name for name in include if name != "state"]
    if unknown:
        raise InvalidRequest(f"{unknown[0][:60]!r} is not one of: state", param="include")
    return bool(include)


def _hints() -> Hints:
    return target.hints(body.optional_object())
