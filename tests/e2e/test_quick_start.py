"""docs/quick-start.md from its top to its end, with a fake OpenAI in the place of the real one."""

import shutil
from pathlib import Path

import pytest

from tests.e2e.gateway import MANIFOLD, ROOT, Upstream
from tests.e2e.pages import Story
from tests.e2e.serve import Served, quoted
from tests.e2e.test_first_run import first_command

PAGE = ROOT / "docs" / "quick-start.md"


def test_the_page_is_true(upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    account = upstream.account("quick-start")
    shutil.copy(ROOT / "config.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    command = f"exec {quoted(MANIFOLD, 'serve', '--workers', '1')}"
    shown = "api_key: os.environ/OPENAI_API_KEY"
    replaced = {shown: f"{shown}\n      api_base: {account.api_base}"}
    start, *blocks = Story(PAGE, tmp_path).blocks
    assert start.text.strip() == first_command()  # test_first_run runs it.

    [configuration] = [block for block in blocks if block.file]
    until = blocks.index(configuration)
    with Served(command, tmp_path) as served:
        story = Story(PAGE, tmp_path, url=served.url, replaced=replaced)
        said = [story.tell(block) for block in blocks[:until]]
        assert '"filename":"notes.txt"' in "".join(filter(None, said)).replace(" ", "")
        story.tell(configuration)
    with Served(f"OPENAI_API_KEY={account.key} {command}", tmp_path) as served:
        again = Story(PAGE, tmp_path, url=served.url, replaced=replaced)
        said = [again.tell(block) for block in blocks[until + 1 :]]
        # Or the server would wait for its idle connection.
        again.names["client"].close()
    assert '"user_id":"lea"' in "".join(filter(None, said)).replace(" ", "")
    [chat] = [seen for seen in account.requests() if seen.path.endswith("/chat/completions")]
    [upload] = account.uploads()
    assert (upload.file or {})["filename"] == "report.pdf"
    assert "file-" in str(chat.json)
    assert account.files() == []
