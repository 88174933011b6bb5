"""Downloads that nginx sends from the disk by itself, told to by X-Accel-Redirect.

nginx announces with every request, in a header that it alone can set, the address below which it
has the data directory (deploy/nginx.conf). Where the setting says the same, a file that lies on
this disk is answered with its path instead of its bytes. Everybody else gets the bytes.
"""

from pathlib import Path

from flask import Response, g, request

from app.api.context import note
from app.transfers import Download

ANNOUNCED = "X-Manifold-Accel"
"""Dropped before it comes here unless it was sent by a trusted proxy: see `app.server.peers`."""

# nginx would hold these against the file's own times, which say when somebody, perhaps somebody
# else with the same content, has stored it.
_CONDITIONS = (
    "If-Match",
    "If-None-Match",
    "If-Modified-Since",
    "If-Unmodified-Since",
    "If-Range",
)


def address(download: Download, data_dir: Path, prefix: str | None) -> str | None:
    """Where nginx finds the file, None when the bytes are to be sent by us.

    The path is made of ids that we have made. A range that we would not understand is ours to
    pass over, for nginx would refuse it.
    """
    if download.path is None or prefix is None or request.headers.get(ANNOUNCED) != prefix:
        return None
    if any(name in request.headers for name in _CONDITIONS):
        return None
    if "Range" in request.headers and not download.content_range:
        return None
    return prefix + download.path.relative_to(data_dir).as_posix()


def hand_over(found: str, size: int) -> Response:
    """The answer that tells nginx to send so many bytes from there, and what of them it says."""
    g.handed_over = 0 if request.method == "HEAD" else size
    note(by_nginx=True)
    response = Response()
    response.headers["X-Accel-Redirect"] = found
    return response


def size_of(response: Response) -> int | None:
    """How many bytes the client is promised, by us or by nginx; None when nobody knows."""
    handed_over: int | None = g.get("handed_over")
    return response.content_length if handed_over is None else handed_over
