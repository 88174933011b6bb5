"""/chat/completions, /completions, /embeddings, /responses: relayed to a deployment."""

from collections.abc import Callable

from flask import Blueprint, Response, request

from app import signals
from app.api import body, hangup, target
from app.api.auth import Guard, guard
from app.api.context import caller, note, services
from app.providers.protocol import Operation
from app.services.inference import Inference
from app.services.router import Route
from app.transfers import Cancellation

blueprint = Blueprint("inference", __name__)
azure_clients = Blueprint("azure_clients", __name__)
"""Where the AzureOpenAI class sends what has a deployment in its path."""

_OPERATIONS = (
    Operation.CHAT,
    Operation.COMPLETIONS,
    Operation.EMBEDDINGS,
    Operation.RESPONSES,
)
_IN_DEPLOYMENT = (Operation.CHAT, Operation.COMPLETIONS, Operation.EMBEDDINGS)


def _view(operation: Operation) -> Callable[..., Response]:
    @guard(Guard.WRITE)
    def relay(**_: str) -> Response:
        return _relay(operation)

    relay.__doc__ = f"The upstream's answer to {operation.value}, as it arrives."
    return relay


for _operation in _OPERATIONS:
    blueprint.add_url_rule(
        f"/{_operation.value}",
        _operation.name.lower(),
        view_func=_view(_operation),
        methods=["POST"],
    )
for _operation in _IN_DEPLOYMENT:
    for _blueprint, _place in ((blueprint, "engines"), (azure_clients, "deployments")):
        _blueprint.add_url_rule(
            f"/{_place}/<path:model>/{_operation.value}",
            f"{_place}_{_operation.name.lower()}",
            view_func=_view(_operation),
            methods=["POST"],
        )


def _label(route: Route) -> str:
    """The model's name as the configuration has it; nobody's own names."""
    return route.deployment.model_name or "by provider"


def _relay(operation: Operation) -> Response:
    document = Inference.read(body.read())
    found = {span.path[0]: span.value for span in document.spans if len(span.path) == 1}
    target.refuse_forbidden({member.key: None for member in document.members})
    cancellation = Cancellation()
    stop_watching = hangup.watch(request.environ.get("gunicorn.socket"), cancellation.cancel)
    try:
        answer = services().inference.run(
            caller(), operation, document, target.hints(found), cancellation
        )
    except BaseException:
        stop_watching()
        raise
    note(deployment=answer.route.deployment.id)
    reply = answer.reply
    signals.tell().inferred(_label(answer.route), operation.value, reply.status)
    response = Response(hangup.relayed(reply.chunks, cancellation), status=reply.status)
    for name, value in reply.headers.items():
        response.headers[name] = value
    if reply.length is not None:
        response.content_length = reply.length
    response.headers["llm-provider"] = answer.route.deployment.provider
    if reply.is_event_stream:
        response.headers["X-Accel-Buffering"] = "no"
        response.headers["Cache-Control"] = "no-cache"
    # First the watch: a closed connection may go back to its pool and serve somebody else.
    response.call_on_close(stop_watching)
    response.call_on_close(reply.close)
    return response
