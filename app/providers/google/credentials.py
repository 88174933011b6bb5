"""Access tokens of a Google account: one refresh for all threads, some minutes early.

Source: Google Cloud, Authentication methods at Google (service accounts, workload identity,
metadata server), and google-auth's reference; read 2026-11.
"""

import datetime as dt
import json
import threading
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from marshmallow import ValidationError

from app import turns
from app.errors import UpstreamAuthFailed
from app.settings import Deployment

SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_EARLY = dt.timedelta(minutes=5)
"""How long before its end a token is replaced; until then it goes on to be used."""
_TIMEOUT_SECONDS = 20


def check_credentials(value: object) -> None:
    """Check the form of `vertex_credentials`. Raises ValidationError, without showing it."""
    if isinstance(value, Mapping):
        info: object = value
    elif isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            info = json.loads(value)
        except ValueError:
            raise ValidationError("is no JSON") from None
    elif isinstance(value, str) and value:
        return  # A path: it is read when it is needed, for it may be mounted later.
    else:
        raise ValidationError("must be the path of a credentials file, or what stands in one")
    if not isinstance(info, Mapping) or not isinstance(info.get("type"), str):
        raise ValidationError("has no 'type'; it must be a credentials file of Google's")


class Credentials:
    """The tokens of one account: of a credentials file, of its text, or of the machine's own.

    Shared by the server's threads. A token that is still good is used while one thread fetches
    the next one; a thread that has none waits.
    """

    def __init__(self, given: str | Mapping[str, Any] | None, deployment: Deployment) -> None:
        self._given = given
        self._deployment = deployment
        self._one = threading.Lock()
        self._found: Any = None
        self._token: tuple[str, dt.datetime] | None = None
        self._project: str | None = None

    def headers(self) -> dict[str, str]:
        """The Authorization header of a request that is sent now.

        Raises UpstreamAuthFailed when Google gives no token; no secret is in its message.
        """
        return {"Authorization": f"Bearer {self._now()}"}

    def project(self) -> str | None:
        """The project that the credentials belong to, if they say so. Raises as `headers`."""
        if self._project is None:
            self._now()
        return self._project

    def _now(self) -> str:
        token = self._token
        moment = dt.datetime.now(dt.UTC)
        if token is not None and moment < token[1] - _EARLY:
            return token[0]
        is_good = token is not None and moment < token[1]
        turns.leave()
        if not self._one.acquire(blocking=not is_good):
            assert token is not None  # noqa: S101  # it is good, so it is there
            return token[0]
        try:
            if self._token is not token and self._token is not None:
                return self._token[0]  # Another thread has fetched it while we waited.
            return self._refreshed()
        except UpstreamAuthFailed:
            if is_good and token is not None:
                # The next request tries again; this one still has a token.
                return token[0]
            raise
        finally:
            self._one.release()

    def _refreshed(self) -> str:
        # Imported here: most installations have no Google account, and it takes 15 MB.
        import google.auth.exceptions  # noqa: PLC0415
        import google.auth.transport.requests  # noqa: PLC0415
        import requests  # noqa: PLC0415

        try:
            if self._found is None:
                self._found = self._load()
            session = requests.Session()
            session.trust_env = False
            session.proxies.update(urllib.request.getproxies())
            with session:
                self._found.refresh(_Bounded(google.auth.transport.requests.Request(session)))
            token, expiry = self._found.token, self._found.expiry
        except (
            google.auth.exceptions.GoogleAuthError,
            requests.RequestException,
            OSError,
            # The library's own, for a file or an answer that is not Google's.
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
        ) as error:
            # A library's text may quote what it was given, so only its kind is told, and no cause.
            raise self._failed(type(error).__name__) from None
        if not isinstance(token, str) or not token:
            raise self._failed("no token")
        ends = expiry or dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
        ends = ends if ends.tzinfo else ends.replace(tzinfo=dt.UTC)
        self._token = (token, ends)
        return token

    def _load(self) -> Any:
        import google.auth  # noqa: PLC0415  # as above

        info = self._info()
        if info is None:
            found, self._project = google.auth.default(scopes=[SCOPE])
            return found
        self._project = info.get("project_id") or info.get("quota_project_id")
        return _loaded(info)

    def _info(self) -> dict[str, Any] | None:
        given = self._given
        if given is None:
            return None
        if isinstance(given, Mapping):
            return dict(given)
        text = given if given.lstrip().startswith("{") else Path(given).read_text("utf-8")
        info = json.loads(text)
        if not isinstance(info, dict):
            raise TypeError("the credentials are no object")
        return info

    def _failed(self, reason: str) -> UpstreamAuthFailed:
        return UpstreamAuthFailed(
            f"Google gave no token for {self._deployment.provider}: {reason}",
            provider=self._deployment.provider,
            deployment=self._deployment.id,
        )


def _loaded(info: dict[str, Any]) -> Any:
    """The library's credentials for a file's content, by the kinds that it may be of."""
    from google.auth import aws, identity_pool  # noqa: PLC0415  # as above
    from google.oauth2 import credentials, service_account  # noqa: PLC0415  # as above

    match info.get("type"):
        case "service_account":
            return service_account.Credentials.from_service_account_info(info, scopes=[SCOPE])  # type: ignore[no-untyped-call]  # the library has few types
        case "authorized_user":
            return credentials.Credentials.from_authorized_user_info(info, scopes=[SCOPE])  # type: ignore[no-untyped-call]  # likewise
        case "external_account":
            source = info.get("credential_source") or {}
            if "executable" in source:
                raise ValueError("credentials that run a program are not supported")
            kind = aws if "environment_id" in source else identity_pool
            return kind.Credentials.from_info(info, scopes=[SCOPE])
        case _:
            raise ValueError("unknown kind of credentials")


class _Bounded:
    """google-auth's transport, with a shorter patience than its own two minutes."""

    def __init__(self, request: Any) -> None:
        self._request = request

    def __call__(self, *args: Any, **named: Any) -> Any:
        named["timeout"] = _TIMEOUT_SECONDS
        return self._request(*args, **named)
