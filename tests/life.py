"""A gateway's life without HTTP: processes that die, time that passes, accounts that misbehave."""

import datetime as dt
import json
import os
import random
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Engine, select, update

from app import faults
from app.db.engine import Database, connect
from app.db.tables import Base, Copy, File, UploadPart, UploadSession, UtcDateTime, now
from app.errors import (
    DatabaseUnavailable,
    GatewayError,
    UpstreamAuthFailed,
    UpstreamError,
    UpstreamRejected,
    UpstreamTimeout,
)
from app.factory import file_services
from app.providers.protocol import Operation, StoredFile
from app.services.fan_out import FanOut
from app.services.file_lists import FileLists
from app.services.inference import Inference
from app.services.leases import Leases
from app.services.once import Once
from app.services.router import Router
from app.services.sweeper import Sweeper
from app.services.uploads import Uploads
from app.settings import Settings
from app.spool import Spool
from app.transfers import Cancellation, Download, Reply, Upload
from tests.builders import make_deployment
from tests.fakes import FakeProvider, json_reply

MODELS = (
    make_deployment("a-1", model_name="a", upstream_model="up-a"),
    make_deployment("a-2", model_name="a", provider="azure", upstream_model="up-a"),
    make_deployment("b-1", model_name="b", upstream_model="up-b"),
)
PLACES = tuple(deployment.id for deployment in MODELS)
_TABLES = (File, Copy, UploadSession, UploadPart)

FAULTS: dict[str, Callable[[], tuple[GatewayError, bool]]] = {
    "refused": lambda: (UpstreamRejected("no", status=400), False),
    "busy": lambda: (UpstreamRejected("wait", status=429, retryable=True), False),
    "broken": lambda: (UpstreamError("broken", retryable=True), False),
    "auth": lambda: (UpstreamAuthFailed("our key"), False),
    "500": lambda: (UpstreamRejected("broken", status=500), False),
    "lost before": lambda: (UpstreamTimeout("no answer in time"), False),
    "lost after": lambda: (UpstreamTimeout("no answer in time"), True),
    "garbled after": lambda: (UpstreamError("no JSON"), True),
}
"""What the next call of an account may do: an error, and whether the work is done all the same."""


class Killed(BaseException):
    """What a process ends with where a crash would end it."""


class Account(FakeProvider):
    """An account that forgets files when their time is over, and stalls when told to.

    It knows the files of the requests that it answers; a chat's answer is their bytes in hex.
    """

    reached: Callable[[str], None] = staticmethod(lambda name: None)
    """Called before every request and after those that change something."""
    stalls = 0
    """How many of the next downloads end in the middle."""
    before_arrival: Callable[[], None] = staticmethod(lambda: None)
    after_arrival: Callable[[], None] = staticmethod(lambda: None)
    """Called around the moment from which a new file is there; its answer comes later."""
    is_slow = False
    """Whether a new file is processed only once some time has gone by."""

    def _called(self, method: str, *arguments: Any) -> Any:
        self.reached(f"{method} asked")
        return super()._called(method, *arguments)

    def upload(self, upload: Upload) -> StoredFile:
        self.before_arrival()
        stored = super().upload(upload)
        if self.is_slow:
            self.change(stored.id, status="uploaded")
            stored = self.stored[stored.id]
        self.after_arrival()
        return stored

    def delete(self, file_id: str) -> None:
        super().delete(file_id)
        self.reached("delete answered")

    def content(
        self,
        file_id: str,
        byte_range: str | None = None,
        cancellation: Cancellation | None = None,
    ) -> Download:
        whole = super().content(file_id, byte_range, cancellation)
        if not self.stalls:
            return whole
        self.stalls -= 1
        return replace(whole, chunks=_stalling(b"".join(whole.chunks)))

    def infer(self, operation: Operation, body: bytes, *more: Any, **named: Any) -> Reply:
        reply = super().infer(operation, body, *more, **named)
        wanted = json.loads(body)["messages"][0]["content"][0]["file"]["file_id"]
        if wanted not in self.stored:
            return json_reply({"error": {"message": f"No such File object: {wanted}"}}, 404)
        return json_reply({"bytes": self.contents[wanted].hex()}) if reply.status == 200 else reply

    def age(self, seconds: float) -> None:
        """Let so much time go by."""
        moment = int(now().timestamp())
        for key, file in list(self.stored.items()):
            ends = None if file.expires_at is None else file.expires_at - int(seconds)
            made = file.created_at - int(seconds)
            self.stored[key] = replace(file, created_at=made, expires_at=ends, status="processed")
            if ends is not None and ends <= moment:
                self.lose(key)


def _stalling(content: bytes) -> Iterator[bytes]:
    yield content[: len(content) // 2]
    raise UpstreamTimeout("no more bytes in time")


class _Untended(Leases):
    """Leases without the thread that renews them: nothing takes that long here."""

    @contextmanager
    def held(self, copy_ids: Collection[str]) -> Iterator[None]:
        yield


class _Mortal(Database):
    """A database as one process sees it: the process may die, or not be answered."""

    def __init__(self, engine: Engine, process: "Process") -> None:
        super().__init__(engine)
        self._process = process

    @contextmanager
    def read(self) -> Iterator[Any]:
        self._process.asks_database()
        with super().read() as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Any]:
        self._process.asks_database()
        with super().write() as session:
            yield session
        self._process.reached("committed")

    @contextmanager
    def change(self) -> Iterator[Any]:
        self._process.asks_database()
        with super().change() as changing:
            yield changing
        self._process.reached("committed")


class Process:
    """The services as they are after a start.

    `fuse` is at which step it dies, `outage` the transaction from which on the database does not
    answer three times; None: never.
    """

    def __init__(self, world: "World") -> None:
        self.fuse: int | None = None
        self.outage: int | None = None
        self.died_at: str | None = None
        settings, accounts = world.settings, world.accounts
        database = _Mortal(world.engine, self)
        router = Router(settings, accounts, clock=lambda: world.seconds, rng=world.rng)
        self.spool = Spool(settings.data_dir / "spool")
        leases = _Untended(database, settings.lease_seconds)
        # One thread for all copies, and no clock: the same example does the same twice.
        fan_out = FanOut(1, together_seconds=60.0)
        self.rooms = file_services(settings, database, router, self.spool, leases, fan_out=fan_out)
        self.router, self.files = router, self.rooms.files
        self.lists = FileLists(database, router)
        self.uploads = Uploads(settings, database, router, self.files, self.rooms.meter)
        self.inference = Inference(
            settings, database, router, self.rooms.lookup, self.rooms.renewal
        )
        self.sweeper = Sweeper(
            database,
            tuple(accounts.values()),
            copies=self.rooms.copies,
            uploads=self.uploads,
            kept=self.rooms.kept,
            spool=self.spool,
            meter=self.rooms.meter,
            once=Once(database),
        )

    def reached(self, name: str) -> None:
        """One step is done. A dead process does no other, whatever its threads still try."""
        if self.died_at is None and self.fuse is not None:
            self.fuse -= 1
            if self.fuse <= 0:
                self.died_at = name
        if self.died_at is not None:
            raise Killed

    def asks_database(self) -> None:
        """A transaction begins."""
        self.reached("transaction")
        if self.outage is not None:
            self.outage -= 1
            if self.outage <= 0:
                self.outage = self.outage if self.outage > -3 else None
                raise DatabaseUnavailable

    def let_go(self) -> None:
        """What the kernel does when a process has ended."""
        held = self.spool._held
        if held is not None:
            os.close(held)


class World:
    """A database, a disk and three accounts, which outlive the processes.

    `keyed` are the accounts whose files are named by the upload's key, `lifetimes` the seconds
    that an account lets files live.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        keyed: Collection[str] = (),
        slow: Collection[str] = (),
        lifetimes: dict[str, int] | None = None,
        **settings: Any,
    ) -> None:
        self.rng = random.Random(seed)
        self.seconds = 0.0
        self._folder = tempfile.TemporaryDirectory(prefix="manifold-life-")
        self.settings = Settings(
            deployments=MODELS,
            data_dir=Path(self._folder.name),
            file_wait_seconds=0.0,
            **settings,
        )
        self._database = connect("sqlite://")
        self.engine = self._database.engine
        Base.metadata.create_all(self.engine)
        self.accounts = {deployment.id: Account(deployment) for deployment in MODELS}
        for name, account in self.accounts.items():
            account.is_keyed = name in keyed
            account.is_slow = name in slow
            account.expires_in = (lifetimes or {}).get(name)
            account.reached = self._reached
        self.process = Process(self)
        faults.watch(self._reached)

    def close(self) -> None:
        """Everything goes."""
        faults.watch(None)
        self.process.let_go()
        self.engine.dispose()
        self._folder.cleanup()

    def _reached(self, name: str) -> None:
        self.process.reached(name)

    def new_uuid(self) -> uuid.UUID:
        """A random id, the same in every run of an example."""
        return uuid.UUID(int=self.rng.getrandbits(128), version=4)

    def restart(self) -> None:
        """A new process in place of the one that has died."""
        self.process.let_go()
        self.process = Process(self)

    @contextmanager
    def another_process(self) -> Iterator[Process]:
        """A second process beside the one there is, for as long as the block runs."""
        first, self.process = self.process, Process(self)
        try:
            yield self.process
        finally:
            self.process.let_go()
            self.process = first

    @contextmanager
    def calm(self) -> Iterator[None]:
        """No fault happens inside; those that were to come are to come afterwards."""
        before = {
            name: (account._failures, account.stalls) for name, account in self.accounts.items()
        }
        process, outage = self.process, self.process.outage
        process.outage = None
        for account in self.accounts.values():
            account._failures, account.stalls = [], 0
        try:
            yield
        finally:
            process.outage = outage
            for name, (failures, stalls) in before.items():
                account = self.accounts[name]
                account._failures, account.stalls = failures, stalls

    def forgive(self) -> None:
        """No fault is to come any more."""
        for account in self.accounts.values():
            account._failures, account.stalls = [], 0
            account.before_arrival = account.after_arrival = lambda: None
        self.process.outage = None

    # Time

    def pass_time(self, seconds: float) -> None:
        """Move everything that is on record into the past, which is as good as a later clock."""
        self.seconds += seconds
        by = dt.timedelta(seconds=seconds)
        with self.engine.begin() as connection:
            for table in (each.__table__ for each in _TABLES):
                moments = [c for c in table.columns if isinstance(c.type, UtcDateTime)]
                for row in connection.execute(select(table.c.id, *moments)).all():
                    moved = {c.name: t - by for c, t in zip(moments, row[1:], strict=True) if t}
                    connection.execute(update(table).where(table.c.id == row.id).values(moved))  # type: ignore[arg-type]  # a table
        for account in self.accounts.values():
            account.age(seconds)

    def next_look(self) -> float | None:
        """In how many seconds something is to be done about some copy, None: never."""
        with self._database.read() as session:
            first = session.scalar(
                select(Copy.next_look_at).order_by(Copy.next_look_at.nulls_last())
            )
        return None if first is None else (first - now()).total_seconds()

    # Work

    def look(self, order: Literal["by place", "by age"] = "by place") -> int:
        """One pass of the worker over all that is due; how much that was."""
        reconciler = self.process.rooms.reconciler
        due = set(reconciler.due())
        copies = [copy for _, copies in self.rows() for copy in copies if copy.id in due]
        if order == "by place":
            copies.sort(key=lambda copy: copy.deployment_id)
        for copy in copies:
            reconciler.look(copy.id)
        return len(copies)

    # What is there

    def rows(self) -> list[tuple[File, list[Copy]]]:
        """All files, oldest first, and their copies."""
        with self._database.read() as session:
            files = session.scalars(select(File).order_by(File.created_at)).all()
            copies = session.scalars(select(Copy).order_by(Copy.created_at, Copy.id)).all()
        return [(file, [c for c in copies if c.file_id == file.id]) for file in files]

    def uploads(self) -> Sequence[UploadSession]:
        """All uploads in parts."""
        with self._database.read() as session:
            return session.scalars(select(UploadSession)).all()

    def objects(self) -> dict[tuple[str, str], bytes]:
        """All files upstream, by account and id."""
        return {
            (name, raw): content
            for name, account in self.accounts.items()
            for raw, content in account.contents.items()
        }

    def on_disk(self) -> set[str]:
        """Everything on the gateway's disk but locks and whole folders, relative."""
        root = self.settings.data_dir
        return {
            str(path.relative_to(root))
            for path in root.rglob("*")
            if path.is_file() and path.name != ".lock"
        }


def chat_body(file_id: str, model: str) -> bytes:
    """A chat request with a file."""
    part = {"type": "file", "file": {"file_id": file_id}}
    return json.dumps({"model": model, "messages": [{"role": "user", "content": [part]}]}).encode()


def bytes_seen(reply: Reply) -> bytes:
    """The file that an account has seen when it answered a chat."""
    try:
        return bytes.fromhex(json.loads(b"".join(reply.chunks))["bytes"])
    finally:
        reply.close()
