"""Whatever config.yaml holds: settings, or mistakes that say where they are and tell no secret."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.config_schema import (
    AccountEntry,
    GeneralSettings,
    ModelEntry,
    ModelInfo,
    RouterSettings,
    TopLevel,
)
from app.errors import ConfigError
from app.providers import registry
from app.settings import Settings, load

SECRET = "sk-s3cr3t-hunter2"
ENVIRON = {"SECRET": SECRET, "NUMBER": "3", "EMPTY": ""}
PLACE = re.compile(r".+: \S.*")

words = st.sampled_from(
    [
        "",
        "a",
        "openai/gpt",
        "azure/x",
        "gemini/y",
        "vertex_ai/z",
        "local/s",
        "openai/*",
        "nope/x",
        "3",
    ]
) | st.text(max_size=6)
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats()
    | words
    | st.dates()
    | st.sampled_from(["os.environ/NUMBER", "os.environ/EMPTY", "os.environ/NO"])
)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(words | st.integers(), inner, max_size=3)
    ),
    max_leaves=6,
)
hidden = st.sampled_from(
    [SECRET, [SECRET], {"x": SECRET}, "os.environ/SECRET", f"postgresql://u:{SECRET}@h/d"]
)
SECRET_KEYS = (
    "api_key",
    "azure_ad_token",
    "client_secret",
    "vertex_credentials",
    "organization",
    "headers",
)


def section(keys, *, secrets: tuple[str, ...] = (), **known: st.SearchStrategy[Any]):
    """A mapping with some of a schema's keys, what each may hold, and now and then another one."""
    entries: dict[str, st.SearchStrategy[Any]] = dict.fromkeys(keys, trees)
    entries |= dict.fromkeys(secrets, hidden)
    return st.fixed_dictionaries({}, optional=entries | known) | trees


infos = section(ModelInfo.known())
params = section(
    ("model", "custom_llm_provider", "weight", "timeout", "max_retries", "api_base", "api_version"),
    secrets=SECRET_KEYS,
    model=words,
)
models = section(ModelEntry.known(), model_name=words, litellm_params=params, model_info=infos)
accounts = section(AccountEntry.known(), secrets=SECRET_KEYS, custom_llm_provider=words)
documents = section(
    TopLevel.known(),
    model_list=st.lists(models, max_size=3) | trees,
    files_settings=st.lists(accounts, max_size=2) | trees,
    finetune_settings=st.lists(accounts, max_size=2) | trees,
    general_settings=section(
        GeneralSettings.known(), secrets=("master_key", "database_url", "previous_master_keys")
    ),
    router_settings=section(RouterSettings.known()),
    environment_variables=st.dictionaries(words, hidden | trees, max_size=2) | trees,
)


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    made: Path = tmp_path_factory.mktemp("any") / "config.yaml"
    return made


def mistakes(path: Path) -> tuple[str, ...]:
    """What is wrong with the file; nothing that is told of it may hold the secret."""
    try:
        found = load(path, ENVIRON, check=registry.mistakes)
    except ConfigError as error:
        assert SECRET not in str(error)
        assert error.mistakes
        return error.mistakes
    assert isinstance(found, Settings)
    assert SECRET not in repr(found)
    assert all(SECRET not in warning for warning in found.warnings)
    return ()


@settings(max_examples=150, deadline=None)
@given(documents)
@example({"": 1})
@example({"general_settings": {"a\nb: c": 1}})
def test_any_tree_loads_or_is_refused_with_the_place(path, document):
    path.write_text(yaml.safe_dump(document, allow_unicode=True), encoding="utf-8")
    for mistake in mistakes(path):
        assert PLACE.match(mistake), mistake


pieces = st.sampled_from(
    [
        "model_list:",
        "\n",
        "\n  ",
        "- ",
        "{",
        "}",
        "[",
        "]",
        ": ",
        "&a ",
        "*a",
        "<<: ",
        "!!python/x ",
        "? ",
        "| ",
        "'",
        '"',
        "\t",
        "#",
        "---",
        "!!int ",
        "!!binary ",
        "1e400",
        "api_key: ",
        "\u2028",
        "%",
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(pieces | st.text(max_size=4), max_size=25).map("".join))
@example("model_list: !!int ")
@example("model_list: !!bool x")
def test_any_text_loads_or_is_refused(path, text):
    path.write_text(text, encoding="utf-8", errors="replace", newline="")
    mistakes(path)


@given(st.binary(max_size=40))
def test_any_bytes_load_or_are_refused(path, content):
    path.write_bytes(content)
    mistakes(path)
