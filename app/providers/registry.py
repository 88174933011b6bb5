"""Name -> class; the one line a new provider adds outside its own file."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from marshmallow import ValidationError

from app.errors import ConfigError
from app.providers.azure import Azure
from app.providers.gemini import Gemini
from app.providers.local import Local
from app.providers.openai import OpenAI
from app.providers.protocol import Place, Provider
from app.providers.vertex_ai import VertexAI
from app.settings import Deployment

PROVIDERS: tuple[type[Provider], ...] = (OpenAI, Azure, Local, VertexAI, Gemini)

NOT_YET = frozenset({"bedrock", "anthropic", "mistral"})
"""Providers that a LiteLLM config may name and that this version does not serve: their models
are left out with a warning instead of refusing a file that is right."""

_BY_NAME = {name: cls for cls in PROVIDERS for name in (cls.name, *cls.aliases)}


def open_provider(deployment: Deployment, place: Place) -> Provider:
    """The deployment's provider, ready to use. Raises ConfigError for wrong parameters."""
    cls = _BY_NAME.get(deployment.provider)
    if cls is None:
        raise ConfigError([f"litellm_params.model: {_unknown(deployment.provider)}"])
    try:
        return cls(deployment, place)
    except ValidationError as error:
        raise ConfigError(list(_texts(error.messages, cls))) from error


def open_all(
    deployments: Sequence[Deployment], accounts: Sequence[Deployment], place: Place
) -> dict[str, Provider]:
    """The providers of these deployments, by id; those that this version does not serve left out.

    A parameter that a provider shares and a deployment leaves out comes from the account of the
    same provider. Raises ConfigError.
    """
    return {d.id: open_provider(_completed(d, accounts), place) for d in deployments if serves(d)}


def from_environment(deployment: Deployment, environ: Mapping[str, str]) -> Deployment:
    """The deployment of somebody who has no configuration: what it leaves out is in `environ`.

    Not for a provider's other names: those are other people's servers.
    """
    cls = _BY_NAME.get(deployment.provider)
    if cls is None or cls.name != deployment.provider:
        return deployment
    return replace(deployment, params=cls.with_environment(deployment.params, environ))


def _completed(deployment: Deployment, accounts: Sequence[Deployment]) -> Deployment:
    cls = _BY_NAME[deployment.provider]
    shared = {
        key: account.params[key]
        for account in accounts
        if _BY_NAME.get(account.provider) is cls
        for key in cls.shared_params
        if key in account.params
    }
    return replace(deployment, params={**shared, **deployment.params}) if shared else deployment


def serves(deployment: Deployment) -> bool:
    """Whether this version speaks the deployment's provider."""
    return deployment.provider in _BY_NAME


def mistakes(deployment: Deployment) -> list[str]:
    """What is wrong with a deployment, one text each; a text may be a "warning: ..."."""
    if deployment.provider in NOT_YET:
        return [
            f"warning: litellm_params.model: provider {deployment.provider!r} is not served by "
            "this version; the model is left out"
        ]
    try:
        open_provider(deployment, Place(data_dir=Path()))
    except ConfigError as error:
        return list(error.mistakes)
    return []


def _unknown(provider: str) -> str:
    close = difflib.get_close_matches(provider, [*_BY_NAME, *NOT_YET], n=1)
    hint = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(sorted(_BY_NAME))}"
    return f"unknown provider {provider!r}{hint}"


def _texts(messages: Any, cls: type[Provider]) -> Iterable[str]:
    known = sorted(cls.Params().fields)
    for key, found in messages.items():
        for text in found if isinstance(found, list) else [str(found)]:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if key not in known and close else ""
            plain = text[:1].lower() + text[1:].removesuffix(".")
            yield f"litellm_params.{key}: {plain}{hint}"
