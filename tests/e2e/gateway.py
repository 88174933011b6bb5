"""The processes of the end-to-end tests: the fake upstream, the gateway, their clients."""

import contextlib
import errno
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Self, TypeVar

import openai
import psutil
import requests
import trustme
import yaml

from app.db import migrate
from app.db.engine import connect

ROOT = Path(__file__).resolve().parents[2]
MASTER_KEY = "sk-test-master-0123456789"
API_VERSION = "2024-10-21"

T = TypeVar("T")
GUNICORN = (sys.executable, "-m", "gunicorn")
MANIFOLD = str(Path(sys.executable).with_name("manifold"))

RUNNING: "list[Server]" = []
"""Every process that is up; the hook in conftest.py shows their logs when a test fails."""


def wait_until(condition: Callable[[], T], timeout: float = 60.0, pause: float = 0.02) -> T:
    """The first true answer of `condition`; AssertionError when there is none in time."""
    end = time.monotonic() + timeout
    while not (answer := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"did not come true within {timeout} s: {condition}")
        time.sleep(pause)
    return answer


class Peak:
    """The most memory that a process tree had at once; bytes."""

    def __init__(self, before: int) -> None:
        self.before = before
        self.bytes = before

    @property
    def growth(self) -> int:
        """How much more that was than at the start."""
        return self.bytes - self.before


class Server:
    """One process tree of ours, with its output in files. Its address is known before it starts."""

    stop_signal = signal.SIGTERM

    def __init__(self, name: str, log_dir: Path) -> None:
        self.name = name
        self.log_dir = log_dir
        self.url = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._address: tuple[str, int] | None = None
        self._api = requests.Session()
        # Neither a proxy nor a .netrc of this machine has a say here.
        self._api.trust_env = False

    # A new socket is bound to a free port and passed on: nobody waits for or guesses a port.
    def _listen(self, scheme: str = "http") -> socket.socket:
        def bound() -> socket.socket | None:
            try:
                return socket.create_server(self._address or ("127.0.0.1", 0), backlog=1024)
            except OSError as error:
                # The last threads of a tree that was killed hold the address a moment longer.
                if error.errno != errno.EADDRINUSE:
                    raise
                return None

        listening = wait_until(bound)
        assert listening is not None
        # Connections that come before gunicorn is up inherit this; without it each answer of
        # theirs takes 40 ms, for the kernel waits with the second half.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._address = listening.getsockname()
        self.url = f"{scheme}://127.0.0.1:{listening.getsockname()[1]}"
        return listening

    def _spawn(
        self, command: Sequence[str], env: Mapping[str, str], listening: socket.socket | None
    ) -> None:
        fds = (listening.fileno(),) if listening else ()
        with self._log("stdout").open("ab") as out, self._log("stderr").open("ab") as err:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                pass_fds=fds,
                start_new_session=True,
            )
        RUNNING.append(self)

    def _wait_ready(self, path: str, timeout: float) -> None:
        end = time.monotonic() + timeout
        while True:
            if not self.running:
                code = self.stop()
                raise RuntimeError(f"{self.name} ended with {code}\n{self.log_text()}")
            answer = "no answer"
            with contextlib.suppress(requests.RequestException):
                response = self._api.get(self.url + path, timeout=5)
                if response.status_code == 200:
                    return
                answer = f"{response.status_code} {response.text}"
            if time.monotonic() > end:
                self.kill()
                raise RuntimeError(f"{self.name} is not ready: {answer}\n{self.log_text()}")
            time.sleep(0.05)

    def _log(self, stream: str) -> Path:
        return self.log_dir / f"{self.name}.{stream}"

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def log_text(self) -> str:
        """Everything the processes have printed so far, stdout first."""
        texts = []
        for stream in ("stdout", "stderr"):
            log = self._log(stream)
            if log.exists() and (text := log.read_text(errors="replace")):
                texts.append(f"--- {self.name} {stream}\n{text}")
        return "\n".join(texts)

    def processes(self) -> list[psutil.Process]:
        """The process and all its descendants."""
        if not self.running:
            return []
        try:
            top = psutil.Process(self.pid)
            return [top, *top.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def rss_bytes(self) -> int:
        """Resident memory of the whole tree; pages that are shared count in each process."""
        total = 0
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total

    @contextlib.contextmanager
    def peak_memory(self, every_s: float = 0.02) -> Iterator[Peak]:
        """Watches `rss_bytes` for as long as the block runs."""
        peak, over = Peak(self.rss_bytes()), threading.Event()

        def watch() -> None:
            while not over.wait(every_s):
                peak.bytes = max(peak.bytes, self.rss_bytes())

        watching = threading.Thread(target=watch, daemon=True)
        watching.start()
        try:
            yield peak
        finally:
            over.set()
            watching.join()
            peak.bytes = max(peak.bytes, self.rss_bytes())

    def stop(self, timeout: float = 30.0) -> int:
        """Ask it to end and wait; the exit code. One that does not end in time is killed."""
        process = self._process
        assert process is not None, f"{self.name} was not started"
        # An idle connection of ours would be waited for; one that is in use stays open.
        self._api.close()
        if process.poll() is None:
            process.send_signal(self.stop_signal)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            return self.kill()
        self._ended()
        return process.returncode

    def kill(self) -> int:
        """End the whole tree at once (SIGKILL), as a crash does; the exit code."""
        process = self._process
        assert process is not None, f"{self.name} was not started"
        if process.poll() is None:
            tree = self.processes()
            # The tree has a process group of its own, made by us.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            wait_until(lambda: not any(_alive(each) for each in tree))
            # A thread that waits for the disk dies later, and keeps the address open until then:
            # whoever connects would wait with it.
            wait_until(self._refuses)
        self._ended()
        return process.returncode

    def _refuses(self) -> bool:
        """Whether nobody listens at the address, if it has one."""
        if self._address is None:
            return True
        with socket.socket() as probe:
            return probe.connect_ex(self._address) != 0

    def _ended(self) -> None:
        self._api.close()
        if self in RUNNING:
            RUNNING.remove(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    ours = ("MANIFOLD_", "LITELLM_", "OPENAI_", "AZURE_", "FAKE_UPSTREAM_")
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(ours)
        and name != "DATABASE_URL"
        and not name.lower().endswith("_proxy")
        and not name.startswith("PYTEST_")
        # Or each of some hundred processes compiles all modules anew, a third of its start.
        and name != "PYTHONDONTWRITEBYTECODE"
    }
    return {**env, "PYTHONUNBUFFERED": "1", **(extra or {})}


# -------------------------------------------------------------------- the fake upstream


def secure_upstream_in(directory: Path) -> "Upstream":
    """A fake upstream that speaks TLS; nobody trusts its certificate but who trusts its `ca`."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost")
    key, chain, ca = (directory / name for name in ("key.pem", "chain.pem", "ca.pem"))
    issued.private_key_pem.write_to_path(str(key))
    for pem in issued.cert_chain_pems:
        pem.write_to_path(str(chain), append=True)
    authority.cert_pem.write_to_path(str(ca))
    return Upstream(directory, name="secure-upstream", certificate=(chain, key), ca=ca)


@dataclass(frozen=True)
class Seen:
    """One request as the fake upstream remembers it."""

    n: int
    method: str
    path: str
    """As it stood on the wire, without the query."""
    query: dict[str, str]
    query_string: str
    headers: dict[str, str]
    """Names in lower case."""
    account: str | None
    connection: int
    """The client's port: the same for requests of one connection."""
    fields: list[tuple[str, str | None]]
    """The parts of a form in their order; a file has no value here."""
    form: dict[str, str]
    file: dict[str, Any] | None
    """`field`, `filename`, `content_type`, `size`, `sha256` of the file part."""
    json: Any
    text: str | None
    """The raw body, unless it was multipart."""
    body_size: int
    status: int | None
    t_start: float
    t_end: float | None
    """When the last byte was sent (wall clock); None while there is no answer."""
    m_start: float
    m_end: float | None
    """The same on the monotonic clock, which all processes of the machine share."""
    done: bool
    hung_up: bool
    """Whether the client went away before it had everything."""
    fault: bool
    unexpected: bool
    """Whether no provider has such a path."""

    def overlaps(self, other: "Seen") -> bool:
        """Whether both were being served at the same moment."""
        end, other_end = self.m_end or float("inf"), other.m_end or float("inf")
        return self.m_start < other_end and other.m_start < end


@dataclass(frozen=True)
class Account:
    """One account of the fake upstream: its configuration and contents."""

    upstream: "Upstream"
    name: str
    kind: str
    key: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def api_base(self) -> str:
        """What belongs in `litellm_params.api_base`."""
        suffix = {"openai": "/v1", "engine": "/engine/v1"}.get(self.kind, "")
        return self.upstream.url + suffix

    @property
    def params(self) -> dict[str, Any]:
        """`litellm_params` without the model: address, key, and Azure's version."""
        version = {"api_version": API_VERSION} if self.kind == "azure" else {}
        return {"api_base": self.api_base, "api_key": self.key, **version}

    @property
    def entra_params(self) -> dict[str, Any]:
        """Azure's `litellm_params` by client credentials; only against `secure_upstream`."""
        names = ("tenant_id", "client_id", "client_secret")
        return {
            "api_base": self.api_base,
            "api_version": API_VERSION,
            "azure_authority_host": self.upstream.url,
            **{name: self.options[name] for name in names},
        }

    def requests(self, path_prefix: str = "", method: str | None = None) -> list[Seen]:
        return self.upstream.requests(self.name, path_prefix, method)

    def uploads(self) -> list[Seen]:
        """The uploads it was sent, failed ones too, in order."""
        return [r for r in self.requests(method="POST") if r.path.endswith("/files")]

    def files(self) -> list[dict[str, Any]]:
        return self.upstream.files(self.name)

    def batches(self) -> list[dict[str, Any]]:
        return self.upstream.batches(self.name)

    def jobs(self) -> list[dict[str, Any]]:
        return self.upstream.jobs(self.name)

    def fail(self, **action: Any) -> int:
        return self.upstream.fail(self.name, **action)

    @contextlib.contextmanager
    def changed(self, **options: Any) -> Iterator[None]:
        """Other options for as long as the block runs, such as `upload_delay_s=0.3`."""
        before = self.upstream.control("PATCH", "/accounts", {"name": self.name, **options})
        try:
            yield
        finally:
            self.upstream.control("PATCH", "/accounts", {"name": self.name, **before})


class Upstream(Server):
    """The fake upstream as a process of its own, and its control API.

    `certificate` is a pair of PEM files (certificate, key): then it speaks TLS, and `ca` is what
    its clients must trust.
    """

    stop_signal = signal.SIGQUIT  # Nobody's transfer is worth waiting for here.

    def __init__(
        self,
        log_dir: Path,
        *,
        name: str = "upstream",
        certificate: tuple[Path, Path] | None = None,
        ca: Path | None = None,
    ) -> None:
        super().__init__(name, log_dir)
        self.ca = ca
        self._has_faults = False
        self._api.verify = str(ca) if ca else True
        tls = []
        if certificate:
            tls = ["--certfile", str(certificate[0]), "--keyfile", str(certificate[1])]
        files = log_dir / f"{name}-files"
        files.mkdir(parents=True, exist_ok=True)
        with self._listen("https" if certificate else "http") as listening:
            self._spawn(
                [
                    *(*GUNICORN, "--bind", f"fd://{listening.fileno()}", "--no-control-socket"),
                    *("--worker-class", "gthread", "--workers", "1", "--threads", "256"),
                    *("--worker-connections", "2000", "--keep-alive", "75"),
                    *("--timeout", "0", "--graceful-timeout", "1", "--log-level", "warning"),
                    *tls,
                    "tests.e2e.upstream:create()",
                ],
                _environment({"FAKE_UPSTREAM_DIR": str(files)}),
                listening,
            )
        self._wait_ready("/_control/accounts", 60)

    def control(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """One call of the control API; AssertionError when it finds a mistake."""
        response = self._api.request(method, f"{self.url}/_control{path}", json=body, timeout=10)
        assert response.status_code == 200, response.text
        return response.json()

    def account(
        self, name: str, kind: str = "openai", *, key: str | None = None, **options: Any
    ) -> Account:
        """A new, empty account; one of the same name is gone. Options: upstream.Account."""
        key = f"sk-{name}-{secrets.token_urlsafe(16)}" if key is None else key
        self.control("POST", "/accounts", {"name": name, "kind": kind, "key": key, **options})
        return Account(self, name, kind, key, options)

    def requests(
        self, account: str | None = None, path_prefix: str = "", method: str | None = None
    ) -> list[Seen]:
        """What was asked of it since the last reset, in the order of arrival."""
        query = f"?account={account}" if account else ""
        seen = [Seen(**record) for record in self.control("GET", f"/requests{query}")]
        return [r for r in seen if r.path.startswith(path_prefix) and method in (None, r.method)]

    def unexpected(self) -> list[Seen]:
        """Requests for paths that the provider does not have."""
        return [r for r in self.requests() if r.unexpected]

    def forget_requests(self) -> None:
        self.control("DELETE", "/requests")

    def files(self, account: str | None = None) -> list[dict[str, Any]]:
        """What is stored now: `id`, `account`, `filename`, `size`, `sha256`, `purpose`, ..."""
        return list(self.control("GET", f"/files?account={account}" if account else "/files"))

    def batches(self, account: str | None = None) -> list[dict[str, Any]]:
        """OpenAI's object of each batch, oldest first, with `account`, `sent` and `polls`."""
        return list(self.control("GET", f"/batches?account={account}" if account else "/batches"))

    def jobs(self, account: str | None = None) -> list[dict[str, Any]]:
        """The same of the fine-tuning jobs; `status` in OpenAI's words."""
        return list(self.control("GET", f"/jobs?account={account}" if account else "/jobs"))

    def fail(
        self,
        account: str | None = None,
        *,
        method: str | None = None,
        path_prefix: str | None = None,
        path_regex: str | None = None,
        times: int | None = None,
        skip: int = 0,
        **action: Any,
    ) -> int:
        """Make matching requests fail: the first `skip` pass, then `times` fail (None: all).

        Action, singly or together: `status`, `body` (JSON or text), `headers`; `delay_s`;
        `close="before_body" | "mid_body" | "mid_request"` with `after_bytes`; `hang=True |
        "mid_body"`; `early=True` answers `status` before the body is read; `handle=True` does what
        was asked before it fails (the file is stored, its answer lost); `trickle_s` pauses between
        any 16 bytes of the answer; `content_length` says so many bytes more than there are.
        """
        match = {"method": method, "path_prefix": path_prefix, "path_regex": path_regex}
        body = {
            "account": account,
            "match": {name: value for name, value in match.items() if value is not None},
            "action": action,
            "times": times,
            "skip": skip,
        }
        self._has_faults = True
        return int(self.control("POST", "/faults", body)["id"])

    def hits(self, *faults: int) -> int:
        """How many requests have failed by these."""
        known = self.control("GET", "/faults")
        return sum(int(fault["hits"]) for fault in known if fault["id"] in faults)

    def clear_faults(self) -> None:
        """No more faults; who is being kept waiting goes on."""
        if self._has_faults:
            self._has_faults = False
            self.control("DELETE", "/faults")

    def expire_tokens(self) -> None:
        """Every Entra token handed out so far is refused from now on."""
        self.control("DELETE", "/tokens")

    def reset(self, accounts: bool = False) -> None:
        """Forget requests, faults, files, batches and jobs; accounts too, if wanted."""
        self.control("POST", "/reset", {"accounts": accounts})

    def wait_for_requests(self, number: int, timeout: float = 20.0, **which: Any) -> list[Seen]:
        """At least so many requests, once they have arrived."""

        def arrived() -> list[Seen]:
            seen = self.requests(**which)
            return seen if len(seen) >= number else []

        return wait_until(arrived, timeout)


# -------------------------------------------------------------------- the gateway


@cache
def _migrated() -> bytes:
    """A SQLite file with all tables: migrating one takes a fifth of a gateway's start."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "manifold.db"
        database = connect(f"sqlite:///{path}")
        migrate.upgrade(database)
        database.engine.dispose()
        return path.read_bytes()


class Gateway(Server):
    """The real gateway: gunicorn with its own settings, on a config.yaml made from `config`.

    It is up when this returns. `start` starts it again on the same address, with the same data,
    after `stop` or `kill`. `worker` adds the background worker, as `manifold worker`. One that is
    `new` makes the tables of its SQLite file itself; others find them there.
    """

    def __init__(
        self,
        tmp_path: Path,
        config: Mapping[str, Any],
        *,
        workers: int = 2,
        threads: int = 16,
        env: Mapping[str, str] | None = None,
        database_url: str | None = None,
        arguments: Sequence[str] = (),
        worker: bool = False,
        new: bool = False,
        name: str = "gateway",
        ready_timeout: float = 60.0,
    ) -> None:
        super().__init__(name, tmp_path)
        self.master_key = MASTER_KEY
        self.data_dir = tmp_path / "data"
        self.config_path = tmp_path / "config.yaml"
        self.env = dict(env or {})
        self._arguments = ["--workers", str(workers), "--threads", str(threads), *arguments]
        self._with_worker = worker
        self._ready_timeout = ready_timeout
        self._clients: list[openai.OpenAI] = []
        self.worker: Server | None = None
        self.configure(config, database_url)
        database = self.data_dir / "manifold.db"
        is_made = database.exists() or "database_url" in self.config["general_settings"]
        if not new and not is_made:
            database.touch(mode=0o600)
            database.write_bytes(_migrated())
        self.start()

    def configure(self, config: Mapping[str, Any], database_url: str | None = None) -> None:
        """Write config.yaml; a running gateway reads it at its next start."""
        general = {"master_key": self.master_key, "data_dir": str(self.data_dir)}
        if database_url:
            general["database_url"] = database_url
        general |= config.get("general_settings") or {}
        self.master_key = general["master_key"]
        self.config = {**config, "general_settings": general}
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self.config_path.write_text(yaml.safe_dump(self.config, sort_keys=False))

    def start(self) -> None:
        assert not self.running
        env = _environment({"MANIFOLD_CONFIG": str(self.config_path), **self.env})
        with self._listen() as listening:
            self._spawn(
                [
                    *(*GUNICORN, "-c", "python:app.serving"),
                    *("--bind", f"fd://{listening.fileno()}", "--no-control-socket"),
                    *(*self._arguments, "wsgi:app"),
                ],
                env,
                listening,
            )
        self._wait_ready("/health/readiness", self._ready_timeout)
        if self._with_worker:
            self.worker = self.start_worker()

    def start_worker(self, name: str = "worker") -> Server:
        """A background worker, as `manifold worker`; whoever starts more than one ends them."""
        worker = Server(f"{self.name}-{name}", self.log_dir)
        env = _environment({"MANIFOLD_CONFIG": str(self.config_path), **self.env})
        worker._spawn([MANIFOLD, "worker", "--config", str(self.config_path)], env, None)
        return worker

    def client(self, key: str | None = None, v1: bool = True) -> openai.OpenAI:
        """The real client, without retries; the master key's unless told. Closed by `stop`."""
        client = openai.OpenAI(
            base_url=f"{self.url}/v1" if v1 else self.url,
            api_key=key or self.master_key,
            max_retries=0,
            http_client=openai.DefaultHttpxClient(trust_env=False),
        )
        self._clients.append(client)
        return client

    def async_client(self, key: str | None = None, v1: bool = True) -> openai.AsyncOpenAI:
        """The same, asynchronous; for `async with`."""
        return openai.AsyncOpenAI(
            base_url=f"{self.url}/v1" if v1 else self.url,
            api_key=key or self.master_key,
            max_retries=0,
            http_client=openai.DefaultAsyncHttpxClient(trust_env=False),
        )

    def api(
        self, method: str, path: str, *, key: str | None = None, **kw: Any
    ) -> requests.Response:
        """A plain HTTP call. `key`: the master key when None, no key when empty."""
        headers = dict(kw.pop("headers", None) or {})
        key = self.master_key if key is None else key
        if key and not any(name.lower() == "authorization" for name in headers):
            headers["Authorization"] = f"Bearer {key}"
        kw.setdefault("timeout", 60)
        return self._api.request(method, self.url + path, headers=headers, **kw)

    def new_user(self, **fields: Any) -> dict[str, Any]:
        """The answer of /user/new: `key`, `user_id`, ..."""
        response = self.api("POST", "/user/new", json=fields)
        assert response.status_code == 200, response.text
        return dict(response.json())

    def stop(self, timeout: float = 30.0) -> int:
        # The server would wait two seconds for each idle connection of theirs.
        self.close_clients()
        if self.worker is not None:
            self.worker.stop(timeout)
            self.worker = None
        return super().stop(timeout)

    def kill(self) -> int:
        if self.worker is not None:
            self.worker.kill()
            self.worker = None
        return super().kill()

    def _ended(self) -> None:
        super()._ended()
        self.close_clients()

    def close_clients(self) -> None:
        """Close every client that `client` gave out, with what it is doing."""
        for client in self._clients:
            client.close()
        self._clients.clear()


# -------------------------------------------------------------------- the seeds' configurations


@dataclass(frozen=True)
class Seeds:
    """The accounts behind the seeds' config.yaml, and that configuration."""

    litellm: Account
    free: Account
    mini: Account
    azure: Account
    engine: Account

    @property
    def openai_models(self) -> list[dict[str, Any]]:
        """gpt-4o-litellm and gpt-4o-free: one model, two accounts; gpt-4o-mini-openai: a third."""
        return [
            model("gpt-4o-litellm", "openai/gpt-4o", self.litellm),
            model("gpt-4o-free", "openai/gpt-4o", self.free),
            model("gpt-4o-mini-openai", "gpt-4o-mini", self.mini),
        ]

    @property
    def azure_models(self) -> list[dict[str, Any]]:
        """azure-gpt-4o: deployment `gpt-4o-my-special-deployment` of an Azure resource."""
        return [model("azure-gpt-4o", "azure/gpt-4o-my-special-deployment", self.azure)]

    @property
    def engine_models(self) -> list[dict[str, Any]]:
        """local-llama: an engine without files behind the provider `local`."""
        return [model("local-llama", "local/llama", self.engine)]

    @property
    def files_settings(self) -> list[dict[str, Any]]:
        """The provider way: azure, and openai with the account of gpt-4o-litellm."""
        return [
            {"custom_llm_provider": "azure", **self.azure.params},
            {"custom_llm_provider": "openai", **self.litellm.params},
        ]

    @property
    def config(self) -> dict[str, Any]:
        """All of it, for `start_gateway`."""
        return {
            "model_list": [*self.openai_models, *self.azure_models, *self.engine_models],
            "files_settings": self.files_settings,
        }


def model(name: str, upstream_model: str, account: Account, **more: Any) -> dict[str, Any]:
    """An entry of `model_list`; `more` goes into its `litellm_params`."""
    return {
        "model_name": name,
        "litellm_params": {"model": upstream_model, **account.params, **more},
    }


def seeds(upstream: Upstream, **options: Any) -> Seeds:
    """Fresh accounts for the seeds' configuration; `options` are for every one of them."""
    return Seeds(
        litellm=upstream.account("litellm", **options),
        free=upstream.account("free", **options),
        mini=upstream.account("mini", **options),
        azure=upstream.account("azure", "azure", **options),
        engine=upstream.account("engine", "engine", **options),
    )
