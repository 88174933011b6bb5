"""README.md and docs/: every link leads somewhere, every page is in the index."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("**/*.md"))]
MOST_BYTES = 150_000


def prose(page: Path) -> str:
    """The page without its blocks."""
    return re.sub(r"(?ms)^```.*?^```", "", page.read_text())


def anchors(page: Path) -> set[str]:
    """What its headings are called in an address."""
    titles = re.findall(r"(?m)^#+ (.*)$", prose(page))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links(page: Path) -> list[tuple[Path, str]]:
    """Each link's file and anchor; those to other sites are left out."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    split = [link.partition("#") for link in found if "://" not in link]
    return [((page.parent / path).resolve() if path else page, name) for path, _, name in split]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    for target, anchor in links(page):
        assert target.exists(), target
        assert target.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(target), f"{target}#{anchor}"


def test_every_page_is_in_the_index():
    index = DOCS / "README.md"
    linked = {target for target, _ in links(index)}
    assert {page.resolve() for page in DOCS.glob("**/*.md")} - {index.resolve()} <= linked


def test_pictures_are_small_and_need_nothing_from_elsewhere():
    for picture in (DOCS / "images").iterdir():
        assert picture.stat().st_size < MOST_BYTES, picture
        if picture.suffix != ".svg":
            continue
        text = picture.read_text()
        root = ElementTree.fromstring(text)
        names = {each.tag.rpartition("}")[2] for each in root.iter()}
        # What a reader of a screen says, and what a dark page shows.
        assert {"title", "desc"} <= names, picture
        assert "prefers-color-scheme: dark" in text, picture
        assert not names & {"script", "image", "foreignObject"}, picture
        assert not re.search(r"(href|src|url)\s*[=(]\s*[\"']?(?!#)\w", text), picture
