"""`manifold db copy`: an installation moves to PostgreSQL and back; its users notice nothing."""

import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from sqlalchemy import make_url

from tests.e2e import inside
from tests.e2e.asking import ask, echo
from tests.e2e.batching import ended, one_account, start, upload
from tests.e2e.conftest import StartGateway
from tests.e2e.gateway import MANIFOLD, Account, Gateway, Upstream
from tests.e2e.serve import plain_environment
from tests.e2e.upstream_jobs import rows


@dataclass(frozen=True)
class Copied:
    status: int
    out: str
    err: str


def copy(gateway: Gateway, *words: str, env: Mapping[str, str] | None = None) -> Copied:
    done = subprocess.run(
        [MANIFOLD, "db", "copy", "--config", str(gateway.config_path), *words],
        env={**plain_environment(), **(env or {})},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return Copied(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def account(upstream: Upstream) -> Account:
    return upstream.account("moved", download_any=True, batch_delay_s=0)


def config(account: Account) -> dict[str, Any]:
    made = one_account(account)
    made["model_list"].append({"model_name": "disk", "litellm_params": {"model": "local/disk"}})
    return made


@contextmanager
def on(gateway: Gateway, url: str | None) -> Iterator[Gateway]:
    """The same gateway, running on another database."""
    gateway.configure(gateway.config | {"general_settings": general(gateway)}, url)
    gateway.start()
    try:
        yield gateway
    finally:
        gateway.stop()


def general(gateway: Gateway) -> dict[str, Any]:
    settings = dict(gateway.config["general_settings"])
    settings.pop("database_url", None)
    return settings


@dataclass
class Known:
    """What a user holds in his hands."""

    key: str
    file_id: str
    encoded_id: str
    batch_id: str
    listed: list[str]
    batch: Any


def live(gateway: Gateway) -> Known:
    key = gateway.new_user(user_id="älice 🦉", metadata={"team": ["a", None, 1.5]})["key"]
    with closing(gateway.client(key)) as client:
        file_id = upload(client, b"content", "user_data", "ü.txt", target_model_names="a,disk")
        encoded_id = upload(client, b"encoded", "user_data", "e.txt", model="a")
        batch = start(client, upload(client, rows(3, "a"), target_model_names="a"))
        batch = ended(client, batch.id)
        listed = [file.id for file in client.files.list()]
    return Known(key, file_id, encoded_id, batch.id, listed, batch)


def nothing_has_changed(gateway: Gateway, known: Known) -> None:
    with closing(gateway.client(known.key)) as client:
        assert [file.id for file in client.files.list()] == known.listed
        assert client.files.content(known.file_id).read() == b"content"
        assert client.files.content(known.encoded_id).read() == b"encoded"
        assert client.batches.retrieve(known.batch_id) == known.batch
        answer = client.chat.completions.create(model="a", messages=ask(known.file_id))
        assert len(echo(answer)["file_ids"]) == 1
    info = gateway.api("GET", "/key/info", key=known.key).json()
    assert info["info"]["user_id"] == "älice 🦉"
    stranger = gateway.new_user()["key"]
    with closing(gateway.client(stranger)) as client, pytest.raises(openai.PermissionDeniedError):
        client.files.retrieve(known.file_id)
    assert gateway.api("POST", "/user/delete", json={"user_ids": ["nobody"]}).status_code == 404


def test_an_installation_moves_to_postgresql_and_back(account, start_gateway: StartGateway):
    gateway = start_gateway(config(account), workers=1)
    known = live(gateway)
    gateway.stop()
    before = inside.rows(gateway)
    with inside.scratch_postgres() as url:
        done = copy(gateway, "--to", "env:TARGET", env={"TARGET": url})
        assert done.status == 0, done.err
        total = sum(len(found) for found in before.values()) - 1  # alembic_version is no row.
        assert done.out == f"{total} rows copied, and compared\n"
        assert "files: " in done.err and "keys: " in done.err
        with on(gateway, url):
            nothing_has_changed(gateway, known)
            with closing(gateway.client(known.key)) as client:
                newer = upload(client, b"newer", "user_data", target_model_names="a")
        known.listed.insert(0, newer)
        back = gateway.data_dir / "back.db"
        # The configuration names PostgreSQL now.
        done = copy(gateway, "--to", f"sqlite:///{back}")
        assert done.status == 0, done.err
        with on(gateway, f"sqlite:///{back}"):
            nothing_has_changed(gateway, known)
            with closing(gateway.client(known.key)) as client:
                for file_id in known.listed:
                    assert client.files.delete(file_id).deleted
    assert account.files() == []


def test_a_copy_of_what_is_being_written_is_refused(account, start_gateway, tmp_path):
    """Nothing is lost unnoticed: the operator is told to stop the gateway first."""
    gateway = start_gateway(config(account), workers=1)
    key, over = gateway.new_user()["key"], threading.Event()

    def write() -> None:
        with closing(gateway.client(key)) as client:
            while not over.is_set():
                upload(client, b"x", "user_data", target_model_names="disk")

    writing = threading.Thread(target=write)
    writing.start()
    with inside.scratch_postgres() as url:
        done = copy(gateway, "--to", "env:TARGET", env={"TARGET": url})
        over.set()
        writing.join()
        assert done.status == 1
        assert "written to meanwhile" in done.err and "stop every gateway" in done.err
        gateway.stop()
        address = tmp_path / "address"
        address.write_text(f"{url}\n")
        done = copy(gateway, "--to", f"file:{address}")
        assert done.status == 0, done.err
        done = copy(gateway, "--to", f"file:{address}")
        assert (done.status, done.out) == (1, "")
        assert "the target is not empty" in done.err


SECRET = "hunter2-0123456789"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        pytest.param(
            ["--to", f"postgresql://a:{SECRET}@127.0.0.1:1/x"], "env:NAME", id="a password"
        ),
        pytest.param(
            ["--to", f"postgresql://127.0.0.1:1/x?password={SECRET}"], "env:NAME", id="in the query"
        ),
        pytest.param(["--to", "env:MISSING"], "MISSING is not set", id="no variable"),
        pytest.param(["--to", "file:/nowhere/address"], "cannot be read", id="no file"),
        pytest.param(["--to", "mysql://127.0.0.1/x"], "supported: sqlite", id="another kind"),
        pytest.param(["--to", "nonsense"], "supported: sqlite", id="no address"),
        pytest.param([], "--to", id="no target"),
        pytest.param(["--to", "env:AWAY"], "database_url: ", id="a server that is away"),
        pytest.param(
            ["--from", "sqlite:////nowhere/x.db", "--to", "env:AWAY"],
            "no such file",
            id="no source",
        ),
    ],
)
def test_a_mistake_is_said_without_the_password(account, start_gateway, quiet, words, told):
    away = {"AWAY": f"postgresql://a:{SECRET}@127.0.0.1:1/x"}
    done = copy(quiet, *words, env=away)
    assert done.status == 2
    assert told in " ".join(done.err.split())
    assert SECRET not in done.out + done.err


@pytest.fixture(scope="module")
def quiet(account: Account, start_gateway: StartGateway) -> Gateway:
    gateway = start_gateway(config(account), workers=1)
    gateway.stop()
    return gateway


def test_a_password_in_a_file_reaches_no_log(quiet, tmp_path):
    url = make_url("postgresql://a@127.0.0.1:1/x").set(password=SECRET)
    path = Path(tmp_path / "address")
    path.write_text(url.render_as_string(hide_password=False))
    done = copy(quiet, "--to", f"file:{path}")
    assert done.status == 2
    assert SECRET not in done.out + done.err
