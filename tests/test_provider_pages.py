"""docs/providers/: a page for every provider, and what it says of operations is the code's."""

import re
from pathlib import Path

import pytest

from app.providers.protocol import Operation, Provider
from app.providers.registry import PROVIDERS

PAGES = Path(__file__).parent.parent / "docs" / "providers"
OF_OTHERS = {"openai-compatible.md"}
"""Pages of what is no provider of its own."""


def page_of(cls: type[Provider]) -> Path:
    return PAGES / f"{cls.name.replace('_', '-')}.md"


def test_every_provider_has_a_page():
    assert {page.name for page in PAGES.glob("*.md")} == {
        page_of(cls).name for cls in PROVIDERS
    } | OF_OTHERS


@pytest.mark.parametrize("cls", PROVIDERS, ids=lambda cls: cls.name)
def test_a_page_names_what_its_provider_does(cls: type[Provider]):
    row = re.search(r"(?m)^\| operations \| (.*) \|$", page_of(cls).read_text())
    assert row
    assert row[1].split(", ") == [each.value for each in Operation if each in cls.operations]


def test_every_prefix_is_on_a_page():
    text = "".join(page.read_text() for page in PAGES.glob("*.md"))
    # Its old name for completions at OpenAI; nobody should start with it.
    names = {name for cls in PROVIDERS for name in (cls.name, *cls.aliases)}
    assert not [n for n in names - {"text-completion-openai"} if f"`{n}/`" not in text]
