"""Which account a call is for, by its arguments, a config.yaml or the environment."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from app.errors import (
    AmbiguousRouting,
    ConfigError,
    RoutingRequired,
    UnknownModel,
    UnknownProvider,
)
from app.providers import registry
from app.providers.account_params import AccountParams
from app.providers.protocol import Place, Provider
from app.sdk.threads import THREADS
from app.settings import Deployment, Settings, load

CONFIG = "MANIFOLD_CONFIG"
DEFAULT_PROVIDER = "openai"
_ACCOUNTS_KEPT_OPEN = 32


@dataclass(frozen=True)
class Account:
    """Where a call goes. `upstream_model` is empty when nothing names a model."""

    provider: Provider
    upstream_model: str


@dataclass(frozen=True)
class Wanted:
    """What a call says about its account; None and {} for what it does not say."""

    custom_llm_provider: str | None
    model: str | None
    config: str | os.PathLike[str] | None
    params: AccountParams


def account(wanted: Wanted, *, tuning: bool = False) -> Account:
    """The one account that is meant, its connections kept open for the next call.

    With a configuration it is one of that file's, and arguments win over what the file says;
    without one it is made of the arguments and, below them, of the environment. Raises
    ConfigError for a configuration or an account that is wrong, UnknownProvider, UnknownModel,
    AmbiguousRouting, RoutingRequired.
    """
    path = wanted.config or os.environ.get(CONFIG)
    if path:
        settings = _settings_at(Path(path))
        written = _configured(settings, wanted, tuning=tuning)
        deployment = _with_arguments(written, wanted.params)
        shared, data_dir = settings.file_accounts, settings.data_dir
    else:
        deployment = registry.from_environment(_described(wanted), os.environ)
        shared, data_dir = (), Settings.data_dir
    return Account(_provider(deployment, shared, data_dir), deployment.upstream_model)


def _described(wanted: Wanted) -> Deployment:
    """The deployment that the arguments describe."""
    provider, model = wanted.custom_llm_provider or "", wanted.model or ""
    if not provider and "/" in model:
        provider, _, model = model.partition("/")
    provider = provider or DEFAULT_PROVIDER
    described = Deployment(
        id=f"sdk:{provider}",
        model_name=None,
        provider=provider,
        upstream_model=model.removeprefix(f"{provider}/"),
    )
    return _with_arguments(described, wanted.params)


def _configured(settings: Settings, wanted: Wanted, *, tuning: bool) -> Deployment:
    """The deployment of the file that is meant."""
    provider, model = wanted.custom_llm_provider, wanted.model
    if provider is None and model is not None and not tuning:
        return _of_model(settings.deployments, model)
    tuning_accounts = settings.finetune_accounts if tuning else ()
    sections = [_default_first(s) for s in (tuning_accounts, settings.file_accounts) if s]
    accounts = [deployment for section in sections for deployment in section]
    if provider is not None:
        found = next((d for d in accounts if d.provider == provider), None)
        if found is None:
            known = ", ".join(sorted({d.provider for d in accounts})) or "none"
            raise UnknownProvider(
                f"no provider {provider!r:.200} in the configuration's files_settings; there: "
                f"{known}",
                param="custom_llm_provider",
            )
    else:
        found = _default(sections[0] if sections else [])
    return replace(found, upstream_model=(model or "").removeprefix(f"{found.provider}/"))


def _of_model(deployments: Sequence[Deployment], model: str) -> Deployment:
    found = [d for d in deployments if d.id == model]
    found = found or [d for d in deployments if model in (d.model_name, d.qualified_model)]
    found = [d for d in found if not d.is_wildcard]
    if not found:
        names = ", ".join(dict.fromkeys(d.model_name or "" for d in deployments)) or "none"
        raise UnknownModel(f"no model {model!r:.200} in the configuration: {names}", param="model")
    if len(found) > 1:
        # Which of them holds a file is what a gateway keeps in its database.
        ids = ", ".join(d.id for d in found)
        raise AmbiguousRouting(
            f"{len(found)} deployments serve the model {model!r:.200}; give the id of one as "
            f"model: {ids}",
            param="model",
        )
    return found[0]


def _default(accounts: Sequence[Deployment]) -> Deployment:
    chosen = [d for d in accounts if d.is_default] or (accounts if len(accounts) == 1 else [])
    chosen = chosen or [d for d in accounts if d.provider == DEFAULT_PROVIDER]
    if not chosen:
        known = ", ".join(dict.fromkeys(d.provider for d in accounts)) or "none"
        raise RoutingRequired(f"name where this should go: custom_llm_provider ({known}) or model")
    return chosen[0]


def _default_first(accounts: Sequence[Deployment]) -> list[Deployment]:
    return sorted(accounts, key=lambda d: not d.is_default)


def _with_arguments(deployment: Deployment, params: AccountParams) -> Deployment:
    given: dict[str, Any] = {key: value for key, value in params.items() if value is not None}
    timeout = given.pop("timeout", deployment.timeout_seconds)
    max_retries = given.pop("max_retries", deployment.max_retries)
    if "base_url" in given:
        given.setdefault("api_base", given.pop("base_url"))
    return replace(
        deployment,
        params={**deployment.params, **given},
        timeout_seconds=timeout,
        max_retries=max_retries,
    )


def _settings_at(path: Path) -> Settings:
    try:
        changed = path.stat().st_mtime_ns
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}"]) from None
    return _read(path.absolute(), changed, frozenset(os.environ.items()))


@lru_cache(maxsize=4)
def _read(path: Path, _changed: int, environ: frozenset[tuple[str, str]]) -> Settings:
    return load(path, dict(environ), check=registry.mistakes)


def _provider(deployment: Deployment, shared: Sequence[Deployment], data_dir: Path) -> Provider:
    told = [_told(each) for each in (deployment, *shared)]
    return _opened(os.getpid(), str(data_dir), *told)


def _told(deployment: Deployment) -> str:
    return json.dumps({**vars(deployment), "model_info": {}}, default=_plain, sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise ConfigError([f"{value!r:.60} is no value of an account"])


# A child of a fork must not use its parent's connections, hence the process id.
@lru_cache(maxsize=_ACCOUNTS_KEPT_OPEN)
def _opened(_pid: int, data_dir: str, told: str, *shared: str) -> Provider:
    deployment = Deployment(**json.loads(told))
    accounts = [Deployment(**json.loads(each)) for each in shared]
    place = Place(data_dir=Path(data_dir), pool_size=THREADS)
    try:
        provider = registry.open_all([deployment], accounts, place).get(deployment.id)
        return provider or registry.open_provider(deployment, place)
    except ConfigError as error:
        what = [m.removeprefix("litellm_params.") for m in error.mistakes]
        raise ConfigError([f"{deployment.provider}: {text}" for text in what]) from error
