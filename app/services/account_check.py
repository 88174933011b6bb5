"""Rows against the provider accounts, both ways: copies that are not there, files without a row."""

import datetime as dt
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TypeVar

from app.db import fsck as rows
from app.db.engine import Database
from app.db.tables import Copy, Job, now
from app.errors import (
    DatabaseUnavailable,
    GatewayError,
    NotFound,
    NotSupported,
    UpstreamError,
)
from app.providers.protocol import Operation, Provider, StoredFile
from app.services.file_objects import is_over
from app.services.findings import PAGE, Difference, Report, is_held, pages, shown
from app.services.mending import Mending
from app.settings import Settings

T = TypeVar("T")

MADE_BY_JOBS = ("batch_output", "fine-tune-results")
"""Purposes of what upstreams make by themselves, for a job that may have no word of it yet."""
_PATIENCE = 3
"""So many questions in vain, and an account is asked no more."""


@dataclass
class _Account:
    """The deployments that see the same files, and what one of them says is there."""

    providers: list[Provider] = field(default_factory=list)
    there: set[str] = field(default_factory=set)
    strangers: dict[str, StoredFile] = field(default_factory=dict)
    """Files that no row has, as it looked while they were listed."""

    @property
    def ids(self) -> list[str]:
        return [provider.deployment.id for provider in self.providers]


class AccountCheck:
    """Compares every account with the rows."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        providers: Mapping[str, Provider],
        mending: Mending,
    ) -> None:
        self._database = database
        self._providers = providers
        self._mending = mending
        # Nodes that share a queue have each their own disk.
        self._has_other_disks = settings.task_queue_url is not None

    def run(self, report: Report) -> None:
        """Compare all of them; one that does not answer is told of, and is not that of others."""
        accounts: dict[str, _Account] = {}
        for provider in self._providers.values():
            if Operation.FILES in provider.operations:
                accounts.setdefault(provider.account, _Account()).providers.append(provider)
        for account in accounts.values():
            try:
                if not self._list(account, report):
                    continue
                self._missing(account, report)
                self._strangers(account, report)
            except DatabaseUnavailable:
                raise
            except GatewayError as error:
                report.unasked(account.ids[0], shown(error.message))
            account.there.clear()
            account.strangers.clear()

    def _list(self, account: _Account, report: Report) -> bool:
        """Take in what there is; False for a place where files cannot be, and no row says so."""
        first = account.providers[0]
        try:
            for some in _chunks(first.files()):
                self._take_in(account, some, report)
        except (NotFound, NotSupported):
            with self._database.read() as session:
                if rows.has_copies(session, account.ids):
                    raise
            return False
        report.summary.accounts += 1
        return True

    def _take_in(self, account: _Account, some: Sequence[StoredFile], report: Report) -> None:
        account.there.update(file.id for file in some)
        with self._database.read() as session:
            known = rows.linked(session, [file.id for file in some])
        for file in some:
            is_young = report.asked.is_fresh(_moment(file.created_at))
            if file.id not in known and not is_young:
                account.strangers[file.id] = file

    # Rows whose copy is not there

    def _missing(self, account: _Account, report: Report) -> None:
        # Read after the list: what was deleted or renewed meanwhile is not what it was.
        def read(after: str) -> list[Copy]:
            with self._database.read() as session:
                return rows.held_after(session, account.ids, after, PAGE)

        failures = 0
        for page in pages(read, lambda copy: copy.id):
            for copy in page:
                is_listed = copy.deployment_file_id in account.there
                is_fresh = report.asked.is_fresh(copy.updated_at)
                if is_listed or is_fresh or is_held(copy) or is_over(copy, now()):
                    continue
                try:
                    if self._is_gone(copy):
                        self._tell_missing(copy, report)
                except UpstreamError as error:
                    failures += 1
                    if failures == _PATIENCE:
                        raise
                    report.unasked(copy.deployment_id, shown(error.message), copy.id)

    def _is_gone(self, copy: Copy) -> bool:
        """A list may lag behind; whoever is asked for the one file does not."""
        provider = self._providers[copy.deployment_id]
        try:
            provider.retrieve(copy.deployment_file_id or "")
        except NotFound:
            return True
        except UpstreamError:
            if not provider.is_on_this_disk:
                raise
            # An entry that cannot be read: the check of the store has told of it.
        return False

    def _tell_missing(self, copy: Copy, report: Report) -> None:
        found = self._mending.held(copy)
        if found is None or is_held(found[1]):
            return
        held, mine = found
        raw, where = mine.deployment_file_id or "", mine.deployment_id
        name = f"the file {held.file.public_id or held.file.id}"
        is_local = self._providers[where].is_on_this_disk
        if is_local and self._has_other_disks and where not in report.asked.own:
            report.note(
                Difference(
                    "elsewhere",
                    where,
                    raw,
                    f"{name} is not on this machine's disk; another node may have it",
                    f"settles it as missing, with --own {where}",
                )
            )
            return
        rest = (
            "the content should be elsewhere too"
            if self._mending.has_bytes(held, mine)
            else "nobody else has the content"
        )
        report.difference(
            Difference(
                "missing",
                where,
                raw,
                f"{name} is not at the account; {rest}",
                "notes that, and stores it again from where the content is",
                partial(self._mending.bring_back, held, mine),
            )
        )

    # Files that no row has

    def _strangers(self, account: _Account, report: Report) -> None:
        strangers = account.strangers
        if not strangers:
            return
        # In this order: what is linked meanwhile is seen as open here or as linked below.
        self._drop_attempted(account)
        for page in pages(self._jobs_after, lambda job: job.id):
            for job in page:
                for raw in _told_of(job.snapshot):
                    strangers.pop(raw, None)
        for some in _chunks(list(strangers)):
            with self._database.read() as session:
                known = rows.linked(session, some)
            for raw in some:
                if raw not in known:
                    self._judge(account, strangers[raw], report)

    def _jobs_after(self, after: str) -> list[Job]:
        with self._database.read() as session:
            return rows.jobs_after(session, after, PAGE)

    def _drop_attempted(self, account: _Account) -> None:
        """Forget what an upload may have stored whose answer is not known."""
        provider = account.providers[0]
        by_facts: dict[tuple[str, str], list[StoredFile]] = {}
        for file in account.strangers.values():
            by_facts.setdefault((file.filename, file.purpose), []).append(file)

        def read(after: str) -> list[tuple[str, rows.OpenAttempt]]:
            with self._database.read() as session:
                return rows.open_attempts(session, after, PAGE)

        for page in pages(read, lambda row: row[0]):
            for _, attempt in page:
                known = provider.id_of(attempt.upload_key) if attempt.upload_key else None
                if known is not None:
                    account.strangers.pop(known, None)
                    continue
                for file in by_facts.get((attempt.filename, attempt.purpose), ()):
                    if file.size in (None, attempt.bytes):
                        account.strangers.pop(file.id, None)

    def _judge(self, account: _Account, file: StoredFile, report: Report) -> None:
        provider, where = account.providers[0], account.ids[0]
        told = f"no row knows it: {shown(file.filename)!r}, {file.purpose}, {_size(file)}"
        is_own = not report.asked.own.isdisjoint(account.ids)
        is_made = file.purpose in MADE_BY_JOBS
        if is_made and is_own and self._may_be_awaited(file):
            return
        if not is_own and (is_made or not provider.is_ours(file.id)):
            report.note(
                Difference(
                    "unknown",
                    where,
                    shown(file.id),
                    f"{told}; it may be another program's",
                    f"deletes it, with --own {where}",
                )
            )
            return
        try:
            provider.retrieve(file.id)
        except NotFound:
            return
        if self._mending.is_linked(file.id):
            return
        report.difference(
            Difference(
                "orphaned",
                where,
                shown(file.id),
                told,
                "deletes it",
                partial(self._delete, provider, file.id, {where} if is_own else ()),
            )
        )

    def _may_be_awaited(self, file: StoredFile) -> bool:
        """Whether a job is under way that may have made it."""
        with self._database.read() as session:
            since = rows.oldest_unfinished_job(session)
        return since is not None and _moment(file.created_at) >= since - dt.timedelta(minutes=5)

    def _delete(self, provider: Provider, raw: str, own: Collection[str]) -> str | None:
        if (refusal := self._mending.refusal(provider.deployment.id, own)) is not None:
            return refusal
        if self._mending.is_linked(raw):
            return "a row has it now"
        provider.delete(raw)
        return None


def _chunks(found: Iterable[T]) -> Iterator[list[T]]:
    rest = iter(found)
    while some := list(islice(rest, PAGE)):
        yield some


def _told_of(snapshot: Mapping[str, object]) -> Iterator[str]:
    """The files that an upstream has made for a job, as it says itself."""
    several = snapshot.get("result_files")
    told = [snapshot.get("output_file_id"), snapshot.get("error_file_id")]
    told += several if isinstance(several, list) else []
    yield from (raw for raw in told if isinstance(raw, str))


def _moment(seconds: int) -> dt.datetime:
    try:
        return dt.datetime.fromtimestamp(seconds, dt.UTC)
    except (OverflowError, ValueError, OSError):
        # No year that there is: not Unix seconds.
        return dt.datetime.fromtimestamp(0, dt.UTC)


def _size(file: StoredFile) -> str:
    made = f"made {_moment(file.created_at):%Y-%m-%d %H:%M} UTC"
    return f"{file.size:,} bytes, {made}" if file.size is not None else made
