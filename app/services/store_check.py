"""The data directory against the rows, both ways: what is kept, local models, parts, the spool."""

import datetime as dt
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from itertools import islice

from app.db import files as file_rows
from app.db import fsck as rows
from app.db.engine import Database
from app.db.tables import Copy, File
from app.errors import DatabaseUnavailable, GatewayError
from app.providers.protocol import Flaw, Provider
from app.services.findings import PAGE, Difference, Mend, Report, is_held, pages, shown
from app.services.kept import Kept
from app.services.lookup import Held
from app.services.mending import Mending
from app.services.uploads import Uploads
from app.settings import Settings
from app.spool import Spool

_KEPT, _LOCAL, _UPLOADS, _SPOOL = "kept", "local", "uploads", "spool"


class StoreCheck:
    """Compares what is on this machine's disk with the rows."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        providers: Mapping[str, Provider],
        *,
        kept: Kept,
        uploads: Uploads,
        spool: Spool,
        mending: Mending,
    ) -> None:
        self._database = database
        self._providers = providers
        self._kept = kept
        self._uploads = uploads
        self._spool = spool
        self._mending = mending
        # Nodes that share a queue have each their own disk.
        self._has_other_disks = settings.task_queue_url is not None

    def run(self, report: Report) -> None:
        """Compare everything; what cannot be read is told of, and is not that of the others."""
        parts = {
            _KEPT: (self._kept_rows, self._kept_strays),
            _LOCAL: (self._local, self._blobs),
            _UPLOADS: (self._parts,),
            _SPOOL: (self._spooled,),
        }
        for where, steps in parts.items():
            for step in steps:
                try:
                    step(report)
                except DatabaseUnavailable:
                    raise
                except (GatewayError, OSError) as error:
                    told = error.message if isinstance(error, GatewayError) else error.strerror
                    report.unasked(where, shown(told or type(error).__name__))

    # What is kept

    def _kept_rows(self, report: Report) -> None:
        def read(after: str) -> list[File]:
            with self._database.read() as session:
                return rows.kept_after(session, after, PAGE)

        for page in pages(read, lambda file: file.id):
            for file in page:
                if report.asked.is_fresh(file.updated_at):
                    continue
                if not self._kept.has(file.id):
                    self._tell_unkept(file.id, report)
                elif (fault := self._kept.fault(file, read=report.asked.read)) is not None:
                    self._tell_damaged(file.id, fault, report)

    def _tell_unkept(self, file_id: str, report: Report) -> None:
        held = self._kept_now(file_id)
        if held is None or self._kept.has(file_id):
            return
        name = held.file.public_id or held.file.id
        if self._has_other_disks and _KEPT not in report.asked.own:
            report.note(
                Difference(
                    "elsewhere",
                    _KEPT,
                    held.file.id,
                    f"the content of {name} is not on this disk; another node may have it",
                    f"notes that it is not kept, with --own {_KEPT}",
                )
            )
            return
        report.difference(
            Difference(
                "unkept",
                _KEPT,
                held.file.id,
                f"the content of {name} is to be kept, and is not there",
                "notes that it is not kept",
                partial(self._let_go, file_id),
            )
        )

    def _tell_damaged(self, file_id: str, fault: str, report: Report) -> None:
        held = self._kept_now(file_id)
        if held is None or self._kept.fault(held.file, read=report.asked.read) is None:
            return
        report.difference(
            Difference(
                "damaged",
                _KEPT,
                held.file.id,
                f"the content of {held.file.public_id or held.file.id}: {fault}",
                "removes it, if an account gives the content",
                partial(self._drop_damaged, held),
            )
        )

    def _kept_now(self, file_id: str) -> Held | None:
        with self._database.read() as session:
            file, copies = rows.file_with_copies(session, file_id)
        if file is None or file.state != "ready" or not file.is_kept:
            return None
        return Held(file, tuple(copies))

    def _let_go(self, file_id: str) -> str | None:
        self._mending.let_go_of_kept(file_id)
        return None

    def _drop_damaged(self, held: Held) -> str | None:
        if not self._mending.is_given(held):
            return "no account gives the content; nothing was removed"
        self._mending.let_go_of_kept(held.file.id)
        self._kept.drop_damaged(held.file.id, held.file.sha256)
        return None

    def _kept_strays(self, report: Report) -> None:
        before = (dt.datetime.now(dt.UTC) - report.asked.grace).timestamp()
        old = (file_uuid for file_uuid, since in self._kept.entries() if since <= before)
        while some := list(islice(old, PAGE)):
            strays = self._strays(some)
            if not strays:
                continue
            report.wait()
            for file_uuid in self._strays(sorted(strays)):
                report.difference(
                    Difference(
                        "leftover",
                        _KEPT,
                        file_uuid,
                        "a content that no row speaks of",
                        "removes it",
                        partial(self._drop_stray, file_uuid, report.asked.own),
                    )
                )

    def _strays(self, file_uuids: list[str]) -> set[str]:
        """Those that no row wants, nor an upload that is still running."""
        found = {file_uuid for file_uuid in file_uuids if self._kept.has(file_uuid)}
        with self._database.read() as session:
            return found - file_rows.kept(session, found) - rows.uploading(session, found)

    def _drop_stray(self, file_uuid: str, own: Collection[str]) -> str | None:
        if (refusal := self._mending.refusal(_KEPT, own)) is not None:
            return refusal
        if not self._strays([file_uuid]):
            return "a row has it now"
        self._kept.drop(file_uuid, None)
        return None

    # Local models

    def _local(self, report: Report) -> None:
        for provider in self._providers.values():
            where, grace = provider.deployment.id, report.asked.grace.total_seconds()
            found = provider.flaws(grace, read=report.asked.read)
            for flaw in report.flaws(found):
                if flaw.file_id is not None:
                    self._damaged(flaw, provider, report)
                else:
                    self._tell(where, flaw, report)
            if report.asked.read and provider.is_on_this_disk:
                self._exchanged(provider, report)

    def _damaged(self, flaw: Flaw, provider: Provider, report: Report) -> None:
        """Tell of a file whose entry or content is damaged, unless somebody stores it anew now."""
        where, raw = provider.deployment.id, flaw.file_id or ""
        with self._database.read() as session:
            copy = next(iter(rows.copies_with(session, where, raw)), None)
        if copy is None:
            own = report.asked.own
            self._tell(where, flaw, report, partial(self._removed, flaw, provider, own))
        elif not is_held(copy):
            self._tell(where, flaw, report, partial(self._replaced, flaw, provider, copy))

    def _tell(self, where: str, flaw: Flaw, report: Report, mend: Mend | None = None) -> None:
        mend = mend or partial(self._mended, flaw)
        report.difference(
            Difference(flaw.kind, where, shown(flaw.id), flaw.meaning, flaw.remedy, mend)
        )

    @staticmethod
    def _mended(flaw: Flaw) -> str | None:
        if flaw.persists():
            flaw.mend()
        return None

    def _removed(self, flaw: Flaw, provider: Provider, own: Collection[str]) -> str | None:
        if (refusal := self._mending.refusal(provider.deployment.id, own)) is not None:
            return refusal
        if self._mending.is_linked(flaw.file_id or ""):
            return "a row has it, and a worker comes to it"
        self._mended(flaw)
        provider.delete(flaw.file_id or "")
        return None

    def _replaced(self, flaw: Flaw, provider: Provider, copy: Copy) -> str | None:
        """Store the file anew, and only then remove what is damaged of it."""
        found = self._mending.held(copy)
        if found is None or not flaw.persists():
            return None
        flaw.mend()
        if flaw.has_bytes:
            return self._mending.replace(*found)
        provider.delete(flaw.file_id or "")
        return self._mending.bring_back(*found)

    def _exchanged(self, provider: Provider, report: Report) -> None:
        """Contents that are what the store was given last, and not what the row says."""

        def read(after: str) -> list[Copy]:
            with self._database.read() as session:
                return rows.held_after(session, [provider.deployment.id], after, PAGE)

        for page in pages(read, lambda copy: copy.id):
            for copy in page:
                found = self._mending.held(copy)
                if found is None or is_held(found[1]):
                    continue
                file = found[0].file
                try:
                    stored = provider.retrieve(copy.deployment_file_id or "")
                except GatewayError:
                    continue  # The account's check tells of it.
                # A batch file's rows were written for this model.
                if file.purpose == "batch" or file.sha256 in (None, stored.sha256):
                    continue
                flaw = Flaw(
                    "damaged",
                    copy.deployment_file_id or "",
                    f"it is not the content of the file {file.public_id or file.id}",
                    "stores it anew from where the content still is, and removes this",
                    lambda: True,
                    lambda: None,
                    file_id=copy.deployment_file_id,
                    has_bytes=True,
                )
                self._damaged(flaw, provider, report)

    def _blobs(self, report: Report) -> None:
        found = self._kept.unused_blobs(report.asked.grace.total_seconds())
        for flaw in report.flaws(found):
            self._tell(_LOCAL, flaw, report)

    # Parts of uploads, and the spool

    def _parts(self, report: Report) -> None:
        def flaws() -> Iterator[Flaw]:
            for row_id in self._uploads.strays(report.asked.grace.total_seconds()):
                yield Flaw(
                    "leftover",
                    row_id,
                    "a folder with parts of an upload that has no row",
                    "removes it",
                    partial(self._uploads.is_stray, row_id),
                    partial(self._uploads.discard, row_id),
                )

        for flaw in report.flaws(flaws()):
            self._tell(_UPLOADS, flaw, report)

    def _spooled(self, report: Report) -> None:
        before = (dt.datetime.now(dt.UTC) - report.asked.grace).timestamp()
        for path in self._spool.leftovers():
            try:
                is_young = path.stat().st_mtime > before
            except FileNotFoundError:
                continue
            if is_young or not self._spool.holds_something(path):
                continue
            flaw = Flaw(
                "leftover",
                path.name,
                "what a process that is gone had under way",
                "removes it",
                path.exists,
                partial(self._spool.remove, path),
            )
            self._tell(_SPOOL, flaw, report)
