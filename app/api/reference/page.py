"""`/` and `/openapi.json`: the API reference, for people and for programs.

Both are open, for a browser that asks for a page sends no key; they say what the source says, hold
nothing of the installation, and every route that can be tried from there asks for a key. The key
that is typed into the page stays in that page's memory.
"""

import importlib.util
import json
import threading
from pathlib import Path
from typing import Any

from flask import Blueprint, Flask, Response, current_app, request

from app.api.auth import Guard, guard
from app.errors import NotFound

blueprint = Blueprint("reference", __name__)

ASSETS = frozenset({"swagger-ui.css", "swagger-ui-bundle.js", "start.js"})
"""What the page loads; `start.js` is ours, the others are Swagger UI's own."""

_OURS = Path(__file__).parent / "assets"
_BUNDLE = "flask_swagger_ui"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_EXTENSION = "manifold-reference"
_building = threading.Lock()

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Manifold: API reference</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="reference/swagger-ui.css">
<script src="reference/swagger-ui-bundle.js" defer></script>
<script src="reference/start.js" defer></script>
</head>
<body>
<main id="reference"></main>
<noscript>Without JavaScript: <a href="openapi.json">openapi.json</a> says the same.</noscript>
</body>
</html>
"""


@blueprint.get("/openapi.json")
@guard(Guard.OPEN)
def document() -> Response:
    """The OpenAPI document, built at the first request for it."""
    response = Response(_document(current_app), content_type="application/json")
    return _kept(response)


@blueprint.get("/")
@guard(Guard.OPEN)
def page() -> Response:
    """The page that shows it."""
    response = Response(_PAGE, content_type="text/html; charset=utf-8")
    response.headers["Content-Security-Policy"] = _POLICY
    return _kept(response)


@blueprint.get("/reference/<asset>")
@guard(Guard.OPEN)
def asset(asset: str) -> Response:
    """One of the page's files. Raises NotFound for all else."""
    if asset not in ASSETS:
        raise NotFound(f"there is no {asset[:80]!r} here", param="asset")
    folder = _OURS if (_OURS / asset).is_file() else _bundle()
    kind = "text/css" if asset.endswith(".css") else "text/javascript"
    response = Response((folder / asset).read_bytes(), content_type=f"{kind}; charset=utf-8")
    return _kept(response)


def _document(app: Flask) -> bytes:
    with _building:
        known: bytes | None = app.extensions.get(_EXTENSION)
        if known is None:
            # It takes a quarter of a second and apispec, which nothing else needs.
            from app.api.reference.document import build  # noqa: PLC0415

            known = json.dumps(build(app), ensure_ascii=False).encode()
            app.extensions[_EXTENSION] = known
    return known


def _kept(response: Response) -> Response:
    """The answer, which a browser keeps and asks for again only whether it is still the same."""
    response.cache_control.no_cache = True
    response.add_etag()
    made: Any = response.make_conditional(request)
    return made  # type: ignore[no-any-return]  # the same response


def _bundle() -> Path:
    # Found without being imported: all that is wanted of it are files.
    found = importlib.util.find_spec(_BUNDLE)
    if found is None or found.origin is None:
        raise NotFound("the reference's files are not installed", param="asset")
    return Path(found.origin).parent / "dist"
