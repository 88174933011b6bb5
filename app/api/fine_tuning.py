"""/fine_tuning/jobs: create, list, retrieve, cancel, pause, resume, events, checkpoints."""

from typing import Any, Literal

from flask import Blueprint

from app.api import body, once, target
from app.api.auth import Guard, guard
from app.api.batches import wants_state
from app.api.context import caller, services
from app.api.job_schemas import CheckpointsQuery, JobListQuery, NewJobBody, json_object
from app.api.schemas import load, loaded_query
from app.objects import FineTuningJob
from app.services.fine_tuning import Action
from app.services.job_lists import JobQuery
from app.services.router import Hints

blueprint = Blueprint("fine_tuning", __name__, url_prefix="/fine_tuning/jobs")


@blueprint.post("")
@guard(Guard.WRITE)
def create(**_: str) -> FineTuningJob:
    """The new job."""
    jobs = services().fine_tuning

    def make(job_uuid: str) -> FineTuningJob:
        found = json_object()
        hints = target.hints({key: value for key, value in found.items() if key != "model"})
        load(NewJobBody, found)
        return jobs.create(caller(), found, hints, job_uuid)

    return once.of_json(make, jobs.made)


@blueprint.get("")
@guard(Guard.ANY_KEY)
def list_(**_: str) -> dict[str, Any]:
    """A page of the caller's own jobs."""
    selector = _hints().selector()
    return services().fine_tuning.page(caller(), _query(), selector)


@blueprint.get("/<job_id>")
@guard(Guard.ANY_KEY)
def retrieve(job_id: str, **_: str) -> FineTuningJob:
    """The job; `?include=state` adds how the gateway is doing with it."""
    return services().fine_tuning.retrieve(caller(), job_id, _hints(), with_state=wants_state())


@blueprint.post("/<job_id>/<any(cancel, pause, resume):action>")
@guard(Guard.WRITE)
def steer(job_id: str, action: Action, **_: str) -> FineTuningJob:
    """The job, as it is after that."""
    return services().fine_tuning.steer(caller(), job_id, action, _hints())


@blueprint.get("/<job_id>/<any(events, checkpoints):what>")
@guard(Guard.ANY_KEY)
def details(job_id: str, what: Literal["events", "checkpoints"], **_: str) -> dict[str, Any]:
    """A page of what happened to the job, or of the models that it made on its way."""
    schema = JobListQuery if what == "events" else CheckpointsQuery
    query: JobQuery = loaded_query(schema)
    return services().fine_tuning.details(caller(), job_id, what, query, _hints())


def _query() -> JobQuery:
    query: JobQuery = loaded_query(JobListQuery)
    return query


def _hints() -> Hints:
    return target.hints(body.optional_object())
