"""Both fakes as one WSGI application, with a control API for tests.

`python -m gunicorn ... 'tests.google_fake.app:create()'` serves them; FAKE_GOOGLE_PUBLIC_KEY and
FAKE_GOOGLE_EMAIL are the service account's, FAKE_GOOGLE_KEY is AI Studio's. `POST /_control` takes
`{"of": "vertex" | "studio", "set": {...}, "fail": {...}, "lose": [...], "forget": true}` and
answers with what is there.
"""

import base64
import datetime as dt
import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterable
from typing import Any

from tests.google_fake.studio import Studio
from tests.google_fake.vertex import Vertex

BROKEN = 0
"""The status of an answer that is none: the connection breaks."""


def create() -> Callable[..., Iterable[bytes]]:
    """The application, with fakes of its own."""
    vertex = Vertex(os.environ["FAKE_GOOGLE_PUBLIC_KEY"], os.environ["FAKE_GOOGLE_EMAIL"])
    studio = Studio(os.environ["FAKE_GOOGLE_KEY"])
    fakes: dict[str, Any] = {"vertex": vertex, "studio": studio}

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        body = environ["wsgi.input"].read()
        path, _, query = environ["RAW_URI"].partition("?")
        if path == "/_control":
            answer = _control(fakes, json.loads(body))
        else:
            studio.base = f"http://{environ['HTTP_HOST']}"
            which = studio if _is_studios(path, environ) else vertex
            answer = which.handle(environ["REQUEST_METHOD"], path, query, _headers(environ), body)
        status, headers, content = answer
        if status == BROKEN:
            environ["gunicorn.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionError("told to break")
        start_response(f"{status} X", [*headers.items(), ("Content-Length", str(len(content)))])
        return [content]

    return app


def _is_studios(path: str, environ: dict[str, Any]) -> bool:
    return (
        path.startswith(("/v1beta/", "/upload/v1beta/"))
        or "HTTP_X_GOOG_UPLOAD_COMMAND" in environ
        or "HTTP_X_GOOG_API_KEY" in environ
    )


def _headers(environ: dict[str, Any]) -> dict[str, str]:
    found = {
        key.removeprefix("HTTP_").replace("_", "-"): str(value)
        for key, value in environ.items()
        if key.startswith("HTTP_")
    }
    for key in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        if environ.get(key):
            found[key.replace("_", "-")] = environ[key]
    return found


def _control(fakes: dict[str, Any], asked: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    fake = fakes[asked["of"]]
    for name, value in asked.get("set", {}).items():
        setattr(fake, name, dt.timedelta(hours=value) if name == "ahead" else value)
    if "fail" in asked:
        told = asked["fail"]
        body = told.get("body", "")
        raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        fake.fail(
            (told["status"], told.get("headers", {}), raw),
            path=told.get("path", ""),
            method=told.get("method", ""),
            times=told.get("times", 1),
        )
    if asked.get("clear"):
        fake.failures.clear()
    if asked.get("forget"):
        fake.requests.clear()
    told = {"requests": fake.requests}
    if isinstance(fake, Vertex):
        told |= {
            "grants": fake.grants,
            "objects": {
                f"{bucket}/{name}": {
                    "size": len(blob.content),
                    "sha256": hashlib.sha256(blob.content).hexdigest(),
                    "content_type": blob.content_type,
                    "metadata": blob.metadata,
                }
                for bucket, blobs in fake.buckets.items()
                for name, blob in blobs.items()
            },
        }
    else:
        told |= {
            "files": {
                name: {
                    "size": len(file.content),
                    "content": base64.b64encode(file.content[:1000]).decode(),
                }
                for name, file in fake.files.items()
            }
        }
    return 200, {"Content-Type": "application/json"}, json.dumps(told).encode()
