"""What is soaked: gateway, upstream and users; and whether both sides agree at the end."""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
from sqlalchemy import create_engine, text

from tests.e2e.gateway import Account, Gateway, Upstream, model
from tests.e2e.inside import local_files, spooled

USERS = 4
GONE = "gone.bin"
"""The name of files whose client went away before it was told."""
SETTLE_SECONDS = 300.0
"""How long a worker has for what faults and hang-ups have left: it looks several times."""


@dataclass(frozen=True)
class Kept:
    """A file that a client was told of; its content can be made again."""

    id: str
    user: int
    model: str
    """One that holds it."""
    seed: int
    size: int

    @property
    def content(self) -> bytes:
        return content_of(self.seed, self.size)


def content_of(seed: int, size: int) -> bytes:
    """The same bytes for the same seed."""
    return random.Random(seed).randbytes(size)


@dataclass
class Shelf:
    """The files that there are. Who works with one takes it: nobody else deletes it meanwhile."""

    files: dict[str, Kept] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, kept: Kept) -> None:
        with self.lock:
            self.files[kept.id] = kept

    def take(self, chance: random.Random) -> Kept | None:
        with self.lock:
            if not self.files:
                return None
            return self.files.pop(chance.choice(list(self.files)))

    @contextmanager
    def borrowed(self, chance: random.Random) -> Iterator[Kept | None]:
        """One of the files, which is back afterwards whatever happens."""
        kept = self.take(chance)
        try:
            yield kept
        finally:
            if kept is not None:
                self.put(kept)


@dataclass(frozen=True)
class User:
    """A user, his key and his client, which any thread may use."""

    name: str
    key: str
    client: openai.OpenAI


class Setting:
    """Everything that runs. `one` and `two` are models at an upstream, `disk` is the local store,
    `flaky` has the account whose faults are injected, `picky` refuses what users upload."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.upstream = stack.enter_context(Upstream(folder))
        self.accounts = {
            name: self.upstream.account(name, download_any=True) for name in ("one", "two", "flaky")
        }
        picky = self.upstream.account("picky", "azure")
        config = {
            "model_list": [
                _entry("one", "openai/gpt-4o", self.accounts["one"]),
                _entry("two", "openai/gpt-4o", self.accounts["two"]),
                _entry("flaky", "openai/gpt-4o", self.accounts["flaky"], timeout=1.5),
                _entry("picky", "azure/gpt-4o", picky),
                {
                    "model_name": "disk",
                    "litellm_params": {"model": "local/disk"},
                    "model_info": {"id": "disk"},
                },
            ],
            "general_settings": {"poll_seconds": 0.5, "poll_max_seconds": 2},
        }
        self.accounts["picky"] = picky
        self.gateway = stack.enter_context(Gateway(folder, config, workers=2, worker=True))
        self.shelf = Shelf()
        self.users = [self._user(f"soaker-{n}") for n in range(USERS)]

    def _user(self, name: str) -> User:
        key = self.gateway.new_user(user_id=name)["key"]
        return User(name, key, self.gateway.client(key))

    # What is compared at the end

    def clear_away(self) -> None:
        """Delete the files whose client went away, which nobody was told of."""
        time.sleep(2.0)  # The last of them may still be on their way.
        for user in self.users:
            for file in user.client.files.list(limit=100):
                if file.filename == GONE:
                    user.client.files.delete(file.id)

    def settle(self) -> None:
        """Wait until the worker has brought everything to its end."""
        end = time.monotonic() + SETTLE_SECONDS
        while self._unfinished() and time.monotonic() < end:
            time.sleep(1.0)

    def _unfinished(self) -> list[str]:
        found = [
            f"file {row[0]} is {row[1]}"
            for row in self._rows("SELECT id, state FROM files")
            if row[1] not in ("ready", "deleted")
        ]
        # A file that is deleted may have a copy in any state but one that still needs something.
        found += [
            f"copy at {row[0]} of a {row[2]} file is {row[1]}"
            for row in self._rows(
                "SELECT c.deployment_id, c.state, f.state FROM copies c"
                " JOIN files f ON f.id = c.file_id"
            )
            if row[1] not in ("ready", "deleted") and row[2] == "ready"
        ]
        return found

    def _rows(self, sql: str) -> list[tuple[Any, ...]]:
        engine = create_engine(f"sqlite:///{self.gateway.data_dir / 'manifold.db'}")
        try:
            with engine.connect() as connection:
                return [tuple(row) for row in connection.execute(text(sql))]
        finally:
            engine.dispose()

    def changed(self) -> list[str]:
        """Acknowledged files that cannot be read byte for byte."""
        found = []
        for kept in self.shelf.files.values():
            try:
                same = self.users[kept.user].client.files.content(kept.id).read() == kept.content
            except openai.OpenAIError as error:
                found.append(f"{kept.id}: {error}")
                continue
            if not same:
                found.append(f"{kept.id}: other bytes")
        return found

    def orphaned(self) -> list[str]:
        """What one side has and the other has not."""
        found = self._unfinished()
        rows = self._rows(
            "SELECT c.deployment_id, c.deployment_file_id FROM copies c"
            " JOIN files f ON f.id = c.file_id WHERE c.state = 'ready' AND f.state = 'ready'"
        )
        for name, account in self.accounts.items():
            there = {file["id"] for file in account.files()}
            known = {file_id for deployment, file_id in rows if deployment == name}
            found += [f"{name} has {file_id}, and no row" for file_id in there - known]
            found += [f"{name} has no {file_id}, and there is a row" for file_id in known - there]
        there, known = local_files(self.gateway), {row[1] for row in rows if row[0] == "disk"}
        found += [f"the disk has {file_id}, and no row" for file_id in there - known]
        found += [f"the disk has no {file_id}, and there is a row" for file_id in known - there]
        found += [f"left in the spool: {path}" for path in spooled(self.gateway)]
        listed = {file.id for user in self.users for file in user.client.files.list(limit=100)}
        shelf = set(self.shelf.files)
        found += [
            f"{file_id} is listed, and was deleted or never told" for file_id in listed - shelf
        ]
        found += [f"{file_id} is not listed" for file_id in shelf - listed]
        return found


def _entry(name: str, upstream_model: str, account: Account, **more: Any) -> dict[str, Any]:
    return {
        **model(name, upstream_model, account, max_retries=0, **more),
        "model_info": {"id": account.name},
    }
