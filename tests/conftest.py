"""What the tests of several rooms share: databases, three people, and a gateway without HTTP."""

import os
import uuid
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from app import ids
from app.db import migrate
from app.db.engine import Database, connect
from app.db.tables import Base
from app.factory import FileServices, file_services
from app.services.callers import MASTER_OWNER, MASTER_USER_ID, Caller, Role
from app.services.file_lists import FileLists
from app.services.files import Files
from app.services.inference import Inference
from app.services.lookup import Lookup
from app.services.router import Hints, Router, Selector, Way
from app.settings import Deployment, Settings
from tests.builders import make_deployment, make_place, make_upload
from tests.fakes import FakeProvider
from tests.tables import make_tables

END_TO_END = Path(__file__).parent / "e2e"


def postgres_url() -> str:
    """The test server. Skips without one, and fails where nothing may be skipped."""
    url = os.environ.get("MANIFOLD_TEST_POSTGRES")
    if not url:
        if os.environ.get("MANIFOLD_TEST_NO_SKIP"):
            pytest.fail("MANIFOLD_TEST_POSTGRES is not set")
        pytest.skip("MANIFOLD_TEST_POSTGRES is not set: nothing is tested on PostgreSQL")
    return url


@pytest.fixture(scope="session")
def migrated_postgres() -> Iterator[Database]:
    """A scratch PostgreSQL database, brought up by the migrations as a gateway does it."""
    server = connect(postgres_url())
    admin = server.engine.execution_options(isolation_level="AUTOCOMMIT")
    name = f"tests_{uuid.uuid4().hex}"
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
        # Nobody cuts the power here, and a commit that waits for the disk takes a hundred times it.
        connection.execute(text(f"ALTER DATABASE {name} SET synchronous_commit = off"))
    scratch = connect(server.engine.url.set(database=name).render_as_string(hide_password=False))
    migrate.upgrade(scratch)
    yield scratch
    scratch.engine.dispose()
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    server.engine.dispose()


@pytest.fixture
def postgres(migrated_postgres: Database) -> Database:
    """An empty PostgreSQL database, for what SQLite cannot do."""
    # One statement for all tables takes a tenth of a round trip for each of them.
    deletes = "".join(f'DELETE FROM "{table.name}"; ' for table in Base.metadata.tables.values())
    with migrated_postgres.engine.begin() as connection:
        # A replica's session asks no trigger: neither those of foreign keys, so that any order
        # does, nor those of the audit trail, which let nobody delete.
        connection.exec_driver_sql(
            f"DO $$ BEGIN SET LOCAL session_replication_role = replica; {deletes}END $$"
        )
    return migrated_postgres


@contextmanager
def _sqlite(url: str) -> Iterator[Database]:
    database = connect(url)
    make_tables(database)
    yield database
    database.engine.dispose()


@pytest.fixture(params=["memory", "postgresql"])
def database(request: pytest.FixtureRequest) -> Database:
    """An empty database with all tables, of each kind."""
    if request.param == "memory":
        made: Database = request.getfixturevalue("memory")
        return made
    emptied: Database = request.getfixturevalue("postgres")
    return emptied


@pytest.fixture(params=["file", "postgresql"])
def served_database(request: pytest.FixtureRequest) -> Database:
    """The same, when several threads read and write at once: one in memory has one connection."""
    if request.param == "file":
        made: Database = request.getfixturevalue("sqlite_file")
        return made
    emptied: Database = request.getfixturevalue("postgres")
    return emptied


@pytest.fixture
def memory() -> Iterator[Database]:
    """An empty SQLite database in memory, where the kind of database does not matter."""
    with _sqlite("sqlite://") as database:
        yield database


@pytest.fixture
def sqlite_file(tmp_path: Path) -> Iterator[Database]:
    """An empty SQLite database in a file, as a gateway without configuration has it."""
    with _sqlite(f"sqlite:///{tmp_path}/manifold.db") as database:
        yield database


def make_caller(
    user_id: str | None,
    role: Role = Role.INTERNAL_USER,
    *,
    key_models: Sequence[str] = (),
    user_models: Sequence[str] = (),
) -> Caller:
    """The caller behind a user's key, or behind a key that belongs to nobody."""
    token = uuid.uuid4().hex * 2
    return Caller(
        owner=f"key:{token}" if user_id is None else f"user:{user_id}",
        user_id=user_id,
        key_hash=token,
        key_id=str(uuid.uuid4()),
        role=role,
        key_models=tuple(key_models),
        user_models=tuple(user_models),
        key_name=f"sk-...{token[-4:]}",
    )


@pytest.fixture
def alice() -> Caller:
    """Owns what the tests make."""
    return make_caller("alice")


@pytest.fixture
def bob() -> Caller:
    """A stranger."""
    return make_caller("bob")


@pytest.fixture
def root() -> Caller:
    """Who presents the master key."""
    return Caller(MASTER_OWNER, MASTER_USER_ID, "f" * 64, None, Role.PROXY_ADMIN)


@pytest.fixture
def viewer() -> Caller:
    """Sees everything and changes nothing."""
    return make_caller("viewer", Role.PROXY_ADMIN_VIEWER)


@pytest.fixture
def nobody() -> Caller:
    """A key without user."""
    return make_caller(None)


MODELS = (
    make_deployment("a-1", model_name="a", upstream_model="up-a"),
    make_deployment("a-2", model_name="a", provider="azure", upstream_model="up-a"),
    make_deployment("b-1", model_name="b", upstream_model="up-b"),
)
ACCOUNTS = (make_deployment("openai-account", model_name=None, upstream_model=""),)


@dataclass
class Clock:
    """Seconds that pass when told to."""

    seconds: float = 1000.0

    def __call__(self) -> float:
        return self.seconds


@dataclass
class Gateway:
    """The services over fake providers, by deployment id; no HTTP on either side."""

    settings: Settings
    database: Database
    router: Router
    lookup: Lookup
    files: Files
    lists: FileLists
    inference: Inference
    rooms: FileServices
    fakes: dict[str, FakeProvider]
    clock: Clock

    def way(self, caller: Caller, **selector: Any) -> Way:
        """Where a request with this selector keeps files."""
        return self.router.way(Selector(**selector), caller)

    def upload(self, caller: Caller, content: bytes = b"content", **more: Any) -> str:
        """The id of a new file; `names`, `model` or `provider` choose the way, else `names`."""
        selector: dict[str, Any] = {k: more.pop(k) for k in ("model", "provider") if k in more}
        names = more.pop("names", None)
        if names is not None or not selector:
            selector = {"target_model_names": tuple(names or ("a", "b"))}
        way = self.way(caller, **selector)
        return self.files.create(caller, make_upload(content, **more), way)["id"]

    def raw_id(self, deployment_id: str) -> str:
        """The only file that a fake holds."""
        [raw] = self.fakes[deployment_id].stored
        return raw

    def calls(self) -> int:
        """How often any upstream was called so far."""
        return sum(len(fake.calls) for fake in self.fakes.values())

    def in_flight(self) -> dict[str, int]:
        """Deployments with requests that have not ended, as the router counts them."""
        return {key: n for key, n in self.router._in_flight.items() if n}


def make_gateway(
    database: Database,
    deployments: Sequence[Deployment] = MODELS,
    accounts: Sequence[Deployment] = ACCOUNTS,
    *,
    fake: type[FakeProvider] = FakeProvider,
    **settings: Any,
) -> Gateway:
    """A gateway with these deployments, all of them served by fakes."""
    settings.setdefault("data_dir", make_place().data_dir)
    made = Settings(deployments=tuple(deployments), file_accounts=tuple(accounts), **settings)
    fakes = {d.id: fake(d) for d in (*deployments, *accounts)}
    clock = Clock()
    router = Router(made, fakes, clock=clock)
    rooms = file_services(made, database, router)
    lookup, files = rooms.lookup, rooms.files
    lists = FileLists(database, router)
    inference = Inference(made, database, router, lookup, rooms.renewal)
    return Gateway(made, database, router, lookup, files, lists, inference, rooms, fakes, clock)


def raw_in(file_id: str) -> str:
    """The provider's id that an encoded id carries."""
    found = ids.decode(file_id)
    assert isinstance(found, ids.EncodedId)
    return found.raw


NO_HINTS = Hints()


def pytest_configure(config: pytest.Config) -> None:
    """Several processes take the files in our order, not those with the most tests first.

    The longest files have few tests: one of them alone would be left for the end.
    """
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With several processes, what waits for processes of its own comes first."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: END_TO_END not in item.path.parents)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Make of what a test has logged a text that one process can send to another."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report
