"""`manifold doctor` on installations that are broken, each in its own way: fault and cure."""

import json
import os
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.db import migrate
from app.db.engine import connect
from app.doctor import machine
from app.doctor.examine import examine
from app.doctor.findings import Finding
from app.settings import Settings
from tests.e2e import inside
from tests.e2e.conftest import StartGateway
from tests.e2e.gateway import MANIFOLD, ROOT, Account, Upstream, model
from tests.e2e.google import GoogleUpstream
from tests.e2e.nginx import Nginx, is_installed
from tests.e2e.serve import free_port, plain_environment

KEY = "sk-0123456789abcdefghijklmnopqrstuv"


@pytest.fixture(scope="module")
def account(upstream: Upstream) -> Account:
    return upstream.account("doctor")


class Installation:
    """A configuration and a data directory, and what the doctor says of them."""

    def __init__(self, place: Path, account: Account) -> None:
        self.place = place
        self.config: dict[str, Any] = {
            "model_list": [
                model("a", "openai/gpt-4o", account),
                {"model_name": "kept", "litellm_params": {"model": "local/kept"}},
            ],
            "general_settings": {"data_dir": str(place / "data"), "master_key": KEY},
        }

    @property
    def params(self) -> dict[str, Any]:
        params: dict[str, Any] = self.config["model_list"][0]["litellm_params"]
        return params

    def say(self, **general: Any) -> None:
        self.config["general_settings"] |= general

    def migrate(self) -> Path:
        """The database as a first start makes it; its path."""
        path = self.place / "data" / "manifold.db"
        path.parent.mkdir(mode=0o700, exist_ok=True)
        database = connect(f"sqlite:///{path}")
        migrate.upgrade(database)
        database.engine.dispose()
        return path

    def write(self) -> Path:
        path = self.place / "config.yaml"
        path.write_text(yaml.safe_dump(self.config, sort_keys=False))
        return path

    def findings(self, environ: Mapping[str, str] | None = None, **more: Any) -> list[Finding]:
        found = list(examine(self.write(), environ or {}, **more))
        assert KEY not in repr(found)
        return found

    def trouble(self, check: str, environ: Mapping[str, str] | None = None, **more: Any) -> Finding:
        """The one thing that is wrong with `check`, and told with reason and cure."""
        found = self.findings(environ, **more)
        [trouble] = [f for f in found if f.check == check and f.level != "ok"]
        assert trouble.why and trouble.cure
        return trouble


@pytest.fixture
def broken(tmp_path: Path, account: Account, monkeypatch: pytest.MonkeyPatch) -> Installation:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    # What this machine's own nginx says is not the matter here.
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("app.doctor.front.shutil.which", lambda *_, **__: None)
    return Installation(tmp_path, account)


def test_nothing_is_wrong_with_a_good_one_and_nothing_is_changed(broken):
    broken.migrate()
    before = sorted(path.name for path in (broken.place / "data").iterdir())
    found = broken.findings()
    # Of disk and open files this machine decides.
    assert [f for f in found if f.level == "fault"] == []
    assert {"configuration", "credentials", "reachability", "clock", "database"} <= {
        f.check for f in found if f.level == "ok"
    }
    after = sorted(path.name for path in (broken.place / "data").iterdir())
    assert {n for n in after if not n.endswith(("-wal", "-shm"))} == {
        n for n in before if not n.endswith(("-wal", "-shm"))
    }


def test_1_a_wrong_key(broken):
    broken.params["api_key"] = "sk-wrong"
    found = broken.trouble("credentials")
    assert found.level == "fault" and "model_list.0 (a)" in found.what
    assert "key that works" in found.cure and "sk-wrong" not in repr(found)
    assert "none of its 1 accounts works" in broken.trouble("models").what


def test_2_a_closed_port(broken):
    port = free_port()
    broken.params["api_base"] = f"http://127.0.0.1:{port}/v1"
    found = broken.trouble("reachability")
    assert found.level == "fault" and f"connection refused at 127.0.0.1:{port}" in found.what
    assert "firewall" in found.cure


def test_3_an_unknown_host(broken):
    broken.params["api_base"] = "https://api.openai.invalid/v1"
    found = broken.trouble("reachability")
    assert "there is no host 'api.openai.invalid'" in found.what
    assert "api_base" in found.cure and "resolv.conf" in found.cure


class Clock(BaseHTTPRequestHandler):
    """An upstream whose clock is an hour behind; it takes every key."""

    def do_GET(self) -> None:
        self.send_response_only(404)
        self.send_header("Date", formatdate(time.time() - 3600, usegmt=True))
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Small(Clock):
    """Something in front of a gateway that takes small bodies only."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        self.send_response(413 if int(self.headers["Content-Length"]) > 1024**2 else 401)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def served(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_4_a_wrong_clock(broken):
    with served(Clock) as url:
        broken.params["api_base"] = f"{url}/v1"
        found = broken.trouble("clock")
    assert found.level == "fault" and "it is 1:00:0" in found.what
    assert "timedatectl" in found.cure


def test_5_a_data_directory_that_cannot_be_written(broken):
    broken.say(data_dir="/proc/sys/kernel")
    found = broken.trouble("disk")
    assert found.level == "fault" and "cannot be written" in found.what
    assert "read-write" in found.cure


def test_6_a_disk_without_room(broken, tmp_path, monkeypatch):
    settings = Settings(data_dir=tmp_path)
    real = os.statvfs(tmp_path)
    full = os.statvfs_result([real[0], 4096, 10_000_000, 100, 100, *real[5:]])
    [found] = [f for f in machine.disk(settings, lambda _: full) if "are free" in f.what]
    assert found.level == "fault" and "0 MB are free" in found.what and "507" in found.why
    assert "max_file_size_mb" in found.cure


def test_7_a_database_of_a_newer_version(broken):
    path = broken.migrate()
    with sqlite3.connect(path) as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    found = broken.trouble("database")
    assert found.level == "fault" and "at migration 9999" in found.what
    assert "restore" in found.cure


def test_8_a_damaged_database(broken):
    path = broken.migrate()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    content = bytearray(path.read_bytes())
    content[4096 * 2 : 4096 * 8] = b"\xff" * 4096 * 6
    path.write_bytes(content)
    found = broken.trouble("database")
    assert found.level == "fault" and "damaged" in found.why and "manifold restore" in found.cure

    path.write_bytes(b"this is no database at all, but somebody has put it here" * 100)
    assert "not a database" in broken.trouble("database").what


def test_9_a_missing_variable_and_a_mistyped_key_at_once(broken):
    broken.params["api_key"] = "os.environ/NOWHERE_SET"
    broken.params["api_bose"] = "x"
    found = [f for f in broken.findings() if f.level == "fault"]
    assert len(found) == 2 and all(f.check == "configuration" for f in found)
    told = "\n".join(f"{f.what} {f.cure}" for f in found)
    assert "NOWHERE_SET" in told and "set the variable" in told
    assert "did you mean 'api_base'" in told


SITE = """
upstream gateway { server 127.0.0.1:4000; }
server {
    listen 80;  # no limits said: nginx's own
    client_max_body_size 1m;
    location / { proxy_pass http://gateway; proxy_set_header X "a; { b"; }
    location /other { proxy_pass http://127.0.0.1:9999; }
}
"""


def test_10_nginx_with_its_own_limits(broken, tmp_path):
    site = tmp_path / "site.conf"
    site.write_text(SITE)
    found = [f for f in broken.findings(site=site) if f.check == "nginx"]
    [refused] = [f for f in found if f.level == "fault"]
    assert "location /: client_max_body_size is 1m" in refused.what and "413" in refused.why
    assert "client_max_body_size 0;" in refused.cure
    cures = {f.cure for f in found if f.level == "warning"}
    assert {"proxy_request_buffering off;", "proxy_buffering off;"} <= cures
    assert "proxy_read_timeout 3600s;" in cures
    assert not any("other" in f.what for f in found)
    # Ours is as it should be.
    [good] = [f for f in broken.findings(site=ROOT / "deploy/nginx.conf") if f.check == "nginx"]
    assert good.level == "ok"


def test_11_a_model_of_which_one_account_works_and_one_does_not(broken, account):
    dead = {**account.params, "api_base": f"http://127.0.0.1:{free_port()}/v1"}
    broken.config["model_list"].append(
        {"model_name": "a", "litellm_params": {"model": "openai/gpt-4o", **dead}}
    )
    found = broken.findings()
    assert [f.check for f in found if f.level == "fault"] == ["reachability", "credentials"]


def test_12_a_certificate_that_nobody_trusts(broken, secure_upstream, monkeypatch):
    other = secure_upstream.account("doctor-tls")
    broken.params.update(other.params)
    found = broken.trouble("reachability")
    assert "TLS" in found.what and "REQUESTS_CA_BUNDLE" in found.cure
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(secure_upstream.ca))
    assert not [f for f in broken.findings() if f.level == "fault"]


def test_13_a_server_behind_an_address_that_never_answers(broken, monkeypatch):
    monkeypatch.setattr("app.doctor.accounts._SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        broken.params["api_base"] = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        found = broken.trouble("reachability")
    assert found.level == "fault" and "ReadTimeout" in found.what


def test_14_nobody_works_on_what_is_due(broken):
    path = broken.migrate()
    with sqlite3.connect(path) as database:
        database.execute(
            "INSERT INTO jobs (id, type, kind, owner, deployment_id, provider, upstream_input_id, "
            "request, snapshot, status, state, looks, next_look_at, created_at, updated_at) "
            "VALUES ('1', 'batch', 'raw', 'master', 'd', 'openai', 'f', '{}', '{}', 'x', 'active', "
            "0, '2026-01-01 00:00:00', '2026-01-01 00:00:00', '2026-01-01 00:00:00')"
        )
    database.close()
    found = broken.trouble("worker")
    assert "1 rows wait" in found.what and "manifold worker" in found.cure


def test_15_a_task_queue_and_a_database_that_are_away(broken):
    broken.say(task_queue_url=f"redis://127.0.0.1:{free_port()}/0")
    assert "does not answer" in broken.trouble("task queue").what
    broken.say(database_url=f"postgresql://postgres@127.0.0.1:{free_port()}/x")
    assert "refused" in broken.trouble("database").what
    with inside.scratch_postgres() as url:
        broken.say(database_url=url, database_pool_size=10_000)
        # Without tables yet: the next start makes them.
        assert not [f for f in broken.findings() if f.check == "database" and f.level != "ok"]
        database = connect(url)
        migrate.upgrade(database)
        database.engine.dispose()
        assert "the server allows" in broken.trouble("database").what


@pytest.mark.parametrize(
    ("key", "level"), [("sk-1234", "fault"), ("sk-" + "a" * 60, "warning"), ("sk-short", "warning")]
)
def test_16_a_master_key_that_can_be_guessed(broken, key, level):
    broken.say(master_key=key)
    found = broken.trouble("master key")
    assert found.level == level and "32 random" in found.cure and key not in repr(found)


def test_17_few_open_files():
    [found] = machine.open_files(256)
    assert found.level == "fault" and "LimitNOFILE" in found.cure


def test_18_sqlite_on_a_file_system_of_the_network(broken, monkeypatch):
    monkeypatch.setattr(machine, "file_system_of", lambda _folder: "nfs4")
    [found] = [f for f in broken.findings() if "nfs4" in f.what]
    assert found.level == "fault" and "PostgreSQL" in found.cure


def test_19_accounts_at_google_and_an_engine(broken, upstream, tmp_path):
    engine = upstream.account("doctor-engine", "engine")
    with GoogleUpstream(tmp_path) as google:
        broken.config["model_list"] += [
            google.vertex("vertex"),
            google.studio("studio"),
            google.studio("wrong", api_key="AIza-wrong"),
            model("engine", "hosted_vllm/llama", engine),
        ]
        found = broken.trouble("credentials")
        told = [f.what for f in broken.findings() if f.check == "credentials" and f.level == "ok"]
    assert found.level == "fault" and "model_list.4 (wrong)" in found.what
    assert "AIza-wrong" not in repr(found)
    for name in ("vertex", "studio", "engine"):
        assert any(f"({name}): taken" in each for each in told), told


def test_the_address_of_a_gateway_is_tried_with_a_file_of_full_size(
    broken, account, start_gateway: StartGateway, tmp_path
):
    gateway = start_gateway(broken.config, workers=1)

    def of_address(url: str) -> Finding:
        found: list[Finding] = broken.findings(url=url)
        [of_address] = [f for f in found if f.check == "address"]
        return of_address

    assert of_address(gateway.url).level == "ok"
    assert "start the gateway" in of_address(f"http://127.0.0.1:{free_port()}").cure
    with served(Clock) as url:
        assert "readiness answers 404" in of_address(url).what
    with served(Small) as url:
        refused = of_address(url)
    assert refused.level == "fault" and "refuses a file of 512 MB" in refused.what
    assert "client_max_body_size 0" in refused.cure
    if not is_installed():
        return
    folder = tmp_path / "nginx"
    folder.mkdir()
    with Nginx(folder, gateway.url.removeprefix("http://")) as nginx:
        os.environ["SSL_CERT_FILE"] = str(nginx.ca)
        try:
            assert of_address(nginx.url).level == "ok"
        finally:
            del os.environ["SSL_CERT_FILE"]
        assert "TLS" in of_address(nginx.url).what


def test_the_exit_status_tells_the_worst_and_json_tells_all(broken):
    broken.migrate()
    broken.params["api_key"] = "sk-wrong"
    command = [MANIFOLD, "doctor", "--config", str(broken.write())]
    env = {**plain_environment(), "NO_PROXY": "127.0.0.1", "PATH": "/nowhere"}
    done = subprocess.run(
        [*command, "--json"], env=env, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2 and done.stderr == ""
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert {each["level"] for each in told} >= {"ok", "fault"}
    plain = subprocess.run(
        [*command, "-q"], env=env, capture_output=True, text=True, check=False, timeout=60
    )
    assert "do:  put a key that works" in plain.stdout
    assert not [line for line in plain.stdout.splitlines() if line.startswith("ok")]
