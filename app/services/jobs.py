"""What batches and fine-tuning jobs have in common: their input, their rows, their outputs.

The row with the intent is committed before the upstream is asked, so that a lost answer starts no
second job: the worker finds the first one by what the row says of it.
"""

import datetime as dt
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app import faults, ids
from app.db import files as file_rows
from app.db import jobs as rows
from app.db import usage
from app.db.engine import Database
from app.db.tables import Copy, File, Job, now
from app.errors import (
    Conflict,
    DatabaseUnavailable,
    FileNotAvailable,
    GatewayError,
    InvalidRequest,
    NotFound,
    NotPermitted,
    NotSupported,
    UpstreamError,
)
from app.ids import JobType
from app.providers.protocol import Operation
from app.services import audit
from app.services.callers import Caller
from app.services.lookup import Held, Lookup
from app.services.readiness import await_processed
from app.services.renewal import Renewal, expired
from app.services.router import Hints, Kind, Route, Router
from app.settings import Settings

_ADOPTED = uuid.UUID("5b0c8f0e-6a53-4c1b-9d0b-6a1f3c0c7b11")
"""Namespace of the row ids of files that upstreams made: one file, one id, whoever looks."""

_OPERATIONS: Mapping[JobType, Operation] = {
    "batch": Operation.BATCHES,
    "fine_tuning": Operation.FINE_TUNING,
}

_ANSWERED = (
    "upstream_id",
    "public_id",
    "snapshot",
    "status",
    "state",
    "looks",
    "next_look_at",
    "lease_until",
    "last_error",
)
_LONGEST_STATUS = 32
_APPEARS_WITHIN_SECONDS = 3600
"""How long after a job's end its outputs may still not be found at the upstream."""

UNANSWERED = "unanswered"
"""The status of an intent whose request is over, and nobody knows what it has started."""

GRACE_SECONDS = 10
"""How long an intent is left alone: its own request may still be waiting for the answer."""


@dataclass(frozen=True)
class Source:
    """An input file of a job: what the caller called it and where, and where which copy is.

    `model_names` says, by deployment id, for which model name the copy is there, None at an
    account; `upstream_models` which of the provider's own models its rows are for, where known.
    `param` is the field of the request that names the file.
    """

    handed: str
    file_uuid: str | None
    kind: Kind
    raw_by_deployment: Mapping[str, str]
    model_names: Mapping[str, str | None]
    upstream_models: Mapping[str, str]
    unready: frozenset[str]
    where: tuple[str, ...]
    purpose: str | None
    param: str


@dataclass(frozen=True)
class UnrecordedJob:
    """A provider's job without a row, which an admin (or a setting) may use directly."""

    raw: str
    handed: str
    model: str | None


class Jobs:
    """Rows of jobs, on behalf of a caller or of the worker."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        router: Router,
        lookup: Lookup,
        renewal: Renewal,
    ) -> None:
        self._settings = settings
        self._database = database
        self._router = router
        self._lookup = lookup
        self._renewal = renewal

    # Input

    def source(self, caller: Caller, handed: str, hints: Hints, param: str) -> Source:
        """The file that a job is to read. Raises what resolving its id raises."""
        found = self._lookup.resolve(caller, handed, hints)
        meaning = ids.decode(handed)
        if not isinstance(found, Held):
            routes = self._lookup.accounts(caller, found, hints)
            return Source(
                handed,
                None,
                "encoded" if found.model or hints.first("model") else "raw",
                dict.fromkeys((route.deployment.id for route in routes), found.raw),
                {route.deployment.id: route.model_name for route in routes},
                {},
                frozenset(),
                tuple(dict.fromkeys(r.model_name or r.deployment.provider for r in routes)),
                None,
                param,
            )
        copies = self._usable(found, meaning, hints)
        kind: Kind = found.file.kind  # type: ignore[assignment]  # the column holds nothing else
        if found.file.public_id != handed and meaning and not isinstance(meaning, ids.UnifiedId):
            # A provider's own id of one copy: that copy and no other is meant.
            copies = [c for c in copies if c.deployment_file_id == meaning.raw]
        if isinstance(meaning, ids.RawId):
            kind = "encoded" if hints.first("model") else "raw"
        return Source(
            handed,
            found.file.id,
            kind,
            {c.deployment_id: c.deployment_file_id or "" for c in copies},
            {c.deployment_id: c.model_name for c in copies},
            {c.deployment_id: c.upstream_model for c in copies if c.upstream_model},
            frozenset(c.deployment_id for c in copies if c.state != "ready"),
            tuple(dict.fromkeys(c.model_name or c.provider for c in copies)),
            found.file.purpose,
            param,
        )

    def _usable(self, held: Held, meaning: ids.FileId | None, hints: Hints) -> list[Copy]:
        """The copies that can be read; one that is gone from where it is wanted is renewed."""
        model = meaning.model if isinstance(meaning, ids.EncodedId) else hints.first("model")
        wanted = self._router.accounts_of(model) if model else None
        copies = held.readable
        if any(wanted is None or copy.deployment_id in wanted for copy in copies):
            return copies
        gone = [
            copy
            for copy in self._renewal.renewable(held)
            if wanted is None or copy.deployment_id in wanted
        ]
        for copy in gone:
            if self._renewal.has_bytes(held, copy):
                return [*copies, self._renewal.renew(held, copy)]
        if gone:
            raise expired(held.file, gone[0])
        return copies

    def route(
        self, caller: Caller, type: JobType, sources: Sequence[Source], model: str | None
    ) -> Route:
        """The deployment that a new job goes to: one that holds every source.

        Raises FileNotAvailable when there is none, InvalidRequest when several models hold them
        and none is named, NotSupported, ModelAccessDenied, UnknownModel.
        """
        held = set.intersection(*(set(source.raw_by_deployment) for source in sources))
        names_at = sources[0].model_names
        found = (self._router.by_id(key, names_at.get(key)) for key in sorted(held))
        routes = [route for route in found if route is not None]
        if model is not None and any(route.model_name is not None for route in routes):
            wanted = {_place(route) for route in self._router.routes(model, caller)}
            routes = [route for route in routes if _place(route) in wanted]
        if not routes:
            raise _not_available(sources, model)
        able = [route for route in routes if _OPERATIONS[type] in route.provider.operations]
        if not able:
            raise NotSupported(
                f"provider {routes[0].deployment.provider!r} does not support "
                f"{_OPERATIONS[type].value}"
            )
        routes = able
        names = sorted({route.model_name or "" for route in routes})
        if len(names) > 1:
            raise InvalidRequest(
                f"the file is at several models; name one as model: {', '.join(names)}",
                param="model",
                code="missing_required_parameter",
            )
        if names[0]:
            # The list of the key may have become shorter since the file was uploaded.
            self._router.routes(names[0], caller)
        return self._router.order(routes, lambda route: route.deployment.id)[0]

    def await_ready(self, route: Route, source: Source) -> None:
        """Return when the upstream has processed the file. Raises Conflict after a bound."""
        if route.deployment.id not in source.unready:
            return
        raw = source.raw_by_deployment[route.deployment.id]
        seconds = self._settings.file_wait_seconds
        await_processed(route.provider, raw, source.handed, source.param, seconds)

    # Rows

    def intend(self, caller: Caller, job: Job) -> None:
        """Commit a job before it is asked for."""
        with self._database.write() as session:
            rows.insert(session, job)
            audit.record(session, caller, f"{job.type}.create", job.public_id, status=audit.BEGUN)

    def new_row(  # noqa: PLR0917  # the facts of one row
        self,
        caller: Caller,
        type: JobType,
        kind: Kind,
        route: Route,
        sources: Sequence[Source],
        request: dict[str, object],
        job_uuid: str | None = None,
    ) -> Job:
        """A row with the intent of a job, under the id `job_uuid` where somebody has to know it."""
        moment = now()
        job_uuid = job_uuid or ids.new_uuid()
        deployment = route.deployment
        return Job(
            id=job_uuid,
            type=type,
            kind=kind,
            public_id=ids.encode_unified_job(type, deployment.id, job_uuid)
            if kind == "unified"
            else None,
            owner=caller.owner,
            model_name=route.model_name,
            deployment_id=deployment.id,
            provider=deployment.provider,
            upstream_id=None,
            upstream_input_id=sources[0].raw_by_deployment[deployment.id],
            input_uuid=sources[0].file_uuid,
            validation_uuid=sources[1].file_uuid if len(sources) > 1 else None,
            request=request,
            snapshot={},
            status="intended",
            state="intended",
            looks=0,
            next_look_at=moment + dt.timedelta(seconds=GRACE_SECONDS),
            lease_until=None,
            last_error=None,
            created_at=moment,
            updated_at=moment,
        )

    def made(self, job_uuid: str) -> Job | None:
        """The job that was made under a row id, None when there is none.

        Raises Conflict, to be tried again, while it is not known whether it has begun.
        """
        with self._database.read() as session:
            job = rows.by_uuid(session, job_uuid)
        if job is None or job.state == "void" or (job.state == "lost" and job.upstream_id is None):
            return None
        if job.state == "intended":
            raise Conflict(
                "what became of the first try of this request is not known yet",
                code="idempotency_in_progress",
                headers={"Retry-After": "10", "x-should-retry": "true"},
            )
        return job

    def failed(self, job: Job, error: GatewayError) -> None:
        """Note that the upstream did not say yes; when it has done nothing for sure, forget it.

        Otherwise the client is told not to repeat, and the worker asks what became of it.
        """
        is_certain = not isinstance(error, UpstreamError) or error.retryable or error.status < 500
        is_certain = is_certain or error.code == "upstream_auth_failed"
        if not is_certain:
            error.headers["x-should-retry"] = "false"
        # Without this note the worker finds out by itself; the upstream's error is what counts.
        with suppress(DatabaseUnavailable), self._database.write() as session:
            rows.record_if(
                session,
                job.id,
                "intended",
                state="void" if is_certain else "intended",
                status="void" if is_certain else UNANSWERED,
                next_look_at=now(),
                last_error=error.message,
            )

    def started(
        self,
        caller: Caller,
        job: Job,
        upstream_id: str,
        snapshot: Mapping[str, object],
        *,
        is_final: bool,
    ) -> None:
        """Commit what the upstream has begun for this request.

        Raises DatabaseUnavailable, and UpstreamError for an id that is another job's; both tell
        the client not to repeat: the upstream has begun.
        """
        self._link(job, upstream_id)
        self._note(job, snapshot, is_final=is_final)
        try:
            with self._database.write() as session:
                # What the worker took for another request's answer is this one's.
                if not rows.release(session, job):
                    raise UpstreamError(  # noqa: TRY301  # told as the trouble below is
                        f"{job.provider} answered with the id of another job",
                        provider=job.provider,
                        deployment=job.deployment_id,
                    )
                if rows.record_unless_final(session, job.id, **_facts(job)):
                    _count_rows(session, job)
                audit.record(session, caller, f"{job.type}.create", job.public_id)
        except (DatabaseUnavailable, UpstreamError) as error:
            error.headers["x-should-retry"] = "false"
            raise
        faults.point("job recorded")

    def found(
        self, job: Job, upstream_id: str, snapshot: Mapping[str, object], *, is_final: bool
    ) -> bool:
        """Link an intent to what its upstream has; False when either was linked meanwhile."""
        self._link(job, upstream_id)
        self._note(job, snapshot, is_final=is_final)
        try:
            with self._database.write() as session:
                return rows.link(session, job.id, **_facts(job))
        except IntegrityError:
            return False

    def _link(self, job: Job, upstream_id: str) -> None:
        """Give the job its upstream id and, with it, its public one."""
        job.upstream_id = upstream_id
        if job.kind == "encoded" and job.type == "batch":
            job.public_id = ids.encode_batch(upstream_id, job.request.get("model") or "")
        elif job.kind == "raw":
            job.public_id = upstream_id
        elif job.public_id is None:
            job.public_id = ids.encode_unified_job("fine_tuning", job.deployment_id, job.id)

    def save(self, job: Job, snapshot: Mapping[str, object], *, is_final: bool) -> None:
        """Write the upstream's last word; when its end was seen already, that stays the last."""
        self._note(job, snapshot, is_final=is_final)
        with self._database.write() as session:
            if rows.record_unless_final(session, job.id, **_facts(job)):
                _count_rows(session, job)
                return
            ended = rows.by_uuid(session, job.id)
        if ended is not None:
            for name, value in _facts(ended).items():
                setattr(job, name, value)

    def _note(self, job: Job, snapshot: Mapping[str, object], *, is_final: bool) -> None:
        status = str(snapshot.get("status", ""))[:_LONGEST_STATUS]
        if status != job.status:
            # Something happens: the next look comes soon again.
            job.looks = 0
        job.snapshot = dict(snapshot)
        job.status = status
        job.state = "final" if is_final else "active"
        job.next_look_at = now() + self.pause(job.looks)
        job.lease_until = None
        job.last_error = None

    def pause(self, looks: int) -> dt.timedelta:
        """How long until the next look: longer after each one, up to a bound."""
        shortest = self._settings.poll_seconds
        seconds = min(shortest * 1.5 ** min(looks, 40), self._settings.poll_max_seconds)
        return dt.timedelta(seconds=max(seconds, shortest))

    # Resolve

    def resolve(
        self, caller: Caller, type: JobType, job_id: str, hints: Hints, *, changing: bool = False
    ) -> Job | UnrecordedJob:
        """What a job's id means for this caller; no upstream is asked.

        Raises NotFound for what nobody has, NotPermitted (or NotFound, as the setting says) for
        what somebody else has.
        """
        meaning = ids.decode_job(type, job_id)
        if meaning is None:
            raise unknown_job(type, job_id)
        with self._database.read() as session:
            jobs = rows.meant_by(session, type, meaning, job_id)
        is_unheard_of = not jobs
        if isinstance(meaning, ids.EncodedId):
            accounts = self._router.accounts_of(meaning.model)
            jobs = [j for j in jobs if j.public_id == job_id or j.deployment_id in accounts]
        elif len(jobs) > 1 and (provider := hints.first("custom_llm_provider")):
            jobs = [job for job in jobs if job.provider == provider] or jobs
        own = [job for job in jobs if job.owner == caller.owner]
        if jobs:
            return self._admitted(caller, (own or jobs)[0], job_id, changing)
        # Under none of an account's model names is a job that has an owner free for everybody.
        may_use = caller.is_admin or (self._settings.allow_unrecorded_ids and is_unheard_of)
        if isinstance(meaning, ids.UnifiedJobId) or not may_use or not ids.is_raw(meaning.raw):
            raise unknown_job(type, job_id)
        model = meaning.model if isinstance(meaning, ids.EncodedId) else None
        return UnrecordedJob(meaning.raw, job_id, model)

    def _admitted(self, caller: Caller, job: Job, job_id: str, changing: bool) -> Job:
        may_look = caller.sees_everything and not changing
        if job.owner == caller.owner or caller.is_admin or may_look:
            if job.state in rows.HIDDEN:
                raise unknown_job(job.type, job_id)
            return job
        if self._settings.hide_foreign_objects:
            raise unknown_job(job.type, job_id)
        raise NotPermitted(
            f"User {caller.display_name} does not have access to the object {job_id}"
        )

    def accounts(
        self, caller: Caller, type: JobType, found: UnrecordedJob, hints: Hints
    ) -> tuple[Route, ...]:
        """Where a job without a row may be: by its id, else by what the request says."""
        if found.model is not None:
            return self._router.routes(found.model, caller)
        selector = hints.selector()
        if type == "fine_tuning" and selector.provider is not None:
            return (self._router.tuning_account(selector.provider),)
        return self._router.way(selector, caller).routes

    def route_of(self, job: Job) -> Route:
        """The deployment that the job was given to. Raises UpstreamError when it is gone."""
        route = self._router.by_id(job.deployment_id, job.model_name)
        if route is None:
            raise UpstreamError(
                "the configuration no longer has the account of this job",
                deployment=job.deployment_id,
            )
        return route

    # Output

    def adopt(
        self, job: Job, route: Route, raw: str, purpose: str, ended_at: int | None = None
    ) -> None:
        """See to it that a file which the upstream made for the job has a row and an owner.

        Its row and its id are always the same for one upstream file; the first look makes them.
        One that is not there long after the job's end (`ended_at`, in Unix seconds) has expired.
        Raises NotFound for one that is not there yet.
        """
        file_uuid = adopted_uuid(job.deployment_id, raw)
        with self._database.read() as session:
            if file_rows.by_uuid(session, file_uuid) is not None:
                return
        try:
            stored = route.provider.retrieve(raw)
        except NotFound:
            if ended_at is not None and time.time() - ended_at > _APPEARS_WITHIN_SECONDS:
                return
            raise
        moment = now()
        name = job.model_name or job.provider
        mime_type = "text/csv" if stored.filename.endswith(".csv") else "application/jsonl"
        file = File(
            id=file_uuid,
            public_id=ids.encode_unified(mime_type, file_uuid, [name]),
            kind="unified",
            owner=job.owner,
            filename=stored.filename or f"{purpose}-{file_uuid}.jsonl",
            mime_type=mime_type,
            purpose=purpose,
            bytes=stored.size or 0,
            sha256=None,
            target_model_names=[name],
            state="ready",
            status="processed",
            status_details=None,
            expires_at=_moment(stored.expires_at),
            created_at=moment,
            updated_at=moment,
        )
        copy = Copy(
            id=ids.new_uuid(),
            file_id=file_uuid,
            model_name=job.model_name,
            deployment_id=job.deployment_id,
            provider=job.provider,
            deployment_file_id=raw,
            state="ready",
            attempts=1,
            last_error=None,
            expires_at=_moment(stored.expires_at),
            created_at=moment,
            updated_at=moment,
        )
        try:
            faults.point("output found upstream")
            with self._database.write() as session:
                # The job's owner at this moment: he may have been deleted since it was read.
                file.owner = rows.owner_of(session, job.id) or job.owner
                file_rows.insert(session, file, [copy])
        except IntegrityError:
            # Somebody else has looked at the same moment: his row has the same id.
            return

    def adopted_id(self, job: Job, raw: str | None) -> str | None:
        """The unified id of a file that was adopted, None for none and for one that is not."""
        if not raw:
            return None
        with self._database.read() as session:
            known = file_rows.by_uuid(session, adopted_uuid(job.deployment_id, raw))
        return known.public_id if known else None


def _place(route: Route) -> tuple[str, str | None]:
    """What tells routes apart: behind a wildcard's deployment there are many names."""
    return route.deployment.id, route.model_name if route.deployment.is_wildcard else None


def _not_available(sources: Sequence[Source], model: str | None) -> FileNotAvailable:
    first = sources[0]
    if model is not None:
        for source in sources:
            names = ", ".join(source.where) or "no model"
            if model not in source.where:
                return FileNotAvailable(
                    f"the file {source.handed} is not available to the model {model!r:.200}; "
                    f"it is at: {names}",
                    param=source.param,
                )
    if len(sources) > 1:
        return FileNotAvailable(
            f"no account that is configured holds both {first.handed} and {sources[1].handed}",
            param=sources[1].param,
        )
    return FileNotAvailable(
        f"no account that is configured holds the file {first.handed}", param=first.param
    )


def _count_rows(session: Session, job: Job) -> None:
    """Count a batch's rows, once: in the transaction that writes its end down."""
    told = job.snapshot.get("request_counts")
    if job.type == "batch" and job.state == "final" and isinstance(told, dict):
        done, failed = told.get("completed") or 0, told.get("failed") or 0
        if done or failed:
            usage.add_ended(session, job, done=done, failed=failed)


def _facts(job: Job) -> dict[str, object]:
    """What an upstream's answer changes of a job, as columns."""
    return {name: getattr(job, name) for name in _ANSWERED}


def adopted_uuid(deployment_id: str, raw: str) -> str:
    """The row id of a file that an upstream made."""
    return str(uuid.uuid5(_ADOPTED, f"{deployment_id}\n{raw}"))


def gone_upstream(job: Job, job_id: str) -> NotFound:
    """The answer when the upstream does not know a job of ours any more."""
    name = "batch" if job.type == "batch" else "job"
    return NotFound(f"the {name} {job_id[:200]} is gone at its upstream", param="id")


def holds(told: object, asked: object) -> bool:
    """Whether an upstream's metadata are those that were asked for; it may add its own."""
    if told is None:
        # Some never say; its input, its endpoint and its time must do then.
        return True
    have = told if isinstance(told, dict) else {}
    return not isinstance(asked, dict) or all(have.get(key) == asked[key] for key in asked)


def unknown_job(type: str, job_id: str) -> NotFound:
    """The answer for an id that means nothing here."""
    name = "Batch" if type == "batch" else "FineTuningJob"
    return NotFound(f"No such {name} object: {job_id[:200]}", param="id")


def _moment(seconds: int | None) -> dt.datetime | None:
    return dt.datetime.fromtimestamp(seconds, dt.UTC) if seconds else None
