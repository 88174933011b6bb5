"""A fresh clone and the README's first command, then the ordinary client without an extra argument.

The first of these makes a virtual environment and lets pip fill it, which takes half a minute.
"""

import random
import re
import shutil
import stat
import subprocess
from contextlib import closing
from pathlib import Path

import openai
import pytest

from tests.e2e.gateway import MANIFOLD, ROOT
from tests.e2e.serve import Served, plain_environment, quoted

PDF = b"%PDF-1.7\n" + random.Random(1).randbytes(300_000)
README = ROOT / "README.md"


def first_command() -> str:
    """The first command that the README shows."""
    found = re.search(r"^```sh\n(.*)\n```$", README.read_text(), re.MULTILINE)
    assert found
    return found[1]


def client(url: str, directory: Path) -> openai.OpenAI:
    key = (directory / "data" / "master_key").read_text().strip()
    return openai.OpenAI(base_url=url, api_key=key)


def clone(target: Path) -> Path:
    """What a clone of the working tree as it is now would hold."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


def test_a_fresh_clone_serves_after_one_command(tmp_path):
    """Slow: a new environment, with everything that the package needs."""
    place = clone(tmp_path / "manifold")
    before = {path.name for path in place.iterdir()}

    with Served(first_command(), place, ready_timeout=180) as served:
        key_file = place / "data" / "master_key"
        assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
        assert stat.S_IMODE(key_file.parent.stat().st_mode) == 0o700
        key = key_file.read_text().strip()
        assert re.fullmatch(r"sk-[\w-]{32,}", key)
        assert served.log_text().count(key) == 1
        assert served.url in served.log_text()

        with closing(client(served.url, place)) as someone:
            file = someone.files.create(file=("report.pdf", PDF), purpose="user_data")
            assert (file.filename, file.bytes, file.status) == ("report.pdf", len(PDF), "processed")
            assert [f.id for f in someone.files.list()] == [file.id]
            assert someone.files.retrieve(file.id) == file
            assert someone.files.content(file.id).read() == PDF
            assert someone.files.delete(file.id).deleted
            assert list(someone.files.list()) == []
            kept = someone.files.create(file=("kept.pdf", PDF), purpose="user_data")
        assert served.stop() == 0
        assert '"level": "ERROR"' not in served.log_text()
    # Everything it wrote is in a place of its own, which git ignores.
    made = {path.name for path in place.iterdir()} - before
    logs = {"served.stdout", "served.stderr"}
    assert made - logs == {".venv", "data", "manifold_gateway.egg-info", "__pycache__"}
    ignored = (place / ".gitignore").read_text().split()
    assert {".venv/", "/data/", "*.egg-info/"} <= set(ignored)

    with Served(".venv/bin/manifold serve", place) as again:
        assert key not in again.log_text()
        assert key_file.read_text().strip() == key
        with closing(client(again.url, place)) as someone:
            assert someone.files.content(kept.id).read() == PDF
            assert someone.files.delete(kept.id).deleted
        assert again.stop() == 0
        assert key not in again.log_text()


def test_a_key_of_ones_own_is_neither_made_nor_shown(tmp_path):
    shutil.copy(ROOT / "config.yaml", tmp_path)
    command = f"MANIFOLD_MASTER_KEY=sk-my-own-0123456789 exec {quoted(MANIFOLD, 'serve')}"
    with Served(command, tmp_path) as served:
        assert not (tmp_path / "data" / "master_key").exists()
        with closing(openai.OpenAI(base_url=served.url, api_key="sk-my-own-0123456789")) as someone:
            assert [m.id for m in someone.models.list()] == ["documents", "archive"]
        assert served.stop() == 0
        assert "sk-my-own" not in served.log_text()


MISTAKEN = """
model_list:
  - model_name: a
    litellm_params:
      model: openai/gpt-4o
  - model_name: "b;c"
    litellm_params:
      model: azure/x
      api_key: os.environ/NOT_SET_ANYWHERE
      api_bose: http://127.0.0.1
general_settings:
  max_file_size: 5
  fan_out: sometimes
"""


@pytest.mark.parametrize("command", ["serve", "gunicorn"])
def test_mistakes_in_the_configuration_are_shown_at_once(tmp_path, command):
    path = tmp_path / "config.yaml"
    path.write_text(MISTAKEN)
    words = [MANIFOLD, "serve", "--port", "0"]
    env = plain_environment()
    if command == "gunicorn":
        words = [str(Path(MANIFOLD).with_name("gunicorn")), "-c", "python:app.serving", "wsgi:app"]
        words += ["--bind", "127.0.0.1:0", "--chdir", str(ROOT)]
        env["MANIFOLD_CONFIG"] = str(path)
    done = subprocess.run(
        words,
        cwd=tmp_path if command == "serve" else ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert done.returncode not in (0, None)
    shown = done.stdout + done.stderr
    for text in (
        "model_list.0.litellm_params.api_key",
        "model_list.1.model_name",
        "NOT_SET_ANYWHERE",
        "api_bose",
        "api_base",
        "general_settings.max_file_size",
        "max_file_size_mb",
        "general_settings.fan_out",
    ):
        assert text in shown, text
    assert "Traceback" not in shown
    assert not (tmp_path / "data").exists()


def test_a_missing_configuration_is_told(tmp_path):
    done = subprocess.run(
        [MANIFOLD, "serve"],
        cwd=tmp_path,
        env=plain_environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert "config.yaml: no such file" in done.stderr
    assert list(tmp_path.iterdir()) == []
