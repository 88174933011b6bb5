"""What README.md and docs/ show is true: every block runs, every route and setting is named."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.config_schema import GeneralSettings, RouterSettings
from app.factory import create_app
from app.providers import registry
from app.settings import Settings
from tests.e2e.asking import ask, echo
from tests.e2e.conftest import StartGateway
from tests.e2e.gateway import MANIFOLD, ROOT, Upstream
from tests.e2e.pages import (
    ADDRESS,
    PAGES,
    blocks_of,
    configuration,
    run_by,
    run_python,
    run_shell,
)
from tests.e2e.serve import Served, quoted
from tests.e2e.test_first_run import first_command
from tests.e2e.upstream_jobs import rows

SECOND_MARK = "<!-- the second command -->"


STORIES = {page: test for page in PAGES if (test := run_by(page))}
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
ALONE = [block for page in PAGES if page not in STORIES for block in blocks_of(page)]


def of_kind(*infos: str) -> Any:
    """A parameter for each block whose info string begins with one of these."""
    found = [b for b in ALONE if any(b.info == i or b.info.startswith(f"{i} no-") for i in infos)]
    return pytest.mark.parametrize("block", found, ids=str)


def test_there_are_blocks_and_each_is_of_a_kind_that_is_run():
    assert len(BLOCKS) > 5
    for block in BLOCKS:
        known = block.info in ("text", "sh", "python", "yaml", "json")
        assert known or block.info.startswith("python no-run:"), f"{block}: {block.info!r}"
        if block.info == "json":
            json.loads(block.text)


def test_a_page_that_is_a_story_is_told_by_the_test_it_names():
    for page, test in STORIES.items():
        assert page.name in test.read_text(), f"{test} does not name {page.name}"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The gateway on the config.yaml that is shipped, in a directory of its own."""
    place = tmp_path_factory.mktemp("readme")
    shutil.copy(ROOT / "config.yaml", place)
    with Served(f"exec {quoted(MANIFOLD, 'serve', '--workers', '1')}", place) as served:
        yield served


@pytest.fixture
def in_place(served: Served, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(served.log_dir)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert Path("data/master_key").exists()
    return served.log_dir


@of_kind("sh")
def test_commands_work(block, served, in_place):
    if block.text.strip() == first_command():
        assert block.page == "README.md"
        return  # test_first_run runs it.
    if block.before == SECOND_MARK:
        return  # .ci/run runs it, and us.
    command = block.text.replace(ADDRESS, served.url)
    cwd = in_place
    if command.startswith(".venv/bin/python -m benchmarks --quick"):
        command = command.replace(".venv/bin/python", quoted(sys.executable))
        # The rest of it has a test of its own.
        command = command.replace("--quick", "--smoke --only file-read-1 --peers direct manifold")
        cwd = ROOT
    else:
        # Nothing else is expected here, and surely nothing that installs or deletes.
        assert command.startswith(("curl ", "manifold ")), block
        command = command.replace("curl ", "curl --fail-with-body ", 1)
    done = run_shell(command, cwd, {"MANIFOLD_URL": served.url})
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout or "manifold audit " in block.text


@of_kind("python")
def test_python_works(block, served, in_place, capsys):
    compile(block.text, str(block), "exec")
    if block.info != "python":
        return
    left = run_python(block.text, served.url)
    left["client"].close()
    assert capsys.readouterr().out


def test_python_that_needs_a_model_works_with_one(
    upstream: Upstream,
    start_gateway: StartGateway,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """On the configuration that README.md shows, with our addresses in it."""
    [shown] = [b for b in BLOCKS if b.page == "README.md" and b.info == "yaml"]
    config = yaml.safe_load(shown.text)
    accounts = [
        upstream.account("readme-openai"),
        upstream.account("readme-azure", "azure"),
        upstream.account("readme-engine", "engine"),
    ]
    for entry, account in zip(config["model_list"], accounts, strict=True):
        entry["litellm_params"] |= account.params
    config["files_settings"][0] |= accounts[0].params
    gateway = start_gateway(config, workers=1)
    client = gateway.client()
    uploaded = client.files.create(file=("report.pdf", b"%PDF-1.7 ..."), purpose="user_data")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_bytes(rows(3, "gpt-4o"))
    blocks = [b for b in ALONE if b.info.startswith("python no-run:")]
    assert blocks
    for block in blocks:
        run_python(block.text, gateway.url, client=client, uploaded=uploaded)
    assert upstream.requests(accounts[0].name, "/v1/chat")
    # It is one id for every model of that configuration.
    told = echo(client.chat.completions.create(model="llama", messages=ask(uploaded.id)))
    assert told["account"] == "readme-engine"
    assert client.files.delete(uploaded.id).deleted


@of_kind("yaml")
def test_configurations_are_understood(block, tmp_path):
    found = configuration(block.text, tmp_path / "config.yaml")
    assert found.deployments
    assert found.warnings == ()


def commented_in() -> str:
    """config.yaml with its examples taken in: lines with one # are examples."""
    text = (ROOT / "config.yaml").read_text()
    return "\n".join(re.sub(r"^#(?!#)", "", line) for line in text.splitlines())


def test_the_shipped_configuration_and_its_examples_are_understood(tmp_path):
    for text in ((ROOT / "config.yaml").read_text(), commented_in()):
        found = configuration(text, tmp_path / "config.yaml")
        assert found.warnings == ()
    assert {d.provider for d in found.deployments} == {"openai", "azure", "local"}
    assert found.database_url


def test_the_second_command_is_what_the_checks_take():
    """`.ci/run` finds it by the same line of awk, and runs nothing else in its place."""
    [awk] = re.findall(r"\$\((awk .* README\.md)\)", (ROOT / ".ci" / "run").read_text())
    done = subprocess.run(
        ["bash", "-euc", awk], cwd=ROOT, capture_output=True, text=True, check=True
    )
    [block] = [b for b in BLOCKS if b.before == SECOND_MARK]
    assert done.stdout == block.text
    assert done.stdout.count("\n") == 1
    second = r"python3 -m venv \.venv && .*\[test\].* && \S*pytest -q -n auto --dist loadfile\n"
    assert re.fullmatch(second, done.stdout)


# ------------------------------------------------------- routes


def table_below(heading: str) -> list[list[str]]:
    """The rows of the first table below a heading of README.md."""
    text = (ROOT / "README.md").read_text().partition(f"\n## {heading}\n")[2]
    rows = re.search(r"(?m)^\|.*\n\|[-| ]+\|\n((?:\|.*\n)+)", text)
    assert rows, heading
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))]
        for line in rows[1].splitlines()
    ]


def normal(path: str) -> str:
    """A path as the table and the URL map both can write it."""
    path = re.sub(r"<[^>]*>|\{[^}]*\}", "{}", path)
    return path.removeprefix("/v1") or "/"


def named_routes() -> set[tuple[str, str]]:
    """(verb, path) of the table's first column; a path that goes on ends in `...`."""
    named = set()
    for cell, *_ in table_below("Routes"):
        verb, base = "*", ""
        for code in re.findall(r"`([^`]+)`", cell):
            said, _, path = code.rpartition(" ")
            verb = said or verb
            base = base or path
            named.add((verb, normal(base + path[3:] if path.startswith("...") else path)))
    return named


def routes(tmp_path: Path) -> set[tuple[str, str]]:
    """(verb, path) of the URL map, without the second spellings that the text above tells of."""
    app = create_app(Settings(data_dir=tmp_path))
    app.extensions["manifold"].database.engine.dispose()
    found = set()
    for rule in app.url_map.iter_rules():
        path = rule.rule
        if not path.startswith("/openai/deployments/"):
            path = path.removeprefix("/openai").removeprefix("/v1")
        choice = re.search(r"<any\(([^)]*)\):\w+>", path)
        words = choice[1].split(", ") if choice else [""]
        for verb in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
            for word in words:
                found.add((verb, normal(path.replace(choice[0], word) if choice else path)))
    return found


def covers(named: tuple[str, str], route: tuple[str, str]) -> bool:
    verb, path = named
    if verb not in ("*", route[0]):
        return False
    return path == route[1] or (path.endswith("...") and route[1].startswith(path[:-3]))


def test_every_route_is_in_the_readme_and_the_readme_names_no_other(tmp_path):
    named, served = named_routes(), routes(tmp_path)
    assert len(served) > 30
    assert {r for r in served if not any(covers(n, r) for n in named)} == set()
    assert {n for n in named if not any(covers(n, r) for r in served)} == set()


# ------------------------------------------------------- settings

IN_WORDS = {
    "metrics_token": "none",
    "master_key": "made on first start",
    "database_url": "SQLite in `data_dir`",
    "task_queue_url": "SQLite in `data_dir`",
    "default_target_model_names": "none",
    "accel_redirect": "none",
}


def as_written(value: Any) -> str:
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, Path):
        return f"`./{value}`"
    return f"{value:g}" if isinstance(value, int | float) else f"`{value}`"


def test_the_settings_that_the_readme_shows_have_their_defaults():
    """All of them are in docs/configuration.md, which is written from the code."""
    defaults = {field.name: field.default for field in fields(Settings)}
    rows = {name.strip("`"): default for name, default, *_ in table_below("Settings")}

    assert rows and set(rows) <= set(GeneralSettings.known())
    for name, written in rows.items():
        default = defaults[name]
        assert default is not MISSING
        if name in IN_WORDS:
            assert default in (None, ())
        assert written == IN_WORDS.get(name, as_written(default)), name


def test_the_other_settings_are_in_the_readme():
    text = " ".join((ROOT / "README.md").read_text().split())
    for key in RouterSettings.known():
        assert f"`{key}`" in text, key
    assert f"rests, {Settings().cooldown_seconds:g})" in text
    for provider in registry.PROVIDERS:
        for name in (provider.name, *provider.aliases):
            assert f"`{name}/`" in text, name
