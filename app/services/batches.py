"""Batches: create, retrieve, list, cancel, and the looks of the background worker."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from app import faults, ids
from app.db import jobs as rows
from app.db.engine import Database
from app.db.tables import Job
from app.errors import Conflict, GatewayError, InvalidRequest, NotFound, UpstreamError
from app.objects import BATCH_FINAL, Batch, Page
from app.providers.protocol import CLOCKS_DIFFER_SECONDS, BatchRequest
from app.providers.wire.jsonl import ENDPOINTS, openai_url
from app.services import audit
from app.services.callers import Caller
from app.services.job_lists import JobQuery, list_jobs
from app.services.jobs import (
    Jobs,
    Source,
    UnrecordedJob,
    gone_upstream,
    holds,
)
from app.services.router import Hints, Route, Router, Selector
from app.transfers import ExpiresAfter

_ENDING = ("cancelling", "cancelled")


@dataclass(frozen=True)
class NewBatch:
    """What a caller asks for; None for what was not sent."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None
    output_expires_after: ExpiresAfter | None = None


class Batches:
    """Batches of callers, by unified, encoded and raw id."""

    def __init__(self, database: Database, router: Router, jobs: Jobs) -> None:
        self._database = database
        self._router = router
        self._jobs = jobs

    def create(
        self, caller: Caller, new: NewBatch, hints: Hints, job_uuid: str | None = None
    ) -> Batch:
        """Start a batch at a deployment that holds the input file.

        Its row gets the id `job_uuid`, where somebody has to know it beforehand. Raises, before
        anything is sent, what resolving the file raises, FileNotAvailable, InvalidRequest for a
        file of another purpose, Conflict (file_not_ready).
        """
        if openai_url(new.endpoint) not in ENDPOINTS:
            raise InvalidRequest(
                f"endpoint {new.endpoint[:80]!r} is not one of: {', '.join(ENDPOINTS)}",
                param="endpoint",
            )
        source = self._jobs.source(caller, new.input_file_id, hints, "input_file_id")
        if source.purpose not in (None, "batch"):
            raise InvalidRequest(
                f"the file {new.input_file_id} has the purpose {source.purpose!r}, not 'batch'",
                param="input_file_id",
            )
        route = self._jobs.route(caller, "batch", [source], _model(source, hints))
        self._jobs.await_ready(route, source)
        job = self._jobs.new_row(
            caller,
            "batch",
            source.kind,
            route,
            [source],
            _request(new, source, route, hints),
            job_uuid,
        )
        self._jobs.intend(caller, job)
        faults.point("job intent committed")
        try:
            batch = route.provider.create_batch(
                BatchRequest(
                    input_file_id=job.upstream_input_id,
                    endpoint=route.provider.row_url(openai_url(new.endpoint)),
                    completion_window=new.completion_window,
                    model=source.upstream_models.get(route.deployment.id) or route.upstream_model,
                    metadata=new.metadata,
                    output_expires_after=new.output_expires_after,
                )
            )
        except GatewayError as error:
            self._jobs.failed(job, error)
            raise
        faults.point("job started upstream")
        is_whole = not (batch["output_file_id"] or batch["error_file_id"])
        is_final = is_whole and batch["status"] in BATCH_FINAL
        self._jobs.started(caller, job, batch["id"], _as_mapping(batch), is_final=is_final)
        if not is_whole:
            # It has begun, whatever becomes of its outputs now: the next look sees to them.
            with suppress(GatewayError):
                self._take_in(job, route, batch)
        return self.shown(job)

    def made(self, job_uuid: str) -> Batch | None:
        """The batch that was made under a row id; see Jobs."""
        job = self._jobs.made(job_uuid)
        return None if job is None else self.shown(job)

    def retrieve(
        self, caller: Caller, batch_id: str, hints: Hints, *, with_state: bool = False
    ) -> dict[str, Any]:
        """The batch, from its upstream while it runs, from the row when that does not answer.

        `with_state` adds how the gateway is doing with it.
        """
        found = self._jobs.resolve(caller, "batch", batch_id, hints)
        if isinstance(found, UnrecordedJob):
            return {**self._unrecorded(caller, found, hints, "retrieve")}
        if found.state in ("active", "lost"):
            try:
                self.look(found)
            except (UpstreamError, NotFound) as error:
                found.last_error = error.message
        answer: dict[str, Any] = {**self.shown(found)}
        if with_state:
            answer["gateway"] = {
                "state": found.state,
                "deployment": found.deployment_id if caller.sees_everything else None,
                "looks": found.looks,
                "last_error": found.last_error,
            }
        return answer

    def cancel(self, caller: Caller, batch_id: str, hints: Hints) -> Batch:
        """The batch after its cancellation was asked for; asking again changes nothing.

        Raises Conflict for one that has ended otherwise.
        """
        found = self._jobs.resolve(caller, "batch", batch_id, hints, changing=True)
        if isinstance(found, UnrecordedJob):
            audit.intend(self._database, caller, "batch.cancel", batch_id)
            return self._unrecorded(caller, found, hints, "cancel")
        if found.status in _ENDING:
            return self.shown(found)
        if found.state != "final":
            audit.intend(self._database, caller, "batch.cancel", batch_id)
            self._cancel(found, batch_id)
        if found.status not in _ENDING and found.state == "final":
            raise Conflict(
                f"the batch {batch_id} cannot be cancelled: it is {found.status}", param="id"
            )
        return self.shown(found)

    def _cancel(self, job: Job, batch_id: str) -> None:
        route = self._jobs.route_of(job)
        refusal: GatewayError | None = None
        try:
            try:
                batch = route.provider.cancel_batch(job.upstream_id or "")
            except UpstreamError as error:
                if error.status not in (400, 409):
                    raise
                # Perhaps it has ended meanwhile, or somebody else has cancelled it already.
                refusal = error
                batch = route.provider.retrieve_batch(job.upstream_id or "")
        except NotFound as error:
            raise gone_upstream(job, batch_id) from error
        # An output that is not there yet is the next look's, not the cancel's.
        with suppress(NotFound):
            self._take_in(job, route, batch)
        if refusal is not None and batch["status"] not in (*_ENDING, *BATCH_FINAL):
            raise refusal

    def page(self, caller: Caller, query: JobQuery, selector: Selector) -> Page:
        """A page of the caller's own batches, newest first, from the database."""
        found, has_more = list_jobs(self._database, self._router, caller, "batch", query, selector)
        return {
            "object": "list",
            "data": [self.shown(job) for job in found],
            "first_id": found[0].public_id if found else None,
            "last_id": found[-1].public_id if found else None,
            "has_more": has_more,
        }

    def look(self, job: Job) -> None:
        """Ask the upstream how the batch is doing, and write it down.

        Raises UpstreamError when it does not answer, NotFound when it does not know the batch.
        """
        route = self._jobs.route_of(job)
        self._take_in(job, route, route.provider.retrieve_batch(job.upstream_id or ""))

    def find_lost_answer(self, job: Job) -> bool:
        """Link an intent to the batch that it started, if the upstream has one; whether it has.

        The upstream is told nothing of ours, so the batch is known by its input, its endpoint and
        its time, and by having no row yet.
        """
        route = self._jobs.route_of(job)
        earliest = int(job.created_at.timestamp()) - CLOCKS_DIFFER_SECONDS
        found: list[Batch] = []
        for batch in route.provider.batches():
            if batch["created_at"] and batch["created_at"] < earliest:
                break
            if batch["input_file_id"] == job.upstream_input_id and _is_like(batch, job):
                found.append(batch)
        with self._database.read() as session:
            known = rows.linked(session, job.deployment_id, "batch", [b["id"] for b in found])
        for batch in reversed(found):
            if batch["id"] in known:
                continue
            if self._jobs.found(job, batch["id"], _as_mapping(batch), is_final=False):
                self._take_in(job, route, batch)
                return True
        return False

    def shown(self, job: Job) -> Batch:
        """OpenAI's batch object as its owner sees it: his own ids, and what he sent."""
        batch: dict[str, Any] = {**job.snapshot}
        request = job.request
        batch |= {
            "id": job.public_id or "",
            "object": "batch",
            "input_file_id": request["input_file_id"],
            "endpoint": request["endpoint"],
            "completion_window": request["completion_window"],
            "metadata": request["metadata"],
            "status": job.status,
            "created_at": int(job.created_at.timestamp()),
            "output_file_id": self._jobs.adopted_id(job, job.snapshot.get("output_file_id")),
            "error_file_id": self._jobs.adopted_id(job, job.snapshot.get("error_file_id")),
        }
        if "model" in batch and job.model_name is not None:
            batch["model"] = job.model_name
        return batch  # type: ignore[return-value]  # a snapshot is a Batch

    def _take_in(self, job: Job, route: Route, batch: Batch) -> None:
        for raw in (batch["output_file_id"], batch["error_file_id"]):
            if raw:
                self._jobs.adopt(job, route, raw, "batch_output", _ended_at(batch))
        self._jobs.save(job, _as_mapping(batch), is_final=batch["status"] in BATCH_FINAL)

    def _unrecorded(
        self,
        caller: Caller,
        found: UnrecordedJob,
        hints: Hints,
        action: Literal["retrieve", "cancel"],
    ) -> Batch:
        accounts = self._jobs.accounts(caller, "batch", found, hints)
        last: NotFound | None = None
        for route in accounts:
            ask = (
                route.provider.retrieve_batch
                if action == "retrieve"
                else route.provider.cancel_batch
            )
            try:
                batch = ask(found.raw)
            except NotFound as error:
                last = error
                continue
            return _handed(batch, found)
        raise last or NotFound(f"No such Batch object: {found.handed}", param="id")


def _model(source: Source, hints: Hints) -> str | None:
    meaning = ids.decode(source.handed)
    if isinstance(meaning, ids.EncodedId):
        return meaning.model
    return hints.first("model")


def _request(new: NewBatch, source: Source, route: Route, hints: Hints) -> dict[str, object]:
    """What the caller sent, so that every later answer says the same."""
    return {
        "input_file_id": new.input_file_id,
        "endpoint": new.endpoint,
        "completion_window": new.completion_window,
        "metadata": new.metadata,
        "model": _model(source, hints) or route.model_name,
    }


def _handed(batch: Batch, found: UnrecordedJob) -> Batch:
    """A batch without a row, under the kind of id that was asked with."""
    if found.model is None:
        return {**batch, "id": found.handed}
    model = found.model

    def encoded(raw: str | None) -> str | None:
        return ids.encode_file(raw, model) if raw else None

    return {
        **batch,
        "id": found.handed,
        "input_file_id": encoded(batch["input_file_id"]) or "",
        "output_file_id": encoded(batch["output_file_id"]),
        "error_file_id": encoded(batch["error_file_id"]),
    }


def _is_like(batch: Batch, job: Job) -> bool:
    """Whether the upstream's batch can be the one that this row asked for."""
    asked, told = job.request, batch["metadata"]
    same_endpoint = not batch["endpoint"] or openai_url(batch["endpoint"]) == openai_url(
        asked["endpoint"]
    )
    return same_endpoint and holds(told, asked["metadata"])


def _ended_at(batch: Batch) -> int | None:
    ends = ("completed_at", "failed_at", "expired_at", "cancelled_at")
    return next((batch[end] for end in ends if batch[end]), None)  # type: ignore[literal-required]  # all of them are keys


def _as_mapping(batch: Batch) -> Mapping[str, object]:
    return {**batch}
