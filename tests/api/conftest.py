"""The whole app over fake providers, and people who call it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app.db.engine import Database, connect
from app.factory import create_app
from app.services.access import Access
from app.services.callers import Role
from app.settings import Deployment, Settings
from tests.access_builders import MASTER_KEY, issue
from tests.builders import make_deployment
from tests.fakes import FakeProvider
from tests.tables import make_tables

DEPLOYMENTS = (
    make_deployment("a-1", model_name="a", upstream_model="up-a"),
    make_deployment("b-1", model_name="b", provider="azure", upstream_model="up-b"),
)
ACCOUNTS = (
    make_deployment("openai-account", model_name=None, upstream_model=""),
    make_deployment("azure-account", model_name=None, provider="azure", upstream_model=""),
)


class Person:
    """Somebody's view of the app: every request carries his key."""

    def __init__(self, app: Flask, secret: str) -> None:
        self.client = app.test_client()
        self.secret = secret

    def open(self, method: str, path: str, **options: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.secret}", **options.pop("headers", {})}
        return self.client.open(path, method=method, headers=headers, **options)

    def get(self, path: str, **options: Any) -> Any:
        return self.open("GET", path, **options)

    def post(self, path: str, **options: Any) -> Any:
        return self.open("POST", path, **options)

    def delete(self, path: str, **options: Any) -> Any:
        return self.open("DELETE", path, **options)

    def send(self, content: bytes = b"content", path: str = "/v1/files", **fields: Any) -> Any:
        """Upload a file; `name` and `type` are those of its part, the rest are form fields."""
        name, kind = fields.pop("name", "a.txt"), fields.pop("type", "text/plain")
        headers = fields.pop("headers", {})
        parts = (
            [*fields.items()]
            if "purpose" in fields
            else [("purpose", "user_data"), *fields.items()]
        )
        body, content_type = multipart(*parts, ("file", (name, kind, content)))
        return self.post(path, data=body, content_type=content_type, headers=headers)

    def upload(self, content: bytes = b"content", **fields: Any) -> str:
        """The id of a new file."""
        response = self.send(content, **fields)
        assert response.status_code == 200, response.text
        return str(response.get_json()["id"])


def multipart(*parts: tuple[str, Any], boundary: str = "boundary") -> tuple[bytes, str]:
    """A form of these parts, in this order: texts, and (filename, type, content) for files."""
    pieces = []
    for name, value in parts:
        for one in value if isinstance(value, list) else [value]:
            head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"'
            if isinstance(one, tuple):
                filename, kind, content = one
                head += f'; filename="{filename}"' if filename is not None else ""
                head += f"\r\nContent-Type: {kind}" if kind is not None else ""
            else:
                content = one if isinstance(one, bytes) else str(one).encode()
            pieces += [head.encode(), b"\r\n\r\n", content, b"\r\n"]
    pieces.append(f"--{boundary}--\r\n".encode())
    return b"".join(pieces), f"multipart/form-data; boundary={boundary}"


@dataclass
class Gateway:
    """The app, what is behind it, and the providers by deployment id."""

    app: Flask
    database: Database
    access: Access
    fakes: dict[str, FakeProvider]
    data_dir: Path

    def person(self, user_id: str | None = "alice", **more: Any) -> Person:
        """A new user with this id, or a key without user for None."""
        return Person(self.app, issue(self.access, user_id, **more))

    def calls(self) -> int:
        """How often any upstream was called so far."""
        return sum(len(fake.calls) for fake in self.fakes.values())


def make_gateway(
    folder: Path,
    database: Database,
    deployments: Sequence[Deployment] = DEPLOYMENTS,
    accounts: Sequence[Deployment] = ACCOUNTS,
    **settings: Any,
) -> Gateway:
    """A gateway with these deployments, all of them fakes."""
    fakes = {d.id: FakeProvider(d) for d in (*deployments, *accounts)}
    made = Settings(
        deployments=tuple(deployments),
        file_accounts=tuple(accounts),
        master_key=MASTER_KEY,
        data_dir=folder,
        **settings,
    )
    app = create_app(made, database, fakes)
    return Gateway(app, database, Access(database, MASTER_KEY), fakes, folder)


@pytest.fixture
def api_database() -> Iterator[Database]:
    database = connect("sqlite://")
    make_tables(database)
    yield database
    database.engine.dispose()


@pytest.fixture
def gateway(tmp_path: Path, api_database: Database) -> Gateway:
    return make_gateway(tmp_path / "data", api_database)


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway for all tests of a module that change nothing; making one takes its time."""
    database = connect("sqlite://")
    make_tables(database)
    gateway = make_gateway(tmp_path_factory.mktemp("still"), database)
    yield gateway
    assert gateway.calls() == 0
    database.engine.dispose()


@pytest.fixture(scope="module")
def reader(still: Gateway) -> Person:
    """Somebody who may write and has nothing."""
    return still.person("reader")


@pytest.fixture
def app(gateway: Gateway) -> Flask:
    return gateway.app


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    """Nobody: requests carry no key."""
    return app.test_client()


@pytest.fixture
def alice(gateway: Gateway) -> Person:
    return gateway.person("alice")


@pytest.fixture
def bob(gateway: Gateway) -> Person:
    return gateway.person("bob")


@pytest.fixture
def root(gateway: Gateway) -> Person:
    return Person(gateway.app, MASTER_KEY)


@pytest.fixture
def viewer(gateway: Gateway) -> Person:
    return gateway.person("viewer", role=Role.PROXY_ADMIN_VIEWER)


def error_of(response: Any, status: int, param: str | None = None, code: str | None = None) -> Any:
    """The inside of an error's envelope, which must be OpenAI's."""
    assert response.status_code == status, response.text
    error = response.get_json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] and isinstance(error["message"], str)
    assert "None" not in error["message"] and "Traceback" not in error["message"]
    assert error["param"] == param, error
    assert code is None or error["code"] == code, error
    assert response.headers["x-request-id"]
    return error
