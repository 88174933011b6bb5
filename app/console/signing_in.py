"""Sign in with a key, sign out; who is behind a request's session."""

from flask import Blueprint, request
from flask import Response as FlaskResponse
from werkzeug.wrappers import Response

from app.api.auth import Door, Guard, guard
from app.api.context import services
from app.console import cookies, csrf, rendering
from app.errors import GatewayError, NotAuthenticated, NotFound, RateLimited
from app.services.callers import Caller

blueprint = Blueprint("signing_in", __name__)

_A_YEAR = 365 * 24 * 3600


def signed_in() -> Caller:
    """Who is signed in. Raises NotAuthenticated, NotPermitted for what another site has sent."""
    token = cookies.session_token()
    if not token:
        raise NotAuthenticated("sign in first")
    caller = services().sessions.find(token, is_at_work=not rendering.is_poll())
    if request.method not in csrf.SAFE:
        csrf.refuse_other_sites()
    return caller


@blueprint.get("/sign-in")
@guard(Guard.OPEN, Door.SESSION)
def form() -> Response:
    """The form."""
    return _form()


@blueprint.post("/sign-in")
@guard(Guard.OPEN, Door.SESSION)
def begin() -> Response:
    """Sign in, and go on to where one came from."""
    csrf.refuse_other_sites()
    request.max_content_length = csrf.MAX_FORM_BYTES
    csrf.require(cookies.form_secret(), request.form.get(csrf.FIELD))
    secret = request.form.get("key", "").strip()
    try:
        found = services().sessions.begin(secret, request.remote_addr, cookies.session_token())
    except (NotAuthenticated, RateLimited) as error:
        return _form(error)
    response = rendering.go(rendering.local(request.form.get("next")))
    cookies.keep_session(response, found.token)
    return response


@blueprint.post("/sign-out")
@guard(Guard.ANY_KEY, Door.SESSION)
def end() -> Response:
    """Sign out."""
    services().sessions.end(cookies.session_token() or "")
    response = rendering.go("/ui/sign-in")
    cookies.forget(response)
    response.headers["Clear-Site-Data"] = '"cache"'
    return response


@blueprint.get("/static/<name>")
@guard(Guard.OPEN, Door.SESSION)
def static(name: str) -> Response:
    """Style, script and picture of the pages; nothing else is in that folder."""
    found = rendering.static_files().get(name)
    if found is None:
        raise NotFound("there is no such file")
    response = FlaskResponse(found.content, mimetype=found.kind)
    response.cache_control.max_age = _A_YEAR
    response.cache_control.public = True
    return response


def _form(error: GatewayError | None = None) -> Response:
    response = rendering.render(
        "sign_in.html",
        401 if isinstance(error, NotAuthenticated) else error.status if error else 200,
        message=error.message if error else None,
        form_token=csrf.token_of(cookies.form_secret()),
        next=rendering.local(request.values.get("next")),
    )
    cookies.keep_form_secret(response)
    if error is not None:
        response.headers.extend(error.headers)
    return response
