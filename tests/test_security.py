"""What docs/security.md promises: its tests exist, secrets are compared safely, nothing is run."""

import ast
import configparser
import re
import subprocess
import sys
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/security.md").read_text()
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)
SOURCES = sorted((ROOT / "app").rglob("*.py"))
SECRET = re.compile(r"(^|_)(secret|token|password|master_key|api_key|hash)$")
LOOK_UPS = {
    # The row was found by this very hash; the comparison says only which of its two it was.
    "row.token == token",
    # Columns: the database looks a hash up in an index.
    "_KEY.token == bindparam('token')",
    "_KEY.previous_token == bindparam('token')",
}
"""Comparisons that tell nobody anything about a secret."""


def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_the_page_names_a_test_for_every_threat():
    threats = re.findall(r"^\| (T\d\d) \|", PAGE, re.MULTILINE)
    assert len(threats) >= 20
    assert threats == [f"T{number:02}" for number in range(1, len(threats) + 1)]
    for line in PAGE.splitlines():
        if line.startswith("| T"):
            assert re.search(r"`tests/[\w/]+\.py::\w+`", line), line


@pytest.mark.parametrize(("path", "name"), sorted(set(NAMED)), ids=str)
def test_every_test_that_the_page_names_is_there(path: str, name: str):
    assert name.startswith("test_")
    assert name in functions(ROOT / path)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_secret_is_compared_byte_by_byte(path: Path):
    found = {
        ast.unparse(node)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Compare)
        and any(isinstance(operator, ast.Eq | ast.NotEq) for operator in node.ops)
        and any(SECRET.search(_name(side)) for side in (node.left, *node.comparators))
        and not any(isinstance(side, ast.Constant) for side in node.comparators)
    }
    assert found <= LOOK_UPS


def _name(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


RUNNING = {
    "eval", "exec", "compile", "__import__", "render_template_string", "import_module",
    "loads_pickle", "system", "popen", "full_load", "unsafe_load",
}  # fmt: skip


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_text_is_ever_run(path: Path):
    tree = ast.parse(path.read_text())
    modules = {
        name
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert not modules & {"pickle", "marshal", "shelve", "jinja2", "code"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = _name(node.func)
            is_regex = called == "compile" and isinstance(node.func, ast.Attribute)
            assert called not in RUNNING or is_regex, ast.unparse(node)
            assert not any(
                keyword.arg == "shell" and ast.unparse(keyword.value) != "False"
                for keyword in node.keywords
            ), ast.unparse(node)


def declared() -> list[Requirement]:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    lines = parser["options"]["install_requires"].splitlines()
    for name in ("otel", "postgres", "redis"):
        lines += parser["options.extras_require"][name].splitlines()
    return [Requirement(line) for line in lines if line]


@pytest.mark.parametrize("requirement", declared(), ids=lambda each: each.name)
def test_every_dependency_has_two_ends_and_what_is_installed_lies_between(
    requirement: Requirement,
):
    bounds = {specifier.operator for specifier in requirement.specifier}
    assert ">=" in bounds and "<" in bounds
    assert requirement.specifier.contains(version(requirement.name))


def test_what_is_installed_fits_together():
    checked = subprocess.run(
        [sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout


def test_the_dependencies_are_few():
    plain = [each for each in requires("manifold-gateway") or [] if "extra ==" not in each]
    assert len(plain) <= 17
