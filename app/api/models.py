"""/models, /model/info, /model_group/info: what this key may call."""

from typing import Any

from flask import Blueprint

from app.api.auth import Guard, guard
from app.api.context import caller, services
from app.errors import NotFound
from app.objects import Model, Page, page

blueprint = Blueprint("models", __name__)
info = Blueprint("model_info", __name__)

_SINCE = 1677610602
"""`created` of every model, as LiteLLM gives it: a configuration has no such date."""


def _model(name: str) -> Model:
    return {"id": name, "object": "model", "created": _SINCE, "owned_by": "manifold"}


@blueprint.get("/models")
@guard(Guard.ANY_KEY)
def list_() -> Page:
    """The models that this key may use, all of them on one page."""
    names = services().router.model_names(caller())
    return page([_model(name) for name in names], has_more=False)


@blueprint.get("/models/<path:model>")
@guard(Guard.ANY_KEY)
def retrieve(model: str) -> Model:
    """One model."""
    if model not in services().router.model_names(caller()):
        raise NotFound(
            f"The model {model[:200]!r} does not exist or you do not have access to it",
            param="model",
            code="model_not_found",
        )
    return _model(model)


@info.get("/model/info")
@guard(Guard.ANY_KEY)
def deployments() -> dict[str, Any]:
    """The deployments behind the models of this key, without addresses and credentials."""
    return {
        "data": [
            {
                "model_name": deployment.model_name,
                "litellm_params": {
                    "model": deployment.qualified_model,
                    "custom_llm_provider": deployment.provider,
                    "weight": deployment.weight,
                },
                "model_info": {**deployment.model_info, "id": deployment.id},
            }
            for deployment in services().router.deployments(caller())
        ]
    }


@info.get("/model_group/info")
@guard(Guard.ANY_KEY)
def groups() -> dict[str, Any]:
    """One entry a model name: which providers serve it, by how many deployments."""
    found: dict[str, dict[str, Any]] = {}
    for deployment in services().router.deployments(caller()):
        name = deployment.model_name or ""
        group = found.setdefault(
            name, {"model_group": name, "providers": [], "mode": deployment.mode, "deployments": 0}
        )
        group["deployments"] += 1
        if deployment.provider not in group["providers"]:
            group["providers"].append(deployment.provider)
    return {"data": list(found.values())}
