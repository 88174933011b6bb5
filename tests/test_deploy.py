"""deploy/: each file is held against the tool of its language, and against our own numbers."""

import fnmatch
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from app import settings
from app.providers import registry
from app.settings import Settings
from tests import dockerfile
from tests.e2e.conftest import missing
from tests.e2e.nginx import CONFIGURATION, NODE, ONE_NODE
from tests.e2e.pages import Story

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "deploy.md"
DEPLOY = ROOT / "deploy"
BIN = Path(sys.executable).parent
YAML = sorted((*DEPLOY.rglob("*.yaml"), *DEPLOY.rglob("*.yml")))
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
POSTGRES_CONNECTIONS = 100 - 3
"""What PostgreSQL allows unless it is told otherwise, without those that are kept for its owner."""


def done(*command: object, cwd: Path = ROOT) -> str:
    """What the command prints; it must have nothing to complain about."""
    run = subprocess.run(
        [str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout + run.stderr


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())
    return found


def kubernetes() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes" / "manifold.yaml").read_text()))


def pods() -> dict[str, dict[str, Any]]:
    return {
        each["metadata"]["name"]: each["spec"]["template"]["spec"]
        for each in kubernetes()
        if each["kind"] == "Deployment"
    }


# ------------------------------------------------------------------- the tools


def test_hadolint_has_nothing_to_say():
    done(BIN / "hadolint", "--failure-threshold", "style", dockerfile.PATH)


def test_every_yaml_file_is_tidy():
    rules = "{line-length: {max: 140}, document-start: disable, braces: {max-spaces-inside: 0}}"
    assert len(YAML) >= 3
    done(BIN / "yamllint", "--strict", "-d", f"{{extends: default, rules: {rules}}}", *YAML)


def test_the_compose_file_is_one():
    schema = ("--builtin-schema", "vendor.compose-spec")
    done(BIN / "check-jsonschema", *schema, DEPLOY / "compose" / "compose.yaml")


def test_the_manifest_is_what_kubernetes_takes():
    said = done(BIN / "kubernetes-validate", "--strict", DEPLOY / "kubernetes" / "manifold.yaml")
    assert said.count(" passed for resource ") == len(kubernetes())


@pytest.fixture
def units(tmp_path: Path) -> list[Path]:
    """The units, with a program of ours that is there."""
    if shutil.which("systemd-analyze") is None:
        missing("systemd-analyze is not installed")
    copies = []
    for unit in UNITS:
        text = unit.read_text()
        assert text.count("/opt/manifold/bin/manifold") == 1
        copies.append(tmp_path / unit.name)
        copies[-1].write_text(text.replace("/opt/manifold/bin", str(BIN)))
    return copies


def test_systemd_understands_the_units(units):
    assert done("systemd-analyze", "verify", "--man=no", *units) == ""


def test_the_units_are_shut_in(units):
    """systemd's own measure, from 0 (nothing is exposed) to 10."""
    for unit in units:
        said = done("systemd-analyze", "security", "--offline=true", "--no-pager", unit)
        exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
        assert exposure, said
        assert float(exposure[1]) < 2.0, said


def test_the_units_differ_in_what_they_run_alone():
    one, other = (set(unit.read_text().splitlines()) for unit in UNITS)
    said = {line.partition("=")[0] for line in one ^ other if not line.startswith("#")}
    assert said <= {"Description", "After", "ExecStart", "KillMode", "TimeoutStopSec"}


# ------------------------------------------------------------------- no secrets, no rights


def test_an_image_holds_nothing_but_the_program():
    """What the Dockerfile copies is what .dockerignore lets through, and git knows all of it."""
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in ignore if line.startswith("!")}
    build, image = dockerfile.stages()
    copied = {
        source
        for stage in (build, image)
        for text in stage.all("COPY")
        if not text.startswith("--from=")
        for source in text.split()[:-1]
    }
    assert ignore[1] == "*"
    assert copied == allowed
    tracked = done("git", "ls-files").splitlines()
    assert all(any(name == c or name.startswith(f"{c}/") for name in tracked) for c in copied)
    assert not [name for name in tracked if fnmatch.fnmatch(name, "*.pyc")]
    assert {stage.base.split()[0] for stage in (build, image)} == {"python:3.11-slim-bookworm"}


def test_nobody_is_root_and_nothing_is_written_but_data():
    _, image = dockerfile.stages()
    uid = image.last("USER").partition(":")[0]
    assert uid.isdecimal() and int(uid) > 0  # A number: Kubernetes asks for one.
    for pod in pods().values():
        context = pod["securityContext"]
        assert (context["runAsNonRoot"], str(context["runAsUser"])) == (True, uid)
        assert not pod["automountServiceAccountToken"]
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            places = {m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")}
            assert places == {image.last("VOLUME"), "/tmp"}
    for name in ("node-1", "node-2", "worker"):
        service = compose()["services"][name]
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
        assert f"data:{image.last('VOLUME')}" in service["volumes"]


def test_no_file_holds_a_secret():
    """Values come from an environment or from a secret that somebody made; none has a default."""
    for service in compose()["services"].values():
        for name, value in service.get("environment", {}).items():
            if re.search("KEY|PASSWORD", name):
                assert re.fullmatch(r"\$\{\w+:(\?set it in \.env|-)\}", value), name
    example = (DEPLOY / "compose" / "example.env").read_text().splitlines()
    assert all(line.startswith("#") or line.endswith("=") for line in example)
    assert not [each for each in kubernetes() if each["kind"] == "Secret"]
    _, image = dockerfile.stages()
    assert not {name for name in image.environment if re.search("KEY|SECRET|PASS", name)}


# ------------------------------------------------------------------- our own numbers


def configured(text: str, tmp_path: Path) -> Settings:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    values = {"OPENAI_API_KEY": "sk-x", "TASK_QUEUE_URL": "redis://redis"}
    found = settings.load(path, values, check=registry.mistakes)
    assert found.warnings == ()
    return found


def test_the_configurations_leave_postgres_enough_connections(tmp_path):
    """The sum of docs/operations.md: processes x database_pool_size."""
    in_compose = configured((DEPLOY / "compose" / "config.yaml").read_text(), tmp_path)
    services = compose()["services"]
    nodes = [s for s in services.values() if s.get("command", [""])[0] == "serve"]
    processes = sum(int(node["environment"]["WEB_CONCURRENCY"]) for node in nodes) + 1
    assert processes * in_compose.database_pool_size <= POSTGRES_CONNECTIONS

    (text,) = (d["data"]["config.yaml"] for d in kubernetes() if d["kind"] == "ConfigMap")
    in_kubernetes = configured(text, tmp_path)
    gateway, _worker = (d for d in kubernetes() if d["kind"] == "Deployment")
    environment = {e["name"]: e["value"] for e in pods()["manifold"]["containers"][0]["env"]}
    processes = gateway["spec"]["replicas"] * int(environment["WEB_CONCURRENCY"]) + 1
    assert processes * in_kubernetes.database_pool_size <= POSTGRES_CONNECTIONS


def test_who_stops_a_gateway_waits_longer_than_its_transfers_may_take():
    text = (ROOT / "app" / "serving.py").read_text()
    graceful = int(re.findall(r"(?m)^graceful_timeout = (\d+)$", text)[0])
    unit = (DEPLOY / "systemd" / "manifold.service").read_text()
    stop = int(re.findall(r"(?m)^TimeoutStopSec=(\d+)$", unit)[0])
    node = int(compose()["services"]["node-1"]["stop_grace_period"].removesuffix("s"))
    pod = pods()["manifold"]["terminationGracePeriodSeconds"]
    assert min(stop, node, pod) > graceful


def test_the_probes_ask_for_routes_that_are_open():
    [container] = pods()["manifold"]["containers"]
    asked = {
        probe: container[probe]["httpGet"]["path"]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe")
    }
    assert asked == {
        "startupProbe": "/health/liveness",
        "livenessProbe": "/health/liveness",
        "readinessProbe": "/health/readiness",
    }


def test_compose_makes_of_the_site_file_what_that_says_for_two_nodes(tmp_path):
    sh, options, script = compose()["services"]["nginx"]["command"]
    made = tmp_path / "site.conf"
    script = script.replace("/site.conf", str(CONFIGURATION)).replace("exec nginx", "true")
    done(sh, options, script.replace("/etc/nginx/conf.d/manifold.conf", str(made)))
    expected = CONFIGURATION.read_text()
    for old, new in (
        (NODE, "    server node-1:4000; server node-2:4000;"),
        (ONE_NODE, "proxy_next_upstream error;"),
        ("server_name manifold.example.com;", "server_name _;"),
    ):
        assert old in expected
        expected = expected.replace(old, new)
    assert made.read_text() == expected


# ------------------------------------------------------------------- docs/deploy.md


def test_the_page_is_true(tmp_path):
    """docs/deploy.md: what it has run makes all that compose.yaml asks for."""
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    Story(PAGE, tmp_path).run()
    place = tmp_path / "deploy" / "compose"
    assert (place / ".env").stat().st_mode & 0o077 == 0
    lines = [n for n in (place / ".env").read_text().splitlines() if not n.startswith("#")]
    values = dict(line.split("=", 1) for line in lines)
    asked = re.findall(r"\$\{(\w+):\?", (place / "compose.yaml").read_text())
    assert all(re.fullmatch("(sk-)?[0-9a-f]{48}", values[name]) for name in asked)
    assert {path.name for path in (place / "tls").iterdir()} == {"privkey.pem", "fullchain.pem"}


def test_the_page_names_files_that_are_there():
    named = set(re.findall(r"\bdeploy/[\w./-]*\w", PAGE.read_text()))
    assert named
    assert not [name for name in named if not (ROOT / name).exists()]
