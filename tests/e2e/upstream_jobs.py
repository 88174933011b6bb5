"""Batches and fine-tuning jobs of the fake upstream, which really does what they ask.

A batch's rows are checked as OpenAI checks them and then answered by the fake's own inference;
what they gave shows as time passes, or by the number of retrieves. See shared/upstreams.md, A.5,
A.6, B.4 and B.5.
"""

import datetime as dt
import itertools
import json
import random
import re
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, BinaryIO, NamedTuple, NoReturn

from tests.e2e.upstream import (
    Account,
    Answer,
    Exchange,
    FakeUpstream,
    Refusal,
    Stored,
    json_answer,
)

ENDPOINTS = {
    "openai": (
        *("/responses", "/chat/completions", "/embeddings", "/completions"),
        *("/moderations", "/images/generations", "/images/edits", "/videos"),
    ),
    "azure": ("/responses", "/chat/completions", "/embeddings", "/completions"),
}
MOST_ROWS = {"openai": 50_000, "azure": 100_000}
BATCH_FIELDS = {"input_file_id", "endpoint", "completion_window", "metadata"}
BATCH_FIELDS |= {"output_expires_after"}
JOB_FIELDS = {"model", "training_file", "validation_file", "suffix", "seed", "method"}
JOB_FIELDS |= {"hyperparameters", "integrations", "metadata"}
TIMES = (
    *("in_progress_at", "expires_at", "finalizing_at", "completed_at", "failed_at"),
    *("expired_at", "cancelling_at", "cancelled_at"),
)
AZURE_WORDS = {"validating_files": "created", "queued": "pending"}
TRAINING_TYPES = ("standard", "globalstandard", "developertier")
JOB_ENDS = ("succeeded", "failed", "cancelled")

UNDONE = {
    "cancelled": ("batch_cancelled", "This request was not executed: the batch was cancelled."),
    "expired": ("batch_expired", "This request could not be executed before the window closed."),
}


class Result(NamedTuple):
    """What became of a row; `line` is its line of the output or the error file."""

    custom_id: str
    line: bytes
    good: bool
    tokens_in: int
    tokens_out: int


@dataclass
class FakeBatch:
    id: str
    account: str
    serial: int
    door: str
    path: str
    """Of the endpoint, without /v1."""
    sent: dict[str, Any]
    input: Stored
    created_at: int
    begun: float
    state: str = "validating"
    polls: int = 0
    mark: float = 0.0
    """How far it was when it was cancelled."""
    until: int | None = None
    """The rows that were done by then."""
    model: str | None = None
    total: int = 0
    errors: list[dict[str, Any]] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    kept: list[Result] = field(default_factory=list)
    times: dict[str, int] = field(default_factory=dict)
    output_file_id: str | None = None
    error_file_id: str | None = None
    checked: threading.Event = field(default_factory=threading.Event)
    executed: threading.Event = field(default_factory=threading.Event)

    def enter(self, state: str) -> None:
        self.state = state
        self.times[f"{state}_at"] = int(time.time())


@dataclass
class FakeJob:
    id: str
    account: str
    serial: int
    sent: dict[str, Any]
    tuned: str
    seed: int
    created_at: int
    begun: float
    mistake: dict[str, Any] | None
    state: str = "validating_files"
    polls: int = 0
    before: float = 0.0
    """How far it was when it was paused or resumed the last time, and the clock then."""
    since: float = 0.0
    steps: int = 0
    finished_at: int | None = None
    result_files: list[str] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    checkpoints: list[dict[str, Any]] = field(default_factory=list)


class UpstreamJobs:
    """The batches and jobs of all accounts. Everything is brought up to date when looked at."""

    def __init__(self, fake: FakeUpstream) -> None:
        self.fake = fake
        self.batches: dict[str, FakeBatch] = {}
        self.jobs: dict[str, FakeJob] = {}

    def answer(self, exchange: Exchange, account: Account, rest: str) -> Answer | None:
        """None for a path that is nothing of ours."""
        if account.kind not in ENDPOINTS:
            return None
        method = exchange.method
        asked = self.batches.get(rest.removeprefix("/batches/"))
        if asked and account.batch_polls is not None:
            # Whoever counts retrieves wants to count on them. The thread may need the lock.
            asked.executed.wait(10)
        with self.fake.lock:
            if rest == "/batches":
                if method == "POST":
                    return self._create_batch(exchange, account)
                if method == "GET":
                    return self._list_batches(exchange, account)
            if match := re.fullmatch("/batches/([^/]+)(/cancel)?", rest):
                if method == "GET" and not match[2]:
                    return self._retrieve_batch(account, match[1])
                if method == "POST" and match[2]:
                    return self._cancel_batch(account, match[1])
            if rest == "/fine_tuning/jobs":
                if method == "POST":
                    return self._create_job(exchange, account)
                if method == "GET":
                    return self._list_jobs(exchange, account)
            if match := re.fullmatch("/fine_tuning/jobs/([^/]+)(?:/([a-z]+))?", rest):
                return self._job_call(exchange, account, match[1], (method, match[2]))
        return None

    def settle(self) -> None:
        """Bring everything up to date: output files are there without a look at their batch."""
        for batch in self.batches.values():
            self._advance_batch(batch)
        for job in self.jobs.values():
            self._advance_job(job)

    def forget(self, account: str | None = None) -> None:
        """Those of an account, or all."""
        self.batches = {n: b for n, b in self.batches.items() if account not in (None, b.account)}
        self.jobs = {n: j for n, j in self.jobs.items() if account not in (None, j.account)}

    def inspect_batches(self, account: str | None) -> list[dict[str, Any]]:
        """For the control API: OpenAI's object whatever the kind, `account`, `sent`, `polls`."""
        return [
            {
                **self._plain_batch(batch),
                **{"account": batch.account, "sent": batch.sent, "polls": batch.polls},
            }
            for batch in self.batches.values()
            if account in (None, batch.account)
        ]

    def inspect_jobs(self, account: str | None) -> list[dict[str, Any]]:
        """The same for fine-tuning jobs."""
        return [
            {
                **self._job_object(self.fake.accounts[job.account], job),
                **{"status": job.state, "account": job.account},
                **{"sent": job.sent, "polls": job.polls},
            }
            for job in self.jobs.values()
            if account in (None, job.account)
        ]

    # ---------------------------------------------------------------- batches

    def _create_batch(self, exchange: Exchange, account: Account) -> Answer:
        body = exchange.json
        _only_known(body, BATCH_FIELDS)
        _required(body, "input_file_id", "endpoint", "completion_window")
        short = exchange.door == "azure_classic"
        allowed = [path if short else f"/v1{path}" for path in ENDPOINTS[account.kind]]
        if body["endpoint"] not in allowed:
            raise _invalid("endpoint", body["endpoint"], f"one of {', '.join(allowed)}")
        if body["completion_window"] != "24h":
            raise _invalid("completion_window", body["completion_window"], "'24h'")
        _check_metadata(body.get("metadata"))
        _check_output_expiry(account, body.get("output_expires_after"))
        stored = self._input(account, body, "input_file_id", "batch")
        self.fake.serial += 1
        batch = FakeBatch(
            id=f"batch_{secrets.token_hex(16)}",
            account=account.name,
            serial=self.fake.serial,
            door=exchange.door,
            path=body["endpoint"].removeprefix("/v1"),
            sent=body,
            input=stored,
            created_at=int(time.time()),
            begun=time.monotonic(),
        )
        batch.times["expires_at"] = batch.created_at + 24 * 3600
        self.batches[batch.id] = batch
        # Opened here, for a test may delete the file at once.
        first, second = stored.path.open("rb"), stored.path.open("rb")
        threading.Thread(
            target=self._work, args=(batch, account, first, second), name=batch.id, daemon=True
        ).start()
        return json_answer(self._batch_object(account, batch))

    def _list_batches(self, exchange: Exchange, account: Account) -> Answer:
        found = [b for b in self.batches.values() if b.account == account.name]
        for batch in found:
            self._advance_batch(batch)
        show = partial(self._batch_object, account)
        page, more = _page(exchange, account, [show(b) for b in reversed(found)], 20)
        if account.list_as_value:
            return json_answer({"value": page})
        return json_answer(_with_ends(page, more))

    def _retrieve_batch(self, account: Account, batch_id: str) -> Answer:
        batch = self._own_batch(account, batch_id)
        batch.polls += 1
        self._advance_batch(batch)
        return json_answer(self._batch_object(account, batch))

    def _cancel_batch(self, account: Account, batch_id: str) -> Answer:
        batch = self._own_batch(account, batch_id)
        self._advance_batch(batch)
        if batch.state in ("validating", "in_progress"):
            batch.until = self._done_rows(account, batch)
            batch.mark = self._batch_clock(account, batch)
            batch.enter("cancelling")
        elif batch.state != "cancelling":
            status = 409 if account.kind == "openai" else 400
            raise Refusal(
                account.cancel_refused_status or status,
                f"Cannot cancel a batch with status '{batch.state}'.",
                azure_code="unexpectedEntityState",
            )
        return json_answer(self._batch_object(account, batch))

    def _own_batch(self, account: Account, batch_id: str) -> FakeBatch:
        batch = self.batches.get(batch_id)
        if batch is None or batch.account != account.name:
            raise Refusal(404, f"No batch found with id '{batch_id}'.", azure_code="notFound")
        return batch

    def _batch_clock(self, account: Account, batch: FakeBatch) -> float:
        return _clock(account.batch_delay_s, account.batch_polls, batch.begun, batch.polls)

    def _advance_batch(self, batch: FakeBatch) -> None:
        account = self.fake.accounts[batch.account]
        now = self._batch_clock(account, batch)
        while batch.state != account.batch_stay:
            match batch.state:
                case "validating" if now >= 0.25 and batch.checked.is_set():
                    if account.batch_end == "failed" and not batch.errors:
                        batch.errors = [_row_error("token_limit_exceeded", "Told to fail.", None)]
                    batch.enter("failed" if batch.errors else "in_progress")
                case "in_progress" if now >= 0.75 and batch.executed.is_set():
                    if account.batch_end == "expired":
                        self._end(account, batch, "expired", self._done_rows(account, batch))
                    else:
                        batch.enter("finalizing")
                case "finalizing" if now >= 1:
                    self._end(account, batch, "completed", batch.total)
                case "cancelling" if now >= batch.mark + 0.25 and batch.executed.is_set():
                    self._end(account, batch, "cancelled", batch.until or 0)
                case _:
                    return

    def _done_rows(self, account: Account, batch: FakeBatch) -> int:
        """While it runs at least one row is done and at least one is not, if there are two."""
        if batch.until is not None:
            return batch.until
        if batch.state in ("finalizing", "completed"):
            return batch.total
        if batch.state != "in_progress" or batch.total < 2:
            return 0
        share = (self._batch_clock(account, batch) - 0.25) / 0.5
        return max(1, min(batch.total - 1, int(share * batch.total)))

    def _end(self, account: Account, batch: FakeBatch, state: str, until: int) -> None:
        batch.until = until
        batch.kept = batch.results[:until]
        output = [result.line for result in batch.kept if result.good]
        errors = [result.line for result in batch.kept if not result.good]
        # One that never began has neither output nor errors.
        if state in UNDONE and "in_progress_at" in batch.times:
            code, message = UNDONE[state]
            errors += [
                _result_line(
                    result.custom_id,
                    {"response": None, "error": {"code": code, "message": message}},
                )
                for result in batch.results[until:]
            ]
        expiry = batch.sent.get("output_expires_after")
        if output:
            _shuffle(output)
            batch.output_file_id = self._keep(
                account, f"{batch.id}_output.jsonl", "batch_output", b"".join(output), expiry
            )
        if errors or (state == "completed" and account.kind == "azure"):
            _shuffle(errors)
            batch.error_file_id = self._keep(
                account, f"{batch.id}_error.jsonl", "batch_output", b"".join(errors), expiry
            )
        batch.enter(state)

    def _plain_batch(self, batch: FakeBatch) -> dict[str, Any]:
        """OpenAI's object."""
        account = self.fake.accounts[batch.account]
        done = batch.results[: self._done_rows(account, batch)]
        good = sum(result.good for result in done)
        tokens_in = sum(result.tokens_in for result in batch.kept)
        tokens_out = sum(result.tokens_out for result in batch.kept)
        is_known = "in_progress_at" in batch.times
        return {
            "id": batch.id,
            "object": "batch",
            "endpoint": batch.sent["endpoint"],
            "model": batch.model if is_known else None,
            "errors": {"object": "list", "data": batch.errors} if batch.state == "failed" else None,
            "input_file_id": batch.input.id,
            "completion_window": "24h",
            "status": batch.state,
            "output_file_id": batch.output_file_id,
            "error_file_id": batch.error_file_id,
            "created_at": batch.created_at,
            **{name: batch.times.get(name) for name in TIMES},
            "request_counts": {
                "total": batch.total if is_known else 0,
                "completed": good,
                "failed": len(done) - good,
            },
            "usage": {
                "input_tokens": tokens_in,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": tokens_out,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": tokens_in + tokens_out,
            },
            "metadata": batch.sent.get("metadata"),
        }

    def _batch_object(self, account: Account, batch: FakeBatch) -> dict[str, Any]:
        """That object as this account's provider writes it."""
        shown = self._plain_batch(batch)
        capitals = account.capitalised
        if account.kind == "azure" if capitals is None else capitals:
            shown["status"] = str(shown["status"]).capitalize()
        if account.iso_dates:
            for name in ("created_at", *TIMES):
                if shown[name] is not None:
                    moment = dt.datetime.fromtimestamp(shown[name], dt.UTC)
                    shown[name] = f"{moment:%Y-%m-%dT%H:%M:%S}.1619286+00:00"
        if account.sparse:
            shown = {key: value for key, value in shown.items() if value is not None}
            shown |= {"endpoint": None, "request_counts": None}
        return shown

    # ---------------------------------------------------------------- the rows of a batch

    def _work(self, batch: FakeBatch, account: Account, first: BinaryIO, second: BinaryIO) -> None:
        """All that a batch does, in a thread of its own; it shows when its time has come.

        It reads the file twice, for the rows of a large one would fill the memory.
        """
        try:
            with first, second:
                total = self._check_rows(batch, account, first)
                if not batch.errors:
                    batch.total = total
                    batch.checked.set()
                    batch.results = [self._execute(batch, account, row) for row in _filled(second)]
        finally:
            batch.checked.set()
            batch.executed.set()

    def _check_rows(self, batch: FakeBatch, account: Account, lines: Iterable[bytes]) -> int:
        """The number of good rows; what is wrong with others goes to the batch's errors."""
        good = 0
        seen: set[str] = set()
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            # Azure chokes on a byte order mark.
            encoding = "utf-8-sig" if (number, account.kind) == (1, "openai") else "utf-8"
            try:
                row = json.loads(line.decode(encoding), parse_constant=_no_constant)
            except (ValueError, RecursionError):
                row = None
            try:
                if not isinstance(row, dict):
                    raise _RowMistake(
                        "invalid_json_line",
                        "This line is not parseable as valid JSON.",
                    )
                self._check_row(batch, account, row, seen)
            except _RowMistake as mistake:
                if len(batch.errors) < 100:
                    batch.errors.append(mistake.shown(number))
                continue
            good += 1
        if not good and not batch.errors:
            batch.errors.append(_row_error("empty_file", "The batch file has no requests.", None))
        if good > MOST_ROWS[account.kind]:
            most = MOST_ROWS[account.kind]
            message = f"The batch file has more than {most} requests."
            batch.errors.append(_row_error("too_many_tasks", message, None))
        return good

    def _check_row(
        self, batch: FakeBatch, account: Account, row: dict[str, Any], seen: set[str]
    ) -> None:
        for name, kind in (("custom_id", str), ("method", str), ("url", str), ("body", dict)):
            if not isinstance(row.get(name), kind) or not row[name]:
                raise _RowMistake(
                    "missing_required_parameter",
                    f"Missing required parameter: '{name}'.",
                    name,
                )
        if row["custom_id"] in seen:
            raise _RowMistake(
                "duplicate_custom_id",
                f"The custom_id '{row['custom_id']}' for this request is a duplicate of another "
                "request. The custom_id parameter must be unique for each request in a batch.",
                "custom_id",
            )
        seen.add(row["custom_id"])
        if row["method"] != "POST":
            raise _RowMistake("invalid_method", "The method must be 'POST'.", "method")
        if row["url"] != batch.sent["endpoint"]:
            raise _RowMistake(
                "url_mismatch",
                f"The URL provided for this request ('{row['url']}') does not match the batch "
                f"endpoint ('{batch.sent['endpoint']}').",
                "url",
            )
        model = row["body"].get("model")
        if not isinstance(model, str) or not account.knows(model):
            raise _RowMistake(
                "model_not_found",
                f"The provided model '{model}' is not supported by the Batch API.",
                "body.model",
            )
        if batch.model is None:
            batch.model = model
        elif model != batch.model:
            raise _RowMistake(
                "mismatched_model" if account.kind == "openai" else "model_mismatch",
                "The model for this batch request does not match the rest of the batch. Each "
                "batch must contain requests for a single model.",
                "body.model",
            )

    def _execute(self, batch: FakeBatch, account: Account, line: bytes) -> Result:
        row = json.loads(line.decode("utf-8-sig"))
        body = row["body"]
        exchange = Exchange(
            {"REQUEST_METHOD": "POST", "QUERY_STRING": ""},
            {"json": body, "body_size": len(line), "custom_id": row["custom_id"]},
            batch.door,
            batch.path,
            account,
        )
        make = self.fake.inference.get(batch.path, _other)
        told = body.get("fail_me")
        try:
            if told:
                status = 400 if told is True else int(told)
                raise Refusal(status, "told to fail", param="fail_me", code="invalid_value")
            if body.get("stream"):
                raise Refusal(400, "Streaming is not supported in batches.", param="stream")
            deployment = batch.model if batch.door == "azure_classic" else None
            answer = self.fake._infer(exchange, account, deployment, make)
        except Refusal as error:
            answer = self.fake._refused(exchange, error)
        assert isinstance(answer.body, bytes)
        given = json.loads(answer.body)
        response = {
            "status_code": answer.status,
            "request_id": secrets.token_hex(16),
            "body": given,
        }
        used = given.get("usage") or {}
        return Result(
            row["custom_id"],
            _result_line(row["custom_id"], {"response": response, "error": None}),
            answer.status < 400,
            used.get("prompt_tokens", used.get("input_tokens", 0)),
            used.get("completion_tokens", used.get("output_tokens", 0)),
        )

    # ---------------------------------------------------------------- files

    def _input(self, account: Account, body: dict[str, Any], name: str, purpose: str) -> Stored:
        stored = self.fake._own(account, str(body[name]), name, 400)
        if stored.purpose != purpose:
            raise Refusal(
                400,
                f"Invalid purpose '{stored.purpose}' of the file {stored.id}: "
                f"'{name}' must have the purpose '{purpose}'.",
                param=name,
                azure_code="invalidPayload",
            )
        if account.kind == "azure" and (
            stored.polls_left > 0 or account.final_status != "processed"
        ):
            raise Refusal(
                400,
                f"The file {stored.id} is not processed yet: it must be in the state 'processed'.",
                azure_code="invalidPayload",
            )
        return stored

    def _keep(
        self,
        account: Account,
        filename: str,
        purpose: str,
        content: bytes,
        expires_after: dict[str, Any] | None = None,
    ) -> str:
        return self.fake.keep(account, filename, purpose, content, expires_after).id

    # ---------------------------------------------------------------- fine-tuning

    def _create_job(self, exchange: Exchange, account: Account) -> Answer:
        azure, body = account.kind == "azure", exchange.json
        _only_known(body, JOB_FIELDS | ({"trainingType"} if azure else set()))
        for name, value in body.items():
            if value is None:
                raise Refusal(
                    400,
                    f"Invalid type for '{name}': expected a value, but got null instead.",
                    param=name,
                    code="invalid_type",
                    azure_code="invalidPayload",
                )
        _required(body, "model", "training_file")
        _check_job(account, body)
        files = [self._input(account, body, "training_file", "fine-tune")]
        if "validation_file" in body:
            files.append(self._input(account, body, "validation_file", "fine-tune"))
        self.fake.serial += 1
        job_id = f"ftjob-{secrets.token_hex(16 if azure else 12)}"
        short, model = secrets.token_hex(4), body["model"]
        job = FakeJob(
            id=job_id,
            account=account.name,
            serial=self.fake.serial,
            sent=body,
            tuned=f"{model}.ft-{job_id.removeprefix('ftjob-')}"
            if azure
            else f"ft:{model}:{account.organization}:{body.get('suffix', '')}:{short}",
            seed=body.get("seed", random.randrange(2**31)),
            created_at=int(time.time()),
            begun=time.monotonic(),
            mistake=_training_mistake(files),
        )
        self.jobs[job_id] = job
        _tell(job, f"Created fine-tuning job: {job_id}")
        _tell(job, f"Validating training file: {body['training_file']}")
        shown = self._job_object(account, job)
        if not azure:
            return json_answer(shown)
        return json_answer(shown, 201, {"Location": self.fake.location(exchange, job_id)})

    def _list_jobs(self, exchange: Exchange, account: Account) -> Answer:
        found = [j for j in self.jobs.values() if j.account == account.name]
        for name, value in exchange.query.items():
            if match := re.fullmatch(r"metadata\[(.+)\]", name):
                found = [j for j in found if (j.sent.get("metadata") or {}).get(match[1]) == value]
            elif (name, value) == ("metadata", "null"):
                found = [j for j in found if not j.sent.get("metadata")]
        for job in found:
            self._advance_job(job)
        show = partial(self._job_object, account)
        page, more = _page(exchange, account, [show(j) for j in reversed(found)], 20)
        return json_answer({"object": "list", "data": page, "has_more": more})

    def _job_call(
        self, exchange: Exchange, account: Account, job_id: str, call: tuple[str, str | None]
    ) -> Answer | None:
        known = {("GET", None), ("GET", "events"), ("GET", "checkpoints")}
        if call not in known | {("POST", each) for each in ("cancel", "pause", "resume")}:
            return None
        job = self.jobs.get(job_id)
        if job is None or job.account != account.name:
            raise Refusal(
                404,
                f"Could not find fine tune: {job_id}",
                param="fine_tune_id",
                code="fine_tune_not_found",
                azure_code="notFound",
            )
        if call == ("GET", None):
            job.polls += 1
        self._advance_job(job)
        match call[1]:
            case "events":
                page, more = _page(exchange, account, job.events[::-1], 20)
                return json_answer({"object": "list", "data": page, "has_more": more})
            case "checkpoints":
                page, more = _page(exchange, account, job.checkpoints[::-1], 10)
                return json_answer(_with_ends(page, more))
            case "cancel" if job.state not in JOB_ENDS:
                self._end_job(job, "cancelled", "The job was cancelled")
            case "pause" if job.state == "running":
                job.before = self._job_progress(account, job)
                job.state = "paused"
                _tell(job, "The job was paused")
            case "resume" if job.state == "paused":
                job.before, job.since = max(0.25, job.before - 0.5), self._job_clock(account, job)
                job.state = "queued"
                _tell(job, "The job was resumed")
            case str() as action:
                raise Refusal(
                    400,
                    f"Job {job_id} cannot do {action!r} in the state '{job.state}'.",
                    code="invalid_state",
                    azure_code="unexpectedEntityState",
                )
        return json_answer(self._job_object(account, job))

    def _job_clock(self, account: Account, job: FakeJob) -> float:
        return _clock(account.job_delay_s, account.job_polls, job.begun, job.polls)

    def _job_progress(self, account: Account, job: FakeJob) -> float:
        return job.before + self._job_clock(account, job) - job.since

    def _advance_job(self, job: FakeJob) -> None:
        account = self.fake.accounts[job.account]
        now = self._job_progress(account, job)
        while job.state != account.job_stay:
            match job.state:
                case "validating_files" if now >= 0.25:
                    if job.mistake:
                        self._end_job(job, "failed", job.mistake["message"])
                    else:
                        job.state = "queued"
                        _tell(job, "Files validated, moving job to queued state")
                case "queued" if now >= 0.5:
                    job.state = "running"
                    _tell(job, "Fine-tuning job started")
                case "running" if now >= 1:
                    self._step(account, job, account.job_steps)
                    self._finish_job(account, job)
                case _:
                    break
        if job.state == "running":
            self._step(account, job, int((now - 0.5) / 0.5 * account.job_steps))

    def _step(self, account: Account, job: FakeJob, until: int) -> None:
        """Go on training, up to this step."""
        while job.steps < min(until, account.job_steps):
            job.steps += 1
            n = job.steps
            metrics = {"step": n, "train_loss": 1 / n, "train_mean_token_accuracy": 1 - 1 / (n + 1)}
            _tell(
                job,
                f"Step {n}/{account.job_steps}: training loss={1 / n:.2f}",
                {**metrics, "total_steps": account.job_steps},
            )
            job.checkpoints.append(
                {
                    "id": f"ftckpt_{secrets.token_hex(12)}",
                    "object": "fine_tuning.job.checkpoint",
                    "created_at": int(time.time()),
                    "fine_tuned_model_checkpoint": f"{job.tuned}:ckpt-step-{n}",
                    "fine_tuning_job_id": job.id,
                    "metrics": metrics,
                    "step_number": n,
                }
            )

    def _finish_job(self, account: Account, job: FakeJob) -> None:
        if account.job_end == "failed":
            job.mistake = {"code": "told_to_fail", "message": "Told to fail.", "param": None}
            self._end_job(job, "failed", "Told to fail.")
            return
        table = "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n"
        table += "".join(
            f"{n},{1 / n:.5f},{1 - 1 / (n + 1):.5f},,\n" for n in range(1, job.steps + 1)
        )
        job.result_files = [
            self._keep(account, "step_metrics.csv", "fine-tune-results", table.encode())
        ]
        account.tuned.append(job.tuned)
        _tell(job, f"New fine-tuned model created: {job.tuned}")
        self._end_job(job, "succeeded", "The job has successfully completed")

    def _end_job(self, job: FakeJob, state: str, message: str) -> None:
        job.state = state
        job.finished_at = int(time.time())
        _tell(job, message, level="error" if state == "failed" else "info")

    def _job_object(self, account: Account, job: FakeJob) -> dict[str, Any]:
        azure, sent, done = account.kind == "azure", job.sent, job.state == "succeeded"
        method = sent.get("method") or {"type": "supervised"}
        own = dict(method.get(method["type"]) or {})
        asked = own.get("hyperparameters") or sent.get("hyperparameters") or {}
        usual = {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}
        hyperparameters = {**usual, **asked}
        shown: dict[str, Any] = {
            "id": job.id,
            "object": "fine_tuning.job",
            "created_at": job.created_at,
            "error": job.mistake if job.state == "failed" else None,
            "fine_tuned_model": job.tuned if done else None,
            "finished_at": job.finished_at,
            "hyperparameters": hyperparameters,
            "model": sent["model"],
            "organisation_id" if azure else "organization_id": f"org-{account.organization}",
            "result_files": job.result_files,
            "seed": job.seed,
            "status": AZURE_WORDS.get(job.state, job.state) if azure else job.state,
            "trained_tokens": 1000 * job.steps if done else None,
            "training_file": sent["training_file"],
            "validation_file": sent.get("validation_file"),
            "estimated_finish": int(time.time()) + 60 if job.state == "running" else None,
            "integrations": sent.get("integrations", []),
            "method": {**method, method["type"]: {**own, "hyperparameters": hyperparameters}},
            "metadata": sent.get("metadata"),
        }
        if azure:
            return {**shown, "suffix": sent.get("suffix"), "trainingType": sent.get("trainingType")}
        rest = {"usage_metrics": None, "shared_with_openai": False}
        return {**shown, "user_provided_suffix": sent.get("suffix"), **rest}


class _RowMistake(Exception):
    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param

    def shown(self, line: int) -> dict[str, Any]:
        return _row_error(self.code, self.message, self.param, line)


def _row_error(
    code: str, message: str, param: str | None = None, line: int | None = None
) -> dict[str, Any]:
    return {"code": code, "message": message, "param": param, "line": line}


def _result_line(custom_id: str, outcome: dict[str, Any]) -> bytes:
    row = {"id": f"batch_req_{secrets.token_hex(12)}", "custom_id": custom_id, **outcome}
    return json.dumps(row).encode() + b"\n"


def _other(exchange: Exchange, account: Account, model: str, text: str) -> Answer:
    """What the fake has no path for, such as moderations."""
    return json_answer({"id": f"other-{secrets.token_hex(12)}", "model": model, "echo": text})


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _shuffle(lines: list[bytes]) -> None:
    """Another order than before, if there can be one."""
    before = list(lines)
    random.shuffle(lines)
    if lines == before:
        lines.reverse()


def _clock(delay_s: float, needed: int | None, begun: float, polls: int) -> float:
    """How far something is: 1.0 is the end."""
    if needed is not None:
        return polls / max(1, needed)
    return (time.monotonic() - begun) / max(delay_s, 1e-9)


def _filled(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Those that are not blank."""
    return (line for line in lines if line.strip())


def _page(
    exchange: Exchange, account: Account, found: list[dict[str, Any]], usual: int
) -> tuple[list[dict[str, Any]], bool]:
    """The page after `after`, and whether there is more."""
    limit, after = exchange.query.get("limit", str(usual)), exchange.query.get("after")
    if not limit.isdigit() or not 1 <= int(limit) <= 100:
        raise _invalid("limit", limit, "an integer from 1 to 100")
    if after:
        ids = [each["id"] for each in found]
        if after not in ids:
            raise _invalid("after", after, "the id of an object in this list")
        found = found[ids.index(after) + 1 :]
    size = min(int(limit), account.page_size)
    return found[:size], len(found) > size


def _with_ends(page: list[dict[str, Any]], more: bool) -> dict[str, Any]:
    ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {}
    empty = {"first_id": None, "last_id": None}
    return {"object": "list", "data": page, **empty, **ends, "has_more": more}


def _invalid(name: str, value: object, wanted: str) -> Refusal:
    return Refusal(
        400,
        f"Invalid value for '{name}': {value!r}. Expected {wanted}.",
        param=name,
        code="invalid_value",
        azure_code="invalidPayload",
    )


def _only_known(body: dict[str, Any], known: set[str]) -> None:
    for name in body:
        if name not in known:
            raise Refusal(
                400,
                f"Unknown parameter: '{name}'.",
                param=name,
                code="unknown_parameter",
                azure_code="invalidPayload",
            )


def _required(body: dict[str, Any], *names: str) -> None:
    for name in names:
        if not isinstance(body.get(name), str) or not body[name]:
            raise Refusal(
                400,
                f"Missing required parameter: '{name}'.",
                param=name,
                code="missing_required_parameter",
                azure_code="invalidPayload",
            )


def _check_metadata(metadata: object) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict):
        raise _invalid("metadata", metadata, "an object")
    if len(metadata) > 16:
        raise _invalid("metadata", f"{len(metadata)} pairs", "at most 16 pairs")
    for key, value in metadata.items():
        if not isinstance(value, str) or len(value) > 512 or len(key) > 64:
            raise _invalid(
                f"metadata.{key}", value, "keys of up to 64 and strings of up to 512 characters"
            )


def _check_output_expiry(account: Account, expiry: object) -> None:
    if expiry is None:
        return
    if not isinstance(expiry, dict) or expiry.get("anchor") != "created_at":
        raise _invalid("output_expires_after.anchor", expiry, "'created_at'")
    least, seconds = 1_209_600 if account.kind == "azure" else 3_600, expiry.get("seconds")
    if type(seconds) is not int or not least <= seconds <= 2_592_000:
        raise _invalid("output_expires_after.seconds", seconds, f"from {least} to 2592000")


def _check_job(account: Account, body: dict[str, Any]) -> None:
    azure, model = account.kind == "azure", body["model"]
    if azure and account.training_type_required and "trainingType" not in body:
        raise Refusal(
            400,
            "The specified base model does not support fine-tuning.",
            azure_code="invalidPayload",
        )
    if str(body.get("trainingType", "standard")).lower() not in TRAINING_TYPES:
        raise _invalid("trainingType", body["trainingType"], f"one of {', '.join(TRAINING_TYPES)}")
    if not account.knows(model):
        raise Refusal(
            400,
            f"Model {model} is not available for fine-tuning or does not exist.",
            param="model",
            code="model_not_available",
            azure_code="invalidPayload",
        )
    suffix, longest = body.get("suffix", "x"), 40 if azure else 64
    if not isinstance(suffix, str) or not 1 <= len(suffix) <= longest:
        raise _invalid("suffix", suffix, f"1 to {longest} characters")
    seed = body.get("seed", 0)
    if type(seed) is not int or not 0 <= seed < 2**31:
        raise _invalid("seed", seed, "an integer from 0 to 2147483647")
    method = body.get("method", {"type": "supervised"})
    if not isinstance(method, dict) or method.get("type") not in (
        *("supervised", "dpo", "reinforcement"),
    ):
        raise _invalid("method.type", method, "'supervised', 'dpo' or 'reinforcement'")
    if not isinstance(body.get("hyperparameters", {}), dict):
        raise _invalid("hyperparameters", body["hyperparameters"], "an object")
    integrations = body.get("integrations", [])
    if not isinstance(integrations, list) or len(integrations) > 5:
        raise _invalid("integrations", integrations, "a list of at most 5")
    if any(not isinstance(i, dict) or i.get("type") != "wandb" for i in integrations):
        raise _invalid("integrations[0].type", integrations, "'wandb'")
    _check_metadata(body.get("metadata"))


def _training_mistake(files: list[Stored]) -> dict[str, Any] | None:
    """The job's `error` when a line of its files is no example."""
    for stored, param in zip(files, ("training_file", "validation_file"), strict=False):
        with stored.path.open("rb") as file:
            lines = list(_filled(file))
        bad = next((n for n, line in enumerate(lines, 1) if not _is_example(line)), None)
        if bad or not lines:
            what = f"line {bad} is not an example" if bad else "there are no examples"
            message = f"Invalid file format: {what}"
            return {"code": "invalid_file_format", "message": message, "param": param}
    return None


def _is_example(line: bytes) -> bool:
    try:
        example = json.loads(line.decode("utf-8-sig"))
    except ValueError:
        return False
    return isinstance(example, dict) and bool({"messages", "prompt", "input"} & set(example))


def _tell(
    job: FakeJob, message: str, data: dict[str, Any] | None = None, level: str = "info"
) -> None:
    job.events.append(
        {
            "object": "fine_tuning.job.event",
            "id": f"ftevent-{secrets.token_hex(12)}",
            "created_at": int(time.time()),
            "level": level,
            "message": message,
            "data": data or {},
            "type": "metrics" if data else "message",
        }
    )


# -------------------------------------------------------------------- what tests send and get

BODIES: dict[str, Callable[[str], list[tuple[str, str]]]] = {
    "/chat/completions": lambda text: [("messages", f'[{{"role" : "user","content": {text}}}]')],
    "/responses": lambda text: [("input", text)],
    "/completions": lambda text: [("prompt", text)],
    "/embeddings": lambda text: [("input", f"[{text}]")],
}
TEXT = r'"caf\u00e9 \ud83d\ude00 é 😀 \/ \"model\": \"decoy\", {\"custom_id\": %d}"'


def rows(
    n: int,
    model: str,
    *,
    url: str = "/v1/chat/completions",
    fail: Collection[int] = (),
    prefix: str = "row",
    first: int = 1,
    newline: str = "\n",
    last_newline: bool = True,
    replace: Mapping[int, str] | None = None,
) -> bytes:
    """A batch file of `n` rows that only a careful rewrite leaves as they are.

    Odd key order and blanks, escaped and plain unicode, big integers, decoys named `model`. The
    custom ids are `row-1` and so on, some of them written with escapes. The rows whose numbers
    are in `fail` get an error 400; those in `replace` are written as told.
    """
    lines = []
    for number in range(first, first + n):
        if replace and number in replace:
            lines.append(replace[number])
            continue
        custom_id = json.dumps(f"{prefix}-{number}")
        if number % 4 == 0:
            custom_id = f'"\\u{ord(custom_id[1]):04x}{custom_id[2:]}'
        body = [("model", json.dumps(model))]
        body += BODIES.get(url.removeprefix("/v1"), BODIES["/responses"])(TEXT % number)
        body += [
            ("seed", f"1234567890123456789012345{number}"),
            ("temperature", "1.0E-1"),
            ("metadata", '{"model" :"decoy", "n":-0.0 }'),
        ]
        if number in fail:
            body.append(("fail_me", "true"))
        pairs = [
            ("custom_id", custom_id),
            ("method", '"POST"'),
            ("url", json.dumps(url)),
            ("body", _written(body, number)),
        ]
        lines.append(_written(pairs, number // 2))
    return (newline.join(lines) + (newline if last_newline else "")).encode()


def _written(pairs: list[tuple[str, str]], turn: int) -> str:
    """A JSON object of these pairs, in another order and with other blanks at each turn."""
    turned = pairs[turn % len(pairs) :] + pairs[: turn % len(pairs)]
    colon, comma = ((":", ","), (": ", ", "), (" :\t", " ,"))[turn % 3]
    return "{" + comma.join(f'"{key}"{colon}{value}' for key, value in turned) + "}"


def training_rows(n: int) -> bytes:
    """A file for fine-tuning with `n` examples."""
    example = '{"messages":[{"role":"user","content":"%d"},{"role":"assistant","content":"é"}]}\n'
    return "".join(example % number for number in range(n)).encode()


def by_custom_id(content: bytes) -> dict[str, dict[str, Any]]:
    """The lines of an output or error file; AssertionError when a custom id stands twice."""
    lines = [json.loads(line) for line in content.splitlines()]
    found = {line["custom_id"]: line for line in lines}
    assert len(found) == len(lines)
    return found


def custom_ids(n: int, prefix: str = "row", first: int = 1) -> list[str]:
    """Those of `rows`."""
    return [f"{prefix}-{number}" for number in itertools.islice(itertools.count(first), n)]
