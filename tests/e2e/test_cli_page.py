"""docs/cli.md: its examples work from top to end, and its reference is what the commands say."""

import yaml

from app.cli import main
from tests.cli_page import PAGE, commands, written
from tests.e2e.conftest import StartGateway
from tests.e2e.gateway import Upstream, model
from tests.e2e.pages import Story
from tests.e2e.upstream_jobs import rows


def test_the_page_is_told_from_its_top(upstream: Upstream, start_gateway: StartGateway, tmp_path):
    account = upstream.account("cli-page", batch_delay_s=0.0)
    config = {
        "model_list": [
            {"model_name": "documents", "litellm_params": {"model": "local/documents"}},
            model("gpt-4o", "openai/gpt-4o", account),
        ],
        "general_settings": {"default_target_model_names": ["documents"]},
    }
    gateway = start_gateway(config, workers=1)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(gateway.config))
    (tmp_path / "report.pdf").write_bytes(b"%PDF-1.7 ...")
    (tmp_path / "rows.jsonl").write_bytes(rows(2, "gpt-4o"))
    story = Story(PAGE, tmp_path, env={"MANIFOLD_URL": gateway.url})
    said = "".join(story.run())
    assert "documents\n" in said and "completed: 2 of 2 rows answered" in said
    assert (tmp_path / "answers.jsonl").exists() and (tmp_path / "_manifold").stat().st_size


def test_the_reference_is_what_the_commands_say():
    assert PAGE.read_text() == written(), "run `python -m tests.cli_page`"


def test_every_command_has_help_and_an_example():
    for path, text in commands(main, "manifold"):
        usage, _, rest = text.partition("\n\n")
        assert usage.startswith("Usage: ") and rest.strip()[:1].isupper(), path
        if path not in ("manifold", "manifold db", "manifold master-key", "manifold completion"):
            assert f"\n  {path}" in text, f"{path} has no example"


def test_whatever_prints_can_print_json():
    silent = ("serve", "worker", "completion")
    for path, text in commands(main, "manifold"):
        if "COMMAND [ARGS]" not in text and path.split()[-1] not in silent:
            assert "--json" in text, path
