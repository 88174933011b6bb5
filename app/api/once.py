"""`Idempotency-Key`: what a request with one makes is made once, and answered alike each time."""

import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, cast

from flask import Response, after_this_request, request

from app import ids
from app.api import body
from app.api.auth import presented_secret
from app.api.context import caller, services
from app.errors import InvalidRequest
from app.services.once import Answered, Secrets

HEADER = "Idempotency-Key"
REPLAYED = "Idempotent-Replayed"
MAX_LENGTH = 255

T = TypeVar("T", bound=Mapping[str, Any])
View = TypeVar("View", bound=Callable[..., Any])


def nothing(_object_uuid: str) -> None:
    """What an earlier try has made, where that cannot be told or does no harm."""


def once(
    asked: Callable[[], Iterable[str]],
    make: Callable[[str], T],
    made: Callable[[str], T | None] = nothing,
) -> T:
    """What `make` answers, or answered when this request was sent before.

    `asked` tells all that the request asks for; path and query are added. `make` gets the row id
    for what it makes; `made` answers with what an earlier try has made under a row id, None when
    that is nothing. Raises Conflict, KeyReused, InvalidRequest for a key that is none.
    """
    key = request.headers.get(HEADER)
    if key is None:
        return make(ids.new_uuid())
    if not 0 < len(key) <= MAX_LENGTH or not key.isprintable():
        raise InvalidRequest(f"{HEADER} has 1 to {MAX_LENGTH} printable characters", param=HEADER)
    digest = hashlib.sha256()
    for part in (request.method, request.path, request.query_string.decode("latin-1"), *asked()):
        digest.update(hashlib.sha256(part.encode("utf-8", "surrogatepass")).digest())
    guard, secrets = services().once, Secrets(presented_secret(), key)
    turn = guard.begin(caller(), secrets, digest.hexdigest())
    if isinstance(turn, Answered):
        after_this_request(_marked)
        return cast(T, turn.answer)
    answer = None
    if turn.is_second:
        with guard.taken(turn):
            answer = made(turn.object_uuid)
            turn = turn if answer is not None else guard.anew(turn)
    if answer is None:
        with guard.taken(turn):
            answer = make(turn.object_uuid)
    guard.keep(turn, secrets, answer)
    return answer


def of_json(make: Callable[[str], T], made: Callable[[str], T | None] = nothing) -> T:
    """`once` for a request that its JSON body is the whole of."""
    return once(lambda: (body.read().decode("latin-1"),), make, made)


def single(view: View) -> View:
    """Answer a view once for each idempotency key, where its earlier tries need no looking for."""

    @functools.wraps(view)
    def wrapped(**named: Any) -> Any:
        return of_json(lambda _: view(**named))

    return cast(View, wrapped)


def _marked(response: Response) -> Response:
    response.headers[REPLAYED] = "true"
    return response
