"""Which account a call is for: what is said, what is left out, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from app import sdk
from app.errors import AmbiguousRouting, NotSupported, RoutingRequired, UnknownModel
from app.providers.account_params import AccountParams
from app.providers.azure import Azure
from app.providers.protocol import Provider
from app.providers.registry import PROVIDERS
from app.sdk.accounts import Account, Wanted, account

ADDRESS = "http://127.0.0.1:9/v1"


def wanted(
    provider: str | None = None, model: str | None = None, config: Path | None = None, **params: Any
) -> Wanted:
    return Wanted(provider, model, config, params)  # type: ignore[arg-type]  # wrong ones too


def key_of(found: Account) -> Any:
    return found.provider.params["api_key"]


def test_every_parameter_of_every_provider_can_be_said():
    own = {name for cls in PROVIDERS for name in cls.Params().fields}
    assert set(AccountParams.__annotations__) == own | {"timeout", "max_retries", "base_url"}


@pytest.mark.parametrize("cls", PROVIDERS, ids=lambda cls: cls.name)
def test_what_a_provider_reads_in_the_environment_is_a_parameter(cls: type[Provider]):
    assert set(cls.environment) <= set(cls.Params().fields)


def test_arguments_win_over_the_environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-environment")
    monkeypatch.setenv("OPENAI_API_BASE", ADDRESS)
    found = account(wanted())
    assert (found.provider.name, key_of(found)) == ("openai", "sk-environment")
    assert found.provider.params["api_base"] == ADDRESS
    said = account(wanted("openai", "openai/gpt-4o", api_key="sk-said", timeout=3, max_retries=0))
    assert (key_of(said), said.upstream_model) == ("sk-said", "gpt-4o")
    assert said.provider.deployment.timeout_seconds == 3
    assert account(wanted(base_url="http://other/v1")).provider.params["api_base"] == (
        "http://other/v1"
    )
    assert account(wanted(model="azure/x", api_base="http://a", api_key="k")).provider.name == (
        "azure"
    )


def test_a_call_keeps_its_accounts_connections(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-one")
    first = account(wanted()).provider
    assert account(wanted("openai")).provider is first
    monkeypatch.setenv("OPENAI_API_KEY", "sk-two")
    assert key_of(account(wanted())) == "sk-two"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({}, {"tenant_id", "client_id", "client_secret"}),
        ({"api_key": "k"}, {"api_key"}),
        ({"tenant_id": "t", "client_id": "c", "client_secret": "s"}, None),
    ],
)
def test_azure_takes_a_credential_whole(given, kept):
    environ = {"AZURE_TENANT_ID": "et", "AZURE_CLIENT_ID": "ec", "AZURE_CLIENT_SECRET": "es"}
    found = Azure.with_environment(given, environ)
    assert set(found) == (set(given) if kept is None else kept)
    assert {key: found[key] for key in given} == given
    assert Azure.with_environment({}, {"AZURE_TENANT_ID": "et", "AZURE_API_KEY": "k"}) == {
        "api_key": "k"
    }


def test_another_server_never_gets_openais_key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    assert key_of(account(wanted("custom_openai", api_base=ADDRESS))) is None


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (wanted(), "openai: api_key: missing"),
        (wanted("azure", api_key="k"), "azure: api_base: missing"),
        (wanted("openai", api_kee="sk-secret"), "api_kee: unknown field; did you mean 'api_key'"),
        (wanted("nobody"), "unknown provider 'nobody'"),
        (wanted("gemini"), "gemini: api_key: missing"),
        (wanted(config=Path("none.yaml")), "none.yaml: No such file"),
    ],
)
def test_what_is_wrong_is_told_without_a_secret(given, told):
    with pytest.raises(sdk.ConfigError, match=told) as raised:
        account(given)
    assert "sk-secret" not in str(raised.value)


def configured(tmp_path: Path, **more: Any) -> Path:
    path = tmp_path / "config.yaml"
    openai = {"api_base": ADDRESS, "api_key": "sk-models"}
    content = {
        "model_list": [
            {"model_name": "gpt", "litellm_params": {"model": "openai/gpt-4o", **openai}},
            {
                "model_name": "gpt",
                "litellm_params": {"model": "azure/mine", "api_base": ADDRESS, "api_key": "k"},
                "model_info": {"id": "azure-eu"},
            },
            {"model_name": "x/*", "litellm_params": {"model": "openai/*", **openai}},
        ],
        **more,
    }
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_model_of_the_configuration(tmp_path):
    config = configured(tmp_path)
    found = account(wanted(model="azure-eu", config=config))
    assert (found.provider.name, found.upstream_model) == ("azure", "mine")
    assert account(wanted(model="openai/gpt-4o", config=config)).provider.name == "openai"
    with pytest.raises(AmbiguousRouting, match="azure-eu"):
        account(wanted(model="gpt", config=config))
    with pytest.raises(UnknownModel, match="gpt"):
        account(wanted(model="x/y", config=config))
    with pytest.raises(RoutingRequired):
        account(wanted(config=config))


def test_the_account_of_a_provider_is_that_of_what_is_asked(tmp_path):
    def entry(key: str, **more: Any) -> dict[str, Any]:
        return {"custom_llm_provider": "openai", "api_base": ADDRESS, "api_key": key, **more}

    config = configured(
        tmp_path,
        files_settings=[entry("sk-first"), entry("sk-default", default=True)],
        finetune_settings=[entry("sk-tuning")],
    )
    assert key_of(account(wanted(config=config))) == "sk-default"
    assert key_of(account(wanted("openai", config=config))) == "sk-default"
    assert key_of(account(wanted("openai", config=config), tuning=True)) == "sk-tuning"
    assert key_of(account(wanted(config=config), tuning=True)) == "sk-tuning"
    assert key_of(account(wanted("openai", config=config, api_key="sk-said"))) == "sk-said"


def test_what_a_provider_cannot_do_is_told():
    with pytest.raises(NotSupported, match="'local' does not support batches"):
        sdk.list_batches(custom_llm_provider="local")
