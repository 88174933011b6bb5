"""What deploy/ runs, without a container engine: the wheel, the image's command, compose's nodes.

The wheel is built of what the Dockerfile copies, and installed beside the libraries that are here.
Where the kernel allows it, the image's command runs as user 10001 on a file system of which nothing
but the data directory and /dev/shm can be written, which is stricter than the image is.
"""

import http.client
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
import yaml

from tests import dockerfile
from tests.e2e import inside
from tests.e2e.conftest import missing
from tests.e2e.gateway import ROOT, RUNNING, Server, wait_until
from tests.e2e.serve import free_port, plain_environment

PDF = b"%PDF-1.7\n" + bytes(range(256)) * 400
COMPOSE = ROOT / "deploy" / "compose"
UID = 10001
KEY = "sk-compose-0123456789-0123456789"


class Process(Server):
    """One process tree of ours in a directory, with an environment of its own."""

    def __init__(self, name: str, command: Sequence[object], env: Mapping[str, str], place: Path):
        super().__init__(name, place)
        with self._log("stdout").open("ab") as out, self._log("stderr").open("ab") as err:
            self._process = subprocess.Popen(
                [str(word) for word in command],
                cwd=place,
                env={**plain_environment(), **env},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        RUNNING.append(self)

    def wait_ready(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._wait_ready("/health/readiness", 60)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that the Dockerfile's build stage makes and installs."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    build, _ = dockerfile.stages()
    for text in build.all("COPY"):
        *names, target = text.split()
        for name in names:
            if (ROOT / name).is_dir():
                skipped = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / name, source / target, ignore=skipped)
            else:
                shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps"]
    command += ["-w", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [made] = out.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """/opt/manifold: an environment with the wheel, and the libraries of this one."""
    place = tmp_path_factory.mktemp("opt") / "manifold"
    venv.create(place, with_pip=False)
    pip = [sys.executable, "-m", "pip", "--python", str(place / "bin" / "python")]
    subprocess.run([*pip, "install", "-q", "--no-deps", wheel], check=True)
    [packages] = place.glob("lib/python*/site-packages")
    # Behind its own packages; and what is installed here for development stays out of it.
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return place


def test_the_wheel_holds_all_that_is_needed_and_nothing_else(wheel):
    """Migrations, data files and types too: every file of the packages that git knows."""
    listed = subprocess.run(
        ["git", "ls-files", "app", "migrations", "wsgi.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    packed = {name for name in names if ".dist-info/" not in name}
    assert packed == {name for name in listed if (ROOT / name).exists()}
    assert "app/py.typed" in packed
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def read_only(place: Path, command: Sequence[object]) -> list[str] | None:
    """The command as user 10001 where only `place` and /dev/shm can be written.

    None where the kernel lets nobody make such a place.
    """
    here = shlex.quote(str(place))
    as_user = ["unshare", "--user", f"--map-user={UID}", f"--map-group={UID}", "--"]
    script = f"mount --bind {here} {here} && mount -o remount,bind,ro / && cd {here} && exec "

    def wrapped(words: Sequence[object]) -> list[str]:
        inner = script + shlex.join([*as_user, *(str(word) for word in words)])
        root = [] if os.geteuid() == 0 else ["--map-root-user", "--user"]
        return ["unshare", *root, "--mount", "sh", "-ec", inner]

    probe = "test $(id -u) = 10001 && ! touch /tmp/manifold-probe 2>/dev/null && touch ."
    if shutil.which("unshare") is None:
        return None
    possible = subprocess.run(wrapped(["sh", "-c", probe]), capture_output=True, check=False)
    return wrapped(command) if possible.returncode == 0 else None


def test_the_image_s_command_serves_on_a_file_system_that_is_read_only(installed, tmp_path):
    _, image = dockerfile.stages()
    assert image.last("USER") == f"{UID}:{UID}"
    port = free_port()
    config = tmp_path / "config.yaml"
    shutil.copy(ROOT / "config.yaml", config)
    here = {"/opt/manifold": str(installed), "/etc/manifold/config.yaml": str(config)}
    env = image.environment
    for shown, real in here.items():
        env = {name: value.replace(shown, real) for name, value in env.items()}
    data = tmp_path / "data-of-the-image"
    data.mkdir()
    command = [installed / "bin" / image.words("ENTRYPOINT")[0], *image.words("CMD")]
    command += ["--port", port]
    before = {path: path.stat().st_mtime_ns for path in installed.rglob("*")}
    health = [word.replace("4000", str(port)) for word in image.words("HEALTHCHECK")]
    health[0] = str(installed / "bin" / health[0])

    def is_healthy() -> bool:
        # A proxy of the environment has no say in what this machine says to itself.
        env = {**plain_environment(), "http_proxy": "http://127.0.0.1:9"}
        return subprocess.run(health, env=env, capture_output=True, check=False).returncode == 0

    assert not is_healthy()
    shut_in = read_only(data, command)
    process = Process("image", shut_in or command, env, data)
    with process as running:
        running.wait_ready(port)
        assert is_healthy()
        if shut_in:
            uids = {uid for each in running.processes() for uid in _uids(each)}
            assert uids == {UID}
        key = (data / "data" / "master_key").read_text().strip()
        with closing(openai.OpenAI(base_url=running.url, api_key=key)) as client:
            file = client.files.create(file=("report.pdf", PDF), purpose="user_data")
            assert client.files.content(file.id).read() == PDF
            assert client.files.delete(file.id).deleted
        assert '"level": "ERROR"' not in running.log_text()
    assert not is_healthy()
    assert {path: path.stat().st_mtime_ns for path in installed.rglob("*")} == before


def _uids(process: psutil.Process) -> set[int]:
    """The user that a process is in its own eyes: its namespace maps it."""
    mapped = Path(f"/proc/{process.pid}/uid_map").read_text().split()
    return {int(mapped[0])}


@pytest.fixture
def nodes(installed: Path, tmp_path: Path) -> Iterator[dict[str, Process]]:
    """node-1, node-2 and worker as compose.yaml has them, on one data directory."""
    redis = os.environ.get("MANIFOLD_TEST_REDIS")
    if not redis:
        missing("MANIFOLD_TEST_REDIS is not set")
    services: dict[str, Any] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]
    shared = tmp_path / "data"
    config = tmp_path / "config.yaml"
    text = (COMPOSE / "config.yaml").read_text()
    text = text.replace("/var/lib/manifold", str(shared))
    config.write_text(text.replace("redis://redis:6379/0", str(redis)))
    with ExitStack() as stack:
        database = stack.enter_context(inside.scratch_postgres())
        running: dict[str, Process] = {}
        ports: dict[str, int] = {}
        for name in ("node-1", "node-2", "worker"):
            service = services[name]
            env = {key: str(value) for key, value in service["environment"].items()}
            env |= {
                "MANIFOLD_CONFIG": str(config),
                "MANIFOLD_MASTER_KEY": KEY,
                "DATABASE_URL": database,
                "FORWARDED_ALLOW_IPS": env["FORWARDED_ALLOW_IPS"].replace("10.77.", "127.77."),
                "WEB_CONCURRENCY": "1",
            }
            command = [installed / "bin" / "manifold", *service["command"]]
            if service["command"][0] == "serve":
                ports[name] = free_port()
                command += ["--port", ports[name]]
            place = tmp_path / name
            place.mkdir()
            running[name] = stack.enter_context(Process(name, command, env, place))
        for name, port in ports.items():
            running[name].wait_ready(port)
        yield running


def test_the_nodes_of_the_compose_file_are_one_gateway(nodes):
    """A file of the one is the other's, its content too; and only nginx says who calls."""
    key = "sk-compose-0123456789-0123456789"
    first, second = (
        openai.OpenAI(base_url=nodes[n].url, api_key=key) for n in ("node-1", "node-2")
    )
    with closing(first), closing(second):
        file = first.files.create(file=("report.pdf", PDF), purpose="user_data")
        assert second.files.retrieve(file.id).status == "processed"
        assert second.files.content(file.id).read() == PDF
        assert first.files.delete(file.id).deleted
        assert [f.id for f in second.files.list()] == []
    assert nodes["worker"].running

    def seen_from(source: str) -> str:
        """Which client the log names when somebody at `source` says who it is."""
        host, port = nodes["node-1"].url.removeprefix("http://").split(":")
        own = f"from-{source}"
        with closing(http.client.HTTPConnection(host, int(port), source_address=(source, 0))) as c:
            headers = {"X-Forwarded-For": "203.0.113.7", "X-Request-ID": own}
            c.request("GET", "/health/liveness", headers=headers)
            assert c.getresponse().read()
        line = wait_until(partial(_line, nodes["node-1"], own))
        return str(json.loads(line or "")["remote"])

    # nginx is at an address of compose's network; whoever is not says nothing.
    assert seen_from("127.77.0.5") == "203.0.113.7"
    assert seen_from("127.0.0.1") == "127.0.0.1"


def _line(process: Process, own: str) -> str | None:
    return next((line for line in process.log_text().splitlines() if own in line), None)
