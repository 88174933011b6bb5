"""What this stack can do at all: Flask, gunicorn and requests, without one rule.

`/v1/...` relays to an upstream after one look-up in SQLite, `/sqlite/v1/...` answers from SQLite,
`/stored/v1/files` relays a small upload between two commits. Nobody is asked for a key and nothing
is checked. BARE_DATABASE is the database's path, BARE_UPSTREAM the upstream's base URL.
"""

import fcntl
import os
import queue
import sqlite3
import threading
import uuid
from collections.abc import Iterator
from functools import cache
from typing import Any

import requests
from flask import Flask, Response, jsonify, request

PIECE = 1024 * 1024
_RELAYED = ("Content-Type", "Content-Length")
_OPEN = threading.local()
_WRITING = threading.Lock()

app = Flask(__name__)
_base = os.environ.get("BARE_UPSTREAM", "")


def _database() -> sqlite3.Connection:
    if not hasattr(_OPEN, "database"):
        _OPEN.database = sqlite3.connect(os.environ["BARE_DATABASE"])
    database: sqlite3.Connection = _OPEN.database
    return database


def _upstream() -> requests.Session:
    if not hasattr(_OPEN, "session"):
        _OPEN.session = requests.Session()
        _OPEN.session.trust_env = False
    session: requests.Session = _OPEN.session
    return session


def _row(file_id: str) -> tuple[Any, ...]:
    query = "SELECT id, upstream_id, bytes, filename, created_at FROM files WHERE id = ?"
    row: tuple[Any, ...] = _database().execute(query, (file_id,)).fetchone()
    return row


def _file_object(row: tuple[Any, ...]) -> dict[str, Any]:
    return {
        "id": row[0],
        "object": "file",
        "bytes": row[2],
        "created_at": row[4],
        "filename": row[3],
        "purpose": "user_data",
        "status": "processed",
    }


@app.get("/ready")
def ready() -> Response:
    """200 once there is a worker."""
    return Response("ready")


@app.get("/sqlite/v1/files/<file_id>")
def stored(file_id: str) -> Response:
    """A file object from its row."""
    return jsonify(_file_object(_row(file_id)))


@app.get("/sqlite/v1/files")
def stored_page() -> Response:
    """Twenty of them."""
    query = (
        "SELECT id, upstream_id, bytes, filename, created_at FROM files"
        " ORDER BY created_at DESC, id DESC LIMIT 20"
    )
    rows = _database().execute(query).fetchall()
    return jsonify({"object": "list", "data": [_file_object(row) for row in rows]})


@app.get("/v1/files")
def page() -> Response:
    """The upstream's page."""
    return _relayed(_upstream().get(f"{_base}/files", headers=_headers()))


@app.get("/v1/files/<file_id>")
def retrieve(file_id: str) -> Response:
    """The upstream's file object."""
    url = f"{_base}/files/{_row(file_id)[1]}"
    return _relayed(_upstream().get(url, headers=_headers()))


@app.get("/v1/files/<file_id>/content")
def content(file_id: str) -> Response:
    """The upstream's bytes as they come."""
    url = f"{_base}/files/{_row(file_id)[1]}/content"
    answer = _upstream().get(url, headers=_headers(), stream=True)
    return _relayed(answer, iter(lambda: answer.raw.read(PIECE), b""))


@app.post("/v1/files")
def create() -> Response:
    """The upstream's first answer; `?targets=N` sends the file N times at the same time."""
    targets = int(request.args.get("targets", "1"))
    length = int(request.headers["Content-Length"])
    pieces = iter(lambda: request.stream.read(PIECE), b"")
    if targets > 1:
        return _relayed(_to_all(pieces, length, targets)[0])
    data = request.stream.read() if length <= PIECE else _Sized(pieces, length)
    return _relayed(_upstream().post(f"{_base}/files", data=data, headers=_form_headers()))


@app.post("/stored/v1/files")
def create_stored() -> Response:
    """The upstream's first answer, with a row before it is asked and what it said after that.

    Nothing that a crash may not lose can do with less; the rows say as little as can be.
    """
    data = request.stream.read()
    row_id = uuid.uuid4().hex
    _commit("INSERT INTO stored (id) VALUES (?)", row_id)
    answer = _upstream().post(f"{_base}/files", data=data, headers=_form_headers())
    _commit("UPDATE stored SET upstream_id = ? WHERE id = ?", answer.json()["id"], row_id)
    return _relayed(answer)


def _commit(statement: str, *values: str) -> None:
    # SQLite's own way of waiting for another process that writes sleeps.
    with _WRITING:
        line = _line()
        fcntl.lockf(line, fcntl.LOCK_EX)
        with _database() as database:
            database.execute(statement, values)
        fcntl.lockf(line, fcntl.LOCK_UN)


@cache
def _line() -> int:
    return os.open(f"{os.environ['BARE_DATABASE']}-line", os.O_RDWR | os.O_CREAT, 0o600)


def _to_all(pieces: Iterator[bytes], length: int, targets: int) -> list[requests.Response]:
    lines: list[queue.Queue[bytes]] = [queue.Queue(maxsize=2) for _ in range(targets)]
    answers: dict[int, requests.Response] = {}
    headers = _form_headers()

    def send(target: int) -> None:
        data = _Sized(iter(lines[target].get, b""), length)
        with requests.Session() as session:
            session.trust_env = False
            answers[target] = session.post(f"{_base}/files", data=data, headers=headers)

    threads = [threading.Thread(target=send, args=(target,)) for target in range(targets)]
    for thread in threads:
        thread.start()
    for piece in pieces:
        for line in lines:
            line.put(piece)
    for line in lines:
        line.put(b"")
    for thread in threads:
        thread.join()
    return [answers[target] for target in range(targets)]


@app.post("/v1/chat/completions")
def chat() -> Response:
    """The upstream's answer, as a stream if that was asked for."""
    asked = request.get_json()
    for message in asked["messages"]:
        for part in message["content"] if isinstance(message["content"], list) else ():
            if part["type"] == "file":
                part["file"]["file_id"] = _row(part["file"]["file_id"])[1]
    url = f"{_base}/chat/completions"
    is_stream = bool(asked.get("stream"))
    answer = _upstream().post(url, json=asked, headers=_headers(), stream=is_stream)
    if is_stream:
        return _relayed(answer, answer.raw.stream())
    return _relayed(answer)


class _Sized:
    """An iterator whose length is known, so that `requests` announces it."""

    def __init__(self, pieces: Iterator[bytes], length: int) -> None:
        self._pieces = pieces
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[bytes]:
        return self._pieces


def _headers() -> dict[str, str]:
    return {"Authorization": request.headers["Authorization"]}


def _form_headers() -> dict[str, str]:
    return {**_headers(), "Content-Type": request.headers["Content-Type"]}


def _relayed(answer: requests.Response, chunks: Iterator[bytes] | None = None) -> Response:
    headers = [(name, answer.headers[name]) for name in _RELAYED if name in answer.headers]
    response = Response(answer.content if chunks is None else chunks, answer.status_code, headers)
    response.call_on_close(answer.close)
    return response
