"""Fine-tuning jobs: list, create from a stored file, one job with what happened, steer."""

from typing import Any

from flask import Blueprint, Response, request
from werkzeug.wrappers import Response as BaseResponse

from app import ids
from app.api import target
from app.api.auth import Door, Guard, guard
from app.api.context import asked, caller, services
from app.api.job_schemas import NewJobBody
from app.api.schemas import load
from app.console import turning
from app.console.rendering import go, render
from app.errors import GatewayError
from app.objects import JOB_FINAL
from app.services.browse import FileQuery, FileView, JobView, Turn
from app.services.fine_tuning import Action
from app.services.job_lists import JobQuery
from app.services.router import Hints

blueprint = Blueprint("tuning", __name__)


@blueprint.get("/fine-tuning")
@guard(Guard.ANY_KEY, Door.SESSION)
def list_() -> Response:
    """A page of fine-tuning jobs."""
    me = caller()
    filters = {"user_id": turning.text("user_id") if me.sees_everything else None}
    shown = services().browse.jobs(me, "fine_tuning", filters["user_id"], turning.asked())
    return render(
        "tuning_jobs.html",
        active="tuning",
        jobs=shown.items,
        is_live=any(job.state == "active" for job in shown.items),
        links=turning.links(shown, filters),
        filters=filters,
    )


@blueprint.get("/fine-tuning/new")
@guard(Guard.WRITE, Door.SESSION)
def form() -> Response:
    """The form for a new job."""
    choices = _training_files()
    return render(
        "tuning_new.html",
        active="tuning",
        choices=choices,
        chosen=request.args.get("file"),
        model_names=services().router.model_names(caller()),
    )


@blueprint.post("/fine-tuning")
@guard(Guard.WRITE, Door.SESSION)
def create() -> BaseResponse:
    """Start the job and show it."""
    given = request.form
    file = services().browse.file(caller(), turning.plain(given.get("file", ""), 36))
    body: dict[str, Any] = {"model": given.get("model", ""), "training_file": file.id}
    if suffix := given.get("suffix", "").strip():
        body["suffix"] = suffix
    asked(body)
    load(NewJobBody, body)
    job_uuid = ids.new_uuid()
    services().fine_tuning.create(caller(), body, target.hints({}), job_uuid)
    return go(f"/ui/fine-tuning/{job_uuid}")


@blueprint.get("/fine-tuning/<uuid:job_id>")
@guard(Guard.ANY_KEY, Door.SESSION)
def show(job_id: Any) -> Response:
    """One job, as its upstream has it now, and what happened to it."""
    job = _found(job_id)
    told = services().fine_tuning.retrieve(caller(), job.id, Hints(), with_state=True)
    job = _found(job_id)
    events, trouble = [], None
    try:
        page = services().fine_tuning.details(
            caller(), job.id, "events", JobQuery(limit=50), Hints()
        )
        events = page["data"]
    except GatewayError as error:
        trouble = error.message
    me = caller()
    is_open = told.get("status") not in JOB_FINAL and job.state == "active"
    return render(
        "tuning_job.html",
        active="tuning",
        job=job,
        told=told,
        events=events,
        trouble=trouble,
        is_live=is_open,
        may_steer=is_open and me.may_write and (me.is_admin or job.owner == me.owner),
        input_uuid=services().browse.uuid_of(told.get("training_file"), job.owner),
    )


@blueprint.post("/fine-tuning/<uuid:job_id>/<any(cancel, pause, resume):action>")
@guard(Guard.WRITE, Door.SESSION)
def steer(job_id: Any, action: Action) -> BaseResponse:
    """Cancel, pause or resume."""
    job = _found(job_id)
    services().fine_tuning.steer(caller(), job.id, action, Hints())
    return go(f"/ui/fine-tuning/{job.uuid}")


def _found(job_id: Any) -> JobView:
    return services().browse.job(caller(), "fine_tuning", str(job_id))


def _training_files() -> list[FileView]:
    me = caller()
    query = FileQuery(user_id=me.user_id, purpose="fine-tune")
    found = services().browse.files(me, query, Turn(size=100)).items
    return [file for file in found if file.owner == me.owner]
