"""A gateway of services with batches and fine-tuning over fakes, and rows for batch files."""

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select, update

from app.db.engine import Database
from app.db.tables import Copy, File, Job, TunedModel, now
from app.factory import file_services
from app.providers.protocol import Operation
from app.services.access import Access
from app.services.batches import Batches, NewBatch
from app.services.callers import Caller
from app.services.file_lists import FileLists
from app.services.files import Files
from app.services.fine_tuning import FineTuning
from app.services.jobs import Jobs
from app.services.router import Hints, Router, Selector
from app.services.tuned_models import TunedModels
from app.services.upkeep import Upkeep
from app.settings import Deployment, Settings
from app.transfers import ExpiresAfter
from tests.access_builders import MASTER_KEY
from tests.builders import make_deployment, make_place, make_upload
from tests.conftest import MODELS
from tests.fakes import FakeProvider

ENDPOINT = "/v1/chat/completions"
ACCOUNTS = (
    make_deployment("openai-account", model_name=None, upstream_model=""),
    make_deployment("azure-account", model_name=None, provider="azure", upstream_model=""),
)


class WithoutJobs(FakeProvider):
    """A provider that has files and neither batches nor fine-tuning."""

    operations = frozenset({Operation.FILES, Operation.CHAT})


def hints(**selectors: str | Sequence[str]) -> Hints:
    """What a request's query says, as `hints(model="a")`."""
    return Hints(
        [
            ("query", kind, (values,) if isinstance(values, str) else tuple(values))
            for kind, values in selectors.items()
        ]
    )


def make_row(custom_id: str = "1", model: str | None = "a", **more: Any) -> bytes:
    """A row of a batch file, without a line end."""
    body: dict[str, Any] = {"messages": []} if model is None else {"model": model, "messages": []}
    row = {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body, **more}
    return json.dumps(row).encode()


def make_rows(*models: str | None) -> bytes:
    """A batch file with a row for each model."""
    return b"".join(make_row(str(n), model) + b"\n" for n, model in enumerate(models, start=1))


@dataclass
class JobGateway:
    """The services over fake providers, by deployment id."""

    settings: Settings
    database: Database
    router: Router
    files: Files
    lists: FileLists
    jobs: Jobs
    batches: Batches
    tuning: FineTuning
    tuned: TunedModels
    upkeep: Upkeep
    access: Access
    fakes: Mapping[str, FakeProvider]

    def upload(self, caller: Caller, content: bytes | None = None, **more: Any) -> str:
        """The id of a new file; `names`, `model` or `provider` choose the way, else model "a"."""
        selector: dict[str, Any] = {k: more.pop(k) for k in ("model", "provider") if k in more}
        names = more.pop("names", None)
        if names is not None or not selector:
            selector = {"target_model_names": tuple(names or ("a",))}
        purpose = more.pop("purpose", "batch")
        if content is None:
            content = make_rows(selector.get("model") or (*(names or ()), "a")[0])
        way = self.router.way(Selector(**selector), caller)
        upload = make_upload(content, purpose=purpose, **more)
        return self.files.create(caller, upload, way)["id"]

    def start(self, caller: Caller, file_id: str | None = None, **more: Any) -> Any:
        """A new batch; keywords of NewBatch, others are hints."""
        names = ("endpoint", "completion_window", "metadata", "output_expires_after")
        given = {name: more.pop(name) for name in names if name in more}
        new = NewBatch(
            self.upload(caller) if file_id is None else file_id,
            **{"endpoint": ENDPOINT, "completion_window": "24h", **given},
        )
        return self.batches.create(caller, new, hints(**more))

    def tune(self, caller: Caller, file_id: str | None = None, **more: Any) -> Any:
        """A new fine-tuning job; `by` are hints, other keywords go into the body."""
        by = more.pop("by", {})
        training = file_id
        if training is None:
            training = self.upload(caller, b"{}\n", purpose="fine-tune")
        body = {"model": "a", "training_file": training, **more}
        return self.tuning.create(caller, body, hints(**by))

    def rows(self) -> list[Job]:
        """Every job as it is committed, oldest first."""
        with self.database.read() as session:
            return list(session.scalars(select(Job).order_by(Job.created_at)))

    def row(self) -> Job:
        """The only job."""
        [job] = self.rows()
        return job

    def fake_of(self, job: Job | None = None) -> FakeProvider:
        """The fake that has a job, the only one unless it is given."""
        return self.fakes[(job or self.row()).deployment_id]

    def upstream(self) -> tuple[FakeProvider, str]:
        """The fake that has the only job, and its id there."""
        job = self.row()
        return self.fakes[job.deployment_id], job.upstream_id or ""

    def finish(self, output: bytes = b"{}\n", errors: bytes | None = None) -> None:
        """Let the upstream complete the only batch."""
        fake, raw = self.upstream()
        fake.finish(raw, output, errors)

    def stored(self, purpose: str) -> list[File]:
        """Every file of a purpose as it is committed."""
        with self.database.read() as session:
            return list(session.scalars(select(File).where(File.purpose == purpose)))

    def copies(self) -> list[Copy]:
        with self.database.read() as session:
            return list(session.scalars(select(Copy)))

    def tuned_rows(self) -> list[TunedModel]:
        with self.database.read() as session:
            return list(session.scalars(select(TunedModel)))

    def change(self, **values: Any) -> None:
        """Write into every job, as time or another process does."""
        with self.database.write() as session:
            session.execute(update(Job).values(**values))

    def come_due(self) -> None:
        """Let every job be due now."""
        self.change(next_look_at=now() - dt.timedelta(seconds=1))

    def look(self) -> list[bool]:
        """Look at every unfinished job, due or not."""
        self.come_due()
        return [self.upkeep.look(job_uuid) for job_uuid in self.upkeep.due()]

    def calls(self) -> int:
        """How often any upstream was called so far."""
        return sum(len(fake.calls) for fake in self.fakes.values())


def make_job_gateway(
    database: Database,
    deployments: Sequence[Deployment] = MODELS,
    accounts: Sequence[Deployment] = ACCOUNTS,
    tuning: Sequence[Deployment] = (),
    *,
    fakes: Mapping[str, type[FakeProvider]] | None = None,
    **more: Any,
) -> JobGateway:
    """A gateway with these deployments; `fakes` names other classes by deployment id."""
    settings = Settings(
        deployments=tuple(deployments),
        file_accounts=tuple(accounts),
        finetune_accounts=tuple(tuning),
        **{"file_wait_seconds": 0.0, "data_dir": make_place().data_dir, **more},
    )
    made = {
        d.id: (fakes or {}).get(d.id, FakeProvider)(d) for d in (*deployments, *accounts, *tuning)
    }
    tuned = TunedModels(database)
    router = Router(settings, made, tuned_models=tuned)
    rooms = file_services(settings, database, router)
    files = rooms.files
    jobs = Jobs(settings, database, router, rooms.lookup, rooms.renewal)
    batches = Batches(database, router, jobs)
    fine_tuning = FineTuning(settings, database, router, jobs, tuned)
    upkeep = Upkeep(settings, database, jobs, batches, fine_tuning)
    access = Access(database, MASTER_KEY, on_files_deleted=files.finish_deletes)
    lists = FileLists(database, router)
    return JobGateway(
        settings,
        database,
        router,
        files,
        lists,
        jobs,
        batches,
        fine_tuning,
        tuned,
        upkeep,
        access,
        made,
    )


def expiry(seconds: int) -> ExpiresAfter:
    return ExpiresAfter("created_at", seconds)
