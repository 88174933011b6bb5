"""Batches: list, create from a stored file, one batch with its rows, cancel."""

from contextlib import suppress
from typing import Any

from flask import Blueprint, Response, request
from werkzeug.wrappers import Response as BaseResponse

from app import ids
from app.api import target
from app.api.auth import Door, Guard, guard
from app.api.context import asked, caller, services
from app.api.job_schemas import NewBatchBody
from app.api.schemas import load
from app.console import files, rows, turning
from app.console.rendering import go, render
from app.errors import GatewayError, NotFound, UpstreamError
from app.objects import BATCH_FINAL
from app.providers.wire.jsonl import ENDPOINTS
from app.services.browse import JobView
from app.services.router import Hints

blueprint = Blueprint("batches", __name__)


@blueprint.get("/batches")
@guard(Guard.ANY_KEY, Door.SESSION)
def list_() -> Response:
    """A page of batches."""
    me = caller()
    filters = {"user_id": turning.text("user_id") if me.sees_everything else None}
    shown = services().browse.jobs(me, "batch", filters["user_id"], turning.asked())
    return render(
        "batches.html",
        active="batches",
        jobs=[(job, counts(job.snapshot)) for job in shown.items],
        is_live=any(job.state == "active" for job in shown.items),
        links=turning.links(shown, filters),
        filters=filters,
    )


@blueprint.get("/batches/new")
@guard(Guard.WRITE, Door.SESSION)
def form() -> Response:
    """The form for a new batch, made of a file that is stored already."""
    choices = files.own_batch_files()
    wanted = request.args.get("file")
    chosen = next((file for file in choices if file.uuid == wanted), None)
    if wanted and chosen is None:
        # One that is older than those, or an administrator's look at somebody's.
        with suppress(NotFound):
            chosen = services().browse.file(caller(), wanted[:36])
    names = (copy["model"] for copy in (chosen.copies if chosen else ()) if copy["model"])
    return render(
        "batch_new.html",
        active="batches",
        choices=choices,
        chosen=chosen,
        models=list(dict.fromkeys(names)),
        endpoints=ENDPOINTS,
    )


@blueprint.post("/batches")
@guard(Guard.WRITE, Door.SESSION)
def create() -> BaseResponse:
    """Start the batch and show it."""
    given = request.form
    file = services().browse.file(caller(), turning.plain(given.get("file", ""), 36))
    note = given.get("note", "").strip()
    body: dict[str, Any] = {
        "input_file_id": file.id,
        "endpoint": given.get("endpoint", ""),
        "completion_window": "24h",
        "metadata": {"note": note} if note else None,
    }
    asked(body)
    model = given.get("model", "").strip()
    hints = target.hints({"model": model} if model else {})
    job_uuid = ids.new_uuid()
    services().batches.create(caller(), load(NewBatchBody, body), hints, job_uuid)
    return go(f"/ui/batches/{job_uuid}")


@blueprint.get("/batches/<uuid:batch_id>")
@guard(Guard.ANY_KEY, Door.SESSION)
def show(batch_id: Any) -> Response:
    """One batch, as its upstream has it now."""
    job = _found(batch_id)
    batch = services().batches.retrieve(caller(), job.id, Hints(), with_state=True)
    job = _found(batch_id)
    uuid_of = services().browse.uuid_of
    return render(
        "batch.html",
        active="batches",
        job=job,
        batch=batch,
        counts=counts(batch),
        is_live=job.state == "active",
        may_cancel=_may_change(job) and job.state == "active" and batch["status"] != "cancelling",
        input_uuid=uuid_of(batch["input_file_id"], job.owner),
        output_uuid=uuid_of(batch["output_file_id"], job.owner),
        error_uuid=uuid_of(batch["error_file_id"], job.owner),
        problems=_problems(batch),
        is_final=batch["status"] in BATCH_FINAL,
    )


@blueprint.get("/batches/<uuid:batch_id>/errors")
@guard(Guard.ANY_KEY, Door.SESSION)
def errors(batch_id: Any) -> Response:
    """The rows that failed, as the batch's error file or else its output file has them."""
    job = _found(batch_id)
    batch = services().batches.retrieve(caller(), job.id, Hints())
    source = batch["error_file_id"] or batch["output_file_id"]
    found, trouble = rows.RowErrors((), is_all=True), None
    if source:
        try:
            content = services().files.content(caller(), source, Hints())
        except GatewayError as error:
            trouble = error.message
        else:
            try:
                found = rows.read(content.download.chunks)
            except UpstreamError as error:
                trouble = error.message
            finally:
                content.download.close()
    return render(
        "batch_errors.html",
        active="batches",
        job=job,
        counts=counts(batch),
        found=found,
        trouble=trouble,
        error_uuid=services().browse.uuid_of(source, job.owner),
    )


@blueprint.post("/batches/<uuid:batch_id>/cancel")
@guard(Guard.WRITE, Door.SESSION)
def cancel(batch_id: Any) -> BaseResponse:
    """Ask for the end of it."""
    job = _found(batch_id)
    services().batches.cancel(caller(), job.id, Hints())
    return go(f"/ui/batches/{job.uuid}")


def counts(batch: dict[str, Any]) -> dict[str, int]:
    """Rows in all, done, failed, and those that nothing is known of yet."""
    told = batch.get("request_counts")
    told = told if isinstance(told, dict) else {}
    found = {name: int(told.get(name) or 0) for name in ("total", "completed", "failed")}
    found["open"] = max(0, found["total"] - found["completed"] - found["failed"])
    return found


def _problems(batch: dict[str, Any]) -> list[dict[str, Any]]:
    """What the upstream has found wrong with the input file, line by line."""
    told = batch.get("errors")
    data = told.get("data") if isinstance(told, dict) else None
    return [each for each in data or [] if isinstance(each, dict)]


def _found(batch_id: Any) -> JobView:
    return services().browse.job(caller(), "batch", str(batch_id))


def _may_change(job: JobView) -> bool:
    me = caller()
    return me.may_write and (me.is_admin or job.owner == me.owner)
