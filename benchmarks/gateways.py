"""What is measured: each gateway as its own command starts it, and how it wants to be asked."""

import base64
import hashlib
import json
import shutil
import sqlite3
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qsl

import yaml

from benchmarks import content, peers
from benchmarks.client import Connection
from benchmarks.load import FailedError, Target, client
from benchmarks.processes import ROOT, Tree, Upstream, environment, free_port

TARGETS = 4
"""How many accounts there are, each behind a model `target-N` and, for checks, `checked-N`."""
WORKERS = 2
THREADS = 128
"""Of Manifold and of the bare relay: 200 streams need a thread each, however they are spread."""
FILE_KB = 1
MASTER_KEY = "sk-benchmark-master-0123456789abcdef"
ACCOUNT_KEY = "sk-account"
CHECKED_KEY = "sk-account-checked"
ROWS_TARGETS = 3
"""How many accounts are behind the model `rows`."""
_BOUNDARY = "a-boundary-of-the-benchmark"


@dataclass(frozen=True)
class Form:
    """An upload as it goes over the wire: what stands before the content and what behind it."""

    port: int
    head: str
    tail: str
    size: int
    path: str = ""
    """A file with the content, when it is not the usual one."""

    @property
    def request(self) -> bytes:
        """All of it, for small ones."""
        return b"".join((self.head.encode(), *content.pieces(self.size), self.tail.encode()))


@dataclass
class Setting:
    """What all gateways share: a folder, the upstream, and how many rows there are to be."""

    folder: Path
    upstream: Upstream
    manifold: Path = field(default_factory=lambda: Path(sys.executable).with_name("manifold"))
    keys: int = 500_000
    deep: int = 10_000
    """How many files are before the deep page."""


class Gateway:
    """One that is measured. What it cannot do is not in `can`."""

    name: ClassVar[str]
    label: ClassVar[str]
    can: ClassVar[frozenset[str]] = frozenset()
    ready_path: ClassVar[str] = "/"
    prefix: ClassVar[str] = ""
    most_targets: ClassVar[int] = TARGETS
    model: ClassVar[str] = "target-1"
    is_slow: ClassVar[bool] = False
    """Whether a quick run leaves it out of long works, for which there is no bar about it."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.folder = setting.folder / self.name
        self.folder.mkdir(exist_ok=True)
        self.port = 0
        self.tree: Tree | None = None
        self.file_id = ""
        self.started_seconds: list[float] = []

    @classmethod
    def missing(cls) -> str:
        """Why it cannot be measured here; empty when it can."""
        return ""

    def start(self) -> float:
        """Start it; seconds to the first answer 200."""
        self.launch()
        return self.wait_ready()

    def launch(self) -> None:
        """Start it and wait for nothing."""
        self.port = free_port()
        self.tree = Tree(self.name, self.command(), self.folder, env=self.environment())

    def wait_ready(self) -> float:
        """Seconds from the start to the first answer 200. Raises RuntimeError with the log."""
        assert self.tree is not None  # noqa: S101  # it was launched
        return self.tree.wait_ready(self.port, self.ready_path)

    def stop(self) -> None:
        """End it in good order, so that another can start on the same data."""
        if self.tree is not None:
            self.tree.stop()
            self.tree = None

    def kill(self) -> None:
        """End it at once, for what it leaves is of no more use."""
        if self.tree is not None:
            self.tree.kill()
            self.tree = None

    def prepare(self) -> None:
        """Make what the works need: a small file."""
        self.file_id = self.store(self.forms(FILE_KB * 1024, 1)[0])

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return environment()

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {MASTER_KEY}"}

    def fields(self, targets: int, *, checked: bool) -> dict[str, str]:
        """The form fields that name the targets."""
        return {}

    def query(self, targets: int) -> str:
        return ""

    # Requests

    def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Target:
        """A request as it goes over the wire."""
        head = _head(
            method, f"{self.prefix}/v1{path}", {**self.headers(), **(headers or {})}, len(body)
        )
        return Target(self.port, head.encode() + body)

    def file(self) -> Target:
        return self.request("GET", f"/files/{self.file_id}")

    def page(self) -> Target:
        return self.request("GET", "/files?limit=20")

    def content(self, file_id: str) -> Target:
        return self.request("GET", f"/files/{file_id}/content")

    def chat(self, *, stream: bool = False, steps: int = 0) -> Target:
        """A chat with a file id, plain, as a stream, or as one that takes its time."""
        question = "What is in this file?" + (
            f" Tell me slowly, in {steps} steps." if steps else ""
        )
        parts: list[dict[str, Any]] = [
            {"type": "text", "text": question},
            {"type": "file", "file": {"file_id": self.file_id}},
        ]
        asked = {
            "model": self.model,
            "messages": [{"role": "user", "content": parts}],
            "stream": stream,
        }
        headers = {"Content-Type": "application/json"}
        return self.request("POST", "/chat/completions", json.dumps(asked).encode(), headers)

    def forms(
        self,
        size: int,
        targets: int,
        *,
        checked: bool = False,
        purpose: str = "user_data",
        fields: Mapping[str, str] | None = None,
        path: str = "",
    ) -> list[Form]:
        """The uploads that bring a file to so many targets."""
        chosen = self.fields(targets, checked=checked) if fields is None else fields
        name = "measured.jsonl" if purpose == "batch" else "measured.bin"
        head, tail = _multipart({"purpose": purpose, **chosen}, name)
        headers = {
            **self.form_headers(checked=checked),
            "Content-Type": f"multipart/form-data; boundary={_BOUNDARY}",
        }
        length = len(head) + size + len(tail)
        at = f"{self.prefix}/v1/files{self.query(targets)}"
        return [Form(self.port, _head("POST", at, headers, length) + head, tail, size, path)]

    def calls(self, path: str, targets: int) -> list[dict[str, Any]]:
        """The uploads that bring the file at `path` to so many targets, for the usual client."""
        call = {
            "base_url": f"http://127.0.0.1:{self.port}{self.prefix}/v1",
            "headers": self.form_headers(checked=False),
            "query": dict(parse_qsl(self.query(targets).removeprefix("?"))),
            "fields": self.fields(targets, checked=False),
            "path": path,
        }
        return [call]

    def form_headers(self, *, checked: bool) -> dict[str, str]:
        return self.headers()

    def store(self, form: Form) -> str:
        """Upload a file by itself; its id. Raises FailedError."""
        with Connection(form.port) as connection:
            status, body = connection.ask(form.request)
        if status != 200:
            raise FailedError(f"{self.name}: an upload was answered with {status}: {body[:300]!r}")
        return str(json.loads(body)["id"])

    def store_large(self, size: int) -> str:
        """Upload a large file; its id. Raises FailedError."""
        [form] = self.forms(size, 1)
        seen = client("upload", forms=[vars(form)])
        if seen["failures"]:
            raise FailedError(f"{self.name}: an upload failed: {seen['first_failure']}")
        return str(seen["answers"][0]["id"])


def _head(method: str, path: str, headers: Mapping[str, str], length: int) -> str:
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if length or method == "POST":
        lines.append(f"Content-Length: {length}")
    return "\r\n".join(lines) + "\r\n\r\n"


def _multipart(fields: Mapping[str, str], name: str) -> tuple[str, str]:
    opening = "".join(
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"\r\n\r\n{value}\r\n'
        for field, value in fields.items()
    )
    disposition = f'Content-Disposition: form-data; name="file"; filename="{name}"'
    kind = "Content-Type: application/octet-stream"
    head = f"{opening}--{_BOUNDARY}\r\n{disposition}\r\n{kind}\r\n\r\n"
    return head, f"\r\n--{_BOUNDARY}--\r\n"


ALL = frozenset({"file", "list", "chat", "stream", "upload", "large", "download", "start"})


class Direct(Gateway):
    """The upstream, asked by the client itself; to several targets, by as many uploads at once."""

    name = "direct"
    label = "upstream directly"
    can = ALL - {"start"}

    def launch(self) -> None:
        self.port = self.setting.upstream.port
        self.tree = self.setting.upstream.tree

    def wait_ready(self) -> float:
        return 0.0

    def stop(self) -> None:
        self.tree = None

    def kill(self) -> None:
        self.tree = None

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {ACCOUNT_KEY}"}

    def form_headers(self, *, checked: bool) -> dict[str, str]:
        return {"Authorization": f"Bearer {CHECKED_KEY if checked else ACCOUNT_KEY}"}

    def forms(self, size: int, targets: int, **asked: Any) -> list[Form]:
        return super().forms(size, targets, **asked) * targets

    def calls(self, path: str, targets: int) -> list[dict[str, Any]]:
        return super().calls(path, targets) * targets


class Manifold(Gateway):
    """Manifold as `manifold serve` runs it, asked with the key of a user who owns the file."""

    name = "manifold"
    label = "Manifold"
    can = ALL | {"batch", "deep", "keys"}
    ready_path = "/health/readiness"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.key = ""
        self.deep_key = ""
        self.deep_id = ""
        self.secrets: list[str] = []
        self._config = self.folder / "config.yaml"
        self._config.write_text(yaml.safe_dump(self.config(), sort_keys=False))

    def config(self) -> dict[str, Any]:
        base = self.setting.upstream.base
        return {
            "model_list": [
                *_models(base),
                # One public name for three accounts, each with its own name for the model.
                *(_model("rows", f"gpt-4o-{n}", base, CHECKED_KEY) for n in range(ROWS_TARGETS)),
            ],
            "general_settings": {"data_dir": str(self.data_dir), "master_key": MASTER_KEY},
        }

    @property
    def data_dir(self) -> Path:
        return self.folder / "data"

    def command(self) -> list[str]:
        serve = [str(self.setting.manifold), "serve", "--config", str(self._config)]
        sizes = ["--workers", str(WORKERS), "--threads", str(THREADS)]
        return [*serve, "--port", str(self.port), *sizes]

    def environment(self) -> dict[str, str]:
        # Whichever Manifold was asked for brings its own modules.
        found = environment()
        del found["PYTHONPATH"]
        return found

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key or MASTER_KEY}"}

    def fields(self, targets: int, *, checked: bool) -> dict[str, str]:
        kind = "checked" if checked else "target"
        names = ",".join(f"{kind}-{n}" for n in range(1, targets + 1))
        return {"target_model_names": names}

    def prepare(self) -> None:
        self.key = self.new_user("owner")
        self.secrets = [self.new_user(f"user-{n}") for n in range(9)] + [self.key]
        super().prepare()

    def new_user(self, user_id: str) -> str:
        """The secret of a new user's key."""
        body = json.dumps({"user_id": user_id}).encode()
        headers = {"Authorization": f"Bearer {MASTER_KEY}", "Content-Type": "application/json"}
        head = _head("POST", "/user/new", headers, len(body))
        with Connection(self.port) as connection:
            status, answer = connection.ask(head.encode() + body)
        if status != 200:
            raise FailedError(f"{self.name}: no user: {status} {answer[:300]!r}")
        return str(json.loads(answer)["key"])

    def database(self) -> sqlite3.Connection:
        """Its database, for rows by the hundred thousand."""
        return sqlite3.connect(self.data_dir / "manifold.db", timeout=60)

    def fill_list(self) -> None:
        """Give a user of his own so many files that one page is deep, by copying rows."""
        self.deep_key = self.new_user("collector")
        with self.database() as database:
            columns = [row[1] for row in database.execute("PRAGMA table_info(files)")]
            database.row_factory = sqlite3.Row
            query = "SELECT * FROM files WHERE owner = 'user:owner' LIMIT 1"
            template = dict(database.execute(query).fetchone())
            marks = ", ".join("?" for _ in columns)
            rows = []
            for n in range(self.setting.deep + 40):
                file_uuid = str(uuid.UUID(int=(1 << 120) + n, version=4))
                named = f"litellm_proxy:application/octet-stream;unified_id,{file_uuid}"
                text = f"{named};target_model_names,target-1"
                public = base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")
                if n == 20:
                    self.deep_id = public
                # Later files stand first, so this one is behind all but twenty.
                moment = f"2026-01-01 {n // 3600:02}:{n // 60 % 60:02}:{n % 60:02}.000000"
                row = {**template, "id": file_uuid, "public_id": public, "owner": "user:collector"}
                row |= {"created_at": moment, "updated_at": moment}
                rows.append([row[column] for column in columns])
            database.executemany(f"INSERT INTO files VALUES ({marks})", rows)  # noqa: S608
        database.close()

    def fill_keys(self, number: int) -> list[str]:
        """Add so many users' keys, ten for each user; the secrets of a thousand of them."""

        def digest(n: int) -> str:
            return hashlib.sha256(_secret(n).encode()).hexdigest()

        database = self.database()
        database.row_factory = sqlite3.Row
        user = dict(database.execute("SELECT * FROM users WHERE user_id = 'owner'").fetchone())
        key = dict(database.execute("SELECT * FROM keys WHERE user_id = 'owner'").fetchone())
        users = (
            {**user, "user_id": f"many-{n}", "id_folded": f"many-{n}"} for n in range(number // 10)
        )
        keys = (
            {
                **key,
                "id": str(uuid.UUID(int=(1 << 120) + n, version=4)),
                "token": digest(n),
                "user_id": f"many-{n // 10}",
                "owner": f"user:many-{n // 10}",
            }
            for n in range(number // 10 * 10)
        )
        for table, columns, rows in (("users", list(user), users), ("keys", list(key), keys)):
            marks = ", ".join(f":{column}" for column in columns)
            named = ", ".join(columns)
            with database:
                database.executemany(
                    f"INSERT INTO {table} ({named}) VALUES ({marks})",  # noqa: S608
                    rows,
                )
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        database.close()
        return [_secret(n) for n in range(0, number // 10 * 10, max(1, number // 1000))]


def _secret(n: int) -> str:
    return f"sk-of-the-benchmark-and-of-no-use-{n:08}"


class Bare(Gateway):
    """Flask, gunicorn and requests with one look-up in SQLite and no rule at all."""

    name = "bare"
    label = "bare Flask relay"
    can = ALL
    ready_path = "/ready"

    def command(self) -> list[str]:
        run = [sys.executable, "-m", "gunicorn", "--worker-class", "gthread", "--reuse-port"]
        sizes = ["--workers", str(WORKERS), "--threads", str(THREADS), "--keep-alive", "75"]
        at = ["--bind", f"127.0.0.1:{self.port}", "--no-control-socket", "--log-level", "warning"]
        return [*run, *sizes, *at, "benchmarks.bare:app"]

    @property
    def _database(self) -> Path:
        # The one that relays and the one that does not share it.
        return self.setting.folder / "bare.db"

    def environment(self) -> dict[str, str]:
        base = self.setting.upstream.base
        return environment(BARE_DATABASE=str(self._database), BARE_UPSTREAM=base)

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {ACCOUNT_KEY}"}

    def form_headers(self, *, checked: bool) -> dict[str, str]:
        return {"Authorization": f"Bearer {CHECKED_KEY if checked else ACCOUNT_KEY}"}

    def query(self, targets: int) -> str:
        return f"?targets={targets}"

    def prepare(self) -> None:
        super().prepare()
        self.know(self.file_id)
        for n in range(20):
            self.know(f"file-of-a-page-{n}")

    def know(self, file_id: str) -> None:
        """Make a row of an upload, which the relay does not do."""
        with sqlite3.connect(self._database) as database:
            database.execute(
                "CREATE TABLE IF NOT EXISTS files (id TEXT PRIMARY KEY, upstream_id TEXT,"
                " bytes INTEGER, filename TEXT, created_at INTEGER)"
            )
            row = (file_id, file_id, FILE_KB * 1024, "measured.bin", 1_760_000_000)
            database.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", row)
        database.close()

    def store_large(self, size: int) -> str:
        stored = super().store_large(size)
        self.know(stored)
        return stored


class BareSqlite(Bare):
    """The same application, which answers from SQLite and asks nobody."""

    name = "bare-sqlite"
    label = "bare Flask from SQLite"
    can = frozenset({"file", "list"})
    prefix = "/sqlite"

    def prepare(self) -> None:
        self.file_id = "file-of-a-page-0"
        for n in range(20):
            self.know(f"file-of-a-page-{n}")


class BareStored(Bare):
    """The same application, which relays small uploads between two commits on its disk."""

    name = "bare-stored"
    label = "bare relay, two commits"
    can = frozenset({"upload"})
    most_targets = 1
    prefix = "/stored"

    @property
    def _database(self) -> Path:
        return self.folder / "stored.db"

    def prepare(self) -> None:
        with sqlite3.connect(self._database) as database:
            # As SQLite keeps a commit through a loss of power, and readers from waiting for it.
            database.execute("PRAGMA journal_mode=WAL")
            database.execute(
                "CREATE TABLE IF NOT EXISTS stored (id TEXT PRIMARY KEY, upstream_id TEXT)"
            )
        database.close()


class LiteLLM(Gateway):
    """LiteLLM Proxy without a database: the account is in the file's id."""

    name = "litellm"
    label = "LiteLLM, encoded id"
    can = ALL
    most_targets = 1
    is_slow = True
    ready_path = "/health/liveliness"

    @classmethod
    def missing(cls) -> str:
        return "" if peers.LITELLM.exists() else "LiteLLM is not installed (benchmarks.peers)"

    def launch(self) -> None:
        config = {
            "model_list": _models(self.setting.upstream.base),
            "general_settings": {"master_key": MASTER_KEY},
            "litellm_settings": {"telemetry": False},
        }
        (self.folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        super().launch()

    def executable(self) -> list[str]:
        return [str(peers.LITELLM)]

    def command(self) -> list[str]:
        at = ["--host", "127.0.0.1", "--port", str(self.port)]
        return [*self.executable(), "--config", str(self.folder / "config.yaml"), *at]

    def environment(self) -> dict[str, str]:
        # Its table of prices would be fetched from the network at each start.
        return environment(LITELLM_LOCAL_MODEL_COST_MAP="True", LITELLM_LOG="ERROR")

    def fields(self, targets: int, *, checked: bool) -> dict[str, str]:
        return {"model": "checked-1" if checked else "target-1"}

    def page(self) -> Target:
        return self.request("GET", "/files?limit=20", headers={"x-litellm-model": "target-1"})


class LiteLLMManaged(LiteLLM):
    """LiteLLM Proxy with managed files, its database replaced by a table in memory."""

    name = "litellm-managed"
    label = "LiteLLM, managed"
    can = ALL - {"start", "download"}
    most_targets = TARGETS

    def executable(self) -> list[str]:
        return [str(peers.LITELLM.with_name("python")), str(ROOT / "benchmarks/litellm_managed.py")]

    def fields(self, targets: int, *, checked: bool) -> dict[str, str]:
        kind = "checked" if checked else "target"
        names = ",".join(f"{kind}-{n}" for n in range(1, targets + 1))
        return {"target_model_names": names}

    def page(self) -> Target:
        return self.request("GET", "/files?limit=20")

    def prepare(self) -> None:
        for _ in range(20):
            super().prepare()


class Portkey(Gateway):
    """Portkey's gateway: Node, no database, no ownership; the request says where it is to go."""

    name = "portkey"
    label = "Portkey"
    can = ALL
    most_targets = 1

    @classmethod
    def missing(cls) -> str:
        if shutil.which("node") is None:
            return "Portkey's gateway needs Node.js"
        found = peers.PORTKEY.exists()
        return "" if found else "Portkey is not installed (benchmarks.peers)"

    def command(self) -> list[str]:
        # `--headless`: without its console.
        return ["node", str(peers.PORTKEY), f"--port={self.port}", "--headless"]

    def environment(self) -> dict[str, str]:
        return environment(NODE_ENV="production", TRUSTED_CUSTOM_HOSTS="127.0.0.1,localhost")

    def headers(self) -> dict[str, str]:
        return self.form_headers(checked=False)

    def form_headers(self, *, checked: bool) -> dict[str, str]:
        return {
            "Authorization": f"Bearer {CHECKED_KEY if checked else ACCOUNT_KEY}",
            "x-portkey-provider": "openai",
            "x-portkey-custom-host": self.setting.upstream.base,
        }


GATEWAYS: tuple[type[Gateway], ...] = (
    Direct,
    Manifold,
    Bare,
    BareSqlite,
    BareStored,
    LiteLLM,
    LiteLLMManaged,
    Portkey,
)


def _models(base: str) -> list[dict[str, Any]]:
    numbers = range(1, TARGETS + 1)
    return [
        *(_model(f"target-{n}", "gpt-4o", base) for n in numbers),
        *(_model(f"checked-{n}", "gpt-4o", base, CHECKED_KEY) for n in numbers),
    ]


def _model(name: str, upstream_model: str, base: str, key: str = ACCOUNT_KEY) -> dict[str, Any]:
    return {
        "model_name": name,
        "litellm_params": {"model": f"openai/{upstream_model}", "api_base": base, "api_key": key},
    }
