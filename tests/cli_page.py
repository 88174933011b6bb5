"""The generated half of docs/cli.md, every command's own help: `python -m tests.cli_page`."""

from collections.abc import Iterator

import click

from app.cli import main
from tests.e2e.gateway import ROOT

PAGE = ROOT / "docs" / "cli.md"
MARK = "<!-- from here on written by `python -m tests.cli_page` -->\n"
WIDTH = 88


def commands(
    command: click.Command, name: str, above: click.Context | None = None
) -> Iterator[tuple[str, str]]:
    """Each command's full name and its help, groups before what is in them."""
    context = click.Context(
        command, info_name=name, parent=above, terminal_width=WIDTH, max_content_width=WIDTH
    )
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            found = command.get_command(context, inner)
            assert found is not None
            yield from commands(found, inner, context)


def generated() -> str:
    """The half of the page below the mark."""
    parts = [f"## {path}\n\n```text\n{text}\n```\n" for path, text in commands(main, "manifold")]
    return MARK + "\n" + "\n".join(parts)


def written() -> str:
    """The page as it should be: its own half as it is, the other one anew."""
    return PAGE.read_text().partition(MARK)[0] + generated()


if __name__ == "__main__":
    PAGE.write_text(written())
