"""README.md and docs/: which blocks their pages show, and how those are run.

A fence says what its block is: `sh`, `python`, `yaml` (a configuration), `json`, or `text`, which
is shown and not run. `python no-run: why` is run where what it needs is at hand, not by itself.

Most pages are run block by block by test_readme.py, each block for itself, in a directory with the
configuration that is shipped and a gateway that serves it. A page whose blocks belong together is a
story: its first line is `<!-- run by tests/e2e/test_NAME.py -->`, and that test runs it with Story.
"""

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app import settings
from app.providers import registry
from app.settings import Settings
from tests.e2e.gateway import ROOT
from tests.e2e.serve import plain_environment, quoted

ADDRESS = "http://127.0.0.1:4000"
"""Where the pages say that the gateway is."""
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]

_RUN_BY = re.compile(r"<!-- run by (tests/\S+\.py) -->")
_FILE = re.compile(r"<!-- file: (\S+) -->")
_TIMEOUT_SECONDS = 120


@dataclass(frozen=True)
class Block:
    """A fenced block: what its fence says, its text, and where it stands."""

    page: str
    line: int
    info: str
    text: str
    before: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str | None:
        """The file it is the content of, by the line before it: `<!-- file: NAME -->`."""
        found = _FILE.fullmatch(self.before)
        return found[1] if found else None


def blocks_of(page: Path) -> list[Block]:
    """The blocks of a page, in their order."""
    blocks = []
    lines = page.read_text().splitlines()
    name = page.name if page.parent.name == "docs" else str(page.relative_to(ROOT))
    begun: int | None = None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if begun is None:
            begun = number
            continue
        text = "\n".join(lines[begun + 1 : number]) + "\n"
        before = lines[begun - 1] if begun else ""
        blocks.append(Block(name, begun + 1, lines[begun][3:].strip(), text, before))
        begun = None
    assert begun is None, f"{page} has a fence that does not end"
    return blocks


def run_by(page: Path) -> Path | None:
    """The test that runs a page as a story; None for a page whose blocks stand alone."""
    first = page.read_text().partition("\n")[0]
    found = _RUN_BY.fullmatch(first)
    return ROOT / found[1] if found else None


def run_python(text: str, url: str, **names: Any) -> dict[str, Any]:
    """Run a block in this process against the gateway at `url`; every name it leaves."""
    exec(compile(text.replace(ADDRESS, url), "page", "exec"), names)
    return names


def run_shell(
    command: str, place: Path, env: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run a block as a shell's script in `place`, with our programs first on its PATH."""
    environment = {**plain_environment(), **(env or {})}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=place,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_SECONDS,
        check=False,
    )


def configuration(text: str, path: Path) -> Settings:
    """The settings that a block of YAML makes, with every variable it names set to something."""
    path.write_text(text)
    variables = re.findall(r"os\.environ/(\w+)", text)
    values = dict.fromkeys(variables, "sk-x-0123456789-0123456789")
    if "DATABASE_URL" in values:
        values["DATABASE_URL"] = "postgresql://user@host/name"
    return settings.load(path, values, check=registry.mistakes)


class Story:
    """One page, block after block, in `place`, as somebody follows it who reads it from the top.

    A shell's block sees what those before it have exported and the directory they have gone to; a
    block of Python has the names of those before it. `replaced` is text of the page that is another
    one here: addresses of databases, providers and the like; the gateway's is `url`, which may be
    another one from some block on.
    """

    def __init__(
        self,
        page: Path,
        place: Path,
        *,
        url: str = ADDRESS,
        env: Mapping[str, str] | None = None,
        replaced: Mapping[str, str] | None = None,
        names: Mapping[str, Any] | None = None,
    ) -> None:
        self.blocks = blocks_of(page)
        self.names: dict[str, Any] = dict(names or {})
        self._place = place
        self._env = env
        self.url = url
        self._replaced = dict(replaced or {})

    def run(self) -> list[str]:
        """Run every block; what each of a shell has printed. Fails at the first that fails."""
        return [said for block in self.blocks if (said := self.tell(block)) is not None]

    def tell(self, block: Block) -> str | None:
        """Run one block; what it has printed, None for one that is not a shell's."""
        text = block.text
        for shown, here in {ADDRESS: self.url, **self._replaced}.items():
            text = text.replace(shown, here)
        if block.file is not None:
            (self._place / block.file).write_text(text)
        elif block.info == "sh":
            return self._shell(block, text)
        elif block.info.startswith("python"):
            self.names = run_python(text, self.url, **self.names)
        elif block.info == "yaml":
            assert configuration(text, self._place / "shown.yaml").deployments, block
        elif block.info == "json":
            json.loads(text)
        else:
            assert block.info == "text", f"{block}: {block.info!r} is not run here"
        return None

    def _shell(self, block: Block, text: str) -> str:
        state = self._place / ".shell"
        before = f". {quoted(state)}\n" if state.exists() else ""
        after = f'\n{{ export -p; echo cd "$(printf %q "$PWD")"; }} > {quoted(state)}\n'
        done = run_shell(before + text + after, self._place, self._env)
        assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"
        return done.stdout
