"""An upload on its way to every deployment of every model that it is for.

A row with the intent is committed before the first byte goes upstream, and what the upstream
answered is committed right after, so a crash at any point leaves rows from which every copy can
be finished or taken back. No transaction is open while an upstream is waited for.
"""

import datetime as dt
import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from app import faults, ids
from app.db import copies as work_rows
from app.db import files as rows
from app.db.change import Changing, within
from app.db.engine import Database
from app.db.tables import Copy, File, now
from app.db.together import Together
from app.errors import (
    Conflict,
    DatabaseUnavailable,
    GatewayError,
    InvalidRequest,
    UpstreamError,
)
from app.objects import FileObject
from app.providers.protocol import StoredFile
from app.services import audit
from app.services.answers import Answers
from app.services.batch_files import BatchFiles
from app.services.callers import Caller
from app.services.copies import Copies, is_certain, pause
from app.services.fan_out import FanOut
from app.services.file_objects import copy_facts, file_object, last_expiry, status_of
from app.services.head_start import HeadStart
from app.services.kept import Kept
from app.services.leases import Leases
from app.services.metering import Meter
from app.services.renewal import Renewal
from app.services.router import Route, Router, Way
from app.settings import Settings
from app.spool import Spool
from app.transfers import Upload

log = logging.getLogger("manifold.files")


class Storing:
    """Uploads on behalf of a caller."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        router: Router,
        *,
        fan_out: FanOut,
        copies: Copies,
        renewal: Renewal,
        batch_files: BatchFiles,
        kept: Kept,
        leases: Leases,
        meter: Meter,
        spool: Spool,
    ) -> None:
        self._settings = settings
        self._database = database
        self._together = Together(database)
        self._router = router
        self._fan_out = fan_out
        self._copies = copies
        self._renewal = renewal
        self._batch_files = batch_files
        self._kept = kept
        self._leases = leases
        self._meter = meter
        self._spool = spool

    def create(
        self,
        caller: Caller,
        upload: Upload,
        way: Way,
        file_uuid: str | None = None,
        head_start: HeadStart | None = None,
    ) -> FileObject:
        """Store the upload at every route of the way (by one account: at one) and answer with it.

        Its row gets the id `file_uuid`, where somebody has to know it beforehand; a `head_start`
        counts if it is that of this upload. Raises the
        upstream's error, naming the model, when some model ends with no copy; what was stored is
        taken back first.
        """
        if head_start is not None and not head_start.is_of(upload, way):
            head_start.give_up()
            head_start = None
        task = _Task(caller, upload, way, file_uuid or ids.new_uuid(), head_start)
        if upload.purpose != "batch":
            return self._create(task)
        folder = self._spool.folder()
        with self._batch_files.copies(upload, way, folder, sent_by=caller) as renditions:
            return self._create(replace(task, renditions=renditions))

    def _create(self, task: "_Task") -> FileObject:
        way = task.way
        if way.kind == "unified":
            return self._store(task, way.routes)
        routes = self._router.order(way.routes, lambda route: route.deployment.id)
        routes.sort(key=task.has_no_head_start)
        for route in routes[:-1]:
            try:
                return self._store(task, (route,))
            except UpstreamError as error:
                if not error.retryable:
                    raise
                self._router.rest(route.deployment.id)
        return self._store(task, routes[-1:])

    def _store(self, task: "_Task", routes: Sequence[Route]) -> FileObject:
        file, planned = self._intend(task, routes)
        faults.point("intent committed")
        with self._leases.held([copy.id for copy, _ in planned]):
            if task.head_start is not None:
                task.head_start.let_go()
            return self._sent(task, file, planned)

    def _sent(self, task: "_Task", file: File, planned: Sequence[tuple[Copy, Route]]) -> FileObject:
        answers = Answers(self._copies, planned)
        outcomes = self._fan_out.run(
            {
                copy.id: partial(
                    self._copies.send,
                    route.provider,
                    replace(task.rendition(route), key=copy.upload_key or ""),
                    task.head_start.outcome_of(route) if task.head_start else None,
                )
                for copy, route in planned
            },
            answers.record,
        )
        faults.point("copies sent")
        has_failed = any(isinstance(outcome, GatewayError) for outcome in outcomes.values())
        if has_failed or self._settings.keep_content:
            outcomes = answers.record_rest(outcomes)
        stored = {key: o for key, o in outcomes.items() if isinstance(o, StoredFile)}
        failed = {key: o for key, o in outcomes.items() if isinstance(o, GatewayError)}
        for copy, route in planned:
            if copy.id in failed:
                log.warning(
                    "upload failed",
                    extra={"deployment": route.deployment.id, "error": failed[copy.id].message},
                )
            else:
                rows.know(copy, **copy_facts(stored[copy.id]))
        held_by = {copy.model_name for copy, _ in planned if copy.id in stored}
        without = [copy for copy, _ in planned if copy.id in failed]
        if self._settings.fan_out == "every_model":
            without = [copy for copy in without if copy.model_name not in held_by]
        unsure = {key for key, error in failed.items() if not is_certain(error)}
        if without:
            self._copies.take_back(file, [copy for copy, _ in planned], unsure)
            raise _named(failed[without[0].id], without[0].model_name)
        try:
            self._keep(file, task.upload, is_whole=not failed)
        except GatewayError:
            self._copies.take_back(file, [copy for copy, _ in planned], unsure)
            raise
        faults.point("content kept")
        return self._finish(task, file, [copy for copy, _ in planned], failed, answers)

    def _intend(
        self, task: "_Task", routes: Sequence[Route]
    ) -> tuple[File, list[tuple[Copy, Route]]]:
        upload, way, file_uuid = task.upload, task.way, task.file_uuid
        moment, lease = now(), self._leases.until()
        expiry = upload.expires_after
        public_id = None
        if way.kind == "unified":
            public_id = ids.encode_unified(upload.mime_type, file_uuid, way.names)
            if not ids.is_raw(public_id):
                raise InvalidRequest(
                    f"{len(way.names)} target model names make an id of {len(public_id)} "
                    f"characters; {ids.MAX_ID_LENGTH} are allowed",
                    param="target_model_names",
                )
        file = rows.draft(
            File,
            id=file_uuid,
            public_id=public_id,
            kind=way.kind,
            owner=task.caller.owner,
            filename=upload.filename,
            mime_type=upload.mime_type,
            purpose=upload.purpose,
            bytes=upload.size,
            sha256=upload.sha256,
            target_model_names=list(way.names),
            state="uploading",
            status="uploaded",
            status_details=None,
            expires_at=moment + dt.timedelta(seconds=expiry.seconds) if expiry else None,
            copies_expire_at=None,
            is_kept=False,
            key_id=task.caller.key_id,
            created_at=moment,
            updated_at=moment,
        )
        planned = [
            (
                rows.draft(
                    Copy,
                    id=ids.new_uuid(),
                    file_id=file_uuid,
                    model_name=route.model_name,
                    deployment_id=route.deployment.id,
                    provider=route.deployment.provider,
                    deployment_file_id=None,
                    upstream_model=task.rendition(route).model or route.upstream_model or None,
                    upload_key=task.key_of(route),
                    sent_bytes=task.rendition(route).size,
                    first_file_id=None,
                    state="intended",
                    attempts=1,
                    last_error=None,
                    expires_at=None,
                    next_look_at=lease,
                    lease_until=lease,
                    created_at=task.head_start.begun_at if task.head_start else moment,
                    updated_at=moment,
                ),
                route,
            )
            for route in routes
        ]
        copies = [copy for copy, _ in planned]
        if task.caller.limited:
            with self._database.write() as session:
                self._meter.admit(session, task.caller, upload.size)
                rows.plan(within(session), file, copies)
        else:
            self._together.do(lambda changing: rows.plan(changing, file, copies))
        return file, planned

    def _keep(self, file: File, upload: Upload, *, is_whole: bool) -> None:
        """Keep the content: as the setting says, or until the copies that failed are there."""
        limit = self._settings.spool_max_mb
        is_for_repair = not is_whole and self._kept.has_room(upload.size, limit)
        if not self._settings.keep_content and not is_for_repair:
            return
        self._kept.put(file.id, upload)
        file.is_kept = True

    def _finish(
        self,
        task: "_Task",
        file: File,
        copies: Sequence[Copy],
        failed: Mapping[str, GatewayError],
        answers: Answers,
    ) -> FileObject:
        for copy in copies:
            if copy.id in failed:
                rows.know(
                    copy,
                    lease_until=None,
                    state="missing" if is_certain(failed[copy.id]) else "intended",
                    last_error=failed[copy.id].message,
                    next_look_at=now() + pause(0),
                )
            else:
                next_look = self._renewal.next_look(file, copy)
                rows.know(copy, lease_until=None, next_look_at=next_look)
        status, details = status_of(copies)
        rows.know(
            file,
            public_id=self._public_id(file, copies, task.way),
            state="ready",
            status=status,
            status_details=details,
            copies_expire_at=None if file.is_kept else last_expiry(copies),
        )
        is_wanted = self._commit(task.caller, file, copies, answers)
        faults.point("ready committed")
        if not is_wanted:
            # Its owner was deleted meanwhile, and his files with him; or somebody took this
            # process for dead.
            self._copies.erase_all(file, copies)
            raise Conflict("the file was deleted while it was being uploaded, or given up on")
        return file_object(file)

    def _commit(self, caller: Caller, file: File, copies: Sequence[Copy], answers: Answers) -> bool:
        """Write what became of all of it; False when nobody wants it any more."""
        is_in_doubt = False

        def write(changing: Changing) -> bool:
            nonlocal is_in_doubt
            is_wanted = rows.finish(changing, file)
            if is_wanted:
                work_rows.finish(changing, copies)
                audit.record(changing, caller, "file.upload", file.public_id, size=file.bytes)
            is_in_doubt = True
            return is_wanted

        try:
            return self._together.do(write)
        except DatabaseUnavailable:
            # Of a commit that failed nobody knows whether it was one; the worker finds out.
            if not is_in_doubt:
                answers.withdraw(copies)
            raise

    @staticmethod
    def _public_id(file: File, copies: Sequence[Copy], way: Way) -> str | None:
        raw = next((c.deployment_file_id for c in copies if c.deployment_file_id), None)
        if way.kind == "encoded" and raw:
            return ids.encode_file(raw, way.names[0])
        return raw if way.kind == "raw" else file.public_id


@dataclass(frozen=True)
class _Task:
    """One upload: whose, what, where to, and under which row id.

    `renditions` holds, by deployment id, what an upstream gets instead of the upload.
    """

    caller: Caller
    upload: Upload
    way: Way
    file_uuid: str
    head_start: HeadStart | None = None
    renditions: Mapping[str, Upload] = field(default_factory=dict)

    def rendition(self, route: Route) -> Upload:
        """What this route's upstream gets."""
        return self.renditions.get(route.deployment.id, self.upload)

    def key_of(self, route: Route) -> str:
        """The key of the attempt at this route's deployment."""
        begun = self.head_start.key_of(route) if self.head_start else None
        return begun or secrets.token_hex(16)

    def has_no_head_start(self, route: Route) -> bool:
        """False sorts first: where the file is on its way already."""
        return self.head_start is None or self.head_start.key_of(route) is None


def _named(error: GatewayError, model_name: str | None) -> GatewayError:
    if model_name is not None:
        error.message = f"the upload to the model {model_name!r} failed: {error.message}"
    if error.status >= 500:
        # The client would repeat the whole upload; where the answer was lost that makes a twin.
        error.headers["x-should-retry"] = "false"
    return error
