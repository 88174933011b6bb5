"""Flask without what no request of ours needs."""

import json
from typing import Any

from flask import Flask, Request
from flask.json.provider import DefaultJSONProvider
from flask.sessions import SessionInterface, SessionMixin
from werkzeug.sansio.response import Response as BaseResponse

from app.api.rules import LazyRule


class Application(Flask):
    """Flask with synchronous views and rules that are quick to add, without sessions.

    What is left out is looked for at every request, or at every hook of it: together a tenth of
    what a small one costs.
    """

    url_rule_class = LazyRule

    def __init__(self, name: str) -> None:
        super().__init__(name, static_folder=None)
        self.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
        self.json = CompactJson(self)
        self.session_interface = _NoSessions()
        self.url_map.merge_slashes = False
        self.url_map.strict_slashes = False

    def ensure_sync(self, func: Any) -> Any:
        """The function itself: none of ours is a coroutine."""
        return func


class CompactJson(DefaultJSONProvider):
    """JSON in UTF-8, its keys in the order in which they were set, by an encoder made once."""

    sort_keys = False
    ensure_ascii = False
    _encode = json.JSONEncoder(
        ensure_ascii=False, separators=(",", ":"), default=DefaultJSONProvider.default
    ).encode

    def response(self, *args: Any, **kwargs: Any) -> BaseResponse:
        """An answer with one value as its body."""
        value = self._prepare_response_obj(args, kwargs)
        return self._app.response_class(self._encode(value) + "\n", mimetype=self.mimetype)


class _NoSessions(SessionInterface):
    _none = SessionInterface.null_session_class()

    def open_session(self, app: Flask, request: Request) -> SessionMixin:
        return self._none

    def is_null_session(self, obj: object) -> bool:
        return obj is self._none
