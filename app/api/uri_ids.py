"""File ids that are addresses, such as those of a storage bucket: one part of a path again.

WSGI has decoded the path, so the slashes of an address that a client escaped stand there as if they
parted it. They are escaped once more; `ids.decode` reads them.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote

_ADDRESS = re.compile(
    r"(?P<before>.*/files/)(?P<scheme>[a-z][a-z0-9+.-]{1,15}):/{1,2}(?P<rest>[^/].*?)"
    r"(?P<after>/content|/delete)?",
    re.DOTALL,
)

WSGI = Callable[[dict[str, Any], Any], Iterable[bytes]]


def escaping(app: WSGI) -> WSGI:
    """The application, behind which an address in a path is one id."""

    def wrapped(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if ":/" in path and (found := _ADDRESS.fullmatch(path)):
            address = quote(f"{found['scheme']}://{found['rest']}".encode("latin-1"), safe="")
            environ["PATH_INFO"] = found["before"] + address + (found["after"] or "")
        return app(environ, start_response)

    return wrapped
