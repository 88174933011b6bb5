"""docs/configuration.md is what the code says, and names all that can be set."""

import re
from pathlib import Path

from app import config_page
from app.config_schema import GeneralSettings, RouterSettings
from app.providers.azure import DEFAULT_API_VERSION
from app.providers.registry import PROVIDERS
from app.providers.vertex_ai import DEFAULT_LOCATION

ROOT = Path(__file__).parent.parent
OWN_BUSINESS = {"MANIFOLD_ANNOUNCED", "MANIFOLD_PARENT"}
"""What our processes tell one another."""


def test_the_page_is_current():
    assert (ROOT / "docs" / "configuration.md").read_text() == config_page.page(), (
        f"write it anew: {config_page.COMMAND}"
    )


def test_every_key_has_a_meaning_and_a_row():
    text = config_page.page()
    for section in (GeneralSettings, RouterSettings):
        assert not [key for key in section.known() if f"| `{key}` |" not in text]
    for cls in PROVIDERS:
        for key, field in cls.Params().fields.items():
            assert f"| `{key}` |" in text
            assert field.metadata["description"], f"{cls.name}: {key}"
    for texts in config_page.MEANINGS.values():
        assert all(texts.values())
    # Two defaults that no schema knows, for the environment may say something else.
    assert f"else {DEFAULT_LOCATION}" in text
    assert f"else {DEFAULT_API_VERSION}" in text


def test_every_variable_of_ours_is_named():
    named = {
        name
        for path in (ROOT / "app").rglob("*.py")
        for name in re.findall(r"\bMANIFOLD_[A-Z_]+\b", path.read_text())
    }
    assert named - OWN_BUSINESS <= set(config_page.ENVIRONMENT)
