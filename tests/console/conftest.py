"""The app over fake providers, and people who look at it with a browser's manners."""

import re
from typing import Any

import pytest
from flask import Flask

from app.db.engine import Database
from app.services.callers import Role
from tests.access_builders import MASTER_KEY, issue
from tests.api.conftest import Gateway, api_database, make_gateway, multipart

__all__ = ["Browser", "Gateway", "api_database"]


class Browser:
    """Somebody's browser: keeps cookies, sends forms with the token of the page they are on."""

    def __init__(self, app: Flask, *, secure: bool = False) -> None:
        self.client = app.test_client()
        self._base = "https://localhost" if secure else "http://localhost"

    def get(self, path: str, **options: Any) -> Any:
        return self.client.get(path, base_url=self._base, **options)

    def post(self, path: str, *, token: str | None = None, **options: Any) -> Any:
        """Send a form; `token` is that of the session unless it is given, "" for none."""
        data = dict(options.pop("data", {}))
        token = self.token() if token is None else token
        if token:
            data["csrf_token"] = token
        return self.client.post(path, base_url=self._base, data=data, **options)

    def token(self, path: str = "/ui/files") -> str:
        """The token that the forms of a page have."""
        found = re.search(r'name="csrf_token" value="([0-9a-f]{64})"', self.get(path).text)
        assert found
        return found[1]

    def sign_in(self, secret: str, **more: str) -> Any:
        page = "/ui/sign-in"
        return self.post(page, token=self.token(page), data={"key": secret, **more})

    def cookie(self, name: str = "manifold_session") -> Any:
        path = "/" if name.startswith("__Host-") else "/ui"
        return self.client.get_cookie(name, path=path)

    def upload(self, content: bytes = b"content", name: str = "a.txt", **fields: Any) -> str:
        """The row id of a new file."""
        response = self.send(content, name, **fields)
        assert response.status_code == 303, response.text
        return str(response.headers["Location"]).rpartition("/")[2]

    def send(self, content: bytes = b"content", name: str = "a.txt", **fields: Any) -> Any:
        """Send the upload form as a browser without a script does."""
        token = fields.pop("token", None)
        headers = fields.pop("headers", {})
        parts = {"purpose": "user_data", "expires_in": "", "target_model_names": "a", **fields}
        token = self.token() if token is None else token
        named = [("csrf_token", token)] if token else []
        body, kind = multipart(*named, *parts.items(), ("file", (name, "text/html", content)))
        return self.client.post(
            "/ui/files", base_url=self._base, data=body, content_type=kind, headers=headers
        )


@pytest.fixture
def gateway(tmp_path: Any, api_database: Database) -> Gateway:
    return make_gateway(tmp_path / "data", api_database)


def signed_in(gateway: Gateway, user_id: str | None = "alice", **more: Any) -> Browser:
    """The browser of a new user who has signed in."""
    browser = Browser(gateway.app)
    secret = MASTER_KEY if user_id == "root" else issue(gateway.access, user_id, **more)
    assert browser.sign_in(secret).status_code == 303
    return browser


@pytest.fixture
def alice(gateway: Gateway) -> Browser:
    return signed_in(gateway)


@pytest.fixture
def bob(gateway: Gateway) -> Browser:
    return signed_in(gateway, "bob")


@pytest.fixture
def root(gateway: Gateway) -> Browser:
    return signed_in(gateway, "root")


@pytest.fixture
def viewer(gateway: Gateway) -> Browser:
    return signed_in(gateway, "viewer", role=Role.PROXY_ADMIN_VIEWER)
