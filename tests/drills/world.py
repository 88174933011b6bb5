"""One gateway on a fresh disk in front of fresh accounts; its processes are forked and killed."""

import datetime as dt
import gc
import hashlib
import json
import os
import shutil
import signal
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select, update
from sqlalchemy.orm import configure_mappers

from app import faults
from app.api.context import Services
from app.db import migrate
from app.db.engine import Database, connect
from app.db.tables import Copy, File, Job, now
from app.factory import build, create_app
from app.settings import Settings, load
from tests.e2e.gateway import Account, Upstream

PASSES = 6
"""Passes of the worker until nothing may be unfinished; one that finds nothing looks thrice."""
MASTER_KEY = "sk-drill-master-0123456789"
OWNER = {"Authorization": f"Bearer {MASTER_KEY}"}
_MADE = ("batch_output", "fine-tune-results")
"""Purposes of what upstreams make by themselves."""
_UNFINISHED_COPIES = ("intended", "missing", "deleting")


@dataclass(frozen=True)
class Ended:
    """How a forked process ended: by itself with a result, or killed."""

    result: Any
    was_killed: bool
    points: tuple[str, ...]
    """The points that it reached, in order; of a killed one, all up to its death."""


@dataclass(frozen=True)
class Kill:
    """Where a process is to die: the nth time that it reaches a point."""

    point: str
    nth: int = 1

    def __str__(self) -> str:
        return self.point if self.nth == 1 else f"{self.point} ({self.nth})"


@dataclass
class World:
    """The gateway's disk and its accounts. `content` is what the drills upload."""

    upstream: Upstream
    folder: Path
    template: Path
    serial: int
    content: bytes
    general: dict[str, Any] = field(default_factory=dict)
    accounts: dict[str, Account] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    """What an operation has prepared, for its later steps."""

    def __post_init__(self) -> None:
        data = self.folder / "data"
        data.mkdir(parents=True)
        shutil.copy(self.template, data / "manifold.db")
        for name in ("a1", "a2", "b"):
            self.accounts[name] = self.upstream.account(
                f"d{self.serial}-{name}", batch_delay_s=0.0, job_delay_s=0.0, download_any=True
            )
        self._configure()

    def _configure(self, moved: Mapping[str, str] | None = None) -> None:
        moved = moved or {}
        config = {
            "model_list": [
                *(
                    self._entry(model, account, moved)
                    for model, account in (("a", "a1"), ("a", "a2"), ("b", "b"))
                ),
                {
                    "model_name": "c",
                    "litellm_params": {"model": "local/store"},
                    "model_info": {"id": "c"},
                },
            ],
            "files_settings": [
                {
                    "custom_llm_provider": "openai",
                    **self._params("a1", moved),
                    "model_info": {"id": "a1-by-provider"},
                },
            ],
            "general_settings": {
                "master_key": MASTER_KEY,
                "data_dir": str(self.folder / "data"),
                "poll_seconds": 0.01,
                "poll_max_seconds": 0.01,
                **self.general,
            },
        }
        (self.folder / "config.yaml").write_text(yaml.safe_dump(config))
        self.__dict__.pop("settings", None)

    def _entry(self, model: str, account: str, moved: Mapping[str, str]) -> dict[str, Any]:
        return {
            "model_name": model,
            "litellm_params": {"model": "openai/up", **self._params(account, moved)},
            "model_info": {"id": account},
        }

    def _params(self, account: str, moved: Mapping[str, str]) -> dict[str, Any]:
        params = {**self.accounts[account].params, "timeout": 0.5, "max_retries": 0}
        return {**params, "api_base": moved.get(account, params["api_base"])}

    @contextmanager
    def moved(self, accounts: Iterable[str], api_base: str) -> Iterator[None]:
        """The configuration names another address for these while the block runs."""
        self._configure(dict.fromkeys(accounts, api_base))
        yield
        self._configure()

    @cached_property
    def settings(self) -> Settings:
        return load(self.folder / "config.yaml", {})

    def remove(self) -> None:
        """Everything it has, on this disk and at the upstream, where no other world may be."""
        shutil.rmtree(self.folder)
        self.upstream.reset(accounts=True)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def database(self) -> Database:
        """A connection of the drill's own."""
        return connect(self.settings.resolved_database_url, pool_size=1)

    # Processes

    def run(self, act: Callable[[Any, "World"], Any], kill: Kill | None = None) -> Ended:
        """Let a forked gateway process do something with its test client, or die over it."""
        app, settings = _app(), self.settings

        def work() -> Any:
            app.extensions["manifold"] = build(settings)
            return act(app.test_client(), self)

        return self._forked(work, kill)

    def recover(self, kill: Kill | None = None) -> Ended:
        """Let a forked worker pass once over all that is due, leases having run out, or die."""
        settings = self.settings
        return self._forked(lambda: _passed(build(settings)) and None, kill)

    def aftermath(self, file_id: str | None = None) -> list[str]:
        """Let a worker go on until it finds nothing to do; what is lost or left over by then.

        It is looked for after the first pass too, when it may still be unfinished. `file_id` was
        acknowledged: it must be there, byte for byte. One forked process does all of this.
        """
        app, settings = _app(), self.settings

        def work() -> list[str]:
            services = app.extensions["manifold"] = build(settings)
            _passed(services)
            found = self.mistakes(services.database, settled=False)
            for _ in range(PASSES):
                if not _passed(services):
                    break
            found += self.mistakes(services.database, settled=True)
            if file_id is not None:
                found += self._unreadable(app.test_client(), file_id)
            return list(dict.fromkeys(found))

        return list(self._forked(work, None).result)

    def _forked(self, work: Callable[[], Any], kill: Kill | None) -> Ended:
        reading, writing = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            _child(work, kill, writing, self.folder / "log")
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            lines = pipe.read().splitlines()
        _, status = os.waitpid(pid, 0)
        was_killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        said = [json.loads(line) for line in lines]
        points = tuple(line["point"] for line in said if "point" in line)
        if not was_killed and os.waitstatus_to_exitcode(status) != 0:
            raise AssertionError((self.folder / "log").read_text())
        result = next((line["result"] for line in said if "result" in line), None)
        return Ended(result, was_killed, points)

    # What is there

    def mistakes(self, database: Database, *, settled: bool) -> list[str]:
        """What is lost or left over, one text each. `settled`: nothing may be unfinished."""
        with database.read() as session:
            files = {file.id: file for file in session.scalars(select(File))}
            copies = list(session.scalars(select(Copy)))
            jobs = list(session.scalars(select(Job)))
        found = [*self._copies(files, copies, settled=settled), *self._jobs(jobs)]
        if settled:
            found += self._unfinished(files, copies, jobs)
            found += self._left_on_disk(files)
        return found

    def _copies(self, files: dict[str, File], copies: list[Copy], *, settled: bool) -> list[str]:
        found = []
        everywhere = self.upstream.files()
        for name, account in self.accounts.items():
            there = {each["id"]: each for each in everywhere if each["account"] == account.name}
            known = {
                copy.deployment_file_id: copy
                for copy in copies
                if copy.deployment_id in (name, f"{name}-by-provider")
            }
            # What a batch has made has no row before somebody has looked at the batch.
            made = {k for k, each in there.items() if each["purpose"] in _MADE and not settled}
            unsure = [
                copy.deployment_id
                for copy in copies
                if copy.deployment_file_id is None and copy.state in _UNFINISHED_COPIES
            ]
            for key in there.keys() - known.keys() - made:
                if not any(at in (name, f"{name}-by-provider") for at in unsure):
                    found.append(f"orphaned: {name} has {key}, and no row")
            for raw, copy in known.items():
                file = files[copy.file_id]
                if raw is None or copy.state not in ("ready", "stored") or file.state != "ready":
                    continue
                if raw not in there:
                    found.append(f"lost: {name} has no {raw}, and there is a row")
                elif file.sha256 == self.sha256 and there[raw]["sha256"] != self.sha256:
                    found.append(f"lost: {name} has other bytes as {raw}")
        return found

    def _jobs(self, jobs: list[Job]) -> list[str]:
        found = []
        everywhere = {"batch": self.upstream.batches(), "fine_tuning": self.upstream.jobs()}
        for name, account in self.accounts.items():
            for kind, all_of_it in everywhere.items():
                there = [each for each in all_of_it if each["account"] == account.name]
                rows = [job for job in jobs if job.type == kind and job.deployment_id == name]
                known = {job.upstream_id for job in rows}
                open_ones = [job for job in rows if job.upstream_id is None and job.state != "void"]
                if len({each["id"] for each in there} - known) > len(open_ones):
                    found.append(f"orphaned: {name} runs a {kind} that has no row")
                if len(there) > 1:
                    found.append(f"twice: {name} runs {len(there)} of one {kind}")
        return found

    def _unfinished(self, files: dict[str, File], copies: list[Copy], jobs: list[Job]) -> list[str]:
        found = [
            f"unfinished: file in state {file.state}"
            for file in files.values()
            if file.state not in ("ready", "deleted")
        ]
        found += [
            f"unfinished: copy at {copy.deployment_id} in state {copy.state}"
            for copy in copies
            if copy.state not in ("ready", "deleted") and files[copy.file_id].state == "ready"
        ]
        found += [f"unfinished: lease at {c.deployment_id}" for c in copies if c.lease_until]
        found += [
            f"unfinished: {job.type} in state {job.state}"
            for job in jobs
            if job.state == "intended"
        ]
        return found

    def _unreadable(self, client: FlaskClient, file_id: str) -> list[str]:
        answer = client.get(f"/v1/files/{file_id}/content", headers=OWNER)
        is_whole = answer.status_code == 200 and answer.data == self.content
        return [] if is_whole else [f"unreadable: {file_id} gives {answer.status_code}"]

    def _left_on_disk(self, files: dict[str, File]) -> list[str]:
        data = self.folder / "data"
        found = [
            f"left on disk: {path.name}" for path in data.glob("spool/*/*") if path.name != ".lock"
        ]
        kept = {path.name for path in data.glob("kept/*")}
        wanted = {file.id for file in files.values() if file.is_kept and file.state != "deleted"}
        found += [f"left on disk: content of {name}" for name in kept - wanted]
        found += [f"lost: kept content of {name}" for name in wanted - kept]
        entries = {path.stem for path in data.glob("local/*/*.json")}
        contents = {path.stem for path in data.glob("local/*/*.bin")}
        found += [f"left on disk: {name}" for name in contents - entries]
        return found


@cache
def _app() -> Flask:
    """The app of every forked gateway, but for its services.

    Most of what a gateway's start costs is its routes; they are the same in every world.
    """
    return create_app(Settings(), connect("sqlite://"), {})


def _child(work: Callable[[], Any], kill: Kill | None, writing: int, log: Path) -> None:
    """The forked process: does its work, or dies at a point; never returns."""
    status = 1
    # What the parent has made stays as it is: to look through it means to copy its memory.
    gc.freeze()
    # Neither a proxy nor a certificate of this machine has a say here.
    os.environ.clear()
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        seen: Counter[str] = Counter()

        one_at_a_time = threading.Lock()

        def reached(name: str) -> None:
            with one_at_a_time:
                seen[name] += 1
                os.write(writing, json.dumps({"point": name}).encode() + b"\n")
                if kill is not None and (name, seen[name]) == (kill.point, kill.nth):
                    os.kill(os.getpid(), signal.SIGKILL)

        faults.watch(reached)
        result = work()
        os.write(writing, json.dumps({"result": result}).encode() + b"\n")
        status = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _passed(services: Services) -> bool:
    """One pass of the worker; whether it found anything that was due."""
    _let_time_pass(services.database)
    looked = False
    for chore in (services.reconciler, services.upkeep):
        for row_id in chore.due():
            looked = chore.look(row_id) or looked
    services.sweeper.run(young_seconds=0.0)
    return looked


def _let_time_pass(database: Database) -> None:
    """As much as every lease and every pause takes."""
    past, long_ago = now() - dt.timedelta(seconds=1), now() - dt.timedelta(hours=1)
    copies, jobs = (File.metadata.tables[name] for name in ("copies", "jobs"))
    with database.write() as session:
        for name in ("lease_until", "next_look_at"):
            waits = copies.c[name].is_not(None)
            session.execute(update(copies).where(waits).values({name: past}))
        session.execute(
            update(jobs).values(next_look_at=past, lease_until=None, created_at=long_ago)
        )


def make_template(folder: Path) -> Path:
    """A migrated, empty SQLite file, to be copied for every world."""
    path = folder / "template.db"
    database = connect(f"sqlite:///{path}")
    migrate.upgrade(database)
    database.engine.dispose()
    # Everything in one file: the journal's companions are not copied.
    plain = connect(f"sqlite:///{path}")
    with plain.engine.connect() as connection:
        connection.exec_driver_sql("COMMIT")
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    plain.engine.dispose()
    # Else every forked process would do it again.
    configure_mappers()
    return path
