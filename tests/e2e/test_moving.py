"""docs/moving-from-litellm.md, told from its top on what LiteLLM has left behind."""

from pathlib import Path

import openai
import pytest

from app.litellm_import.deployments import deployment_id
from tests.e2e import inside
from tests.e2e.gateway import MANIFOLD, ROOT, Upstream
from tests.e2e.pages import Story
from tests.e2e.serve import Served, quoted
from tests.litellm_rows import LiteLLM

PAGE = ROOT / "docs" / "moving-from-litellm.md"
THEIRS = "postgresql://litellm:secret@127.0.0.1/litellm"
OLD_KEY = "sk-old-0123456789abcdef"
MASTER = "sk-litellm-master-0123456789abcdef"


def test_the_page_is_told_from_its_top(
    upstream: Upstream,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    account = upstream.account("moving", download_any=True)
    params = {
        "model": "openai/gpt-4o",
        "api_key": account.key,
        "api_base": account.api_base,
        "rpm": 500,
    }
    with openai.OpenAI(
        base_url=account.api_base,
        api_key=account.key,
        http_client=openai.DefaultHttpxClient(trust_env=False),
    ) as direct:
        stored = direct.files.create(file=("report.pdf", b"old"), purpose="user_data")
    env = {
        "OPENAI_API_KEY": account.key,
        "LITELLM_MASTER_KEY": MASTER,
        "NO_PROXY": "127.0.0.1",
        "OLD_KEY": OLD_KEY,
    }
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with inside.scratch_postgres() as url:
        litellm = LiteLLM(url)
        for user in ("lea", "max"):
            litellm.user(user)
        litellm.key(OLD_KEY, user_id="lea")
        litellm.key("sk-max-0123456789abcdef", user_id="max")
        told = {"bytes": 3, "filename": "report.pdf", "purpose": "user_data"}
        at = {deployment_id("gpt-4o", params): stored.id}
        file_id = litellm.file(at, ["gpt-4o"], told, created_by="lea")
        litellm.close()
        replaced = {THEIRS: f"'{url}'", "https://api.openai.com/v1": account.api_base}
        story = Story(PAGE, tmp_path, env=env, replaced=replaced)
        [shown] = [b.text for b in story.blocks if b.info == "text" and "TAKEN" in b.text]
        at_start = _serve(story)
        before, after = story.blocks[:at_start], story.blocks[at_start + 1 :]
        said = [text for block in before if (text := story.tell(block)) is not None]
        # What the page shows is what the dry run has said.
        assert [line.rstrip() for line in shown.splitlines()] == [
            line.rstrip() for line in said[1].splitlines() if not line.startswith("from ")
        ]
    words = [f"{name}={quoted(value)}" for name, value in env.items()]
    command = f"{' '.join(words)} exec {quoted(MANIFOLD, 'serve', '--workers', '1')}"
    with Served(command, tmp_path) as served:
        story.url = served.url
        for block in after:
            story.tell(block)
        story.names["client"].close()
    out = capsys.readouterr().out
    assert "['gpt-4o']" in out and f"{file_id} report.pdf 3" in out


def _serve(story: Story) -> int:
    """Where the page starts the gateway."""
    [at] = [n for n, b in enumerate(story.blocks) if b.text == "manifold serve\n"]
    return at
