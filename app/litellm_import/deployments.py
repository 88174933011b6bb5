"""Which of our deployments is meant by LiteLLM's model_id.

An entry without `model_info.id` has a hash of its name and every parameter at LiteLLM, credentials
included: so it is computed here of the very file that LiteLLM ran with. Source: LiteLLM,
litellm/router_api.py, deployment_id; read 2026-11.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from app.config_reading import Reading
from app.errors import OperationRefused
from app.providers import registry
from app.settings import Deployment, Settings, fingerprint, load


class Deployments:
    """LiteLLM's ids of deployments, and ours."""

    def __init__(self, settings: Settings, known: Mapping[str, Deployment]) -> None:
        self._settings = settings
        self._known = dict(known)
        by_name: dict[str, list[Deployment]] = {}
        for deployment in settings.deployments:
            by_name.setdefault(deployment.model_name or "", []).append(deployment)
        self._by_name = by_name

    def of(self, model_id: str) -> Deployment | None:
        """The deployment that LiteLLM calls so, None when nothing says which it is."""
        return self._known.get(model_id)

    def named(self, model_name: str) -> tuple[Deployment, ...]:
        """The deployments behind a model name."""
        return tuple(self._by_name.get(model_name, ()))

    def only_account(self) -> Deployment | None:
        """The account of `files_settings`, if there is one and no more."""
        accounts = self._settings.file_accounts
        return accounts[0] if len(accounts) == 1 else None

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those of these model names that the configuration has no deployment for."""
        stars = tuple(name[:-1] for name in self._by_name if name.endswith("*"))
        return [
            name
            for name in names
            if name not in self._by_name
            and not (stars and name.startswith(stars))
            and "*" not in name
        ]


def found(
    settings: Settings, path: Path, environ: Mapping[str, str], said: Mapping[str, str]
) -> Deployments:
    """What LiteLLM's config.yaml at `path` tells, and what the operator has said (`said`).

    Raises ConfigError for a file that cannot be understood, OperationRefused for a word of the
    operator's that means nothing.
    """
    ours = {deployment.id: deployment for deployment in settings.deployments}
    alike = {fingerprint(deployment): deployment for deployment in settings.deployments}
    theirs = load(path, environ, check=registry.mistakes)
    known: dict[str, Deployment] = dict(ours)
    reading = Reading(environ)
    document = reading.document(path)
    reading.add_environment(document.get("environment_variables"), "environment_variables")
    entries = document.get("model_list") or []
    for entry, deployment in zip(entries, theirs.deployments, strict=True):
        here = ours.get(deployment.id) or alike.get(fingerprint(deployment))
        if here is not None:
            known[_their_id(entry, reading.environ)] = here
    for model_id, name in said.items():
        behind = [d for d in settings.deployments if name in (d.id, d.model_name)]
        if len(behind) != 1:
            what = "no deployment is" if not behind else f"{len(behind)} deployments are"
            raise OperationRefused(
                f"--deployment {model_id}={name}: {what} called so; deployments: "
                + ", ".join(f"{d.id} ({d.model_name})" for d in settings.deployments)
            )
        known[model_id] = behind[0]
    return Deployments(settings, known)


def _their_id(entry: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    info = entry.get("model_info") or {}
    if info.get("id") is not None:
        return str(info["id"])
    params = _resolved(entry.get("litellm_params") or {}, environ)
    return deployment_id(str(entry.get("model_name", "")), params)


def deployment_id(model_name: str, params: Mapping[str, Any]) -> str:
    """LiteLLM's id of a deployment: its name, then keys and values in the order of the file."""
    parts = [model_name]
    for pair in params.items():
        for item in pair:
            if isinstance(item, str):
                parts.append(item)
            else:
                parts.append(json.dumps(item) if isinstance(item, dict) else str(item))
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def _resolved(value: Any, environ: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _resolved(item, environ) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolved(item, environ) for item in value]
    if isinstance(value, str) and value.startswith("os.environ/"):
        return environ.get(value.removeprefix("os.environ/"))
    return value
