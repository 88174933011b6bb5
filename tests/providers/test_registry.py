"""Names become providers, and wrong deployments become mistakes with their path."""

import pytest

from app.errors import ConfigError
from app.providers.registry import NOT_YET, PROVIDERS, mistakes, open_provider, serves
from tests.builders import make_deployment, make_place

NAMES = {name: cls for cls in PROVIDERS for name in (cls.name, *cls.aliases)}


PARAMS = {
    "openai": {"api_key": "k", "api_base": "http://host/v1"},
    "azure": {"api_key": "k", "api_base": "http://host"},
    "local": {"api_base": "http://host/v1"},
    "vertex_ai": {"vertex_project": "p", "gcs_bucket_name": "b"},
    "gemini": {"api_key": "k"},
}
"""What opens each provider."""


def deployment(provider, **params):
    return make_deployment(provider=provider, params=params)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_and_its_aliases_open_their_provider(name):
    params = PARAMS[NAMES[name].name]
    assert serves(deployment(name))
    provider = open_provider(deployment(name, **params), make_place())
    assert type(provider) is NAMES[name]
    assert provider.deployment.provider == name
    assert mistakes(deployment(name, **params)) == []


@pytest.mark.parametrize(
    ("provider", "params", "text"),
    [
        ("opnai", {}, "litellm_params.model: unknown provider 'opnai'; did you mean 'openai'?"),
        ("azur", {}, "litellm_params.model: unknown provider 'azur'; did you mean 'azure'?"),
        ("openai", {"api_key": "k", "api_bass": "x"}, "did you mean 'api_base'?"),
        ("openai", {"api_key": "k", "api_bass": "x"}, "litellm_params.api_bass: unknown field"),
        ("openai", {}, "litellm_params.api_key: missing: api.openai.com needs a key"),
        ("openai", {"api_key": 5}, "litellm_params.api_key: not a valid string"),
        ("openai", {"api_key": ""}, "litellm_params.api_key: must be printable ASCII"),
        ("openai", {"api_key": "k", "api_base": "x"}, "litellm_params.api_base: must be an addr"),
        ("custom_openai", {"api_key": "k"}, "litellm_params.api_base: missing"),
        ("azure", {"api_key": "k"}, "litellm_params.api_base: missing: the resource's address"),
        ("azure", {"api_base": "http://h"}, "litellm_params.api_key: missing: give api_key,"),
        ("vertex_ai", {"vertex_projekt": "p"}, "did you mean 'vertex_project'?"),
        ("gemini", {"api_key": "k\n"}, "litellm_params.api_key: must be printable ASCII"),
    ],
)
def test_a_mistake_names_its_place(provider, params, text):
    found = mistakes(deployment(provider, **params))
    assert any(mistake.startswith(text) or text in mistake for mistake in found), found
    with pytest.raises(ConfigError) as refusal:
        open_provider(deployment(provider, **params), make_place())
    assert list(refusal.value.mistakes) == found


def test_an_unknown_name_that_is_like_none_is_told_all():
    [mistake] = mistakes(deployment("quantum"))
    assert all(name in mistake for name in NAMES)


def test_all_mistakes_are_told_at_once():
    found = mistakes(deployment("openai", api_key=5, api_base="x", nonsense=1))
    assert len(found) == 3


def test_a_mistake_never_shows_a_secret():
    secret = "sk-very-secret\n"
    for name in ("openai", "azure"):
        found = mistakes(deployment(name, api_key=secret, api_base=secret, tenant_id=secret))
        assert found and "sk-very" not in "".join(found)


@pytest.mark.parametrize("name", sorted(NOT_YET))
def test_what_comes_later_is_a_warning(name):
    [warning] = mistakes(deployment(name))
    assert warning.startswith("warning: litellm_params.model: ")
    assert not serves(deployment(name))
    assert name not in NAMES


def test_checking_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, cls in NAMES.items():
        mistakes(deployment(name, **PARAMS[cls.name]))
    assert list(tmp_path.iterdir()) == []
