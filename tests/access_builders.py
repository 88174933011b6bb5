"""A scratch database, and a small app with nothing but users and keys, for the tests of those."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import create_engine, event, make_url, select
from sqlalchemy.schema import CreateSchema, DropSchema

from app.api import auth, keys, users
from app.db.engine import Database, connect
from app.db.question import Asking, Question, Row
from app.db.tables import Base, File, Key, User, now
from app.errors import GatewayError
from app.services.access import Access
from app.services.callers import Caller, Role, operator
from app.services.keys import KeyFields
from app.services.users import UserFields
from tests.tables import make_tables

MASTER_KEY = "sk-master-of-the-tests"
BACKENDS = ("sqlite", "postgresql")


@contextmanager
def scratch_database(backend: str) -> Iterator[Database]:
    """An empty database: SQLite in memory, or a schema of its own on the test server."""
    if backend == "sqlite":
        database = connect("sqlite://")
        make_tables(database)
        yield database
        database.engine.dispose()
        return
    server = os.environ.get("MANIFOLD_TEST_POSTGRES")
    if not server:
        pytest.skip("MANIFOLD_TEST_POSTGRES is not set")
    url = make_url(server).set(drivername="postgresql+psycopg")
    schema = f"access_{uuid.uuid4().hex}"
    admin = create_engine(url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(CreateSchema(schema))
    in_schema = url.update_query_dict({"options": f"-csearch_path={schema}"})
    database = connect(in_schema.render_as_string(hide_password=False))
    try:
        Base.metadata.create_all(database.engine)
        yield database
    finally:
        database.engine.dispose()
        with admin.connect() as connection:
            connection.execute(DropSchema(schema, cascade=True))
        admin.dispose()


def issue(
    access: Access,
    user_id: str | None = "alice",
    *,
    role: Role = Role.INTERNAL_USER,
    user: UserFields | None = None,
    key: Any = None,
) -> str:
    """The secret of a new user's first key, or of a key without a user."""
    first: KeyFields = {} if key is None else key
    if user_id is None:
        return access.generate_key(operator(), first)["key"]
    fields: UserFields = {"role": role.value, **(user or {})}
    _, made = access.new_user(operator(), user_id, fields, first)
    assert made is not None
    return made["key"]


def sign_in(access: Access, user_id: str | None = "alice", **more: Any) -> Caller:
    """The caller behind such a key."""
    return access.authenticate(issue(access, user_id, **more))


def add_file(database: Database, owner: str, state: str = "ready") -> str:
    """The id of a new file row."""
    file = File(
        id=str(uuid.uuid4()),
        public_id=None,
        kind="unified",
        owner=owner,
        filename="a.jsonl",
        mime_type="application/jsonl",
        purpose="batch",
        bytes=1,
        sha256=None,
        target_model_names=[],
        state=state,
        status="processed",
        created_at=now(),
        updated_at=now(),
    )
    with database.write() as session:
        session.add(file)
    return file.id


def everything(database: Database) -> list[tuple[Any, ...]]:
    """All rows of users and keys, to be compared with themselves at another time."""
    with database.read() as session:
        found: list[tuple[Any, ...]] = []
        for table in (User.__table__, Key.__table__):
            found += sorted((tuple(row) for row in session.execute(select(table))), key=repr)
        return found


def statements(database: Database) -> list[str]:
    """A list that every statement from now on is put on, except the beginning of transactions."""
    seen: list[str] = []

    @event.listens_for(database.engine, "before_cursor_execute")
    def remember(*args: Any) -> None:
        if not args[2].startswith("BEGIN"):
            seen.append(args[2])

    class Remembered(Asking):
        def all(self, question: Question, **values: Any) -> list[Row]:
            seen.append(question.for_dialect(self._dialect).text)
            return super().all(question, **values)

    ask = database.ask

    @contextmanager
    def asking() -> Iterator[Asking]:
        with ask() as found:
            yield Remembered(found._connection, found._dialect)

    database.ask = asking  # type: ignore[method-assign, assignment]
    return seen


def make_app(database: Database, access: Access | None = None) -> Flask:
    """Flask with the blueprints of users and keys, the guard and the error envelope."""
    app = Flask("admin")
    app.extensions["manifold"] = SimpleNamespace(
        database=database, access=access or Access(database, MASTER_KEY)
    )
    app.register_blueprint(users.blueprint)
    app.register_blueprint(keys.blueprint)
    auth.install(app)

    @app.errorhandler(GatewayError)
    def envelope(error: GatewayError) -> tuple[dict[str, Any], int, dict[str, str]]:
        return error.body(), error.status, error.headers

    return app


class Client:
    """One person's view of the app: every call carries his key."""

    def __init__(self, client: FlaskClient, secret: str) -> None:
        self._client = client
        self.secret = secret

    def post(self, path: str, body: Any = None, **options: Any) -> Any:
        if "data" not in options:
            options["json"] = {} if body is None else body
        return self._client.post(path, headers=self._headers, **options)

    def get(self, path: str, **query: Any) -> Any:
        return self._client.get(path, headers=self._headers, query_string=query)

    def acting_as(self, secret: str) -> "Client":
        return Client(self._client, secret)

    @property
    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.secret}"}
