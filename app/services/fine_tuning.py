"""Fine-tuning jobs: create, retrieve, list, cancel, pause, resume, events, checkpoints."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal

from app import faults
from app.db import jobs as rows
from app.db.engine import Database
from app.db.tables import Job
from app.errors import (
    Conflict,
    GatewayError,
    InvalidRequest,
    ModelAccessDenied,
    NotFound,
    UpstreamError,
)
from app.objects import JOB_FINAL, FineTuningJob
from app.providers.protocol import CLOCKS_DIFFER_SECONDS
from app.services import audit
from app.services.callers import Caller
from app.services.job_lists import JobQuery, list_jobs
from app.services.jobs import (
    Jobs,
    Source,
    UnrecordedJob,
    gone_upstream,
    holds,
    unknown_job,
)
from app.services.router import Hints, Route, Router, Selector
from app.services.tuned_models import TunedModels
from app.settings import Settings

_RESULTS = "fine-tune-results"
Action = Literal["cancel", "pause", "resume"]


class FineTuning:
    """Fine-tuning jobs of callers."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        router: Router,
        jobs: Jobs,
        tuned_models: TunedModels,
    ) -> None:
        self._settings = settings
        self._database = database
        self._router = router
        self._jobs = jobs
        self._tuned_models = tuned_models

    def create(
        self,
        caller: Caller,
        body: Mapping[str, Any],
        hints: Hints,
        job_uuid: str | None = None,
    ) -> FineTuningJob:
        """Start a job at a deployment that holds both files. `body` is what the caller sent.

        Its row gets the id `job_uuid`, where somebody has to know it beforehand. Raises, before
        anything is sent, what resolving the files raises, FileNotAvailable, InvalidRequest for a
        file of another purpose, Conflict (file_not_ready).
        """
        sources = [self._source(caller, body, "training_file", hints)]
        if body.get("validation_file") is not None:
            sources.append(self._source(caller, body, "validation_file", hints))
        route, sources = self._route(caller, sources, body["model"], hints)
        for source in sources:
            self._jobs.await_ready(route, source)
        # A null is what some clients write for a field that was not set; providers refuse it.
        given = {key: value for key, value in body.items() if value is not None}
        request = {key: value for key, value in given.items() if key not in _OURS}
        job = self._jobs.new_row(
            caller,
            "fine_tuning",
            "raw" if sources[0].kind == "raw" else "unified",
            route,
            sources,
            request,
            job_uuid,
        )
        self._jobs.intend(caller, job)
        faults.point("job intent committed")
        raw = [source.raw_by_deployment[route.deployment.id] for source in sources]
        upstream = {**request, "model": route.upstream_model, "training_file": raw[0]}
        if len(raw) > 1:
            upstream["validation_file"] = raw[1]
        try:
            started = route.provider.create_job(upstream)
        except GatewayError as error:
            self._jobs.failed(job, error)
            raise
        faults.point("job started upstream")
        is_whole = not started["result_files"] and started["status"] != "succeeded"
        is_final = is_whole and started["status"] in JOB_FINAL
        self._jobs.started(caller, job, str(started["id"]), started, is_final=is_final)
        if not is_whole:
            # It has begun, whatever becomes of its results now: the next look sees to them.
            with suppress(GatewayError):
                self._take_in(job, route, started)
        return self.shown(job)

    def made(self, job_uuid: str) -> FineTuningJob | None:
        """The job that was made under a row id; see Jobs."""
        job = self._jobs.made(job_uuid)
        return None if job is None else self.shown(job)

    def retrieve(
        self, caller: Caller, job_id: str, hints: Hints, *, with_state: bool = False
    ) -> FineTuningJob:
        """The job, from its upstream while it runs, from the row when that does not answer."""
        found = self._jobs.resolve(caller, "fine_tuning", job_id, hints)
        if isinstance(found, UnrecordedJob):
            route, raw = self._unrecorded(caller, found, hints)
            return {**route.provider.retrieve_job(raw), "id": job_id}
        if found.state in ("active", "lost"):
            try:
                self.look(found)
            except (UpstreamError, NotFound) as error:
                found.last_error = error.message
        answer = self.shown(found)
        if with_state:
            answer["gateway"] = {
                "state": found.state,
                "deployment": found.deployment_id if caller.sees_everything else None,
                "looks": found.looks,
                "last_error": found.last_error,
            }
        return answer

    def steer(self, caller: Caller, job_id: str, action: Action, hints: Hints) -> FineTuningJob:
        """The job after it was cancelled, paused or resumed. A second cancel changes nothing.

        Raises Conflict for a job that has ended.
        """
        found = self._jobs.resolve(caller, "fine_tuning", job_id, hints, changing=True)
        if isinstance(found, UnrecordedJob):
            route, raw = self._unrecorded(caller, found, hints)
            audit.intend(self._database, caller, f"fine_tuning.{action}", job_id)
            return {**route.provider.steer_job(raw, action), "id": job_id}
        if found.status == "cancelled" and action == "cancel":
            return self.shown(found)
        if found.state == "final":
            raise Conflict(f"the job {job_id} cannot be changed: it is {found.status}", param="id")
        audit.intend(self._database, caller, f"fine_tuning.{action}", job_id)
        self._steer(found, job_id, action)
        return self.shown(found)

    def _steer(self, job: Job, job_id: str, action: Action) -> None:
        route = self._jobs.route_of(job)
        refusal: GatewayError | None = None
        try:
            try:
                found = route.provider.steer_job(job.upstream_id or "", action)
            except UpstreamError as error:
                if action != "cancel" or error.status not in (400, 409):
                    raise
                # Perhaps it has ended meanwhile, or somebody else has cancelled it already.
                refusal = error
                found = route.provider.retrieve_job(job.upstream_id or "")
        except NotFound as error:
            raise gone_upstream(job, job_id) from error
        # A result that is not there yet is the next look's, not this call's.
        with suppress(NotFound):
            self._take_in(job, route, found)
        if refusal is not None and found["status"] != "cancelled":
            raise refusal

    def details(
        self,
        caller: Caller,
        job_id: str,
        what: Literal["events", "checkpoints"],
        query: JobQuery,
        hints: Hints,
    ) -> dict[str, Any]:
        """A page of the job's events or checkpoints, newest first, as the upstream has them."""
        found = self._jobs.resolve(caller, "fine_tuning", job_id, hints)
        if isinstance(found, UnrecordedJob):
            route, raw = self._unrecorded(caller, found, hints)
        else:
            route, raw = self._jobs.route_of(found), found.upstream_id or ""
        try:
            answer = route.provider.job_page(raw, what, query.after, query.limit)
        except NotFound as error:
            if isinstance(found, UnrecordedJob):
                raise
            raise gone_upstream(found, job_id) from error
        data = [
            {**item, "fine_tuning_job_id": job_id} if "fine_tuning_job_id" in item else item
            for item in answer.get("data") or []
        ]
        return {**answer, "object": "list", "data": data, "has_more": bool(answer.get("has_more"))}

    def page(self, caller: Caller, query: JobQuery, selector: Selector) -> dict[str, Any]:
        """A page of the caller's own jobs, newest first, from the database."""
        found, has_more = list_jobs(
            self._database, self._router, caller, "fine_tuning", query, selector
        )
        return {
            "object": "list",
            "data": [self.shown(job) for job in found],
            "has_more": has_more,
        }

    def look(self, job: Job) -> None:
        """Ask the upstream how the job is doing, and write it down. Raises as Batches.look."""
        route = self._jobs.route_of(job)
        self._take_in(job, route, route.provider.retrieve_job(job.upstream_id or ""))

    def find_lost_answer(self, job: Job) -> bool:
        """Link an intent to the job that it started, if the upstream has one; whether it has."""
        route = self._jobs.route_of(job)
        earliest = int(job.created_at.timestamp()) - CLOCKS_DIFFER_SECONDS
        found: list[FineTuningJob] = []
        for candidate in route.provider.jobs():
            if candidate["created_at"] and candidate["created_at"] < earliest:
                break
            is_same = candidate["training_file"] == job.upstream_input_id
            if is_same and holds(candidate.get("metadata"), job.request.get("metadata")):
                found.append(candidate)
        with self._database.read() as session:
            known = rows.linked(
                session, job.deployment_id, "fine_tuning", [str(j["id"]) for j in found]
            )
        for candidate in reversed(found):
            if str(candidate["id"]) in known:
                continue
            if self._jobs.found(job, str(candidate["id"]), candidate, is_final=False):
                self._take_in(job, route, candidate)
                return True
        return False

    def shown(self, job: Job) -> FineTuningJob:
        """OpenAI's job object as its owner sees it: his own ids, and what he sent."""
        snapshot = job.snapshot
        results = [self._jobs.adopted_id(job, raw) for raw in snapshot.get("result_files", [])]
        answer: FineTuningJob = {
            **snapshot,
            "id": job.public_id or "",
            "object": "fine_tuning.job",
            "status": job.status,
            "created_at": int(job.created_at.timestamp()),
            "model": job.request["model"],
            "training_file": job.request["training_file"],
            "validation_file": job.request.get("validation_file"),
            "result_files": [result for result in results if result],
        }
        if "metadata" in job.request:
            answer["metadata"] = job.request["metadata"]
        return answer

    def _source(self, caller: Caller, body: Mapping[str, Any], name: str, hints: Hints) -> Source:
        source = self._jobs.source(caller, body[name], hints, name)
        if source.purpose not in (None, "fine-tune"):
            raise InvalidRequest(
                f"the file {source.handed} has the purpose {source.purpose!r}, not 'fine-tune'",
                param=name,
            )
        return source

    def _route(
        self, caller: Caller, sources: list[Source], model: str, hints: Hints
    ) -> tuple[Route, list[Source]]:
        """Where the job goes, and the sources as that account knows them."""
        if sources[0].kind != "raw":
            return self._jobs.route(caller, "fine_tuning", sources, model), sources
        # The provider way: the body's model is that provider's own name.
        held = self._jobs.route(caller, "fine_tuning", sources, None)
        if held.model_name is not None:
            if model == held.upstream_model:
                return held, sources
            return self._jobs.route(caller, "fine_tuning", sources, model), sources
        if not caller.may_use(model, [f"{held.deployment.provider}/{model}"]):
            raise ModelAccessDenied(f"this key may not use the model {model!r}", param="model")
        # `finetune_settings` and `files_settings` are two entries for one account.
        account = self._router.tuning_account(held.deployment.provider)
        route = replace(account, upstream_model=model)
        return route, [_known_to(route, held, source) for source in sources]

    def _take_in(self, job: Job, route: Route, found: FineTuningJob) -> None:
        for raw in found["result_files"]:
            self._jobs.adopt(job, route, str(raw), _RESULTS, found["finished_at"])
        tuned = found.get("fine_tuned_model")
        wanted = self._settings.auto_register_fine_tuned and route.provider.serves_tuned_models
        if found["status"] == "succeeded" and tuned and wanted:
            # Before the end is written: after that nobody looks again.
            self._tuned_models.register(job, str(tuned))
        self._jobs.save(job, found, is_final=found["status"] in JOB_FINAL)

    def _unrecorded(self, caller: Caller, found: UnrecordedJob, hints: Hints) -> tuple[Route, str]:
        accounts = self._jobs.accounts(caller, "fine_tuning", found, hints)
        if not accounts:
            raise unknown_job("fine_tuning", found.handed)
        return accounts[0], found.raw


def _known_to(route: Route, held: Route, source: Source) -> Source:
    raw = source.raw_by_deployment[held.deployment.id]
    unready = {route.deployment.id} if held.deployment.id in source.unready else set()
    return replace(source, raw_by_deployment={route.deployment.id: raw}, unready=frozenset(unready))


_OURS = frozenset({"custom_llm_provider", "provider", "target_model_names"})
